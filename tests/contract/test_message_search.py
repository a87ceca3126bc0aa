"""`ports.MessageSearch` on SQLite and on MariaDB: every message that says it is found, and nothing that is gone."""

import asyncio
import random

import pytest
from msgspec.structs import replace

from domain.chat import CHAT, ContactsRevealed, MessageDeleted, MessageEdited, MessagePosted, MessageRevealed
from domain.chat_events import Original
from domain.errors import Code, Refusal
from domain.ports import Entry
from domain.search import token, wanted
from domain.times import rfc3339
from storage.search import SearchSettings, SqlMessageSearch
from storage.search_index import SearchIndex, _Said, forgotten
from storage.statements import run
from tests.contract.conftest import InSql
from tests.support.log_rows import AT, chat_row, conversation, new_id, opened, posted, turn

WHEN = rfc3339(AT)
INDEX_ONLY = SearchSettings(read=2, scanned=0, batch=16, indexed=4096)
"""Nearly everything has to come from the index."""


class Room:
    """A conversation of two, written as its owner writes it, and searched from other processes."""

    def __init__(self, store: InSql, partition: int) -> None:
        self.store, self.partition = store, partition
        self.stream = conversation(partition)
        self.id = self.stream.partition(":")[2]
        self.ann, self.bob = new_id(), new_id()
        self._log = store.log()
        self._heads: dict[int, int] = {}
        self.offset = 0

    async def open(self) -> "Room":
        self._heads = {p: t.position for p, t in (await self._log.take([self.partition], "host", AT)).items()}
        await self.write(*opened(self.stream, self.ann, self.bob))
        return self

    async def write(self, *entries: Entry) -> None:
        done = await self._log.commit([turn(*entries)], self._heads)
        assert not done.fenced
        assert not done.stale
        self._heads.update(done.heads)
        self.offset = entries[-1].offset

    async def say(self, *texts: str) -> list[str]:
        """The messages' ids."""
        rows = [posted(self.stream, n, self.ann, text) for n, text in enumerate(texts, self.offset + 1)]
        for start in range(0, len(rows), 200):
            await self.write(*rows[start : start + 200])
        return [row.command_id or "" for row in rows]

    async def edit(self, message_id: str, text: str) -> None:
        event = MessageEdited(message_id, self.ann, WHEN, text)
        await self.write(chat_row(self.stream, self.offset + 1, event, self.ann, new_id()))

    async def delete(self, message_id: str) -> None:
        event = MessageDeleted(message_id, self.ann, WHEN)
        await self.write(chat_row(self.stream, self.offset + 1, event, self.ann, new_id()))

    def search(self, settings: SearchSettings | None = INDEX_ONLY) -> SqlMessageSearch:
        return SqlMessageSearch(self.store.database(), settings)

    async def indexed(self) -> dict[str, str]:
        """What the index has of this conversation: tokens by message id."""
        async with self.store.database().read() as connection:
            rows = await connection.exec_driver_sql(
                f"SELECT message_id, tokens FROM message_index WHERE conversation_id = '{self.id}'"
            )
            return {row[0]: row[1] for row in rows}


