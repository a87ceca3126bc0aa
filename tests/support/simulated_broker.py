"""A NATS server and its clients in virtual time: links that are slow, break, hold back or overtake, as the port allows.

`SimulatedBroker` keeps the promises of `domain.ports.Broker` and behaves like `storage.broker.NatsBroker` where that says
more: one link at a time, regained for ever; `on_lost` before anything is received on a new link, `on_reconnect` after its
subscriptions are known; a request under way when the link breaks is `BrokerUnavailable`, its outcome unknown.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, Final, Protocol
from zlib import crc32

import msgspec

from domain.ports import BrokerUnavailable, NoResponders, Received, RequestTimeout
from storage.broker import as_prefix, call_safely, check_message, check_subject

_CONFIRM_TIMEOUT_S: Final = 5.0
_CONNECT_TIMEOUT_S: Final = 2.0
_BACKOFF_S: Final = (0.02, 1.0)
_DRAIN_AT_BYTES: Final = 256 * 1024
_DRAIN_TIMEOUT_S: Final = 5.0
_QUIET: Final = ("host.", "placement.heartbeat", "_INBOX.")
"""Subjects that are not traced: there is one of these many times a second."""


class Scheduler(Protocol):
    """What a simulated server needs of the event loop; `simulated_loop.VirtualLoop` is one."""

    @property
    def root(self) -> Any:
        """The process of whoever breaks things."""
        ...

    def time(self) -> float: ...
    def later(self, process: Any, delay_s: float, callback: Callable[..., object], *args: Any) -> Any: ...
    def at(self, process: Any, when_s: float, callback: Callable[..., object], *args: Any) -> Any: ...


class LinkQuality(msgspec.Struct):
    """How links behave: latencies in seconds, one way. `reordering`: subjects may overtake one another."""

    least_s: float = 0.0002
    jitter_s: float = 0.0008
    spikes: float = 0.0
    """The share of messages that are late by up to `spike_s`."""
    spike_s: float = 0.3
    reordering: bool = False
    pending: int = 20_000
    """Messages that may wait for one client before it is cut off as a slow consumer."""


class _Lane:
    """Messages that keep their order among themselves."""

    __slots__ = ("at_s", "frames")

    def __init__(self) -> None:
        self.at_s = 0.0
        self.frames: deque[tuple[Any, ...]] = deque()


class _Link:
    """One TCP connection between a broker and the server."""

    __slots__ = (
        "broken", "broker", "down", "known", "number", "pending", "server", "subscriptions", "unsent_bytes", "up",
    )  # fmt: skip

    def __init__(self, server: "SimulatedServer", broker: "SimulatedBroker", number: int) -> None:
        self.server = server
        self.number = number
        self.broker = broker
        self.broken = False
        self.known = True
        """Whether the server takes it for alive."""
        self.subscriptions: dict[int, str] = {}
        self.up = _Lane()
        self.down: dict[str, _Lane] = {}
        self.pending = 0
        self.unsent_bytes = 0

    def send(self, frame: tuple[Any, ...], size: int = 0) -> None:
        """From the client: arrives at the server behind everything that was sent before, or never."""
        if self.broken:
            return
        server, lane = self.server, self.up
        at_s = server.scheduler.time() + server.latency()
        if at_s < lane.at_s:
            at_s = lane.at_s
        if at_s < self.broker.held_up_until_s:
            at_s = self.broker.held_up_until_s
        lane.at_s = at_s
        lane.frames.append((frame, size))
        self.unsent_bytes += size
        server.scheduler.at(server.process, at_s, self._arrive)

    def _arrive(self) -> None:
        if self.broken or not self.up.frames:
            return
        frame, size = self.up.frames.popleft()
        self.unsent_bytes -= size
        if self.known:
            self.server.take(self, frame)

    def push(self, lane_of: str, frame: tuple[Any, ...]) -> None:
        """From the server: arrives at the client behind everything of the same lane, or never."""
        if self.broken:
            return
        server = self.server
        key = lane_of if server.quality.reordering else ""
        lane = self.down.get(key)
        if lane is None:
            lane = self.down[key] = _Lane()
        at_s = server.scheduler.time() + server.latency()
        if at_s < lane.at_s:
            at_s = lane.at_s
        if at_s < self.broker.held_down_until_s:
            at_s = self.broker.held_down_until_s
        lane.at_s = at_s
        lane.frames.append(frame)
        self.pending += 1
        if self.pending > server.quality.pending:
            server.count("slow consumer")
            server.reset(self.broker, 0.01)
            return
        server.scheduler.at(self.broker.process, at_s, self._deliver, lane)

    def _deliver(self, lane: _Lane) -> None:
        if not self.broken and lane.frames:
            self.pending -= 1
            self.broker.take(self, lane.frames.popleft())

    def cut(self) -> None:
        """What is on its way in either direction is lost."""
        self.broken = True
        self.up.frames.clear()
        self.down.clear()


class SimulatedServer:
    """The NATS server. `process` is where it runs; whoever breaks links calls the methods of the second half."""

    def __init__(
        self,
        scheduler: Scheduler,
        process: Any,
        chance: random.Random,
        quality: LinkQuality | None = None,
        trace: Callable[[str, str], None] | None = None,
        count_fault: Callable[[str], None] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.process = process
        self.quality = quality or LinkQuality()
        self.up = True
        self.hangs = False
        self.count = count_fault or (lambda name: None)
        self._chance = chance
        self._trace = trace
        self._links: dict[int, _Link] = {}
        self._inboxes: dict[str, _Link] = {}
        self._exact: dict[str, dict[tuple[int, int], _Link]] = {}
        self._patterns: dict[tuple[int, int], tuple[list[str], _Link]] = {}
        self._serials = count(1)

    def latency(self) -> float:
        quality, drawn = self.quality, self._chance.random
        late_s = quality.least_s + drawn() * quality.jitter_s
        if quality.spikes and drawn() < quality.spikes:
            late_s += drawn() * quality.spike_s
        return late_s

    # --- the protocol ----------------------------------------------------------------------------------------------

    def accept(self, broker: "SimulatedBroker") -> _Link:
        """A new connection; an old one of the same client that the server still believes in stays until it is noticed."""
        link = _Link(self, broker, next(self._serials))
        self._links[link.number] = link
        self._inboxes[broker.inbox] = link
        return link

    def take(self, link: _Link, frame: tuple[Any, ...]) -> None:
        """A frame from a client."""
        if not self.up:
            return
        match frame[0]:
            case "PUB":
                self._route(link, frame[1], frame[2], frame[3])
            case "PING":
                link.push("", ("PONG",))
            case "SUB":
                self._subscribe(link, frame[1], frame[2])
            case "UNSUB":
                self._unsubscribe(link, frame[1])

    def _subscribe(self, link: _Link, subject: str, sid: int) -> None:
        link.subscriptions[sid] = subject
        if "*" in subject or ">" in subject:
            self._patterns[link.number, sid] = (subject.split("."), link)
        else:
            self._exact.setdefault(subject, {})[link.number, sid] = link

    def _unsubscribe(self, link: _Link, sid: int) -> None:
        subject = link.subscriptions.pop(sid, None)
        if subject is None:
            return
        self._patterns.pop((link.number, sid), None)
        listeners = self._exact.get(subject)
        if listeners is not None:
            listeners.pop((link.number, sid), None)
            if not listeners:
                del self._exact[subject]

    def _route(self, link: _Link, subject: str, reply: str, data: bytes) -> None:
        if self._trace is not None and not subject.startswith(_QUIET):
            self._trace(link.broker.name, f"publishes {len(data)} bytes {crc32(data):08x} on {subject}")
        if subject.startswith("_INBOX."):
            inbox, _, token = subject.rpartition(".")
            answered = self._inboxes.get(inbox)
            if answered is not None:
                answered.push("", ("ANSWER", token, data))
            return
        found = [(key[1], to) for key, to in self._exact.get(subject, {}).items()]
        if self._patterns:
            tokens = subject.split(".")
            found += [(key[1], to) for key, (wanted, to) in self._patterns.items() if _matches(wanted, tokens)]
        for sid, to in found:
            to.push(f"{link.number} {subject}", ("MSG", sid, subject, reply, data))
        if reply and not found:
            link.push("", ("NOBODY", reply.rpartition(".")[2]))

    # --- faults ----------------------------------------------------------------------------------------------------

    def reset(self, broker: "SimulatedBroker", client_after_s: float = 0.0, server_after_s: float = 0.0) -> None:
        """The client's connection breaks now; each side notices when it does."""
        for link in [link for link in self._links.values() if link.broker is broker and not link.broken]:
            link.cut()
            self.scheduler.later(broker.process, client_after_s, broker.lose, link, "the connection was reset")
            self.scheduler.later(self.process, server_after_s, self._drop, link)

    def gone(self, broker: "SimulatedBroker", server_after_s: float = 0.0) -> None:
        """The client's process is gone: what it had written and was still in its machine is lost with it."""
        self.reset(broker, 0.0, server_after_s)

    def hold(self, broker: "SimulatedBroker", for_s: float, *, up: bool, down: bool, patience_s: float = 6.0) -> None:
        """A partition: nothing gets through in these directions for a while; TCP keeps it, or one side gives up."""
        until_s = self.scheduler.time() + for_s
        if up:
            broker.held_up_until_s = max(broker.held_up_until_s, until_s)
        if down:
            broker.held_down_until_s = max(broker.held_down_until_s, until_s)
        if for_s > patience_s:
            for link in [link for link in self._links.values() if link.broker is broker and not link.broken]:
                self.scheduler.later(self.process, patience_s, self._give_up, link, for_s - patience_s)

    def _give_up(self, link: _Link, healed_in_s: float) -> None:
        """Pings have not been answered: the client breaks off; the server hears of it when the network is back."""
        if not link.broken:
            link.cut()
            self.scheduler.later(link.broker.process, 0.0, link.broker.lose, link, "pings were not answered")
            self.scheduler.later(self.process, healed_in_s, self._drop, link)

    def hang(self, for_s: float, patience_s: float = 4.0) -> None:
        """SIGSTOP of the server: clients give up when their pings are not answered, and find nobody until it goes on."""
        self.process.pause()
        self.hangs = True
        for link in list(self._links.values()):
            if for_s > patience_s and not link.broken:
                self.scheduler.later(link.broker.process, patience_s, self._give_up, link, 0.0)
        self.scheduler.later(self.scheduler.root, for_s, self._go_on)

    def _go_on(self) -> None:
        self.hangs = False
        self.process.resume()

    def restart(self, down_s: float, notice_s: float = 0.001) -> None:
        """The server dies and comes back knowing nothing."""
        self.up = False
        for link in list(self._links.values()):
            link.cut()
            self.scheduler.later(link.broker.process, notice_s, link.broker.lose, link, "the server is gone")
            self._drop(link)
        self.scheduler.later(self.process, down_s, self._come_up)

    def _come_up(self) -> None:
        self.up = True

    def _drop(self, link: _Link) -> None:
        link.known = False
        for sid in list(link.subscriptions):
            self._unsubscribe(link, sid)
        for name in [name for name, known in self._links.items() if known is link]:
            del self._links[name]
        if self._inboxes.get(link.broker.inbox) is link:
            del self._inboxes[link.broker.inbox]


