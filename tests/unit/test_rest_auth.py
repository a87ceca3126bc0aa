"""Logging in, staying logged in, and being logged out."""

from typing import Any

import httpx
import pytest

from domain.channels import REVOKED_SUBJECT, user_subject
from domain.ports import BrokerUnavailable, StoreUnavailable
from tests.support.rest_app import World

PHONE = "+8613800000001"
DEVICE = {"id": "phone-1", "name": "Li's phone", "platform": "ios"}


def client(world: World) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(world.app()), base_url="http://rest")


async def code_for(http: httpx.AsyncClient, phone: str = PHONE) -> str:
    response = await http.post("/v1/auth/otp", json={"phone": phone})
    assert response.status_code == 202
    item = (await http.get("/dev/outbox", params={"to": phone})).json()["items"][0]
    return str(item["code"])


async def logged_in(http: httpx.AsyncClient, phone: str = PHONE) -> dict[str, Any]:
    body = {"phone": phone, "code": await code_for(http, phone), "device": DEVICE}
    response = await http.post("/v1/auth/otp/verify", json=body)
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    return answer


def bearer(pair: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {pair['access_token']}"}


async def test_a_code_is_in_the_outbox_when_the_request_for_it_is_answered() -> None:
    async with client(World()) as http:
        response = await http.post("/v1/auth/otp", json={"phone": PHONE}, headers={"Accept-Language": "zh-CN,en;q=0.5"})
        assert (response.status_code, response.json()) == (202, {"expires_in_s": 300, "resend_in_s": 60})
        item = (await http.get("/dev/outbox", params={"to": PHONE})).json()["items"][0]
    assert (item["to"], item["kind"]) == (PHONE, "sms")
    assert len(item["code"]) == 6
    assert item["code"] in item["text"]
    assert "验证码" in item["text"]


async def test_a_code_comes_in_the_language_of_the_account_whatever_the_caller_asks_for() -> None:
    async with client(World()) as http:
        pair = await logged_in(http)
        assert (await http.patch("/v1/me", json={"locale": "zh-CN"}, headers=bearer(pair))).status_code == 200
        await http.post("/v1/auth/otp", json={"phone": PHONE}, headers={"Accept-Language": "en"})
        texts = [item["text"] for item in (await http.get("/dev/outbox", params={"to": PHONE})).json()["items"]]
    assert len(texts) == 2
    assert sum("验证码" in text for text in texts) == 1


async def test_a_right_code_opens_a_session_and_makes_the_user_once() -> None:
    async with client(World()) as http:
        first, second = await logged_in(http), await logged_in(http)
        me = (await http.get("/v1/me", headers=bearer(second))).json()
    assert (first["is_new"], second["is_new"]) == (True, False)
    assert first["user"]["id"] == second["user"]["id"] == me["id"]
    assert (first["token_type"], first["expires_in_s"], first["refresh_expires_in_s"]) == ("Bearer", 900, 2592000)
    assert me["phone"] == "+86*********01"


async def test_only_a_hash_of_the_code_reaches_the_store() -> None:
    world = World()
    async with client(world) as http:
        code = await code_for(http)
    assert code.encode() not in world.otp.codes[PHONE][0]


async def test_a_code_works_once() -> None:
    async with client(World()) as http:
        body = {"phone": PHONE, "code": await code_for(http), "device": DEVICE}
        assert (await http.post("/v1/auth/otp/verify", json=body)).status_code == 200
        again = await http.post("/v1/auth/otp/verify", json=body)
    assert (again.status_code, again.json()["code"]) == (401, "unauthenticated")


async def test_after_five_wrong_tries_the_right_code_is_refused_even_where_rate_limits_are_lifted() -> None:
    async with client(World(rate_limits=False)) as http:
        code = await code_for(http)
        wrong = f"{(int(code) + 1) % 1_000_000:06d}"
        for _ in range(5):
            response = await http.post("/v1/auth/otp/verify", json={"phone": PHONE, "code": wrong, "device": DEVICE})
            assert response.status_code == 401
        right = await http.post("/v1/auth/otp/verify", json={"phone": PHONE, "code": code, "device": DEVICE})
    assert right.status_code == 401


async def test_a_code_expires_after_five_minutes() -> None:
    world = World()
    async with client(world) as http:
        code = await code_for(http)
        world.clock.advance_s(300)
        response = await http.post("/v1/auth/otp/verify", json={"phone": PHONE, "code": code, "device": DEVICE})
    assert response.status_code == 401


@pytest.mark.parametrize(
    "phone", ["13800000001", "+86 138 0000 0001", "+1", "+999999999", "+4402079460958", "", "+8613800000001\n", "١٢٣"]
)
async def test_a_phone_number_that_is_not_e164_is_a_field_error(phone: str) -> None:
    async with client(World()) as http:
        response = await http.post("/v1/auth/otp", json={"phone": phone})
    assert (response.status_code, response.json()["code"]) == (422, "invalid")
    assert response.json()["errors"][0]["field"] == "phone"


async def test_codes_for_one_number_come_a_minute_apart_and_three_an_hour() -> None:
    world = World(rate_limits=True, auth_per_ip_hour=100)
    async with client(world) as http:
        statuses = []
        for wait_s in (0, 59, 1, 60, 60):
            world.clock.advance_s(wait_s)
            response = await http.post("/v1/auth/otp", json={"phone": PHONE})
            statuses.append(response.status_code)
    assert statuses == [202, 429, 202, 202, 429]
    assert int(response.headers["retry-after"]) > 60
    assert response.json()["retry_after_s"] > 60


async def test_five_attempts_an_hour_from_one_address() -> None:
    async with client(World(rate_limits=True)) as http:
        answers = [await http.post("/v1/auth/otp", json={"phone": f"+861380000000{n}"}) for n in range(6)]
    assert [answer.status_code for answer in answers] == [202] * 5 + [429]


async def test_without_redis_no_code_is_sent_and_none_accepted() -> None:
    world = World()

    async def gone(*_: Any) -> Any:
        raise StoreUnavailable("redis")

    world.otp.put = world.otp.check = gone  # type: ignore[method-assign]
    async with client(world) as http:
        asked = await http.post("/v1/auth/otp", json={"phone": PHONE})
        tried = await http.post("/v1/auth/otp/verify", json={"phone": PHONE, "code": "123456", "device": DEVICE})
    for response in (asked, tried):
        assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        assert "retry-after" in response.headers
    assert world.outbox.rows == []


async def test_a_refresh_token_is_spent_and_gives_a_new_pair() -> None:
    async with client(World()) as http:
        pair = await logged_in(http)
        new = (await http.post("/v1/auth/refresh", json={"refresh_token": pair["refresh_token"]})).json()
        assert new["refresh_token"] != pair["refresh_token"]
        assert (await http.get("/v1/me", headers=bearer(new))).status_code == 200


async def test_two_refreshes_that_race_get_the_same_pair_and_a_later_one_ends_the_session() -> None:
    world = World()
    async with client(world) as http:
        spent = {"refresh_token": (await logged_in(http))["refresh_token"]}
        first = (await http.post("/v1/auth/refresh", json=spent)).json()
        world.clock.advance_s(29)
        raced = (await http.post("/v1/auth/refresh", json=spent)).json()
        assert (raced["refresh_token"], raced["access_token"]) == (first["refresh_token"], first["access_token"])
        assert raced["expires_in_s"] == 900 - 29
        world.clock.advance_s(2)
        reused = await http.post("/v1/auth/refresh", json=spent)
        assert (reused.status_code, reused.json()["code"]) == (401, "session_revoked")
        assert (await http.get("/v1/me", headers=bearer(first))).status_code == 401
    assert [subject for subject, _ in world.broker.published][-1:] == [REVOKED_SUBJECT]
    assert "current" not in reused.json()


async def test_logging_out_ends_this_session_and_tells_the_gateways() -> None:
    world = World()
    async with client(world) as http:
        one, other = await logged_in(http), await logged_in(http)
        assert (await http.post("/v1/auth/logout", headers=bearer(one))).status_code == 204
        assert (await http.get("/v1/me", headers=bearer(one))).json()["code"] == "session_revoked"
        assert (await http.get("/v1/me", headers=bearer(other))).status_code == 200
    (hint_subject, hint), (subject, session_id) = world.broker.published
    assert (hint_subject, subject) == (user_subject(one["user"]["id"]), REVOKED_SUBJECT)
    assert b"session.revoked" in hint
    assert session_id in hint


async def test_logging_out_everywhere_ends_every_session_of_the_user_and_nobody_elses() -> None:
    world = World()
    async with client(world) as http:
        pairs = [await logged_in(http), await logged_in(http)]
        stranger = await logged_in(http, "+8613800000002")
        await http.post("/v1/auth/logout", headers=bearer(pairs[0]), json={"all": True})
        statuses = [(await http.get("/v1/me", headers=bearer(pair))).status_code for pair in (*pairs, stranger)]
    assert statuses == [401, 401, 200]
    assert [subject for subject, _ in world.broker.published].count(REVOKED_SUBJECT) == 2


async def test_a_session_is_ended_although_the_broker_is_gone() -> None:
    world = World()

    async def gone(*_: Any) -> None:
        raise BrokerUnavailable

    world.broker.publish = gone  # type: ignore[method-assign]
    async with client(world) as http:
        pair = await logged_in(http)
        assert (await http.post("/v1/auth/logout", headers=bearer(pair))).status_code == 204
        assert (await http.get("/v1/me", headers=bearer(pair))).status_code == 401


async def test_sessions_can_be_listed_and_ended_one_by_one_and_a_foreign_one_does_not_exist() -> None:
    world = World()
    async with client(world) as http:
        mine, second = await logged_in(http), await logged_in(http)
        stranger = await logged_in(http, "+8613800000002")
        foreign = (await http.get("/v1/auth/sessions", headers=bearer(stranger))).json()["items"][0]["id"]
        items = (await http.get("/v1/auth/sessions", headers=bearer(mine))).json()["items"]
        assert sorted(item["current"] for item in items) == [False, True]
        assert items[0]["device"] == DEVICE
        other = next(item["id"] for item in items if not item["current"])
        for session_id, status in ((foreign, 404), (world.new_id(), 404), (other, 204), (other, 404)):
            response = await http.delete(f"/v1/auth/sessions/{session_id}", headers=bearer(mine))
            assert response.status_code == status
        assert (await http.get("/v1/me", headers=bearer(second))).status_code == 401


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic abc", "Bearer a b", "Bearer \xff", "bearer", "Bearer " + "x" * 9000]
)
async def test_a_header_that_is_no_token_is_401(value: str) -> None:
    async with client(World()) as http:
        response = await http.get("/v1/me", headers={"Authorization": value.encode("latin-1")})
    assert response.status_code == 401