async def texts(search: SqlMessageSearch, place: str, query: str, limit: int = 20) -> list[str]:
    """Every page of a search."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await search.find(place, wanted(query), cursor, limit)
        assert len(page.items) <= limit
        found += [row.text for row in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return found


@pytest.fixture
async def room(sql_store: InSql, partition: int) -> Room:
    return await Room(sql_store, partition).open()


FILLER = [f"filler {n}" for n in range(40)]


@pytest.mark.parametrize("settings", [None, INDEX_ONLY], ids=["as shipped", "index only"])
async def test_messages_are_found_newest_first_in_english_and_in_chinese(
    room: Room, settings: SearchSettings | None
) -> None:
    await room.say("The tap leaks", "厨房水管漏水了", "A leaking PIPE, again", "明天修水管", *FILLER)
    search = room.search(settings)
    assert await texts(search, room.id, "leak") == ["A leaking PIPE, again", "The tap leaks"]
    assert await texts(search, room.id, "pipe leak") == ["A leaking PIPE, again"]
    assert await texts(search, room.id, "水管") == ["明天修水管", "厨房水管漏水了"]
    assert await texts(search, room.id, "水") == ["明天修水管", "厨房水管漏水了"]
    assert await texts(search, room.id, "水管 明天") == ["明天修水管"]
    assert await texts(search, room.id, "管漏水") == ["厨房水管漏水了"]
    assert await texts(search, room.id, "水漏") == []
    assert await texts(search, room.id, "the") == ["The tap leaks"]  # no stop words
    assert await texts(search, room.id, "roof") == []


async def test_what_full_text_would_split_or_drop_is_found(room: Room) -> None:
    odd = ["a", "to be or not to be", "C++ & C#", '+leak -tap "quote" (x) *', "don't", "Straße", "ÉCOLE", "ok 👍"]
    await room.say(*odd, *FILLER)
    search = room.search()
    for query, text in [("a", "a"), ("be", odd[1]), ("c", odd[2]), ("leak", odd[3]), ("x", odd[3]), ("don't", odd[4])]:
        assert text in await texts(search, room.id, query), query
    for query, text in [("STRASSE", odd[5]), ("école", odd[6]), ("👍", odd[7])]:
        assert await texts(search, room.id, query) == [text]
    for query in ["leak*", "+leak", "-leak", '"leak"', "leak OR tap", "tokens:leak", "' OR 1=1 --"]:
        assert await texts(search, room.id, query) in ([odd[3]], []), query


async def test_an_edit_replaces_what_a_message_is_found_by(room: Room) -> None:
    first, *_ = await room.say("the tap leaks", *FILLER)
    search = room.search()
    assert await texts(search, room.id, "tap") == ["the tap leaks"]
    await room.edit(first, "the roof leaks")
    assert await texts(search, room.id, "tap") == []
    assert await texts(search, room.id, "roof") == ["the roof leaks"]
    await room.edit(first, "!!!")
    assert await texts(search, room.id, "roof") == []
    assert (await room.indexed())[first] == ""
    await room.edit(first, "水管")
    assert await texts(search, room.id, "水管") == ["水管"]


async def test_a_message_without_a_text_is_found_by_the_one_that_it_is_given(room: Room) -> None:
    first, *_ = await room.say("...", *FILLER)
    search = room.search()
    assert await texts(search, room.id, "roof") == []
    await room.edit(first, "the roof")
    assert await texts(search, room.id, "roof") == ["the roof"]


async def test_a_deleted_message_is_not_found_and_leaves_the_index_with_its_deletion(room: Room) -> None:
    first, second, *_ = await room.say("the tap leaks", "the roof leaks", *FILLER)
    search = room.search()
    assert await texts(search, room.id, "leaks") == ["the roof leaks", "the tap leaks"]
    assert first in await room.indexed()
    await room.delete(first)
    assert first not in await room.indexed()
    assert await matching(room, "tap") == 0
    assert await texts(search, room.id, "leaks") == ["the roof leaks"]
    assert second in await room.indexed()


@pytest.mark.parametrize("settings", [None, INDEX_ONLY], ids=["as shipped", "index only"])
async def test_what_is_hidden_is_found_by_nobody_until_it_is_revealed(
    room: Room, settings: SearchSettings | None
) -> None:
    hidden = posted(room.stream, room.offset + 1, room.ann, "call •••")
    whole = MessagePosted(
        hidden.command_id or "", room.ann, WHEN, "call •••", masked=("phone",), private=Original(16, "call 13800138000")
    )
    await room.write(replace(hidden, body=CHAT.encode_event(whole)))
    await room.say(*FILLER)
    search = room.search(settings)
    assert await texts(search, room.id, "138001") == []
    assert await texts(search, room.id, "call") == ["call •••"]
    shown = MessageRevealed(hidden.command_id or "", "system", WHEN, "call 13800138000")
    await room.write(chat_row(room.stream, room.offset + 1, shown, "system", new_id()))
    assert await texts(search, room.id, "138001") == ["call 13800138000"]


async def test_a_text_that_is_hidden_from_nobody_any_more_is_shown_whole(room: Room) -> None:
    """Of very many hidden texts only the latest are revealed by events of their own; all of them read as they were written."""
    hidden = posted(room.stream, room.offset + 1, room.ann, "call •••")
    whole = MessagePosted(
        hidden.command_id or "", room.ann, WHEN, "call •••", masked=("phone",), private=Original(16, "call 13800138000")
    )
    await room.write(replace(hidden, body=CHAT.encode_event(whole)))
    revealed = ContactsRevealed("system", WHEN)
    await room.write(chat_row(room.stream, room.offset + 1, revealed, "system", new_id()))
    await room.say(*FILLER)
    assert await texts(room.search(), room.id, "call") == ["call 13800138000"]


async def test_what_is_forgotten_leaves_the_index_at_once(room: Room, sql_store: InSql) -> None:
    other = await Room(sql_store, room.partition + 1).open()
    first, second, *_ = await room.say("the tap leaks", "the roof leaks", *FILLER)
    await other.write(posted(other.stream, 3, other.ann, "the tap leaks", first))  # anybody may choose the same id
    await other.say(*FILLER)
    for place in (room, other):
        assert await texts(place.search(), place.id, "tap") == ["the tap leaks"]
    database = sql_store.database()
    async with database.write() as connection:
        for statement, rows in forgotten(database.sql, [(room.id, first), (room.id, new_id()), (new_id(), first)]):
            await run(connection, statement, rows)
    assert first not in await room.indexed()
    assert second in await room.indexed()
    assert first in await other.indexed()
    assert await matching(room, "tap") == 0
    assert await matching(room, "roof") == 1


async def matching(room: Room, word: str) -> int:
    """How many rows the full text itself has for a word."""
    database = room.store.database()
    async with database.read() as connection:
        number = (
            await connection.exec_driver_sql(
                f"SELECT number FROM message_index_cursor WHERE conversation_id = '{room.id}'"
            )
        ).scalar_one()
        asked = f"{number:x}g{token(room.id, word)}"
        question = (
            f"SELECT count(*) FROM message_text WHERE message_text MATCH '{asked}'"
            if database.is_sqlite
            else f"SELECT count(*) FROM message_index WHERE MATCH (tokens) AGAINST ('+{asked}' IN BOOLEAN MODE)"
        )
        return int((await connection.exec_driver_sql(question)).scalar_one())


async def test_nothing_that_was_said_can_be_read_in_the_index(room: Room) -> None:
    await room.say("canary 13800138000 金丝雀", *FILLER)
    assert await texts(room.search(), room.id, "canary") == ["canary 13800138000 金丝雀"]
    for tokens in (await room.indexed()).values():
        assert tokens.isascii()
        assert "canary" not in tokens
        assert "13800138000" not in tokens


async def test_a_conversation_is_searched_by_itself(room: Room, sql_store: InSql) -> None:
    other = await Room(sql_store, room.partition + 1).open()
    await room.say("the tap leaks", *FILLER)
    await other.say("the tap drips", *FILLER)
    assert await texts(room.search(), room.id, "tap") == ["the tap leaks"]
    assert await texts(room.search(), other.id, "tap") == ["the tap drips"]
    assert await texts(room.search(), new_id(), "tap") == []


@pytest.mark.parametrize("limit", [1, 7, 20, 100])
@pytest.mark.parametrize(
    "settings",
    [
        SearchSettings(read=2, scanned=0, batch=16, indexed=4096),
        SearchSettings(read=5, scanned=30, batch=8, indexed=16),
        SearchSettings(read=3, scanned=1000, batch=8, indexed=8, candidates=4),
    ],
    ids=["all indexed", "far behind", "few candidates"],
)
async def test_pages_join_without_a_hole_or_a_double_however_far_the_index_is(
    room: Room, settings: SearchSettings, limit: int
) -> None:
    said = [f"{'leak' if n % 3 == 0 else 'dry'} {'水管' if n % 7 == 0 else '屋顶'} {n}" for n in range(150)]
    await room.say(*said)
    search = room.search(settings)
    assert await texts(search, room.id, "leak 水管", limit) == [said[n] for n in range(149, -1, -1) if n % 21 == 0]
    assert await texts(search, room.id, "leak", limit) == [said[n] for n in range(149, -1, -1) if n % 3 == 0]


async def test_the_newest_messages_are_found_at_once_in_a_conversation_that_is_hardly_indexed(room: Room) -> None:
    await room.say(*(f"leak {n}" if n % 10 == 0 else f"dry {n}" for n in range(200)))
    search = room.search(SearchSettings(read=2, scanned=100, batch=8, indexed=8))
    page = await search.find(room.id, wanted("leak"), None, 5)
    assert [row.text for row in page.items] == [f"leak {n}" for n in (190, 180, 170, 160, 150)]
    assert len(await room.indexed()) <= 8


async def test_saying_something_writes_nothing_to_the_index(room: Room) -> None:
    first, *_ = await room.say(*FILLER)
    await room.edit(first, "the roof")
    async with room.store.database().read() as connection:
        cursors = await connection.exec_driver_sql(
            f"SELECT count(*) FROM message_index_cursor WHERE conversation_id = '{room.id}'"
        )
        assert cursors.scalar_one() == 0
    assert await room.indexed() == {}


async def test_who_has_been_overtaken_by_another_indexer_writes_nothing(room: Room, sql_store: InSql) -> None:
    first, *_ = await room.say("the old text", *FILLER)
    index = SearchIndex(sql_store.database())
    slow = await index._place(room.id)
    await room.edit(first, "the new text")
    assert await texts(room.search(), room.id, "new") == ["the new text"]
    before = await room.indexed()
    late = await index._index(room.id, slow, 3, {first: _Said(3, 3, "the old text")})
    assert late.offset == (await index._place(room.id)).offset == room.offset
    assert await room.indexed() == before


async def test_an_indexer_takes_out_what_it_reads_to_be_deleted_whoever_put_it_there(
    room: Room, sql_store: InSql
) -> None:
    first, second, *_ = await room.say("the tap", "the roof", *FILLER)
    assert await texts(room.search(), room.id, "tap") == ["the tap"]
    index = SearchIndex(sql_store.database())
    await index._index(room.id, await index._place(room.id), room.offset + 1, {first: _Said(0, room.offset + 1, None)})
    assert first not in await room.indexed()
    assert second in await room.indexed()


async def test_a_search_that_has_no_time_begins_no_second_batch(room: Room) -> None:
    await room.say(*FILLER)
    await room.search(SearchSettings(read=2, scanned=0, batch=8, index_s=0.0)).find(room.id, wanted("tap"), None, 5)
    assert 0 < len(await room.indexed()) <= 8


async def test_what_was_sent_a_moment_ago_is_found(room: Room) -> None:
    search = room.search()
    for n in range(30):
        await room.say(f"message number{n}")
        assert await texts(search, room.id, f"number{n}") == [f"message number{n}"]


async def test_many_searches_at_once_in_several_processes_index_every_message_once(room: Room) -> None:
    said = await room.say(*(f"leak {n}" for n in range(100)))
    searches = [room.search() for _ in range(4)]
    answers = await asyncio.gather(*(texts(search, room.id, "leak") for search in searches for _ in range(3)))
    assert all(answer == [f"leak {n}" for n in range(99, -1, -1)] for answer in answers)
    assert set(await room.indexed()) <= set(said)
    assert len(await room.indexed()) == 100
    assert await matching(room, "leak") == 100


async def test_conversations_that_are_first_searched_at_the_same_time_get_numbers_of_their_own(
    room: Room, sql_store: InSql
) -> None:
    rooms = []
    for number in range(9):
        rooms.append(await Room(sql_store, room.partition + number % 3).open())
        await rooms[-1].say(f"the tap {number}", *FILLER[:5])
    answers = await asyncio.gather(*(texts(place.search(), place.id, "tap") for place in rooms))
    assert answers == [[f"the tap {number}"] for number in range(len(rooms))]


async def test_a_deletion_while_its_conversation_is_being_indexed_leaves_nothing(room: Room, sql_store: InSql) -> None:
    """An indexer has read a text; before it writes, the message is deleted, and there was nothing to forget yet."""
    first, *_ = await room.say("the tap leaks", *FILLER)
    index, deleter = SearchIndex(sql_store.database()), sql_store.database()
    place = await index._place(room.id)
    started, stored = asyncio.Event(), asyncio.Event()

    async def delete() -> None:
        async with deleter.write() as connection:
            await connection.exec_driver_sql(
                "INSERT INTO message_change (conversation_id, message_id, deleted_at, reactions)"
                f" VALUES ('{room.id}', '{first}', {AT}, '{{}}')"
            )
            for statement, rows in forgotten(deleter.sql, [(room.id, first)]):
                await run(connection, statement, rows)
            started.set()
            await asyncio.sleep(0.3)
        stored.set()

    deleting = asyncio.create_task(delete())
    await started.wait()
    now = await index._index(room.id, place, 3, {first: _Said(3, 3, "the tap leaks")})
    assert stored.is_set() or sql_store.url.startswith("sqlite")
    await deleting
    assert now.offset == 3
    assert await room.indexed() == {}


@pytest.mark.parametrize("cursor", ["", "?", "e30", "WzEsIm5vIl0x", "a" * 500])
async def test_a_cursor_that_no_page_gave_out_is_refused(room: Room, cursor: str) -> None:
    with pytest.raises(Refusal) as caught:
        await room.search().find(room.id, wanted("tap"), cursor, 10)
    assert caught.value.code == Code.INVALID


async def test_a_model_of_edits_and_deletions_agrees_with_every_search(room: Room) -> None:
    """Two hundred random changes, searched now and then, by two processes whose index is anywhere."""
    chance = random.Random(room.partition)
    words = ["tap", "taps", "roof", "leak", "leaking", "水管", "漏水", "屋顶", "a", "9"]
    says: dict[str, str] = {}
    order: list[str] = []
    searches = [room.search(SearchSettings(read=3, scanned=20, batch=7, indexed=70)), room.search()]
    for _ in range(200):
        action = chance.random()
        text = " ".join(chance.choices(words, k=3))
        if action < 0.6 or not says:
            (message_id,) = await room.say(text)
            says[message_id] = text
            order.append(message_id)
        elif action < 0.85:
            message_id = chance.choice(sorted(says))
            says[message_id] = text
            await room.edit(message_id, text)
        else:
            message_id = chance.choice(sorted(says))
            del says[message_id]
            await room.delete(message_id)
        if chance.random() < 0.15:
            query = " ".join(chance.sample(words, chance.choice([1, 2])))
            expected = [says[m] for m in reversed(order) if m in says and wanted(query).found_in(says[m])]
            assert await texts(chance.choice(searches), room.id, query, chance.choice([1, 4, 50])) == expected
