"""Memory follows what is active: idle activations leave, and beyond the caps the least recently used."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from actors.activation import BARE_BYTES
from tests.support.runtime import World, eventually, person

ANNA, BEN = person(), person()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await World().start()
    yield made
    await made.stop()


async def test_beyond_the_cap_by_bytes_the_least_recently_used_leave(world: World) -> None:
    host = await world.host(activations_bytes=6 * BARE_BYTES)
    rooms = [await world.room(ANNA, BEN) for _ in range(8)]
    for room in rooms[:-1]:
        await world.tell("send", ANNA, room, text="x" * 200)
    await world.tell("send", ANNA, rooms[0], text="still in use")
    await eventually(lambda: sum(a.bytes for a in host.activations.values()) <= 6 * BARE_BYTES, 3.0)
    assert f"conversation:{rooms[0]}" in host.activations
    assert f"conversation:{rooms[1]}" not in host.activations


async def test_what_an_activation_remembers_is_weighed_and_let_go(world: World) -> None:
    host = await world.host()
    room = await world.room(ANNA, BEN)
    for _ in range(3):
        await world.tell("send", ANNA, room, text="x" * 5_000)
    activation = host.activations[f"conversation:{room}"]
    assert activation.bytes > BARE_BYTES + 15_000
    for _ in range(70):
        await world.tell("send", ANNA, room, text="y")
    assert activation.bytes < BARE_BYTES + 70 * 1_000


async def test_a_hot_conversation_leaves_a_snapshot_when_it_goes_idle(world: World) -> None:
    host = await world.host(idle_s=0.0)
    room = await world.room(ANNA, BEN)
    await asyncio.gather(*(world.tell("send", ANNA, room, text="again") for _ in range(40)))
    await eventually(lambda: f"conversation:{room}" not in host.activations, 4.0)
    assert world.store.snapshots[f"conversation:{room}"].offset == world.store.end(f"conversation:{room}")
    assert (await world.tell("send", ANNA, room, text="back")).offset == 43


async def test_many_streams_wanted_at_once_are_loaded_by_few_reads(world: World) -> None:
    host = await world.host()
    rooms = [await world.room(ANNA, BEN) for _ in range(300)]
    for activation in list(host.activations.values()):
        host.forget(activation)
    loads: list[int] = []
    load = world.logs[0]._inner.load

    async def counted(streams: Any, schemas: Any) -> Any:
        loads.append(len(streams))
        return await load(streams, schemas)

    world.logs[0]._inner.load = counted  # type: ignore[method-assign]
    await asyncio.gather(*(world.tell("send", ANNA, room, text="all at once") for room in rooms))
    assert sum(loads) == 300
    assert len(loads) <= 10


async def test_partitions_that_go_take_only_their_own_activations(world: World) -> None:
    host = await world.host()
    rooms = [await world.room(ANNA, BEN) for _ in range(10)]
    gone = host.activations[f"conversation:{rooms[0]}"].partition
    await host.ownership.release([gone])
    assert {a.partition for a in host.activations.values()} == {p for p in by_room(rooms) if p != gone}
    assert host.activations.living_in([gone]) == []


def by_room(rooms: list[str]) -> set[int]:
    return {int(room[-3:], 16) & 1023 for room in rooms}
