"""Which members do not want to be notified of which conversations."""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import tables as t
from storage.engine import Database
from storage.statements import run
from storage.transactions import in_transaction, reading

_m: Final = t.conversation_mute.c


class SqlMutes:
    """`domain.ports.Mutes` on SQLite and MariaDB/MySQL."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def mute(self, conversation_id: str, user_id: str, until_ms: int) -> None:
        statement = self._db.sql.upsert(t.conversation_mute, _until)
        await in_transaction(self._db, lambda at: run(at, statement, [(conversation_id, user_id, until_ms)]))

    async def unmute(self, conversation_id: str, user_id: str) -> None:
        gone = sa.delete(t.conversation_mute).where(_m.conversation_id == conversation_id, _m.user_id == user_id)

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(gone)

        await in_transaction(self._db, work)

    async def of(self, user_id: str, conversation_ids: Sequence[str], now_ms: int) -> dict[str, int]:
        query = sa.select(_m.conversation_id, _m.until_ms).where(_m.user_id == user_id, _still(now_ms))
        query = query.where(_m.conversation_id.in_(sorted(set(conversation_ids))))
        if not conversation_ids:
            return {}
        async with reading(self._db) as connection:
            return {row[0]: row[1] for row in await connection.execute(query)}

    async def muted(self, conversation_id: str, user_ids: Sequence[str], now_ms: int) -> frozenset[str]:
        query = sa.select(_m.user_id).where(_m.conversation_id == conversation_id, _still(now_ms))
        async with reading(self._db) as connection:
            return frozenset(await connection.scalars(query)) & frozenset(user_ids)


def _still(now_ms: int) -> Any:
    return sa.or_(_m.until_ms == 0, _m.until_ms > now_ms)


def _until(new: Any, old: Any) -> list[tuple[str, Any]]:
    return [("until_ms", new.until_ms)]
