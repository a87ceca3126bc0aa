"""Device sessions and their refresh tokens in the database.

A refresh token is a row that is spent once. Spending it, storing its successor and remembering which one that was is a
single transaction under the row's lock, so callers that come at once with the same token line up, and all but the first
find it spent a moment ago.
"""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import Code, Refusal
from domain.ports import Device, DeviceSession
from storage.engine import Database
from storage.tables import device_session, refresh_token
from storage.transactions import in_transaction, reading

_LISTED: Final = 500


class SqlSessions:
    """`ports.Sessions`. Every method may raise `StoreUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, session: DeviceSession, refresh_hash: bytes, expires_at: int) -> None:
        async def insert(connection: AsyncConnection) -> None:
            await connection.execute(sa.insert(device_session).values(_row(session)))
            token = _token(refresh_hash, session.id, session.created_at, expires_at)
            await connection.execute(sa.insert(refresh_token).values(token))

        await in_transaction(self._database, insert)

    async def rotate(
        self, spent_hash: bytes, new_hash: bytes, new_token_sealed: bytes, now_ms: int, expires_at: int, grace_ms: int
    ) -> tuple[DeviceSession, bytes | None]:
        async def spend(connection: AsyncConnection) -> tuple[DeviceSession, bytes | None] | Refusal:
            """A refusal is returned, not raised, because what it found out (reuse) has to be committed."""
            token, session = await _locked(connection, spent_hash)
            if token is None or session is None:
                return Refusal(Code.UNAUTHENTICATED)
            if session.revoked_at is not None:
                return Refusal(Code.SESSION_REVOKED, current=session.id)
            if token.spent_at is not None and now_ms - token.spent_at <= grace_ms:
                used = sa.select(refresh_token.c.spent_at).where(refresh_token.c.hash == token.successor_hash)
                if (await connection.execute(used)).scalar_one_or_none() is None:
                    return session, token.successor_sealed
            if token.spent_at is not None:
                await _revoke(connection, [session.id], now_ms)
                return Refusal(Code.SESSION_REVOKED, current=session.id)
            if token.expires_at <= now_ms:
                return Refusal(Code.UNAUTHENTICATED)
            spending = {"spent_at": now_ms, "successor_sealed": new_token_sealed, "successor_hash": new_hash}
            this = refresh_token.c.hash == spent_hash
            await connection.execute(sa.update(refresh_token).where(this).values(spending))
            successor = _token(new_hash, session.id, now_ms, expires_at)
            await connection.execute(sa.insert(refresh_token).values(successor))
            await _touch(connection, session.id, now_ms)
            return session, None

        outcome = await in_transaction(self._database, spend)
        if isinstance(outcome, Refusal):
            raise outcome
        return outcome

    async def get(self, session_id: str) -> DeviceSession | None:
        return (await self.get_many([session_id])).get(session_id)

    async def get_many(self, session_ids: Sequence[str]) -> dict[str, DeviceSession]:
        """Those that there are, by id."""
        query = sa.select(device_session).where(device_session.c.id.in_(session_ids))
        async with reading(self._database) as connection:
            return {row.id: _session(row) for row in await connection.execute(query)}

    async def list_of(self, user_id: str) -> list[DeviceSession]:
        """The last used first; the living ones before the revoked ones, 500 at most."""
        living_first = (
            device_session.c.revoked_at.isnot(None),
            device_session.c.last_seen_at.desc(),
            device_session.c.id,
        )
        query = sa.select(device_session).where(device_session.c.user_id == user_id)
        async with reading(self._database) as connection:
            rows = await connection.execute(query.order_by(*living_first).limit(_LISTED))
            return [_session(row) for row in rows]

    async def revoke(self, session_ids: Sequence[str], now_ms: int) -> None:
        if session_ids:
            await in_transaction(self._database, lambda connection: _revoke(connection, session_ids, now_ms))


async def _locked(connection: AsyncConnection, spent_hash: bytes) -> tuple[sa.Row[Any] | None, DeviceSession | None]:
    """The token and its session, which nobody else can change until the transaction ends."""
    query = sa.select(refresh_token).where(refresh_token.c.hash == spent_hash).with_for_update()
    token = (await connection.execute(query)).one_or_none()
    if token is None:
        return None, None
    query = sa.select(device_session).where(device_session.c.id == token.session_id).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    return token, None if row is None else _session(row)


async def _revoke(connection: AsyncConnection, session_ids: Sequence[str], now_ms: int) -> None:
    living = device_session.c.id.in_(sorted(set(session_ids))) & device_session.c.revoked_at.is_(None)
    await connection.execute(sa.update(device_session).where(living).values(revoked_at=now_ms))


async def _touch(connection: AsyncConnection, session_id: str, now_ms: int) -> None:
    """Note that the session is in use, and drop those of its tokens that have expired."""
    older = (device_session.c.id == session_id) & (device_session.c.last_seen_at < now_ms)
    await connection.execute(sa.update(device_session).where(older).values(last_seen_at=now_ms))
    expired = (refresh_token.c.session_id == session_id) & (refresh_token.c.expires_at <= now_ms)
    await connection.execute(sa.delete(refresh_token).where(expired))


def _row(session: DeviceSession) -> dict[str, Any]:
    return {
        "id": session.id,
        "user_id": session.user_id,
        "device_id": session.device.id,
        "device_name": session.device.name,
        "platform": session.device.platform,
        "created_at": session.created_at,
        "last_seen_at": session.last_seen_at,
        "revoked_at": session.revoked_at,
    }


def _token(hashed: bytes, session_id: str, now_ms: int, expires_at: int) -> dict[str, Any]:
    return {"hash": hashed, "session_id": session_id, "created_at": now_ms, "expires_at": expires_at}


def _session(row: sa.Row[Any]) -> DeviceSession:
    device = Device(row.device_id, row.device_name, row.platform)
    return DeviceSession(row.id, row.user_id, device, row.created_at, row.last_seen_at, row.revoked_at)
