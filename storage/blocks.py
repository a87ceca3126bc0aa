"""Who has blocked whom. A block that was ended stays as a row, so that every change of a pair has a time of its own."""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.ports import Block, Page
from storage import tables as t
from storage.engine import Database
from storage.read_models import Mark, decode_cursor, encode_cursor
from storage.statements import run
from storage.transactions import in_transaction, reading

_b: Final = t.user_block.c


class SqlBlocks:
    """`domain.ports.Blocks` on SQLite and MariaDB/MySQL."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def block(self, blocker_id: str, blocked_id: str, now_ms: int) -> Block:
        touch = self._db.sql.upsert(t.user_block, _touched)

        async def work(connection: AsyncConnection) -> Block:
            # A row that is touched is locked, so two who block for the first time do so one after the other.
            await run(connection, touch, [(blocker_id, blocked_id, False, 0)])
            known = await _locked(connection, blocker_id, blocked_id)
            assert known is not None, "it has just been touched"
            return known if known.active else await _change(connection, known, True, now_ms)

        return await in_transaction(self._db, work)

    async def unblock(self, blocker_id: str, blocked_id: str, now_ms: int) -> Block | None:
        async def work(connection: AsyncConnection) -> Block | None:
            known = await _locked(connection, blocker_id, blocked_id)
            if known is None or not known.active:
                return known
            return await _change(connection, known, False, now_ms)

        return await in_transaction(self._db, work)

    async def renew(self, known: Block, now_ms: int) -> Block:
        async def work(connection: AsyncConnection) -> Block:
            now = await _locked(connection, known.blocker_id, known.blocked_id)
            assert now is not None, "rows of blocks are never deleted"
            return now if now.active == known.active else await _change(connection, now, now.active, now_ms)

        return await in_transaction(self._db, work)

    async def list_of(self, blocker_id: str, cursor: str | None, limit: int) -> Page:
        query = sa.select(_b.blocker_id, _b.blocked_id, _b.active, _b.at)
        query = query.where(_b.blocker_id == blocker_id, _b.active)
        if cursor is not None:
            mark = decode_cursor(cursor)
            query = query.where(sa.or_(_b.at < mark.at, sa.and_(_b.at == mark.at, _b.blocked_id < mark.id)))
        async with reading(self._db) as connection:
            rows = await connection.execute(query.order_by(_b.at.desc(), _b.blocked_id.desc()).limit(limit + 1))
            found = [Block(*row) for row in rows]
        items, more = found[:limit], len(found) > limit
        return Page(items, encode_cursor(Mark(items[-1].at, items[-1].blocked_id)) if more else None)

    async def among(self, user_ids: Sequence[str]) -> frozenset[tuple[str, str]]:
        ids = sorted(set(user_ids))
        query = sa.select(_b.blocker_id, _b.blocked_id)
        query = query.where(_b.active, _b.blocker_id.in_(ids), _b.blocked_id.in_(ids))
        async with reading(self._db) as connection:
            return frozenset((row[0], row[1]) for row in await connection.execute(query))

    async def shared(self, user_id: str, other_id: str, *, alone: bool) -> list[str]:
        member = t.conversation_member
        one, other, third = member.alias("one"), member.alias("other"), member.alias("third")
        query = sa.select(one.c.conversation_id).join_from(one, other, one.c.conversation_id == other.c.conversation_id)
        query = query.where(one.c.user_id == user_id, one.c.left_offset.is_(None))
        query = query.where(other.c.user_id == other_id, other.c.left_offset.is_(None))
        if alone:
            query = query.where(
                ~sa.exists().where(
                    third.c.conversation_id == one.c.conversation_id,
                    third.c.left_offset.is_(None),
                    third.c.user_id.not_in([user_id, other_id]),
                )
            )
        async with reading(self._db) as connection:
            return list(await connection.scalars(query.order_by(one.c.conversation_id)))


async def _locked(connection: AsyncConnection, blocker_id: str, blocked_id: str) -> Block | None:
    query = sa.select(_b.blocker_id, _b.blocked_id, _b.active, _b.at).where(*_pair(blocker_id, blocked_id))
    row = (await connection.execute(query.with_for_update())).one_or_none()
    return None if row is None else Block(*row)


async def _change(connection: AsyncConnection, known: Block, active: bool, now_ms: int) -> Block:
    new = Block(known.blocker_id, known.blocked_id, active, max(now_ms, known.at + 1))
    await connection.execute(
        sa.update(t.user_block).where(*_pair(known.blocker_id, known.blocked_id)).values(active=active, at=new.at)
    )
    return new


def _pair(blocker_id: str, blocked_id: str) -> tuple[Any, Any]:
    return _b.blocker_id == blocker_id, _b.blocked_id == blocked_id


def _touched(new: Any, old: Any) -> list[tuple[str, Any]]:
    return [("at", old.at)]
