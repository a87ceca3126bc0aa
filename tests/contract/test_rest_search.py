"""Searching, blocking and muting over REST, on the real runtime and a real store in one process."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import httpx
import pytest

from domain.times import rfc3339
from tests.support.databases import migrated
from tests.support.rest_platform import RestPlatform

STRANGE = "01890000-0000-7000-8000-ffffffffffff"


_phones = (f"+86139{number:08d}" for number in count(1))


class Talk:
    """Ann and Bob have a conversation; Cara has nothing to do with it."""

    async def begin(self, platform: RestPlatform, http: httpx.AsyncClient) -> "Talk":
        self.platform, self.http = platform, http
        self.users, self.auth = {}, {}
        for name in ("ann", "bob", "cara"):
            user, self.auth[name] = await platform.login(next(_phones))
            self.users[name] = user.id
        self.room = await self.open("ann", "bob")
        self.path = f"/v1/conversations/{self.room}"
        return self

    async def open(self, one: str, *others: str) -> str:
        body = {"member_ids": [self.users[name] for name in others]}
        return str((await self.ask(one, "POST", "/v1/conversations", 201, json=body))["id"])

    async def ask(self, who: str, method: str, path: str, expected: int = 200, **kwargs: Any) -> Any:
        response = await self.http.request(method, path, headers=self.auth[who], **kwargs)
        assert response.status_code == expected, response.text
        return response.json() if response.content else None

    async def say(self, who: str, text: str, expected: int = 200, room: str | None = None) -> str:
        message_id = self.platform.new_id()
        path = f"/v1/conversations/{room or self.room}/messages"
        await self.ask(who, "POST", path, expected, json={"id": message_id, "text": text})
        return message_id

    async def search(self, who: str, expected: int = 200, **params: Any) -> Any:
        return await self.ask(who, "GET", f"{self.path}/messages/search", expected, params=params)

    async def listed(self, who: str) -> Any:
        return {item["id"]: item for item in (await self.ask(who, "GET", "/v1/conversations"))["items"]}


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def own_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database of these tests' own: their host takes every partition."""
    with migrated(request.param, tmp_path_factory.mktemp("search")) as url:
        yield url