async def test_two_tokens_in_one_request_are_none() -> None:
    world = World()
    _, auth = await world.login(PHONE)
    token = auth["Authorization"]
    async with client(world) as http:
        response = await http.get("/v1/me", headers=[("Authorization", token), ("Authorization", token)])
    assert response.status_code == 401


async def test_the_outbox_does_not_exist_outside_development() -> None:
    async with client(World(env="production")) as http:
        outside = await http.get("/dev/outbox")
        nowhere = await http.get("/dev/nothing")
    assert outside.status_code == nowhere.status_code == 404
    assert outside.json()["code"] == nowhere.json()["code"] == "not_found"


async def test_becoming_a_worker_needs_no_new_login_and_shows_a_public_profile() -> None:
    offer = {"skills": ["plumbing"], "base": {"lat": 31.2, "lon": 121.4}, "radius_m": 20000, "bio": "20 years"}
    async with client(World()) as http:
        pair = await logged_in(http)
        rate = {"amount": 12000, "currency": "CNY"}
        me = (await http.put("/v1/me/worker", headers=bearer(pair), json=offer | {"hourly_rate": rate})).json()
        assert (me["roles"], me["worker"]["hourly_rate"]) == (["customer", "worker"], rate)
        public = (await http.get(f"/v1/workers/{me['id']}", headers=bearer(pair))).json()
        assert public["rating"] == {"mean": None, "count": 0}
        assert not {"phone", "base"} & set(public)
        customer = await logged_in(http, "+8613800000002")
        missing = await http.get(f"/v1/workers/{customer['user']['id']}", headers=bearer(pair))
    assert missing.status_code == 404


