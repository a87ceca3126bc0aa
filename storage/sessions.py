"""Device sessions and their refresh tokens in the database.

A refresh token is a row that is spent once. Spending it, storing its successor and remembering which one that was is a
single transaction under the row's lock, so callers that come at once with the same token line up, and all but the first
find it spent a moment ago.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.acts import Act, of_session
from domain.errors import Code, Refusal
from domain.places import Place, Seen
from domain.ports import Device, DeviceSession, Judge
from storage.audit import SqlAudit, write_down
from storage.engine import Database
from storage.tables import device_key, device_session, refresh_token, user
from storage.transactions import in_transaction, reading

_LISTED: Final = 500


class SqlSessions:
    """`ports.Sessions`. Every method may raise `StoreUnavailable`."""

    def __init__(self, database: Database, audit: SqlAudit | None = None) -> None:
        self._database = database
        self._audit = audit

    async def open(self, session: DeviceSession, refresh_hash: bytes, expires_at: int, act: Act | None = None) -> None:
        async def insert(connection: AsyncConnection) -> None:
            if session.device_key_id is not None:
                await _use_key(connection, session)
            await connection.execute(sa.insert(device_session).values(_row(session)))
            token = _token(refresh_hash, session.id, session.created_at, expires_at)
            await connection.execute(sa.insert(refresh_token).values(token))
            await write_down(self._audit, connection, act)

        await in_transaction(self._database, insert)

    async def of_refresh(self, refresh_hash: bytes) -> DeviceSession | None:
        query = sa.select(device_session).join(refresh_token, refresh_token.c.session_id == device_session.c.id)
        async with reading(self._database) as connection:
            row = (await connection.execute(query.where(refresh_token.c.hash == refresh_hash))).one_or_none()
            return None if row is None else _session(row)

    async def rotate(
        self,
        spent_hash: bytes,
        new_hash: bytes,
        new_token_sealed: bytes,
        now_ms: int,
        expires_at: int,
        grace_ms: int,
        judge: Judge | None = None,
        reused: Act | None = None,
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
                    refused = _judged(judge, session)
                    return refused if isinstance(refused, Refusal) else (session, token.successor_sealed)
            if token.spent_at is not None:
                await _revoke(connection, [session.id], now_ms)
                await write_down(self._audit, connection, of_session(reused, session.user_id, session.id))
                return Refusal(Code.SESSION_REVOKED, current=session.id)
            if token.expires_at <= now_ms:
                return Refusal(Code.UNAUTHENTICATED)
            judged = _judged(judge, session)
            if isinstance(judged, Refusal):
                return judged
            spending = {"spent_at": now_ms, "successor_sealed": new_token_sealed, "successor_hash": new_hash}
            this = refresh_token.c.hash == spent_hash
            await connection.execute(sa.update(refresh_token).where(this).values(spending))
            successor = _token(new_hash, session.id, now_ms, expires_at)
            await connection.execute(sa.insert(refresh_token).values(successor))
            await _touch(connection, session, judged, now_ms)
            return judged, None

        outcome = await in_transaction(self._database, spend)
        if isinstance(outcome, Refusal):
            raise outcome
        return outcome

    async def get(self, session_id: str) -> DeviceSession | None:
        return (await self.get_many([session_id])).get(session_id)

    async def get_many(self, session_ids: Sequence[str]) -> dict[str, DeviceSession]:
        """Those that there are, by id."""
        person = sa.select(device_session, user.c.locale, user.c.roles)
        person = person.outerjoin_from(device_session, user, user.c.id == device_session.c.user_id)
        async with reading(self._database) as connection:
            rows = await connection.execute(person.where(device_session.c.id.in_(session_ids)))
            return {row.id: _of_person(row) for row in rows}

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

    async def revoke(self, session_ids: Sequence[str], now_ms: int, act: Act | None = None) -> None:
        async def work(connection: AsyncConnection) -> None:
            await _revoke(connection, session_ids, now_ms)
            await write_down(self._audit, connection, act)

        if session_ids:
            await in_transaction(self._database, work)


async def _locked(connection: AsyncConnection, spent_hash: bytes) -> tuple[sa.Row[Any] | None, DeviceSession | None]:
    """The token and its session, which nobody else can change until the transaction ends.

    The session is locked first, here and wherever tokens are deleted: who spends one looks at all of its session.
    """
    theirs = sa.select(refresh_token.c.session_id).where(refresh_token.c.hash == spent_hash).scalar_subquery()
    query = sa.select(device_session).where(device_session.c.id == theirs).with_for_update()
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None, None
    query = sa.select(refresh_token).where(refresh_token.c.hash == spent_hash).with_for_update()
    return (await connection.execute(query)).one_or_none(), _session(row)


async def _revoke(connection: AsyncConnection, session_ids: Sequence[str], now_ms: int) -> None:
    living = device_session.c.id.in_(sorted(set(session_ids))) & device_session.c.revoked_at.is_(None)
    await connection.execute(sa.update(device_session).where(living).values(revoked_at=now_ms))


def _judged(judge: Judge | None, session: DeviceSession) -> DeviceSession | Refusal:
    try:
        return session if judge is None else judge(session)
    except Refusal as refusal:
        return refusal


async def _use_key(connection: AsyncConnection, session: DeviceSession) -> None:
    """Its row is locked until the session stands: who removes the key finds the session, or the key is gone."""
    this = (device_key.c.id == session.device_key_id) & (device_key.c.user_id == session.user_id)
    query = sa.select(device_key.c.id).where(this).with_for_update()
    if (await connection.execute(query)).one_or_none() is None:
        raise Refusal(Code.UNAUTHENTICATED)
    await connection.execute(sa.update(device_key).where(this).values(last_used_at=session.created_at))


async def _touch(connection: AsyncConnection, old: DeviceSession, new: DeviceSession, now_ms: int) -> None:
    """Note that the session is in use, and how, and drop those of its tokens that have expired."""
    before = _row(old)
    changed = {name: value for name, value in _row(new).items() if value != before[name]}
    changed["last_seen_at"] = max(old.last_seen_at, now_ms)
    await connection.execute(sa.update(device_session).where(device_session.c.id == old.id).values(changed))
    expired = (refresh_token.c.session_id == old.id) & (refresh_token.c.expires_at <= now_ms)
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
        "ip": session.seen.ip,
        "user_agent": session.seen.agent,
        "country": session.seen.place.country,
        "city": session.seen.place.city,
        "lat": session.seen.place.lat,
        "lon": session.seen.place.lon,
        "confirmed_at": session.confirmed_at,
        "second_factor_at": session.second_factor_at,
        "device_key_id": session.device_key_id,
    }


def _token(hashed: bytes, session_id: str, now_ms: int, expires_at: int) -> dict[str, Any]:
    return {"hash": hashed, "session_id": session_id, "created_at": now_ms, "expires_at": expires_at}


def _of_person(row: sa.Row[Any]) -> DeviceSession:
    roles = msgspec.json.decode(row.roles, type=tuple[str, ...]) if row.roles else ()
    return msgspec.structs.replace(_session(row), locale=row.locale or "", roles=roles)


def _session(row: sa.Row[Any]) -> DeviceSession:
    device = Device(row.device_id, row.device_name, row.platform)
    return DeviceSession(
        id=row.id,
        user_id=row.user_id,
        device=device,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        revoked_at=row.revoked_at,
        seen=Seen(row.ip, row.user_agent, Place(row.country, row.city, row.lat, row.lon)),
        confirmed_at=row.confirmed_at,
        second_factor_at=row.second_factor_at,
        device_key_id=row.device_key_id,
    )
