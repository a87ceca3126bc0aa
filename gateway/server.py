"""The gateway's socket: the only file that knows the `websockets` library.

A connection is an asyncio protocol: frames go to the session as they arrive and are written when the transport has room,
so that neither a task nor a queue stands between the two.
"""

import asyncio
import http
import logging
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN, Event
from websockets.typing import Subprotocol

from domain.ports import Broker, Clock, Metrics, ReadModels, Router, StreamReader, TokenVerifier
from gateway import codes
from gateway.connection import Connection
from gateway.door import Door, close_listeners, turn_away
from gateway.settings import GatewaySettings
from gateway.switchboard import Peer, Switchboard

PATH = "/connection/websocket"
LIVE_PATH = "/health/live"
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_MAX_FRAGMENTS = 1_024
_DRAIN_EACH_S = 0.004
"""Draining a few sessions need not take as long as draining thousands."""
_FORGOTTEN = Request(PATH, Headers())
"""Stands in for every connection's handshake once that is over: headers cost kilobytes per idle session."""
_SUBPROTOCOL = Subprotocol("centrifuge-json")

log = logging.getLogger("renoveasy.gateway")


class _Frames:
    """Text frames of a server (RFC 6455, section 5.2). A fan-out frames the same message once, however many it goes to."""

    __slots__ = ("_last", "_last_framed")

    def __init__(self) -> None:
        self._last = self._last_framed = b""

    def framed(self, message: bytes) -> bytes:
        if message is not self._last:
            size = len(message)
            if size < 126:
                head = struct.pack("!BB", 0x81, size)
            elif size < 65_536:
                head = struct.pack("!BBH", 0x81, 126, size)
            else:
                head = struct.pack("!BBQ", 0x81, 127, size)
            self._last, self._last_framed = message, head + message
        return self._last_framed


