"""A MariaDB server of the bench's own, from the system's packages, as durable as a production server must be."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from deploy.local import tethered

START_LIMIT_S: Final = 60.0
STOP_LIMIT_S: Final = 30.0
_PATH: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
_OPTIONS: Final = (
    "--no-defaults",
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--skip-log-bin",
    "--character-set-server=utf8mb4",
    "--innodb-flush-log-at-trx-commit=1",  # or an acknowledged write would be lost with the power
    "--innodb-buffer-pool-size=256M",
    "--innodb-log-file-size=256M",
    "--innodb-buffer-pool-dump-at-shutdown=OFF",
)


class MariaDbFailed(Exception):
    """It is not installed, or did not start; the text says which."""


class MariaDb:
    """Started on entry, with an empty database `renoveasy`; stopped on exit. Its data stay in the folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return f"mysql+asyncmy://renoveasy:renoveasy@127.0.0.1:{self._port}/renoveasy?charset=utf8mb4"

    def __enter__(self) -> Self:
        """Raises MariaDbFailed."""
        server, install = _program("mariadbd"), _program("mariadb-install-db")
        self._folder.mkdir(parents=True)
        place = [*_OPTIONS, *(["--user=root"] if os.geteuid() == 0 else []), f"--datadir={self._folder / 'data'}"]
        made = subprocess.run(
            [install, *place, "--auth-root-authentication-method=normal", "--skip-test-db"],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if made.returncode != 0:
            raise MariaDbFailed(f"mariadb-install-db failed:\n{made.stderr}{made.stdout}")
        statements = self._folder / "start.sql"
        statements.write_text(
            "CREATE DATABASE IF NOT EXISTS renoveasy;\n"
            "CREATE USER IF NOT EXISTS 'renoveasy'@'%' IDENTIFIED BY 'renoveasy';\n"
            "GRANT ALL ON *.* TO 'renoveasy'@'%';\n"
        )
        files = {"socket": "s", "pid-file": "pid", "init-file": "start.sql", "log-error": "log"}
        own = [f"--{option}={self._folder / name}" for option, name in files.items()]
        self._process = subprocess.Popen(
            tethered(server, *place, *own, f"--port={self._port}", signal_number=signal.SIGTERM),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._await_answer()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop()

    def _await_answer(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = self._folder / "log"
                said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
                raise MariaDbFailed(f"MariaDB did not start:\n{said}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1.0) as connection:
                return connection.recv(5)[4:] == b"\x0a"  # its greeting; the port is open before the server is up
        except OSError:
            return False

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise MariaDbFailed(f"{name} is not installed; on Debian: apt-get install mariadb-server")
    return found