@pytest.fixture
async def talk(own_place: str) -> AsyncIterator[Talk]:
    platform = await RestPlatform(own_place).start()
    platform.entropy = os.urandom  # type: ignore[assignment] # the database is that of many tests
    transport = httpx.ASGITransport(platform.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://rest") as http:
        yield await Talk().begin(platform, http)
    await platform.stop()


async def test_members_find_messages_as_the_list_shows_them(talk: Talk) -> None:
    first = await talk.say("ann", "The tap leaks")
    await talk.say("bob", "厨房水管漏水了")
    last = await talk.say("bob", "Which tap?")
    found = await talk.search("ann", q="TAP")
    assert [item["message_id"] for item in found["items"]] == [last, first]
    assert found["next_cursor"] is None
    shown = {item["message_id"]: item for item in (await talk.ask("ann", "GET", f"{talk.path}/messages"))["items"]}
    assert found["items"] == [shown[last], shown[first]]
    assert [item["text"] for item in (await talk.search("bob", q="水管"))["items"]] == ["厨房水管漏水了"]
    page = await talk.search("bob", q="tap", limit=1)
    assert [item["message_id"] for item in page["items"]] == [last]
    rest = await talk.search("bob", q="tap", limit=1, cursor=page["next_cursor"])
    assert [item["message_id"] for item in rest["items"]] == [first]


async def test_to_a_stranger_there_is_nothing_to_search_whatever_they_ask(talk: Talk) -> None:
    await talk.say("ann", "The tap leaks")
    for params in ({"q": "tap"}, {"q": ""}, {}, {"q": "tap", "cursor": "?"}):
        assert (await talk.search("cara", 404, **params))["code"] == "not_found"
    assert (await talk.ask("ann", "GET", f"/v1/conversations/{STRANGE}/messages/search?q=tap", 404))["code"]


@pytest.mark.parametrize(
    "params",
    [{}, {"q": ""}, {"q": "  "}, {"q": "x" * 201}, {"q": "?!"}, {"q": "tap", "cursor": "?"}, {"q": "a", "limit": "x"}],
)
async def test_a_query_that_asks_for_nothing_is_invalid(talk: Talk, params: dict[str, str]) -> None:
    problem = await talk.search("ann", 422, **params)
    assert problem["code"] == "invalid"
    assert problem["errors"]


async def test_a_blocked_users_messages_are_refused_in_every_conversation_of_the_two(talk: Talk) -> None:
    second, group = await talk.open("bob", "ann"), await talk.open("ann", "bob", "cara")
    await talk.say("bob", "hello")
    block = f"/v1/blocks/{talk.users['bob']}"
    made = await talk.ask("ann", "PUT", block)
    assert await talk.ask("ann", "PUT", block) == made
    assert (await talk.ask("ann", "GET", "/v1/blocks"))["items"] == [made]
    for room in (talk.room, second):
        await talk.say("bob", "hello again", 403, room)
        events = (await talk.ask("ann", "GET", f"/v1/conversations/{room}/events"))["items"]
        assert [event["type"] for event in events].count("member.blocked") == 1
    await talk.say("bob", "hello all", 200, group)
    await talk.ask("ann", "DELETE", block, 204)
    await talk.ask("ann", "DELETE", block, 204)
    for room in (talk.room, second):
        await talk.say("bob", "thank you", 200, room)
    assert (await talk.ask("ann", "GET", "/v1/blocks"))["items"] == []


async def test_blocks_and_their_ends_in_quick_succession_leave_no_trace_behind(talk: Talk) -> None:
    block = f"/v1/blocks/{talk.users['bob']}"
    for n in range(4):
        await talk.ask("ann", "PUT", block)
        await talk.say("bob", f"{n}", 403)
        await talk.ask("ann", "DELETE", block, 204)
        await talk.say("bob", f"{n}", 200)


async def test_contradicting_requests_at_once_leave_the_conversation_as_the_table_has_it(talk: Talk) -> None:
    block = f"/v1/blocks/{talk.users['bob']}"
    for _ in range(5):
        wishes = ["PUT", "DELETE"] * 3
        answers = await asyncio.gather(
            *(talk.http.request(method, block, headers=talk.auth["ann"]) for method in wishes)
        )
        assert {answer.status_code for answer in answers} <= {200, 204, 503}
        if all(answer.is_success for answer in answers):
            blocked = bool((await talk.ask("ann", "GET", "/v1/blocks"))["items"])
            await talk.say("bob", "hello", 403 if blocked else 200)


async def test_a_mute_is_shown_to_its_owner_alone_and_ends_by_itself(talk: Talk) -> None:
    path, now_ms = f"{talk.path}/mute", talk.platform.clock.now_ms()
    assert (await talk.listed("ann"))[talk.room]["muted"] is False
    until = rfc3339(now_ms + 3_600_000)
    assert await talk.ask("ann", "PUT", path, json={"until": until}) == {"muted": True, "muted_until": until}
    await talk.say("bob", "hello")
    item = (await talk.listed("ann"))[talk.room]
    assert (item["muted"], item["muted_until"], item["unread"]) == (True, until, 1)
    other = (await talk.listed("bob"))[talk.room]
    assert other["muted"] is False
    assert "muted_until" not in other
    talk.platform.clock.advance_s(800)  # within the life of the tokens
    later = rfc3339(talk.platform.clock.now_ms() + 50_000)
    await talk.ask("ann", "PUT", path, json={"until": later})
    talk.platform.clock.advance_s(60)
    assert (await talk.listed("ann"))[talk.room]["muted"] is False


async def test_a_conversation_is_muted_for_ever_and_again_not_at_all(talk: Talk) -> None:
    path = f"{talk.path}/mute"
    assert await talk.ask("ann", "PUT", path, json={}) == {"muted": True}
    item = (await talk.listed("ann"))[talk.room]
    assert item["muted"] is True
    assert "muted_until" not in item
    events = (await talk.ask("bob", "GET", f"{talk.path}/events"))["items"]
    assert {event["type"] for event in events} == {"member.joined"}
    await talk.ask("ann", "DELETE", path, 204)
    await talk.ask("ann", "DELETE", path, 204)
    assert (await talk.listed("ann"))[talk.room]["muted"] is False


async def test_who_is_no_member_has_nothing_to_mute(talk: Talk) -> None:
    for method, body in (("PUT", {}), ("PUT", {"until": 7}), ("DELETE", None)):
        assert (await talk.ask("cara", method, f"{talk.path}/mute", 404, json=body))["code"] == "not_found"
    assert await talk.platform.mutes.of(talk.users["cara"], [talk.room], 1) == {}


@pytest.mark.parametrize("until", ["yesterday", "2020-01-01T00:00:00.000Z", "2030-01-01", "", 7, True])
async def test_a_time_that_is_none_or_over_is_invalid(talk: Talk, until: Any) -> None:
    problem = await talk.ask("ann", "PUT", f"{talk.path}/mute", 422, json={"until": until})
    assert problem["errors"][0]["field"] == "until"
    assert (await talk.listed("ann"))[talk.room]["muted"] is False
