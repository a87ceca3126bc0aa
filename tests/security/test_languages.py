"""Which language people are answered in: that of the request, else that of their account; and nobody learns who has one."""

import httpx
import pytest

from domain.access import Role
from tests.security.city import City, Person
from tests.support.rest_app import World
from tests.unit.test_rest_auth import client

NOWHERE = "/v1/orders/0190a0a0-0000-7000-8000-0000000000ff"
ENGLISH, CHINESE = "no such order", "订单不存在"


async def speaker(city: City, locale: str) -> Person:
    person = await city.person(Role.CUSTOMER)
    await person.must("PATCH", "/v1/me", {"locale": locale})
    return person


@pytest.mark.parametrize(
    ("locale", "header", "language"),
    [
        ("zh-CN", None, "zh"),
        ("zh-CN", "en-GB, zh;q=0.5", "en"),
        ("zh-CN", "fr", "zh"),
        ("en", "zh-CN", "zh"),
        ("en", None, "en"),
        ("fr-FR", None, "en"),
    ],
)
async def test_the_request_chooses_the_language_and_else_the_account(
    city: City, locale: str, header: str | None, language: str
) -> None:
    person = await speaker(city, locale)
    answer = await person.ask("GET", NOWHERE, headers={} if header is None else {"Accept-Language": header})
    assert (answer.status, answer.headers["content-language"]) == (404, language)
    assert answer.json["title"] == {"en": "Not found", "zh": "未找到"}[language]


async def test_an_account_that_changes_its_language_is_answered_in_it_from_the_next_request_on(city: City) -> None:
    person = await speaker(city, "en")
    assert (await person.ask("GET", NOWHERE)).json["title"] == "Not found"
    await person.must("PATCH", "/v1/me", {"locale": "zh"})
    assert (await person.ask("GET", NOWHERE)).json["title"] == "未找到"


@pytest.mark.parametrize(
    ("locale", "data", "language"),
    [
        ("zh-CN", {}, "zh"),
        ("zh-CN", {"locale": "en-US"}, "en"),
        ("en", {"locale": "zh-Hant"}, "zh"),
        ("en", {"locale": 7, "handover": True}, "en"),
        ("en", {"locale": "tlh"}, "en"),
    ],
)
async def test_details_over_the_websocket_speak_the_language_of_the_connection_or_of_the_account(
    city: City, locale: str, data: dict[str, object], language: str
) -> None:
    person = await speaker(city, locale)
    order = await person.must(
        "POST",
        "/v1/orders",
        {"category": "tiling", "title": "t", "description": "d", "site": {"lat": 1, "lon": 1, "address": "a"}},
    )
    wanted = {"order_id": order["id"], "command": "approve_completion", "command_id": city.new_id(), "payload": {}}
    async with person.line(**data) as line:
        refused = (await line.rpc("order.command", wanted))["error"]
        unread = (await line.rpc("message.send", {"conversation_id": city.new_id(), "id": "no id"}))["error"]
    assert (refused["code"], refused["message"]) == (409, "invalid_transition")
    said = {"en": "approve_completion is not possible while the order is draft", "zh": "draft"}[language]
    assert said in refused["data"]["detail"]
    assert refused["data"]["detail"].isascii() == (language == "en")
    assert unread["data"]["errors"][0]["code"] == "uuid"
    assert unread["data"]["errors"][0]["message"].isascii() == (language == "en")


async def text_to(http: httpx.AsyncClient, phone: str, language: str | None) -> tuple[httpx.Response, str]:
    headers = {} if language is None else {"Accept-Language": language}
    response = await http.post("/v1/auth/otp", json={"phone": phone}, headers=headers)
    return response, (await http.get("/dev/outbox", params={"to": phone})).json()["items"][0]["text"]


async def test_a_code_comes_in_the_language_of_the_phones_account_and_the_caller_cannot_tell() -> None:
    """Only who has the phone reads the text."""
    world = World()
    known, unknown = "+8613800000001", "+8613800000002"
    await world.accounts.find_or_create(known, "zh-CN")
    async with client(world) as http:
        for language, stranger_reads in ((None, "en"), ("en", "en"), ("zh", "zh")):
            told, text = await text_to(http, known, language)
            told_too, text_too = await text_to(http, unknown, language)
            assert "验证码" in text
            assert ("验证码" in text_too) == (stranger_reads == "zh")
            assert (told.status_code, told.content) == (told_too.status_code, told_too.content)
            assert {*told.headers} == {*told_too.headers}
