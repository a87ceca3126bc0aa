"""B1, one-to-one durable chat: a sender's message is ordered, committed with fsync, acknowledged, and at the receiver's socket.

An open loop of messages over many pairs, at rising rates until one is not sustained. Every message is checked: acknowledged
ones must arrive, once, in the order of their conversation.
"""

import asyncio
import contextlib
import gc
import math
from array import array
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Final

import msgspec
import uuid_utils

from benchmarks.figures import P99_LIMIT_MS, Latency, Schedule, Usage, latency, per_thousand
from benchmarks.load.http import HttpPool
from benchmarks.load.sockets import CALLS, ChatSocket, Sockets
from benchmarks.load.ticker import Ticker
from benchmarks.machine import Meter, pss_bytes
from benchmarks.people import Person, conversations
from benchmarks.target import Target

TEXT_BYTES: Final = 200
WARM_S: Final = 1.0
_DRAIN_LIMIT_S: Final = 6.0
_BACKLOG_S: Final = 2.0
"""Where so many seconds' worth of messages wait for their acknowledgement, the rate is not sustained and the step ends."""
_FINEST_TICK_S: Final = 0.00025
_CONVERSATION: Final = b'{"push":{"channel":"conversation:'
_TEXT: Final = b'"text":"'
_MARK_BYTES: Final = 14


class ChatStep(msgspec.Struct, frozen=True, kw_only=True):
    """One rate in one round. Latencies are from the scheduled send; the warm-up second is not in them, but in all else."""

    rate: float
    seconds: float
    sent: int
    acknowledged: int
    delivered: int
    refused: dict[str, int]
    lost: int
    """Acknowledged and not delivered."""
    doubled: int
    disordered: int
    overloaded: bool
    reached_per_s: float
    """Messages delivered per second of the whole step, warm-up included."""
    ack: Latency | None
    delivery: Latency | None
    lateness: Latency | None
    """How late the generator sent; part of the latencies above."""
    usage: Usage
    server_cpu_s_per_1000: float | None
    by_role_cpu_s_per_1000: dict[str, float]
    sustained: bool
    faults: list[str]


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What all sessions of B1 and their live conversations take, in KiB a session: beyond the platform without sessions."""

    sessions: int
    conversations: int
    gateways: int
    """Processes that hold them."""
    gateway_kib_per_session: float
    all_kib_per_session: float
    all_mib: float
    """All processes of the platform, with the sessions."""


class Talk:
    """The traffic of one step."""

    def __init__(self, senders: Sequence[tuple[ChatSocket, bytes]], schedule: Schedule, step: int) -> None:
        self.schedule = schedule
        self.sent = self.acknowledged = self.delivered = self.doubled = self.disordered = 0
        self.refused: dict[str, int] = {}
        self.lost_connections: list[str] = []
        self.overloaded = False
        empty = array("d", [math.nan]) * schedule.total
        self.acks, self.deliveries, self.late = array("d", empty), array("d", empty), array("d", empty)
        self._senders = senders
        self._first_id = CALLS + step * 10_000_000
        self._step = b"%04d" % step
        self._filler = b"x" * (TEXT_BYTES - _MARK_BYTES)
        self._last = [-1] * len(senders)
        self._limit = max(500, int(schedule.rate * _BACKLOG_S))
        self.over = asyncio.Event()
        self.ended_s = 0.0
        """When the last message came."""
        self.began_s = perf_counter()

    @property
    def settled(self) -> int:
        return self.acknowledged + sum(self.refused.values())

    @property
    def _all_sent(self) -> bool:
        return self.sent == self.schedule.total or self.overloaded

    def check_over(self) -> None:
        """Nothing more is to come, or can come."""
        if self._all_sent and self.settled >= self.sent and self.delivered >= self.acknowledged:
            self.over.set()

    def send_due(self) -> None:
        """Send every message that is due by now."""
        now_s = perf_counter() - self.began_s
        due = self.schedule.due(now_s)
        if self.overloaded or self.sent - self.settled > self._limit:
            self.overloaded = True
            return
        for number in range(self.sent, due):
            socket, prefix = self._senders[number % len(self._senders)]
            socket.send(
                b'{"id":%d,%s"id":"%s","text":"%s:%08d:%s"}}}'
                % (self._first_id + number, prefix, str(uuid_utils.uuid7()).encode(), self._step, number, self._filler)
            )
            self.late[number] = now_s - self.schedule.at_s(number)
        self.sent = max(due, self.sent)

    def replied(self, command_id: int, line: bytes, now_s: float) -> None:
        number = command_id - self._first_id
        if not 0 <= number < self.sent:
            return
        if b'"error":{' in line[:40]:
            message = line.partition(b'"message":"')[2].partition(b'"')[0].decode()
            self.refused[message] = self.refused.get(message, 0) + 1
        else:
            self.acks[number] = now_s - self.began_s - self.schedule.at_s(number)
            self.acknowledged += 1
        if self._all_sent:
            self.check_over()

    def pushed(self, line: bytes, now_s: float) -> None:
        if not line.startswith(_CONVERSATION):
            return
        at = line.find(_TEXT) + len(_TEXT)
        if line[at : at + 4] != self._step:
            return
        number = int(line[at + 5 : at + 13])
        if not math.isnan(self.deliveries[number]):
            self.doubled += 1
            return
        self.ended_s = now_s - self.began_s
        self.deliveries[number] = self.ended_s - self.schedule.at_s(number)
        self.delivered += 1
        pair = number % len(self._senders)
        if number < self._last[pair]:
            self.disordered += 1
        self._last[pair] = number
        if self._all_sent:
            self.check_over()

    def lost(self, reason: str) -> None:
        self.lost_connections.append(reason)
        self.over.set()


class Chat:
    """Pairs that are connected and subscribed; `step` plays one rate."""

    def __init__(self, target: Target, pairs: Sequence[tuple[Person, Person]]) -> None:
        self._target = target
        self._pairs = pairs
        self._sockets = Sockets(target.ws_url)
        self._senders: list[tuple[ChatSocket, bytes]] = []
        self._steps = 0
        self._before: dict[str, int] | None = None

    async def __aenter__(self) -> "Chat":
        async with HttpPool(self._target.host, self._target.port) as http:
            ids = await conversations(http, self._pairs)
        self._before = memory(self._target)
        try:
            sockets = await self._sockets.add([person.token for pair in self._pairs for person in pair])
            for (sender, receiver), identifier in zip(zip(sockets[::2], sockets[1::2], strict=True), ids, strict=True):
                await receiver.call("subscribe", {"channel": f"conversation:{identifier}"})
                prefix = f'"rpc":{{"method":"message.send","data":{{"conversation_id":"{identifier}",'
                self._senders.append((sender, prefix.encode()))
        except BaseException:
            await self._sockets.__aexit__()
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._sockets.__aexit__()

    def held(self) -> Held | None:
        """What the sessions take by now; None where the platform's processes are not known."""
        after, before, roles = memory(self._target), self._before, self._target.roles()
        if after is None or before is None or roles is None:
            return None
        sessions = len(self._sockets.open)
        gateways = list(roles.values()).count("gateway")
        return Held(
            sessions=sessions,
            conversations=len(self._senders),
            gateways=gateways,
            gateway_kib_per_session=round((after["gateway"] - before["gateway"]) / sessions / 1024, 2),
            all_kib_per_session=round((sum(after.values()) - sum(before.values())) / sessions / 1024, 2),
            all_mib=round(sum(after.values()) / 2**20, 1),
        )

    async def step(self, rate: float, seconds: float, tell: Callable[[str], None]) -> ChatStep:
        """Send `rate` messages a second for the warm-up and `seconds`, and wait until all have arrived or 6 s are over."""
        self._steps += 1
        schedule = Schedule(rate, WARM_S + seconds)
        gc.collect()
        gc.disable()
        meter = Meter(self._target.roles)
        talk = Talk(self._senders, schedule, self._steps)
        for socket in self._sockets.open:
            socket.traffic = talk
        ticker = Ticker(max(1 / rate, _FINEST_TICK_S), talk.send_due)
        talk.began_s = ticker.began_s
        try:
            await self._play(talk, tell)
        finally:
            ticker.stop()
            usage = meter.stop()
            gc.enable()
        return judged(talk, usage, rate, seconds)

    async def _play(self, talk: Talk, tell: Callable[[str], None]) -> None:
        end_s, told_s = talk.schedule.seconds, 1.0
        while (now_s := perf_counter() - talk.began_s) < end_s and not talk.overloaded and not talk.lost_connections:
            if now_s >= told_s:
                tell(f"{now_s:.0f} of {end_s:.0f} s, {talk.delivered:,} delivered")
                told_s += 1.0
            await asyncio.sleep(0.1)
        talk.send_due()
        talk.check_over()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(talk.over.wait(), _DRAIN_LIMIT_S)


