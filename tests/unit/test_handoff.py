"""Partitions move between live hosts in an orderly way: commands wait, nobody is refused, nothing is lost."""

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from actors.membership import HANDOVER_S
from actors.ownership import HOT_EVENTS
from actors.placement import Handover, Heartbeat, Placement, Table
from domain.ids import PARTITIONS, partition_of
from domain.ports import Received
from tests.support.runtime import World, eventually, new_id, person
from tests.unit.test_membership import ALL, Members

ANNA, BEN = person(), person()


@pytest.fixture
async def members() -> AsyncIterator[Members]:
    made = Members(await World().start())
    await made.placement.start()
    yield made
    for member in made.members.values():
        await member.stop()
    await made.placement.stop()
    await made.world.stop()


class Talk:
    """People who talk all the time; `pauses` are the longest times between two answers in each room."""

    def __init__(self, world: World, rooms: list[str]) -> None:
        self.world = world
        self.rooms = rooms
        self.pauses = dict.fromkeys(rooms, 0.0)
        self.said = dict.fromkeys(rooms, 0)
        self.over = False
        self.tasks = [asyncio.create_task(self.talk(room)) for room in rooms]

    async def talk(self, room: str) -> None:
        last = time.monotonic()
        while not self.over:
            await self.world.tell("send", ANNA, room, text="still here")
            self.said[room] += 1
            now = time.monotonic()
            self.pauses[room] = max(self.pauses[room], now - last)
            last = now
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Whoever was refused makes this raise."""
        self.over = True
        await asyncio.gather(*self.tasks)


async def test_a_second_host_gets_its_share_while_people_talk_and_nobody_is_refused(
    members: Members, caplog: pytest.LogCaptureFixture
) -> None:
    first = await members.join("host-0")
    await eventually(lambda: members.owned() == ALL)
    rooms = [await members.world.room(ANNA, BEN) for _ in range(20)]
    talk = Talk(members.world, rooms)
    await asyncio.sleep(0.1)
    second = await members.join("host-1")
    await eventually(lambda: min(len(first.partitions), len(second.partitions)) > PARTITIONS * 0.4)
    await eventually(lambda: members.owned() == ALL)
    await asyncio.sleep(0.1)
    await talk.stop()
    moved = [room for room in rooms if partition_of(room) in second.partitions]
    assert moved
    assert "taken by another host" not in caplog.text
    for room in rooms:
        entries = members.world.store.streams[f"conversation:{room}"]
        assert len(entries) == 2 + talk.said[room]
        assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1))


async def test_a_host_that_leaves_hands_everything_over_and_is_told_so(members: Members) -> None:
    first, second = await members.join("host-0"), await members.join("host-1")
    await eventually(lambda: members.owned() == ALL and bool(second.partitions))
    await eventually(lambda: len(first.partitions) < PARTITIONS)
    rooms = [await members.world.room(ANNA, BEN) for _ in range(20)]
    talk = Talk(members.world, rooms)
    await asyncio.sleep(0.05)
    assert await members.members["host-1"].leave()
    assert not second.partitions
    await eventually(lambda: members.owned() == ALL)
    await asyncio.sleep(0.05)
    await talk.stop()


async def test_the_last_host_is_told_at_once_that_nobody_takes_over(members: Members) -> None:
    host = await members.join("host-0")
    await eventually(lambda: members.owned() == ALL)
    began = time.monotonic()
    assert not await members.members["host-0"].leave()
    assert time.monotonic() - began < 1.5
    assert len(host.partitions) == PARTITIONS


async def test_when_all_leave_nothing_goes_round_in_circles(members: Members) -> None:
    first, second = await members.join("host-0"), await members.join("host-1")
    await eventually(lambda: members.owned() == ALL and bool(second.partitions))
    await eventually(lambda: len(first.partitions) < PARTITIONS)
    left = await asyncio.gather(*(member.leave() for member in members.members.values()))
    assert sorted(left) in ([False, False], [False, True])
    version = members.placement.placement.table.version
    await asyncio.sleep(0.6)
    assert members.placement.placement.table.version == version


async def test_a_new_owner_takes_by_the_fence_what_is_not_handed_over(members: Members) -> None:
    """The old owner is alive and hears nothing of the new table: its partitions must not wait for it for ever."""
    first = await members.join("host-0")
    await eventually(lambda: members.owned() == ALL)
    room = await members.world.room(ANNA, BEN)
    await members.members["host-0"].stop()  # it beats no more, and is kept alive in the eyes of placement by us
    seen = members.placement.placement

    async def alive() -> None:
        while True:
            seen.excuse(members.world.clock.monotonic_s())
            await asyncio.sleep(0.05)

    keeping = asyncio.create_task(alive())
    second = await members.join("host-1")
    await asyncio.sleep(0.3)
    assert not second.partitions
    await eventually(lambda: len(second.partitions) > PARTITIONS * 0.4, HANDOVER_S + 2)
    await members.world.tell("send", ANNA, room, text="after all that")
    keeping.cancel()
    assert len(first.partitions) >= PARTITIONS * 0.4


async def test_what_is_hot_is_stored_before_it_moves_so_that_the_next_load_is_short(world: World) -> None:
    host = await world.host("host-0")
    hot, cold = await world.room(ANNA, BEN), await world.room(ANNA, BEN)
    for _ in range(HOT_EVENTS):
        await world.tell("send", ANNA, hot, text="again")
    await world.tell("send", ANNA, cold, text="once")
    await host.ownership.release([partition_of(hot), partition_of(cold)])
    snapshot = world.store.snapshots[f"conversation:{hot}"]
    assert snapshot.offset == world.store.end(f"conversation:{hot}")
    assert f"conversation:{cold}" not in world.store.snapshots
    other = await world.host("host-1")
    said = new_id()
    await world.tell("send", ANNA, hot, said, text="and again")
    again = await world.tell("send", ANNA, hot, said, text="and again")
    assert again.replayed
    assert other.activations[f"conversation:{hot}"].snapshot_offset == snapshot.offset


async def test_a_handover_that_comes_before_the_table_does_not_make_anybody_wait(members: Members) -> None:
    first, second = await members.join("host-0"), await members.join("host-1")
    await eventually(lambda: members.owned() == ALL and len(first.partitions) < PARTITIONS)
    member, number = members.members["host-1"], min(first.partitions)
    table = members.placement.placement.table
    newer = Table(
        table.version + 1,
        {
            first.settings.incarnation: tuple(first.partitions.keys() - {number}),
            second.settings.incarnation: (*second.partitions, number),
        },
        {first.settings.incarnation: (number,)},
    )
    member._handed(Received("", msgspec.msgpack.encode(Handover(newer.version, (number,)))))
    await asyncio.sleep(0.02)
    assert number not in second.partitions
    member._told(msgspec.msgpack.encode(newer))
    await eventually(lambda: number in second.partitions, HANDOVER_S / 2)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await World().start()
    yield made
    await made.stop()


# --- the table -------------------------------------------------------------------------------------------------------


def beat(name: str, life: int = 1, *, leaving: bool = False, writer: int = 0) -> Heartbeat:
    return Heartbeat(name, f"{name}-{life}", "", 0, 0, writer, leaving)


def placed(*names: str) -> Placement:
    placement = Placement(1, expected=len(names))
    for name in names:
        placement.heard(beat(name), 0.0)
    return placement


def test_what_moves_between_live_hosts_is_to_be_handed_over() -> None:
    placement = placed("a")
    placement.heard(beat("b"), 1.0)
    table = placement.table
    assert set(table.giving) == {"a-1"}
    assert set(table.giving["a-1"]) == set(table.owners["b-1"])


def test_what_a_dead_host_owned_is_handed_over_by_nobody() -> None:
    placement = placed("a", "b")
    assert placement.died("b-1")
    assert placement.table.giving == {}
    placement.heard(beat("b", 2), 1.0)
    assert set(placement.table.giving) == {"a-1"}


def test_a_handover_under_way_goes_on_when_something_else_changes() -> None:
    placement = placed("a")
    placement.heard(beat("b"), 1.0)
    begun = set(placement.table.giving["a-1"])
    placement.heard(beat("c"), 1.1)
    table = placement.table
    still = begun & set(table.owners["b-1"])
    assert still <= set(table.giving["a-1"])
    assert set(table.giving["b-1"]) == begun & set(table.owners["c-1"])


def test_a_leaving_host_gives_to_those_who_stay() -> None:
    placement = placed("a", "b", "c")
    had = set(placement.table.owners["b-1"])
    placement.heard(beat("b", leaving=True), 1.0)
    assert "b-1" not in placement.table.owners
    assert set(placement.table.giving["b-1"]) == had
    placement.heard(beat("a", leaving=True), 1.0)
    placement.heard(beat("c", leaving=True), 1.0)
    assert set(placement.table.owners) == {"c-1"}


def test_the_writers_of_lost_hosts_stand_in_the_table_and_those_of_leaving_ones_do_not() -> None:
    placement = placed("a", "b", "c")
    placement.heard(beat("b", writer=7), 0.25)
    placement.heard(beat("c", writer=8, leaving=True), 0.25)
    placement.heard(beat("a", writer=6), 0.25)
    for _ in range(2):
        placement.heard(beat("a", writer=6), 1.9)
    assert placement.tick(2.0)
    assert placement.table.ended == (7,)
    placement.heard(beat("d"), 40.0)
    assert placement.table.ended == (), "a restarted database gives the number to somebody else"
    assert [heartbeat.name for heartbeat, _ in placement.silent(2.1)] == ["b", "c"]


def test_hosts_are_not_silent_because_placement_was() -> None:
    placement = placed("a", "b")
    placement.excuse(60.0)
    assert not placement.tick(60.2)
    assert placement.tick(61.0)
