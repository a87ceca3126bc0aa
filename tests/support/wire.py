"""A wire between a client and a TCP server that can be cut: both ends keep their connections and hear nothing more.

That is what a lost network looks like from inside: no end, no reset, only silence. It runs on the test's own event loop.
"""

import asyncio
from types import TracebackType
from typing import Self


class Wire:
    """Listens on `port` of 127.0.0.1 and passes everything on to the server's port. As an async context manager."""

    def __init__(self, to_port: int, to_host: str = "127.0.0.1") -> None:
        self.port = 0
        self._to = (to_host, to_port)
        self._server: asyncio.Server | None = None
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._lost: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """From now on nothing arrives, in either direction; new connections are not answered."""
        self._whole.clear()

    def heal(self) -> None:
        """Everything that was held back arrives, and what follows."""
        self._whole.set()

    def heal_for_new_ones(self) -> None:
        """New connections work; those of before stay silent for ever, and the server never learns that they are gone."""
        for task in self._tasks:
            task.cancel()
        self._lost |= self._writers
        self._whole.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await self._whole.wait()
        far_reader, far_writer = await asyncio.open_connection(*self._to)
        self._writers.add(far_writer)
        passing = [asyncio.create_task(self._pass(*pair)) for pair in ((reader, far_writer), (far_reader, writer))]
        self._tasks |= set(passing)
        try:
            await asyncio.wait(passing)
        finally:
            self._tasks -= set(passing)
            for end in {writer, far_writer} - self._lost:
                end.close()
                self._writers.discard(end)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
            await self._whole.wait()
            writer.write_eof()
        except OSError:
            writer.transport.abort()
