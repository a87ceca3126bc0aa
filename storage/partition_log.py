"""The partition log in SQL: the primary key (partition, position) is the fence, and there is no other lock.

A commit is one transaction of a handful of multi-row statements. When a key clashes nothing has been written; then what
is committed is compared with what was wanted, the turns that others have overtaken are cut out, and the rest goes again.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from domain.chat import CHAT
from domain.commands import Reminder
from domain.orders import ORDERS
from domain.ports import Committed, Entry, Loaded, Snapshot, StoreUnavailable, Takeover, Turn
from storage import chat, claims, log_queries, orders, takeover, uploads
from storage import tables as t
from storage.commit_plan import CommitPlan, Overtaken, plan_commit
from storage.engine import Contended, Database
from storage.log_writer import Clash, LogWriter
from storage.reminders import delete_reminders, due_reminders, reminder_rows
from storage.statements import Script, later, play, run
from storage.transactions import in_transaction

_ATTEMPTS: Final = 8
_REMEMBERED: Final = 65_536
_READ_AT_ONCE: Final = 200


class SqlPartitionLog:
    """`domain.ports.PartitionLog` on SQLite and MariaDB/MySQL. One connection writes, a pool reads."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._sql = database.sql
        self._writer = LogWriter(database)
        # What is known to be in the log, because it was written or read here. Rows are never deleted, so this stays
        # true; it saves asking whether a stream's or a partition's next row leaves a hole.
        self._positions: dict[int, int] = {}
        self._offsets: OrderedDict[str, int] = OrderedDict()

    async def close(self) -> None:
        """Give the writing connection back."""
        await self._writer.close()

    # --- owning ---------------------------------------------------------------------------------------------------

    async def take(self, partitions: Sequence[int], owner: str, at: int) -> dict[int, Takeover]:
        taken = await takeover.take(self._db, partitions, owner, at) if partitions else {}
        self._positions.update((partition, found.position) for partition, found in taken.items())
        return taken

    async def writer(self) -> int:
        return self._writer.number

    async def end_writers(self, numbers: Sequence[int]) -> None:
        await takeover.end_connections(self._db, numbers, self._writer.number)

    # --- committing -----------------------------------------------------------------------------------------------

    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        fenced: set[int] = set()
        stale: set[str] = set()
        trouble: Exception | None = None
        for _ in range(_ATTEMPTS):
            plan = plan_commit(turns, heads, fenced, stale)
            fenced, stale = plan.fenced, plan.stale
            if plan.turns:
                try:
                    await self._transact(plan)
                except Overtaken as error:
                    fenced, stale = fenced | error.fenced, stale | error.stale
                    continue
                except Clash as error:
                    moved = await self._compare(plan)
                    fenced, stale = fenced | moved.fenced, stale | moved.stale
                    trouble = error
                    continue
                except Contended as error:
                    trouble = error
                    continue
                self._remember(plan)
            return Committed(plan.heads, frozenset(fenced), frozenset(stale))
        raise StoreUnavailable(f"the transaction failed {_ATTEMPTS} times; nothing was changed") from trouble

    async def _transact(self, plan: CommitPlan) -> None:
        """The plan as one transaction: all of it or nothing, and which of the two is in the exception."""
        doubts = self._doubts(plan)
        conversations = chat.conversation_changes(plan.entries)
        states = [(s.stream, s.offset, s.schema, s.newest_id_ms, s.body) for s in plan.snapshots]
        steps = [
            (self._sql.insert(t.partition_log), plan.rows),
            *chat.rows(self._sql, conversations),
            *uploads.rows(self._sql, plan.entries),
            *orders.rows(self._sql, orders.order_changes(plan.entries, plan.snapshots)),
            *reminder_rows(self._sql, plan),
            (self._sql.upsert(t.stream_state, _state_upsert), states),
        ]

        def script() -> Script[None]:
            yield from self._check_no_hole(plan, *doubts)
            yield from claims.keep_and_release(self._sql, plan)
            yield from orders.check_openings(self._sql, plan)
            yield from steps
            yield from chat.write_messages(self._sql, conversations)

        async with self._db.turn():
            await self._writer.transact(script)

    def _doubts(self, plan: CommitPlan) -> tuple[list[int], list[str]]:
        """Partitions and streams of which it is not known that the rows follow on without a hole."""
        return (
            [p for p, base in plan.bases.items() if self._positions.get(p) != base],
            [s for s, first in plan.firsts.items() if self._offsets.get(s, 0) != first - 1],
        )

    def _check_no_hole(self, plan: CommitPlan, doubtful: list[int], strangers: list[str]) -> Script[None]:
        ends = yield from log_queries.ends(self._sql, strangers)
        stale = {s for s in strangers if ends[s] != plan.firsts[s] - 1}
        if stale:
            # Whoever has moved the streams on may well own the partition: then that is what the caller must hear.
            doubtful = list(plan.bases)
        heads = yield from log_queries.heads(self._sql, doubtful)
        fenced = {p for p in doubtful if heads[p] != plan.bases[p]}
        if fenced or stale:
            raise Overtaken(fenced, {s for s in stale if plan.partition_of[s] not in fenced})

    async def _compare(self, plan: CommitPlan) -> Overtaken:
        """After a clash of keys: which partitions and streams others have moved on."""
        async with self._db.read() as connection:
            heads = await play(connection, log_queries.heads(self._sql, list(plan.bases)))
            fenced = {p for p, base in plan.bases.items() if heads[p] != base}
            ends = await play(connection, log_queries.ends(self._sql, list(plan.firsts)))
            stale = {s for s, first in plan.firsts.items() if ends[s] >= first}
            keys = [(entry.stream, entry.command_id) for entry in plan.entries if entry.command_id is not None]
            landed = await log_queries.first_rows(connection, self._sql, keys)
        stale |= {stream for stream, _ in landed}
        return Overtaken(fenced, {s for s in stale if plan.partition_of[s] not in fenced})

    def _remember(self, plan: CommitPlan) -> None:
        self._positions.update(plan.heads)
        for stream, last in plan.lasts.items():
            self._know(stream, last)

    def _know(self, stream: str, offset: int) -> None:
        self._offsets[stream] = offset
        self._offsets.move_to_end(stream)
        if len(self._offsets) > _REMEMBERED:
            self._offsets.popitem(last=False)

    # --- reading --------------------------------------------------------------------------------------------------

    async def load(self, streams: Sequence[str], schemas: Mapping[str, int]) -> dict[str, Loaded]:
        wanted = list(dict.fromkeys(streams))
        async with self._db.read() as connection:
            # The snapshot first: what is committed in between only makes the tail longer.
            snapshots = await log_queries.snapshots(connection, self._sql, wanted)
            loaded = {
                stream: Loaded(_usable(snapshots.get(stream), schemas.get(stream.partition(":")[0])), [])
                for stream in wanted
            }
            after = [(s, found.snapshot.offset if found.snapshot else 0) for s, found in loaded.items()]
            for entry in await log_queries.tails(connection, self._sql, after):
                loaded[entry.stream].tail.append(entry)
        for stream, found in loaded.items():
            if found.tail:
                self._know(stream, found.tail[-1].offset)
            elif found.snapshot is not None:
                self._know(stream, found.snapshot.offset)
        return loaded

    async def heads(self, partitions: Sequence[int]) -> dict[int, int]:
        async with self._db.read() as connection:
            return await play(connection, log_queries.heads(self._sql, list(partitions)))

    async def ends(self, streams: Sequence[str]) -> dict[str, int]:
        async with self._db.read() as connection:
            found = await play(connection, log_queries.ends(self._sql, list(dict.fromkeys(streams))))
        return {stream: offset for stream, offset in found.items() if offset}

    async def find_commands(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[Entry]]:
        async with self._db.read() as connection:
            return await log_queries.commands(connection, self._sql, list(dict.fromkeys(keys)))

    async def read_partition(self, partition: int, after: int, limit: int) -> list[tuple[int, Entry]]:
        async with self._db.read() as connection:
            return await log_queries.partition_rows(connection, self._sql, partition, after, limit)

    async def save_cursors(self, cursors: Mapping[int, int]) -> None:
        if cursors:
            async with self._db.write() as connection:
                await run(connection, self._sql.upsert(t.relay_cursor, _cursor_upsert), sorted(cursors.items()))

    async def reminders(self, partitions: Sequence[int], before_ms: int, limit: int) -> list[Reminder]:
        async with self._db.read() as connection:
            return await due_reminders(connection, self._sql, partitions, before_ms, limit)

    async def drop_reminders(self, reminders: Sequence[Reminder]) -> None:
        if reminders:
            await in_transaction(self._db, lambda connection: delete_reminders(connection, self._sql, reminders))

    async def reserve(self, holder: str, keys: Sequence[str], now_ms: int, until_ms: int) -> str | None:
        return await claims.reserve(self._db, holder, keys, now_ms, until_ms) if keys else None


