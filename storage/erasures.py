"""Erasures under way, and what they find and overwrite outside of streams."""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.chat_events import ERASED
from domain.erasure import LEASE_MS, SETTLE_MS, Erasure, Membership, Written, is_last
from domain.ports import Position
from storage import tables as t
from storage.chat import CONVERSATION, POSTED, author_of
from storage.engine import Database
from storage.read_models import message_id_of
from storage.transactions import in_transaction, reading

_e: Final = t.erasure.c
_log: Final = t.partition_log.c


class SqlErasures:
    """`domain.erasure.Erasures` on SQLite and MariaDB/MySQL."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def begin(self, user_id: str, now_ms: int) -> list[str]:
        row = {"user_id": user_id, "requested_at": now_ms, "pass_at": 0, "cursor": "", "due_at": now_ms}

        async def work(connection: AsyncConnection) -> list[str]:
            await connection.execute(sa.insert(t.erasure).values(row))
            return await _forget(connection, user_id)

        try:
            return await in_transaction(self._db, work)
        except IntegrityError:
            return await self.forget(user_id)  # it was begun before

    async def forget(self, user_id: str) -> list[str]:
        return await in_transaction(self._db, lambda connection: _forget(connection, user_id))

    async def claim(self, now_ms: int) -> Erasure | None:
        query = sa.select(t.erasure).where(_e.due_at <= now_ms).order_by(_e.due_at, _e.user_id).limit(1)
        async with reading(self._db) as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        # Of several who saw the same row one finds it as it was.
        pass_at = row.pass_at or now_ms
        mine = sa.update(t.erasure).where(_e.user_id == row.user_id, _e.due_at == row.due_at)
        taken = await self._change(mine.values(due_at=now_ms + LEASE_MS, pass_at=pass_at))
        return Erasure(row.user_id, row.requested_at, pass_at, row.cursor) if taken else None

    async def advance(self, erasure: Erasure, now_ms: int) -> None:
        this = sa.update(t.erasure).where(_e.user_id == erasure.user_id, _e.due_at.isnot(None))
        await self._change(this.values(cursor=erasure.cursor, due_at=now_ms + LEASE_MS))

    async def end_pass(self, erasure: Erasure) -> None:
        due_at = None if is_last(erasure) else erasure.requested_at + SETTLE_MS
        this = sa.update(t.erasure).where(_e.user_id == erasure.user_id)
        await self._change(this.values(due_at=due_at, pass_at=0, cursor=""))

    async def conversations(self, user_id: str, after: str, limit: int) -> list[str]:
        m = t.conversation_member.c
        query = sa.select(m.conversation_id).where(m.user_id == user_id, m.conversation_id > after)
        async with reading(self._db) as connection:
            return list(await connection.scalars(query.order_by(m.conversation_id).limit(limit)))

    async def messages(self, user_id: str, conversation_id: str, after: int, limit: int) -> list[Written]:
        stream = CONVERSATION + conversation_id
        query = sa.select(_log.offset, _log.body).where(_log.stream == stream, _log.type == POSTED, _log.offset > after)
        theirs = _log.actor.in_([f"user:{user_id}", f"ops:{user_id}"])
        there = sa.func.instr(_log.body, ERASED) == 0
        async with reading(self._db) as connection:
            rows = await connection.execute(query.where(theirs, there).order_by(_log.offset).limit(limit))
            return [Written(offset, message_id_of(body), body) for offset, body in rows if author_of(body) == user_id]

    async def memberships(self, user_id: str, after: str, limit: int) -> list[Membership]:
        m, mute = t.conversation_member.c, t.conversation_mute.c
        muted = (mute.conversation_id == m.conversation_id) & (mute.user_id == m.user_id)
        columns = (m.conversation_id, m.joined_offset, m.left_offset, m.read_offset, m.delivered_offset, mute.until_ms)
        query = sa.select(*columns).select_from(t.conversation_member.outerjoin(t.conversation_mute, muted))
        query = query.where(m.user_id == user_id, m.conversation_id > after)
        async with reading(self._db) as connection:
            rows = await connection.execute(query.order_by(m.conversation_id).limit(limit))
            return [Membership(*row) for row in rows]

    async def tracked_orders(self, user_id: str, after: str, limit: int) -> list[str]:
        p, c = t.order_party.c, t.track_position.c
        tracked = sa.exists(sa.select(c.at).where(c.order_id == p.order_id))
        query = sa.select(p.order_id).where(*_hired(user_id), p.order_id > after, tracked)
        async with reading(self._db) as connection:
            return list(await connection.scalars(query.order_by(p.order_id).limit(limit)))

    async def track(self, user_id: str, order_id: str, after_ms: int, limit: int) -> list[Position]:
        theirs = sa.exists(
            sa.select(t.order_party.c.order_id).where(*_hired(user_id), t.order_party.c.order_id == order_id)
        )
        c = t.track_position.c
        query = sa.select(c.at, c.lat, c.lon, c.accuracy_m, c.speed_mps, c.heading_deg, c.visit_id)
        query = query.where(c.order_id == order_id, c.at > after_ms, theirs).order_by(c.at, c.visit_id).limit(limit)
        async with reading(self._db) as connection:
            return [Position(*row) for row in await connection.execute(query)]

    async def forget_tracks(self, user_id: str) -> None:
        p, c = t.order_party.c, t.track_position.c
        query = sa.select(p.order_id).where(*_hired(user_id))
        async with reading(self._db) as connection:
            orders = list(await connection.scalars(query))
        for order_id in orders:
            await self._change(sa.delete(t.track_position).where(c.order_id == order_id))

    async def _change(self, statement: Any) -> bool:
        async def work(connection: AsyncConnection) -> bool:
            return bool((await connection.execute(statement)).rowcount)

        return await in_transaction(self._db, work)


def _hired(user_id: str) -> tuple[Any, ...]:
    p = t.order_party.c
    return p.user_id == user_id, p.role == "worker", p.hired


async def _forget(connection: AsyncConnection, user_id: str) -> list[str]:
    nobody: dict[str, Any] = {
        "phone": None,
        "phone_sealed": None,
        "phone_index": None,
        "name": "",
        "locale": "en",
        "roles": "[]",
        "avatar": None,
        "worker": None,
    }
    nobody |= {"base_lat": None, "base_lon": None, "radius_m": None, "hourly_rate": None}
    nobody |= {"identity_until": 0, "licences": None}
    blank = nobody | {"rating_sum": 0, "rating_count": 0, "updated_at": t.user.c.created_at}
    await connection.execute(sa.update(t.user).where(t.user.c.id == user_id).values(blank))
    s, r = t.device_session.c, t.refresh_token.c
    # Locked before their tokens are, as everywhere.
    mine = sa.select(s.id).where(s.user_id == user_id).order_by(s.id).with_for_update()
    sessions = list(await connection.scalars(mine))
    for session_id in sessions:
        await connection.execute(sa.delete(t.refresh_token).where(r.session_id == session_id))
    await connection.execute(sa.delete(t.device_session).where(s.user_id == user_id))
    for keys in (t.linked_identity, t.device_key, t.totp_secret, t.api_key):
        await connection.execute(sa.delete(keys).where(keys.c.user_id == user_id))
    await connection.execute(sa.delete(t.worker_document).where(t.worker_document.c.worker_id == user_id))
    # Without its key a content is gone, wherever there is a copy of it; `Uploads.forget` clears away what is left.
    unreadable = sa.update(t.upload).where(t.upload.c.owner_id == user_id)
    await connection.execute(unreadable.values(key_sealed=None, due_at=t.upload.c.created_at))
    await connection.execute(sa.delete(t.user_block).where(t.user_block.c.blocker_id == user_id))
    await connection.execute(sa.delete(t.conversation_mute).where(t.conversation_mute.c.user_id == user_id))
    return sessions
