"""The gateway's port, and WebSockets on it: the only file that knows the `websockets` library.

A connection is an asyncio protocol: frames go to the session as they arrive and are written when the transport has room,
so that neither a task nor a queue stands between the two.
"""

import asyncio
import http
import logging
import struct
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN, Event
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from domain.places import network_of
from domain.ports import Broker, Clock, Metrics, PresenceStore, ReadModels, Router, StreamReader, TokenVerifier
from gateway import codes
from gateway.certificates import Certificate
from gateway.codec import JSON, Codec
from gateway.connection import Connection
from gateway.door import Door, Doorstep, Place, close_listeners, turn_away
from gateway.drain import Exodus
from gateway.emulation import Emulation
from gateway.fallbacks import Fallbacks
from gateway.http import HttpFront
from gateway.ops_acts import OpsActs
from gateway.progress import Taken, taken
from gateway.protobuf import PROTOBUF
from gateway.settings import GatewaySettings
from gateway.switchboard import Switchboard
from gateway.threshold import Threshold

PATH = "/connection/websocket"
LIVE_PATH = "/health/live"
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_MAX_FRAGMENTS = 1_024
_TURN_BYTES = 2_048
"""More than a client's `connect`, or its upgrade, or a message of any common length; some thirty of the shortest commands,
a quarter of a millisecond."""
_SHARE = 1 / 4
"""Turns may take this much of the time that everything else took, and all that nothing else wants."""
_LITTLE_S = 0.000_3
"""What else there is to do in a turn of the event loop, if it is not worth counting."""
_MOST_S = 0.002
"""Of turns in one turn of the event loop."""
_UNHEARD = (codes.SLOW.code, codes.NO_PONG.code)
"""Who is closed for these takes nothing, most likely not the close frame either."""
_HASTE_S = 1.0
_FORGOTTEN = Request(PATH, Headers())
"""Stands in for every connection's handshake once that is over: headers cost kilobytes per idle session."""
_CODECS: dict[str, Codec] = {codec.name: codec for codec in (JSON, PROTOBUF)}

log = logging.getLogger("renoveasy.gateway")


class _Frames:
    """Frames of a server (RFC 6455, section 5.2). A fan-out frames the same message once, however many it goes to."""

    __slots__ = ("_last", "_last_framed", "_opcode")

    def __init__(self, opcode: Opcode) -> None:
        self._opcode = 0x80 | opcode
        self._last = self._last_framed = b""

    def framed(self, message: bytes) -> bytes:
        if message is not self._last:
            size = len(message)
            if size < 126:
                head = struct.pack("!BB", self._opcode, size)
            elif size < 65_536:
                head = struct.pack("!BBH", self._opcode, 126, size)
            else:
                head = struct.pack("!BBQ", self._opcode, 127, size)
            self._last, self._last_framed = message, head + message
        return self._last_framed


class Turns:
    """Sockets of which more has come than is looked at in one go: first come, first served.

    Together they get a share of the time, in pieces: in a turn of the event loop no more than what its other work entitles them
    to, or one if that was little. One client at most is let in meanwhile (libuv accepts one at a time), so turns of the loop must
    stay short. So nobody who sends little, or comes just now, waits for those who send much, however many these are.
    """

    __slots__ = ("_clock", "_credit_s", "_due", "_loop", "_until_s", "_waiting")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[WebSocketTransport] = deque()
        self._due = False
        self._credit_s = 0.0
        self._until_s = 0.0

    def join(self, socket: "WebSocketTransport") -> None:
        """Call `socket.take_turn` when it is its turn."""
        self._waiting.append(socket)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._serve)

    def _serve(self) -> None:
        now_s = self._clock.monotonic_s()
        else_s = now_s - self._until_s
        # Where nothing else wants the time, one turn each time, whatever it costs.
        self._credit_s = min(self._credit_s + else_s * _SHARE, _MOST_S) if else_s > _LITTLE_S else 0.0
        try:
            while self._waiting and self._credit_s >= 0:
                self._waiting.popleft().take_turn()
                before_s, now_s = now_s, self._clock.monotonic_s()
                self._credit_s -= now_s - before_s
        finally:
            self._until_s = now_s
            self._due = bool(self._waiting)
            if self._due:
                self._loop.call_soon(self._serve)


