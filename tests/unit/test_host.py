"""The actor runtime: what is acknowledged is durable, once, in order, whoever owns the partition."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from actors.activation import MAILBOX, REMEMBERED
from domain.commands import SYSTEM, Attached, Command, Query, Status, Viewed
from domain.errors import Code, Refusal
from domain.ids import partition_of
from domain.ports import Received, StoreUnavailable
from storage.memory import MemoryPartitionLog
from tests.support.runtime import World, eventually, new_id, person

ANNA, BEN, EVE = person(), person(), person()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await World().start()
    yield made
    await made.stop()


async def stored(world: World, room: str, kind: str = "conversation") -> list[Any]:
    """What the log holds of a stream: (offset, type, text) of every entry."""
    stream = f"{kind}:{room}"
    loaded = await MemoryPartitionLog(world.store).load([stream], {"conversation": -1, "order": -1})
    return [(e.offset, e.type, json.loads(e.body).get("text")) for e in loaded[stream].tail]


async def refused(work: Any) -> Code:
    with pytest.raises(Refusal) as caught:
        await work
    return caught.value.code


async def test_an_acknowledged_message_is_in_the_log_and_published_once(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    sent = await world.tell("send", ANNA, room, text="hello")
    assert (await stored(world, room))[-1] == (sent.offset, "message.posted", "hello")
    await eventually(lambda: len(world.heard(f"conversation:{room}")) >= 3)
    assert world.heard(f"conversation:{room}") == [1, 2, 3]


async def test_nothing_is_answered_or_published_before_the_commit(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    world.logs[0].held = asyncio.Event()
    sending = asyncio.create_task(world.tell("send", ANNA, room, text="hello"))
    await asyncio.sleep(0.1)
    assert not sending.done()
    assert 3 not in world.heard(f"conversation:{room}")
    world.logs[0].held.set()
    world.logs[0].held = None
    assert (await sending).offset == 3


async def test_the_same_id_twenty_times_at_once_has_one_effect_and_equal_answers(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    message = new_id()
    answers = await asyncio.gather(*(world.tell("send", ANNA, room, message, text="hello") for _ in range(20)))
    assert len({(answer.offset, answer.at, answer.events) for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 19
    assert [entry[1] for entry in await stored(world, room)].count("message.posted") == 1


async def test_the_same_id_for_something_else_is_a_mismatch(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    message = new_id()
    await world.tell("send", ANNA, room, message, text="hello")
    assert await refused(world.tell("send", ANNA, room, message, text="other")) is Code.IDEMPOTENCY_MISMATCH
    assert await refused(world.tell("send", BEN, room, message, text="hello")) is Code.IDEMPOTENCY_MISMATCH
    assert await refused(world.tell("send", EVE, room, message, text="hello")) is Code.NOT_FOUND


@pytest.mark.parametrize("make_id", [new_id, lambda: str(uuid.uuid4())], ids=["uuid7", "uuid4"])
async def test_an_id_is_remembered_long_after_the_activation_forgot_it(world: World, make_id: Any) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    first_id = make_id()
    first = await world.tell("send", ANNA, room, first_id, text="first")
    for n in range(REMEMBERED + 5):
        await world.tell("send", BEN, room, make_id(), text=str(n))
    assert first_id not in host.activations[f"conversation:{room}"].recent
    again = await world.tell("send", ANNA, room, first_id, text="first")
    assert (again.offset, again.at, again.replayed) == (first.offset, first.at, True)
    assert await refused(world.tell("send", ANNA, room, first_id, text="other")) is Code.IDEMPOTENCY_MISMATCH


async def test_new_uuid7_ids_cost_no_look_up_however_long_the_conversation(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    for n in range(3 * REMEMBERED):
        await world.tell("send", ANNA, room, text=str(n))
    assert world.logs[0].lookups == 0


async def test_an_id_survives_a_takeover_with_and_without_a_snapshot(world: World) -> None:
    await world.host("host-0")
    room = await world.room(ANNA, BEN)
    first_id = new_id()
    first = await world.tell("send", ANNA, room, first_id, text="first")
    for n in range(210):
        await world.tell("send", BEN, room, text=str(n))
    late_id = new_id()
    late = await world.tell("send", ANNA, room, late_id, text="late")
    await world.hosts[0].stop()
    await world.host("host-1")
    for command_id, text, before in ((first_id, "first", first), (late_id, "late", late)):
        again = await world.tell("send", ANNA, room, command_id, text=text)
        assert (again.offset, again.at, again.replayed) == (before.offset, before.at, True)
    assert (await world.tell("send", ANNA, room, text="new")).offset == late.offset + 1


async def test_a_former_owner_commits_nothing_and_its_callers_reach_the_new_one(world: World) -> None:
    """Both hosts believe that they own everything, and both hear every command.

    Whatever the former one decides clashes with the takeover row; its callers are told to ask again and the new owner
    has the message once.
    """
    old = await world.host("host-0")
    room = await world.room(ANNA, BEN)
    await world.host("host-1")
    offsets = [(await world.tell("send", ANNA, room, text=str(n))).offset for n in range(20)]
    assert offsets == list(range(3, 23))
    texts = [text for _, kind, text in await stored(world, room) if kind == "message.posted"]
    assert texts == [str(n) for n in range(20)]
    assert partition_of(room) not in old.partitions


async def test_a_stale_owner_without_a_lease_says_nothing_about_the_past(world: World) -> None:
    old = await world.host("host-0", leased=False)
    room = await world.room(ANNA, BEN)
    await world.tell("send", ANNA, room, text="1")
    await old.ownership._notices.stop()  # type: ignore[union-attr]
    new = await world.host("host-1")
    await new.ownership.release(list(new.partitions))
    assert partition_of(room) in old.partitions
    question = Query("conversation", room, "attach", ANNA)
    assert await refused(world.router.ask(question, 0.5)) is Code.UNAVAILABLE
    assert partition_of(room) not in old.partitions


@pytest.mark.parametrize("fault", ["fail_before", "fail_after"])
async def test_an_unknown_outcome_is_settled_by_the_same_id(world: World, fault: str) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    setattr(world.logs[0], fault, 1)
    sent = await world.tell("send", ANNA, room, text="hello")
    assert sent.offset == 3
    assert sent.replayed is (fault == "fail_after")
    assert [entry[1] for entry in await stored(world, room)].count("message.posted") == 1
    await eventually(lambda: 3 in world.heard(f"conversation:{room}"))


async def unpublished(world: World) -> str:
    """A conversation whose third event is committed while the broker is away."""
    await world.host("host-0")
    room = await world.room(ANNA, BEN)
    await eventually(lambda: world.heard(f"conversation:{room}") == [1, 2])
    world.bus.go_down()
    command = Command("conversation", room, "send", ANNA, new_id(), b'{"text": "hello"}')
    world.hosts[0]._receive(Received("cmd.0", msgspec.msgpack.encode(command)))
    await eventually(lambda: len(world.logs[0].commits) >= 2)
    await asyncio.sleep(0.05)
    assert 3 not in world.heard(f"conversation:{room}")
    return room


async def test_what_a_crashed_host_committed_but_did_not_publish_the_next_owner_publishes(world: World) -> None:
    room = await unpublished(world)
    await world.crash(world.hosts[0])
    world.bus.come_back()
    await asyncio.sleep(0.05)
    assert 3 not in world.heard(f"conversation:{room}")
    await world.host("host-1")
    await eventually(lambda: 3 in world.heard(f"conversation:{room}"))


async def test_what_was_committed_while_the_broker_was_away_is_published_when_it_is_back(world: World) -> None:
    room = await unpublished(world)
    world.bus.come_back()
    await eventually(lambda: 3 in world.heard(f"conversation:{room}"))


async def test_a_full_mailbox_is_busy_and_the_same_id_gets_through_later(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    world.logs[0].held = asyncio.Event()
    ids = [new_id() for _ in range(MAILBOX + 10)]
    sends = [asyncio.create_task(world.tell("send", ANNA, room, made, text=made)) for made in ids]
    await asyncio.wait(sends, timeout=2.0, return_when=asyncio.FIRST_COMPLETED)
    world.logs[0].held.set()
    world.logs[0].held = None
    results = await asyncio.gather(*sends, return_exceptions=True)
    refusals = [result for result in results if isinstance(result, Refusal)]
    assert refusals
    assert all(r.code is Code.BUSY and (r.refused.retry_after_s or 0) > 0 for r in refusals)
    for made, result in zip(ids, results, strict=True):
        if isinstance(result, Refusal):
            await world.tell("send", ANNA, room, made, text=made)
    assert sorted(text for _, kind, text in await stored(world, room) if kind == "message.posted") == sorted(ids)


async def test_an_operator_who_looks_on_does_not_keep_a_stream_alive(world: World) -> None:
    host = await world.host()
    first, second = await world.room(ANNA, BEN), await world.room(ANNA, BEN)
    await asyncio.sleep(0.2)
    for _ in range(2):
        answer = await world.router.ask(Query("conversation", first, "inspect", SYSTEM))
        assert isinstance(answer, Viewed)
        standing = json.loads(answer.body)
        assert standing["idle_s"] >= 0.2
        assert standing["committed"] == 2
    assert [*host.activations] == [f"conversation:{first}", f"conversation:{second}"]


async def test_what_waits_for_streams_to_load_counts_as_waiting(world: World) -> None:
    host = await world.host(buffer_commands=10)
    rooms = [await world.room(ANNA, BEN) for _ in range(30)]
    for room in rooms:
        host.forget(host.activations[f"conversation:{room}"])
    loading = asyncio.Event()
    load = world.logs[0].load

    async def slow(*arguments: Any) -> Any:
        await loading.wait()
        return await load(*arguments)

    world.logs[0].load = slow  # type: ignore[method-assign]
    ids = [new_id() for _ in rooms]
    sends = [
        asyncio.create_task(world.tell("send", ANNA, room, made, text="x", timeout_s=1.0))
        for room, made in zip(rooms, ids, strict=True)
    ]
    answered, _ = await asyncio.wait(sends, timeout=0.5)
    assert host.activations.waiting <= 10
    assert len(answered) >= 20
    loading.set()
    results = await asyncio.gather(*sends, return_exceptions=True)
    assert {r.code for r in results if isinstance(r, Refusal)} == {Code.BUSY}
    assert host.activations.waiting == 0


async def test_a_store_that_is_gone_makes_unavailable_and_acknowledges_nothing(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)

    async def gone(*_: Any) -> Any:
        raise StoreUnavailable("no route")

    log = world.logs[0]
    commit, take = log.commit, log._inner.take
    log.commit, log._inner.take = gone, gone  # type: ignore[method-assign]
    assert await refused(world.tell("send", ANNA, room, text="x", timeout_s=0.5)) is Code.UNAVAILABLE
    log.commit, log._inner.take = commit, take  # type: ignore[method-assign]
    assert (await world.tell("send", ANNA, room, text="y")).offset == 3


async def test_queries_answer_membership_views_and_whether_an_id_landed(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    message = new_id()
    await world.tell("send", ANNA, room, message, text="hello")
    attached = await world.router.ask(Query("conversation", room, "attach", BEN))
    assert isinstance(attached, Attached)
    assert attached.head == 3
    assert attached.epoch
    landed = await world.router.ask(Query("conversation", room, "status", BEN, message))
    assert landed == Status(True, 3)
    assert await world.router.ask(Query("conversation", room, "status", BEN, new_id())) == Status(False)
    view = await world.router.ask(Query("conversation", room, "view", ANNA))
    assert isinstance(view, Viewed)
    assert json.loads(view.body)["members"] == [ANNA.id, BEN.id]
    for name in ("attach", "view", "status"):
        assert await refused(world.router.ask(Query("conversation", room, name, EVE, message))) is Code.NOT_FOUND  # type: ignore[arg-type]
        assert (
            await refused(world.router.ask(Query("conversation", new_id(), name, EVE, message))) is Code.NOT_FOUND  # type: ignore[arg-type]
        )


async def test_a_write_without_an_id_is_refused(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    for bad in ("nonsense", new_id().upper()):
        assert await refused(world.tell("send", ANNA, room, bad, text="x")) is Code.INVALID


async def test_idle_activations_are_collected_and_come_back_as_they_were(world: World) -> None:
    host = await world.host(idle_s=0.0)
    room = await world.room(ANNA, BEN)
    await world.tell("send", ANNA, room, text="hello")
    await eventually(lambda: f"conversation:{room}" not in host.activations)
    assert (await world.tell("send", BEN, room, text="hi")).offset == 4


async def test_beyond_the_limit_the_least_recently_used_activations_go(world: World) -> None:
    host = await world.host(activations=5)
    rooms = [await world.room(ANNA, BEN) for _ in range(9)]
    await world.tell("send", ANNA, rooms[0], text="used again")
    await eventually(lambda: len(host.activations) <= 5)
    assert set(host.activations) == {f"conversation:{room}" for room in (rooms[0], *rooms[-4:])}
    assert (await world.tell("send", BEN, rooms[1], text="it is all there")).offset == 3


async def test_one_commit_carries_the_turns_of_many_conversations(world: World) -> None:
    await world.host()
    rooms = await asyncio.gather(*(world.room(ANNA, BEN) for _ in range(50)))
    world.logs[0].commits.clear()
    await asyncio.gather(*(world.tell("send", ANNA, room, text="x") for room in rooms))
    assert len(world.logs[0].commits) < 10
