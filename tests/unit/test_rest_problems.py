"""Bad input of every kind is a problem from the catalogue, never a stack trace and never a 500."""

import asyncio
from typing import Any

import httpx
import pytest

from domain.errors import Code, Refusal
from domain.ports import MessageRow, StoreUnavailable
from serve_apps.chat import message_view
from serve_apps.services import RestSettings, check_settings
from tests.support.rest_app import World


def client(world: World) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(world.app(), raise_app_exceptions=False), base_url="http://rest"
    )


BODIES = {
    "nothing": b"",
    "not json": b"{broken",
    "an array": b"[]",
    "null": b"null",
    "bad utf-8": b'{"phone": "\xff\xfe"}',
    "a lone surrogate": b'{"phone": "\\ud800"}',
    "a NUL": b'{"phone": "+861380000\\u00000001"}',
    "a huge integer": b'{"phone": ' + b"9" * 5000 + b"}",
    "NaN": b'{"phone": NaN}',
    "infinity": b'{"phone": 1e999}',
    "deep nesting": b'{"phone": ' + b"[" * 60_000 + b"]" * 60_000 + b"}",
    "a byte order mark": b'\xef\xbb\xbf{"phone": "+8613800000001"}',
    "two values": b'{"phone": "+8613800000001"} {}',
    "a wrong type": b'{"phone": 13800000001}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_a_bad_body_is_422_with_its_errors(body: bytes) -> None:
    async with client(World()) as http:
        response = await http.post("/v1/auth/otp", content=body, headers={"Content-Type": "application/json"})
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["status"], problem["code"]) == (422, 422, "invalid")
    assert problem["errors"][0]["message"]
    assert problem["request_id"] == response.headers["x-request-id"]


async def test_nested_json_in_a_payload_is_bounded_too() -> None:
    world = World()
    _, auth = await world.login("+8613800000001")
    order = f"/v1/orders/{world.new_id()}/commands"
    deep = b'{"command": "publish", "payload": {"x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}"
    huge = b'{"command": "publish", "command_id": "%s", "payload": {"x": %s}}' % (world.new_id().encode(), b"9" * 5000)
    world.router.answers = [Refusal(Code.NOT_FOUND)]
    async with client(world) as http:
        for body in (deep, huge):
            response = await http.post(order, content=body, headers=auth)
            assert response.status_code in (404, 422)


async def test_the_wrong_kind_of_body_is_415_and_a_large_one_413() -> None:
    async with client(World()) as http:
        form = await http.post("/v1/auth/otp", data={"phone": "+8613800000001"})
        large = await http.post("/v1/auth/otp", content=b'{"phone": "' + b"1" * 300_000 + b'"}')
        exact = await http.post("/v1/auth/otp", content=b" " * (256 * 1024 - 2) + b"{}")
        over = await http.post("/v1/auth/otp", content=b" " * (256 * 1024 - 1) + b"{}")
    assert (form.status_code, form.json()["code"]) == (415, "unsupported_media_type")
    assert (large.status_code, large.json()["code"]) == (413, "payload_too_large")
    assert (exact.status_code, over.status_code) == (422, 413)


async def test_a_body_without_an_announced_length_is_bounded_as_well() -> None:
    async def chunks() -> Any:
        for _ in range(300):
            yield b" " * 1024

    async with client(World()) as http:
        response = await http.post("/v1/auth/otp", content=chunks())
    assert response.status_code == 413


@pytest.mark.parametrize(
    "query",
    ["limit=x", "limit=1.5", "limit=", "after=-1", "after=x", "after=9007199254740993",
     "limit=1&limit=2", "after=%ff", "limit=%00", "&" * 10 + "a=1&" * 100, "limit=NaN"],
)  # fmt: skip
async def test_bad_query_parameters_are_422_for_who_may_know_of_the_stream_and_404_for_others(query: str) -> None:
    world = World()
    _, auth = await world.login("+8613800000001")
    path = f"/v1/orders/{world.new_id()}/events?{query}"
    async with client(world) as http:
        world.router.answers = ["they may"]
        known = await http.get(path, headers=auth)
        world.router.answers = [Refusal(Code.NOT_FOUND)]
        unknown = await http.get(path, headers=auth)
    assert (known.status_code, known.json()["code"]) == (422, "invalid")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert "errors" not in unknown.json()


