"""A client's connections as tasks: one reads, one writes, and what they find out goes to whoever made them."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from gateway.client_dial import ConnectionEnded, Dial, Wire

_DIAL_S: Final = 10.0
MAX_OUTGOING_BYTES: Final = 262_144
"""Beyond this nothing is said any more that need not be said."""


class Heard(Protocol):
    """What becomes of a connection. `received` returns when the next frame may be read."""

    def dialled(self, number: int) -> None: ...
    async def received(self, number: int, frame: bytes) -> None: ...
    def lost(self, number: int, code: int, reason: str) -> None: ...


class _Line:
    """What waits to be written on a connection."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.queue: list[bytes] = []
        self.bytes = 0
        self.news = asyncio.Event()


class Lines:
    """`spawn` runs a task and tells of its failure. After `hang_up` nothing is heard of a connection."""

    def __init__(
        self, url: str, dial: Dial, heard: Heard, spawn: Callable[[Awaitable[None]], "asyncio.Task[Any]"]
    ) -> None:
        self._url = url
        self._dial = dial
        self._heard = heard
        self._spawn = spawn
        self._lines: dict[int, _Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def busy(self) -> bool:
        """Whether a server does not take what it is sent."""
        return any(line.bytes > MAX_OUTGOING_BYTES for line in self._lines.values())

    def open(self, number: int) -> None:
        line = self._lines[number] = _Line()
        line.task = self._spawn(self._serve(number, line))

    def write(self, number: int, frame: bytes) -> None:
        line = self._lines.get(number)
        if line is not None:
            line.queue.append(frame)
            line.bytes += len(frame)
            line.news.set()

    def hang_up(self, number: int) -> None:
        line = self._lines.pop(number, None)
        if line is not None and line.task is not None:
            line.task.cancel()

    async def _serve(self, number: int, line: _Line) -> None:
        """A connection from the dialling to its end."""
        wire: Wire | None = None
        writer: asyncio.Task[Any] | None = None
        try:
            async with asyncio.timeout(_DIAL_S):
                wire = await self._dial(self._url)
            writer = self._spawn(self._write_out(wire, line))
            self._heard.dialled(number)
            while True:
                await self._heard.received(number, await wire.receive())
        except (ConnectionEnded, TimeoutError) as error:
            ended = (
                error if isinstance(error, ConnectionEnded) else ConnectionEnded(0, f"nobody within {_DIAL_S:.0f} s")
            )
            self._lines.pop(number, None)
            self._heard.lost(number, ended.code, ended.reason)
        finally:
            if writer is not None:
                writer.cancel()
            if wire is not None:
                await wire.close()

    @staticmethod
    async def _write_out(wire: Wire, line: _Line) -> None:
        """Reading finds out that a connection has ended; whoever writes only stops."""
        with suppress(ConnectionEnded):
            while True:
                await line.news.wait()
                line.news.clear()
                frames, line.queue = line.queue, []
                for frame in frames:
                    await wire.send(frame)
                    line.bytes -= len(frame)
