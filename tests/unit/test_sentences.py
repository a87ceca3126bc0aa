"""Whatever the platform refuses, it says in English and in Chinese."""

import re
from typing import Any

import httpx
import msgspec
import pytest

from domain.errors import Code, Refusal, invalid
from domain.redaction import redacted
from domain.sentences import CHINESE, in_language
from serve_apps.schemas.auth import VerifyRequest
from serve_apps.schemas.orders import CreateOrder, OrderCommand
from tests.support.rest_app import World
from tests.support.sentences import sentences

SAID = sentences()
OF_MSGSPEC = {text for text in CHINESE if text.startswith(("Expected `", "Object ", "Invalid enum"))}
CHINESE_CHARACTER = re.compile(r"[\u4e00-\u9fff]")
ZH = {"accept-language": "zh-CN,zh;q=0.9,en;q=0.5"}


@pytest.mark.parametrize("sentence", SAID, ids=SAID.values())
def test_a_sentence_that_the_code_says_is_in_the_catalogue(sentence: str) -> None:
    assert sentence in CHINESE, SAID[sentence]


@pytest.mark.parametrize("sentence", CHINESE)
def test_no_sentence_looks_like_a_secret_to_what_redacts_answers(sentence: str) -> None:
    assert redacted(sentence) == sentence
    assert redacted(CHINESE[sentence]) == CHINESE[sentence]


def test_the_catalogue_holds_nothing_that_nobody_says() -> None:
    assert set(CHINESE) - set(SAID) - OF_MSGSPEC == set()


@pytest.mark.parametrize("sentence", CHINESE)
def test_a_translation_is_chinese_and_keeps_every_part(sentence: str) -> None:
    said = CHINESE[sentence]
    assert CHINESE_CHARACTER.search(said)
    parts = [f"part{n}" for n in range(sentence.count("{}"))]
    translated = in_language(sentence.format(*parts) if parts else sentence, "zh")
    assert translated == said.format(*parts)
    assert all(translated.count(part) == 1 for part in parts)


def test_a_sentence_in_english_or_unknown_stays_as_it_is() -> None:
    assert in_language("the slot is over", "en") == "the slot is over"
    assert in_language("nobody has ever said this", "zh") == "nobody has ever said this"
    assert in_language("milestone " + "x" * 600 + " is y", "zh").startswith("milestone x")


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        (VerifyRequest, {}),
        (VerifyRequest, {"phone": 1}),
        (VerifyRequest, {"phone": "x"}),
        (VerifyRequest, {"phone": "+8613800000000", "code": "1", "device": {}}),
        (CreateOrder, {"category": 1}),
        (CreateOrder, {"category": "plumbing", "title": "t" * 2000}),
        (CreateOrder, {"category": "plumbing", "title": ""}),
        (OrderCommand, {"command": "publish", "expected_version": -1}),
    ],
)
def test_what_the_decoder_finds_is_said_in_chinese(shape: Any, given: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.convert(given, shape, strict=False)
    assert CHINESE_CHARACTER.search(in_language(str(error.value).partition(" - at ")[0], "zh"))


async def asked(refusal: Exception, headers: dict[str, str]) -> tuple[httpx.Response, dict[str, Any]]:
    world = World()
    _, auth = await world.login("+8613800000001")
    world.router.answers = [refusal]
    transport = httpx.ASGITransport(world.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://rest") as http:
        response = await http.get(f"/v1/orders/{world.new_id()}", headers=auth | headers)
    return response, response.json()


async def test_a_problem_is_told_in_the_callers_language_its_code_in_none() -> None:
    refusal = invalid("slot", "too_long", "a slot is at most 12 hours")
    response, problem = await asked(refusal, ZH)
    assert problem["detail"] == problem["errors"][0]["message"] == "时段最长 12 小时"
    assert (problem["title"], problem["code"]) == ("请求内容无效", "invalid")
    assert (problem["errors"][0]["field"], problem["errors"][0]["code"]) == ("slot", "too_long")
    assert response.headers["content-language"] == "zh"
    response, problem = await asked(refusal, {"accept-language": "fr, en;q=0.5"})
    assert problem["detail"] == "a slot is at most 12 hours"
    assert response.headers["content-language"] == "en"


async def test_a_refusal_without_a_sentence_says_its_title_in_the_callers_language() -> None:
    _, problem = await asked(Refusal(Code.NOT_FOUND), ZH)
    assert problem["detail"] == problem["title"] == "未找到"


async def test_what_stands_in_the_database_for_programs_is_never_translated() -> None:
    refusal = Refusal(
        Code.CONFLICT, "the slot is over", current={"state": "the slot is over"}, allowed_commands=("cancel",)
    )
    _, problem = await asked(refusal, ZH)
    assert problem["detail"] == "时段已过"
    assert problem["current"] == {"state": "the slot is over"}
    assert problem["allowed_commands"] == ["cancel"]
