"""WebSocket clients that speak Centrifuge's protocol with as little work per message as Python allows, on picows."""

import asyncio
import itertools
import json
from time import perf_counter
from types import TracebackType
from typing import Any, ClassVar, Final, Protocol, Self

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

CALL_LIMIT_S: Final = 30.0
CONNECTING_AT_ONCE: Final = 32
_TEXT: Final = WSMsgType.TEXT
_FIRST_CALL: Final = 1
CALLS: Final = 1_000
"""Command ids below this one are those of `ChatSocket.call`; a traffic's own begin here."""


class SocketFailed(Exception):
    """The connection was lost, a command was refused, or no answer came in time."""


class Traffic(Protocol):
    """Whoever is told, at once, of what comes; `now_s` is `time.perf_counter`."""

    def replied(self, command_id: int, line: bytes, now_s: float) -> None: ...
    def pushed(self, line: bytes, now_s: float) -> None: ...
    def lost(self, reason: str) -> None: ...


class ChatSocket(WSListener):
    """One client's connection. `traffic` may be set, and set anew, at any time; `data` is what it says at `connect`."""

    data: ClassVar[dict[str, Any]] = {"device_id": "bench"}

    def __init__(self) -> None:
        self.traffic: Traffic | None = None
        self.pings = 0
        self._transport: WSTransport | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(_FIRST_CALL)
        self._closing = False
        self._parts = b""

    @classmethod
    async def open(cls, url: str, token: str) -> "ChatSocket":
        """A connection that has been authenticated. Raises SocketFailed."""
        try:
            _, socket = await ws_connect(cls, url, websocket_handshake_timeout=CALL_LIMIT_S)
        except Exception as error:  # picows raises what the transport, the parser or the handshake raised
            raise SocketFailed(f"{url}: {error!r}") from error
        if not isinstance(socket, cls):  # None: the connection was lost while this task waited for its turn
            raise SocketFailed(f"{url}: the connection was lost after the handshake")
        try:
            await socket.call("connect", {"token": token, "data": cls.data})
        except BaseException:  # who gives up leaves, or the server would hold on to somebody who is not there
            socket.close()
            raise
        return socket

    async def call(self, name: str, parameters: dict[str, Any]) -> Any:
        """The result of a command. Raises SocketFailed."""
        number = next(self._ids)
        assert number < CALLS
        waiter = self._calls[number] = asyncio.get_running_loop().create_future()
        self.send(json.dumps({"id": number, name: parameters}).encode())
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                return (await waiter)[name]
        except TimeoutError:
            raise SocketFailed(f"{name}: no answer in {CALL_LIMIT_S:g} s") from None
        except KeyError:
            raise SocketFailed(f"{name}: {waiter.result()}") from None
        finally:
            self._calls.pop(number, None)

    def send(self, frame: bytes) -> None:
        assert self._transport is not None
        self._transport.send(_TEXT, frame)

    def close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.disconnect(graceful=False)

    # --- picows calls these --------------------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        close = transport.close_handshake
        why = f"{close.recv.code} {close.recv.reason}" if close is not None and close.recv is not None else "cut"
        for waiter in self._calls.values():
            if not waiter.done():
                waiter.set_exception(SocketFailed(f"the connection was lost: {why}"))
        if self.traffic is not None and not self._closing:
            self.traffic.lost(why)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        now_s = perf_counter()
        if frame.msg_type != _TEXT or not frame.fin or self._parts:
            if frame.msg_type not in (_TEXT, WSMsgType.CONTINUATION):
                return
            self._parts += frame.get_payload_as_bytes()
            if not frame.fin:
                return
            payload, self._parts = self._parts, b""
        else:
            payload = frame.get_payload_as_bytes()
        for line in payload.split(b"\n"):
            if line.startswith(b'{"push"'):
                if self.traffic is not None:
                    self.traffic.pushed(line, now_s)
            elif line.startswith(b'{"id":'):
                number = int(line[6 : line.index(b",", 6)])
                if number >= CALLS:
                    if self.traffic is not None:
                        self.traffic.replied(number, line, now_s)
                elif (waiter := self._calls.get(number)) is not None and not waiter.done():
                    waiter.set_result(json.loads(line))
            elif line == b"{}":
                self.pings += 1
                transport.send(_TEXT, b"{}")


class Sockets:
    """Many connections, opened a few at a time, all closed at the end of the block."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.open: list[ChatSocket] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        for socket in self.open:
            socket.close()
        self.open.clear()
        await asyncio.sleep(0)

    async def add(self, tokens: list[str]) -> list[ChatSocket]:
        """Open one connection per token, in this order. Raises SocketFailed."""
        waiting = iter(enumerate(tokens))
        found: dict[int, ChatSocket] = {}

        async def work() -> None:
            for index, token in waiting:
                found[index] = await ChatSocket.open(self._url, token)
                self.open.append(found[index])

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(CONNECTING_AT_ONCE, len(tokens))):
                    tasks.create_task(work())
        except* SocketFailed as errors:
            raise errors.exceptions[0] from None
        return [found[index] for index in range(len(tokens))]
