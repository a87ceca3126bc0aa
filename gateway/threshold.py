"""Before the door: a connection until its TLS handshake is over.

`create_server` could speak TLS by itself, but tells of a connection only after the handshake: until then it has a descriptor
and no place, and no way to be turned away.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, cast

from gateway.door import Door, Place

log = logging.getLogger("renoveasy.gateway")

_HANDSHAKE = b"\x16"
"""The first byte of a TLS handshake (RFC 8446, section 5.1)."""


class _Inside(asyncio.Protocol):
    """Keeps what comes through TLS before anybody is told that the handshake is over."""

    def __init__(self) -> None:
        self._heard = b""
        self._lost = False
        self._why: Exception | None = None

    def data_received(self, data: bytes) -> None:
        self._heard += data  # at most what one read brings: until `begin` the event loop runs nothing else of ours

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost, self._why = True, exc

    def begin(self, transport: asyncio.Transport, successor: asyncio.Protocol) -> None:
        transport.set_protocol(successor)
        successor.connection_made(transport)
        if self._heard:
            successor.data_received(self._heard)
        if self._lost:
            successor.connection_lost(self._why)


class Threshold(asyncio.Protocol):
    """Has a place in the door from the first packet on, so that handshakes which never end cannot take all descriptors.

    The time to begin is that of a connection without TLS, and the handshake is part of it. What does not begin as a
    handshake is cut off at once.
    """

    def __init__(
        self,
        door: Door,
        patience_s: float,
        context: Callable[[], ssl.SSLContext],
        write_limit_bytes: int,
        beyond: Callable[[Place], asyncio.Protocol],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._door = door
        self._patience_s = patience_s
        self._context = context
        self._write_limit_bytes = write_limit_bytes
        self._beyond = beyond
        self._spawn = spawn
        self._heard = b""
        self._place: Place | None = None
        self._late: asyncio.TimerHandle | None = None
        self._raw: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        loop = asyncio.get_running_loop()
        self._place = self._door.enter(self._raw, loop.time() + self._patience_s)
        if self._place is None:
            self._raw.abort()
            return
        self._raw.set_write_buffer_limits(self._write_limit_bytes)
        self._late = loop.call_at(self._place.until, self._raw.abort)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if not self._heard.startswith(_HANDSHAKE):
            self._raw.abort()
        elif self._place is not None and len(self._heard) == len(data):  # the first time
            self._raw.pause_reading()
            place, self._place = self._place, None
            self._spawn(self._shake_hands(place))

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        if self._place is not None:
            self._place.leave()

    async def _shake_hands(self, place: Place) -> None:
        loop = asyncio.get_running_loop()
        inside = _Inside()
        transport: asyncio.Transport | None = None
        try:
            if not self._raw.is_closing():
                left_s = max(0.001, place.until - loop.time())
                starting = loop.create_task(
                    loop.start_tls(self._raw, inside, self._context(), server_side=True, ssl_handshake_timeout=left_s)
                )
                # Twice: then it comes behind what `start_tls` itself has put off, and TLS is ready to be fed.
                loop.call_soon(loop.call_soon, self._feed)
                transport = await starting
        except (OSError, TimeoutError) as error:  # SSLError and every broken connection are OSErrors
            log.debug("a TLS handshake failed: %r", error)
        finally:
            self._in_time()
            if transport is None:  # also when it was cut off in the moment after
                place.leave()
                self._raw.abort()
        if transport is not None:
            place.transport = transport
            inside.begin(transport, self._beyond(place))

    def _feed(self) -> None:
        """Give TLS what was heard before it was there."""
        protocol = cast(Any, self._raw.get_protocol())
        heard, self._heard = self._heard, b""
        while heard and protocol is not self and not self._raw.is_closing():
            buffer = protocol.get_buffer(len(heard))
            part = heard[: len(buffer)]
            buffer[: len(part)] = part
            protocol.buffer_updated(len(part))
            heard = heard[len(part) :]

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
