"""A client's connection over a response that does not end: server-sent events, or items one after the other."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.codec import Codec
from gateway.codes import Disconnect
from gateway.connection import Connection
from gateway.progress import Taken
from gateway.settings import GatewaySettings

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


def event(frame: bytes) -> bytes:
    """A frame as a server-sent event, each of its lines one of the event's (HTML standard, section 9.2.6)."""
    return b"data: " + frame.replace(b"\n", b"\ndata: ") + b"\n\n"


def line(frame: bytes) -> bytes:
    return frame + b"\n"


def plain(frame: bytes) -> bytes:
    return frame


class Stream:
    """`connection.Transport` over a response, and `emulation.Inlet` for what the client says in other requests.

    There are no close codes: a `disconnect` push says why, and the response ends behind it. What the socket has not taken yet
    is bounded by `write_limit_bytes` and one frame, twice.
    """

    __slots__ = ("_closing", "_codec", "_cut", "_gone", "_held", "_held_bytes", "_news", "_paused", "_reset", "_settings",
                 "_size", "_waiting", "_wrap", "connection", "ip", "taken")  # fmt: skip

    def __init__(
        self,
        settings: GatewaySettings,
        codec: Codec,
        wrap: Callable[[bytes], bytes],
        reset: Callable[[], None],
        taken: Callable[[], Taken],
        ip: str = "",
    ) -> None:
        """`wrap` makes a frame a part of the body; `reset` cuts the connection off, whatever waits to be sent.

        `taken` says how far the client has come; `ip` is where it is.
        """
        self._settings = settings
        self._codec = codec
        self._wrap = wrap
        self._reset = reset
        self.taken = taken
        self.ip = ip
        self._waiting: list[bytes] = []
        self._size = 0
        self._held: deque[bytes] | None = None
        self._held_bytes = 0
        self._news = asyncio.Event()
        self._paused = self._closing = self._gone = False
        self._cut: asyncio.TimerHandle | None = None
        self.connection: Connection

    # --- Transport -----------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether less waits for the socket than its limit."""
        return not self._closing and self._size <= self._settings.write_limit_bytes

    def write(self, frame: bytes) -> None:
        part = self._wrap(frame)
        self._waiting.append(part)
        self._size += len(part)
        self._news.set()

    def close(self, code: int, reason: str) -> None:
        """Say why, and end; a client that does not read that in time is cut off."""
        if self._closing:
            return
        self.write(self._codec.disconnected(Disconnect(code, reason)))
        self._closing = True
        self._held = None
        self._cut = asyncio.get_running_loop().call_later(self._settings.close_timeout_s, self._reset)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        """Take in what came meanwhile, in the order in which it came."""
        self._paused = False
        while self._held and not self._paused:
            frame = self._held.popleft()
            self._held_bytes -= len(frame)
            self.connection.received(frame)

    # --- Inlet ---------------------------------------------------------------------------------------------------

    def received(self, frame: bytes) -> bool:
        """Where the client is not to be read for now, as much is kept as a socket would keep; then there is no room."""
        if not (self._paused or self._held):
            self.connection.received(frame)
            return True
        if self._closing:
            return True
        if self._held is None:
            self._held = deque()
        if self._held_bytes + len(frame) > self._settings.max_frame_bytes:
            return False
        self._held.append(frame)
        self._held_bytes += len(frame)
        return True

    # --- the response --------------------------------------------------------------------------------------------

    async def run(self, receive: Receive, send: Send) -> None:
        """Send what there is as fast as the client takes it; returns when the response is over or the client gone."""
        listening = asyncio.get_running_loop().create_task(self._listen(receive))
        try:
            while not self._gone:
                await self._news.wait()
                self._news.clear()
                await self._send_waiting(send)
                if self._closing and not self._waiting:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
        finally:
            listening.cancel()
            if self._cut is not None:
                self._cut.cancel()
            self._closing = True
            self.connection.lost()

    async def _send_waiting(self, send: Send) -> None:
        while self._waiting and not self._gone:
            body = b"".join(self._waiting)
            self._waiting.clear()
            self._size = 0
            await send({"type": "http.response.body", "body": body, "more_body": True})
            if not self._closing:
                self.connection.flush()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._news.set()
