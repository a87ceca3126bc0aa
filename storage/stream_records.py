"""What the database has of one stream, for operators: read as it is stored, not as an activation remembers it."""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.channels import stream_partition
from domain.commands import Reminder
from domain.ports import StreamRecord, Taken
from storage import tables as t
from storage.engine import Database
from storage.transactions import reading

_log: Final = t.partition_log.c
_reminder: Final = t.reminder.c
_MOST_REMINDERS: Final = 64


class SqlStreamRecords:
    """`domain.ports.StreamRecords` on SQLite and MariaDB/MySQL: a handful of look-ups by key, nothing is scanned."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def record(self, stream: str) -> StreamRecord:
        partition = stream_partition(stream)
        async with reading(self._db) as connection:
            taken = await _taken(connection, partition)
            last = (
                await connection.execute(
                    sa.select(_log.offset, _log.at).where(_log.stream == stream).order_by(_log.offset.desc()).limit(1)
                )
            ).first()
            state = t.stream_state.c
            cursor = t.relay_cursor.c
            return StreamRecord(
                head=last.offset if last is not None else 0,
                at=last.at if last is not None else None,
                snapshot_offset=await _number(connection, sa.select(state.offset).where(state.stream == stream)),
                position=await _number(
                    connection, sa.select(sa.func.max(_log.position)).where(_log.partition == partition)
                ),
                cursor=await _number(connection, sa.select(cursor.position).where(cursor.partition == partition)),
                taken=taken,
                reminders=await _reminders(connection, stream),
            )


async def _number(connection: AsyncConnection, query: Any) -> int:
    return await connection.scalar(query) or 0


async def _taken(connection: AsyncConnection, partition: int) -> Taken | None:
    """Takeover rows have no stream: the unique key of streams and offsets holds them apart from all others."""
    row = (
        await connection.execute(
            sa.select(_log.actor, _log.position, _log.at)
            .where(_log.stream.is_(None), _log.offset.is_(None), _log.partition == partition)
            .order_by(_log.position.desc())
            .limit(1)
        )
    ).first()
    return None if row is None else Taken(row.actor, row.position, row.at)


async def _reminders(connection: AsyncConnection, stream: str) -> tuple[Reminder, ...]:
    rows = await connection.execute(
        sa.select(_reminder.name, _reminder.due_at, _reminder.fence_offset, _reminder.command)
        .where(_reminder.stream == stream)
        .order_by(_reminder.due_at, _reminder.name)
        .limit(_MOST_REMINDERS)
    )
    return tuple(Reminder(stream, *row) for row in rows)
