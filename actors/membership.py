"""How hosts and placement talk: heartbeats one way, the table the other, and a probe that tells a crash at once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import msgspec

from actors.background import Background
from actors.host import Host
from actors.placement import (
    HEARTBEAT_S,
    HEARTBEAT_SUBJECT,
    MISSED,
    TABLE_SUBJECT,
    Handover,
    Heartbeat,
    Placement,
    Table,
    handover_subject,
    probe_subject,
)
from domain.ports import Broker, BrokerUnavailable, Clock, Metrics, NoResponders, Received, RequestTimeout

log = logging.getLogger(__name__)

PROBE_S: Final = 0.1
"""How often placement asks each host's connection for a sign of life."""
HANDED_AT_ONCE: Final = 32
"""Partitions in one step of a handoff: as many as one transaction takes in a few milliseconds, so that each pauses briefly."""
HANDOVER_S: Final = 2.0
"""How long a new owner waits for the next step of a handoff before it takes what is left by the fence."""
LEAVE_S: Final = 15.0
RECONNECT_S: Final = 2.0
"""How long after placement has its connection to the broker back the hosts may take to have theirs."""
ASK_S: Final = 1.0
"""A host that wants to leave and hears nothing of placement for this long goes without it."""

_encoder = msgspec.msgpack.Encoder()
_tables = msgspec.msgpack.Decoder(Table)
_heartbeats = msgspec.msgpack.Decoder(Heartbeat)
_handovers = msgspec.msgpack.Decoder(Handover)


