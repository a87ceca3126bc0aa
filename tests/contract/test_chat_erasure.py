"""What is deleted for everyone leaves no content: not in the log, not in lists, not in snapshots; its events stay."""

from typing import Any

import msgspec
import pytest
from sqlalchemy import select
from sqlalchemy.dialects import sqlite

from domain.chat import (
    CHAT,
    ContactsRevealed,
    MessageDeleted,
    MessageEdited,
    MessagePosted,
    MessageReacted,
    MessageRevealed,
)
from domain.chat_events import Original
from domain.ports import Entry
from domain.times import rfc3339
from storage.chat import conversation_changes, write_messages
from storage.chat import rows as chat_rows
from storage.search_index import SearchIndex
from storage.statements import Preparer
from storage.tables import message_index, metadata
from tests.contract.conftest import InMemory, InSql, Store
from tests.support.log_rows import AT, HASH, chat_row, conversation, new_id, opened, posted, turn

WHEN = rfc3339(AT)


async def holds(store: Store, text: str) -> list[str]:
    """Where in the whole store the text stands."""
    if isinstance(store, InMemory):
        kept = store.store
        everything = {
            name: getattr(kept, name) for name in ("logs", "streams", "snapshots", "messages", "conversations")
        }
        return [name for name, value in everything.items() if text in repr(value)]
    assert isinstance(store, InSql)
    found = []
    async with store.database().read() as connection:
        for table in metadata.sorted_tables:
            for row in await connection.execute(table.select()):
                found += [f"{table.name}.{name}" for name, value in row._mapping.items() if text in _text(value)]
    return sorted(set(found))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class Writer:
    """The owner of a partition; each call is one flush."""

    def __init__(self, store: Store, partition: int) -> None:
        self._store, self._partition = store, partition
        self._log = store.log()
        self._heads: dict[int, int] = {}

    async def start(self) -> "Writer":
        taken = await self._log.take([self._partition], "host", AT)
        self._heads = {partition: takeover.position for partition, takeover in taken.items()}
        return self

    async def flush(self, *entries: Entry) -> None:
        turns = [turn(entry) for entry in entries]
        done = await self._log.commit(turns, self._heads)
        assert not done.fenced
        assert not done.stale
        self._heads.update(done.heads)


@pytest.fixture
def secret() -> str:
    """A word that stands nowhere else in a database that tests share."""
    return f"word-{new_id()}"


@pytest.fixture
async def writer(store: Store, partition: int) -> Writer:
    return await Writer(store, partition).start()


def said(stream: str, offset: int, by: str, text: str, message_id: str, private: str = "") -> Entry:
    """A message with everything that a message can have, the text in all of it."""
    event = MessagePosted(
        message_id,
        by,
        WHEN,
        text,
        (text,),
        text,
        {"note": text},
        masked=("phone",) if private else (),
        private=Original(len(private), private) if private else None,
    )
    return Entry(stream, offset, "message.posted", message_id, HASH, f"user:{by}", AT, CHAT.encode_event(event))


@pytest.mark.parametrize("at_once", [False, True], ids=["in four flushes", "in one flush"])
async def test_a_deleted_message_leaves_no_content_anywhere(
    store: Store, writer: Writer, partition: int, secret: str, at_once: bool
) -> None:
    ann, bob = new_id(), new_id()
    stream, gone, kept = conversation(partition), new_id(), posted(conversation(partition), 4, text="stays")
    kept = msgspec.structs.replace(kept, stream=stream)
    await writer.flush(*opened(stream, ann, bob))
    rows = [
        said(stream, 3, ann, f"1 {secret}", gone),
        kept,
        chat_row(stream, 5, MessageEdited(gone, ann, WHEN, f"2 {secret}"), ann, new_id()),
        chat_row(stream, 6, MessageEdited(kept.command_id or "", kept.actor, WHEN, "stays too"), ann, new_id()),
        chat_row(stream, 7, MessageEdited(gone, ann, WHEN, f"3 {secret}"), ann, new_id()),
        chat_row(stream, 8, MessageReacted(gone, bob, WHEN, "👍", True), bob, new_id()),
        chat_row(stream, 9, MessageDeleted(gone, ann, WHEN), ann, new_id()),
    ]
    if at_once:
        await writer.flush(*rows)
    else:
        for piece in (rows[:1], rows[1:3], rows[3:6]):
            await writer.flush(*piece)
        assert await holds(store, secret)
        await writer.flush(rows[6])
    assert await holds(store, secret) == []

    stored = await store.reader().read(stream, 0, 100)
    assert [offset for offset, _ in stored] == list(range(1, 10))
    bodies = {offset: msgspec.json.decode(body) for offset, body in stored}
    common = {"message_id": gone, "by": ann, "at": WHEN, "erased": True}
    assert bodies[3] == {"type": "message.posted", **common}
    assert bodies[5] == bodies[7] == {"type": "message.edited", **common}
    assert bodies[4]["text"] == "stays"
    assert bodies[6]["text"] == "stays too"
    assert [CHAT.event_type(CHAT.decode_event(body)) for _, body in stored[2:]] == [row.type for row in rows]


