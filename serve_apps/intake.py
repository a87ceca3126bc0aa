"""How much of uploads one process takes at once: bytes that are on their way, and pictures that are being decoded."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from domain.errors import Code, Refusal

T = TypeVar("T")


class Intake:
    """A budget of bytes for what is being received, a few uploads at once of each user, and so many threads that decode.

    Nobody waits for the budget: what is beyond it is refused as `busy`. `decode_wait_s` bounds the wait for a thread and the
    work together; work that is given up goes on in its thread to its end, which the limits on bytes and pixels bound.
    """

    def __init__(
        self, budget_bytes: int = 64 << 20, threads: int = 2, each_at_once: int = 4, decode_wait_s: float = 30.0
    ) -> None:
        self._free_bytes = budget_bytes
        self._each_at_once = each_at_once
        self._decode_wait_s = decode_wait_s
        self._threads = ThreadPoolExecutor(threads, "pictures")
        self._of: Counter[str] = Counter()

    @contextmanager
    def admitted(self, user_id: str) -> Iterator["Held"]:
        """The user's next upload, until the end of the block."""
        if self._of[user_id] >= self._each_at_once:
            raise _busy()
        self._of[user_id] += 1
        held = Held(self)
        try:
            yield held
        finally:
            self._free_bytes += held.taken_bytes
            self._of[user_id] -= 1
            if not self._of[user_id]:
                del self._of[user_id]

    def take(self, size_bytes: int) -> None:
        if size_bytes > self._free_bytes:
            raise _busy()
        self._free_bytes -= size_bytes

    async def work(self, function: Callable[..., T], *arguments: object) -> T:
        """The function's result, from a thread."""
        try:
            async with asyncio.timeout(self._decode_wait_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        except TimeoutError:
            raise _busy() from None


class Held:
    """What one upload holds of the budget."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.taken_bytes = 0

    async def gather(self, stream: AsyncIterator[bytes]) -> bytes:
        """All of the stream, each piece counted before it is kept."""
        pieces: list[bytes] = []
        async for piece in stream:
            self._intake.take(len(piece))
            self.taken_bytes += len(piece)
            pieces.append(piece)
        return b"".join(pieces)


def _busy() -> Refusal:
    return Refusal(Code.BUSY, "too many uploads at once; try again with the same id")
