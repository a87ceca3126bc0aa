"""Wall clocks that can be set while a process runs; the monotonic clock stays what it is.

A small library is compiled once and preloaded. libfaketime does the same and more, but a host under it takes eight times the
processor and answers in half a second, which would hide what a clock does.
"""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.support.servers import MariaDb

HOUR_S: Final = 3_600
_SOURCE: Final = Path(__file__).with_name("clock.c")
_ASK: Final = "import time; print(time.time(), time.monotonic())"


class Clocks:
    """A wall clock of its own for whoever is started with `environment(name)`; right until it is set."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def environment(self, name: str) -> dict[str, str]:
        self.set(name, 0)
        return {"LD_PRELOAD": str(_library()), "CLOCK_FILE": str(self._file(name))}

    def set(self, name: str, ahead_s: float) -> None:
        """From now on the clock is so far ahead of the machine's; negative for behind."""
        file = os.open(self._file(name), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(file, int(ahead_s * 1e9).to_bytes(8, sys.byteorder, signed=True), 0)
        finally:
            os.close(file)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.clock"


class MariaDbWithClock(MariaDb):
    """A MariaDB server that goes by the clock of this name."""

    def __init__(self, clocks: Clocks, name: str) -> None:
        super().__init__()
        self._environment = clocks.environment(name)

    def command(self) -> list[str]:
        return ["env", *(f"{key}={value}" for key, value in self._environment.items()), *super().command()]


@functools.cache
def _library() -> Path:
    """The library, compiled. Raises OSError or CalledProcessError: there is no C compiler, or it does not want to."""
    folder = Path(tempfile.mkdtemp(prefix="renoveasy-clock-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "clock.so"
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return library


@functools.cache
def why_no_clocks() -> str:
    """Why no process can be given a clock of its own here; empty if it can."""
    try:
        _library()
    except (OSError, subprocess.SubprocessError) as error:
        return f"{_SOURCE.name} cannot be compiled: {error} {getattr(error, 'stderr', '') or ''}".strip()
    with tempfile.TemporaryDirectory() as folder:
        clocks = Clocks(Path(folder))
        environment = os.environ | clocks.environment("probe")
        clocks.set("probe", HOUR_S)
        answers = [
            subprocess.run(
                [sys.executable, "-c", _ASK], env=env, capture_output=True, text=True, timeout=30, check=True
            )
            for env in (dict(os.environ), environment)
        ]
    (wall, steady), (wall_then, steady_then) = [map(float, answer.stdout.split()) for answer in answers]
    if not HOUR_S <= wall_then - wall < HOUR_S + 60:
        return f"a preloaded library moves the clock by {wall_then - wall:.0f} s instead of an hour"
    if not 0 <= steady_then - steady < 60:
        return "a preloaded library moves the monotonic clock too"
    return ""