def _matches(wanted: list[str], tokens: list[str]) -> bool:
    for at, word in enumerate(wanted):
        if word == ">":
            return len(tokens) > at
        if at >= len(tokens) or word not in ("*", tokens[at]):
            return False
    return len(tokens) == len(wanted)


class _SimulatedSubscription:
    __slots__ = ("_broker", "handler", "sid", "subject")

    def __init__(self, broker: "SimulatedBroker", sid: int, subject: str, handler: Callable[[Received], None]) -> None:
        self._broker = broker
        self.sid = sid
        self.subject = subject
        self.handler = handler

    async def stop(self) -> None:
        await self._broker.unsubscribe(self)


class SimulatedBroker:
    """`domain.ports.Broker` on a `SimulatedServer`. `process` is where handlers run."""

    def __init__(self, server: SimulatedServer, process: Any, name: str, prefix: str = "") -> None:
        self.process = process
        self.name = name
        self.inbox = f"_INBOX.{name.replace('.', '-')}-{next(server._serials)}"
        self.held_up_until_s = self.held_down_until_s = 0.0
        self._server = server
        self._prefix = as_prefix(prefix)
        self._link: _Link | None = None
        self._lost: asyncio.Future[str] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._subscriptions: dict[int, _SimulatedSubscription] = {}
        self._sids = count(1)
        self._checked: set[str] = set()
        self._requests: dict[str, asyncio.Future[bytes]] = {}
        self._tokens = count(1)
        self._pongs: deque[asyncio.Future[None]] = deque()
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_lost: list[Callable[[], None]] = []
        self._closed = False

    async def start(self, timeout_s: float = 10.0) -> "SimulatedBroker":
        connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(connected))
        try:
            async with asyncio.timeout(timeout_s):
                await connected
        except TimeoutError:
            await self.close()
            raise BrokerUnavailable(f"no server answered in {timeout_s} s") from None
        return self

    @property
    def connected(self) -> bool:
        return self._link is not None and not self._link.broken

    # --- the port --------------------------------------------------------------------------------------------------

    async def publish(self, subject: str, data: bytes) -> None:
        link = self._send(subject, "", data)
        if link.unsent_bytes > _DRAIN_AT_BYTES:
            await self._drained(link)

    async def _drained(self, link: _Link) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _DRAIN_TIMEOUT_S
        while link.unsent_bytes > _DRAIN_AT_BYTES and self._link is link:
            if loop.time() > until_s:
                raise BrokerUnavailable("the broker does not read what is sent")
            await asyncio.sleep(0.01)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        token = str(next(self._tokens))
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        self._requests[token] = answer
        deadline = loop.call_later(timeout_s, self._expire, token, subject, timeout_s)
        try:
            self._send(subject, f"{self.inbox}.{token}", data)
            return await answer
        finally:
            deadline.cancel()
            self._requests.pop(token, None)
            if answer.done() and not answer.cancelled():
                answer.exception()

    async def subscribe(self, subject: str, handler: Callable[[Received], None]) -> _SimulatedSubscription:
        check_subject(subject, wildcards=True)
        link = self._connected()
        subscription = _SimulatedSubscription(self, next(self._sids), subject, handler)
        self._subscriptions[subscription.sid] = subscription
        try:
            link.send(("SUB", self._prefix + subject, subscription.sid))
            await self._confirmed(link, _CONFIRM_TIMEOUT_S)
        except BaseException:
            self._forget(subscription)
            raise
        return subscription

    async def unsubscribe(self, subscription: _SimulatedSubscription) -> None:
        link = self._link
        if self._forget(subscription) and link is not None:
            try:
                await self._confirmed(link, _CONFIRM_TIMEOUT_S)
            except BrokerUnavailable:
                return  # lost with the link

    async def confirm(self, timeout_s: float = 2.0) -> None:
        await self._confirmed(self._connected(), timeout_s)

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        self._on_reconnect.append(handler)

    def on_lost(self, handler: Callable[[], None]) -> None:
        self._on_lost.append(handler)

    async def close(self) -> None:
        if self._closed:
            return
        if self._link is not None:
            with contextlib.suppress(BrokerUnavailable):
                await self._confirmed(self._link, 1.0)
        self._closed = True
        self._server.gone(self)
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)

    # --- the way out -----------------------------------------------------------------------------------------------

    def _connected(self) -> _Link:
        if self._link is None or (self._lost is not None and self._lost.done()):
            raise BrokerUnavailable("the broker is closed" if self._closed else "no connection")
        return self._link

    def _send(self, subject: str, reply: str, data: bytes) -> _Link:
        check_message(data)
        link = self._connected()
        if subject.startswith("_INBOX."):
            whole = subject  # what the asker called it: prefixes keep platforms apart, inboxes are nobody else's
        else:
            if subject not in self._checked:
                check_subject(subject)
                self._checked.add(subject)
            whole = self._prefix + subject
        link.send(("PUB", whole, reply, data), len(data))
        return link

    async def _confirmed(self, link: _Link, timeout_s: float) -> None:
        if self._lost is not None and self._lost.done():
            raise BrokerUnavailable(self._lost.result())
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        link.send(("PING",))
        done, _ = await asyncio.wait([pong], timeout=timeout_s)
        if not done:
            raise BrokerUnavailable(f"the server did not answer in {timeout_s} s")
        pong.result()

    def _forget(self, subscription: _SimulatedSubscription) -> bool:
        known = self._subscriptions.pop(subscription.sid, None) is not None
        if known and self._link is not None:
            self._link.send(("UNSUB", subscription.sid))
        return known

    # --- the way in ------------------------------------------------------------------------------------------------

    def take(self, link: _Link, frame: tuple[Any, ...]) -> None:
        """A frame from the server; one of a link that was given up is nobody's."""
        if link is not self._link or (self._lost is not None and self._lost.done()):
            return
        match frame[0]:
            case "MSG":
                _, sid, subject, reply, data = frame
                subscription = self._subscriptions.get(sid)
                if subscription is not None:
                    call_safely(subscription.handler, Received(subject[len(self._prefix) :], data, reply))
            case "ANSWER":
                answer = self._requests.get(frame[1])
                if answer is not None and not answer.done():
                    answer.set_result(frame[2])
            case "NOBODY":
                answer = self._requests.get(frame[1])
                if answer is not None and not answer.done():
                    answer.set_exception(NoResponders("nobody listens on the subject"))
            case "PONG":
                if self._pongs:
                    pong = self._pongs.popleft()
                    if not pong.done():
                        pong.set_result(None)

    def lose(self, link: _Link, why: str) -> None:
        """The link is found broken: whoever waits for a PONG is told at once, the supervisor does the rest."""
        if link is self._link and self._lost is not None and not self._lost.done():
            self._lost.set_result(why)
            self._fail_pongs(why)

    def _fail_pongs(self, why: str) -> None:
        waiting, self._pongs = self._pongs, deque()
        for pong in waiting:
            if not pong.done():
                pong.set_exception(BrokerUnavailable(why))
                pong.exception()

    def _expire(self, token: str, subject: str, timeout_s: float) -> None:
        answer = self._requests.get(token)
        if answer is not None and not answer.done():
            answer.set_exception(RequestTimeout(f"no answer from {subject} in {timeout_s} s"))

    # --- staying connected -----------------------------------------------------------------------------------------

    async def _supervise(self, connected: "asyncio.Future[None]") -> None:
        backoff_s, last_backoff_s = _BACKOFF_S
        while True:
            try:
                await self._open()
                backoff_s = _BACKOFF_S[0]
                if connected.done():
                    for handler in self._on_reconnect:
                        call_safely(handler)
                else:
                    connected.set_result(None)
                assert self._lost is not None
                await asyncio.shield(self._lost)
                for handler in self._on_lost:
                    call_safely(handler)
            except BrokerUnavailable:
                pass
            finally:
                self._uninstall()
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, last_backoff_s)

    async def _open(self) -> None:
        """Connect, subscribe to everything on the new link, then let it be used."""
        server, loop = self._server, asyncio.get_running_loop()
        if server.hangs or max(self.held_up_until_s, self.held_down_until_s) > loop.time():
            await asyncio.sleep(_CONNECT_TIMEOUT_S)
            raise BrokerUnavailable("no server answers")
        await asyncio.sleep(2 * server.latency())
        if not server.up:
            raise BrokerUnavailable("no server answers")
        link = server.accept(self)
        self._lost = loop.create_future()
        for subscription in self._subscriptions.values():
            link.send(("SUB", self._prefix + subscription.subject, subscription.sid))
        self._link = link
        await self._confirmed(link, _CONFIRM_TIMEOUT_S)

    def _uninstall(self) -> None:
        link, self._link = self._link, None
        if link is not None and not link.broken:
            self._server.reset(self)
        self._fail_pongs("the connection was lost")
        for answer in self._requests.values():
            if not answer.done():
                answer.set_exception(BrokerUnavailable("the connection was lost while an answer was awaited"))