def memory(target: Target) -> dict[str, int] | None:
    """The proportional set size of the platform's processes by role, in bytes."""
    roles = target.roles()
    return None if roles is None else pss_bytes(roles)


def judged(talk: Talk, usage: Usage, rate: float, seconds: float) -> ChatStep:
    warm = math.ceil(rate * WARM_S)
    ack, delivery, lateness = (
        latency([sample for sample in samples[warm:] if not math.isnan(sample)])
        for samples in (talk.acks, talk.deliveries, talk.late)
    )
    faults = usage.faults()
    lost = sum(1 for acked, came in zip(talk.acks, talk.deliveries, strict=True) if acked == acked and came != came)
    unanswered = talk.sent - talk.settled
    for count, what in (
        (lost, "acknowledged but not delivered in time"), (talk.doubled, "delivered twice"),
        (talk.disordered, "out of order"), (unanswered, "without an answer"), (sum(talk.refused.values()), "refused"),
        (len(talk.lost_connections), "connections lost"),
    ):  # fmt: skip
        if count:
            faults.append(f"{count:,} {what}")
    if talk.overloaded:
        faults.append(f"overloaded: stopped after {talk.sent:,} messages")
    whole = not (lost or talk.doubled or talk.disordered or unanswered or talk.refused or talk.lost_connections)
    fast = delivery is not None and delivery.p99_ms <= P99_LIMIT_MS
    return ChatStep(
        rate=rate,
        seconds=seconds,
        sent=talk.sent,
        acknowledged=talk.acknowledged,
        delivered=talk.delivered,
        refused=talk.refused,
        lost=lost,
        doubled=talk.doubled,
        disordered=talk.disordered,
        overloaded=talk.overloaded,
        reached_per_s=round(talk.delivered / max(talk.ended_s, 1e-9), 1),
        ack=ack,
        delivery=delivery,
        lateness=lateness,
        usage=usage,
        server_cpu_s_per_1000=per_thousand(usage.servers_cpu_s, talk.delivered),
        by_role_cpu_s_per_1000={
            role: round(each, 4)
            for role, cpu_s in (usage.servers or {}).items()
            if (each := per_thousand(cpu_s, talk.delivered))
        },
        sustained=whole and fast and not talk.overloaded and not usage.void,
        faults=faults,
    )
