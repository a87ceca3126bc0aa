"""A clock for the open loop that is precise to some 50 µs without spinning: the kernel's timerfd on the event loop.

Event loops round their own timers to milliseconds, which is as much as what is measured.
"""

import asyncio
import ctypes
import math
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class Ticker:
    """Calls `due` on the running loop every `interval_s` until `stop`; calls that could not be made in time are one call.

    `began_s` is the moment from which the intervals count, by `time.perf_counter`.
    """

    def __init__(self, interval_s: float, due: Callable[[], None]) -> None:
        """Raises OSError where the system has no timerfd (it is Linux's)."""
        if sys.platform != "linux":
            raise OSError("the load generator needs Linux")
        self._due = due
        self._loop = asyncio.get_running_loop()
        libc = ctypes.CDLL(None, use_errno=True)
        self._file = libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        # Rounded up: what falls due with a tick must not be a nanosecond away from it, or it waits for the next one.
        seconds, nanoseconds = divmod(math.ceil(interval_s * 1e9), 1_000_000_000)
        spec = _Timespec(seconds, nanoseconds)
        both = _Itimerspec(spec, spec)
        self.began_s = perf_counter()
        if libc.timerfd_settime(self._file, 0, ctypes.byref(both), None) < 0:
            os.close(self._file)
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        self._loop.add_reader(self._file, self._fired)

    def _fired(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:
            return
        self._due()

    def stop(self) -> None:
        self._loop.remove_reader(self._file)
        os.close(self._file)
