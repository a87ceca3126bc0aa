"""The platform that is measured: one of the bench's own, new for every round, or one that runs already."""

import contextlib
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import psutil

from benchmarks import machine
from benchmarks.mariadb import MariaDb
from deploy import registry, runtime
from deploy.local import tethered
from deploy.settings import Settings

START_LIMIT_S: Final = 240.0
STOP_LIMIT_S: Final = 45.0


class TargetFailed(Exception):
    """The platform did not start, or is not what was asked for; the text says why."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a platform answers. `settings` is None where its processes are not known: nothing can be said about its use
    of the processors then. `servers` are processes beside its own, by pid, such as a database."""

    host: str
    port: int
    ws_url: str
    settings: Settings | None = None
    up_pid: int = 0
    servers: dict[int, str] = {}
    own: bool = False
    started_s: float = 0.0

    def roles(self) -> Mapping[int, str] | None:
        """Every process of the platform now, by pid, with its role; what Ray starts for itself is `ray`."""
        if self.settings is None:
            return None
        try:
            up = psutil.Process(self.up_pid)
            tree = [up, *up.children(recursive=True)]
        except psutil.NoSuchProcess:
            raise TargetFailed("the platform has ended") from None
        named = {entry["pid"]: entry["role"] for entry in registry.processes(self.settings)} | {self.up_pid: "up"}
        return {process.pid: named.get(process.pid, "ray") for process in tree} | self.servers

    def pin(self, processors: set[int]) -> int:
        """Keep every process of the platform on these processors; returns how many threads were elsewhere."""
        moved = 0
        for _ in range(20):
            step = machine.pin(tuple(self.roles() or ()), processors)
            moved += step
            if not step:
                break
        return moved


def running(url: str, ws_url: str, settings: Settings) -> Target:
    """A platform that runs already. Its processes are known where `settings` name its data folder.

    Raises:
        TargetFailed: the address cannot be used.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise TargetFailed(f"{url} is not an address such as http://127.0.0.1:8000")
    port = parts.port or 80
    found = runtime.read(settings.data_dir) if runtime.is_locked(settings.data_dir) else None
    if found is None or found.settings.http_port != port:
        return Target(
            host=parts.hostname, port=port, ws_url=ws_url or f"ws://{parts.hostname}:8080/connection/websocket"
        )
    here = f"ws://{parts.hostname}:{found.settings.ws_port}/connection/websocket"
    return Target(host=parts.hostname, port=port, ws_url=ws_url or here, settings=found.settings, up_pid=found.pid)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a platform of the bench's own is like. `settings` are further ones, by their name without the prefix."""

    folder: Path
    database: str = "sqlite"
    settings: dict[str, str] = {}


@contextlib.contextmanager
def started(wanted: Wanted) -> Iterator[Target]:
    """A platform with an empty database on free ports, ready inside the block, gone with its data outside of it.

    Raises:
        TargetFailed: it did not become ready; with what it printed.
    """
    wanted.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="renoveasy-bench-", dir=wanted.folder))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        chosen: dict[str, str] = {}
        servers: dict[int, str] = {}
        if wanted.database == "mariadb":
            database = stack.enter_context(MariaDb(folder / "mariadb", free_ports(1)[0]))
            chosen["database_url"] = database.url
            servers[database.pid] = "database"
        yield stack.enter_context(_up(folder / "data", wanted.settings | chosen, servers))


@contextlib.contextmanager
def _up(data_dir: Path, given: Mapping[str, str], servers: dict[int, str]) -> Iterator[Target]:
    http_port, ws_port, dashboard_port = free_ports(3)
    settings = {
        "data_dir": str(data_dir),
        "http_port": str(http_port),
        "ws_port": str(ws_port),
        "dashboard_port": str(dashboard_port),
    }
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RENOVEASY_", "RAY_"))}
    environment |= {f"RENOVEASY_{key.upper()}": value for key, value in (settings | dict(given)).items()}
    began = time.monotonic()
    process = subprocess.Popen(
        tethered(sys.executable, "-m", "deploy.cli", "up", signal_number=signal.SIGTERM),
        env=environment,
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        _await_ready(process)
        found = runtime.read(data_dir)
        if found is None:
            raise TargetFailed("the platform has no runtime file")
        yield Target(
            host="127.0.0.1",
            port=http_port,
            ws_url=f"ws://127.0.0.1:{ws_port}/connection/websocket",
            settings=found.settings,
            up_pid=process.pid,
            servers=servers,
            own=True,
            started_s=round(time.monotonic() - began, 1),
        )
    finally:
        _stop(process)


def _await_ready(process: "subprocess.Popen[str]") -> None:
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    printed: list[str] = []
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            line = lines.get(timeout=max(0.01, deadline - time.monotonic()))
        except queue.Empty:
            raise TargetFailed(f"the platform was not ready in {START_LIMIT_S:g} s:\n{''.join(printed)}") from None
        if line is None:
            raise TargetFailed(f"the platform ended instead of becoming ready:\n{''.join(printed)}")
        printed.append(line)
        if line.startswith("ready"):
            return


def _stop(process: "subprocess.Popen[str]") -> None:
    """In an orderly way; what does not end in time is killed with everything below it."""
    tree: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in tree:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(tree, timeout=10)


def free_ports(count: int) -> list[int]:
    """TCP ports below the ephemeral ones, outside of the blocks that a platform chooses its inner ports from."""
    found: list[int] = []
    while len(found) < count:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found