async def test_a_stranger_cannot_tell_a_bad_command_from_a_missing_order() -> None:
    world = World()
    _, auth = await world.login("+8613800000001")
    path = f"/v1/orders/{world.new_id()}/commands"
    async with client(world) as http:
        bodies: list[Any] = [{}, {"command": 1}, {"command": "publish", "command_id": "x"}, {"command": "publish"}]
        for body in bodies:
            world.router.answers = [Refusal(Code.NOT_FOUND)]
            response = await http.post(path, headers=auth, json=body)
            assert (response.status_code, response.json()["code"]) == (404, "not_found"), body


async def test_unknown_paths_and_methods_are_problems_too() -> None:
    async with client(World()) as http:
        missing = await http.get("/v2/orders")
        method = await http.put("/v1/orders", json={})
        encoded = await http.get("/v1/%ff%fe/%00")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert (method.status_code, method.json()["code"]) == (405, "method_not_allowed")
    assert {"GET", "POST"} <= {item.strip() for item in method.headers["allow"].split(",")}
    assert encoded.status_code == 404
    for response in (missing, method, encoded):
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["x-request-id"]


async def test_a_sane_request_id_is_kept_and_another_replaced() -> None:
    async with client(World()) as http:
        kept = await http.get("/health/live", headers={"X-Request-Id": "abc-12345678"})
        for bad in (b"short", b"a b c d e f g h", b"x" * 65, b"\xff" * 10, b"a\tbcdefgh"):
            replaced = await http.get("/health/live", headers={"X-Request-Id": bad})
            assert replaced.headers["x-request-id"].encode() != bad
            assert len(replaced.headers["x-request-id"]) == 36
    assert kept.headers["x-request-id"] == "abc-12345678"


async def test_a_bug_is_a_500_that_tells_nothing_but_its_request_id() -> None:
    world = World()
    _, auth = await world.login("+8613800000001")

    async def broken(*_: Any) -> Any:
        raise RuntimeError("secret detail")

    world.accounts.get = broken  # type: ignore[method-assign]
    async with client(world) as http:
        response = await http.get("/v1/me", headers=auth)
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "secret" not in response.text
    assert "Traceback" not in response.text


async def test_a_store_that_is_gone_is_503_with_a_time_to_come_back() -> None:
    world = World()
    _, auth = await world.login("+8613800000001")

    async def gone(*_: Any) -> Any:
        raise StoreUnavailable("database")

    world.accounts.get = gone  # type: ignore[method-assign]
    async with client(world) as http:
        response = await http.get("/v1/me", headers=auth)
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert response.headers["retry-after"] == "1"


async def test_a_conflict_says_what_stands_against_it_and_what_would_be_allowed() -> None:
    world = World()
    _, auth = await world.login("+8613800000001")
    body = {"command": "publish", "command_id": world.new_id()}
    refusal = Refusal(Code.INVALID_TRANSITION, "open", current={"state": "open"}, allowed_commands=["cancel"])
    world.router.answers = [refusal]
    async with client(world) as http:
        response = await http.post(f"/v1/orders/{world.new_id()}/commands", headers=auth, json=body)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (409, "invalid_transition")
    assert (problem["current"], problem["allowed_commands"]) == ({"state": "open"}, ["cancel"])


async def test_titles_come_in_the_language_of_the_reader() -> None:
    async with client(World()) as http:
        english = (await http.get("/nope")).json()["title"]
        chinese = (await http.get("/nope", headers={"Accept-Language": "de, zh-Hans;q=0.9, en;q=0.1"})).json()["title"]
        garbage = (await http.get("/nope", headers={"Accept-Language": b"\xff;q=q,,;;,zh;q=0"})).json()["title"]
    assert (english, chinese, garbage) == ("Not found", "未找到", "Not found")


