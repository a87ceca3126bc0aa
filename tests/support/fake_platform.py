"""A platform in memory: streams, a broker, a router and a reader that keep the ports' promises within one process.

Tests of the edge talk to it instead of hosts, NATS and a database: what they prove is the edge alone.
"""

import asyncio
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from domain.channels import REVOKED_SUBJECT, event_subject, user_subject
from domain.commands import (
    Accepted,
    Answer,
    Attached,
    Command,
    Compare,
    Compared,
    Delivery,
    Hint,
    Publication,
    Query,
    Signal,
    Status,
    Viewed,
)
from domain.errors import Code, Refusal
from domain.ports import (
    BrokerUnavailable,
    ConversationRow,
    Identity,
    Page,
    Received,
    StoreUnavailable,
)
from domain.tickets import TICKET_PREFIX, is_ticket
from domain.times import rfc3339

encode = msgspec.msgpack.encode


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


class CountingMetrics:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}

    def count(self, name: str, value: float = 1.0) -> None:
        self.counts[name] += value

    def gauge(self, name: str, value: float) -> None:
        self.gauges[name] = value

    def observe(self, name: str, value: float) -> None: ...


class _LocalSubscription:
    def __init__(self, handlers: list[Any], handler: Any) -> None:
        self._handlers, self._handler = handlers, handler

    async def stop(self) -> None:
        if self._handler in self._handlers:
            self._handlers.remove(self._handler)


class LocalBroker:
    """Delivers on the next turn of the loop, in order. `cut` loses messages until `heal`, as a broken connection does."""

    def __init__(self) -> None:
        self.handlers: defaultdict[str, list[Callable[[Received], None]]] = defaultdict(list)
        self.down = False
        self._reconnected: list[Callable[[], None]] = []
        self._lost: list[Callable[[], None]] = []

    async def publish(self, subject: str, data: bytes) -> None:
        asyncio.get_running_loop().call_soon(self._deliver, subject, data)

    def _deliver(self, subject: str, data: bytes) -> None:
        if not self.down:
            for handler in tuple(self.handlers[subject]):
                handler(Received(subject, data))

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        raise BrokerUnavailable

    async def subscribe(self, subject: str, handler: Callable[[Received], None]) -> _LocalSubscription:
        if self.down:
            raise BrokerUnavailable
        await asyncio.sleep(0)
        self.handlers[subject].append(handler)
        return _LocalSubscription(self.handlers[subject], handler)

    async def confirm(self, timeout_s: float = 2.0) -> None: ...

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        self._reconnected.append(handler)

    def on_lost(self, handler: Callable[[], None]) -> None:
        self._lost.append(handler)

    def cut(self) -> None:
        if not self.down:
            self.down = True
            for handler in self._lost:
                handler()

    def heal(self) -> None:
        self.down = False
        for handler in self._reconnected:
            handler()

    async def close(self) -> None: ...


class Stream:
    def __init__(self, members: Sequence[str], epoch: str = "e1") -> None:
        self.members = set(members)
        self.epoch = epoch
        self.events: list[bytes] = []
        self.done: dict[str, Accepted] = {}
        self.read_offsets: dict[str, int] = {}


