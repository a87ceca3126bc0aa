"""Many small look-ups become few large ones."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

LARGEST: Final = 256


class Batcher(Generic[K, V]):
    """Single-flight, batched reads: one batch is under way while the next one fills.

    A key that is asked for twice before its batch leaves is fetched once. An error of a fetch reaches everybody in it.
    """

    def __init__(self, fetch: Callable[[Sequence[K]], Awaitable[dict[K, V]]]) -> None:
        self._fetch = fetch
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._task: asyncio.Task[None] | None = None

    def get(self, key: K) -> "asyncio.Future[V | None]":
        """The value, or None where the fetch did not return one."""
        future = self._waiting.get(key)
        if future is None or future.cancelled():
            future = self._waiting[key] = asyncio.get_running_loop().create_future()
            if self._task is None:
                self._task = asyncio.create_task(self._run())
        return future

    async def _run(self) -> None:
        try:
            await asyncio.sleep(0)
            while self._waiting:
                keys = list(self._waiting)[:LARGEST]
                futures = [self._waiting.pop(key) for key in keys]
                await self._fetch_into(keys, futures)
        finally:
            self._task = None

    async def _fetch_into(self, keys: list[K], futures: "list[asyncio.Future[V | None]]") -> None:
        try:
            values = await self._fetch(keys)
        except BaseException as error:
            for future in futures:
                if not future.done():
                    if isinstance(error, Exception):
                        future.set_exception(error)
                    else:
                        future.cancel()
            if not isinstance(error, Exception):
                raise
            return
        for key, future in zip(keys, futures, strict=True):
            if not future.done():
                future.set_result(values.get(key))

    async def close(self) -> None:
        """Stop; whoever waits is cancelled."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()