class WebSocketTransport(ServerConnection):
    """A WebSocket as `connection.Transport`. Messages bypass the library's queue of received frames."""

    peer: Connection | None = None
    door: Door | None = None
    _parts: list[bytes] | None = None
    _cut: asyncio.TimerHandle | None = None
    _held_back = False
    _refused = False

    @property
    def writable(self) -> bool:
        """Whether the transport's buffer is below its limit."""
        return (
            not self.paused
            and self.protocol.state is OPEN
            and self.transport.get_write_buffer_size() <= self.write_limit_high
        )

    def close_with(self, code: int, reason: str) -> None:
        """Begin the closing handshake; a peer that does not answer in time is cut off."""
        if self.protocol.state is OPEN:
            self.protocol.send_close(code, reason)
            self.send_data()
            self.resume_reading()
        self._cut_later()

    def _cut_later(self) -> None:
        if self._cut is None:
            self._cut = self.loop.call_later(self.close_timeout or 0, self.transport.abort)

    def pause_reading(self) -> None:
        """Take no more commands, because too many are waiting."""
        self._held_back = True
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self._held_back = False
        self._read_on()

    def _read_on(self) -> None:
        if not (self._held_back or self.paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """Who does not read is not read either: else pongs to a flood of pings would pile up without a bound."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_on()
        if self.peer is not None:
            self.peer.flush()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Beyond the gateway's limit the descriptor is given back at once, before anything is made for it."""
        if self.door is not None and not self.door.enter():
            self.door = None
            self._refused = True
            transport.abort()  # type: ignore[attr-defined]
            return
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Once either side has begun to close, a peer that keeps the TCP connection open is cut off."""
        super().data_received(data)
        if self.protocol.state is not OPEN and self.peer is not None:
            self._cut_later()

    def process_event(self, event: Event) -> None:
        if self.peer is None or not isinstance(event, Frame):
            super().process_event(event)
        elif event.opcode in _DATA:
            self._data(event)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._refused:
            return
        if self.door is not None:
            self.door.leave()
            self.door = None
        super().connection_lost(exc)
        if self._cut is not None:
            self._cut.cancel()
        if self.peer is not None:
            self.peer.lost()
            self.peer = None

    def _data(self, frame: Frame) -> None:
        assert self.peer is not None
        if frame.fin and self._parts is None:
            self._message(bytes(frame.data))
            return
        parts = self._parts = self._parts or []
        parts.append(bytes(frame.data))
        if frame.fin:
            self._parts = None
            self._message(b"".join(parts))
        elif len(parts) > _MAX_FRAGMENTS:
            self.peer.disconnect(codes.BAD_FRAME)

    def _message(self, message: bytes) -> None:
        """A whole message; text that is no UTF-8 ends the connection as RFC 6455 asks, section 8.1."""
        assert self.peer is not None
        if not message.isascii():
            try:
                message.decode()
            except UnicodeDecodeError:
                self.protocol.fail(CloseCode.INVALID_DATA)
                self.send_data()
                return
        self.peer.received(message)


class _Wire:
    """`connection.Transport` over a `WebSocketTransport`, whose own `close` is a coroutine of the library's."""

    __slots__ = ("_frames", "_socket", "pause_reading", "resume_reading")

    def __init__(self, socket: WebSocketTransport, frames: _Frames) -> None:
        self._socket = socket
        self._frames = frames
        self.pause_reading = socket.pause_reading
        self.resume_reading = socket.resume_reading

    @property
    def writable(self) -> bool:
        return self._socket.writable

    def write(self, frame: bytes) -> None:
        socket = self._socket
        if socket.protocol.extensions:
            socket.protocol.send_text(frame)
            socket.send_data()
        else:
            socket.transport.write(self._frames.framed(frame))

    def close(self, code: int, reason: str) -> None:
        self._socket.close_with(code, reason)


class GatewayServer:
    """A gateway on its own listening socket.

    `drain` takes no new connections, lets commands under way finish, and sends everybody to another gateway; `stop`
    closes at once. Both may be called more than once.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        router: Router,
        broker: Broker,
        reader: StreamReader,
        read_models: ReadModels,
        verifier: TokenVerifier,
        clock: Clock,
        new_id: Callable[[], str],
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._board = Switchboard(settings, router, broker, reader, read_models, verifier, clock, new_id, metrics)
        self._door = Door(settings.max_connections, self._board.counts)
        self._server: Server | None = None
        self._frames = _Frames()

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the port is taken.
            BrokerUnavailable: revocations could not be heard.
        """
        settings = self._settings
        await self._board.start()
        options: dict[str, Any] = {"reuse_port": True} if settings.reuse_port else {}
        self._server = await serve(
            self._serve,
            settings.host,
            settings.port,
            create_connection=type("GatewayTransport", (WebSocketTransport,), {"door": self._door}),
            process_request=self._check,
            select_subprotocol=_select_subprotocol,
            compression="deflate" if settings.compression else None,
            server_header=None,
            open_timeout=settings.open_timeout_s,
            ping_interval=None,
            close_timeout=settings.close_timeout_s,
            max_size=settings.max_frame_bytes,
            write_limit=settings.write_limit_bytes,
            backlog=4_096,
            **options,
        )
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def drain(self, over_s: float | None = None) -> None:
        """Stop accepting, and disconnect everybody with 4001, each when its commands are answered.

        That is spread over `over_s` seconds, or over `drain_s` at most, so that reconnects cost the others no latency.
        """
        if self._server is not None and self._server.server.is_serving():
            outside = close_listeners(self._server.server)
            self._server.close(close_connections=False)
            self._board.spawn(turn_away(outside))
        board, steps = self._board, 200
        peers = list(board.peers)
        pause_s = (min(self._settings.drain_s, len(peers) * _DRAIN_EACH_S) if over_s is None else over_s) / steps
        asked: list[Peer] = []
        for step in range(steps):
            asked = [peer for peer in [*asked, *peers[step::steps]] if not self._send_elsewhere(peer)]
            await asyncio.sleep(pause_s)
        patience = board.clock.monotonic_s() + self._settings.ask_timeout_s
        while board.peers and board.clock.monotonic_s() < patience:
            for peer in list(board.peers):
                self._send_elsewhere(peer)
            await asyncio.sleep(0.01)
        for peer in list(board.peers):
            peer.disconnect(codes.DRAINING)

    def _send_elsewhere(self, peer: Peer) -> bool:
        """Whether it is sent; a client whose commands are not answered yet is not heard from now on, and asked again soon."""
        if peer.busy:
            peer.take_no_more()
            return False
        peer.disconnect(codes.DRAINING)
        return True

    async def stop(self) -> None:
        """Close every connection (3001, reconnect) and the listening socket; returns when all is gone."""
        if self._server is None:
            return
        server, self._server = self._server, None
        for peer in list(self._board.peers):
            peer.disconnect(codes.SHUTDOWN)
        server.close()
        await server.wait_closed()
        await self._board.stop()

    async def _serve(self, socket: ServerConnection) -> None:
        assert isinstance(socket, WebSocketTransport)
        socket.request = _FORGOTTEN
        socket.response = None
        socket.peer = Connection(self._board, _Wire(socket, self._frames))
        await socket.wait_closed()

    def _check(self, socket: ServerConnection, request: Request) -> Response | None:
        """Who may upgrade: right path, no token in the URL, no foreign Origin, and room for one more."""
        parts = urlsplit(request.path)
        if parts.path == LIVE_PATH:
            return socket.respond(http.HTTPStatus.OK, "live\n")
        if parts.path != PATH:
            return socket.respond(http.HTTPStatus.NOT_FOUND, "not found\n")
        if any("token" in name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
            return socket.respond(http.HTTPStatus.BAD_REQUEST, "a token belongs into the connect command\n")
        if any(origin not in self._settings.origins for origin in request.headers.get_all("Origin")):
            return socket.respond(http.HTTPStatus.FORBIDDEN, "origin not allowed\n")
        if len(self._board.peers) >= self._settings.max_sessions:
            response = socket.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "no room\n")
            response.headers["Retry-After"] = "1"
            return response
        return None


def _select_subprotocol(_: ServerConnection, offered: Any) -> Subprotocol | None:
    return _SUBPROTOCOL if _SUBPROTOCOL in offered else None