class HostMember:
    """A host's side: says that it lives, and carries out what the table asks of it."""

    def __init__(self, host: Host, broker: Broker, clock: Clock, metrics: Metrics) -> None:
        self._host = host
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._table = Table(0, {})
        self._news = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._leaving = False
        self._heard_leaving = False
        self._alone = False
        self._awaited: set[int] = set()
        self._freed: dict[int, float] = {}
        self._patience_until_s = 0.0
        self._background = Background()

    async def start(self) -> None:
        me = self._host.settings.incarnation
        await self._broker.subscribe(probe_subject(me), self._probed)
        await self._broker.subscribe(handover_subject(me), self._handed)
        await self._broker.subscribe(TABLE_SUBJECT, lambda received: self._told(received.data))
        self._background.spawn(self._beat())
        self._background.spawn(self._carry_out_forever())

    async def stop(self) -> None:
        await self._background.stop()

    async def leave(self, timeout_s: float = LEAVE_S) -> bool:
        """Hand over every partition to the other hosts, commands under way included; True when that is done.

        False where there is nobody to hand over to or to ask, or it took longer: then the host still owns some.
        """
        self._leaving = True
        self._beat_now.set()
        began_s = self._clock.monotonic_s()
        while self._host.partitions and not self._alone:
            waited_s = self._clock.monotonic_s() - began_s
            if waited_s > timeout_s or (waited_s > ASK_S and not self._heard_leaving):
                break
            await asyncio.sleep(0.02)
        return not self._host.partitions

    # --- heartbeats ------------------------------------------------------------------------------------------------

    def _probed(self, received: Received) -> None:
        self._background.spawn(self._send(received.reply, b""))

    async def _send(self, subject: str, data: bytes) -> None:
        try:
            await self._broker.publish(subject, data)
        except BrokerUnavailable:
            self._metrics.count("replies_lost")

    def _told(self, data: bytes) -> None:
        table = _tables.decode(data)
        mine = set(table.owners.get(self._host.settings.incarnation, ()))
        if table.version > self._table.version:
            self._table = table
            self._host.ownership.wanted = mine
            self._patience_until_s = self._clock.monotonic_s() + HANDOVER_S
            self._news.set()
        elif self._host.ownership.wanted != self._host.partitions.keys() and not self._awaited:
            self._news.set()  # what was lost is taken again, though this table may be of a placement that knows less

    async def _beat(self) -> None:
        settings = self._host.settings
        while True:
            self._beat_now.clear()
            sent_s = self._clock.monotonic_s()
            try:
                beat = Heartbeat(
                    settings.name,
                    settings.incarnation,
                    settings.process,
                    len(self._host.partitions),
                    self._table.version,
                    await self._host.writer(),
                    self._leaving,
                    len(self._host.activations),
                    self._host.activations.deepest(),
                )
                answer = await self._broker.request(HEARTBEAT_SUBJECT, _encoder.encode(beat), 2 * HEARTBEAT_S)
                self._told(answer)
                self._host.leased(sent_s)
                self._heard_leaving = beat.leaving
                self._alone = beat.leaving and bool(self._table.owners.get(settings.incarnation))
            except (RequestTimeout, NoResponders, BrokerUnavailable):
                self._metrics.count("heartbeats_missed")
            except Exception:
                log.exception("a heartbeat failed")
            await _any_news(self._beat_now, max(0.0, sent_s + HEARTBEAT_S - self._clock.monotonic_s()))

    # --- the table -------------------------------------------------------------------------------------------------

    async def _carry_out_forever(self) -> None:
        while True:
            wait_s = max(0.0, self._patience_until_s - self._clock.monotonic_s()) if self._awaited else None
            if not await _any_news(self._news, wait_s):
                if not self._awaited:
                    continue  # the last of them came meanwhile
                log.warning("%d partitions were not handed over: they are taken", len(self._awaited))
                self._metrics.count("handovers_missed")
            self._news.clear()
            try:
                await self._carry_out(self._table)
            except Exception:
                log.exception("the table could not be carried out")
                await asyncio.sleep(PROBE_S)
                self._news.set()

    async def _carry_out(self, table: Table) -> None:
        me = self._host.settings.incarnation
        mine = set(table.owners.get(me, ()))
        giving = set(table.giving.get(me, ())) & self._host.partitions.keys()
        self._awaited = set()
        if self._clock.monotonic_s() < self._patience_until_s:
            coming = {n for giver, given in table.giving.items() if giver != me for n in given}
            now_s = self._clock.monotonic_s()
            free = {n for n, heard_s in self._freed.items() if now_s - heard_s < HANDOVER_S}
            self._awaited = (coming & mine) - self._host.partitions.keys() - free
        await self._host.ownership.end(table.ended)
        if self._table is not table:
            return
        await self._host.assign(mine, self._awaited, giving)
        await self._hand_over(table, giving)

    async def _hand_over(self, table: Table, giving: set[int]) -> None:
        """In small steps, each to its new owner, so that no partition is without an owner for long."""
        for owner, owned in table.owners.items():
            for step in _steps(sorted(giving.intersection(owned)), HANDED_AT_ONCE):
                if self._table is not table:
                    return  # the newer table says who gets the rest
                await self._host.ownership.hand_over(step)
                try:
                    handover = _encoder.encode(Handover(table.version, step))
                    await self._broker.request(handover_subject(owner), handover, HANDOVER_S)
                except (RequestTimeout, NoResponders, BrokerUnavailable) as error:
                    log.warning("%s did not take %d partitions in time: %r", owner, len(step), error)

    def _handed(self, received: Received) -> None:
        self._background.spawn(self._take(_handovers.decode(received.data), received.reply))

    async def _take(self, handover: Handover, reply: str) -> None:
        """The old owner may have heard of the table before us: then `_carry_out` finds these free."""
        self._freed.update(dict.fromkeys(handover.partitions, self._clock.monotonic_s()))
        self._patience_until_s = self._clock.monotonic_s() + HANDOVER_S
        await self._host.ownership.retake(handover.partitions)
        self._awaited.difference_update(handover.partitions)
        await self._send(reply, b"")


