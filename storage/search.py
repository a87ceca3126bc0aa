"""Messages by what they say: the newest are read as they are, those before them are looked up in an index."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from domain.ports import MessageRow, Page
from domain.search import Wanted
from storage import chat
from storage import log_queries as log
from storage import tables as t
from storage.chat import CONVERSATION
from storage.engine import Database
from storage.read_models import Mark, SqlReadModels, decode_cursor, encode_cursor, message_id_of, message_row
from storage.search_index import MOST_OFFSET, Indexed, SearchIndex
from storage.statements import play
from storage.transactions import reading


class SearchSettings(msgspec.Struct, frozen=True):
    """How much one search does: `read` newest messages without the index, `scanned` where the index is behind, `batch` events
    indexed in one transaction, `indexed` in all, unless it takes longer than `index_s`, `candidates` of the index looked at.
    """

    read: int = 256
    scanned: int = 4_096
    batch: int = 256
    indexed: int = 2_048
    index_s: float = 1.0
    candidates: int = 1_024


class _Found(NamedTuple):
    """What a search has found so far: one more than wanted says that there is more."""

    rows: list[MessageRow]
    wanted: Wanted
    most: int

    def full(self) -> bool:
        return len(self.rows) >= self.most

    def look(self, row: MessageRow) -> None:
        if row.deleted_at is None and row.text is not None and self.wanted.found_in(row.text):
            self.rows.append(row)


class SqlMessageSearch:
    """`domain.ports.MessageSearch` on SQLite and MariaDB/MySQL."""

    def __init__(self, database: Database, settings: SearchSettings | None = None) -> None:
        self._db = database
        self._sql = database.sql
        self._settings = settings or SearchSettings()
        self._index = SearchIndex(database)
        self._models = SqlReadModels(database)

    async def find(self, conversation_id: str, wanted: Wanted, cursor: str | None, limit: int) -> Page:
        before = None if cursor is None else min(decode_cursor(cursor).at, MOST_OFFSET)
        found = _Found([], wanted, limit + 1)
        before = await self._read(conversation_id, found, before, 0, self._settings.read)
        if before > 1 and not found.full():
            limits = self._settings
            indexed = await self._index.take_up(conversation_id, limits.indexed, limits.batch, limits.index_s)
            before = await self._read(conversation_id, found, before, indexed.offset, self._settings.scanned)
            if before <= indexed.offset + 1 and not found.full():
                before = await self._look_up(conversation_id, indexed, found, before)
        if found.full():
            before = found.rows[limit - 1].offset
        return Page(found.rows[:limit], encode_cursor(Mark(before, "")) if before > 1 else None)

    async def _read(self, conversation_id: str, found: _Found, before: int | None, down_to: int, most: int) -> int:
        """Look at messages before an offset (None: all), newest first, but at none up to `down_to`; where to go on."""
        while most > 0 and not found.full() and (before is None or before > down_to + 1):
            page = min(most, self._settings.read)
            rows, more = await self._models.messages(conversation_id, before=before, after=None, limit=page)
            for row in rows:
                if row.offset <= down_to:
                    return down_to + 1
                found.look(row)
                if found.full():
                    break
            if more is None:
                return 1
            before = more
            most -= page
        return 1 if before is None else before

    async def _look_up(self, conversation_id: str, indexed: Indexed, found: _Found, before: int) -> int:
        """Look at what the index offers before an offset, newest first; where to go on."""
        left, width = self._settings.candidates, max(2 * found.most, 32)
        while left > 0 and not found.full():
            offsets = await self._index.candidates(conversation_id, indexed, found.wanted, before, width)
            for row in await self._rows(conversation_id, offsets):
                found.look(row)
                if found.full():
                    break
            if len(offsets) < width:
                return 1
            before = offsets[-1]
            left -= width
        return before

    async def _rows(self, conversation_id: str, offsets: Sequence[int]) -> list[MessageRow]:
        """The messages posted at these offsets as they read now, newest first."""
        stream, c = CONVERSATION + conversation_id, t.conversation.c
        async with reading(self._db) as connection:
            posted = await play(connection, log.rows_at(self._sql, [(stream, offset) for offset in offsets]))
            keys = [(conversation_id, message_id_of(entry.body)) for entry in posted]
            changes = await chat.read_changes(connection, self._sql, keys)
            revealed = bool(await connection.scalar(sa.select(c.revealed_at).where(c.id == conversation_id)))
        rows = [
            message_row(entry.offset, entry.body, changes.get(key), revealed=revealed)
            for entry, key in zip(posted, keys, strict=True)
        ]
        return sorted(rows, key=lambda row: -row.offset)
