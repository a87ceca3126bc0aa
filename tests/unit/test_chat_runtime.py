"""Conversations in hosts: what is deleted is in no stored state, and a host that loads it goes on as the one before."""

import json
from collections.abc import AsyncIterator

import pytest

from domain.chat import ChatRules
from domain.commands import SYSTEM, Accepted, Actor, Command
from domain.errors import Code, Refusal
from tests.support.runtime import World, kinds, new_id

ANNA, BEN, EVE = (Actor("user", new_id(), new_id()) for _ in range(3))
NUMBER = "13800138000"


class OftenStored(ChatRules):
    snapshot_every = 3  # type: ignore[misc]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await World({**kinds(b"pepper"), "conversation": OftenStored()}).start()
    yield made
    await made.stop()


async def say(world: World, actor: Actor, room: str, name: str, **payload: object) -> str:
    """The id of the command, which has had its effect."""
    command = Command("conversation", room, name, actor, new_id(), json.dumps(payload).encode())
    answer = await world.router.ask(command)
    assert isinstance(answer, Accepted)
    return command.command_id


async def of_order(world: World) -> str:
    room = new_id()
    await say(world, SYSTEM, room, "open", member_ids=[ANNA.id, BEN.id], order_id=new_id())
    return room


def stored(world: World) -> str:
    return repr((world.store.snapshots, world.store.logs, world.store.messages, world.store.conversations))


async def test_what_a_deleted_message_hid_is_in_no_stored_state(world: World) -> None:
    await world.host()
    room = await of_order(world)
    message = await say(world, ANNA, room, "send", text=f"call {NUMBER}")
    assert NUMBER in repr(world.store.snapshots)
    await say(world, ANNA, room, "delete", message_id=message)
    assert NUMBER not in stored(world)


async def test_what_was_revealed_and_then_deleted_is_in_no_stored_state(world: World) -> None:
    await world.host()
    room = await of_order(world)
    message = await say(world, ANNA, room, "send", text=f"call {NUMBER}")
    await say(world, SYSTEM, room, "contacts.reveal")
    await say(world, ANNA, room, "delete", message_id=message)
    assert NUMBER not in stored(world)


async def test_a_host_that_takes_over_reveals_what_the_former_one_hid(world: World) -> None:
    first = await world.host()
    room = await of_order(world)
    message = await say(world, ANNA, room, "send", text=f"call {NUMBER}")
    await first.stop()
    await world.host()
    with pytest.raises(Refusal) as refusal:
        await say(world, ANNA, room, "contacts.reveal")
    assert refusal.value.code is Code.FORBIDDEN
    await say(world, SYSTEM, room, "contacts.reveal")
    entry = world.store.streams[f"conversation:{room}"][-1]
    assert json.loads(entry.body) == {
        "type": "message.revealed",
        "message_id": message,
        "by": "system",
        "at": json.loads(entry.body)["at"],
        "text": f"call {NUMBER}",
    }


async def test_who_has_blocked_somebody_is_asked_before_a_conversation_opens(world: World) -> None:
    await world.host()
    world.store.blocks.add((BEN.id, ANNA.id))
    with pytest.raises(Refusal) as refusal:
        await say(world, ANNA, new_id(), "open", member_ids=[ANNA.id, BEN.id])
    assert refusal.value.code is Code.FORBIDDEN
    await say(world, ANNA, new_id(), "open", member_ids=[ANNA.id, EVE.id])