class PlacementService:
    """Placement's side: hears heartbeats, probes hosts, publishes the table. Two of them at once are harmless."""

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        metrics: Metrics,
        expected: int = 0,
        end: Callable[[str, float], Awaitable[bool]] | None = None,
    ) -> None:
        """`expected`: how many hosts there should be; 0 where nobody knows.

        `end` is asked, again and again for half a minute, to end the process of a host that was given up because its
        heartbeats stopped, and told for how many seconds they have; True: it has been ended. One that is only late is
        heard again before that.
        """
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._end = end
        self._ending: set[str] = set()
        self.placement = Placement(clock.now_ms(), expected)
        self._deaf_rounds = 0
        self._trust_probes_from_s = float("-inf")
        self._background = Background()

    async def start(self) -> None:
        self._broker.on_lost(self._doubt_probes)
        self._broker.on_reconnect(self._back)
        await self._broker.subscribe(HEARTBEAT_SUBJECT, self._heard)
        self._background.spawn(self._watch())

    async def stop(self) -> None:
        await self._background.stop()

    def died(self, incarnation: str) -> None:
        """News from elsewhere (Ray) that a host's process is gone for good."""
        if self.placement.died(incarnation, for_good=True):
            self._metrics.count("failovers")
            self._announce(f"{incarnation} died")

    def _back(self) -> None:
        self.placement.excuse(self._clock.monotonic_s() + RECONNECT_S)
        self._doubt_probes()

    def _doubt_probes(self) -> None:
        """After our own connection was lost, hosts may be as busy with theirs: only heartbeats tell who lives."""
        self._trust_probes_from_s = self._clock.monotonic_s() + MISSED * HEARTBEAT_S

    def _heard(self, received: Received) -> None:
        beat = _heartbeats.decode(received.data)
        if self.placement.heard(beat, self._clock.monotonic_s()):
            self._announce(f"{beat.name} {'leaves' if beat.leaving else 'is here'}")
        self._background.spawn(self._send(received.reply))

    async def _send(self, subject: str) -> None:
        try:
            await self._broker.publish(subject, _encoder.encode(self.placement.table))
        except BrokerUnavailable:
            self._metrics.count("tables_not_sent")

    def _announce(self, why: str) -> None:
        table = self.placement.table
        owned = {host: len(owned) for host, owned in table.owners.items()}
        log.info(
            "table %d: %s; %s, to be handed over: %d", table.version, why, owned, sum(map(len, table.giving.values()))
        )
        self._metrics.count("tables")
        self._background.spawn(self._send(TABLE_SUBJECT))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PROBE_S)
            try:
                if await self._hears():
                    await self._look()
            except Exception:
                log.exception("the hosts could not be looked after")

    async def _look(self) -> None:
        now_s = self._clock.monotonic_s()
        if self.placement.tick(now_s):
            self._metrics.count("failovers")
            self._announce("heartbeats stopped")
        for beat, for_s in self.placement.silent(now_s):
            if self._end is not None and beat.process and beat.process not in self._ending:
                self._ending.add(beat.process)
                self._background.spawn(self._end_process(beat, for_s))
        await asyncio.gather(*(self._probe(beat.incarnation) for beat in self.placement.hosts().values()))

    async def _hears(self) -> bool:
        """Silence counts only while our own hearing is proved: a PONG comes behind every heartbeat there was for us.

        A broker that hangs, a connection that is cut, or our own sleep make nobody silent.
        """
        try:
            await self._broker.confirm(PROBE_S)
        except BrokerUnavailable:
            self._deaf_rounds += 1
            self.placement.excuse(self._clock.monotonic_s())
            return False
        if self._deaf_rounds > MISSED:
            self._back()
        self._deaf_rounds = 0
        return True

    async def _end_process(self, beat: Heartbeat, for_s: float) -> None:
        assert self._end is not None
        try:
            if await self._end(beat.process, for_s):
                log.warning("the process of %s was ended after %.1f s of silence", beat.name, for_s)
                self._metrics.count("hosts_ended")
                self.placement.forget_silent(beat.name)
        finally:
            self._ending.discard(beat.process)

    async def _probe(self, incarnation: str) -> None:
        """A host that hangs still has its connection and is left to the heartbeats; one that crashed has none."""
        try:
            await self._broker.request(probe_subject(incarnation), b"", PROBE_S)
        except NoResponders:
            if self._clock.monotonic_s() >= self._trust_probes_from_s and self.placement.died(incarnation):
                self._metrics.count("failovers")
                self._announce(f"{incarnation} has no connection")
        except (RequestTimeout, BrokerUnavailable):
            pass


async def _any_news(event: asyncio.Event, timeout_s: float | None) -> bool:
    """Wait for the event; False when the time is over first."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True


def _steps(numbers: list[int], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(numbers), size):
        yield tuple(numbers[start : start + size])
