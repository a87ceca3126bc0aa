"""Reads of the log and of snapshots; each a statement or two, whatever the number of streams asked for."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.ports import Entry, Snapshot
from storage import tables as t
from storage.statements import Ask, Preparer, Script, fetch, numbered, play, wide

_log: Final = t.partition_log.c
_COLUMNS: Final = (
    _log.stream,
    _log.offset,
    _log.type,
    _log.command_id,
    _log.command_hash,
    _log.actor,
    _log.at,
    _log.body,
)
MOST_EVENTS_OF_A_COMMAND: Final = 128


def heads(sql: Preparer, partitions: Sequence[int]) -> Script[dict[int, int]]:
    """The last position of each partition, 0 for an empty one."""
    found: dict[int, int] = {}
    for piece in wide(partitions):
        rows = yield Ask(sql.prepare(_heads, len(piece)), numbered(p=piece, q=piece))
        found.update((number, position or 0) for number, position in rows)
    return found


def ends(sql: Preparer, streams: Sequence[str]) -> Script[dict[str, int]]:
    """The last offset of each stream, 0 for an empty one."""
    found: dict[str, int] = {}
    for piece in wide(streams):
        rows = yield Ask(sql.prepare(_ends, len(piece)), numbered(s=piece, r=piece))
        found.update((stream, offset or 0) for stream, offset in rows)
    return found


async def cursors(connection: AsyncConnection, sql: Preparer, partitions: Sequence[int]) -> dict[int, int]:
    """The relay cursor of each partition that has one."""
    found: dict[int, int] = {}
    for piece in wide(partitions):
        rows = await fetch(connection, sql.prepare(_cursors, len(piece)), numbered(p=piece))
        found.update(tuple(row) for row in rows)
    return found


async def snapshots(connection: AsyncConnection, sql: Preparer, streams: Sequence[str]) -> dict[str, Snapshot]:
    """The stored snapshot of each stream that has one."""
    found: dict[str, Snapshot] = {}
    for piece in wide(streams):
        for row in await fetch(connection, sql.prepare(_snapshots, len(piece)), numbered(s=piece)):
            found[row.stream] = Snapshot(row.stream, row.offset, row.schema, row.body, row.newest_id_ms)
    return found


async def tails(connection: AsyncConnection, sql: Preparer, after: Sequence[tuple[str, int]]) -> list[Entry]:
    """Everything that follows the offset given for each stream, by offset."""
    if not after:
        return []
    values = {"marks": msgspec.json.encode(after).decode()}
    found = [Entry(*row) for row in await fetch(connection, sql.over_marks(_tails), values)]
    found.sort(key=_place)
    return found


async def first_rows(
    connection: AsyncConnection, sql: Preparer, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Entry]:
    """The first row of each (stream, command id) that has landed."""
    return await play(connection, firsts(sql, keys))


def firsts(sql: Preparer, keys: Sequence[tuple[str, str]]) -> Script[dict[tuple[str, str], Entry]]:
    """The same, within a transaction."""
    found: dict[tuple[str, str], Entry] = {}
    for piece in wide(keys):
        values = numbered(s=[stream for stream, _ in piece], c=[command for _, command in piece])
        for row in (yield Ask(sql.prepare(_first_rows, len(piece)), values)):
            entry = Entry(*row)
            found[entry.stream, entry.command_id or ""] = entry
    return found


def rows_at(sql: Preparer, keys: Sequence[tuple[str, int]]) -> Script[list[Entry]]:
    """The rows at these (stream, offset), by stream and offset."""
    found: dict[tuple[str, int], Entry] = {}
    for piece in wide(keys):
        values = numbered(s=[stream for stream, _ in piece], o=[offset for _, offset in piece])
        for row in (yield Ask(sql.prepare(_rows_at, len(piece)), values)):
            entry = Entry(*row)
            found[entry.stream, entry.offset] = entry
    return [found[key] for key in sorted(found)]


async def commands(
    connection: AsyncConnection, sql: Preparer, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], list[Entry]]:
    """All rows of each command that has landed: those that follow its first with the same hash and no id."""
    found = {key: [entry] for key, entry in (await first_rows(connection, sql, keys)).items()}
    firsts = [entries[0] for entries in found.values()]
    for piece in wide(firsts):
        values = numbered(
            s=[entry.stream for entry in piece],
            o=[entry.offset for entry in piece],
            e=[entry.offset + MOST_EVENTS_OF_A_COMMAND for entry in piece],
        )
        rows = {
            (row.stream, row.offset): Entry(*row)
            for row in await fetch(connection, sql.prepare(_spans, len(piece)), values)
        }
        for entries in found.values():
            follow(entries, rows)
    return found


def follow(entries: list[Entry], rows: dict[tuple[str, int], Entry]) -> None:
    """Add to a command's first row those that follow it, by (stream, offset), as long as they carry its hash."""
    first = entries[0]
    while (following := rows.get((first.stream, entries[-1].offset + 1))) is not None:
        if following.command_hash is None or following.command_hash != first.command_hash:
            return
        entries.append(following)


def _place(entry: Entry) -> tuple[str, int]:
    return entry.stream, entry.offset