class FakePlatform:
    """Router, StreamReader, ReadModels and TokenVerifier in one.

    Tokens: `user/session/expiry in ms`. A ticket, made of a token, is accepted once.
    """

    def __init__(self, broker: Any = None) -> None:
        self.broker = LocalBroker() if broker is None else broker
        self.streams: dict[str, Stream] = {}
        self.asked: list[Command | Query | Compare] = []
        self.signals: list[Signal] = []
        self.owner = 7
        self.delay_s = 0.0
        self.reads = 0
        self.read_delay_s = 0.0
        self.store_down = False
        self.remembered = 0
        """So many of its last events a stream's owner still knows."""
        self.hidden_rows = 0
        """So many of the newest rows a lagging replica does not show yet."""
        self.revoked: set[str] = set()
        self.tickets: set[str] = set()
        self.refuse: Refusal | None = None

    # --- making things happen ------------------------------------------------------------------------------------

    def create(self, name: str, *members: str, epoch: str = "e1") -> Stream:
        self.streams[name] = Stream(members, epoch)
        return self.streams[name]

    async def post(self, name: str, *bodies: dict[str, Any], publish: bool = True) -> int:
        """Commit events and publish them; the offset of the last."""
        stream = self.streams[name]
        items = []
        for body in bodies:
            data = msgspec.json.encode(body)
            stream.events.append(data)
            items.append(Publication(len(stream.events), data))
        if publish:
            await self.deliver(name, *items)
        return len(stream.events)

    async def deliver(self, name: str, *items: Publication, owner: int | None = None) -> None:
        for start in range(0, len(items), 1_000):
            delivery = Delivery(name, self.owner if owner is None else owner, items[start : start + 1_000])
            await self.broker.publish(event_subject(name), encode(delivery))

    async def ephemeral(self, name: str, body: dict[str, Any], owner: int | None = None) -> None:
        await self.deliver(name, Publication(0, msgspec.json.encode(body)), owner=owner)

    async def hint(self, user_id: str, body: dict[str, Any]) -> None:
        await self.broker.publish(user_subject(user_id), encode(Hint(user_id, msgspec.json.encode(body))))

    async def revoke(self, session_id: str) -> None:
        self.revoked.add(session_id)
        await self.broker.publish(REVOKED_SUBJECT, session_id.encode())

    async def leave(self, name: str, user_id: str) -> None:
        self.streams[name].members.discard(user_id)
        await self.post(name, {"type": "member.left", "by": user_id, "at": rfc3339(0), "user_id": user_id})

    @staticmethod
    def token(user_id: str, session_id: str, life_s: float = 900.0) -> str:
        return f"{user_id}/{session_id}/{int((time.time() + life_s) * 1000)}"

    def ticket(self, token: str) -> str:
        ticket = f"{TICKET_PREFIX}{uuid.uuid4()}.{token}"
        self.tickets.add(ticket)
        return ticket

    # --- Router --------------------------------------------------------------------------------------------------

    async def ask(self, request: Command | Query | Compare, timeout_s: float = 5.0) -> Answer:
        self.asked.append(request)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.refuse is not None:
            raise self.refuse
        if isinstance(request, Compare):
            known = [self.streams.get(name) for name in request.streams]
            return Compared(self.owner, tuple(len(stream.events) if stream else 0 for stream in known))
        stream = self.streams.get(request.stream)
        if stream is None or request.actor.id not in stream.members:
            raise Refusal(Code.NOT_FOUND)
        if isinstance(request, Query):
            return self._answer(stream, request)
        return await self._command(stream, request)

    def _answer(self, stream: Stream, query: Query) -> Answer:
        if query.name == "attach":
            return Attached(stream.epoch, len(stream.events), self.owner, self._tail(stream, query.after))
        if query.name == "view":
            return Viewed(len(stream.events), b"{}")
        known = stream.done.get(query.command_id)
        return Status(known is not None, known.offset if known else None)

    def _tail(self, stream: Stream, after: int | None) -> tuple[Publication, ...]:
        first = max(0, len(stream.events) - self.remembered)
        if after is None or not first <= after < len(stream.events):
            return ()
        return tuple(Publication(n + 1, stream.events[n]) for n in range(after, len(stream.events)))

    async def _command(self, stream: Stream, command: Command) -> Answer:
        known = stream.done.get(command.command_id)
        if known is not None:
            return msgspec.structs.replace(known, replayed=True)
        payload = msgspec.json.decode(command.payload)
        now_ms = time.time_ns() // 1_000_000
        body = {"by": command.actor.id, "at": rfc3339(now_ms)}
        if command.kind == "order":
            if command.name == "forbidden_now":
                raise Refusal(Code.INVALID_TRANSITION, "not now", current="open", allowed_commands=("cancel",))
            body |= {"type": f"order.{command.name}", "state": "open", **payload}
        elif command.name == "send":
            if not isinstance(payload.get("text"), str):
                raise Refusal(Code.INVALID, "text")
            body |= {"type": "message.posted", "message_id": command.command_id, "text": payload["text"]}
        else:
            body |= {"type": command.name, **payload}
        offset = await self.post(command.stream, body)
        view = b'{"id":"%s","state":"open"}' % command.stream_id.encode() if command.kind == "order" else None
        accepted = Accepted(offset, now_ms, (Publication(offset, stream.events[-1]),), False, view)
        if command.command_id:
            stream.done[command.command_id] = accepted
        return accepted

    async def signal(self, signal: Signal) -> None:
        self.signals.append(signal)

    # --- StreamReader --------------------------------------------------------------------------------------------

    async def read(self, stream: str, after: int, limit: int, max_bytes: int = 262_144) -> list[tuple[int, bytes]]:
        self.reads += 1
        await asyncio.sleep(self.read_delay_s)
        if self.store_down:
            raise StoreUnavailable
        events = self.streams[stream].events
        rows: list[tuple[int, bytes]] = []
        size = 0
        for offset in range(after + 1, min(len(events) - self.hidden_rows, after + limit) + 1):
            size += len(events[offset - 1])
            if rows and size > max_bytes:
                break
            rows.append((offset, events[offset - 1]))
        return rows

    async def read_back(self, stream: str, before: int, limit: int) -> list[tuple[int, bytes]]:
        events = self.streams[stream].events
        top = min(before - 1, len(events))
        return [(offset, events[offset - 1]) for offset in range(top, max(0, top - limit), -1)]

    # --- ReadModels ----------------------------------------------------------------------------------------------

    async def conversations(self, user_id: str, cursor: str | None, limit: int) -> Page:
        rows = [
            ConversationRow(name[13:], tuple(stream.members), None, len(stream.events), 0, 0, None, 0)
            for name, stream in self.streams.items()
            if name.startswith("conversation:") and user_id in stream.members
        ]
        return Page(rows, None)

    async def contacts(self, user_id: str, others: Sequence[str]) -> frozenset[str]:
        shared = [stream.members for stream in self.streams.values() if user_id in stream.members]
        return frozenset(set().union(*shared) & set(others) - {user_id})

    async def order_heads(self, user_id: str) -> list[tuple[str, int, str]]:
        return [
            (name[6:], len(stream.events), "open")
            for name, stream in self.streams.items()
            if name.startswith("order:") and user_id in stream.members
        ]

    # --- TokenVerifier -------------------------------------------------------------------------------------------

    def forget(self, session_id: str) -> None:
        """It asks every time."""

    async def verify(self, token: str) -> Identity:
        await asyncio.sleep(0)
        try:
            user_id, session_id, expires = token.rpartition(".")[2].split("/")
        except ValueError:
            raise Refusal(Code.UNAUTHENTICATED) from None
        if session_id in self.revoked:
            raise Refusal(Code.SESSION_REVOKED)
        if int(expires) <= time.time() * 1000:
            raise Refusal(Code.TOKEN_EXPIRED)
        if is_ticket(token):
            if token not in self.tickets:
                raise Refusal(Code.TOKEN_EXPIRED)
            self.tickets.discard(token)
        return Identity(user_id, session_id, int(expires))

    async def check_session(self, session_id: str) -> None:
        await asyncio.sleep(0)
        if session_id in self.revoked:
            raise Refusal(Code.SESSION_REVOKED)
