"""The gateway's door: how many connections may stand in it, and what becomes of those outside when it closes."""

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, cast

log = logging.getLogger("renoveasy.gateway")

_REQUEST_BYTES: Final = 16_384
_PATIENCE_S: Final = 2.0
_AT_ONCE: Final = 256
_TURNED_AWAY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 9\r\nConnection: close\r\n\r\ndraining\n"
)


class Place:
    """What one connection has of the door: a place inside, to be left once, and a time by which it must have begun.

    It is handed from protocol to protocol with the connection. `begun`: the client has said what it wants.
    """

    __slots__ = ("_door", "begun", "transport", "until")

    def __init__(self, door: "Door", transport: asyncio.Transport, until: float) -> None:
        """`until` by the event loop's clock."""
        self._door = door
        self.transport = transport
        self.until = until
        self.begun = False

    def leave(self) -> None:
        self._door.places.discard(self)


class Door:
    """Counts open connections, those in their handshake included, against a limit; 0 is none.

    Each holds a descriptor, and the gateway needs some itself: for the broker, the database, its logs.
    """

    __slots__ = ("_counts", "limit", "places")

    def __init__(self, limit: int, counts: Counter[str]) -> None:
        self.limit = limit
        self.places: set[Place] = set()
        self._counts = counts

    @property
    def inside(self) -> int:
        return len(self.places)

    def enter(self, transport: asyncio.Transport, until: float) -> Place | None:
        """A place, if there is room for one more."""
        if self.limit and self.inside >= self.limit:
            self._counts["gateway_turned_away"] += 1
            return None
        place = Place(self, transport, until)
        self.places.add(place)
        return place

    def cut_off_the_undecided(self) -> None:
        """End the connections of those who have not said what they want: nobody waits for them."""
        for place in list(self.places):
            if not place.begun:
                place.transport.abort()


Successor = Callable[[Place], asyncio.Protocol]

_HTTP: Final = (
    b"POST ",
    b"OPTIONS ",
    b"GET /connection/sse",
    b"GET /connection/http_stream",
    b"GET /emulation",
)
"""How connections begin that are not for the WebSocket's library, which knows no bodies and no answers that go on."""


class Doorstep(asyncio.Protocol):
    """Where a connection stands until its first bytes say what it is; beyond the limit it is cut off at once.

    What is a WebSocket's stands here until its headers are whole: the library would hold 16 KiB for each that are not.
    Who says nothing for `patience_s` is cut off too. Who has a place already keeps it, and its time.
    """

    def __init__(
        self, door: Door, patience_s: float, websocket: Successor, http: Successor, place: Place | None = None
    ) -> None:
        self._door = door
        self._patience_s = patience_s
        self._websocket = websocket
        self._http = http
        self._heard = b""
        self._place = place
        self._late: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        loop = asyncio.get_running_loop()
        self._place = self._place or self._door.enter(self._transport, loop.time() + self._patience_s)
        if self._place is None:
            self._transport.abort()
            return
        self._late = loop.call_at(self._place.until, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        heard = self._heard = self._heard + data
        if heard.startswith(_HTTP):
            self._hand_over(self._http)
        elif not any(beginning.startswith(heard) for beginning in _HTTP) and _whole(heard):
            self._hand_over(self._websocket)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        if self._place is not None:
            self._place.leave()

    def _hand_over(self, successor: Successor) -> None:
        assert self._place is not None
        assert self._late is not None
        self._late.cancel()
        place, self._place = self._place, None
        protocol = successor(place)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._heard)


def _whole(heard: bytes) -> bool:
    """Whether the library has all that it needs to answer a request for a WebSocket, be it with a refusal."""
    return (
        b"\r\n\r\n" in heard
        or b"\n\n" in heard
        or (b"\n" in heard and not heard.startswith(b"GET "))
        or len(heard) >= _REQUEST_BYTES
    )


def close_listeners(server: asyncio.Server) -> list[socket.socket]:
    """Close a server's listening sockets; the connections that the kernel had let in, but nobody had taken.

    Closing alone would reset them, though their clients have been told that they are connected. A handshake that is just
    under way in the kernel is still cut, unless `net.ipv4.tcp_migrate_req` hands it to another process on the same port.
    """
    # The duplicates keep listening while the event loop forgets the originals, so that nobody else accepts from them.
    listeners = [socket.socket(fileno=socket.dup(listener.fileno())) for listener in server.sockets]
    server.close()
    taken: list[socket.socket] = []
    for listener in listeners:
        with listener:
            listener.setblocking(False)
            with suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])
    return taken


async def turn_away(connections: Iterable[socket.socket], context: ssl.SSLContext | None = None) -> None:
    """Answer every request with 503 and close: the client tries again, and comes to another gateway."""
    waiting = iter(connections)

    async def worker() -> None:
        for connection in waiting:
            await _answer(connection, context)

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))


async def _answer(connection: socket.socket, context: ssl.SSLContext | None) -> None:
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(_REQUEST_BYTES, loop)
    protocol = asyncio.StreamReaderProtocol(reader)
    try:
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, connection, ssl=context, ssl_handshake_timeout=_PATIENCE_S if context else None
        )
    except (OSError, TimeoutError) as error:
        log.debug("a connection was turned away in its handshake: %r", error)
        return
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            # Unread input would turn the end of the connection into a reset, which can overtake the answer.
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_TURNED_AWAY)
            if writer.can_write_eof():  # TLS cannot
                writer.write_eof()
            await reader.read()
    except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError) as error:
        log.debug("a connection was turned away without an answer: %r", error)
    finally:
        writer.transport.abort()
