"""The same id, however often, over REST and WebSocket, at once or later: one effect, and equal answers."""

import asyncio
import uuid
from typing import Any

import pytest

from deploy.ledger import Ledger
from deploy.person import Addresses, Person, RefusedError
from tests.cluster.conftest import People, conversation_of

EACH_WAY = 10


def one_effect(answers: list[dict[str, Any]], *same: str) -> None:
    """All answers agree, and at most one of them says that it was the first.

    None of them may: the first answer can get lost inside the platform, which then asks again by itself.
    """
    assert len(answers) == 2 * EACH_WAY
    told = {tuple(repr(answer[key]) for key in same) for answer in answers}
    assert len(told) == 1, f"the answers differ in {same}: {sorted(told)}"
    firsts = sum(not answer["replayed"] for answer in answers)
    assert firsts <= 1, f"{firsts} of {len(answers)} answers say that they were the first"


async def devices(people: People, at: Addresses, number: int, count: int = 5) -> list[Person]:
    """One user on several devices: commands of one socket about one stream wait for each other, those of several do not."""
    return list(await asyncio.gather(*(people(at, Ledger(), number) for _ in range(count))))


async def test_a_message_sent_twenty_times_at_once_is_one_message(people: People, addresses: Addresses) -> None:
    anna, *others = sockets = await devices(people, addresses, 0)
    bela = await people(addresses, Ledger(), 1)
    room = await conversation_of(anna, bela)
    feed = await bela.follow(f"conversation:{room}")
    message = {"id": str(uuid.uuid4()), "text": "only once"}
    path = f"/v1/conversations/{room}/messages"
    by_rest = [anna.rest("POST", path, message) for _ in range(EACH_WAY)]
    by_ws = [
        sockets[n % len(sockets)].rpc("message.send", {"conversation_id": room, **message}) for n in range(EACH_WAY)
    ]
    answers = await asyncio.gather(*by_rest, *by_ws)
    one_effect(answers, "offset", "at")

    later = await others[0].rest("POST", path, message)
    assert later == answers[0] | {"replayed": True}, "a retry much later is answered as the first was"
    events = await anna.stream(f"conversation:{room}")
    posted = [event for event in events if event["type"] == "message.posted"]
    assert [(event["message_id"], event["offset"]) for event in posted] == [(message["id"], answers[0]["offset"])]
    await anna.say(room, "and another")
    await feed.reach(answers[0]["offset"] + 1)
    heard = [event["message_id"] for event in feed.events if event["type"] == "message.posted"]
    assert heard.count(message["id"]) == 1, f"the other side heard {heard}"


async def test_an_order_is_made_and_published_once(people: People, addresses: Addresses) -> None:
    anna, *_ = sockets = await devices(people, addresses, 0)
    wish = {
        "id": str(uuid.uuid4()),
        "category": "plumbing",
        "title": "Leaking tap",
        "description": "The tap in the kitchen drips day and night.",
        "site": {"lat": 31.23, "lon": 121.47, "address": "1 Yan'an Road"},
    }
    made = await asyncio.gather(*(anna.rest("POST", "/v1/orders", wish) for _ in range(EACH_WAY)))
    assert {(order["id"], order["state"], order["version"]) for order in made} == {(wish["id"], "draft", 1)}

    command = {"command": "publish", "command_id": str(uuid.uuid4()), "payload": {}}
    path = f"/v1/orders/{wish['id']}/commands"
    by_rest = [anna.rest("POST", path, command) for _ in range(EACH_WAY)]
    by_ws = [
        sockets[n % len(sockets)].rpc("order.command", {"order_id": wish["id"], **command}) for n in range(EACH_WAY)
    ]
    answers = await asyncio.gather(*by_rest, *by_ws)
    one_effect(answers, "events")

    cancelled = await anna.command(wish["id"], "cancel", {"reason": "no longer needed"})
    later = await anna.rest("POST", path, command)
    assert later["events"] == answers[0]["events"], "the events are those of the first time"
    assert later["replayed"] is True
    assert later["order"]["state"] == "cancelled", "the order is the current one"
    types = [event["type"] for event in await anna.stream(f"order:{wish['id']}")]
    assert types == ["order.created", "order.published", "order.cancelled"]
    assert cancelled["version"] == len(types)


async def test_an_id_used_for_something_else_is_a_mismatch(people: People, addresses: Addresses) -> None:
    anna, bela = await people(addresses, Ledger(), 0), await people(addresses, Ledger(), 1)
    room = await conversation_of(anna, bela)
    said = await anna.say(room, "the first text")
    path = f"/v1/conversations/{room}/messages"
    misuses = {
        "another text over REST": anna.rest("POST", path, {"id": said.id, "text": "another text"}),
        "another text over WebSocket": anna.rpc(
            "message.send", {"conversation_id": room, "id": said.id, "text": "another text"}
        ),
        "another sender": bela.rest("POST", path, {"id": said.id, "text": "the first text"}),
        "another command": anna.rpc(
            "message.delete", {"conversation_id": room, "id": said.id, "message_id": said.id}
        ),
    }  # fmt: skip
    for what, misuse in misuses.items():
        with pytest.raises(RefusedError) as refused:
            await misuse
        assert refused.value.code == "idempotency_mismatch", what
    events = await anna.stream(f"conversation:{room}")
    texts = [event["text"] for event in events if event["type"] == "message.posted"]
    assert texts == ["the first text"], "a mismatch changes nothing"
    again = await anna.rpc("message.send", {"conversation_id": room, "id": said.id, "text": "the first text"})
    assert again == {"offset": said.offset, "at": said.at, "replayed": True}