async def test_what_nobody_may_set_is_ignored() -> None:
    async with client(World()) as http:
        pair = await logged_in(http)
        sent = {"name": "Li", "roles": ["admin"], "id": "x", "phone": "+1", "rating": {"mean": 5, "count": 9}}
        me = (await http.patch("/v1/me", headers=bearer(pair), json=sent)).json()
    assert (me["name"], me["roles"], me["id"]) == ("Li", ["customer"], pair["user"]["id"])


async def test_a_ticket_is_for_the_device_that_asks_and_no_bearer_token() -> None:
    world = World()
    async with client(world) as http:
        pair = await logged_in(http)
        response = await http.post("/v1/auth/ticket", headers=bearer(pair))
        assert (response.status_code, response.json()["expires_in_s"]) == (200, 30)
        ticket = response.json()["ticket"]
        as_bearer = await http.get("/v1/me", headers={"Authorization": f"Bearer {ticket}"})
    assert ticket.startswith("ticket.")
    assert (as_bearer.status_code, as_bearer.json()["code"]) == (401, "unauthenticated")
    assert len(world.tickets.issued) == 1
    (ticket_id,) = world.tickets.issued
    assert len(ticket_id) == 32


async def test_without_the_store_no_ticket_is_given() -> None:
    world = World()

    async def away(ticket_id: str, ttl_s: int) -> None:
        raise StoreUnavailable("Redis is away")

    world.tickets.issue = away  # type: ignore[method-assign]
    async with client(world) as http:
        pair = await logged_in(http)
        response = await http.post("/v1/auth/ticket", headers=bearer(pair))
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