class WebSocketTransport(ServerConnection):
    """A WebSocket as `connection.Transport`. Messages bypass the library's queue of received frames."""

    peer: Connection | None = None
    place: Place | None = None
    _parts: list[bytes] | None = None
    _cut: asyncio.TimerHandle | None = None
    _binary = False
    _held_back = False
    _rest = b""
    """Received, and not looked at yet."""
    turns: Turns
    _waits = False
    """Whether it has joined `turns`."""

    @property
    def writable(self) -> bool:
        """Whether the transport's buffer is below its limit."""
        return (
            not self.paused
            and self.protocol.state is OPEN
            and self.transport.get_write_buffer_size() <= self.write_limit_high
        )

    def close_with(self, code: int, reason: str) -> None:
        """Say goodbye, and look at nothing more that comes; a peer that does not leave in time is cut off.

        The end of the stream follows the close frame, so that nobody needs to look for the answer to it (RFC 6455, section
        7.1.7). TLS cannot end one half: there the answer is waited for.
        """
        if self.protocol.state is OPEN:
            end = self.protocol.fail if self.transport.can_write_eof() else self.protocol.send_close
            end(code, reason)
            self.send_data()
            self.resume_reading()
        self._cut_later(_HASTE_S if code in _UNHEARD else self.close_timeout or 0)

    def _cut_later(self, within_s: float) -> None:
        if self._cut is None:
            self._cut = self.loop.call_later(within_s, self.transport.abort)

    def pause_reading(self) -> None:
        """Take no more commands, because too many are waiting."""
        self._held_back = True
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self._held_back = False
        self._read_on()

    def _read_on(self) -> None:
        if self._held_back or self.paused or self.transport.is_closing():
            return
        if not self._rest:
            self.transport.resume_reading()
        elif not self._waits:
            self._waits = True
            self.turns.join(self)

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
        super().connection_made(transport)
        if self.place is not None:
            self._cut = self.loop.call_at(self.place.until, self.transport.abort)

    def opened(self, peer: Connection) -> None:
        """The handshake is over; the headers, kilobytes of an idle connection, are forgotten."""
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None
        if self.place is not None:
            self.place.begun = True
        self.request, self.response, self.peer = _FORGOTTEN, None, peer

    def data_received(self, data: bytes) -> None:
        """A little is looked at as it comes; of more, each client's in its turn."""
        self._rest += data
        if len(self._rest) == len(data) <= _TURN_BYTES:
            self._look()
        else:
            self._pause()

    def _look(self) -> None:
        """Once either side has begun to close, a peer that keeps the TCP connection open is cut off."""
        turn = _TURN_BYTES if self.protocol.state is OPEN else len(self._rest)
        data, self._rest = self._rest[:turn], self._rest[turn:]
        super().data_received(data)
        if self.protocol.state is not OPEN and self.peer is not None:
            self._cut_later(self.close_timeout or 0)
        if self._rest:
            self._pause()

    def _pause(self) -> None:
        """Read no more until it is all looked at."""
        self.transport.pause_reading()
        self._read_on()

    def take_turn(self) -> None:
        """Look at some more of what has come."""
        self._waits = False
        if self._rest and not self._held_back and not self.paused:
            self._look()
            if not self._rest:
                self._read_on()

    def eof_received(self) -> None:
        while self._rest:
            self._look()
        super().eof_received()

    def process_event(self, event: Event) -> None:
        if self.peer is None or not isinstance(event, Frame):
            super().process_event(event)
        elif event.opcode in _DATA:
            self._data(event)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.place is not None:
            self.place.leave()
        self._rest = b""
        super().connection_lost(exc)
        if self._cut is not None:
            self._cut.cancel()
        if self.peer is not None:
            self.peer.lost()
            self.peer = None
        self._untie()

    def _untie(self) -> None:
        """Break the library's cycles, so that the connection is freed now: looked for, a second's worth of ended connections
        stops everybody for a tenth of one.
        """
        protocol: Any = self.protocol
        protocol.parser.close()
        if protocol.parser_exc is not None:
            protocol.parser_exc.__traceback__ = None
        protocol.select_subprotocol = None

    def _data(self, frame: Frame) -> None:
        assert self.peer is not None
        if frame.opcode is not Opcode.CONT:
            self._binary = frame.opcode is Opcode.BINARY
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
        if not (self._binary or message.isascii()):
            try:
                message.decode()
            except UnicodeDecodeError:
                self.protocol.fail(CloseCode.INVALID_DATA)
                self.send_data()
                return
        self.peer.received(message)


class _Wire:
    """`connection.Transport` over a `WebSocketTransport`, whose own `close` is a coroutine of the library's."""

    __slots__ = ("_codec", "_frames", "_socket", "pause_reading", "resume_reading")

    def __init__(self, socket: WebSocketTransport, codec: Codec, frames: _Frames) -> None:
        self._socket = socket
        self._codec = codec
        self._frames = frames
        self.pause_reading = socket.pause_reading
        self.resume_reading = socket.resume_reading

    @property
    def writable(self) -> bool:
        return self._socket.writable

    @property
    def ip(self) -> str:
        peer = self._socket.transport.get_extra_info("peername")
        return network_of(str(peer[0]) if peer else "")

    def taken(self) -> Taken:
        return taken(self._socket.transport)

    def write(self, frame: bytes) -> None:
        socket = self._socket
        if socket.protocol.extensions:
            send = socket.protocol.send_binary if self._codec.binary else socket.protocol.send_text
            send(frame)
            socket.send_data()
        else:
            socket.transport.write(self._frames.framed(frame))

    def close(self, code: int, reason: str) -> None:
        self._socket.close_with(code, reason)


