"""A whole platform for tests: `renoveasy up` as a child, on free ports, in a folder of its own; to be stopped or killed."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from deploy.settings import from_environment

READY_LIMIT_S = 180.0  # about 20 s on two idle cores
STOP_LIMIT_S = 40.0


class PlatformFailed(AssertionError):
    """It ended, or did not become ready; carries what it printed."""


def free_ports(count: int) -> list[int]:
    """TCP ports below the ephemeral ones, and outside the blocks that a platform chooses its inner ports from."""
    found: list[int] = []
    while len(found) < count:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


class Platform:
    """`renoveasy up` with settings of its own. As a context manager it is ready inside and gone, every process, outside.

    `settings` are environment variables without their prefix, such as `hosts="1"`.
    """

    def __init__(self, data_dir: Path | None = None, command: Sequence[str] = (), **settings: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="renoveasy-") if data_dir is None else None
        self.data_dir = data_dir or Path(self._temporary.name if self._temporary else "")
        self.http_port, self.ws_port, self.dashboard_port = free_ports(3)
        chosen = {
            "data_dir": str(self.data_dir),
            "http_port": str(self.http_port),
            "ws_port": str(self.ws_port),
            "dashboard_port": str(self.dashboard_port),
            "hosts": "1",
            "gateways": "1",
            "env": "dev",
        }
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RENOVEASY_", "RAY_"))}
        self.environment = inherited | {f"RENOVEASY_{key.upper()}": value for key, value in (chosen | settings).items()}
        self._command = list(command) or [sys.executable, "-m", "deploy.cli"]
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()

    # --- addresses -----------------------------------------------------------------------------------------------

    @property
    def rest(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def websocket(self) -> str:
        return f"ws://127.0.0.1:{self.ws_port}/connection/websocket"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def run_dir(self) -> Path:
        """Where its sockets are while it runs."""
        return from_environment(self.environment).run_dir

    @property
    def runtime(self) -> dict[str, Any]:
        """The runtime file."""
        return dict(json.loads((self.data_dir / "runtime.json").read_text()))

    @property
    def metrics(self) -> str:
        return f"http://127.0.0.1:{self.runtime['settings']['metrics_port']}/metrics"

    # --- life ----------------------------------------------------------------------------------------------------

    @property
    def output(self) -> str:
        return "".join(self._lines)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self) -> Self:
        """Start it and return at once."""
        self._close_output()
        self._lines.clear()
        self._ready.clear()
        self._process = subprocess.Popen(
            [*self._command, "up"],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=[self._process], daemon=True)
        self._reader.start()
        return self

    def start(self, limit_s: float = READY_LIMIT_S) -> Self:
        """Start it and return when it has printed `ready`.

        Raises:
            PlatformFailed: it did not.
        """
        self.launch()
        assert self._process is not None
        deadline = time.monotonic() + limit_s
        while not self._ready.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise PlatformFailed(f"not ready (exit code {self._process.returncode}):\n{self.output}{self._logs()}")
        return self

    def check(self) -> None:
        """Raises PlatformFailed, with what it said, if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise PlatformFailed(f"ended with code {self._process.returncode}:\n{self.output}{self._logs()}")

    def stop(self, signal_number: int = signal.SIGINT) -> int:
        """Ctrl-C, or another signal, once; returns the exit code.

        Raises:
            PlatformFailed: it has not ended within `STOP_LIMIT_S`.
        """
        assert self._process is not None
        self._process.send_signal(signal_number)
        return self.wait(STOP_LIMIT_S)

    def wait(self, limit_s: float) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        assert self._reader is not None
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise PlatformFailed(f"still there after {limit_s} s:\n{self.output}") from None
        self._reader.join(5.0)
        return code

    def kill(self) -> None:
        """SIGKILL to the whole tree at once, as when the machine takes it away."""
        tree = self.tree()
        for process in tree:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(tree, timeout=10)
        if self._process is not None:
            self._process.wait(10)

    def close(self) -> None:
        """Stop it if it runs, and leave nothing behind."""
        if self._process is not None and self._process.poll() is None:
            try:
                self.stop(signal.SIGTERM)
            except PlatformFailed:
                self.kill()
        self._close_output()
        if self._temporary is not None:
            shutil.rmtree(self.run_dir, ignore_errors=True)
            self._temporary.cleanup()

    def _close_output(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    # --- looking at it -------------------------------------------------------------------------------------------

    def tree(self) -> list[psutil.Process]:
        """`up` and every process below it."""
        try:
            up = psutil.Process(self.pid)
            return [up, *up.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def renoveasy(self, *arguments: str, limit_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Run another `renoveasy` command on this platform's data folder."""
        command = [*self._command, *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=limit_s, check=False
        )

    def processes(self) -> list[dict[str, Any]]:
        """What `renoveasy ps --json` says."""
        return list(json.loads(self.renoveasy("ps", "--json").stdout))

    def pids(self, role: str) -> dict[str, int]:
        """The pids of a role by name."""
        return {entry["name"]: entry["pid"] for entry in self.processes() if entry["role"] == role}

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with suppress(ValueError):
            for line in process.stdout:
                self._lines.append(line)
                if line.startswith("ready"):
                    self._ready.set()

    def _logs(self) -> str:
        found = ""
        for path in sorted((self.data_dir / "logs").glob("*.*")):
            if path.is_file():
                found += f"\n--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
        return found
