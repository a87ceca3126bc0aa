"""What a running platform keeps in its data folder: the lock, the ports it chose, and which processes are its own.

The runtime file lets `renoveasy ps` see the platform from outside, and lets the next start end what a killed one left:
processes are known by pid and start time together, never by name, so that nobody else's is ever touched.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from deploy.settings import REPLICA_PORTS, ROLES, Ports, Settings, key_of, run_root

FILE: Final = "runtime.json"
LOCK: Final = "lock"
TOKEN_KEY: Final = "RENOVEASY_START"  # noqa: S105 - a name
"""Every process of a platform inherits this variable; its value is new at each start."""

_BLOCK: Final = 64
_FIRST, _LAST = 10_240, 20_000  # below the ephemeral ports: no outgoing connection may sit on one of ours


class StartError(Exception):
    """The platform cannot start; the text says why and what to do."""


class Process(msgspec.Struct, frozen=True):
    """One process that does a role's work, and the ports it listens on by name."""

    role: str
    name: str
    pid: int
    ports: dict[str, int]


class Runtime(msgspec.Struct, frozen=True):
    """What is known about a start. `tree` is every process below `pid` as (pid, started), the newest knowledge."""

    pid: int
    started: str
    state: str
    token: str
    settings: Settings
    tree: tuple[tuple[int, str], ...] = ()


