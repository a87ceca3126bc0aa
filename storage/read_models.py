"""Lists as clients page through them. All of it is written by the commits of the log, except recorded positions."""

import base64
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.chat_events import ERASED, public
from domain.errors import invalid
from domain.ports import ConversationRow, Entry, MessageRow, MessageVersion, Page, Position
from storage import chat, orders
from storage import log_queries as log
from storage import tables as t
from storage.chat import CONVERSATION, EDITED, POSTED, MessageChange
from storage.engine import Database
from storage.orders import ORDER, OVER
from storage.statements import fetch, numbered, play, wide

_TRACK_MOST: Final = 50_000
_PLATFORM: Final[sa.ColumnElement[str]] = sa.literal_column("'system:%'")


class Mark(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Where a page ended: the last item's time and id."""

    at: int
    id: str


def encode_cursor(mark: Mark) -> str:
    """The mark as an opaque, URL-safe text."""
    return base64.urlsafe_b64encode(msgspec.json.encode(mark)).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> Mark:
    """The mark of a cursor.

    Raises:
        Refusal: `invalid`, for a text that no page has given out.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        mark = msgspec.json.decode(raw, type=Mark)
    except (ValueError, msgspec.DecodeError):
        raise invalid("cursor", "invalid", "this is not a cursor of this list") from None
    if not (0 <= mark.at < 1 << 62 and len(mark.id) <= 64 and mark.id.isascii()):
        raise invalid("cursor", "invalid", "this is not a cursor of this list")
    return mark


def message_row(offset: int, body: bytes, change: MessageChange | None, *, revealed: bool = False) -> MessageRow:
    """A posted message with what has happened to it since; a deleted one has no content left."""
    now = chat.reading(body, change, revealed=revealed)
    if change is None:
        return MessageRow(offset, public(body), now.text, masked=now.masked, original=now.original)
    deleted = change.deleted_at is not None
    data = chat.shown(body, change) if deleted else public(body)
    reactions = {emoji: tuple(users) for emoji, users in change.reactions.items()}
    return MessageRow(
        offset,
        data,
        now.text,
        change.edited_at,
        change.deleted_at,
        {} if deleted else reactions,
        now.masked,
        now.original,
    )


def version_of(entry: Entry, *, revealed: bool = False) -> MessageVersion:
    """What a message said, by the event that said it."""
    text = chat.reading(entry.body, None, revealed=revealed)
    return MessageVersion(entry.offset, entry.at, chat.author_of(entry.body), text.text, text.original)


class _MessageId(msgspec.Struct):
    message_id: str = ""


def message_id_of(body: bytes) -> str:
    """The id of a posted message."""
    return msgspec.json.decode(body, type=_MessageId).message_id


class SqlReadModels:
    """`domain.ports.ReadModels` on SQLite and MariaDB/MySQL."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._sql = database.sql

    # --- conversations --------------------------------------------------------------------------------------------

    async def conversations(self, user_id: str, cursor: str | None, limit: int) -> Page:
        c, m = t.conversation.c, t.conversation_member.c
        query = (
            sa.select(
                c.id, c.order_id, c.updated_at, c.offset, c.last_message, c.revealed_at, m.read_offset, m.joined_offset
            )
            .join_from(t.conversation_member, t.conversation, c.id == m.conversation_id)
            .where(m.user_id == user_id, m.left_offset.is_(None))
            .order_by(c.updated_at.desc(), c.id.desc())
            .limit(limit + 1)
        )
        if cursor is not None:
            mark = decode_cursor(cursor)
            query = query.where(sa.or_(c.updated_at < mark.at, sa.and_(c.updated_at == mark.at, c.id < mark.id)))
        async with self._db.read() as connection:
            rows = (await connection.execute(query)).all()
            more, rows = len(rows) > limit, rows[:limit]
            members = await self._members(connection, [row.id for row in rows])
            unread = await self._unread(connection, user_id, rows)
            named = [(row.id, message_id_of(row.last_message)) for row in rows if row.last_message is not None]
            changes = await chat.read_changes(connection, self._sql, named)
        changed = {conversation: change for (conversation, _), change in changes.items()}
        items = [
            ConversationRow(
                row.id,
                tuple(members.get(row.id, ())),
                row.order_id,
                row.offset,
                row.read_offset,
                unread.get(CONVERSATION + row.id, 0),
                None
                if row.last_message is None
                else chat.shown(row.last_message, changed.get(row.id), user_id, revealed=row.revealed_at > 0),
                row.updated_at,
            )
            for row in rows
        ]
        return Page(items, encode_cursor(Mark(rows[-1].updated_at, rows[-1].id)) if more else None)

    async def _members(self, connection: AsyncConnection, ids: Sequence[str]) -> dict[str, list[str]]:
        members: dict[str, list[str]] = {}
        for piece in wide(ids):
            for row in await fetch(connection, self._sql.prepare(_members, len(piece)), numbered(c=piece)):
                members.setdefault(row.conversation_id, []).append(row.user_id)
        return members

    async def _unread(self, connection: AsyncConnection, user_id: str, rows: Sequence[Any]) -> dict[str, int]:
        """Counted from the log when somebody looks: a sent message then costs nobody a write per member."""
        behind = [row for row in rows if row.offset > max(row.read_offset, row.joined_offset)]
        unread: dict[str, int] = {}
        for piece in wide(behind):
            after = [max(row.read_offset, row.joined_offset) for row in piece]
            values = numbered(s=[CONVERSATION + row.id for row in piece], o=after)
            values.update(type=POSTED, user=f"user:{user_id}", ops=f"ops:{user_id}", erased=ERASED)
            counted = await fetch(connection, self._sql.prepare(_unread, len(piece)), values)
            unread.update((row[0], row[1]) for row in counted)
        return unread

    async def unread(self, conversation_id: str, user_id: str, after: int) -> int:
        values = {"s0": CONVERSATION + conversation_id, "o0": after, "erased": ERASED}
        values.update(type=POSTED, user=f"user:{user_id}", ops=f"ops:{user_id}")
        async with self._db.read() as connection:
            counted = await fetch(connection, self._sql.prepare(_unread, 1), values)
        return sum(row[1] for row in counted)

    async def messages(
        self, conversation_id: str, *, before: int | None, after: int | None, limit: int
    ) -> tuple[list[MessageRow], int | None]:
        async with self._db.read() as connection:
            rows = await log.posted(connection, self._sql, CONVERSATION + conversation_id, before, after, limit + 1)
            more, rows = len(rows) > limit, rows[:limit]
            named = [(conversation_id, message_id_of(body)) for _, body in rows]
            changes = await chat.read_changes(connection, self._sql, named)
            revealed = await self._revealed(connection, conversation_id)
        items = [
            message_row(offset, body, changes.get(key), revealed=revealed)
            for (offset, body), key in zip(rows, named, strict=True)
        ]
        return items, items[-1].offset if more else None

    async def history(self, conversation_id: str, message_id: str) -> list[MessageVersion] | None:
        key, stream = (conversation_id, message_id), CONVERSATION + conversation_id
        async with self._db.read() as connection:
            posted = (await log.first_rows(connection, self._sql, [(stream, message_id)])).get((stream, message_id))
            if posted is None or posted.type != POSTED:
                return None
            change = (await chat.read_changes(connection, self._sql, [key])).get(key, MessageChange())
            rows = await play(connection, log.rows_at(self._sql, [(stream, offset) for offset in change.texts]))
            revealed = await self._revealed(connection, conversation_id)
        if change.deleted_at is not None:
            return []
        return [version_of(entry, revealed=revealed) for entry in (posted, *rows) if entry.type in (POSTED, EDITED)]

    async def _revealed(self, connection: AsyncConnection, conversation_id: str) -> bool:
        """Whether contact details are hidden from nobody any more."""
        c = t.conversation.c
        return bool(await connection.scalar(sa.select(c.revealed_at).where(c.id == conversation_id)))

    async def contacts(self, user_id: str, others: Sequence[str]) -> frozenset[str]:
        mine, theirs = t.conversation_member.alias("mine"), t.conversation_member.alias("theirs")
        b = t.user_block.c
        blockers = sa.select(b.blocker_id).where(b.blocked_id == user_id, b.active)
        known: set[str] = set()
        async with self._db.read() as connection:
            for piece in wide(list(dict.fromkeys(others))):
                query = (
                    sa.select(theirs.c.user_id)
                    .distinct()
                    .join_from(mine, theirs, mine.c.conversation_id == theirs.c.conversation_id)
                    .where(mine.c.user_id == user_id, mine.c.left_offset.is_(None))
                    .where(theirs.c.user_id.in_(piece), theirs.c.left_offset.is_(None))
                    .where(theirs.c.user_id.not_in(blockers))
                )
                known.update((await connection.execute(query)).scalars())
        return frozenset(known - {user_id})

    # --- orders ---------------------------------------------------------------------------------------------------

    async def orders(self, user_id: str, role: str, state: str | None, cursor: str | None, limit: int) -> Page:
        p = t.order_party.c
        query = (
            sa.select(p.order_id, p.updated_at)
            .where(p.user_id == user_id, p.role == role)
            .order_by(p.updated_at.desc(), p.order_id.desc())
            .limit(limit + 1)
        )
        if state is not None:
            query = query.where(p.state == state)
        if cursor is not None:
            mark = decode_cursor(cursor)
            older = sa.and_(p.updated_at == mark.at, p.order_id < mark.id)
            query = query.where(sa.or_(p.updated_at < mark.at, older))
        async with self._db.read() as connection:
            rows = (await connection.execute(query)).all()
            more, rows = len(rows) > limit, rows[:limit]
            states = await log.snapshots(connection, self._sql, [ORDER + row.order_id for row in rows])
        items = [states[ORDER + row.order_id].body for row in rows]
        return Page(items, encode_cursor(Mark(rows[-1].updated_at, rows[-1].order_id)) if more else None)

    async def order_heads(self, user_id: str) -> list[tuple[str, int, str]]:
        p = t.order_party.c
        query = sa.select(p.order_id, p.user_id, p.role, p.hired, p.state, p.offset, p.updated_at)
        query = query.where(p.user_id == user_id, p.state.not_in(OVER)).order_by(p.updated_at.desc(), p.order_id)
        async with self._db.read() as connection:
            parties = [orders.Party(*row) for row in await connection.execute(query)]
        heads = {party.order_id: (party.offset, party.state) for party in parties if orders.follows(party)}
        return [(order_id, offset, state) for order_id, (offset, state) in heads.items()]

    # --- tracks ---------------------------------------------------------------------------------------------------

    async def add_positions(self, order_id: str, positions: Sequence[Position]) -> None:
        rows = [
            {
                "order_id": order_id,
                "visit_id": position.visit_id,
                "at": position.at,
                "lat": position.lat,
                "lon": position.lon,
                "accuracy_m": position.accuracy_m,
                "speed_mps": position.speed_mps,
                "heading_deg": position.heading_deg,
            }
            for position in positions
        ]
        if not rows:
            return
        insert: Any
        if self._db.is_sqlite:
            insert = sqlite.insert(t.track_position).on_conflict_do_nothing()
        else:
            insert = mysql.insert(t.track_position)
            insert = insert.on_duplicate_key_update(at=insert.inserted.at)
        async with self._db.write() as connection:
            await connection.execute(insert, rows)

    async def positions(self, order_id: str, visit_id: str | None, limit: int) -> list[Position]:
        c = t.track_position.c
        query = sa.select(c.at, c.lat, c.lon, c.accuracy_m, c.speed_mps, c.heading_deg, c.visit_id)
        query = query.where(c.order_id == order_id).order_by(c.at.desc(), c.visit_id).limit(min(limit, _TRACK_MOST))
        if visit_id is not None:
            query = query.where(c.visit_id == visit_id)
        async with self._db.read() as connection:
            newest_first = [Position(*row) for row in await connection.execute(query)]
        return newest_first[::-1]


def _members(width: int) -> Any:
    m = t.conversation_member.c
    query = sa.select(m.conversation_id, m.user_id).order_by(m.conversation_id, m.joined_offset)
    named = m.conversation_id.in_([sa.bindparam(f"c{n}") for n in range(width)])
    return query.where(named, m.left_offset.is_(None))


def _unread(width: int) -> Any:
    c = t.partition_log.c
    behind = (sa.and_(c.stream == sa.bindparam(f"s{n}"), c.offset > sa.bindparam(f"o{n}")) for n in range(width))
    # What the platform itself posts is told by its order; what was deleted can be read by nobody.
    others = (c.actor != sa.bindparam("user"), c.actor != sa.bindparam("ops"), c.actor.not_like(_PLATFORM))
    there = sa.func.instr(c.body, sa.bindparam("erased")) == sa.literal_column("0")
    query = sa.select(c.stream, sa.func.count()).group_by(c.stream)
    return query.where(sa.or_(*behind), c.type == sa.bindparam("type"), *others, there)
