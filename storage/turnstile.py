"""Whose turn it is to write to SQLite, among all tasks of all processes."""

import asyncio
import fcntl
import os
import time
from typing import Final

from domain.ports import StoreUnavailable

POLL_S: Final = 0.0005
IDLE_POLL_S: Final = 0.01
"""Once nobody has let go for `PATIENCE_S`, there is no point in asking as often."""
PATIENCE_S: Final = 0.2


class Turnstile:
    """One writer at a time, within the process and between processes; released by the kernel when a process dies.

    SQLite has one writer too, but whoever finds it busy sleeps for up to 100 ms at a time: two hosts that write often
    would wait for each other far longer than either writes. This only orders them; SQLite's own lock still decides.
    """

    def __init__(self, path: str, timeout_s: float) -> None:
        """`path` of the lock file, which is made if it is missing.

        Waiting longer than `timeout_s`, for tasks of this process and for other processes together, is given up.
        """
        self._path = path
        self._timeout_s = timeout_s
        self._tasks = asyncio.Lock()
        self._file: int | None = None

    async def __aenter__(self) -> None:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._tasks.acquire()
        except TimeoutError:
            raise StoreUnavailable(f"others of this process write for longer than {self._timeout_s:g} s") from None
        try:
            await self._enter(began_s)
        except BaseException:
            self._tasks.release()
            raise

    async def _enter(self, began_s: float) -> None:
        if self._file is None:
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise StoreUnavailable(f"the lock beside the database cannot be opened: {error}") from error
        asking_s = time.monotonic()
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                now_s = time.monotonic()
                if now_s - began_s > self._timeout_s:
                    raise StoreUnavailable(f"another process writes for longer than {self._timeout_s:g} s") from None
                await asyncio.sleep(POLL_S if now_s - asking_s < PATIENCE_S else IDLE_POLL_S)
            else:
                return

    async def __aexit__(self, *_: object) -> None:
        assert self._file is not None
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._tasks.release()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
