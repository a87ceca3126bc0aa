"""Erasing a person, on the real runtime over SQLite and MariaDB: nothing of theirs is left, and all else is as it was."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from domain.erasure import LEASE_MS, SETTLE_MS
from domain.errors import Code, Refusal
from domain.identities import PendingLink
from domain.order_events import chain
from domain.ports import Position, StoreUnavailable
from serve_apps import erasure
from storage.erasures import SqlErasures
from storage.tables import metadata, partition_log
from tests.contract.test_rest_conversations import call, keyed, opened
from tests.contract.test_rest_journey import WORKER, Person, awarded
from tests.support.databases import migrated
from tests.support.device_keys import Handset
from tests.support.pictures import PDF, picture
from tests.support.rest_platform import RestPlatform

CANARY = "kanarienvogel"
"""Whatever Anna writes anywhere holds this word, and nothing else does."""
PHONE = "+8613800000001"
NUMBER = "13912345678"


@pytest.fixture(params=["sqlite", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with migrated(request.param, tmp_path_factory.mktemp("erasure")) as made:
        yield made


@pytest.fixture
async def platform(url: str) -> AsyncIterator[RestPlatform]:
    made = await RestPlatform(url).start()
    yield made
    await made.stop()


class Town:
    """Anna, who is to be erased, Bob and Cleo; the rooms where Anna has said something."""

    def __init__(self, platform: RestPlatform, anna: Person, bob: Person, cleo: Person) -> None:
        self.platform, self.anna, self.bob, self.cleo = platform, anna, bob, cleo
        self.rooms: list[str] = []
        self.order = ""
        self.services = platform.services()

    async def say(self, person: Person, room: str, text: str) -> str:
        body = {"id": self.platform.new_id(), "text": text}
        await person.post(f"/v1/conversations/{room}/messages", body)
        return str(body["id"])

    async def furnish(self) -> None:
        anna, bob, cleo = self.anna, self.bob, self.cleo
        name = {"name": f"Anna {CANARY}", "avatar": f"https://pictures.example/{CANARY}"}
        await anna.ask("PATCH", "/v1/me", json=name)
        await anna.ask("PUT", "/v1/me/worker", json=WORKER | {"bio": CANARY, "skills": [CANARY, "plumbing"]})
        await self.platform.identities.link(PendingLink("google", b"d" * 32), anna.id, 1)
        chat, left = await opened(anna, bob), await opened(anna, bob, cleo)
        for number in range(erasure._PAGE + 7):
            await self.say(anna, chat, f"{number} {CANARY}")
        edited = await self.say(anna, chat, f"first {CANARY}")
        await call(anna, "message.edit", conversation_id=chat, message_id=edited, text=f"second {CANARY}")
        await call(bob, "message.react", conversation_id=chat, message_id=edited, emoji="👍", on=True)
        await self.say(bob, chat, "Bob's words stay")
        await self.say(anna, left, f"before I go {CANARY}")
        await anna.ask("DELETE", f"/v1/conversations/{left}/members/{anna.id}", headers=keyed(anna))
        await self.say(cleo, left, "Cleo's words stay")
        self.order, hidden = await awarded(bob, anna)
        await self.say(anna, hidden, f"call me {NUMBER} {CANARY}")
        await self.say(anna, chat, f"the last one {CANARY}")
        way = [Position(number, 31.22, 121.47, 5.0, visit_id=self.platform.new_id()) for number in range(3)]
        await self.platform.reads.add_positions(self.order, way)
        await bob.get(f"/v1/conversations/{chat}/messages/search", q=CANARY)
        self.rooms = [chat, left, hidden]

    async def holds(self, *texts: str) -> list[str]:
        """Where in the whole database one of the texts stands."""
        found = set()
        async with self.platform.database.read() as connection:
            for table in metadata.sorted_tables:
                for row in await connection.execute(table.select()):
                    for name, value in row._mapping.items():
                        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
                        found.update(f"{table.name}.{name}" for wanted in texts if wanted in text)
        return sorted(found)

    async def finish(self) -> None:
        """All passes there are."""
        while await erasure.run_once(self.services):
            pass
        self.platform.clock.advance_s(SETTLE_MS / 1000 + 1)
        while await erasure.run_once(self.services):
            pass

    async def streams(self) -> dict[str, list[tuple[int, Any]]]:
        """What the log itself holds of the rooms and the order: (offset, body)."""
        c = partition_log.c
        found: dict[str, list[tuple[int, Any]]] = {}
        async with self.platform.database.read() as connection:
            for name in [*(f"conversation:{room}" for room in self.rooms), f"order:{self.order}"]:
                query = select(c.offset, c.body).where(c.stream == name).order_by(c.offset)
                found[name] = [(row[0], json.loads(row[1])) for row in await connection.execute(query)]
        return found


@pytest.fixture
async def town(platform: RestPlatform) -> AsyncIterator[Town]:
    transport = httpx.ASGITransport(platform.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://rest") as http:
        people = []
        for number in (1, 2, 3):
            user, auth = await platform.login(f"+861380000000{number}")
            people.append(Person(platform, http, user.id, auth))
        yield Town(platform, *people)


async def test_nothing_of_a_person_is_left_and_everything_else_is_as_it_was(town: Town) -> None:
    await town.furnish()
    before = await town.streams()
    assert len(await town.holds(CANARY)) >= 4
    assert await town.holds(NUMBER)
    await town.platform.erasures.begin(town.anna.id, town.platform.clock.now_ms())
    await town.finish()
    assert await town.holds(CANARY, NUMBER, PHONE) == []
    assert await town.platform.reads.positions(town.order, None, 10) == []
    after = await town.streams()
    for name, events in after.items():
        assert [offset for offset, _ in events] == list(range(1, len(events) + 1)), name
        assert len(events) >= len(before[name])
        for (_, was), (_, now) in zip(before[name], events, strict=False):
            assert now == was or (now.get("erased") and was["by"] == town.anna.id and now["type"] == was["type"])
    previous = ""
    for _, body in after[f"order:{town.order}"]:
        assert chain(previous, body) == body["hash"]
        previous = body["hash"]
    seen = await town.bob.get(f"/v1/conversations/{town.rooms[0]}/messages", limit=200)
    kept = [item for item in seen["items"] if "text" in item]
    assert [item["text"] for item in kept] == ["Bob's words stay"]
    assert all(item["deleted"] for item in seen["items"] if item["by"] == town.anna.id)


async def test_the_person_is_out_at_once_and_a_new_account_has_nothing_of_the_old_one(town: Town) -> None:
    await town.platform.identities.link(PendingLink("google", b"d" * 32), town.anna.id, 1)
    answer = await town.anna.ask("DELETE", "/v1/me", 202)
    assert set(answer) == {"requested_at"}
    assert (await town.anna.ask("GET", "/v1/me", 401))["code"] == "session_revoked"
    user, is_new = await town.platform.accounts.find_or_create(PHONE, "en")
    assert (is_new, user.id == town.anna.id) == (True, False)
    assert await town.platform.identities.find(b"d" * 32) is None
    public = await town.platform.accounts.get([town.anna.id])
    assert (public[town.anna.id].name, public[town.anna.id].worker, public[town.anna.id].roles) == ("", None, ())


async def test_an_old_login_erases_nothing(town: Town) -> None:
    town.platform.clock.advance_s(700)
    town.anna.auth = {"Authorization": f"Bearer {await _old_token(town)}"}
    assert (await town.anna.ask("DELETE", "/v1/me", 403))["code"] == "forbidden"
    assert (await town.anna.get("/v1/me"))["id"] == town.anna.id


async def _old_token(town: Town) -> str:
    """A fresh access token of the old session, as a refresh would give it."""
    (session,) = await town.platform.sessions.list_of(town.anna.id)
    return town.platform.tokens.access(town.anna.id, session.id, town.platform.clock.now_ms(), 900)


async def test_who_has_an_order_that_is_not_over_is_told_which(town: Town) -> None:
    await town.anna.ask("PUT", "/v1/me/worker", json=WORKER)
    order_id, _ = await awarded(town.bob, town.anna)
    for person in (town.anna, town.bob):
        refused = await person.ask("DELETE", "/v1/me", 409)
        assert (refused["code"], refused["current"]) == ("conflict", {"orders": [order_id]})
    assert (await town.anna.get("/v1/me"))["id"] == town.anna.id


async def test_who_dies_half_way_leaves_the_rest_to_the_next_one(town: Town) -> None:
    """Every fortieth question to a stream is the last one that a worker asks."""
    await town.furnish()
    now_ms = town.platform.clock.now_ms
    await town.platform.erasures.begin(town.anna.id, now_ms())
    router, asked = town.platform.router, 0

    class Dying:
        async def ask(self, request: Any, timeout_s: float) -> Any:
            nonlocal asked
            asked += 1
            if asked % 40 == 0:
                raise StoreUnavailable("killed")
            return await router.ask(request, timeout_s)

    town.platform.router = Dying()
    town.services = town.platform.services()
    deaths = 0
    for _ in range(20):
        if await erasure.run_once(town.services):
            break
        deaths += 1
        assert await town.platform.erasures.claim(now_ms()) is None, "who died is given time to come back"
        town.platform.clock.advance_s(LEASE_MS / 1000 + 1)
    assert deaths >= 2
    assert await town.holds(CANARY, NUMBER, PHONE) == []


async def test_what_was_under_way_when_the_erasure_began_is_erased_too(town: Town) -> None:
    """A message and a change of the account that were admitted before the sessions ended, and land after the first pass."""
    room = await opened(town.anna, town.bob)
    await town.platform.erasures.begin(town.anna.id, town.platform.clock.now_ms())
    assert await erasure.run_once(town.services)
    await call(town.anna, "message.send", conversation_id=room, text=CANARY)
    await town.platform.accounts.update(town.anna.id, name=CANARY, locale=None, avatar=None)
    await town.platform.login(PHONE)
    assert await town.holds(CANARY)
    assert not await erasure.run_once(town.services), "not due yet"
    await town.finish()
    assert await town.holds(CANARY) == []
    town.platform.clock.advance_s(10**6)
    assert await town.platform.erasures.claim(town.platform.clock.now_ms()) is None, "it is over"


async def test_asking_twice_is_one_erasure_and_two_workers_never_have_the_same(town: Town) -> None:
    erasures, now_ms = town.platform.erasures, town.platform.clock.now_ms()
    await erasures.begin(town.anna.id, now_ms)
    assert await erasures.begin(town.anna.id, now_ms + 1) == []
    claims = await asyncio.gather(*(SqlErasures(town.platform.database).claim(now_ms) for _ in range(20)))
    (first,) = [claim for claim in claims if claim is not None]
    assert (first.user_id, first.requested_at) == (town.anna.id, now_ms)
    assert await erasures.claim(now_ms) is None
    assert await erasures.claim(now_ms + LEASE_MS - 1) is None
    again = await erasures.claim(now_ms + LEASE_MS)
    assert again is not None
    assert again.pass_at == first.pass_at, "a pass that somebody else began goes on as that pass"


async def test_nobody_but_the_platform_deletes_what_others_wrote(town: Town) -> None:
    room = await opened(town.anna, town.bob)
    message = await town.say(town.anna, room, "mine")
    with pytest.raises(Refusal) as caught:
        await call(town.bob, "message.delete", conversation_id=room, message_id=message)
    assert caught.value.code is Code.FORBIDDEN


async def exported(person: Person) -> list[dict[str, Any]]:
    """All pages of an export."""
    pages = [await person.post("/v1/me/export", {})]
    while "next_cursor" in pages[-1]:
        assert len(pages) < 50
        pages.append(await person.post("/v1/me/export", {"cursor": pages[-1]["next_cursor"]}))
    return pages


async def test_an_export_holds_all_that_a_person_wrote_and_nothing_that_others_did(town: Town) -> None:
    await town.furnish()
    pages = await exported(town.anna)
    account = pages[0]["account"]
    assert (account["phone"], account["me"]["name"]) == (PHONE, f"Anna {CANARY}")
    assert [item["provider"] for item in account["identities"]] == ["google"]
    assert len(account["sessions"]) == 1
    messages = [message for page in pages for message in page.get("messages", [])]
    assert max(len(page.get("messages", [])) for page in pages) <= 100
    texts = [message["texts"] for message in messages]
    numbered = [f"{number} {CANARY}" for number in range(erasure._PAGE + 7)]
    assert sorted(text[0] for text in texts if text[0][0].isdigit()) == sorted(numbered)
    assert [f"first {CANARY}", f"second {CANARY}"] in texts
    for said in (f"before I go {CANARY}", f"call me {NUMBER} {CANARY}", f"the last one {CANARY}"):
        assert texts.count([said]) == 1
    assert len(messages) == len(numbered) + 4
    assert len({message["message_id"] for message in messages}) == len(messages)
    (order,) = (order for page in pages for order in page.get("orders", []))
    assert (order["id"], len(order["quotes"])) == (town.order, 1)
    assert "words stay" not in json.dumps(pages)
    theirs = await exported(town.cleo)
    assert CANARY not in json.dumps(theirs)
    assert [message["texts"] for page in theirs for message in page.get("messages", [])] == [["Cleo's words stay"]]


async def test_an_export_names_the_keys_and_gives_none_away(town: Town) -> None:
    anna, handset = town.anna, Handset()
    await anna.ask("PUT", "/v1/me/worker", json=WORKER)
    key = await anna.post("/v1/auth/device-keys", {"public_key": handset.jwk(), "name": "her phone"}, 201)
    api_key = await anna.post("/v1/me/api-keys", {"name": "her ledger"}, 201)
    account = (await anna.post("/v1/me/export", {}))["account"]
    assert [(item["id"], item["name"]) for item in account["device_keys"]] == [(key["id"], "her phone")]
    assert [(item["id"], item["name"]) for item in account["api_keys"]] == [(api_key["id"], "her ledger")]
    assert api_key["key"] not in json.dumps(account)
    assert "device_keys" not in (await town.cleo.post("/v1/me/export", {}))["account"]


async def test_the_cursor_of_another_person_shows_only_what_is_ones_own(town: Town) -> None:
    await town.furnish()
    cursor = (await town.anna.post("/v1/me/export", {}))["next_cursor"]
    while cursor is not None:
        await town.anna.post("/v1/me/export", {"cursor": cursor})
        page = await town.cleo.post("/v1/me/export", {"cursor": cursor})
        assert CANARY not in json.dumps(page)
        cursor = page.get("next_cursor")


@pytest.mark.parametrize(
    "cursor", ["x", "!!!", "WyJtZXNzYWdlcyIsIidvIiwwXQ", "WyJub3doZXJlIl0", "W10", "bnVsbA", "é" * 9]
)
async def test_a_cursor_that_no_export_gave_is_refused(town: Town, cursor: str) -> None:
    assert (await town.anna.post("/v1/me/export", {"cursor": cursor}, 422))["code"] == "invalid"


async def test_a_replica_works_on_what_is_due_by_itself_and_survives_a_bug(town: Town) -> None:
    room = await opened(town.anna, town.bob)
    await town.say(town.anna, room, CANARY)
    router, asked = town.platform.router, 0

    class FaultyOnce:
        async def ask(self, request: Any, timeout_s: float) -> Any:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise AssertionError("a bug")
            return await router.ask(request, timeout_s)

    town.platform.router = FaultyOnce()
    working = asyncio.create_task(erasure.run(town.platform.services(), poll_s=0.02))
    await town.platform.erasures.begin(town.anna.id, town.platform.clock.now_ms())
    for _ in range(500):
        await asyncio.sleep(0.02)
        if asked:
            town.platform.clock.advance_s(LEASE_MS / 1000 + 1)
        if asked > 1 and not await town.holds(CANARY):
            break
    assert await town.holds(CANARY) == []
    assert not working.done()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def uploaded(person: Person, purpose: str, content: bytes, media_type: str) -> str:
    headers = {"Content-Type": media_type}
    made = await person.ask("POST", "/v1/uploads", 201, params={"purpose": purpose}, content=content, headers=headers)
    return str(made["id"])


async def test_what_a_person_uploaded_is_taken_along_and_goes_with_them(platform: RestPlatform) -> None:
    transport = httpx.ASGITransport(platform.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://rest") as http:
        people = []
        for phone in ("+8613800000011", "+8613800000012"):
            user, auth = await platform.login(phone)
            people.append(Person(platform, http, user.id, auth))
        await _gone_with_their_owner(platform, *people)


async def _gone_with_their_owner(platform: RestPlatform, anna: Person, bob: Person) -> None:
    room = await opened(anna, bob)
    pixels, file = (
        await uploaded(anna, "chat", picture("PNG"), "image/png"),
        await uploaded(anna, "document", PDF, "application/pdf"),
    )
    theirs = await uploaded(bob, "chat", picture("PNG"), "image/png")
    for person, upload_id in ((anna, pixels), (bob, theirs)):
        body = {"id": platform.new_id(), "attachments": [upload_id]}
        await person.post(f"/v1/conversations/{room}/messages", body)
    document = {"kind": "identity", "upload_id": file, "number": "310101199001011234"}
    await anna.post("/v1/me/worker/documents", document, 201)
    pages = await exported(anna)
    (handed_in,) = pages[0]["account"]["documents"]
    assert (handed_in["upload_id"], handed_in["number_tail"]) == (file, "1234")
    assert {item["id"] for page in pages for item in page.get("uploads", [])} == {pixels, file}
    assert await platform.uploads.content(pixels) is not None
    await anna.ask("DELETE", "/v1/me", 202)
    assert await platform.uploads.content(pixels) is None, "nobody can read it from that moment on"
    await bob.get(f"/v1/uploads/{pixels}", 404)
    while await erasure.run_once(platform.services()):
        pass
    assert len(platform.objects.contents) == 1
    assert await platform.uploads.content(theirs) is not None
    assert await platform.worker_documents.list_of(anna.id) == []
    async with platform.database.read() as connection:
        rows = [repr(row) for table in metadata.sorted_tables for row in await connection.execute(select(table))]
    assert not [row for row in rows if file in row], "documents are named nowhere any more"
