"""Orders, money and conversations over REST, on the real runtime and a real SQLite store in one process."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.commands import Actor, Command
from domain.times import rfc3339
from tests.support.databases import migrated
from tests.support.rest_platform import RestPlatform

SITE = {"lat": 31.2304, "lon": 121.4737, "address": "1 Long Street"}
ORDER = {"category": "plumbing", "title": "A tap", "description": "The kitchen tap has been dripping.", "site": SITE}
WORKER = {"skills": ["plumbing"], "base": {"lat": 31.22, "lon": 121.47}, "radius_m": 30000, "hourly_rate": 12000}


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
async def http(platform: RestPlatform) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(platform.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://rest") as client:
        yield client


class Person:
    """A user with a token, who speaks JSON."""

    def __init__(self, platform: RestPlatform, http: httpx.AsyncClient, user_id: str, auth: dict[str, str]) -> None:
        self.platform, self.http, self.id, self.auth = platform, http, user_id, auth

    async def ask(self, method: str, path: str, expected: int = 200, **kwargs: Any) -> Any:
        headers = self.auth | kwargs.pop("headers", {})
        response = await self.http.request(method, path, headers=headers, **kwargs)
        assert response.status_code == expected, response.text
        return response.json() if response.content else None

    async def get(self, path: str, expected: int = 200, **params: Any) -> Any:
        return await self.ask("GET", path, expected, params=params)

    async def post(self, path: str, body: Any, expected: int = 200, **kwargs: Any) -> Any:
        return await self.ask("POST", path, expected, json=body, **kwargs)

    async def command(self, order_id: str, command: str, expected: int = 200, **payload: Any) -> Any:
        version = payload.pop("expected_version", None)
        body = {"command": command, "command_id": self.platform.new_id(), "payload": payload}
        if version is not None:
            body["expected_version"] = version
        return await self.post(f"/v1/orders/{order_id}/commands", body, expected)


@pytest.fixture
async def people(platform: RestPlatform, http: httpx.AsyncClient) -> tuple[Person, Person, Person]:
    """A customer, a worker, and somebody who has nothing to do with them."""
    made = []
    for number in (1, 2, 3):
        user, auth = await platform.login(f"+861380000000{number}")
        made.append(Person(platform, http, user.id, auth))
    await made[1].ask("PUT", "/v1/me/worker", json=WORKER)
    return made[0], made[1], made[2]


async def awarded(customer: Person, worker: Person) -> tuple[str, str]:
    """An order with an accepted quote; its id, and that of its conversation."""
    order = await customer.post("/v1/orders", ORDER | {"publish": True}, 201)
    quote_id = customer.platform.new_id()
    lines = [{"title": "Parts", "amount": 3000}, {"title": "Work", "amount": 9000}]
    quoted = await worker.command(
        order["id"], "submit_quote", quote_id=quote_id, rev=1, milestones=lines, currency="CNY"
    )
    version = quoted["order"]["version"]
    done = await customer.command(order["id"], "accept_quote", quote_id=quote_id, rev=1, expected_version=version)
    assert done["order"]["state"] == "awarded"
    return order["id"], done["order"]["conversation_id"]


async def test_an_order_goes_from_draft_to_a_held_deposit(people: Any) -> None:
    customer, worker, _ = people
    draft = await customer.post("/v1/orders", ORDER, 201)
    assert (draft["state"], draft["version"], draft["site"]) == ("draft", 1, SITE)
    published = await customer.command(draft["id"], "publish")
    assert published["order"]["state"] == "open"
    assert [event["type"] for event in published["events"]] == ["order.published"]
    assert published["events"][0]["offset"] == 2
    assert published["replayed"] is False

    order_id, _ = await awarded(customer, worker)
    payment = {"id": customer.platform.new_id(), "milestone": 1, "rail": "sandbox"}
    paid = await customer.post(f"/v1/orders/{order_id}/payments", payment)
    assert paid == {"payment_id": payment["id"], "status": "held", "replayed": False}
    again = await customer.post(f"/v1/orders/{order_id}/payments", payment)
    assert again == paid | {"replayed": True}
    order = await worker.get(f"/v1/orders/{order_id}")
    assert (order["state"], order["funding"][0]["held"]) == ("funded", 3000)
    types = [event["type"] for event in (await customer.get(f"/v1/orders/{order_id}/events"))["items"]]
    assert types.count("order.payment_started") == types.count("order.funded") == 1


async def test_twenty_equal_orders_at_once_are_one(people: Any) -> None:
    customer, _, _ = people
    body = ORDER | {"id": customer.platform.new_id()}
    answers = await asyncio.gather(*(customer.post("/v1/orders", body, 201) for _ in range(20)))
    assert sorted(answer.pop("replayed") for answer in answers) == [False] + [True] * 19
    assert all(answer == answers[0] for answer in answers)
    assert len((await customer.get("/v1/orders"))["items"]) == 1


async def test_an_idempotency_key_alone_makes_a_repeated_order_one_order(people: Any) -> None:
    customer, worker, _ = people
    key = {"Idempotency-Key": customer.platform.new_id()}
    first = await customer.post("/v1/orders", ORDER, 201, headers=key)
    second = await customer.post("/v1/orders", ORDER, 201, headers=key)
    other = await worker.post("/v1/orders", ORDER, 201, headers=key)
    assert first["id"] == second["id"] != other["id"]
    assert (first["replayed"], second["replayed"]) == (False, True)
    changed = await customer.post("/v1/orders", ORDER | {"title": "Two taps"}, 409, headers=key)
    assert changed["code"] == "idempotency_mismatch"
    bad = await customer.post("/v1/orders", ORDER, 422, headers={"Idempotency-Key": "again"})
    assert bad["errors"][0]["field"] == "Idempotency-Key"


async def test_a_command_is_repeated_with_the_header_or_the_field_and_answers_the_same(people: Any) -> None:
    customer, _, _ = people
    order = await customer.post("/v1/orders", ORDER, 201)
    path, command_id = f"/v1/orders/{order['id']}/commands", customer.platform.new_id()
    first = await customer.post(path, {"command": "publish", "command_id": command_id})
    again = await customer.post(path, {"command": "publish"}, headers={"Idempotency-Key": command_id})
    assert again["replayed"] is True
    assert again["events"] == first["events"]
    missing = await customer.post(path, {"command": "publish"}, 422)
    assert missing["errors"][0]["field"] == "command_id"


async def test_what_is_not_possible_now_says_what_is(people: Any) -> None:
    customer, _, _ = people
    order = await customer.post("/v1/orders", ORDER, 201)
    refused = await customer.command(order["id"], "approve_completion", 409)
    assert refused["code"] == "invalid_transition"
    assert "publish" in refused["allowed_commands"]
    stale = await customer.command(order["id"], "publish", 409, expected_version=7)
    assert stale["code"] == "version_conflict"
    unknown = await customer.command(order["id"], "explode", 422)
    assert unknown["code"] == "invalid"


async def test_to_a_stranger_an_order_and_a_conversation_do_not_exist(people: Any) -> None:
    customer, worker, stranger = people
    order_id, room = await awarded(customer, worker)
    for method, path, body in (
        ("GET", f"/v1/orders/{order_id}", None),
        ("GET", f"/v1/orders/{order_id}/events", None),
        ("GET", f"/v1/orders/{order_id}/track", None),
        ("POST", f"/v1/orders/{order_id}/commands", {"command": "publish", "command_id": room}),
        ("POST", f"/v1/orders/{order_id}/payments", {"id": room, "milestone": 1, "rail": "sandbox"}),
        ("POST", f"/v1/orders/{order_id}/payments", {"id": room, "milestone": 1, "rail": "nowhere"}),
        ("GET", f"/v1/conversations/{room}/messages", None),
        ("GET", f"/v1/conversations/{room}/events", None),
        ("POST", f"/v1/conversations/{room}/messages", {"id": order_id, "text": "hello"}),
        ("POST", f"/v1/conversations/{room}/messages", {"text": "hello"}),
        ("POST", f"/v1/conversations/{room}/messages", {"text": 5}),
    ):
        there = await stranger.ask(method, path, 404, json=body)
        nowhere = path.replace(order_id, stranger.platform.new_id()).replace(room, stranger.platform.new_id())
        missing = await stranger.ask(method, nowhere, 404, json=body)
        assert {k: v for k, v in there.items() if k != "request_id"} == {
            k: v for k, v in missing.items() if k != "request_id"
        }, path


async def test_events_are_paged_by_offset_without_a_hole_and_the_limit_is_clamped(people: Any) -> None:
    customer, worker, _ = people
    order_id, _ = await awarded(customer, worker)
    path, after, seen = f"/v1/orders/{order_id}/events", 0, []
    while True:
        page = await customer.get(path, after=after, limit=2)
        seen += page["items"]
        if page["next_cursor"] is None:
            break
        after = page["next_cursor"]
    assert [event["offset"] for event in seen] == list(range(1, len(seen) + 1))
    assert all({"type", "by", "at", "state", "version"} <= set(event) for event in seen)
    assert not any({"private", "hash"} & set(event) for event in seen)
    whole = await customer.get(path, limit=10**9)
    assert whole == {"items": seen, "next_cursor": None}
    for low in (0, -5):
        assert await customer.get(path, limit=low) == {"items": seen[:1], "next_cursor": 1}
    assert (await customer.get(path, after=len(seen)))["items"] == []


async def test_order_lists_are_by_role_state_and_cursor_and_projected_for_the_reader(people: Any) -> None:
    customer, worker, stranger = people
    ids = [(await customer.post("/v1/orders", ORDER, 201))["id"] for _ in range(3)]
    order_id, _ = await awarded(customer, worker)
    first = await customer.get("/v1/orders", limit=2)
    second = await customer.get("/v1/orders", limit=2, cursor=first["next_cursor"])
    assert [item["id"] for item in first["items"] + second["items"]] == [order_id, *reversed(ids)]
    assert second["next_cursor"] is None
    assert [item["id"] for item in (await customer.get("/v1/orders", state="awarded"))["items"]] == [order_id]
    assert first["items"][0] == await customer.get(f"/v1/orders/{order_id}")
    mine = await worker.get("/v1/orders", role="worker")
    assert mine["items"] == [await worker.get(f"/v1/orders/{order_id}")]
    assert (await stranger.get("/v1/orders"))["items"] == []
    bad = await customer.get("/v1/orders", 422, cursor="nonsense")
    assert bad["code"] == "invalid"
    await customer.get("/v1/orders", 422, role="admin")


def signed(platform: RestPlatform, body: bytes, age_s: int = 0, secret: bytes | None = None) -> dict[str, str]:
    at_s = platform.clock.now_ms() // 1000 - age_s
    digest = hmac.new(secret or platform.settings.webhook_secret, b"%d." % at_s + body, sha256).hexdigest()
    return {"X-Signature": f"t={at_s},v1={digest}", "Content-Type": "application/json"}


async def test_only_what_the_provider_has_signed_lately_moves_money(
    platform: RestPlatform, http: httpx.AsyncClient, people: Any
) -> None:
    customer, worker, _ = people
    order_id, _ = await awarded(customer, worker)
    news = {"order_id": order_id, "payment_id": platform.new_id(), "amount": 3000, "currency": "CNY"}
    body = json.dumps({"id": "evt_1", "type": "payment.held", "data": news}).encode()
    good = signed(platform, body)
    cases: list[tuple[bytes, dict[str, str]]] = [
        (body, {"Content-Type": "application/json"}),
        (body, good | {"X-Signature": good["X-Signature"][:-1] + "x"}),
        (body, signed(platform, body, secret=b"x" * 32)),
        (body, signed(platform, body, age_s=301)),
        (body, signed(platform, body, age_s=-301)),
        (body.replace(b"3000", b"1"), good),
    ]
    for content, headers in cases:
        response = await http.post("/v1/webhooks/payments/sandbox", content=content, headers=headers)
        assert response.status_code == 401, headers
    assert (await customer.get(f"/v1/orders/{order_id}"))["state"] == "awarded"
    unknown = await http.post("/v1/webhooks/payments/sandbox", content=body, headers=good)
    assert (unknown.status_code, unknown.json()["code"]) == (422, "invalid")


async def test_the_same_webhook_many_times_books_the_money_once(
    platform: RestPlatform, http: httpx.AsyncClient, people: Any
) -> None:
    customer, worker, _ = people
    order_id, _ = await awarded(customer, worker)
    payment_id = platform.new_id()
    payload = json.dumps({"payment_id": payment_id, "milestone": 1, "rail": "sandbox"}).encode()
    payer = Actor("user", customer.id, platform.new_id())
    await platform.router.ask(Command("order", order_id, "start_payment", payer, payment_id, payload))
    news = {"order_id": order_id, "payment_id": payment_id, "amount": 3000, "currency": "CNY"}
    body = json.dumps({"id": "evt_2", "type": "payment.held", "data": news}).encode()
    answers = await asyncio.gather(
        *(http.post("/v1/webhooks/payments/sandbox", content=body, headers=signed(platform, body)) for _ in range(10))
    )
    assert {answer.status_code for answer in answers} == {200}
    order = await customer.get(f"/v1/orders/{order_id}")
    assert (order["state"], order["funding"][0]["held"]) == ("funded", 3000)


async def test_a_payment_is_started_by_its_own_route_alone(people: Any) -> None:
    customer, worker, _ = people
    order_id, _ = await awarded(customer, worker)
    payment = {"payment_id": customer.platform.new_id(), "milestone": 1, "rail": "sandbox"}
    await customer.command(order_id, "start_payment", 422, **payment)
    assert (await customer.get(f"/v1/orders/{order_id}"))["funding"][0]["held"] == 0


async def test_no_customer_can_say_that_a_deposit_is_held(people: Any) -> None:
    customer, worker, _ = people
    order_id, _ = await awarded(customer, worker)
    await customer.command(
        order_id, "deposit_held", 403, payment_id=order_id, amount=3000, currency="CNY", psp_event_id="evt"
    )


async def test_a_conversation_is_opened_with_known_users_and_lists_what_was_said(people: Any) -> None:
    anna, ben, _ = people
    room = await anna.post("/v1/conversations", {"member_ids": [ben.id]}, 201)
    assert sorted(room["members"]) == sorted([anna.id, ben.id])
    path, message_id = f"/v1/conversations/{room['id']}/messages", anna.platform.new_id()
    sent = await anna.post(path, {"id": message_id, "text": "hello"})
    other_key = {"Idempotency-Key": anna.platform.new_id()}
    assert (await anna.post(path, {"id": message_id, "text": "hello"}, headers=other_key))["offset"] == sent["offset"]
    assert sent["replayed"] is False
    again = await anna.post(path, {"text": "hello"}, headers={"Idempotency-Key": message_id})
    assert again == sent | {"replayed": True}
    listed = (await ben.get("/v1/conversations"))["items"]
    assert [(item["id"], item["unread"], item["last_message"]["text"]) for item in listed] == [(room["id"], 1, "hello")]
    item = (await ben.get(path))["items"][0]
    assert item == {
        "message_id": message_id,
        "by": anna.id,
        "at": sent["at"],
        "text": "hello",
        "offset": sent["offset"],
    }
    types = [event["type"] for event in (await ben.get(f"/v1/conversations/{room['id']}/events"))["items"]]
    assert types == ["member.joined", "member.joined", "message.posted"]


async def test_a_conversation_needs_somebody_else_who_exists(people: Any) -> None:
    anna, ben, _ = people
    for members, code in (([anna.id], 422), ([], 422), ([anna.platform.new_id()], 422), ([ben.id, ben.id], 201)):
        answer = await anna.post("/v1/conversations", {"member_ids": members}, code)
        if code == 422:
            assert answer["errors"][0]["field"].startswith("member_ids")


async def test_messages_are_paged_both_ways_with_edits_applied_and_deleted_ones_empty(people: Any) -> None:
    anna, ben, _ = people
    room = (await anna.post("/v1/conversations", {"member_ids": [ben.id]}, 201))["id"]
    path, ids = f"/v1/conversations/{room}/messages", [anna.platform.new_id() for _ in range(5)]
    for n, message_id in enumerate(ids):
        await anna.post(path, {"id": message_id, "text": f"message {n}"})
    actor_call = anna.platform.router
    from domain.commands import Actor, Command

    async def tell(name: str, payload: dict[str, Any]) -> None:
        command = Command(
            "conversation",
            room,
            name,
            Actor("user", anna.id, "s"),
            anna.platform.new_id(),
            json.dumps(payload).encode(),
        )
        await actor_call.ask(command)

    await tell("edit", {"message_id": ids[1], "text": "better"})
    await tell("delete", {"message_id": ids[2]})
    await tell("react", {"message_id": ids[3], "emoji": "👍", "on": True})
    first = await ben.get(path, limit=2)
    assert [item["message_id"] for item in first["items"]] == [ids[4], ids[3]]
    assert first["items"][1]["reactions"] == {"👍": [anna.id]}
    rest = await ben.get(path, limit=10, before=first["next_cursor"])
    assert [item["message_id"] for item in rest["items"]] == [ids[2], ids[1], ids[0]]
    assert rest["next_cursor"] is None
    deleted, edited = rest["items"][0], rest["items"][1]
    assert (deleted["deleted"], "text" in deleted) == (True, False)
    assert edited["text"] == "better"
    assert edited["edited_at"]
    oldest = await ben.get(path, after=0, limit=2)
    assert [item["message_id"] for item in oldest["items"]] == ids[:2]
    more = await ben.get(path, after=oldest["next_cursor"], limit=10)
    assert [item["message_id"] for item in more["items"]] == ids[2:]
    assert more["next_cursor"] is None
    await ben.get(path, 422, before=1, after=1)


async def test_recorded_positions_are_listed_for_the_parties(platform: RestPlatform, people: Any) -> None:
    from domain.ports import Position

    customer, worker, _ = people
    order_id, _ = await awarded(customer, worker)
    visit_id, now_ms = platform.new_id(), platform.clock.now_ms()
    await platform.reads.add_positions(order_id, [Position(now_ms, 31.2, 121.4, 5.0, 3.0, None, visit_id)])
    point = {
        "at": rfc3339(now_ms),
        "lat": 31.2,
        "lon": 121.4,
        "accuracy_m": 5.0,
        "speed_mps": 3.0,
        "visit_id": visit_id,
    }
    assert (await customer.get(f"/v1/orders/{order_id}/track"))["items"] == [point]
    assert (await worker.get(f"/v1/orders/{order_id}/track", visit_id=visit_id))["items"] == [point]
    assert (await worker.get(f"/v1/orders/{order_id}/track", visit_id=order_id))["items"] == []
    await worker.get(f"/v1/orders/{order_id}/track", 422, visit_id="1")
