"""Whose turn it is to write to SQLite, among all tasks of all processes."""

import asyncio
import fcntl
import os
import time
from typing import Final

from domain.ports import StoreUnavailable

POLL_S: Final = 0.0005


class Turnstile:
    """One writer at a time, within the process and between processes; released by the kernel when a process dies.

    SQLite has one writer too, but whoever finds it busy sleeps for up to 100 ms at a time: two hosts that write often
    would wait for each other far longer than either writes. This only orders them; SQLite's own lock still decides.
    """

    def __init__(self, path: str, timeout_s: float) -> None:
        """`path` of the lock file, which is made if it is missing. Waiting longer than `timeout_s` is given up."""
        self._path = path
        self._timeout_s = timeout_s
        self._tasks = asyncio.Lock()
        self._file: int | None = None

    async def __aenter__(self) -> None:
        await self._tasks.acquire()
        try:
            await self._enter()
        except BaseException:
            self._tasks.release()
            raise

    async def _enter(self) -> None:
        if self._file is None:
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise StoreUnavailable(f"the lock beside the database cannot be opened: {error}") from error
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise StoreUnavailable(f"another process writes for longer than {self._timeout_s:g} s") from None
                await asyncio.sleep(POLL_S)
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
