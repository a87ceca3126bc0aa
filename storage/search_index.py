"""The index that searches look messages up in: FTS5 on SQLite, a FULLTEXT index of InnoDB on MariaDB/MySQL.

It is filled when somebody searches, from the log, from the conversation's cursor on: sending writes nothing here. A row's id
is the conversation's number and the offset at which the message was posted, so ids are in the order of the messages.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.channels import stream_name
from domain.chat import CHAT
from domain.search import Wanted, terms_of, token
from storage import log_queries as log
from storage import tables as t
from storage.engine import Database
from storage.statements import Preparer, Step, fetch, later, numbered, run, wide
from storage.transactions import in_transaction, reading

_SHIFT: Final = 32
MOST_OFFSET: Final = 1 << _SHIFT
"""No stream is as long as that."""
_TERMS: Final = 12
"""Terms that the index is asked for at once; the text is asked for all of them."""
_LAST: Final = ""
"""The row of cursors that counts: its offset is the last number that a conversation was given."""


def forgotten(sql: Preparer, keys: Sequence[tuple[str, str]]) -> list[Step]:
    """Statements that leave nothing of these messages, by (conversation id, message id), in the index.

    For the transaction that deletes them, after what it writes to `message_change`. Whoever indexes the conversation
    meanwhile holds its cursor, which is therefore touched first: either they see the deletion, or it sees their rows.
    """
    ordered = sorted(set(keys))
    cursors = [(conversation_id, 0, None) for conversation_id in sorted({key[0] for key in ordered})]
    remove = sql.prepare(_remove)
    rows = [remove.row({"message": message_id, "conversation": place}) for place, message_id in ordered]
    return [(sql.upsert(t.message_index_cursor, _touched), cursors), (remove, rows)]


class Indexed(NamedTuple):
    """How far a conversation is indexed, and the number that its rows begin with."""

    number: int
    offset: int


class SearchIndex:
    """The index of one database. Every method may raise `StoreUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._sql = database.sql

    async def candidates(
        self, conversation_id: str, indexed: Indexed, wanted: Wanted, before: int, most: int
    ) -> list[int]:
        """Offsets of messages that may hold what is wanted, newest first, before an offset; none that does is missing."""
        tokens = [_token(conversation_id, indexed.number, term) for term in wanted.terms(_TERMS)]
        asked = " ".join(tokens if self._db.is_sqlite else [f"+{one}" for one in tokens])
        statement = self._sql.prepare(_matching_fts5 if self._db.is_sqlite else _matching_innodb)
        first = indexed.number << _SHIFT
        values = {"asked": asked, "first": first, "before": first + before, "most": most}
        async with reading(self._db) as connection:
            return [row[0] - first for row in await fetch(connection, statement, values)]

    async def take_up(self, conversation_id: str, most: int, batch: int, within_s: float = 1.0) -> Indexed:
        """Index what the log has beyond the cursor, a batch of events at a time; how far the index is then.

        At most so many events, and no batch is begun later than `within_s`: InnoDB stops now and then for seconds.
        """
        clock = asyncio.get_running_loop().time
        last_s = clock() + within_s
        place = await self._place(conversation_id)
        stream = stream_name("conversation", conversation_id)
        for _ in range(0, most, batch):
            async with reading(self._db) as connection:
                events = await log.published(connection, self._sql, stream, place.offset, batch)
                said = _said(events)
                await self._complete(connection, stream, said)
            if events:
                place = await self._index(conversation_id, place, events[-1][0], said)
            if len(events) < batch or clock() > last_s:
                break
        return place

    async def _place(self, conversation_id: str) -> Indexed:
        query = _cursor_of(conversation_id)
        async with reading(self._db) as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is not None and row.number is not None:
            return Indexed(*row)

        async def number(connection: AsyncConnection) -> Indexed:
            cursors, c = t.message_index_cursor, t.message_index_cursor.c
            # Both rows are locked by being touched: two that number at the same time do so one after the other.
            touch = self._sql.upsert(cursors, _touched)
            await run(connection, touch, [(conversation_id, 0, None)])
            known = (await connection.execute(query)).one()
            if known.number is not None:
                return Indexed(*known)
            await run(connection, touch, [(_LAST, 0, None)])
            last = Indexed(*(await connection.execute(_cursor_of(_LAST))).one())
            new = Indexed(last.offset + 1, known.offset)
            await connection.execute(sa.update(cursors).where(c.conversation_id == _LAST).values(offset=new.number))
            await connection.execute(
                sa.update(cursors).where(c.conversation_id == conversation_id).values(number=new.number)
            )
            return new

        return await in_transaction(self._db, number)

    async def _complete(self, connection: AsyncConnection, stream: str, said: dict[str, "_Said"]) -> None:
        """Find out where messages were posted that were changed later."""
        keys = [(stream, message_id) for message_id, one in said.items() if one.text is not None and not one.offset]
        for (_, message_id), entry in (await log.first_rows(connection, self._sql, keys)).items():
            said[message_id] = said[message_id]._replace(offset=entry.offset)

    async def _index(self, conversation_id: str, place: Indexed, upto: int, said: dict[str, "_Said"]) -> Indexed:
        """Index what was said up to an offset; how far the index is then, which may be further.

        In two transactions: the rows, whose commit InnoDB may hold up, and then the cursor, which whoever deletes a message
        waits for. Rows keep the newest that was said, so several may index the same; what is deleted before the cursor
        has moved is seen here, what is deleted later finds the rows.
        """
        # It takes milliseconds of nothing but computing: others are served meanwhile.
        rows = await asyncio.to_thread(_index_rows, conversation_id, place.number, said)
        upsert = self._sql.upsert(t.message_index, _reworded)
        unsaid = sorted(message_id for message_id, one in said.items() if one.text is None)

        async def write(connection: AsyncConnection) -> None:
            await run(connection, upsert, rows)
            await self._remove(connection, conversation_id, unsaid)

        if rows or unsaid:
            await in_transaction(self._db, write)
        now, deleted = await in_transaction(
            self._db, lambda at: self._advance(at, conversation_id, upto, [row[2] for row in rows])
        )
        if deleted:
            await in_transaction(self._db, lambda at: self._remove(at, conversation_id, deleted))
        return now

    async def _advance(
        self, connection: AsyncConnection, conversation_id: str, upto: int, messages: Sequence[str]
    ) -> tuple[Indexed, list[str]]:
        """Move the cursor forward; where it is, and which of the messages were deleted before."""
        c = t.message_index_cursor.c
        now = Indexed(*(await connection.execute(_cursor_of(conversation_id).with_for_update())).one())
        if now.offset < upto:
            await connection.execute(
                sa.update(t.message_index_cursor).where(c.conversation_id == conversation_id).values(offset=upto)
            )
        deleted = await self._deleted(connection, conversation_id, sorted(messages))
        return Indexed(now.number, max(now.offset, upto)), sorted(deleted)

    async def _remove(self, connection: AsyncConnection, conversation_id: str, messages: Sequence[str]) -> None:
        remove = self._sql.prepare(_remove)
        await run(connection, remove, [remove.row({"conversation": conversation_id, "message": m}) for m in messages])

    async def _deleted(self, connection: AsyncConnection, conversation_id: str, messages: Sequence[str]) -> set[str]:
        gone: set[str] = set()
        for piece in wide(messages):
            values = {"conversation": conversation_id, **numbered(m=piece)}
            gone.update(row[0] for row in await fetch(connection, self._sql.prepare(_deleted, len(piece)), values))
        return gone


# --- what events say ---------------------------------------------------------------------------------------------


class _Said(NamedTuple):
    """What a message says after some events (None: nothing): where it was posted (0: before them), and the event that said it."""

    offset: int
    version: int
    text: str | None


class _Event(msgspec.Struct):
    type: str = ""
    message_id: str = ""
    text: str | None = None


_SAYS: Final = frozenset({"message.posted", "message.edited", "message.revealed"})
_UNSAYS: Final = "message.deleted"
_decode: Final = msgspec.json.Decoder(_Event).decode


def _said(events: Iterable[tuple[int, bytes]]) -> dict[str, _Said]:
    """By message id, what messages say to their readers after these (offset, stored event)."""
    said: dict[str, _Said] = {}
    for offset, body in events:
        event = _decode(CHAT.publication(body))
        if event.type in _SAYS or event.type == _UNSAYS:
            before = said.get(event.message_id)
            posted = offset if event.type == "message.posted" else before.offset if before is not None else 0
            said[event.message_id] = _Said(posted, offset, event.text if event.type in _SAYS else None)
    return said


def _index_rows(conversation_id: str, number: int, said: Mapping[str, _Said]) -> list[tuple[int, str, str, int, str]]:
    """Their rows in the order of their ids. A later text without a term has a row as well: it replaces what was before."""
    made: dict[str, str] = {}
    rows = []
    for message_id, (offset, version, text) in said.items():
        terms = terms_of(text) if text is not None and offset else ()
        for term in terms:
            if term not in made:
                made[term] = _token(conversation_id, number, term)
        if terms or (text is not None and offset and version > offset):
            tokens = " ".join(sorted(made[term] for term in terms))
            rows.append((number << _SHIFT | offset, conversation_id, message_id, version, tokens))
    return sorted(rows)


def _token(conversation_id: str, number: int, term: str) -> str:
    """The number in front keeps together in the index what is asked for together; no number is the beginning of another."""
    return f"{number:x}g{token(conversation_id, term)}"


# --- SQL ---------------------------------------------------------------------------------------------------------


def _touched(new: Any, old: Any) -> list[tuple[str, Any]]:
    return [("offset", old.offset)]


def _reworded(new: Any, old: Any) -> list[tuple[str, Any]]:
    return [
        ("tokens", sa.case((new.version >= old.version, new.tokens), else_=old.tokens)),
        later(new, old, "version"),
    ]


def _remove(width: int) -> Any:
    c = t.message_index.c
    return sa.delete(t.message_index).where(
        c.message_id == sa.bindparam("message"), c.conversation_id == sa.bindparam("conversation")
    )


def _cursor_of(conversation_id: str) -> Any:
    c = t.message_index_cursor.c
    return sa.select(c.number, c.offset).where(c.conversation_id == conversation_id)


def _deleted(width: int) -> Any:
    c = t.message_change.c
    named = c.message_id.in_([sa.bindparam(f"m{n}") for n in range(width)])
    return sa.select(c.message_id).where(
        c.conversation_id == sa.bindparam("conversation"), named, c.deleted_at.is_not(None)
    )


def _matching_fts5(width: int) -> Any:
    return sa.text(
        "SELECT rowid FROM message_text WHERE message_text MATCH :asked AND rowid >= :first AND rowid < :before"
        " ORDER BY rowid DESC LIMIT :most"
    )


def _matching_innodb(width: int) -> Any:
    return sa.text(
        "SELECT id FROM message_index WHERE MATCH (tokens) AGAINST (:asked IN BOOLEAN MODE) AND id >= :first"
        " AND id < :before ORDER BY id DESC LIMIT :most"
    )
