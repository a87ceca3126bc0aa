"""Faults of the runtime that a review found, each told by the test that showed it."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from actors.deadlines import Deadlines
from actors.group_commit import Pending
from actors.membership import HostMember
from actors.placement import Handover, Heartbeat, Placement, Table
from actors.turn import Outcome
from domain.aggregate import Decision
from domain.channels import command_subject
from domain.chat import MemberLeft
from domain.commands import Accepted, Answer, Attached, Command, Query, Request
from domain.ids import PARTITIONS, partition_of
from domain.ports import NoMetrics, Received, StoreUnavailable, Turn
from storage.memory_broker import MemoryBroker
from tests.support.alarms import AlarmRules, alarm_kinds
from tests.support.runtime import World, eventually, new_id, person

ANNA, BEN = person(), person()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await World(alarm_kinds()).start()
    yield made
    for log in made.logs:
        log.away = log.take_away = False
        if log.held is not None:
            log.held.set()
    await made.stop()


async def directly(world: World, host: Any, request: Request, timeout_s: float = 1.0) -> Answer | None:
    """What this very host answers, once; None for nothing."""
    broker = MemoryBroker(world.bus)
    answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    inbox = f"review.{new_id()}"
    await broker.subscribe(inbox, lambda received: answered.done() or answered.set_result(received.data))
    host._receive(Received(command_subject(0), msgspec.msgpack.encode(request), inbox))
    try:
        return msgspec.msgpack.decode(await asyncio.wait_for(answered, timeout_s), type=Answer)
    except TimeoutError:
        return None


def send(room: str, text: str, command_id: str = "") -> Command:
    return Command("conversation", room, "send", ANNA, command_id or new_id(), msgspec.json.encode({"text": text}))


# --- doubt -----------------------------------------------------------------------------------------------------------


async def test_a_partition_in_doubt_while_it_is_given_away_is_taken_anew_when_it_stays(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    number = partition_of(room)
    others = set(range(PARTITIONS)) - {number}
    await host.assign(others, (), {number})  # a table gives it to another host
    world.logs[0].fail_before = 1
    await directly(world, host, send(room, "did it land?"))
    assert host.partitions[number].doubtful
    await asyncio.sleep(0.05)
    await host.assign(range(PARTITIONS))  # the other host died: it stays here
    assert (await world.tell("send", ANNA, room, text="on we go", timeout_s=1.5)).offset == 3


async def test_what_was_decided_after_an_undoing_is_not_undone_by_what_was_undone_then(world: World) -> None:
    """Else a stream that is always in the queue never commits again while the queue is longer than a flush."""
    host = await world.host(flush_commands=1)
    room, other = await world.room(ANNA, BEN), await world.room(ANNA, BEN)
    log = world.logs[0]
    log.held = first = asyncio.Event()
    asking = [asyncio.create_task(directly(world, host, send(room, "fails")))]
    await asyncio.sleep(0.02)
    for at in (other, room):
        asking.append(asyncio.create_task(directly(world, host, send(at, "waits"), 3.0)))
        await asyncio.sleep(0.01)
    log.held, log.away = asyncio.Event(), True
    first.set()  # the first flush fails; the second, of the other room, is under way
    await asyncio.sleep(0.02)
    log.away = False
    later = asyncio.create_task(directly(world, host, send(room, "decided on a clean state"), 3.0))
    await asyncio.sleep(0.02)
    log.held.set()
    answers = await asyncio.gather(*asking)
    assert isinstance(answers[1], Accepted)
    assert isinstance(await later, Accepted)


# --- leases ----------------------------------------------------------------------------------------------------------


async def test_a_proof_that_fails_in_an_unforeseen_way_ends_neither_the_commits_nor_doubt(world: World) -> None:
    host = await world.host(leased=False)
    room = await world.room(ANNA, BEN)

    async def broken(*_: Any) -> Any:
        raise RuntimeError("a bug, or an error of the driver that nobody has translated")

    heads = world.logs[0].heads
    world.logs[0].heads = broken  # type: ignore[method-assign]
    host.leased(world.clock.monotonic_s())
    await asyncio.sleep(0.05)
    leased = host.lease_fresh()
    world.logs[0].heads = heads  # type: ignore[method-assign]
    answer = await directly(world, host, send(room, "is anybody there?"))
    host._background.spawn(host._commits.run())  # so that this test can end
    assert isinstance(answer, Accepted)
    assert not leased, "nothing was proved"


async def test_a_proof_that_is_asked_for_while_another_is_under_way_is_given_too(world: World) -> None:
    host = await world.host()
    heads, slow = world.logs[0].heads, asyncio.Event()

    async def slowly(*arguments: Any) -> Any:
        await slow.wait()
        return await heads(*arguments)

    world.logs[0].heads = slowly  # type: ignore[method-assign]
    first = asyncio.create_task(host._commits.prove())
    await asyncio.sleep(0.02)
    second = asyncio.create_task(host._commits.prove())
    await asyncio.sleep(0.02)
    slow.set()
    assert await asyncio.wait_for(asyncio.gather(first, second), 2.0) == [True, True]


async def test_a_slow_store_does_not_keep_a_host_that_is_heard_without_a_lease_for_ever(world: World) -> None:
    host = await world.host(leased=False)
    heads = world.logs[0].heads
    asked = []

    async def slow(numbers: Any) -> Any:
        asked.append(len(numbers))
        await asyncio.sleep(0.6)
        return await heads(numbers)

    world.logs[0].heads = slow  # type: ignore[method-assign]
    fresh = []
    for _ in range(14):
        host.leased(world.clock.monotonic_s())  # every heartbeat is acknowledged at once
        await asyncio.sleep(0.25)
        fresh.append(host.lease_fresh())
    assert any(fresh), f"the heads of {asked[0]} partitions were read {len(asked)} times, between flushes"


async def test_a_stranger_who_asks_does_not_make_members_wait_for_a_slow_commit(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    world.logs[0].held = asyncio.Event()
    sending = asyncio.create_task(directly(world, host, send(room, "slow"), 3.0))
    await asyncio.sleep(0.02)
    strange = asyncio.create_task(directly(world, host, Query("conversation", room, "view", person()), 3.0))
    await asyncio.sleep(0.02)
    answer = await directly(world, host, Query("conversation", room, "attach", ANNA), 0.7)
    world.logs[0].held.set()
    await sending
    await strange
    assert isinstance(answer, Attached)


# --- the relay -------------------------------------------------------------------------------------------------------


async def test_a_repair_speaks_under_the_position_of_the_owner(world: World) -> None:
    """Gateways drop typing and fixes of a lower one: after a repair that would be all there are until the next takeover."""
    host = await world.host()
    room = await world.room(ANNA, BEN)
    for _ in range(3):
        await world.tell("send", ANNA, room, text="hello")
    world.deliveries.clear()
    host._relay.lose()
    await eventually(lambda: bool(world.heard(f"conversation:{room}")))
    assert {d.owner for d in world.deliveries} == {host.partitions[partition_of(room)].owner}


async def test_hints_follow_from_what_is_committed(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    hinted: list[str] = []
    await MemoryBroker(world.bus).subscribe("ev.user.*", lambda received: hinted.append(received.data.decode("latin1")))
    log = world.logs[0]
    log.held = first = asyncio.Event()
    sending = asyncio.create_task(directly(world, host, send(room, "for both")))
    await asyncio.sleep(0.02)
    leave = Command("conversation", room, "member.leave", BEN, new_id())
    for name in ("leave", "member.leave", "remove"):
        leaving = asyncio.create_task(directly(world, host, msgspec.structs.replace(leave, name=name), 0.3))
        await asyncio.sleep(0.01)
    activation = host.activations[f"conversation:{room}"]
    if BEN.id in activation.state.members:  # however the command is called: Ben has left, uncommitted
        activation.begin()
        activation.state = activation.rules.evolve(
            activation.state, MemberLeft(rfc(), BEN.id, BEN.id), activation.version + 1
        )
    assert BEN.id in activation.stable().members
    log.held = None
    log.away = False
    first.set()
    await sending
    await leaving
    await asyncio.sleep(0.02)
    assert any(BEN.id in hint and '"offset":3' in hint for hint in hinted), hinted


def rfc() -> str:
    return "2026-01-01T00:00:00Z"


# --- reminders -------------------------------------------------------------------------------------------------------


class SlowReads:
    """Reminders that are read come when they are let go, as they were when they were asked for."""

    def __init__(self, log: Any) -> None:
        self._read = log.reminders
        self.let_go = asyncio.Event()
        self.asked = asyncio.Event()
        self.fail = False
        log.reminders = self.reminders

    async def reminders(self, *arguments: Any) -> Any:
        found = await self._read(*arguments)
        self.asked.set()
        await self.let_go.wait()
        if self.fail:
            self.fail = False
            raise StoreUnavailable("the connection was lost")
        return found


def in_ms(world: World, ms: int) -> int:
    return world.clock.now_ms() + ms


def rings(world: World, room: str) -> int:
    return sum(b'"text":"ring tea"' in entry.body for entry in world.store.streams[f"conversation:{room}"])


async def test_a_reminder_that_is_moved_while_reminders_are_read_rings_in_time(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    await world.tell("send", ANNA, room, text=f"alarm tea {in_ms(world, 50_000)}")
    slow = SlowReads(world.logs[0])
    host.reminders.look()
    await slow.asked.wait()
    await world.tell("send", ANNA, room, text=f"alarm tea {in_ms(world, 300)}")
    slow.let_go.set()
    await eventually(lambda: rings(world, room) == 1, 3.0)


async def test_reminders_of_a_partition_that_goes_while_they_are_read_are_forgotten(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    await world.tell("send", ANNA, room, text=f"alarm tea {in_ms(world, 20_000)}")
    slow = SlowReads(world.logs[0])
    host.reminders.look()
    await slow.asked.wait()
    await host.assign(set(range(PARTITIONS)) - {partition_of(room)})
    slow.let_go.set()
    await asyncio.sleep(0.1)
    assert host.reminders.of(f"conversation:{room}") == []


class Poisoned(AlarmRules):
    """A bug: the ringing cannot be evolved."""

    def evolve(self, state: Any, event: Any, offset: int) -> Any:
        if (getattr(event, "text", None) or "").startswith("ring"):
            raise ZeroDivisionError
        return super().evolve(state, event, offset)


async def test_a_reminder_that_breaks_its_turn_is_not_tried_again_at_once() -> None:
    world = await World({**alarm_kinds(), "conversation": Poisoned()}).start()
    await world.host()
    room = await world.room(ANNA, BEN)
    await world.tell("send", ANNA, room, text=f"alarm tea {in_ms(world, 50)}")
    await asyncio.sleep(0.6)
    takeovers = world.store.logs[partition_of(room)].count(None)
    world.hosts[0].reminders._submit = lambda *_: None  # so that this test can end
    await asyncio.sleep(0.1)
    await world.stop()
    assert takeovers <= 4, "each of them evicts the whole partition and adds a row to the log for ever"


async def test_an_overdue_reminder_is_tried_again_soon_although_the_clock_was_set_back(world: World) -> None:
    class Settable:
        def __init__(self) -> None:
            self.shift_ms = 0

        def now_ms(self) -> int:
            return time.time_ns() // 1_000_000 + self.shift_ms

        def monotonic_s(self) -> float:
            return time.monotonic()

    world.clock = clock = Settable()  # type: ignore[assignment]
    host = await world.host()
    room = await world.room(ANNA, BEN)
    world.logs[0].held = asyncio.Event()
    alarm = asyncio.create_task(
        world.tell("send", ANNA, room, text=f"alarm tea {in_ms(world, -7_200_000)}")
    )  # two hours ago: the platform was down
    await asyncio.sleep(0.02)
    world.logs[0].held.set()
    world.logs[0].held = None
    firing = host.reminders._submit
    refused = asyncio.Event()

    def away(command: Command, answered: Any) -> None:
        from actors.group_commit import AWAY

        host.reminders._submit = firing
        answered(AWAY)
        refused.set()

    host.reminders._submit = away
    await alarm
    await refused.wait()
    clock.shift_ms = -3_600_000
    await eventually(lambda: rings(world, room) == 1, 3.0)


# --- placement -------------------------------------------------------------------------------------------------------


def beat(name: str, life: int = 1, *, leaving: bool = False, writer: int = 0) -> Heartbeat:
    return Heartbeat(name, f"{name}-{life}", "", 0, 0, writer, leaving)


def test_an_incarnation_that_was_replaced_stays_so_after_the_next_one() -> None:
    placement = Placement(1, expected=1)
    for life in (1, 2, 3):
        placement.heard(beat("a", life), float(life))
    placement.heard(beat("a", 1), 4.0)  # it was paused all the time
    assert placement.hosts()["a"].incarnation == "a-3"


def test_what_two_tables_move_one_after_the_other_is_handed_over_by_whoever_has_it() -> None:
    placement = Placement(1, expected=1)
    placement.heard(beat("a"), 1.0)
    placement.heard(beat("b"), 2.0)
    coming = set(placement.table.giving["a-1"])
    placement.heard(beat("c"), 2.01)  # a has not handed over anything yet
    table = placement.table
    again = coming & set(table.owners["c-1"])
    assert again
    assert again <= set(table.giving["a-1"]), "a has them, c waits for them"


async def test_an_older_table_does_not_take_back_what_a_newer_one_gave_away(world: World) -> None:
    host = await world.host(assigned=False)
    member = HostMember(host, host._broker, world.clock, NoMetrics())
    me = host.settings.incarnation
    ending, end = asyncio.Event(), asyncio.Event()

    async def end_writers(numbers: Sequence[int]) -> None:
        ending.set()
        await end.wait()

    world.logs[0].end_writers = end_writers  # type: ignore[attr-defined]
    running = asyncio.create_task(member._carry_out_forever())
    member._told(msgspec.msgpack.encode(Table(1, {me: (1, 2, 3)}, {}, (77,))))
    await ending.wait()
    member._told(msgspec.msgpack.encode(Table(2, {me: (1,), "other": (2, 3)})))
    end.set()
    await asyncio.sleep(0.1)
    running.cancel()
    assert set(host.partitions) == {1}
    assert 2 not in world.store.logs, "it was taken from its owner"


async def test_a_writer_that_could_not_be_ended_is_ended_later(world: World) -> None:
    host = await world.host(assigned=False)
    asked: list[list[int]] = []

    async def end_writers(numbers: Sequence[int]) -> None:
        asked.append(list(numbers))
        if len(asked) == 1:
            raise StoreUnavailable("no connection")

    world.logs[0].end_writers = end_writers  # type: ignore[attr-defined]
    await host.ownership.end([7])
    await host.ownership.end([7])
    assert asked == [[7], [7]]


async def test_a_handover_that_was_heard_before_two_tables_counts_for_the_second(world: World) -> None:
    host = await world.host(assigned=False)
    member = HostMember(host, host._broker, world.clock, NoMetrics())
    me = host.settings.incarnation
    running = asyncio.create_task(member._carry_out_forever())
    await member._take(Handover(5, (9,)), "review.nobody")
    # Table 6 came before table 5 was heard here; the giver of 5 has nothing left to give.
    member._told(msgspec.msgpack.encode(Table(6, {me: (9,)}, {"old": (9,)})))
    await asyncio.sleep(0.3)
    running.cancel()
    assert 9 in host.partitions


# --- bounds and fairness ---------------------------------------------------------------------------------------------


async def test_chat_is_committed_however_many_orders_come(world: World) -> None:
    host = await world.host(flush_commands=8)
    room = await world.room(ANNA, BEN)
    chat = host.activations[f"conversation:{room}"]
    commits = host._commits

    def order() -> Pending:
        activation = host.activations.activate(f"order:{new_id()}")
        return Pending(activation, Outcome(Accepted(0, 0)), "")

    waiting = Pending(chat, Outcome(Accepted(0, 0), Turn(chat.partition, [])), "")
    commits.add(waiting)
    taken: list[Pending] = []
    for _ in range(20):
        for _ in range(8):
            commits.add(order())
        taken += commits._next()
    assert any(pending is waiting for pending in taken)


async def test_positions_that_a_slow_store_refuses_do_not_keep_memory_from_being_tidied(world: World) -> None:
    host = await world.host(idle_s=0.0)
    room = await world.room(ANNA, BEN)

    class Slow:
        async def add_positions(self, *_: Any) -> None:
            await asyncio.sleep(0.5)
            raise StoreUnavailable("not in time")

    host._signals._read_models = Slow()  # type: ignore[assignment]
    host._signals._positions = {new_id(): [] for _ in range(100)}
    await eventually(lambda: f"conversation:{room}" not in host.activations, 4.0)


def test_a_sender_whose_clock_stood_still_is_heard_again_within_seconds() -> None:
    """A virtual machine that was suspended for an hour goes on with its monotonic clock where that stood."""
    deadlines = Deadlines()
    for now_ms in range(0, 10_000, 100):
        assert deadlines.left_ms("inbox.gateway.1", now_ms, 5_000, now_ms) == 5_000
    hour = 3_600_000
    left = [deadlines.left_ms("inbox.gateway.1", now_ms, 5_000, now_ms + hour) for now_ms in range(10_000, 30_000, 100)]
    assert left[-1] > 0, "every request of twenty seconds was dropped unrun"


class Claiming(AlarmRules):
    def decide(self, state: Any, command: Command, parsed: Any, now_ms: int, facts: Any) -> Decision[Any]:
        decision = super().decide(state, command, parsed, now_ms, facts)
        if getattr(parsed, "text", "") == "claims":
            return msgspec.structs.replace(decision, claims=("cal:x",))
        return decision


async def test_a_claim_that_is_refused_does_not_overtake_the_commit_that_it_saw() -> None:
    world = await World({**alarm_kinds(), "conversation": Claiming()}).start()
    host = await world.host()
    room = await world.room(ANNA, BEN)
    world.store.claims["cal:x"] = ("order:another", None)
    world.logs[0].held = asyncio.Event()
    first = asyncio.create_task(directly(world, host, send(room, "uncommitted"), 3.0))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(directly(world, host, send(room, "claims"), 3.0))
    await asyncio.sleep(0.1)
    early = second.done()
    world.logs[0].held.set()
    await first
    await second
    await world.stop()
    assert not early


async def test_a_snapshot_that_was_not_stored_is_tried_again(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    for _ in range(40):
        await world.tell("send", ANNA, room, text="again")
    activation = host.activations[f"conversation:{room}"]
    world.logs[0].away = True
    assert host.ownership.store(activation)
    await asyncio.sleep(0.05)
    world.logs[0].away = False
    assert host.ownership.store(activation), "the next load would read the whole tail"
