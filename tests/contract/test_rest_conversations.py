"""Members, watermarks, histories and hidden texts over REST and rpc, on the real runtime and a real SQLite store."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.commands import SYSTEM, Actor, Command
from domain.errors import Code, Refusal
from gateway import rpc
from tests.contract.test_rest_journey import WORKER, Person, awarded
from tests.support.databases import migrated
from tests.support.rest_platform import RestPlatform

NUMBER = "13800138000"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with migrated("sqlite", tmp_path) as made:
        yield made


@pytest.fixture
async def platform(url: str) -> AsyncIterator[RestPlatform]:
    made = await RestPlatform(url).start()
    yield made
    await made.stop()


@pytest.fixture
async def people(platform: RestPlatform) -> AsyncIterator[list[Person]]:
    transport = httpx.ASGITransport(platform.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://rest") as http:
        made = []
        for number in (1, 2, 3):
            user, auth = await platform.login(f"+861380000000{number}")
            made.append(Person(platform, http, user.id, auth))
        await made[1].ask("PUT", "/v1/me/worker", json=WORKER)
        yield made


async def call(person: Person, method: str, session: str = "phone", **data: Any) -> Any:
    """An rpc as the gateway plans it."""
    if not method.startswith("receipt."):
        data.setdefault("id", person.platform.new_id())
    planned = rpc.plan(method, json.dumps(data).encode(), Actor("user", person.id, session))
    assert planned is not None
    return rpc.result(method, await person.platform.router.ask(planned))


async def opened(anna: Person, *others: Person) -> str:
    body = {"member_ids": [other.id for other in others]}
    return str((await anna.post("/v1/conversations", body, 201))["id"])


def keyed(person: Person) -> dict[str, str]:
    return {"Idempotency-Key": person.platform.new_id()}


async def test_members_are_added_and_taken_out_once_however_often_it_is_sent(people: list[Person]) -> None:
    anna, ben, eve = people
    room = await opened(anna, ben)
    path, key = f"/v1/conversations/{room}/members", keyed(ben)
    added = await ben.post(path, {"user_id": eve.id}, headers=key)
    again = await ben.post(path, {"user_id": eve.id}, headers=key)
    assert again == added | {"replayed": True}
    assert added["offset"] == 3
    assert sorted((await eve.get(f"/v1/conversations/{room}"))["members"]) == sorted([anna.id, ben.id, eve.id])
    missing = await ben.post(path, {"user_id": anna.platform.new_id(), "id": ben.platform.new_id()}, 422)
    assert missing["errors"][0]["field"] == "user_id"
    assert (await ben.post(path, {"user_id": eve.id}, 422))["errors"][0]["field"] == "id"

    await ben.ask("DELETE", f"{path}/{eve.id}", 403, headers=keyed(ben))
    removed = await anna.ask("DELETE", f"{path}/{eve.id}", headers=keyed(anna))
    assert (removed["offset"], removed["replayed"]) == (4, False)
    await eve.get(f"/v1/conversations/{room}", 404)


async def test_who_left_reads_nothing_and_may_send_that_again(people: list[Person]) -> None:
    anna, ben, eve = people
    room = await opened(anna, ben, eve)
    message = anna.platform.new_id()
    await anna.post(f"/v1/conversations/{room}/messages", {"id": message, "text": "hello"})
    key = keyed(ben)
    left = await ben.ask("DELETE", f"/v1/conversations/{room}/members/{ben.id}", headers=key)
    again = await ben.ask("DELETE", f"/v1/conversations/{room}/members/{ben.id}", headers=key)
    assert again == left | {"replayed": True}
    for path in ("", "/messages", "/events", f"/messages/{message}/history"):
        await ben.get(f"/v1/conversations/{room}{path}", 404)
    await ben.post(f"/v1/conversations/{room}/messages", {"id": anna.platform.new_id(), "text": "?"}, 404)
    assert (await ben.get("/v1/conversations"))["items"] == []


async def test_membership_over_the_websocket_is_the_same(people: list[Person]) -> None:
    anna, ben, eve = people
    room = await opened(anna, ben)
    await call(anna, "member.add", conversation_id=room, user_id=eve.id)
    await call(anna, "member.remove", conversation_id=room, user_id=ben.id)
    await call(eve, "conversation.leave", conversation_id=room)
    assert (await anna.get(f"/v1/conversations/{room}"))["members"] == [anna.id]
    with pytest.raises(Refusal) as refusal:
        await call(eve, "member.add", conversation_id=room, user_id=eve.id)
    assert refusal.value.code is Code.NOT_FOUND


async def test_nobody_but_the_order_changes_the_members_of_its_conversation(people: list[Person]) -> None:
    customer, worker, stranger = people
    _, room = await awarded(customer, worker)
    path = f"/v1/conversations/{room}/members"
    await customer.post(path, {"user_id": stranger.id}, 403, headers=keyed(customer))
    await customer.ask("DELETE", f"{path}/{worker.id}", 403, headers=keyed(customer))
    await worker.ask("DELETE", f"{path}/{worker.id}", 403, headers=keyed(worker))


async def test_a_conversation_says_how_far_everybody_is_and_what_is_unread(people: list[Person]) -> None:
    anna, ben, _ = people
    room = await opened(anna, ben)
    sent = [anna.platform.new_id() for _ in range(4)]
    for message in sent:
        await call(anna, "message.send", conversation_id=room, id=message, text="hello")
    await call(ben, "receipt.delivered", "phone", conversation_id=room, offset=6)
    await call(ben, "receipt.read", "phone", conversation_id=room, offset=4)
    await call(ben, "receipt.read", "tablet", conversation_id=room, offset=3)
    standing = await ben.get(f"/v1/conversations/{room}")
    assert (standing["read_offset"], standing["delivered_offset"], standing["unread"]) == (4, 6, 2)
    own = next(mark for mark in standing["watermarks"] if mark["user_id"] == ben.id)
    assert own == {
        "user_id": ben.id,
        "read_offset": 4,
        "delivered_offset": 6,
        "devices": [
            {"device": "phone", "read_offset": 4, "delivered_offset": 6},
            {"device": "tablet", "read_offset": 3, "delivered_offset": 0},
        ],
    }
    await call(anna, "message.delete", conversation_id=room, message_id=sent[3])
    assert (await ben.get(f"/v1/conversations/{room}"))["unread"] == 1
    assert [item["unread"] for item in (await ben.get("/v1/conversations"))["items"]] == [1]
    assert (await anna.get(f"/v1/conversations/{room}"))["unread"] == 0


async def test_a_messages_history_is_for_members_and_ends_with_the_message(people: list[Person]) -> None:
    anna, ben, eve = people
    room = await opened(anna, ben)
    message = anna.platform.new_id()
    posted = await call(anna, "message.send", conversation_id=room, id=message, text="one")
    edited = await call(anna, "message.edit", conversation_id=room, message_id=message, text="two")
    path = f"/v1/conversations/{room}/messages/{message}/history"
    assert await ben.get(path) == {
        "items": [
            {"at": posted.at, "offset": posted.offset, "text": "one"},
            {"at": edited.at, "offset": edited.offset, "text": "two"},
        ]
    }
    there = await eve.get(path, 404)
    nowhere = await eve.get(path.replace(room, eve.platform.new_id()), 404)
    assert {key: there[key] for key in ("code", "detail")} == {key: nowhere[key] for key in ("code", "detail")}
    await ben.get(path.replace(message, room), 404)
    await call(anna, "message.delete", conversation_id=room, message_id=message)
    assert await ben.get(path) == {"items": []}


async def test_sending_again_what_was_deleted_since_answers_as_at_first(people: list[Person]) -> None:
    anna, ben, _ = people
    room = await opened(anna, ben)
    path, message = f"/v1/conversations/{room}/messages", {"id": anna.platform.new_id(), "text": "one"}
    sent = await anna.post(path, message)
    await call(anna, "message.delete", conversation_id=room, message_id=message["id"])
    assert await anna.post(path, message) == sent | {"replayed": True}
    assert (await anna.post(path, message | {"text": "two"}, 409))["code"] == "idempotency_mismatch"
    (item,) = (await ben.get(path))["items"]
    assert (item["deleted"], set(item) & {"text", "erased", "masked"}) == (True, set())


async def test_a_number_in_an_orders_conversation_is_seen_by_its_author_until_the_order_reveals_it(
    people: list[Person],
) -> None:
    customer, worker, _ = people
    _, room = await awarded(customer, worker)
    path, message = f"/v1/conversations/{room}/messages", customer.platform.new_id()
    await customer.post(path, {"id": message, "text": f"call {NUMBER}"})

    async def seen(person: Person) -> list[str]:
        item = next(item for item in (await person.get(path))["items"] if item["message_id"] == message)
        listed = (await person.get("/v1/conversations"))["items"][0]["last_message"]
        history = (await person.get(f"{path}/{message}/history"))["items"]
        return [item["text"], listed["text"], history[-1]["text"]]

    assert await seen(customer) == [f"call {NUMBER}"] * 3
    assert len(set(await seen(worker))) == 1
    for person in (customer, worker):
        events = await person.get(f"/v1/conversations/{room}/events", limit=1000)
        assert NUMBER not in json.dumps(events)
    assert NUMBER not in json.dumps([await seen(worker), await worker.get(path), await worker.get("/v1/conversations")])

    command = Command("conversation", room, "contacts.reveal", SYSTEM, customer.platform.new_id())
    await customer.platform.router.ask(command)
    assert await seen(worker) == await seen(customer) == [f"call {NUMBER}"] * 3
    assert "masked" not in (await worker.get(path))["items"][0]
    types = [event["type"] for event in (await worker.get(f"/v1/conversations/{room}/events", limit=1000))["items"]]
    assert types[-2:] == ["contacts.revealed", "message.revealed"]