async def partition_rows(
    connection: AsyncConnection, sql: Preparer, partition: int, after: int, limit: int
) -> list[tuple[int, Entry]]:
    """Entries by position, takeover rows left out."""
    values = {"partition": partition, "after": after, "most": limit}
    return [(row[0], Entry(*row[1:])) for row in await fetch(connection, sql.prepare(_partition_rows), values)]


async def published(
    connection: AsyncConnection, sql: Preparer, stream: str, after: int, limit: int
) -> list[tuple[int, bytes]]:
    """(offset, body) of a stream after an offset, oldest first."""
    values = {"stream": stream, "after": after, "most": limit}
    return [(row[0], row[1]) for row in await fetch(connection, sql.prepare(_forward), values)]


async def published_back(
    connection: AsyncConnection, sql: Preparer, stream: str, before: int, limit: int
) -> list[tuple[int, bytes]]:
    """(offset, body) of a stream before an offset, newest first."""
    values = {"stream": stream, "before": before, "most": limit}
    return [(row[0], row[1]) for row in await fetch(connection, sql.prepare(_backward), values)]


async def posted(
    connection: AsyncConnection, sql: Preparer, stream: str, before: int | None, after: int | None, limit: int
) -> list[tuple[int, bytes]]:
    """(offset, body) of a conversation's messages: newest first before an offset or the end, oldest first after one."""
    query = sa.select(_log.offset, _log.body).where(_log.stream == stream, _log.type == "message.posted").limit(limit)
    query = query.order_by(_log.offset.desc() if after is None else _log.offset)
    if after is not None:
        query = query.where(_log.offset > after)
    if before is not None:
        query = query.where(_log.offset < before)
    return [(row[0], row[1]) for row in await connection.execute(query)]


# --- SQL ---------------------------------------------------------------------------------------------------------
# Each maximum stands alone, because only then both databases read one index entry for it.


def _heads(width: int) -> Any:
    return sa.union_all(*(_head(n) for n in range(width)))


def _head(n: int) -> Any:
    number = sa.bindparam(f"q{n}", type_=sa.Integer())
    return sa.select(number, sa.func.max(_log.position)).where(_log.partition == sa.bindparam(f"p{n}"))


def _ends(width: int) -> Any:
    return sa.union_all(*(_end(n) for n in range(width)))


def _end(n: int) -> Any:
    name = sa.bindparam(f"r{n}", type_=sa.String())
    return sa.select(name, sa.func.max(_log.offset)).where(_log.stream == sa.bindparam(f"s{n}"))


def _cursors(width: int) -> Any:
    c = t.relay_cursor.c
    return sa.select(c.partition, c.position).where(c.partition.in_([sa.bindparam(f"p{n}") for n in range(width)]))


def _forward(width: int) -> Any:
    query = sa.select(_log.offset, _log.body).order_by(_log.offset)
    query = query.where(_log.stream == sa.bindparam("stream"), _log.offset > sa.bindparam("after"))
    return query.limit(sa.bindparam("most", type_=sa.Integer()))


def _backward(width: int) -> Any:
    query = sa.select(_log.offset, _log.body).order_by(_log.offset.desc())
    query = query.where(_log.stream == sa.bindparam("stream"), _log.offset < sa.bindparam("before"))
    return query.limit(sa.bindparam("most", type_=sa.Integer()))


def _snapshots(width: int) -> Any:
    c = t.stream_state.c
    return sa.select(c.stream, c.offset, c.schema, c.newest_id_ms, c.body).where(
        c.stream.in_([sa.bindparam(f"s{n}") for n in range(width)])
    )


def _tails(marks: Any) -> Any:
    following = sa.and_(_log.stream == marks.c.stream, _log.offset > marks.c.mark)
    # In this order, whatever either of them seems to hold.
    return (
        sa.select(*_COLUMNS)
        .prefix_with("STRAIGHT_JOIN", dialect="mysql")
        .select_from(marks)
        .join(t.partition_log, following)
    )


def _first_rows(width: int) -> Any:
    terms = (
        sa.and_(_log.stream == sa.bindparam(f"s{n}"), _log.command_id == sa.bindparam(f"c{n}")) for n in range(width)
    )
    return sa.select(*_COLUMNS).where(sa.or_(*terms))


def _rows_at(width: int) -> Any:
    terms = (sa.and_(_log.stream == sa.bindparam(f"s{n}"), _log.offset == sa.bindparam(f"o{n}")) for n in range(width))
    return sa.select(*_COLUMNS).where(sa.or_(*terms))


def _spans(width: int) -> Any:
    terms = (
        sa.and_(
            _log.stream == sa.bindparam(f"s{n}"),
            _log.offset > sa.bindparam(f"o{n}"),
            _log.offset < sa.bindparam(f"e{n}"),
            _log.command_id.is_(None),
        )
        for n in range(width)
    )
    return sa.select(*_COLUMNS).where(sa.or_(*terms))


def _partition_rows(width: int) -> Any:
    return (
        sa.select(_log.position, *_COLUMNS)
        .where(
            _log.partition == sa.bindparam("partition"),
            _log.position > sa.bindparam("after"),
            _log.stream.is_not(None),
        )
        .order_by(_log.position)
        .limit(sa.bindparam("most", type_=sa.Integer()))
    )
