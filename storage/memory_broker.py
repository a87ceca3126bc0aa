"""The broker within one process, for tests and simulations: the semantics of `NatsBroker` without a server."""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Final

from domain.ports import BrokerUnavailable, NoResponders, Received, RequestTimeout
from storage.broker import as_prefix, call_safely, check_message, check_subject

_PAUSE_AT: Final = 1024


class _MemorySubscription:
    __slots__ = ("_broker", "_bus", "handler", "subject", "tokens")

    def __init__(
        self, bus: "MemoryBus", broker: "MemoryBroker", subject: str, handler: Callable[[Received], None]
    ) -> None:
        self._bus = bus
        self._broker = broker
        self.subject = subject
        self.tokens = subject.split(".")
        self.handler = handler

    def matches(self, subject: str) -> bool:
        if subject == self.subject:
            return True
        tokens = subject.split(".")
        for at, wanted in enumerate(self.tokens):
            if wanted == ">":
                return len(tokens) > at
            if at >= len(tokens) or wanted not in ("*", tokens[at]):
                return False
        return len(tokens) == len(self.tokens)

    @property
    def is_pattern(self) -> bool:
        return "*" in self.subject or ">" in self.subject

    async def stop(self) -> None:
        self._bus.remove(self)
        self._broker._subscriptions.discard(self)


class MemoryBus:
    """What a NATS server is to its clients: `MemoryBroker`s on one bus hear one another.

    Delivery is in the order of publishing, on the event loop, never within `publish`. `go_down` and `come_back` play an
    outage: what was not delivered is lost, and brokers are told of the return.
    """

    def __init__(self) -> None:
        self.is_up = True
        self._exact: dict[str, list[_MemorySubscription]] = {}
        self._patterns: list[_MemorySubscription] = []
        self._brokers: list[MemoryBroker] = []
        self._queue: deque[tuple[Received, tuple[_MemorySubscription, ...]]] = deque()
        self._draining = False

    def go_down(self) -> None:
        self.is_up = False
        self._queue.clear()
        for broker in self._brokers:
            broker._fail_requests()
            for handler in broker._on_lost:
                call_safely(handler)

    def come_back(self) -> None:
        self.is_up = True
        for broker in self._brokers:
            for handler in broker._on_reconnect:
                asyncio.get_running_loop().call_soon(call_safely, handler)

    def add(self, subscription: _MemorySubscription) -> None:
        if subscription.is_pattern:
            self._patterns.append(subscription)
        else:
            self._exact.setdefault(subscription.subject, []).append(subscription)

    def remove(self, subscription: _MemorySubscription) -> None:
        same = self._patterns if subscription.is_pattern else self._exact.get(subscription.subject, [])
        if subscription in same:
            same.remove(subscription)
        if not subscription.is_pattern and not same:
            self._exact.pop(subscription.subject, None)

    def listens(self, subscription: _MemorySubscription) -> bool:
        same = self._patterns if subscription.is_pattern else self._exact.get(subscription.subject, ())
        return subscription in same

    def post(self, message: Received) -> int:
        """Queue a message for everybody who listens now; how many that is."""
        listeners = (*self._exact.get(message.subject, ()), *(p for p in self._patterns if p.matches(message.subject)))
        if listeners:
            self._queue.append((message, listeners))
            self._drain_soon()
        return len(listeners)

    @property
    def undelivered(self) -> int:
        return len(self._queue)

    def _drain_soon(self) -> None:
        if not self._draining:
            self._draining = True
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        self._draining = False
        for _ in range(len(self._queue)):
            if not self._queue:
                return
            message, listeners = self._queue.popleft()
            for listener in listeners:
                if self.listens(listener):
                    call_safely(listener.handler, message)
        if self._queue:
            self._drain_soon()


class MemoryBroker:
    """`ports.Broker` on a `MemoryBus` (its own unless one is given). `prefix` keeps platforms on one bus apart."""

    _names = count(1)

    def __init__(self, bus: MemoryBus | None = None, prefix: str = "") -> None:
        self.bus = bus if bus is not None else MemoryBus()
        self.bus._brokers.append(self)
        self._prefix = as_prefix(prefix)
        self._inbox = f"_INBOX.{next(self._names)}"
        self._subscriptions: set[_MemorySubscription] = set()
        self._requests: dict[str, asyncio.Future[bytes]] = {}
        self._tokens = count(1)
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_lost: list[Callable[[], None]] = []
        self._closed = False
        self._listen(f"{self._inbox}.*", self._answered)

    async def publish(self, subject: str, data: bytes) -> None:
        self._post(subject, data, "")
        if self.bus.undelivered > _PAUSE_AT:
            await asyncio.sleep(0)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        loop = asyncio.get_running_loop()
        reply = f"{self._inbox}.{next(self._tokens)}"
        answer: asyncio.Future[bytes] = loop.create_future()
        self._requests[reply] = answer
        deadline = loop.call_later(timeout_s, self._expire, reply, subject, timeout_s)
        try:
            if not self._post(subject, data, reply):
                raise NoResponders("nobody listens on the subject")
            return await answer
        finally:
            deadline.cancel()
            self._requests.pop(reply, None)

    async def subscribe(self, subject: str, handler: Callable[[Received], None]) -> _MemorySubscription:
        check_subject(subject, wildcards=True)
        self._check_up()
        return self._listen(subject, handler)

    async def confirm(self, timeout_s: float = 2.0) -> None:
        self._check_up()

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        self._on_reconnect.append(handler)

    def on_lost(self, handler: Callable[[], None]) -> None:
        self._on_lost.append(handler)

    async def close(self) -> None:
        """Hear nothing more. What was published before still reaches the others. Idempotent."""
        if not self._closed:
            self._closed = True
            self._fail_requests()
            self.bus._brokers.remove(self)
            for subscription in tuple(self._subscriptions):
                await subscription.stop()

    def _listen(self, subject: str, handler: Callable[[Received], None]) -> _MemorySubscription:
        def without_prefix(message: Received) -> None:
            at = len(self._prefix)
            handler(Received(message.subject[at:], message.data, message.reply.removeprefix(self._prefix)))

        heard = without_prefix if self._prefix else handler
        subscription = _MemorySubscription(self.bus, self, self._prefix + subject, heard)
        self._subscriptions.add(subscription)
        self.bus.add(subscription)
        return subscription

    def _post(self, subject: str, data: bytes, reply: str) -> int:
        check_subject(subject)
        check_message(data)
        self._check_up()
        return self.bus.post(Received(self._prefix + subject, data, self._prefix + reply if reply else ""))

    def _check_up(self) -> None:
        if self._closed or not self.bus.is_up:
            raise BrokerUnavailable("the broker is closed" if self._closed else "the bus is down")

    def _answered(self, message: Received) -> None:
        answer = self._requests.get(message.subject)
        if answer is not None and not answer.done():
            answer.set_result(message.data)

    def _expire(self, reply: str, subject: str, timeout_s: float) -> None:
        answer = self._requests.get(reply)
        if answer is not None and not answer.done():
            answer.set_exception(RequestTimeout(f"no answer from {subject} in {timeout_s} s"))

    def _fail_requests(self) -> None:
        for answer in self._requests.values():
            if not answer.done():
                answer.set_exception(BrokerUnavailable("the connection was lost while an answer was awaited"))
