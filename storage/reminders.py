"""What streams will do by themselves: written with the log rows that cause it, read by whoever owns the partition."""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.commands import Reminder
from domain.ids import PARTITIONS
from storage import tables as t
from storage.commit_plan import CommitPlan
from storage.statements import Preparer, Step, fetch, numbered, run, wide

_c: Final = t.reminder.c


def reminder_rows(sql: Preparer, plan: CommitPlan) -> list[Step]:
    """The rows of one flush; no key is among both those that are removed and those that are set."""
    pending = [
        (partition, r.stream, r.name, r.due_at, r.fence_offset, r.command, r.payload) for partition, r in plan.reminders
    ]
    return [(sql.prepare(_remove), plan.done), (sql.upsert(t.reminder, _replace), pending)]


async def due_reminders(
    connection: AsyncConnection, sql: Preparer, partitions: Sequence[int], before_ms: int, limit: int
) -> list[Reminder]:
    """Those due before then, earliest first: by time, stream and name.

    The index is in that order whatever the partition, which it also holds. So nothing is sorted, a look at the next
    minute reads the next minute alone, and a backlog is read from its beginning; what belongs to others is passed over
    within the index. An index by partition would be asked 1,024 times, and all that is overdue would be sorted.
    """
    wanted = sorted(set(partitions))
    found: list[Reminder] = []
    for piece in wide(wanted, PARTITIONS):
        statement = sql.prepare(_due, 0 if len(wanted) == PARTITIONS else len(piece))
        values = {**numbered(p=piece), "before": before_ms, "most": limit}
        found += [Reminder(*row) for row in await fetch(connection, statement, values)]
    return found


async def delete_reminders(connection: AsyncConnection, sql: Preparer, reminders: Sequence[Reminder]) -> None:
    """Delete those that are stored exactly as given."""
    for piece in wide(sorted(set(reminders), key=_moment)):
        values = numbered(
            s=[r.stream for r in piece],
            n=[r.name for r in piece],
            d=[r.due_at for r in piece],
            f=[r.fence_offset for r in piece],
        )
        statement = sql.prepare(_delete, len(piece))
        await run(connection, statement, [statement.row(values)])


def _moment(reminder: Reminder) -> tuple[int, str, str]:
    return reminder.due_at, reminder.stream, reminder.name


def _remove(width: int) -> Any:
    return sa.delete(t.reminder).where(_c.stream == sa.bindparam("stream"), _c.name == sa.bindparam("name"))


def _replace(new: Any, old: Any) -> list[tuple[str, Any]]:
    return [(name, new[name]) for name in ("partition", "due_at", "fence_offset", "command", "payload")]


def _due(width: int) -> Any:
    """Of so many partitions; 0 is all of them."""
    query = sa.select(_c.stream, _c.name, _c.due_at, _c.fence_offset, _c.command, _c.payload)
    query = query.where(_c.due_at < sa.bindparam("before"))
    if width:
        query = query.where(_c.partition.in_([sa.bindparam(f"p{n}") for n in range(width)]))
    return query.order_by(_c.due_at, _c.stream, _c.name).limit(sa.bindparam("most", type_=sa.Integer()))


def _delete(width: int) -> Any:
    terms = (
        sa.and_(
            _c.stream == sa.bindparam(f"s{n}"),
            _c.name == sa.bindparam(f"n{n}"),
            _c.due_at == sa.bindparam(f"d{n}"),
            _c.fence_offset == sa.bindparam(f"f{n}"),
        )
        for n in range(width)
    )
    return sa.delete(t.reminder).where(sa.or_(*terms))