async def test_every_answer_has_the_security_headers_and_no_other_origin_is_let_in() -> None:
    async with client(World()) as http:
        for path in ("/health/live", "/nope", "/v1/me"):
            response = await http.get(path, headers={"Origin": "https://evil.example"})
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["cache-control"] == "no-store"
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert "access-control-allow-origin" not in response.headers


async def test_an_origin_on_the_list_is_let_in() -> None:
    async with client(World(cors_origins=("https://app.example",))) as http:
        listed = await http.get("/health/live", headers={"Origin": "https://app.example"})
        other = await http.get("/health/live", headers={"Origin": "https://app.example.evil"})
    assert listed.headers["access-control-allow-origin"] == "https://app.example"
    assert other.headers.get("access-control-allow-origin") != "https://app.example.evil"


async def test_readiness_names_what_does_not_answer_within_its_time() -> None:
    world = World(ready_timeout_s=0.05)

    async def fine() -> None: ...

    async def slow() -> None:
        await asyncio.sleep(30)

    async def broken() -> None:
        raise OSError("refused at 10.0.0.1")

    world.checks = {"database": fine, "broker": fine}
    async with client(world) as http:
        assert (await http.get("/health/ready")).json()["checks"] == {"database": "ok", "broker": "ok"}
    world.checks = {"database": slow, "broker": broken, "redis": fine}
    async with client(world) as http:
        response = await http.get("/health/ready")
        assert (await http.get("/health/live")).status_code == 200
    assert response.status_code == 503
    assert [error["field"] for error in response.json()["errors"]] == ["database", "broker"]
    assert "10.0.0.1" not in response.text


async def test_the_general_limit_counts_by_address_and_believes_only_trusted_proxies() -> None:
    async with client(World(rate_limits=True, requests_per_ip_minute=3)) as http:
        spoofed = [await http.get("/v1/me", headers={"X-Forwarded-For": f"10.0.0.{n}"}) for n in range(4)]
    assert [response.status_code for response in spoofed] == [401, 401, 401, 429]
    async with client(World(rate_limits=True, requests_per_ip_minute=3, trusted_hops=1)) as http:
        behind = [await http.get("/v1/me", headers={"X-Forwarded-For": f"1.1.1.1, 10.0.0.{n}"}) for n in range(4)]
        fixed = [await http.get("/v1/me", headers={"X-Forwarded-For": f"1.1.1.{n}, 10.9.9.9"}) for n in range(4)]
        ipv6 = [await http.get("/v1/me", headers={"X-Forwarded-For": f"2001:db8::{n}"}) for n in range(1, 5)]
    assert [response.status_code for response in behind] == [401] * 4
    assert fixed[-1].status_code == ipv6[-1].status_code == 429


@pytest.mark.parametrize(
    "bad",
    [{"otp_pepper": b"short"}, {"webhook_secret": b""}, {"env": "Production!"}, {"cors_origins": ("*",)}],
)
def test_settings_that_are_not_safe_are_refused_by_name(bad: dict[str, Any]) -> None:
    good: dict[str, Any] = {"otp_pepper": b"p" * 32, "webhook_secret": b"w" * 32}
    with pytest.raises(ValueError, match=next(iter(bad))):
        check_settings(RestSettings(**(good | bad)))


def test_a_deleted_message_is_shown_without_its_content_whatever_the_store_still_holds() -> None:
    data = b'{"type":"message.posted","message_id":"m","by":"u","at":"t","text":"secret","attachments":["a"]}'
    row = MessageRow(7, data, text="secret", deleted_at=0, reactions={"x": ("u",)})
    shown = bytes(message_view(row))
    assert b"secret" not in shown
    assert b"attachments" not in shown
    assert b'"deleted":true' in shown
