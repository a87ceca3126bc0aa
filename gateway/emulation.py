"""Commands of clients that hear us on a stream which goes one way only.

They come in requests of their own, each to whichever gateway the network picks. The request names the gateway that holds
the stream (`node`) and shows the stream's key (`session`), which nobody but its client was told.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, Final, Protocol

import msgspec

from domain.channels import gateway_subject
from domain.ports import Broker, BrokerUnavailable, NoResponders, Received, RequestTimeout, Subscription
from gateway.hub import stopped

FORWARDS: Final = 256
"""Requests for other gateways that may be under way at once."""
FORWARD_TIMEOUT_S: Final = 2.0

_NODE = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Outcome(Enum):
    """What became of a client's frame."""

    TAKEN = b"t"
    GONE = b"g"
    """There is no such stream, or no longer: nothing was done."""
    BUSY = b"b"
    """Too much is waiting already: nothing was done."""
    NOWHERE = b"n"
    """There is no such gateway, or no longer: nothing was done."""
    UNKNOWN = b"u"
    """The other gateway could not be asked, or did not answer in time."""


class Inlet(Protocol):
    """A stream, as commands for it come in."""

    def received(self, frame: bytes) -> bool:
        """A frame from the client; False if there is no room for it."""
        ...


class _Forwarded(msgspec.Struct, array_like=True):
    key: str
    frame: bytes


_decode = msgspec.msgpack.Decoder(_Forwarded).decode


class Emulation:
    """The streams of this gateway by their keys, and the way to those of the others.

    Frames for one stream are taken in the order in which their requests came, at most once each. `node` differs from one
    life of a gateway to the next: what was meant for a former one finds nobody.
    """

    def __init__(
        self,
        node: str,
        broker: Broker,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        counts: Counter[str],
    ) -> None:
        self._node = node
        self._broker = broker
        self._spawn = spawn
        self._counts = counts
        self._inlets: dict[str, Inlet] = {}
        self._forwarding = 0
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Raises BrokerUnavailable: the other gateways could not reach this one."""
        self._subscription = await self._broker.subscribe(gateway_subject(self._node), self._forwarded)

    async def stop(self) -> None:
        if self._subscription is not None:
            await stopped(self._subscription)

    def open(self, key: str, inlet: Inlet) -> None:
        self._inlets[key] = inlet

    def close(self, key: str) -> None:
        self._inlets.pop(key, None)

    async def deliver(self, node: str, key: str, frame: bytes) -> Outcome:
        """Hand a frame to the stream of this key on that gateway."""
        if node == self._node:
            return self._take(key, frame)
        if not _NODE.fullmatch(node):
            return Outcome.NOWHERE
        if self._forwarding >= FORWARDS:
            self._counts["gateway_forwards_refused"] += 1
            return Outcome.BUSY
        self._forwarding += 1
        try:
            return await self._forward(node, key, frame)
        finally:
            self._forwarding -= 1

    def _take(self, key: str, frame: bytes) -> Outcome:
        inlet = self._inlets.get(key)
        if inlet is None:
            return Outcome.GONE
        return Outcome.TAKEN if inlet.received(frame) else Outcome.BUSY

    async def _forward(self, node: str, key: str, frame: bytes) -> Outcome:
        self._counts["gateway_forwards"] += 1
        message = msgspec.msgpack.encode(_Forwarded(key, frame))
        try:
            return Outcome(await self._broker.request(gateway_subject(node), message, FORWARD_TIMEOUT_S))
        except NoResponders:
            return Outcome.NOWHERE
        except (RequestTimeout, BrokerUnavailable):
            self._counts["gateway_forwards_failed"] += 1
            return Outcome.UNKNOWN

    def _forwarded(self, message: Received) -> None:
        forwarded = _decode(message.data)
        outcome = self._take(forwarded.key, forwarded.frame)
        self._spawn(self._answer(message.reply, outcome))

    async def _answer(self, reply: str, outcome: Outcome) -> None:
        try:
            await self._broker.publish(reply, outcome.value)
        except BrokerUnavailable:
            self._counts["gateway_forwards_failed"] += 1
