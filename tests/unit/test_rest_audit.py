"""What REST writes into the audit log, what it never writes, and what happens where it cannot."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from domain.commands import Accepted, Viewed
from domain.errors import Code, Refusal
from domain.ports import StoreUnavailable
from serve_apps.endpoint import Endpoint, Rule
from serve_apps.rest import ROUTES
from tests.support.rest_app import World

PHONE = "+8613800000042"
DEVICE = {"id": "d-1", "name": "Wang Min's telephone", "platform": "ios"}


class Hall:
    """A world, and a browser in front of it."""

    def __init__(self, http: httpx.AsyncClient, world: World) -> None:
        self.http, self.world = http, world

    @property
    def acts(self) -> list[tuple[str, str]]:
        return [(act.act, act.outcome) for act in self.world.audit.acts]

    async def code(self) -> str:
        await self.http.post("/v1/auth/otp", json={"phone": PHONE})
        return str(self.world.outbox.rows[0]["code"])

    async def verify(self, code: str) -> httpx.Response:
        return await self.http.post("/v1/auth/otp/verify", json={"phone": PHONE, "code": code, "device": DEVICE})

    async def operator(self) -> tuple[str, dict[str, str]]:
        user, auth = await self.world.login("+8613800000009")
        await self.world.accounts.grant(user.id, "ops")
        return user.id, auth


@pytest.fixture
async def hall() -> AsyncIterator[Hall]:
    world = World(rate_limits=True, auth_per_ip_hour=100)
    transport = httpx.ASGITransport(world.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://rest") as http:
        yield Hall(http, world)


async def test_from_the_code_to_the_logout_every_act_is_written_with_who_and_where(hall: Hall) -> None:
    code = await hall.code()
    await hall.verify("000000" if code != "000000" else "000001")
    logged_in = (await hall.verify(code)).json()
    auth = {"Authorization": f"Bearer {logged_in['access_token']}"}
    await hall.http.post("/v1/auth/logout", json={}, headers=auth)
    assert hall.acts == [
        ("code.requested", "ok"),
        ("login", "unauthenticated"),
        ("login", "ok"),
        ("logout", "ok"),
    ]
    requested, failed, login, logout = hall.world.audit.acts
    assert requested.object == failed.object
    assert re.fullmatch(r"phone:[0-9a-f]{32}", requested.object)
    (session,) = hall.world.sessions.sessions.values()
    assert (login.actor, login.session, login.object) == (
        logged_in["user"]["id"],
        session.id,
        f"session:{session.id}",
    )
    assert (logout.actor, logout.session) == (login.actor, login.session)
    assert {act.ip for act in hall.world.audit.acts} == {"127.0.0.1"}


async def test_nothing_personal_is_written(hall: Hall) -> None:
    code = await hall.code()
    logged_in = (await hall.verify(code)).json()
    written = msgspec.json.encode(hall.world.audit.acts).decode()
    for secret in (PHONE, PHONE[1:], code, logged_in["access_token"], logged_in["refresh_token"], DEVICE["name"]):
        assert secret not in written


async def test_a_code_that_is_refused_is_written(hall: Hall) -> None:
    await hall.code()
    assert (await hall.http.post("/v1/auth/otp", json={"phone": PHONE})).status_code == 429
    assert hall.acts == [("code.requested", "ok"), ("code.requested", "rate_limited")]


async def test_a_session_that_is_ended_from_another_one_is_written(hall: Hall) -> None:
    logged_in = (await hall.verify(await hall.code())).json()
    user = logged_in["user"]["id"]
    (session,) = hall.world.sessions.sessions
    auth = {"Authorization": f"Bearer {logged_in['access_token']}"}
    assert (await hall.http.delete(f"/v1/auth/sessions/{session}", headers=auth)).status_code == 204
    assert hall.acts[-1] == ("session.ended", "ok")
    assert (hall.world.audit.acts[-1].object, hall.world.audit.acts[-1].actor) == (f"session:{session}", user)


async def test_the_reuse_of_a_refresh_token_is_written_in_the_name_of_its_user(hall: Hall) -> None:
    logged_in = (await hall.verify(await hall.code())).json()
    body = {"refresh_token": logged_in["refresh_token"]}
    await hall.http.post("/v1/auth/refresh", json=body)
    hall.world.clock.advance_s(31)
    assert (await hall.http.post("/v1/auth/refresh", json=body)).status_code == 401
    act = hall.world.audit.acts[-1]
    assert (act.act, act.outcome, act.actor) == ("refresh.reused", "session_revoked", logged_in["user"]["id"])


async def test_who_logs_in_is_not_stopped_by_an_audit_log_that_takes_nothing_and_it_is_said_loudly(
    hall: Hall, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    hall.world.audit.error = StoreUnavailable("gone")
    assert (await hall.http.post("/v1/auth/otp", json={"phone": PHONE})).status_code == 202
    said = caplog.text + capsys.readouterr().out
    assert "an act is missing in the audit log" in said
    assert PHONE not in said


# --- operators ------------------------------------------------------------------------------------------------------

OPS = [row for row in ROUTES if row.rule is Rule.OPS]


BODIES = {
    "verify_totp": {"code": "123456"},
    "review_worker_document": {"decision": "reject", "reason": "blurred"},
}
"""Of those that take one: who says nothing that can be understood does nothing."""


def path_of(row: Endpoint, identifier: str) -> str:
    return re.sub(r"{(\w+)}", lambda part: row.words.get(part[1], (identifier,))[0], row.path)


@pytest.mark.parametrize("row", OPS, ids=lambda row: row.name)
async def test_every_operators_call_is_written_before_it_happens(hall: Hall, row: Endpoint) -> None:
    user, auth = await hall.operator()
    identifier = hall.world.new_id()
    await hall.http.request(row.method, path_of(row, identifier), headers=auth, json=BODIES.get(row.name))
    first = hall.world.audit.acts[0]
    assert (first.act, first.outcome, first.actor) == (f"ops.{row.name}", "allowed", user)
    if row.ids:
        assert identifier in first.object


@pytest.mark.parametrize("row", OPS, ids=lambda row: row.name)
async def test_an_operators_call_that_cannot_be_written_does_not_happen(hall: Hall, row: Endpoint) -> None:
    _, auth = await hall.operator()
    hall.world.audit.error = StoreUnavailable("gone")
    path, body = path_of(row, hall.world.new_id()), BODIES.get(row.name)
    response = await hall.http.request(row.method, path, headers=auth, json=body)
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert hall.world.router.asked == []


async def test_an_operators_call_that_fails_is_written_twice_with_how_it_failed(hall: Hall) -> None:
    _, auth = await hall.operator()
    path = f"/v1/admin/streams/order/{hall.world.new_id()}"
    assert (await hall.http.get(path, headers=auth)).status_code == 404
    assert hall.acts == [("ops.inspect_stream", "allowed"), ("ops.inspect_stream", "not_found")]


async def ruled(hall: Hall, auth: dict[str, str], *answers: Any) -> httpx.Response:
    hall.world.router.answers = list(answers)
    body = {"command": "decide_dispute", "command_id": hall.world.new_id(), "payload": {}}
    return await hall.http.post(f"/v1/orders/{hall.world.new_id()}/commands", headers=auth, json=body)


async def test_a_dispute_that_operations_decide_is_written_before_it_is_decided(hall: Hall) -> None:
    user, auth = await hall.operator()
    decided = Accepted(7, 0, (), False, b"{}")
    assert (await ruled(hall, auth, decided, Viewed(7, b"{}"))).status_code == 200
    assert hall.acts == [("ops.order.decide_dispute", "allowed")]
    act = hall.world.audit.acts[0]
    assert act.actor == user
    assert act.object == f"order:{hall.world.router.asked[0].stream_id}"


async def test_a_dispute_that_is_refused_to_operations_is_written_with_the_code(hall: Hall) -> None:
    _, auth = await hall.operator()
    assert (await ruled(hall, auth, Refusal(Code.INVALID_TRANSITION))).status_code == 409
    assert hall.acts[-1] == ("ops.order.decide_dispute", "invalid_transition")


async def test_a_dispute_is_not_decided_where_it_cannot_be_written(hall: Hall) -> None:
    _, auth = await hall.operator()
    hall.world.audit.error = StoreUnavailable("gone")
    assert (await ruled(hall, auth)).status_code == 503
    assert hall.world.router.asked == []


async def test_what_customers_command_their_orders_is_not_written(hall: Hall) -> None:
    _, auth = await hall.world.login(PHONE)
    await ruled(hall, auth, Refusal(Code.FORBIDDEN))
    assert hall.acts == []


async def test_operators_find_acts_by_who_and_what_page_by_page(hall: Hall) -> None:
    user, auth = await hall.operator()
    await hall.code()
    for _ in range(3):
        await hall.http.get(f"/v1/admin/streams/order/{hall.world.new_id()}", headers=auth)
    query = {"actor": user, "act": "ops.inspect_stream", "limit": "4"}
    first = (await hall.http.get("/v1/admin/audit", params=query, headers=auth)).json()
    second = (
        await hall.http.get("/v1/admin/audit", params=query | {"cursor": first["next_cursor"]}, headers=auth)
    ).json()
    shown = first["items"] + second["items"]
    assert [item["outcome"] for item in shown] == ["not_found", "allowed"] * 3
    assert second["next_cursor"] is None
    assert shown[0]["actor"] == user
    assert shown[0]["at"].endswith("Z")


@pytest.mark.parametrize(
    ("name", "value"),
    [("from", "yesterday"), ("to", "2026-01-01"), ("from", "2026-01-01T00:00:00"), ("to", "x" * 60), ("actor", "a b"),
     ("act", ""), ("limit", "many")],
)  # fmt: skip
async def test_a_question_that_has_no_meaning_is_422_and_names_the_field(hall: Hall, name: str, value: str) -> None:
    _, auth = await hall.operator()
    response = await hall.http.get("/v1/admin/audit", params={name: value}, headers=auth)
    assert (response.status_code, response.json()["code"]) == (422, "invalid")
    assert response.json()["errors"][0]["field"] == name