async def test_a_deleted_message_that_was_the_last_one_is_gone_from_the_lists(
    store: Store, writer: Writer, partition: int, secret: str
) -> None:
    ann, bob, gone = new_id(), new_id(), new_id()
    stream = conversation(partition)
    await writer.flush(*opened(stream, ann, bob), said(stream, 3, ann, secret, gone))
    await writer.flush(chat_row(stream, 4, MessageDeleted(gone, ann, WHEN), ann, new_id()))
    assert await holds(store, secret) == []
    (row,) = (await store.read_models().conversations(bob, None, 10)).items
    last = msgspec.json.decode(row.last_message)
    assert (last["message_id"], "deleted_at" in last, "text" in last) == (gone, True, False)


async def test_deleting_an_old_message_leaves_the_newest_one_in_the_lists(
    store: Store, writer: Writer, partition: int, secret: str
) -> None:
    ann, bob, gone = new_id(), new_id(), new_id()
    stream = conversation(partition)
    newest = posted(stream, 4, bob, "newest")
    await writer.flush(*opened(stream, ann, bob), said(stream, 3, ann, secret, gone), newest)
    await writer.flush(chat_row(stream, 5, MessageDeleted(gone, ann, WHEN), ann, new_id()))
    (row,) = (await store.read_models().conversations(bob, None, 10)).items
    assert row.last_message == newest.body


async def test_a_deleted_write_is_still_known_by_its_id(
    store: Store, writer: Writer, partition: int, secret: str
) -> None:
    ann, bob, gone, edit = new_id(), new_id(), new_id(), new_id()
    stream = conversation(partition)
    rows = [
        said(stream, 3, ann, secret, gone),
        chat_row(stream, 4, MessageEdited(gone, ann, WHEN, secret), ann, edit),
        chat_row(stream, 5, MessageDeleted(gone, ann, WHEN), ann, new_id()),
    ]
    await writer.flush(*opened(stream, ann, bob), *rows)
    found = await store.log().find_commands([(stream, gone), (stream, edit)])
    for key, row in (((stream, gone), rows[0]), ((stream, edit), rows[1])):
        (entry,) = found[key]
        assert msgspec.structs.replace(entry, body=row.body) == row


async def test_what_was_revealed_goes_with_its_message(
    store: Store, writer: Writer, partition: int, secret: str
) -> None:
    ann, bob, gone = new_id(), new_id(), new_id()
    stream = conversation(partition)
    await writer.flush(
        *opened(stream, ann, bob, order_id=new_id(partition)),
        said(stream, 3, ann, "•••", gone, private=secret),
        chat_row(
            stream, 4, MessageEdited(gone, ann, WHEN, "•••", ("phone",), private=Original(9, secret)), ann, new_id()
        ),
        chat_row(stream, 5, ContactsRevealed("system", WHEN), "x", new_id()),
        chat_row(stream, 6, MessageRevealed(gone, "system", WHEN, secret), "x"),
    )
    assert "message_change.text" in await holds(store, secret) or isinstance(store, InMemory)
    await writer.flush(chat_row(stream, 7, MessageDeleted(gone, ann, WHEN), ann, new_id()))
    assert await holds(store, secret) == []


async def test_a_deleted_message_is_gone_from_the_index_before_anybody_searches_again(
    sql_store: InSql, partition: int
) -> None:
    writer = await Writer(sql_store, partition).start()
    ann, bob = new_id(), new_id()
    stream = conversation(partition)
    gone, kept = posted(stream, 3, ann, "the green door"), posted(stream, 4, ann, "the green window")
    await writer.flush(*opened(stream, ann, bob), gone, kept)
    place = stream.partition(":")[2]
    await SearchIndex(sql_store.database()).take_up(place, 100, 16)
    assert await indexed(sql_store, place) == {gone.command_id, kept.command_id}
    await writer.flush(chat_row(stream, 5, MessageDeleted(gone.command_id or "", ann, WHEN), ann, new_id()))
    assert await indexed(sql_store, place) == {kept.command_id}


async def indexed(store: InSql, place: str) -> set[str]:
    async with store.database().read() as connection:
        c = message_index.c
        return {row[0] for row in await connection.execute(select(c.message_id).where(c.conversation_id == place))}


def test_sending_takes_no_statement_more() -> None:
    """Erasing, masking and histories must cost a plain message nothing: a row of the log, and one of the list."""
    sql = Preparer(sqlite.dialect())
    stream = conversation(3)
    changes = conversation_changes([posted(stream, 3)])
    assert [statement.text.split()[2] for statement, rows in chat_rows(sql, changes) if rows] == ["conversation"]
    assert list(write_messages(sql, changes)) == []
