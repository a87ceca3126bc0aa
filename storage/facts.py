"""Answers to what rules need to know beside their own state, read from what is committed."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.aggregate import (
    Account,
    AccountNeed,
    BlockNeed,
    Facts,
    MessageFact,
    MessageNeed,
    Need,
    OpenOrdersNeed,
    UploadNeed,
    WorkerProfile,
)
from storage import chat, uploads
from storage import log_queries as log
from storage import tables as t
from storage.chat import CONVERSATION, POSTED
from storage.engine import Database


class SqlFacts:
    """`domain.ports.FactSource` on SQLite and MariaDB/MySQL: at most one statement for each kind of need."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def facts(self, needs: Sequence[Need]) -> Facts:
        known: dict[Need, Any] = {}
        async with self._db.read() as connection:
            known.update(await self._accounts(connection, [n for n in needs if isinstance(n, AccountNeed)]))
            known.update(await self._open_orders(connection, [n for n in needs if isinstance(n, OpenOrdersNeed)]))
            known.update(await self._messages(connection, [n for n in needs if isinstance(n, MessageNeed)]))
            known.update(await uploads.facts(connection, [n for n in needs if isinstance(n, UploadNeed)]))
            known.update(await self._blocks(connection, [n for n in needs if isinstance(n, BlockNeed)]))
        return Facts(known)

    async def _accounts(self, connection: AsyncConnection, needs: Iterable[AccountNeed]) -> dict[Need, Any]:
        ids = sorted({need.user_id for need in needs})
        if not ids:
            return {}
        u = t.user.c
        rows = await connection.execute(
            sa.select(u.id, u.roles, u.worker, u.identity_until, u.licences).where(u.id.in_(ids))
        )
        return {AccountNeed(row.id): account(row) for row in rows}

    async def _open_orders(self, connection: AsyncConnection, needs: Iterable[OpenOrdersNeed]) -> dict[Need, Any]:
        ids = sorted({need.customer_id for need in needs})
        if not ids:
            return {}
        p = t.order_party.c
        query = sa.select(p.user_id, sa.func.count()).group_by(p.user_id)
        query = query.where(p.user_id.in_(ids), p.role == "customer", p.state == "open")
        counted = {row[0]: row[1] for row in await connection.execute(query)}
        return {OpenOrdersNeed(user): counted.get(user, 0) for user in ids}

    async def _messages(self, connection: AsyncConnection, needs: Sequence[MessageNeed]) -> dict[Need, Any]:
        if not needs:
            return {}
        keys = [(need.conversation_id, need.message_id) for need in needs]
        streams = [(CONVERSATION + conversation, message) for conversation, message in keys]
        found = await log.first_rows(connection, self._db.sql, streams)
        changes = await chat.read_changes(connection, self._db.sql, keys)
        return {
            MessageNeed(*key): message_fact(entry.body, entry.offset, changes.get(key))
            for key, stream in zip(keys, streams, strict=True)
            if (entry := found.get(stream)) is not None and entry.type == POSTED
        }

    async def _blocks(self, connection: AsyncConnection, needs: Sequence[BlockNeed]) -> dict[Need, Any]:
        if not needs:
            return {}
        b = t.user_block.c
        blockers, blocked = {need.blocker_id for need in needs}, {need.blocked_id for need in needs}
        query = sa.select(b.blocker_id, b.blocked_id).where(b.active, b.blocker_id.in_(sorted(blockers)))
        rows = await connection.execute(query.where(b.blocked_id.in_(sorted(blocked))))
        standing = {(row[0], row[1]) for row in rows}
        return {need: (need.blocker_id, need.blocked_id) in standing for need in needs}


class _By(msgspec.Struct):
    by: str


def account(row: Any) -> Account:
    """A user as the rules see them, from the columns of the table."""
    profile = None if row.worker is None else msgspec.json.decode(row.worker, type=WorkerProfile)
    return Account(
        row.id,
        msgspec.json.decode(row.roles, type=tuple[str, ...]),
        profile,
        identity_until=row.identity_until,
        licences=licences_of(row.licences),
    )


def licences_of(column: str | None) -> dict[str, int]:
    return {} if column is None else msgspec.json.decode(column, type=dict[str, int])


def message_fact(body: bytes, offset: int, change: chat.MessageChange | None) -> MessageFact:
    """Who wrote a posted message, where it stands, whether it is still there, and how often it has changed."""
    deleted = change is not None and change.deleted_at is not None
    return MessageFact(msgspec.json.decode(body, type=_By).by, offset, deleted, len(change.texts) if change else 0)
