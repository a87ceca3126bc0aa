"""The demo's people over the WebSocket, against a gateway on a real socket: what they hear, say, and how they come back."""

from collections.abc import AsyncIterator

import httpx
import pytest

from deploy.ledger import Ledger
from deploy.person import Addresses, Person, RefusedError, StoryError, UnansweredError
from domain.errors import Code, Refusal
from tests.contract.test_gateway_client import ALICE, BOB, CHAT, CONVERSATION, JOB, ORDER, House, house, new_id, until

__all__ = ["house"]


@pytest.fixture
async def people(house: House) -> AsyncIterator[list[Person]]:
    async with httpx.AsyncClient(trust_env=False) as http:
        people = []
        for user in (ALICE, BOB):
            at = Addresses("http://127.0.0.1:1", f"ws://127.0.0.1:{house.port}/connection/websocket")
            person = Person(http, at, f"+8613800000{user[-1]}", user[-1], Ledger(), 3.0)
            person.id, person.token = user, house.platform.token(user, f"sid-{user[-1]}")
            await person.connect()
            people.append(person)
        yield people
        for person in people:
            await person.leave()


async def test_people_talk_and_hear_each_other_and_their_ledgers_agree(people: list[Person], house: House) -> None:
    alice, bob = people
    feed = await bob.follow(CHAT)
    message = await alice.say(CONVERSATION, "hello")
    heard = await feed.until("the message", lambda event: event.get("message_id") == message.id)
    assert (heard["offset"], heard["text"], heard["at"]) == (message.offset, "hello", message.at)
    assert (alice.ledger.messages, alice.ledger.unanswered) == ([message], {})
    bob.send({"type": "typing", "conversation_id": CONVERSATION, "on": True})
    await until(lambda: house.platform.signals)
    assert await bob.rpc("receipt.read", {"conversation_id": CONVERSATION, "offset": 1}) == {}
    again = await alice.rpc("message.send", {"conversation_id": CONVERSATION, "id": message.id, "text": "hello"})
    assert again == {"offset": message.offset, "at": message.at, "replayed": True}


async def test_people_who_come_back_have_missed_nothing(people: list[Person], house: House) -> None:
    alice, bob = people
    await alice.say(CONVERSATION, "before")
    feed = await bob.follow(CHAT)
    await alice.say(CONVERSATION, "while you listen")
    await feed.reach(2)
    await bob.disconnect()
    for n in range(300):
        await house.platform.post(CHAT, {"type": "message.posted", "text": f"{n}"})
    await bob.reconnect()
    await feed.reach(302)
    await house.restart()
    await alice.say(CONVERSATION, "after a restart")
    await feed.reach(303)
    assert (feed.start, feed.recoveries, feed.faults()) == (1, [True], [])
    assert [event["offset"] for event in feed.events] == list(range(2, 304))


async def test_refusals_silence_and_strangers_are_said_as_they_are(people: list[Person], house: House) -> None:
    alice, bob = people
    with pytest.raises(RefusedError) as refused:
        await alice.rpc("order.command", {"order_id": ORDER, "command": "forbidden_now", "command_id": new_id()})
    assert (refused.value.code, refused.value.problem["allowed_commands"]) == ("invalid_transition", ["cancel"])
    with pytest.raises(StoryError, match="could not subscribe"):
        await bob.follow(JOB)
    house.platform.refuse = Refusal(Code.UNAVAILABLE)
    with pytest.raises(UnansweredError):
        await alice.say(CONVERSATION, "into the void")
    assert len(alice.ledger.unanswered) == 1