# --- the data folder ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the data folder, which is made if it is missing: no second platform can have it, whatever crashes.

    Raises:
        StartError: another platform holds it, or it cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (data_dir / LOCK).open("a+")
    except OSError as error:
        raise StartError(
            f"the data folder {data_dir} cannot be written: {error.strerror} (RENOVEASY_DATA_DIR)"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StartError(
                f"the data folder {data_dir} belongs to a running platform, pid {file.read().strip() or 'unknown'}; "
                "stop that one, or give this one another folder with RENOVEASY_DATA_DIR"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_locked(data_dir: Path) -> bool:
    """Whether a platform runs on the folder."""
    try:
        with (data_dir / LOCK).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read(data_dir: Path) -> Runtime | None:
    """The runtime file; None where there is none that can be read."""
    try:
        return msgspec.json.decode((data_dir / FILE).read_bytes(), type=Runtime, dec_hook=_from_json)
    except (OSError, msgspec.DecodeError):
        return None


def running(data_dir: Path) -> Runtime | None:
    """What runs on the folder now; None where nothing does."""
    return read(data_dir) if is_locked(data_dir) else None


def write(runtime: Runtime) -> None:
    """Replace the runtime file; readers see the old one or the new one. It holds credentials: mode 0600."""
    path = runtime.settings.data_dir / FILE
    partial = path.with_suffix(".tmp")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(runtime, enc_hook=str))
    partial.replace(path)


def _from_json(kind: type, value: Any) -> Any:
    return Path(value) if issubclass(kind, Path) else value


def make_run_dir(settings: Settings) -> Path:
    """The folder for sockets, made for this user alone.

    Raises:
        StartError: somebody else made it first.
    """
    for folder in (run_root(), settings.run_dir):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or folder.is_symlink():
            raise StartError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
        folder.chmod(0o700)
    return settings.run_dir


# --- ports -------------------------------------------------------------------------------------------------------


def port_is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether one could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def check_public_ports(settings: Settings) -> None:
    """Raises StartError for a port that somebody else has, or that two settings share; names the settings."""
    fields = ("http_port", "ws_port", "dashboard_port", "metrics_port")
    wanted = {key_of(field): int(getattr(settings, field)) for field in fields if getattr(settings, field)}
    wanted |= {
        key_of(f"port_{field}"): port for field in Ports.__struct_fields__ if (port := getattr(settings.ports, field))
    }
    seen: dict[int, str] = {}
    for key, port in wanted.items():
        if port in seen:
            raise StartError(f"{seen[port]} and {key} are both {port}; give one of them another port")
        seen[port] = key
        address = settings.bind if key in (key_of("http_port"), key_of("ws_port")) else "127.0.0.1"
        if not port_is_free(port, address):
            raise StartError(f"port {port} is in use by another program; stop it, or choose another port with {key}")


@contextlib.contextmanager
def chosen_ports(settings: Settings, remembered: Settings | None) -> Iterator[Settings]:
    """The settings with a port for every 0, in a block of its own that no other platform of this user takes meanwhile.

    Those of the last start are taken again where they are free.
    """
    blocks = range(_FIRST, _LAST, _BLOCK)
    at = int.from_bytes(hashlib.sha256(str(settings.data_dir).encode()).digest()[:4], "big") % len(blocks)
    candidates = [*blocks[at:], *blocks[:at]]
    if remembered is not None and remembered.metrics_port in (block + _BLOCK - 1 for block in blocks):
        candidates.insert(0, remembered.metrics_port - _BLOCK + 1)
    for block in candidates:
        with (run_root() / f"ports-{block}").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if all(port_is_free(port, "0.0.0.0") for port in range(block, block + _BLOCK)):  # noqa: S104 - only a probe
                yield _filled(settings, block)
                return
    raise StartError(f"no {_BLOCK} neighbouring ports are free between {_FIRST} and {_LAST}")


def _filled(settings: Settings, block: int) -> Settings:
    names = [name for name in Ports.__struct_fields__ if name != "replicas"]
    last = block + _BLOCK - 1
    defaults = {name: block + index for index, name in enumerate(names)} | {"replicas": last - 2 * REPLICA_PORTS}
    given = {name: port for name in Ports.__struct_fields__ if (port := getattr(settings.ports, name))}
    return msgspec.structs.replace(
        settings, metrics_port=settings.metrics_port or last, ports=Ports(**(defaults | given))
    )


def with_addresses(settings: Settings) -> Settings:
    """The settings with the addresses of the embedded servers where none was set, and a new secret for each role in them."""
    nats, redis = f"@127.0.0.1:{settings.ports.nats}", f"@127.0.0.1:{settings.ports.redis}/0"
    of_nats = {role: f"nats://{role}:{secrets.token_urlsafe(24)}{nats}" for role in ROLES["nats_url"]}
    of_redis = {role: f"redis://{role}:{secrets.token_urlsafe(24)}{redis}" for role in ROLES["redis_url"]}
    return msgspec.structs.replace(
        settings,
        database_url=settings.database_url or f"sqlite+aiosqlite:///{settings.sqlite_path}",
        nats_url=settings.nats_url or of_nats["census"],
        nats_urls=settings.nats_urls if settings.nats_url else of_nats,
        redis_url=settings.redis_url or of_redis["rest"],
        redis_urls=settings.redis_urls if settings.redis_url else of_redis,
    )


# --- processes ---------------------------------------------------------------------------------------------------


def start_of(pid: int) -> str:
    """What tells this process from another one with the same pid before or after it; empty if there is none now."""
    if sys.platform != "linux":
        with contextlib.suppress(psutil.Error):
            return str(psutil.Process(pid).create_time())
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{_boot_id()}:{fields[19]}"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]


def descendants(pid: int) -> tuple[tuple[int, str], ...]:
    """Every process below this one, as (pid, started)."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return ()
    return tuple((child.pid, started) for child in children if (started := start_of(child.pid)))


def carriers(token: str) -> list[tuple[int, str]]:
    """Processes that inherited this start's token, as (pid, started): those that left the tree are found by it."""
    mark = f"{TOKEN_KEY}={token}".encode()
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if pid != os.getpid() and mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append((pid, start_of(pid)))
    return found


def end(processes: Iterable[tuple[int, str]], grace_s: float = 0.0) -> list[int]:
    """End processes for good: SIGTERM, `grace_s` later SIGKILL; returns the pids that were still there."""
    ours = {pid: started for pid, started in processes if started and start_of(pid) == started and pid != os.getpid()}
    first = dict(ours)
    for signal_number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        if not patience_s:
            continue
        for pid in ours:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal_number)
        deadline = time.monotonic() + patience_s
        while ours and time.monotonic() < deadline:
            ours = {pid: started for pid, started in ours.items() if start_of(pid) == started}
            time.sleep(0.02)
    return list(first)


def end_leftovers(runtime: Runtime | None) -> list[int]:
    """End what an earlier start on this data folder left behind; returns the pids. Call it with the lock held."""
    if runtime is None:
        return []
    return end(runtime.tree) + end(carriers(runtime.token))
