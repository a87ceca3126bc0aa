"""Hosts, a router and a reader of one platform in one process: real runtime, in-memory store and broker."""

import asyncio
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import uuid_utils

from actors.host import Host, HostSettings
from actors.kinds import Kinds, kinds
from actors.router import BrokerRouter
from domain.aggregate import Facts, Need
from domain.commands import Accepted, Actor, Command, Delivery
from domain.ids import PARTITIONS
from domain.ports import Committed, NoMetrics, OutcomeUnknown, PartitionLog, Received, StoreUnavailable, Turn
from storage.memory import MemoryFacts, MemoryPartitionLog, MemoryReadModels, MemoryStore
from storage.memory_broker import MemoryBroker, MemoryBus


class RealClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


class GivenFacts:
    """A fact source that answers from a dictionary, and messages from the store."""

    def __init__(self, inner: Any) -> None:
        self.known: dict[Need, Any] = {}
        self._inner = inner

    async def facts(self, needs: Sequence[Need]) -> Facts:
        rest = [need for need in needs if need not in self.known]
        found = await self._inner.facts(rest)
        return Facts({need: self.known.get(need, found.get(need)) for need in needs})


class FaultyLog:
    """A partition log whose commits can be made to fail before or after they have happened."""

    def __init__(self, inner: PartitionLog) -> None:
        self._inner = inner
        self.fail_before = 0
        self.fail_after = 0
        self.away = False
        self.take_away = False
        self.held: asyncio.Event | None = None
        self.commits: list[list[Turn]] = []
        self.lookups = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _reach(self) -> None:
        if self.away:
            raise StoreUnavailable("the store is away")

    async def load(self, *arguments: Any) -> Any:
        self._reach()
        return await self._inner.load(*arguments)

    async def take(self, *arguments: Any) -> Any:
        self._reach()
        if self.take_away:
            raise StoreUnavailable("the store takes no takeovers")
        return await self._inner.take(*arguments)

    async def heads(self, *arguments: Any) -> Any:
        self._reach()
        return await self._inner.heads(*arguments)

    async def reminders(self, *arguments: Any) -> Any:
        self._reach()
        return await self._inner.reminders(*arguments)

    async def find_commands(self, keys: Sequence[tuple[str, str]]) -> Any:
        self._reach()
        self.lookups += len(keys)
        return await self._inner.find_commands(keys)

    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        if self.held is not None:
            await self.held.wait()
        self._reach()
        if self.fail_before:
            self.fail_before -= 1
            raise OutcomeUnknown("the connection was lost before the commit")
        committed = await self._inner.commit(turns, heads)
        self.commits.append(list(turns))
        if self.fail_after:
            self.fail_after -= 1
            raise OutcomeUnknown("the connection was lost after the commit")
        return committed


class World:
    """One platform; `deliveries` is what a gateway that listens to everything would have heard."""

    def __init__(self, rules: Kinds | None = None) -> None:
        self.bus = MemoryBus()
        self.store = MemoryStore()
        self.kinds = rules or kinds(b"pepper")
        self.clock = RealClock()
        self.hosts: list[Host] = []
        self.logs: list[FaultyLog] = []
        self.facts = GivenFacts(MemoryFacts(self.store))
        self.router = BrokerRouter(MemoryBroker(self.bus), self.clock, NoMetrics())
        self.deliveries: list[Delivery] = []

    async def start(self) -> "World":
        await MemoryBroker(self.bus).subscribe("ev.conversation.*", self._heard)
        await MemoryBroker(self.bus).subscribe("ev.order.*", self._heard)
        return self

    def _heard(self, received: Received) -> None:
        self.deliveries.append(msgspec.msgpack.decode(received.data, type=Delivery))

    def heard(self, stream: str) -> list[int]:
        return [p.offset for d in self.deliveries if d.stream == stream for p in d.items]

    async def host(self, name: str = "host-0", *, leased: bool = True, assigned: bool = True, **limits: Any) -> Host:
        """A running host that owns every partition as far as it knows (none, unless `assigned`)."""
        log = FaultyLog(MemoryPartitionLog(self.store))
        settings = HostSettings(name=name, incarnation=f"{name}-{uuid.uuid4().hex[:6]}", retry_s=0.01, **limits)
        host = Host(
            settings,
            log,  # type: ignore[arg-type]
            self.facts,
            MemoryReadModels(self.store),
            MemoryBroker(self.bus),
            self.clock,
            NoMetrics(),
            self.kinds,
        )
        self.hosts.append(host)
        self.logs.append(log)
        await host.start()
        if leased:
            host.leased(self.clock.monotonic_s() + 3_600)
        if assigned:
            await host.assign(range(PARTITIONS))
        return host

    async def crash(self, host: Host) -> None:
        """The host's process is gone: it does and says nothing any more."""
        self.hosts.remove(host)
        for task in list(host._background._tasks):
            task.cancel()
        await host._broker.close()

    async def stop(self) -> None:
        for host in self.hosts:
            await host.stop()

    async def tell(self, name: str, actor: Actor, stream_id: str, command_id: str = "", **payload: Any) -> Accepted:
        """Send a command through the router, as a gateway would."""
        kind = payload.pop("kind", "conversation")
        version = payload.pop("expected_version", None)
        timeout_s = payload.pop("timeout_s", 5.0)
        if not command_id and not name.startswith("receipt"):
            command_id = new_id()
        command = Command(kind, stream_id, name, actor, command_id, json.dumps(payload).encode(), version)
        answer = await self.router.ask(command, timeout_s)
        assert isinstance(answer, Accepted)
        return answer

    async def room(self, *members: Actor, room_id: str = "") -> str:
        """A conversation between the actors."""
        room_id = room_id or new_id()
        await self.tell("open", members[0], room_id, member_ids=[member.id for member in members])
        return room_id


def new_id() -> str:
    return str(uuid_utils.uuid7())


def person() -> Actor:
    return Actor("user", new_id(), new_id())


async def eventually(condition: Any, timeout_s: float = 5.0) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
