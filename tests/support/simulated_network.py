"""WebSockets in virtual time: between a client's device and a gateway, slow, broken, half open, or with a slow reader."""

import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from gateway.connection import Connection
from gateway.progress import Taken
from tests.support.simulated_loop import Process, VirtualLoop

WRITE_LIMIT_BYTES = 4_096
"""What may be on its way to a client, or unread by it, before a transport is not writable."""
GONE = 1006
"""What a client sees of a connection that just ended (RFC 6455, section 7.1.5)."""


class WireQuality(msgspec.Struct):
    """Latency of clients' networks, one way, in seconds."""

    least_s: float = 0.005
    jitter_s: float = 0.03
    spikes: float = 0.0
    spike_s: float = 1.0


class Reader(Protocol):
    """A client's end of a wire."""

    @property
    def process(self) -> Process: ...
    def received(self, wire: "Wire", frame: bytes) -> None: ...
    def closed(self, wire: "Wire", code: int, reason: str) -> None: ...


class Entrance(Protocol):
    """A gateway as a wire sees it."""

    @property
    def process(self) -> Process: ...
    def accept(self, wire: "Wire") -> Connection | None:
        """The connection for a new socket; None where nobody is let in."""
        ...


class Wire:
    """One WebSocket. The gateway's side is a `gateway.connection.Transport`, the client's `send`, `hang_up` and `reading`."""

    def __init__(
        self,
        loop: VirtualLoop,
        chance: random.Random,
        quality: WireQuality,
        gateway: Entrance,
        client: Reader,
        number: int,
    ) -> None:
        self.number = number
        self._loop = loop
        self._chance = chance
        self._quality = quality
        self._gateway = gateway
        self._client = client
        self._up: deque[bytes | None] = deque()
        """What is on its way; None is the handshake."""
        self._down: deque[tuple[bytes, int, str]] = deque()
        self._unread: deque[tuple[bytes, int, str]] = deque()
        self._held_back: deque[bytes] = deque()
        self._up_at_s = self._down_at_s = 0.0
        self._unread_bytes = 0
        self._taken_bytes = 0
        self._stuck = False
        self._reading = True
        self._taking = True
        self.connection: Connection | None = None
        self.broken = False
        self.ended = False
        """Whether the client has been told that it is over."""
        self._up_at_s = loop.time() + 2 * self._latency()
        self._up.append(None)
        self._schedule(gateway.process, self._up_at_s, self._arrive)

    def _latency(self) -> float:
        quality, drawn = self._quality, self._chance.random
        late_s = quality.least_s + drawn() * quality.jitter_s
        if quality.spikes and drawn() < quality.spikes:
            late_s += drawn() * quality.spike_s
        return late_s

    def _schedule(self, process: Process, at_s: float, callback: Callable[..., None], *args: Any) -> None:
        self._loop.at(process, at_s, callback, *args)

    def _open(self) -> None:
        self.connection = self._gateway.accept(self)
        if self.connection is None:
            self._put((b"", GONE, "refused"))

    # --- the client's side -----------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        if self.broken:
            return
        self._up_at_s = max(self._up_at_s, self._loop.time() + self._latency())
        self._up.append(frame)
        self._schedule(self._gateway.process, self._up_at_s, self._arrive)

    def hang_up(self) -> None:
        """Close the socket; the gateway hears of it."""
        self.cut(None, self._latency())

    def read(self, on: bool) -> None:
        """A client that does not read for a while: frames pile up, and soon the transport is not writable."""
        self._reading = on
        while self._reading and self._unread and not self.broken:
            self._consume(self._unread.popleft())

    def _deliver(self) -> None:
        if self.broken or not self._down:
            return
        item = self._down.popleft()
        if self._reading:
            self._consume(item)
        else:
            self._unread.append(item)

    def _consume(self, item: tuple[bytes, int, str]) -> None:
        frame, code, reason = item
        if code:
            self._end(code, reason)
            return
        self._unread_bytes -= len(frame)
        self._taken_bytes += len(frame)
        if self._stuck and self._unread_bytes <= WRITE_LIMIT_BYTES:
            self._stuck = False
            self._loop.later(self._gateway.process, self._latency(), self._writable_again)
        self._client.received(self, frame)

    def _end(self, code: int, reason: str) -> None:
        self.broken = True
        if not self.ended:
            self.ended = True
            self._client.closed(self, code, reason)

    # --- the gateway's side: a Transport -----------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        if self._unread_bytes > WRITE_LIMIT_BYTES:
            self._stuck = True
            return False
        return True

    def taken(self) -> Taken:
        return Taken(self._taken_bytes, self._unread_bytes > 0)

    def write(self, frame: bytes) -> None:
        self._unread_bytes += len(frame)
        self._put((frame, 0, ""))

    def close(self, code: int, reason: str) -> None:
        self._put((b"", code, reason))
        self._loop.later(self._gateway.process, 2 * self._latency(), self._lost)

    def pause_reading(self) -> None:
        self._taking = False

    def resume_reading(self) -> None:
        self._taking = True
        while self._taking and self._held_back and self.connection is not None and not self.broken:
            self.connection.received(self._held_back.popleft())

    def _put(self, item: tuple[bytes, int, str]) -> None:
        if self.broken:
            return
        self._down_at_s = max(self._down_at_s, self._loop.time() + self._latency())
        self._down.append(item)
        self._schedule(self._client.process, self._down_at_s, self._deliver)

    def _arrive(self) -> None:
        if self.broken or not self._up:
            return
        frame = self._up.popleft()
        if frame is None:
            self._open()
        elif self.connection is None:
            return
        elif self._taking:
            self.connection.received(frame)
        else:
            self._held_back.append(frame)

    def _writable_again(self) -> None:
        if not self.broken and self.connection is not None:
            self.connection.flush()

    def _lost(self) -> None:
        if self.connection is not None:
            connection, self.connection = self.connection, None
            connection.lost()

    # --- faults ------------------------------------------------------------------------------------------------------

    def cut(self, client_after_s: float | None, gateway_after_s: float | None) -> None:
        """The connection breaks, and what is on its way is lost. None: that side never hears of it."""
        if self.broken:
            return
        self.broken = True
        self._up.clear()
        self._down.clear()
        self._unread.clear()
        if client_after_s is not None:
            self._loop.later(self._client.process, client_after_s, self._end, GONE, "cut")
        if gateway_after_s is not None:
            self._loop.later(self._gateway.process, gateway_after_s, self._lost)
