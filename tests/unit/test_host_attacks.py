"""Attacks on the actor runtime: each is a fault that it once had, and a seeded storm looks for the next one."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from actors import host as host_module
from actors import relay as relay_module
from actors.host import Host
from actors.membership import HostMember, PlacementService
from actors.placement import Heartbeat, Placement
from domain.aggregate import Account, AccountNeed, WorkerProfile
from domain.commands import Actor, Attached, Command, Query, Status
from domain.errors import Code, Refusal
from domain.ids import PARTITIONS, partition_of
from domain.ports import BrokerUnavailable, NoMetrics, OutcomeUnknown, Position, Received
from storage.memory_broker import MemoryBroker
from tests.support.attacks import Storm
from tests.support.runtime import World, eventually, new_id, person

ANNA, BEN = person(), person()


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(relay_module, "SAVE_EVERY_S", 0.02)
    made = await World().start()
    yield made
    await made.stop()


def push(host: Host, command: Command, reply: str = "") -> None:
    host._receive(Received("cmd.0", msgspec.msgpack.encode(command), reply))


def saying(room: str, text: str, command_id: str = "") -> Command:
    payload = json.dumps({"text": text}).encode()
    return Command("conversation", room, "send", ANNA, command_id or new_id(), payload)


def beside(identifier: str) -> str:
    """A new id in the same partition."""
    while partition_of(made := new_id()) != partition_of(identifier):
        pass
    return made


def settled(host: Host) -> bool:
    return all(p.confirmed == p.published for p in host._relay._progress.values())


def worker(world: World) -> Actor:
    actor = person()
    profile = WorkerProfile(("paint",), 31.2, 121.4, 50_000, 100, "CNY")
    world.facts.known[AccountNeed(actor.id)] = Account(actor.id, ("customer", "worker"), profile)
    return actor


async def order(world: World, customer: Actor) -> str:
    world.facts.known[AccountNeed(customer.id)] = Account(customer.id, ("customer",))
    identifier = new_id()
    await world.tell(
        "create",
        customer,
        identifier,
        kind="order",
        category="paint",
        title="Paint",
        description="Paint two rooms white, please, soon.",
        site={"lat": 31.2, "lon": 121.4, "address": "1 Road"},
        publish=True,
    )
    return identifier


def quote(quote_id: str, rev: int = 1, note: str = "", title: str = "All") -> dict[str, Any]:
    lines = [{"title": title, "amount": 100}, *({"title": title, "amount": 1000} for _ in range(9))]
    return {"quote_id": quote_id, "rev": rev, "milestones": lines, "currency": "CNY", "note": note}


async def conversation_of(world: World, identifier: str, actor: Actor) -> str:
    entries = world.store.streams[f"order:{identifier}"]
    bodies = [json.loads(e.body) for e in entries if e.actor == f"user:{actor.id}" and "private" in json.loads(e.body)]
    return str(next(b["private"]["conversation_id"] for b in bodies if b["private"].get("conversation_id")))


# --- the relay dies, and the host with it ------------------------------------------------------------------------


async def test_a_partition_released_during_a_repair_does_not_silence_the_host(world: World) -> None:
    host = await world.host()
    rooms = sorted([await world.room(ANNA, BEN) for _ in range(2)], key=partition_of)
    assert partition_of(rooms[0]) != partition_of(rooms[1])
    await eventually(lambda: settled(host))
    world.bus.go_down()
    for room in rooms:
        push(host, saying(room, "x"))
    await eventually(lambda: world.store.end(f"conversation:{rooms[1]}") == 3)
    gate, inner = asyncio.Event(), world.logs[0]._inner.read_partition
    reading = asyncio.Event()

    async def gated(*arguments: Any) -> Any:
        reading.set()
        await gate.wait()
        return await inner(*arguments)

    world.logs[0].read_partition = gated  # type: ignore[attr-defined]
    world.bus.come_back()
    await reading.wait()
    await host.ownership.release([partition_of(rooms[1])])
    gate.set()
    assert (await world.tell("send", ANNA, rooms[0], text="y", timeout_s=1.5)).offset == 4


@pytest.mark.parametrize("error", [OutcomeUnknown("lost at COMMIT"), RuntimeError("the driver's own")])
async def test_a_cursor_that_could_not_be_saved_does_not_silence_the_host(world: World, error: Exception) -> None:
    await world.host()
    inner, failed = world.logs[0]._inner.save_cursors, asyncio.Event()

    async def failing(cursors: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise error
        await inner(cursors)

    world.logs[0].save_cursors = failing  # type: ignore[attr-defined]
    room = new_id()
    await world.room(ANNA, BEN, room_id=room)
    await failed.wait()
    await asyncio.sleep(0.05)
    assert (await world.tell("send", ANNA, room, text="y", timeout_s=1.5)).offset == 3


async def test_an_answer_too_large_for_the_broker_is_refused_and_silences_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.host()
    identifier = await order(world, ANNA)
    monkeypatch.setattr(host_module, "LARGEST_ANSWER", 200)
    with pytest.raises(Refusal) as caught:
        await world.router.ask(Query("order", identifier, "view", ANNA), 1.5)
    assert caught.value.code is Code.PAYLOAD_TOO_LARGE
    cancelled = await world.tell("cancel", ANNA, identifier, kind="order", reason="x")
    assert (cancelled.view, cancelled.events) == (None, ())
    assert world.store.end(f"order:{identifier}") == cancelled.offset


async def test_a_message_the_broker_cannot_take_silences_nobody(world: World) -> None:
    host = await world.host()
    host._relay.send("ev.x", b"x" * 600_000)
    room = await world.room(ANNA, BEN)
    assert (await world.tell("send", ANNA, room, text="y", timeout_s=1.5)).offset == 3


# --- what the relay passes over ----------------------------------------------------------------------------------


async def test_what_a_full_queue_dropped_is_published_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await world.host()
    rooms = [await world.room(ANNA, BEN) for _ in range(8)]
    await eventually(lambda: settled(host))
    gate, publish = asyncio.Event(), host._broker.publish

    async def slow(subject: str, data: bytes) -> None:
        await gate.wait()
        await publish(subject, data)

    host._broker.publish = slow  # type: ignore[method-assign]
    monkeypatch.setattr(relay_module, "QUEUE", 2)
    for room in rooms:
        push(host, saying(room, "x"))
    await eventually(lambda: all(world.store.end(f"conversation:{room}") == 3 for room in rooms))
    await asyncio.sleep(0.05)
    monkeypatch.setattr(relay_module, "QUEUE", 1_000)
    gate.set()
    await eventually(lambda: all(3 in world.heard(f"conversation:{room}") for room in rooms), 2.0)


async def test_what_is_dropped_during_a_repair_is_repaired_again(world: World) -> None:
    """The broker refuses twice while its connection stands, as when it does not read what is sent."""
    host = await world.host()
    room = await world.room(ANNA, BEN)
    await eventually(lambda: settled(host))
    failures, publish = itertools.count(), host._broker.publish

    async def refusing(subject: str, data: bytes) -> None:
        if next(failures) < 2:
            raise BrokerUnavailable("the broker does not read what is sent")
        await publish(subject, data)

    host._broker.publish = refusing  # type: ignore[method-assign]
    push(host, saying(room, "x"))
    await eventually(lambda: 3 in world.heard(f"conversation:{room}"), 2.0)


async def test_what_was_committed_beside_a_stale_order_is_published(world: World) -> None:
    host = await world.host()
    painter, other = worker(world), worker(world)
    identifier = await order(world, ANNA)
    mine = new_id()
    await world.tell("submit_quote", painter, identifier, kind="order", **quote(mine))
    room = await conversation_of(world, identifier, painter)
    stream = f"conversation:{room}"
    await eventually(lambda: settled(host))
    doomed = new_id()
    world.store.commands[f"order:{identifier}", doomed] = 1  # the log holds what the activation does not know of
    held = world.logs[0].held = asyncio.Event()
    second = asyncio.create_task(
        world.tell("submit_quote", other, identifier, doomed, kind="order", **quote(new_id()), timeout_s=0.4)
    )
    await asyncio.sleep(0.05)
    said = asyncio.create_task(world.tell("send", ANNA, room, text="hello"))
    await asyncio.sleep(0.02)
    gone = asyncio.create_task(world.tell("withdraw_quote", painter, identifier, kind="order", quote_id=mine))
    await asyncio.sleep(0.05)
    world.logs[0].held = None
    held.set()
    offset = (await said).offset
    await gone
    await asyncio.gather(second, return_exceptions=True)
    end = world.store.end(stream)
    await eventually(lambda: end in world.heard(stream))
    await asyncio.sleep(0.2)
    assert settled(host)
    assert offset in world.heard(stream)


# --- answers that are not true -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["view", "encode_state"])
async def test_a_turn_that_fails_after_its_events_is_not_acknowledged(world: World, method: str) -> None:
    host = await world.host()
    identifier = await order(world, ANNA)
    before = world.store.end(f"order:{identifier}")
    rules = host._kinds["order"]

    def failing(*_: Any) -> Any:
        raise RuntimeError("a bug in a projection")

    setattr(rules, method, failing)
    command_id = new_id()
    with pytest.raises(Refusal):
        await world.tell("cancel", ANNA, identifier, command_id, kind="order", timeout_s=0.5)
    delattr(rules, method)
    answer = await world.tell("cancel", ANNA, identifier, command_id, kind="order")
    assert answer.offset == before + 1
    assert world.store.end(f"order:{identifier}") == answer.offset


async def test_an_activation_is_not_made_for_a_partition_that_was_just_lost(world: World) -> None:
    host = await world.host()
    painter = worker(world)
    identifier = await order(world, ANNA)
    mine = new_id()
    await world.tell("submit_quote", painter, identifier, kind="order", **quote(mine))
    room = await conversation_of(world, identifier, painter)
    host.forget(host.activations[f"conversation:{room}"])
    payload = json.dumps({"quote_id": mine}).encode()
    push(host, Command("order", identifier, "reject_quote", ANNA, new_id(), payload))
    host.lost([host.partitions[partition_of(room)]])  # as a flush that ends in the same tick may say
    await asyncio.sleep(0.05)
    other = await world.host("host-1")
    message = new_id()
    await world.tell("send", ANNA, room, message, text="hello")
    await host.assign([])
    await other.assign([])
    await host.assign(range(PARTITIONS))
    assert isinstance(landed := await world.router.ask(Query("conversation", room, "status", ANNA, message)), Status)
    assert landed.known


async def test_a_host_that_was_cut_off_for_a_moment_says_nothing_about_the_past(world: World) -> None:
    """Placement takes "no responders" for a crash at once, so the lease of half a second outlives the ownership."""
    old = await world.host("host-0", leased=False)
    room = await world.room(ANNA, BEN)
    await world.tell("send", ANNA, room, text="1")
    old.leased(world.clock.monotonic_s())
    broker = old._broker
    assert isinstance(broker, MemoryBroker)
    for subscription in broker._subscriptions:
        world.bus.remove(subscription)
    await world.host("host-1", leased=False)
    message = new_id()
    await world.tell("send", ANNA, room, message, text="2")
    for subscription in broker._subscriptions:  # the connection is back
        world.bus._exact.setdefault(subscription.subject, []).insert(0, subscription)
    for handler in broker._on_reconnect:
        handler()
    landed = await world.router.ask(Query("conversation", room, "status", ANNA, message))
    assert landed == Status(True, 4)


async def test_a_host_that_is_cut_off_has_no_lease_until_placement_hears_from_it_again(world: World) -> None:
    host = await world.host(leased=False)
    before_s = world.clock.monotonic_s()
    host.leased(before_s)
    await eventually(host.lease_fresh)
    world.bus.go_down()
    assert not host.lease_fresh()
    host.leased(before_s)  # an acknowledgement of before, that came late
    assert not host.lease_fresh()
    world.bus.come_back()
    await asyncio.sleep(0.01)
    host.leased(world.clock.monotonic_s())
    assert not host.lease_fresh(), "what was taken and given back meanwhile is not known: the log is asked first"
    await eventually(host.lease_fresh)


async def test_who_was_cut_off_while_its_partition_was_taken_and_given_back_knows_that_it_is_stale(
    world: World,
) -> None:
    """It heard neither the table that took the partition away nor the taking; then placement acknowledges it again."""
    old = await world.host("host-0", leased=False)
    room = await world.room(ANNA, BEN)
    old.leased(world.clock.monotonic_s())
    await eventually(old.lease_fresh)
    await old.ownership._notices.stop()  # type: ignore[union-attr]
    new = await world.host("host-1")
    said = await world.tell("send", ANNA, room, text="while you were away")
    await new.ownership.release(list(new.partitions))
    old._cut_off()
    old.leased(world.clock.monotonic_s())
    await eventually(lambda: old.lease_fresh() or partition_of(room) not in old.partitions)
    assert partition_of(room) not in old.partitions
    await old.assign(range(PARTITIONS))
    attached = await world.router.ask(Query("conversation", room, "attach", ANNA), 2.0)
    assert isinstance(attached, Attached)
    assert attached.head == said.offset


async def test_a_former_owner_hears_of_the_taking_before_it_can_answer_from_the_past(world: World) -> None:
    old = await world.host("host-0")
    room = await world.room(ANNA, BEN)
    assert old.lease_fresh()
    await world.host("host-1")
    said = await world.tell("send", ANNA, room, text="to the new one")
    assert partition_of(room) not in old.partitions
    attached = await world.router.ask(Query("conversation", room, "attach", ANNA), 2.0)
    assert isinstance(attached, Attached)
    assert attached.head == said.offset


# --- limits ------------------------------------------------------------------------------------------------------


async def test_a_mailbox_holds_as_many_as_it_says(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    held = world.logs[0].held = asyncio.Event()
    sends = [asyncio.create_task(world.tell("send", ANNA, room, text=str(n))) for n in range(200)]
    await asyncio.sleep(0.1)
    world.logs[0].held = None
    held.set()
    results = await asyncio.gather(*sends, return_exceptions=True)
    assert [r for r in results if isinstance(r, BaseException)] == []


# --- partitions come and go --------------------------------------------------------------------------------------


async def test_a_partition_that_is_not_wanted_any_more_is_not_taken(world: World) -> None:
    host = await world.host()
    async with host.ownership._moving:
        host.doubt({7})
        await asyncio.sleep(0.01)
        host.ownership.wanted = set(range(PARTITIONS)) - {7}  # a new table arrives
    await asyncio.sleep(0.05)
    assert 7 not in host.partitions


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_partition_taken_anew_during_a_flush_stays(world: World, when: str) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    gate, inner, reached = asyncio.Event(), world.logs[0]._inner.commit, asyncio.Event()

    async def slow(turns: Any, heads: Any) -> Any:
        if when == "before":
            reached.set()
            await gate.wait()
        committed = await inner(turns, heads)
        reached.set()
        await gate.wait()
        return committed

    world.logs[0].commit = slow  # type: ignore[method-assign]
    sending = asyncio.create_task(world.tell("send", ANNA, room, text="x", timeout_s=2.0))
    await reached.wait()
    host.doubt({partition_of(room)})  # as a turn that broke half-way does
    await eventually(lambda: partition_of(room) in host.partitions)
    gate.set()
    await sending
    assert (await world.tell("send", ANNA, room, text="y", timeout_s=1.0)).offset == 4


async def test_positions_that_could_not_be_stored_do_not_end_the_tidying(world: World) -> None:
    host = await world.host(idle_s=0.0)

    async def failing(*_: Any) -> None:
        raise OutcomeUnknown("lost at COMMIT")

    host._signals._read_models.add_positions = failing  # type: ignore[method-assign]
    host._signals._positions["x"] = [Position(1, 0.0, 0.0, 1.0)]
    await asyncio.sleep(1.1)
    room = await world.room(ANNA, BEN)
    await eventually(lambda: f"conversation:{room}" not in host.activations, 3.0)


async def test_one_failed_assignment_does_not_end_a_hosts_obedience(world: World) -> None:
    host = await world.host()
    await host.assign([])
    take, failed = world.logs[0]._inner.take, asyncio.Event()

    async def failing(*arguments: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("an error of the driver that nobody foresaw")
        return await take(*arguments)

    world.logs[0].take = failing  # type: ignore[attr-defined]
    placement = PlacementService(MemoryBroker(world.bus), world.clock, NoMetrics())
    member = HostMember(host, MemoryBroker(world.bus), world.clock, NoMetrics())
    await placement.start()
    await member.start()
    try:
        await eventually(lambda: len(host.partitions) == PARTITIONS, 2.0)
    finally:
        await member.stop()
        await placement.stop()


# --- placement ---------------------------------------------------------------------------------------------------


class Shifted:
    """A clock some way off."""

    def __init__(self, world: World, by_ms: int) -> None:
        self._clock, self._by_ms = world.clock, by_ms

    def now_ms(self) -> int:
        return self._clock.now_ms() + self._by_ms

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()


async def platform(world: World, names: tuple[str, ...]) -> tuple[list[Host], list[HostMember]]:
    hosts = [await world.host(name) for name in names]
    for host in hosts:
        await host.assign([])
    members = [HostMember(host, MemoryBroker(world.bus), world.clock, NoMetrics()) for host in hosts]
    for member in members:
        await member.start()
        await asyncio.sleep(0.1)  # their heartbeats do not come together
    return hosts, members


async def test_nothing_moves_when_the_brokers_server_was_restarted(world: World) -> None:
    """Placement has its connection back before the hosts have theirs: nobody answers its probes."""
    placement = PlacementService(MemoryBroker(world.bus), world.clock, NoMetrics())
    await placement.start()
    hosts, members = await platform(world, ("host-0", "host-1"))
    await eventually(lambda: all(0 < len(h.partitions) < PARTITIONS for h in hosts))
    await asyncio.sleep(0.4)
    takeovers = sum(entry is None for log in world.store.logs.values() for entry in log)

    async def gone(*_: Any) -> Any:
        raise BrokerUnavailable("no connection")

    brokers = [b for pair in zip(hosts, members, strict=True) for b in (pair[0]._broker, pair[1]._broker)]
    for broker in brokers:
        assert isinstance(broker, MemoryBroker)
        broker.publish = broker.request = gone  # type: ignore[method-assign]
        for subscription in broker._subscriptions:
            world.bus.remove(subscription)
    for handler in (*placement._broker._on_lost, *placement._broker._on_reconnect):
        handler()
    table = placement.placement.table
    await asyncio.sleep(0.25)
    assert placement.placement.table == table
    for broker in brokers:
        assert isinstance(broker, MemoryBroker)
        del broker.publish, broker.request
        for subscription in broker._subscriptions:
            world.bus.add(subscription)
        for handler in broker._on_reconnect:
            handler()
        await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    for member in members:
        await member.stop()
    await placement.stop()
    assert sum(entry is None for log in world.store.logs.values() for entry in log) == takeovers


async def test_a_placement_whose_clock_is_behind_is_obeyed(world: World) -> None:
    first = PlacementService(MemoryBroker(world.bus), world.clock, NoMetrics())
    await first.start()
    hosts, members = await platform(world, ("host-0", "host-1"))
    await eventually(lambda: all(0 < len(h.partitions) < PARTITIONS for h in hosts))
    await first.stop()
    await first._broker.close()
    second = PlacementService(MemoryBroker(world.bus), Shifted(world, -3_600_000), NoMetrics())  # type: ignore[arg-type]
    await second.start()
    await asyncio.sleep(0.3)
    await members[1].stop()
    await members[1]._broker.close()
    try:
        await eventually(lambda: len(hosts[0].partitions) == PARTITIONS, 3.0)
    finally:
        await members[0].stop()
        await second.stop()


def test_nothing_moves_when_a_new_placement_hears_of_a_new_host_first() -> None:
    placement = Placement(1)
    beats = [Heartbeat("host-0", "fresh", 1, 0, 0), Heartbeat("host-1", "old", 2, 525, 9)]
    for n in range(7):
        assert not any(placement.heard(beat, n / 10) for beat in beats)
    assert placement.tick(0.76)
    assert set(placement.table.owners) == {"fresh", "old"}


def test_a_host_that_was_replaced_does_not_come_back_under_its_name() -> None:
    placement = Placement(1)
    old, new = Heartbeat("host-0", "a", 1, 0, 0), Heartbeat("host-0", "b", 2, 0, 0)
    placement.heard(old, 0.0)
    placement.heard(new, 0.1)
    moved = [placement.heard(beat, 0.2) for beat in (old, new, old, new)]
    assert moved == [False] * 4


# --- a storm -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [3, 26, 1001])
async def test_after_a_storm_every_acknowledged_message_stands_once_where_it_was_said_to(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handoffs, failed commits, crashes, outages of the broker, and the same ids again and again: the accounts balance."""
    monkeypatch.setattr(relay_module, "SAVE_EVERY_S", 0.02)
    storm = Storm(seed)
    await storm.run(0.5)
    await storm.world.stop()


async def test_without_an_outage_every_stream_is_heard_in_order_from_its_first_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_module, "SAVE_EVERY_S", 0.02)
    storm = Storm(7, without=("outage",))
    await storm.run(0.5)
    assert storm.out_of_order() == []
    await storm.world.stop()


# --- what a refusal tells ----------------------------------------------------------------------------------------


async def test_a_misused_id_says_how_the_order_stands_and_what_is_possible(world: World) -> None:
    await world.host()
    identifier = await order(world, ANNA)
    command_id = new_id()
    await world.tell("cancel", ANNA, identifier, command_id, kind="order", reason="one")
    with pytest.raises(Refusal) as caught:
        await world.tell("cancel", ANNA, identifier, command_id, kind="order", reason="two")
    refused = caught.value.refused
    assert refused.code is Code.IDEMPOTENCY_MISMATCH
    assert refused.current == {"state": "cancelled", "version": 3, "offset": 3}
    assert refused.allowed_commands == ()