class _Arrival(Doorstep):
    """A connection as `serve` makes it; it looks at `protocol` once the WebSocket has it."""

    protocol: ServerProtocol


class _SecureArrival(Threshold):
    """The same where TLS comes first."""

    protocol: ServerProtocol


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
        presence: PresenceStore | None = None,
        ops_acts: OpsActs | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._board = Switchboard(
            settings,
            router,
            broker,
            reader,
            read_models,
            verifier,
            clock,
            new_id,
            metrics,
            presence=presence,
            ops_acts=ops_acts,
        )
        self._door = Door(settings.max_connections, self._board.counts)
        self._emulation = Emulation(settings.name, broker, self._board.spawn, self._board.counts)
        self._fallbacks = Fallbacks(self._board, self._emulation)
        self._http = HttpFront(self._fallbacks, settings)
        self._certificate: Certificate | None = None
        self._server: Server | None = None
        self._frames = {codec: _Frames(Opcode.BINARY if codec.binary else Opcode.TEXT) for codec in _CODECS.values()}

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the port is taken.
            CertificateError: the settings name a certificate that cannot be used.
            BrokerUnavailable: revocations, or commands sent to other gateways, could not be heard.
        """
        settings = self._settings
        if settings.certificate:
            self._certificate = await asyncio.to_thread(
                Certificate, settings.certificate, settings.certificate_key, lambda: self._clock.now_ms() / 1000
            )
        self._turns = Turns(self._clock)
        await self._board.start()
        await self._emulation.start()
        options: dict[str, Any] = {"reuse_port": True} if settings.reuse_port else {}
        self._server = await serve(
            self._serve,
            settings.host,
            settings.port,
            create_connection=self._arriving,  # type: ignore[arg-type]
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
        if self._certificate is not None:
            self._board.spawn(self._follow(self._certificate))
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def drain(self, over_s: float | None = None) -> None:
        """Stop accepting, and have everybody go elsewhere, each when its commands are answered; returns when all are gone.

        That is spread over `over_s` seconds, or over `drain_s` at most, so that reconnects cost the others no latency.
        """
        self._fallbacks.draining = True
        if self._server is not None and self._server.server.is_serving():
            outside = close_listeners(self._server.server)
            self._server.close(close_connections=False)
            self._board.spawn(turn_away(outside, self._certificate.context if self._certificate else None))
        await Exodus(self._board, over_s).run()

    async def stop(self) -> None:
        """Close every connection (3001, reconnect) and the listening socket; returns when all is gone."""
        if self._server is None:
            return
        server, self._server = self._server, None
        for peer in list(self._board.peers):
            peer.disconnect(codes.SHUTDOWN)
        server.close()
        await self._http.close()
        self._door.cut_off_the_undecided()
        await server.wait_closed()
        await self._emulation.stop()
        await self._board.stop()

    async def _follow(self, certificate: Certificate) -> None:
        while True:
            await asyncio.sleep(self._settings.certificate_look_s)
            await asyncio.to_thread(certificate.refresh)

    def _arriving(self, protocol: ServerProtocol, server: Server, **options: Any) -> _Arrival | _SecureArrival:
        """Each connection is made for a WebSocket; one that begins as plain HTTP may still become one later."""

        def websocket(place: Place) -> WebSocketTransport:
            transport = WebSocketTransport(protocol, server, **options)
            transport.place, transport.turns = place, self._turns
            return transport

        def http_first(place: Place) -> asyncio.Protocol:
            return self._http.connection(place, websocket)

        def arrival(place: Place | None = None) -> _Arrival:
            made = _Arrival(self._door, patience_s, websocket, http_first, place)
            made.protocol = protocol
            return made

        patience_s, certificate = self._settings.open_timeout_s, self._certificate
        if certificate is None:
            return arrival()
        secure = _SecureArrival(
            self._door,
            patience_s,
            lambda: certificate.context,
            self._settings.write_limit_bytes,
            arrival,
            self._board.spawn,
        )
        secure.protocol = protocol
        return secure

    async def _serve(self, socket: ServerConnection) -> None:
        assert isinstance(socket, WebSocketTransport)
        codec = _CODECS.get(socket.subprotocol or JSON.name, JSON)
        socket.opened(Connection(self._board, _Wire(socket, codec, self._frames[codec]), codec))
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
    return next((Subprotocol(name) for name in offered if name in _CODECS), None)
