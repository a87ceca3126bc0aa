"""Hosts and placement find one another over the broker, and partitions follow who lives."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from actors.host import Host
from actors.membership import HostMember, PlacementService
from domain.commands import Actor
from domain.ids import PARTITIONS
from domain.ports import BrokerUnavailable, NoMetrics
from storage.memory_broker import MemoryBroker
from tests.support.runtime import World, eventually, person


class Members:
    """A placement and hosts that follow its table."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.placement = PlacementService(MemoryBroker(world.bus), world.clock, NoMetrics())
        self.members: dict[str, HostMember] = {}

    async def join(self, name: str) -> Host:
        host = await self.world.host(name, leased=False, assigned=False)
        member = HostMember(host, host._broker, self.world.clock, NoMetrics())
        self.members[name] = member
        await member.start()
        return host

    async def crash(self, host: Host) -> None:
        await self.members.pop(host.settings.name).stop()
        await self.world.crash(host)

    async def hang(self, host: Host) -> None:
        """The host's connection stands, but it does nothing any more."""
        await self.members.pop(host.settings.name).stop()

    def owned(self) -> list[int]:
        return sorted(number for host in self.world.hosts for number in host.partitions)


@pytest.fixture
async def members() -> AsyncIterator[Members]:
    made = Members(await World().start())
    await made.placement.start()
    yield made
    for member in made.members.values():
        await member.stop()
    await made.placement.stop()
    await made.world.stop()


ALL = list(range(PARTITIONS))


async def test_hosts_share_all_partitions_between_them(members: Members) -> None:
    first = await members.join("host-0")
    await eventually(lambda: members.owned() == ALL)
    second = await members.join("host-1")
    await eventually(lambda: min(len(first.partitions), len(second.partitions)) > PARTITIONS * 0.4)
    await eventually(lambda: members.owned() == ALL)


async def test_the_survivor_takes_over_at_once_and_gives_back_when_a_replacement_is_up(members: Members) -> None:
    await members.join("host-0")
    second = await members.join("host-1")
    await eventually(lambda: members.owned() == ALL and second.partitions)
    before = set(second.partitions)
    await members.crash(second)
    await eventually(lambda: members.owned() == ALL, 2.0)
    replacement = await members.join("host-1")
    await eventually(lambda: members.owned() == ALL and set(replacement.partitions) == before)


async def test_a_conversation_goes_on_through_crashes_of_its_hosts(members: Members) -> None:
    anna, ben = person(), person()
    hosts = [await members.join("host-0"), await members.join("host-1")]
    await eventually(lambda: members.owned() == ALL)
    room = await members.world.room(anna, ben)
    offsets: list[int] = []

    async def talk(actor: Actor, count: int) -> None:
        for n in range(count):
            sent = await members.world.tell("send", actor, room, text=str(n))
            offsets.append(sent.offset)

    talking = asyncio.gather(talk(anna, 40), talk(ben, 40))
    await eventually(lambda: len(offsets) > 10)
    await members.crash(hosts[0])
    replacement = await members.join("host-0")
    await eventually(lambda: members.owned() == ALL and replacement.partitions)
    await members.crash(hosts[1])
    await talking
    assert sorted(offsets) == list(range(3, 83))


async def test_a_host_that_hangs_is_taken_over_after_missed_heartbeats(members: Members) -> None:
    hung = await members.join("host-0")
    await members.join("host-1")
    await eventually(lambda: members.owned() == ALL)
    await members.hang(hung)
    await eventually(lambda: len(members.world.hosts[1].partitions) == PARTITIONS, 3.0)


async def test_without_placement_nothing_moves_and_everything_works(members: Members) -> None:
    anna, ben = person(), person()
    await members.join("host-0")
    await eventually(lambda: members.owned() == ALL)
    room = await members.world.room(anna, ben)
    await members.placement.stop()
    await asyncio.sleep(1.0)
    assert (await members.world.tell("send", anna, room, text="still here")).offset == 3
    assert members.owned() == ALL


async def test_a_new_placement_learns_who_lives_and_moves_nothing(members: Members) -> None:
    await members.join("host-0")
    await members.join("host-1")
    await eventually(lambda: members.owned() == ALL and all(host.partitions for host in members.world.hosts))
    before = [dict(host.partitions) for host in members.world.hosts]
    await members.placement.stop()
    await members.placement._broker.close()
    members.placement = PlacementService(MemoryBroker(members.world.bus), members.world.clock, NoMetrics())
    await members.placement.start()
    await eventually(lambda: len(members.placement.placement.table.owners) == 2)
    await asyncio.sleep(0.5)
    assert [dict(host.partitions) for host in members.world.hosts] == before


async def test_a_placement_that_hears_nothing_gives_nobody_up(members: Members) -> None:
    """A broker that hangs answers no PING and delivers no heartbeat: that says nothing about the hosts."""
    ended: list[str] = []

    async def end(process: str, silent_s: float) -> bool:
        ended.append(process)
        return True

    members.placement._end = end
    first, second = await members.join("host-0"), await members.join("host-1")
    await eventually(lambda: members.owned() == ALL and len(first.partitions) < PARTITIONS)
    version, broker = members.placement.placement.table.version, members.placement._broker

    async def no_pong(timeout_s: float = 2.0) -> None:
        await asyncio.sleep(timeout_s)
        raise BrokerUnavailable("no PONG")

    heard, members.placement.placement.heard = members.placement.placement.heard, lambda *_: False  # type: ignore[method-assign]
    confirm, broker.confirm = broker.confirm, no_pong  # type: ignore[method-assign]
    await asyncio.sleep(3.0)
    assert members.placement.placement.table.version == version
    assert ended == []
    broker.confirm = confirm  # type: ignore[method-assign]
    await asyncio.sleep(0.3)
    members.placement.placement.heard = heard  # type: ignore[method-assign]
    await asyncio.sleep(0.5)
    assert members.placement.placement.table.version == version
    assert len(second.partitions) == len(members.placement.placement.table.owners[second.settings.incarnation])


async def test_a_host_that_hangs_is_ended_and_one_that_is_only_late_is_heard_again(members: Members) -> None:
    asked: list[tuple[str, float]] = []

    async def end(process: str, silent_s: float) -> bool:
        asked.append((process, silent_s))
        return silent_s > 1.0

    members.placement._end = end
    await members.join("host-0")
    second = await members.join("host-1")
    second.settings = msgspec.structs.replace(second.settings, process="node/7/start")
    await eventually(lambda: members.owned() == ALL and bool(second.partitions))
    await asyncio.sleep(0.3)
    await members.hang(second)
    await eventually(lambda: bool(asked) and asked[-1][1] > 1.0)
    assert {process for process, _ in asked} == {"node/7/start"}
    count = len(asked)
    await asyncio.sleep(0.4)
    assert len(asked) == count, "it has been ended: nobody is asked again"


async def test_what_was_lost_is_taken_again_though_placement_knows_an_older_table(members: Members) -> None:
    """A second placement had published a newer one, and died."""
    host = await members.join("host-0")
    await eventually(lambda: members.owned() == ALL)
    member, table = members.members["host-0"], members.placement.placement.table
    member._told(msgspec.msgpack.encode(msgspec.structs.replace(table, version=table.version + 1_000)))
    host.lost([host.partitions[7]])
    await eventually(lambda: 7 in host.partitions, 3.0)
