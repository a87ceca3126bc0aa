"""While the store is away nothing is acknowledged, reads of what is live go on, and nobody has to restart anything."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from actors.group_commit import RAREST_S
from actors.host import SHARES
from domain.commands import Accepted, Answer, Attached, Query, Status, Viewed
from domain.errors import Code, Refusal, Refused
from domain.ids import partition_of
from tests.support.runtime import World, eventually, new_id, person

ANNA, BEN = person(), person()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await World().start()
    yield made
    await made.stop()


async def ask(world: World, room: str, name: str, command_id: str = "") -> Any:
    return await world.router.ask(Query("conversation", room, name, ANNA, command_id), 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["away", "unknown"])
async def test_reads_go_on_from_what_is_durable_and_writes_wait_for_the_store(world: World, how: str) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    first = await world.tell("send", ANNA, room, text="before")
    log = world.logs[0]
    log.away, log.fail_before = how == "away", int(how == "unknown")
    if how == "unknown":
        log.take_away = True
    sent, made = asyncio.create_task(world.tell("send", ANNA, room, made := new_id(), text="meanwhile")), made
    await asyncio.sleep(0.1)
    attached = await ask(world, room, "attach")
    assert isinstance(attached, Attached)
    assert attached.head == first.offset
    assert isinstance(await ask(world, room, "view"), Viewed)
    assert not sent.done()
    log.away = log.take_away = False
    answer = await sent
    assert answer.offset == first.offset + 1
    assert await ask(world, room, "status", made) == Status(True, answer.offset)
    assert [entry.command_id for entry in world.store.streams[f"conversation:{room}"]].count(made) == 1


async def test_a_write_is_refused_at_its_deadline_and_settled_by_its_id_afterwards(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    world.logs[0].away = True
    made = new_id()
    with pytest.raises(Refusal) as refused:
        await world.tell("send", ANNA, room, made, text="now or never", timeout_s=0.4)
    assert refused.value.code is Code.UNAVAILABLE
    assert len(world.store.streams[f"conversation:{room}"]) == 2
    world.logs[0].away = False
    assert (await world.tell("send", ANNA, room, made, text="now or never")).offset == 3


async def test_several_turns_of_a_failed_flush_are_undone_and_done_again_in_order(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    log = world.logs[0]
    log.held = asyncio.Event()
    ids = [new_id() for _ in range(30)]
    sending = [asyncio.create_task(world.tell("send", ANNA, room, made, text=made)) for made in ids]
    await asyncio.sleep(0.05)
    log.away = True
    log.held.set()
    log.held = None
    await asyncio.sleep(0.1)
    log.away = False
    answers = await asyncio.gather(*sending)
    assert sorted(answer.offset for answer in answers) == list(range(3, 33))
    entries = world.store.streams[f"conversation:{room}"]
    assert sorted(entry.command_id for entry in entries[2:] if entry.command_id) == sorted(ids)


async def test_other_streams_keep_what_they_knew_when_one_flush_fails(world: World) -> None:
    """What was not in the flush was not touched: it is neither loaded anew nor taken anew."""
    host = await world.host()
    calm, busy = await world.room(ANNA, BEN), await world.room(ANNA, BEN)
    alive, owner = host.activations[f"conversation:{calm}"], host.partitions[partition_of(calm)]
    world.logs[0].away = True
    with pytest.raises(Refusal):
        await world.tell("send", ANNA, busy, text="lost", timeout_s=0.2)
    world.logs[0].away = False
    await world.tell("send", ANNA, busy, text="again")
    assert host.activations[f"conversation:{calm}"] is alive
    assert host.partitions[partition_of(calm)] is owner


async def test_an_unknown_outcome_is_settled_by_taking_the_partition_anew(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    owner = host.partitions[partition_of(room)].owner
    world.logs[0].fail_after = 1
    answer = await world.tell("send", ANNA, room, text="did it land?")
    assert answer.offset == 3
    assert answer.replayed
    assert host.partitions[partition_of(room)].owner > owner
    await eventually(lambda: world.heard(f"conversation:{room}") and world.heard(f"conversation:{room}")[-1] == 3)


async def test_a_lease_is_not_proved_without_the_log_for_what_is_in_doubt(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    log = world.logs[0]
    for number in [*host.partitions]:
        if number != partition_of(room):
            host.ownership.drop(number)
    log.fail_before, log.take_away = 1, True
    with pytest.raises(Refusal):
        await world.tell("send", ANNA, room, text="unknown", timeout_s=0.2)
    assert [partition.doubtful for partition in host.partitions.values()] == [True]
    log.away = True
    host._cut_off()
    await asyncio.sleep(0.01)
    host.leased(world.clock.monotonic_s())
    await asyncio.sleep(0.1)
    assert not host.lease_fresh()
    log.away = log.take_away = False
    assert (await world.tell("send", ANNA, room, text="again")).offset == 3


async def test_questions_never_wait_for_a_slow_commit(world: World) -> None:
    await world.host()
    room = await world.room(ANNA, BEN)
    world.logs[0].held = asyncio.Event()
    made = new_id()
    sending = asyncio.create_task(world.tell("send", ANNA, room, made, text="slow"))
    await asyncio.sleep(0.05)
    assert (await ask(world, room, "attach")).head == 2
    status = asyncio.create_task(ask(world, room, "status", made))
    await asyncio.sleep(0.05)
    assert not status.done(), "whether it lands is not known yet"
    world.logs[0].held.set()
    assert (await sending).offset == 3
    assert await status == Status(True, 3)


async def test_a_stream_that_cannot_be_loaded_waits_for_the_store_until_the_deadline(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    host.forget(host.activations[f"conversation:{room}"])
    world.logs[0].away = True
    asking = asyncio.create_task(world.tell("send", ANNA, room, text="patient"))
    await asyncio.sleep(0.3)
    assert not asking.done()
    world.logs[0].away = False
    assert isinstance(await asking, Accepted)


async def test_under_load_typing_and_reads_are_shed_before_chat_and_chat_before_orders(world: World) -> None:
    assert SHARES["signal"] < SHARES["read"] < SHARES["conversation"] < SHARES["order"] == 1.0
    await world.host(buffer_commands=20)
    rooms = [await world.room(ANNA, BEN) for _ in range(30)]
    world.logs[0].held = held = asyncio.Event()
    under_way = asyncio.create_task(world.tell("send", ANNA, rooms[0], text="in flight"))
    await asyncio.sleep(0.05)
    sending = [asyncio.create_task(world.tell("send", ANNA, room, text="full", timeout_s=5.0)) for room in rooms]
    await asyncio.sleep(0.1)
    assert len(world.hosts[0]._commits) == 18, "nine tenths of the buffer are for chat"
    errors = [task.exception() for task in sending if task.done()]
    assert len(errors) == 12
    for error in errors:
        assert isinstance(error, Refusal)
        assert error.code is Code.BUSY
        assert error.refused.retry_after_s
    order = asyncio.create_task(world.tell("create", ANNA, new_id(), kind="order"))
    await asyncio.sleep(0.05)
    held.set()
    world.logs[0].held = None
    await under_way
    for done in await asyncio.gather(*sending[:18]):
        assert isinstance(done, Accepted)
    with pytest.raises(Refusal) as refused:
        await order
    assert refused.value.code is Code.FORBIDDEN, "it was decided (nobody knows Anna), not shed"


async def test_what_waits_asks_again_the_more_seldom_the_longer_the_store_is_away(world: World) -> None:
    """Hundreds of writes wait for a full disk: five times a second each would keep a core busy with nothing."""
    host = await world.host()
    room = await world.room(ANNA, BEN)
    told: list[float] = []
    answer = host.answer

    def noted(reply: str, said: Answer) -> None:
        if isinstance(said, Refused):
            told.append(said.retry_after_s or 0.0)
        answer(reply, said)

    host.answer = noted  # type: ignore[method-assign]
    for _ in range(2):
        told.clear()
        world.logs[0].away = True
        with pytest.raises(Refusal):
            await world.tell("send", ANNA, room, text="x", timeout_s=2.5)
        world.logs[0].away = False
        assert told == sorted(told)
        assert told[0] == 0.2
        assert 0.4 < told[-1] <= RAREST_S
        await world.tell("send", ANNA, room, text="it is back")
