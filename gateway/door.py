"""The gateway's door: how many connections may stand in it, and what becomes of those outside when it closes."""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

log = logging.getLogger("renoveasy.gateway")

_REQUEST_BYTES: Final = 16_384
_PATIENCE_S: Final = 2.0
_AT_ONCE: Final = 256
_TURNED_AWAY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 9\r\nConnection: close\r\n\r\ndraining\n"
)


class Door:
    """Counts open connections, those in their handshake included, against a limit; 0 is none.

    Each holds a descriptor, and the gateway needs some itself: for the broker, the database, its logs.
    """

    __slots__ = ("_counts", "inside", "limit")

    def __init__(self, limit: int, counts: Counter[str]) -> None:
        self.limit = limit
        self.inside = 0
        self._counts = counts

    def enter(self) -> bool:
        """Whether there is room for one more; who was let in leaves by `leave`."""
        if self.limit and self.inside >= self.limit:
            self._counts["gateway_turned_away"] += 1
            return False
        self.inside += 1
        return True

    def leave(self) -> None:
        self.inside -= 1


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


async def turn_away(connections: Iterable[socket.socket]) -> None:
    """Answer every request with 503 and close: the client tries again, and comes to another gateway."""
    waiting = iter(connections)

    async def worker() -> None:
        for connection in waiting:
            await _answer(connection)

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))


async def _answer(connection: socket.socket) -> None:
    connection.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=connection, limit=_REQUEST_BYTES)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            # Unread input would turn the end of the connection into a reset, which can overtake the answer.
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_TURNED_AWAY)
            writer.write_eof()
            await reader.read()
    except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError) as error:
        log.debug("a connection was turned away without an answer: %r", error)
    finally:
        writer.transport.abort()
