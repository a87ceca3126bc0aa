"""How hosts and placement talk: heartbeats one way, the table the other, and a probe that tells a crash at once."""

import asyncio
import logging
import os
from typing import Final

import msgspec

from actors.background import Background
from actors.host import Host
from actors.placement import (
    HEARTBEAT_S,
    HEARTBEAT_SUBJECT,
    MISSED,
    TABLE_SUBJECT,
    Heartbeat,
    Placement,
    Table,
    probe_subject,
)
from domain.ports import Broker, BrokerUnavailable, Clock, Metrics, NoResponders, Received, RequestTimeout

log = logging.getLogger(__name__)

PROBE_S: Final = 0.1
"""How often placement asks each host's connection for a sign of life."""

_encoder = msgspec.msgpack.Encoder()
_tables = msgspec.msgpack.Decoder(Table)
_heartbeats = msgspec.msgpack.Decoder(Heartbeat)


class HostMember:
    """A host's side: says that it lives, and carries out what the table asks of it."""

    def __init__(self, host: Host, broker: Broker, clock: Clock, metrics: Metrics) -> None:
        self._host = host
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._table = Table(0, {})
        self._news = asyncio.Event()
        self._background = Background()

    async def start(self) -> None:
        await self._broker.subscribe(probe_subject(self._host.settings.incarnation), self._probed)
        await self._broker.subscribe(TABLE_SUBJECT, lambda received: self._told(received.data))
        self._background.spawn(self._beat())
        self._background.spawn(self._carry_out())

    async def stop(self) -> None:
        await self._background.stop()

    def _probed(self, received: Received) -> None:
        self._background.spawn(self._broker.publish(received.reply, b""))

    def _told(self, data: bytes) -> None:
        table = _tables.decode(data)
        mine = set(table.owners.get(self._host.settings.incarnation, ()))
        if table.version > self._table.version:
            self._table = table
            self._host.wanted = mine
            self._news.set()
        elif table.version == self._table.version and mine != self._host.partitions.keys():
            self._news.set()

    async def _beat(self) -> None:
        settings = self._host.settings
        while True:
            sent_s = self._clock.monotonic_s()
            beat = Heartbeat(
                settings.name, settings.incarnation, os.getpid(), len(self._host.partitions), self._table.version
            )
            try:
                answer = await self._broker.request(HEARTBEAT_SUBJECT, _encoder.encode(beat), 2 * HEARTBEAT_S)
            except (RequestTimeout, NoResponders, BrokerUnavailable):
                self._metrics.count("heartbeats_missed")
            else:
                self._host.leased(sent_s)
                self._told(answer)
            await asyncio.sleep(max(0.0, sent_s + HEARTBEAT_S - self._clock.monotonic_s()))

    async def _carry_out(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            await self._host.assign(self._table.owners.get(self._host.settings.incarnation, ()))


class PlacementService:
    """Placement's side: hears heartbeats, probes hosts, publishes the table. Two of them at once are harmless."""

    def __init__(self, broker: Broker, clock: Clock, metrics: Metrics, expected: int = 0) -> None:
        """`expected`: how many hosts there should be; 0 where nobody knows."""
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self.placement = Placement(clock.now_ms(), expected)
        self._trust_probes_from_s = float("-inf")
        self._background = Background()

    async def start(self) -> None:
        self._broker.on_lost(self._doubt_probes)
        self._broker.on_reconnect(self._doubt_probes)
        await self._broker.subscribe(HEARTBEAT_SUBJECT, self._heard)
        self._background.spawn(self._watch())

    async def stop(self) -> None:
        await self._background.stop()

    def died(self, incarnation: str) -> None:
        """News from elsewhere (Ray) that a host's process is gone for good."""
        if self.placement.died(incarnation, for_good=True):
            self._announce(f"{incarnation} died")

    def _doubt_probes(self) -> None:
        """After our own connection was lost, hosts may be as busy with theirs: only heartbeats tell who lives."""
        self._trust_probes_from_s = self._clock.monotonic_s() + MISSED * HEARTBEAT_S

    def _heard(self, received: Received) -> None:
        beat = _heartbeats.decode(received.data)
        if self.placement.heard(beat, self._clock.monotonic_s()):
            self._announce(f"{beat.name} is here")
        self._background.spawn(self._send(received.reply))

    async def _send(self, subject: str) -> None:
        try:
            await self._broker.publish(subject, _encoder.encode(self.placement.table))
        except BrokerUnavailable:
            self._metrics.count("tables_not_sent")

    def _announce(self, why: str) -> None:
        table = self.placement.table
        log.info("table %d: %s; %s", table.version, why, {host: len(owned) for host, owned in table.owners.items()})
        self._metrics.count("tables")
        self._background.spawn(self._send(TABLE_SUBJECT))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PROBE_S)
            if self.placement.tick(self._clock.monotonic_s()):
                self._announce("heartbeats stopped")
            await asyncio.gather(*(self._probe(beat.incarnation) for beat in self.placement.hosts().values()))

    async def _probe(self, incarnation: str) -> None:
        """A host that hangs still has its connection and is left to the heartbeats; one that crashed has none."""
        try:
            await self._broker.request(probe_subject(incarnation), b"", PROBE_S)
        except NoResponders:
            if self._clock.monotonic_s() >= self._trust_probes_from_s and self.placement.died(incarnation):
                self._metrics.count("hosts_gone")
                self._announce(f"{incarnation} has no connection")
        except (RequestTimeout, BrokerUnavailable):
            pass
