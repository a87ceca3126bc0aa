"""Reminders fire late rather than lost, once in effect, and are harmless when early, late or double."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from actors.host import Host
from actors.reminders import AT_ONCE
from deploy.connections import SystemClock
from domain.commands import SYSTEM, Accepted, Answer, Command, Reminder
from domain.errors import Code, Refused
from domain.ids import partition_of
from domain.ports import StoreUnavailable
from tests.support.alarms import alarm_kinds
from tests.support.runtime import World, eventually, person

ANNA, BEN = person(), person()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await World(alarm_kinds()).start()
    yield made
    await made.stop()


def in_ms(world: World, ms: int) -> int:
    return world.clock.now_ms() + ms


async def ring_at(world: World, room: str, name: str, due_at: int) -> None:
    await world.tell("send", ANNA, room, text=f"alarm {name} {due_at}")


def rings(world: World, room: str, name: str = "tea") -> int:
    return sum(b'"text":"ring %s"' % name.encode() in e.body for e in world.store.streams[f"conversation:{room}"])


def stored(world: World) -> list[str]:
    return sorted(name for _, name in world.store.reminders)


async def test_a_reminder_fires_once_when_it_is_due_and_not_before(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    due_at = in_ms(world, 150)
    await ring_at(world, room, "tea", due_at)
    assert stored(world) == ["tea"]
    await eventually(lambda: rings(world, room) == 1)
    assert world.clock.now_ms() >= due_at
    assert stored(world) == []
    await asyncio.sleep(0.1)
    assert rings(world, room) == 1


async def test_one_that_is_taken_back_or_moved_does_not_fire(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    await ring_at(world, room, "tea", in_ms(world, 100))
    await ring_at(world, room, "coffee", in_ms(world, 100))
    await world.tell("send", BEN, room, text="quiet tea")
    await ring_at(world, room, "coffee", in_ms(world, 3_600_000))
    assert stored(world) == ["coffee"]
    await asyncio.sleep(0.3)
    assert rings(world, room, "tea") == rings(world, room, "coffee") == 0


async def test_what_was_due_while_nobody_was_there_fires_in_order_at_the_takeover(world: World) -> None:
    host = await world.host()
    rooms = [await world.room(ANNA, BEN) for _ in range(3)]
    for n, room in enumerate(rooms):
        await ring_at(world, room, "tea", in_ms(world, 80 - 10 * n))
    await world.crash(host)
    await asyncio.sleep(0.1)
    await world.host("host-1")
    await eventually(lambda: all(rings(world, room) == 1 for room in rooms), 2.0)
    assert stored(world) == []


async def test_however_many_are_overdue_the_next_fires_as_soon_as_one_has_landed(world: World) -> None:
    """So many may be under way at once. What landed was taken out before its answer came, and woke nobody: the next ones
    went a second later."""
    host = await world.host()
    rooms = [await world.room(ANNA, BEN) for _ in range(10)]
    names = [f"tea{n}" for n in range(6 * AT_ONCE // len(rooms))]
    due_at = in_ms(world, 2_500)
    for room in rooms:
        await asyncio.gather(*(ring_at(world, room, name, due_at) for name in names))
    await world.crash(host)
    await asyncio.sleep(max(0.0, (due_at - world.clock.now_ms()) / 1000))
    await world.host("host-1")
    await eventually(lambda: all(rings(world, room, name) == 1 for room in rooms for name in names), 3.0)
    assert stored(world) == []


class HourBehind(SystemClock):
    def now_ms(self) -> int:
        return super().now_ms() - 3_600_000


async def test_partitions_that_come_while_a_read_fails_are_read_though_the_clock_goes_back(world: World) -> None:
    host = await world.host(assigned=False)
    came = asyncio.Event()
    read, reads = world.logs[0].reminders, 0

    async def failing(partitions: Sequence[int], before_ms: int, limit: int) -> list[Reminder]:
        nonlocal reads
        reads += 1
        if reads == 2:
            await came.wait()
            raise StoreUnavailable("away for a moment")
        return await read(partitions, before_ms, limit)

    world.logs[0].reminders = failing  # type: ignore[method-assign]
    await eventually(lambda: reads == 1)
    host.reminders._known_until_ms = in_ms(world, 20_000)  # as if half of the horizon had passed
    host.reminders._wake.set()
    await eventually(lambda: reads == 2)
    host.reminders.look()
    host.reminders._clock = HourBehind()
    came.set()
    await eventually(lambda: reads == 3, 3.0)


async def test_a_backlog_of_thousands_fires_completely(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    due_at = in_ms(world, 200)
    await asyncio.gather(*(ring_at(world, room, f"a{n}", due_at) for n in range(200)))
    await world.crash(host)
    await asyncio.sleep(0.25)
    await world.host("host-1")
    await eventually(lambda: not world.store.reminders)
    assert [rings(world, room, f"a{n}") for n in range(200)] == [1] * 200


async def test_it_fires_once_though_two_hosts_believe_to_own_the_partition(world: World) -> None:
    await world.host("host-0")
    room = await world.room(ANNA, BEN)
    await ring_at(world, room, "tea", in_ms(world, 150))
    await world.host("host-1")  # takes everything by the fence; the former owner does not know yet
    await eventually(lambda: rings(world, room) == 1)
    await asyncio.sleep(0.1)
    assert rings(world, room) == 1


async def test_a_lost_commit_only_makes_it_late(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    await ring_at(world, room, "tea", in_ms(world, 150))
    world.logs[0].fail_after = 1
    await eventually(lambda: rings(world, room) == 1 and not world.store.reminders)
    room = await world.room(ANNA, BEN)
    await ring_at(world, room, "tea", in_ms(world, 150))
    world.logs[0].away = True
    await asyncio.sleep(0.4)
    assert rings(world, room) == 0
    world.logs[0].away = False
    await eventually(lambda: rings(world, room) == 1 and not world.store.reminders)


async def test_a_stored_reminder_that_stands_no_more_is_removed_without_effect(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    before = world.store.end(f"conversation:{room}")
    left_over = Reminder(
        f"conversation:{room}", "tea", in_ms(world, -1000), 1, "card", b'{"text": "ring tea", "card": {}}'
    )
    world.store.reminders[left_over.stream, left_over.name] = (partition_of(room), left_over)
    world.hosts[0].reminders.look()
    await eventually(lambda: not world.store.reminders)
    assert world.store.end(f"conversation:{room}") == before


async def test_firing_early_or_twice_has_no_effect(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    await ring_at(world, room, "tea", in_ms(world, 300))
    _, reminder = next(iter(world.store.reminders.values()))
    early = await fire(host, reminder, room)
    assert isinstance(early, Refused)
    assert early.code is Code.BUSY
    await eventually(lambda: rings(world, room) == 1)
    again = await fire(host, reminder, room)
    assert isinstance(again, Accepted)
    assert again.replayed
    other = Reminder(reminder.stream, "tea", reminder.due_at + 1, reminder.fence_offset, "card", reminder.payload)
    over = await fire(host, other, room)
    assert isinstance(over, Refused)
    assert rings(world, room) == 1


async def test_a_host_that_is_behind_the_log_never_calls_a_reminder_over(world: World) -> None:
    """Its successor has set the reminder; it reads that from the store and does not find it in its old state."""
    host = await world.host()
    room = await world.room(ANNA, BEN)
    later = Reminder(f"conversation:{room}", "tea", in_ms(world, -10), 9, "card", b'{"text": "ring tea", "card": {}}')
    world.store.reminders[later.stream, later.name] = (partition_of(room), later)
    host.reminders.look()
    await asyncio.sleep(0.3)
    assert (later.stream, later.name) in world.store.reminders


async def fire(host: Host, reminder: Reminder, room: str) -> Answer:
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    command = Command(
        "conversation", room, reminder.command, SYSTEM, reminder.command_id, reminder.payload, reminder=reminder
    )
    host.submit(command, answered.set_result)
    return await asyncio.wait_for(answered, 2.0)
