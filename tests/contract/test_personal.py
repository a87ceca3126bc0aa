"""`storage/personal.py` says of every table what a person gets of it and what an erasure leaves, and that is so."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from domain.devices import ApiKey, DeviceKey, TotpSecret
from domain.places import Place, Seen
from domain.ports import Device, DeviceSession
from domain.search import wanted
from storage.personal import ERASED, EXPORTED, KEPT, NOT_EXPORTED
from storage.search import SearchSettings, SqlMessageSearch
from storage.tables import metadata
from tests.contract.test_erasure import Town, exported, uploaded
from tests.contract.test_rest_journey import Person
from tests.support.databases import migrated
from tests.support.pictures import PDF, picture
from tests.support.rest_platform import RestPlatform

NUMBER = "310101199001011234"
SEEN = Seen("203.0.113.9", "Canary Browser", Place("CN", "Hangzhou", 30.3, 120.2))


@pytest.fixture
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with migrated("sqlite", tmp_path_factory.mktemp("personal")) as made:
        yield made


@pytest.fixture
async def town(url: str) -> AsyncIterator[Town]:
    platform = await RestPlatform(url).start()
    transport = httpx.ASGITransport(platform.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://rest") as http:
        people = []
        for number in (1, 2, 3):
            user, auth = await platform.login(f"+861380000000{number}")
            people.append(Person(platform, http, user.id, auth))
        yield Town(platform, *people)
    await platform.stop()


def test_every_table_is_exported_or_it_is_said_why_not_and_likewise_for_erasures() -> None:
    tables = sorted(metadata.tables)
    assert sorted([*EXPORTED, *NOT_EXPORTED]) == tables
    assert sorted([*ERASED, *KEPT]) == tables


def at(pages: list[dict[str, Any]], path: str) -> list[Any]:
    """What all pages together have at a place of the document."""
    found: list[Any] = []
    for page in pages:
        part: Any = page
        for name in path.split("."):
            part = part.get(name) if isinstance(part, dict) else None
        found += part if isinstance(part, list) else [part] if part else []
    return found


async def furnish(town: Town) -> str:
    """Something of Anna's in every table that has anything of a person. Her session with a place."""
    await town.furnish()
    anna, platform = town.anna, town.platform
    key = DeviceKey(platform.new_id(), anna.id, "Anna's finger", b"k" * 91, 1)
    await platform.device_keys.add(key, 5)
    await platform.api_keys.add(ApiKey(platform.new_id(), anna.id, "Anna's calendar", 1), b"a" * 32, 5)
    await platform.totp.enrol(TotpSecret(anna.id, "TOPSECRETTOTP", 1))
    device = Device("d", "Anna's phone", "ios")
    session = DeviceSession(platform.new_id(), anna.id, device, 1, 2, None, SEEN, device_key_id=key.id)
    await platform.sessions.open(session, b"r" * 32, 10**15)
    await anna.ask("PUT", f"/v1/blocks/{town.cleo.id}")
    await anna.ask("PUT", f"/v1/conversations/{town.rooms[0]}/mute", json={})
    search = SqlMessageSearch(platform.database, SearchSettings(read=2, scanned=0))  # a long conversation has an index
    shown = await uploaded(anna, "chat", picture("PNG"), "image/png")
    message = {"id": platform.new_id(), "attachments": [shown]}
    await anna.post(f"/v1/conversations/{town.rooms[0]}/messages", message)
    file = await uploaded(anna, "document", PDF, "application/pdf")
    document = {"kind": "identity", "upload_id": file, "number": NUMBER}
    await anna.post("/v1/me/worker/documents", document, 201)
    await search.find(town.rooms[0], wanted("kanarienvogel"), None, 5)
    return session.id


async def ids(town: Town, session_id: str) -> set[str]:
    """Whatever names Anna: she, her sessions, her messages, her uploads, the order that she drove to."""
    log = metadata.tables["partition_log"].c
    async with town.platform.database.read() as connection:
        query = sa.select(log.command_id).where(log.actor == f"user:{town.anna.id}", log.command_id.is_not(None))
        written = set(await connection.scalars(query))
    (first, *_) = [item.id for item in await town.platform.sessions.list_of(town.anna.id)]
    uploads = [item.id for item in await town.platform.uploads.list_of(town.anna.id, "", 10)]
    return {town.anna.id, session_id, first, town.order, *uploads, *written}


async def left(town: Town, names: set[str]) -> dict[str, int]:
    """How many rows of each table of `ERASED` name her."""
    found = {}
    async with town.platform.database.read() as connection:
        for name, columns in ERASED.items():
            table = metadata.tables[name]
            rows = (await connection.execute(sa.select(*(table.c[column] for column in columns)))).all()
            found[name] = sum(not names.isdisjoint(row) for row in rows)
    return found


async def test_the_export_has_all_that_the_list_says_and_an_erasure_leaves_none_of_it(town: Town) -> None:
    session_id = await furnish(town)
    pages = await exported(town.anna)
    for table, path in EXPORTED.items():
        assert at(pages, path), f"{table}: nothing at {path}"
    (session,) = [item for item in at(pages, "account.sessions") if item["id"] == session_id]
    known = (session["last_seen_at_ip"], session["user_agent"], session["last_seen_near"])
    assert known == (SEEN.ip, SEEN.agent, {"lat": 30.3, "lon": 120.2})
    assert [key["name"] for key in at(pages, "account.device_keys")] == ["Anna's finger"]
    assert [key["name"] for key in at(pages, "account.api_keys")] == ["Anna's calendar"]
    assert "TOPSECRETTOTP" not in str(pages)
    muted = [item for item in at(pages, "conversations") if "muted_until" in item]
    assert [item["conversation_id"] for item in muted] == [town.rooms[0]]
    assert len([item for item in at(pages, "conversations") if "left_offset" in item]) == 1
    (document,) = at(pages, "account.documents")
    assert document["number_tail"] == NUMBER[-4:]
    assert NUMBER not in str(pages)
    assert sorted(item["purpose"] for item in at(pages, "uploads")) == ["chat", "document"]
    (track,) = at(pages, "tracks")
    assert (track["order_id"], len(track["positions"])) == (town.order, 3)
    assert [block["user_id"] for block in at(pages, "blocks")] == [town.cleo.id]

    names = await ids(town, session_id)
    before = await left(town, names)
    assert all(before.values()), before
    await town.platform.erasures.begin(town.anna.id, town.platform.clock.now_ms())
    await town.finish()
    assert not any((await left(town, names)).values())


async def test_a_cursor_shows_nobody_elses_trips(town: Town) -> None:
    await town.furnish()
    erasures = town.platform.erasures
    assert await erasures.tracked_orders(town.anna.id, "", 10) == [town.order]
    assert len(await erasures.track(town.anna.id, town.order, -1, 10)) == 3
    for other in (town.bob, town.cleo):
        assert await erasures.tracked_orders(other.id, "", 10) == []
        assert await erasures.track(other.id, town.order, -1, 10) == []