class SqlStreamReader:
    """`domain.ports.StreamReader` on SQLite and MariaDB/MySQL."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def read(self, stream: str, after: int, limit: int, max_bytes: int = 262_144) -> list[tuple[int, bytes]]:
        items: list[tuple[int, bytes]] = []
        size = 0
        async with self._db.read() as connection:
            while len(items) < limit:
                wanted = min(limit - len(items), _READ_AT_ONCE)
                rows = await log_queries.published(connection, self._db.sql, stream, after, wanted)
                for offset, body in rows:
                    item = (offset, publication(stream, body))
                    size += len(item[1])
                    if items and size > max_bytes:
                        return items
                    items.append(item)
                    after = offset
                if len(rows) < wanted:
                    break
        return items

    async def read_back(self, stream: str, before: int, limit: int) -> list[tuple[int, bytes]]:
        async with self._db.read() as connection:
            rows = await log_queries.published_back(connection, self._db.sql, stream, before, limit)
        return [(offset, publication(stream, body)) for offset, body in rows]


def publication(stream: str, body: bytes) -> bytes:
    """What the members of a stream see of a stored event."""
    return ORDERS.publication(body) if stream.startswith(orders.ORDER) else CHAT.publication(body)


def _usable(snapshot: Snapshot | None, schema: int | None) -> Snapshot | None:
    return snapshot if snapshot is not None and snapshot.schema == schema else None


def _cursor_upsert(new: Any, old: Any) -> list[tuple[str, Any]]:
    return [later(new, old, "position")]


def _state_upsert(new: Any, old: Any) -> list[tuple[str, Any]]:
    newer = new.offset >= old.offset
    kept = ("schema", "newest_id_ms", "body", "offset")
    return [(name, sa.case((newer, new[name]), else_=old[name])) for name in kept]
