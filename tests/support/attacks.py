"""A seeded storm over several hosts of one platform, and the accounts that must balance after it."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from actors.host import Host
from domain.commands import Accepted, Attached, Query, Status
from domain.errors import RETRYABLE, Refusal
from domain.ids import partition_of
from domain.ports import BrokerUnavailable, Committed, Turn
from storage.memory_broker import MemoryBroker
from tests.support.runtime import FaultyLog, World, eventually, new_id, person

TROUBLES = ("assign", "assign", "assign", "before", "after", "doubt", "outage", "crash", "forget", "away", "release")


class Said(msgspec.Struct):
    """An acknowledged message."""

    room: str
    command_id: str
    text: str
    answer: Accepted


class Storm:
    """Hosts that take partitions from one another, fail, crash and lose the broker, while people talk.

    Nobody has a lease: whatever a host says without a commit it must have checked with the log.
    """

    def __init__(self, seed: int, rooms: int = 5, people: int = 6, without: Sequence[str] = ()) -> None:
        self.rng = random.Random(seed)
        self.world = World()
        self.people = [person() for _ in range(people)]
        self.rooms = [new_id() for _ in range(rooms)]
        self.partitions = sorted({partition_of(room) for room in self.rooms})
        self.said: list[Said] = []
        self.faults: list[str] = []
        self.calm = asyncio.Event()
        self.troubles = [name for name in TROUBLES if name not in without]
        self.outages = 0
        self._made = 0
        self.table: dict[Host, set[int]] = {}
        self._beating: dict[Host, asyncio.Task[None]] = {}

    async def host(self) -> Host:
        self._made += 1
        host = await self.world.host(f"host-{self._made}", leased=False)
        slow(self.world.logs[-1], self.rng)
        broker = host._broker
        assert isinstance(broker, MemoryBroker)
        confirm = broker.confirm

        async def confirmed(timeout_s: float = 2.0) -> None:
            """A PONG comes behind all that was published before on this connection, or never."""
            connection = self.outages
            await asyncio.sleep(0)
            while broker.bus.is_up and broker.bus.undelivered:
                await asyncio.sleep(0)
            if connection != self.outages:
                raise BrokerUnavailable("the connection was lost")
            await confirm(timeout_s)

        broker.confirm = confirmed  # type: ignore[method-assign]
        self._beating[host] = asyncio.create_task(self.beat(host))
        return host

    async def beat(self, host: Host) -> None:
        """Now and then a host hears of the table and carries it out, later than others or sooner."""
        while True:
            host.ownership.wanted = set(self.table.get(host, ()))
            if host.ownership.wanted != host.partitions.keys():
                await host.assign(host.ownership.wanted)
            await asyncio.sleep(self.rng.uniform(0.005, 0.06))

    def assign(self) -> None:
        """A new table."""
        self.table = {host: set() for host in self.world.hosts}
        for number in self.partitions:
            self.table[self.rng.choice(self.world.hosts)].add(number)

    async def run(self, for_s: float) -> None:
        await self.world.start()
        await self.host()
        await self.host()
        self.assign()
        for room in self.rooms:
            await self.insist("open", 0, room, new_id(), member_ids=[p.id for p in self.people])
        talking = [asyncio.create_task(self.talk(n)) for n in range(len(self.people))]
        end_s = time.monotonic() + for_s
        while time.monotonic() < end_s:
            await self.trouble()
            await asyncio.sleep(self.rng.uniform(0.0, 0.04))
        self.calm.set()
        for log in self.world.logs:
            log.fail_before = log.fail_after = 0
        await asyncio.gather(*talking)
        await self.balance()
        for task in self._beating.values():
            task.cancel()
        await asyncio.gather(*self._beating.values(), return_exceptions=True)

    async def trouble(self) -> None:
        rng, world = self.rng, self.world
        host = rng.choice(world.hosts)
        log = world.logs[-1] if rng.random() < 0.5 else rng.choice(world.logs)
        match rng.choice(self.troubles):
            case "assign":
                self.assign()
            case "before":
                log.fail_before = 1
            case "after":
                log.fail_after = 1
            case "doubt":
                host.doubt(set(rng.sample(self.partitions, 2)))
            case "away":
                log.away = True
                await asyncio.sleep(rng.uniform(0.0, 0.05))
                log.away = False
            case "release":
                await host.ownership.hand_over(rng.sample(self.partitions, 2))
            case "forget":
                for activation in list(host.activations.values()):
                    if not activation.uncommitted and not activation.paused and activation.ready:
                        host.forget(activation)
            case "outage":
                self.outages += 1
                world.bus.go_down()
                await asyncio.sleep(rng.uniform(0.0, 0.03))
                world.bus.come_back()
            case "crash":
                if len(world.hosts) > 1:
                    self._beating.pop(host).cancel()
                    await world.crash(host)
                    await self.host()
                    self.assign()

    async def talk(self, number: int) -> None:
        """Say things until it is calm; now and then twice at once, or again after a while, or ask what has landed."""
        rng = random.Random(self.rng.random())
        while not self.calm.is_set():
            room, made = rng.choice(self.rooms), new_id()
            head = max((s.answer.offset for s in self.said if s.room == room), default=0)
            twice = rng.choice((1, 1, 1, 2, 3))
            answers = await asyncio.gather(*(self.insist("send", number, room, made, text=made) for _ in range(twice)))
            first = answers[0]
            if any((a.offset, a.at, a.events) != (first.offset, first.at, first.events) for a in answers):
                self.faults.append(f"different answers for {made}: {answers}")
            if first.offset <= head and not first.replayed:
                self.faults.append(f"{made} got offset {first.offset} after {head} was acknowledged")
            self.said.append(Said(room, made, made, first))
            await self.question(rng, number)
            await asyncio.sleep(rng.uniform(0.0, 0.01))

    async def question(self, rng: random.Random, number: int) -> None:
        old = rng.choice(self.said[-50:])
        asker = self.people[number]
        heads = [s.answer.offset for s in self.said if s.room == old.room]
        match rng.randrange(4):
            case 0:
                landed = await self.ask(Query("conversation", old.room, "status", asker, old.command_id))
                if landed != Status(True, old.answer.offset):
                    self.faults.append(f"{old.command_id} was acknowledged, and its status is {landed}")
            case 1:
                attached = await self.ask(Query("conversation", old.room, "attach", asker))
                if not isinstance(attached, Attached) or attached.head < max(heads):
                    self.faults.append(f"attached at {attached} when {max(heads)} was acknowledged")
            case 2:
                by = next(n for n, p in enumerate(self.people) if f'"{p.id}"'.encode() in old.answer.events[0].data)
                again = await self.insist("send", by, old.room, old.command_id, text=old.text)
                if (again.offset, again.at, again.events) != (old.answer.offset, old.answer.at, old.answer.events):
                    self.faults.append(f"{old.command_id} was {old.answer} and is {again}")
                if not again.replayed:
                    self.faults.append(f"{old.command_id} is not known to be repeated")

    async def ask(self, query: Query) -> Any:
        while True:
            try:
                return await self.world.router.ask(query, 1.0)
            except Refusal as refusal:
                if refusal.code not in RETRYABLE:
                    raise

    async def insist(self, name: str, number: int, room: str, command_id: str, **payload: Any) -> Accepted:
        """Ask with the same id until there is an answer."""
        while True:
            try:
                return await self.world.tell(name, self.people[number], room, command_id, timeout_s=1.0, **payload)
            except Refusal as refusal:
                if refusal.code not in RETRYABLE:
                    raise

    async def balance(self) -> None:
        """Every acknowledged message once, where it was said to be; no holes; everything published."""
        store = self.world.store
        for room in self.rooms:
            entries = store.streams[f"conversation:{room}"]
            assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1))
            ids = [entry.command_id for entry in entries if entry.command_id]
            assert len(set(ids)) == len(ids)
        for said in self.said:
            entry = store.streams[f"conversation:{said.room}"][said.answer.offset - 1]
            assert entry.command_id == said.command_id
            assert entry.body == said.answer.events[0].data
        assert self.faults == []
        for room in self.rooms:
            stream = f"conversation:{room}"
            await eventually(lambda s=stream: set(self.world.heard(s)) == set(range(1, store.end(s) + 1)), 3.0)
        for host in self.world.hosts:
            assert all(a.uncommitted == 0 for a in host.activations.values())
            assert not any(a.paused or a.mailbox for a in host.activations.values())
            assert {a.partition for a in host.activations.values()} <= host.partitions.keys()

    def out_of_order(self) -> list[tuple[str, int, int]]:
        """(stream, offset seen first, offset expected) wherever a subscriber would have found a hole."""
        found = []
        for room in self.rooms:
            stream, end = f"conversation:{room}", 0
            for offset in self.world.heard(stream):
                if offset > end + 1:
                    found.append((stream, offset, end + 1))
                end = max(end, offset)
        return found


def slow(log: FaultyLog, rng: random.Random) -> None:
    """Let the log take its time: commits, reads and takeovers come apart."""
    inner, commit, load, take = log._inner, log.commit, log._inner.load, log._inner.take
    read, find = inner.read_partition, log.find_commands

    async def pause() -> None:
        await asyncio.sleep(rng.choice((0, 0, 0.001, 0.004)))

    async def slow_commit(turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        await pause()
        committed = await commit(turns, heads)
        await pause()
        return committed

    def slowed(work: Any) -> Any:
        async def done(*arguments: Any) -> Any:
            await pause()
            result = await work(*arguments)
            await pause()
            return result

        return done

    log.commit = slow_commit  # type: ignore[method-assign]
    log.load, log.take = slowed(load), slowed(take)  # type: ignore[attr-defined]
    log.read_partition, log.find_commands = slowed(read), slowed(find)  # type: ignore[attr-defined, method-assign]
