"""What `ports.PartitionLog` promises of reminders: in memory, on SQLite and on MariaDB."""

import pytest
import sqlalchemy as sa

from domain.commands import Reminder
from domain.ids import PARTITIONS
from domain.ports import PartitionLog
from storage import tables
from storage.reminders import _due
from storage.statements import numbered, run
from tests.contract.conftest import InSql, Store
from tests.support.log_rows import AT, conversation, new_id, posted, turn

LATER = AT + 60_000


async def owned(log: PartitionLog, *partitions: int) -> dict[int, int]:
    return {p: taken.position for p, taken in (await log.take(partitions, "host", AT)).items()}


def reminder(stream: str, name: str = "expire", due_at: int = AT, fence_offset: int = 1) -> Reminder:
    return Reminder(stream, name, due_at, fence_offset, "close", b'{"why":"\xe9\xbe\x8d"}')


async def pending(log: PartitionLog, *partitions: int) -> list[Reminder]:
    return await log.reminders(partitions, LATER, 100)


async def test_a_commit_sets_reminders_that_everybody_reads_earliest_first(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition, partition + 1)
    (a, b), c = sorted(conversation(partition) for _ in range(2)), conversation(partition + 1)
    late, soon = reminder(a, "late", AT + 9), reminder(a, "soon", AT - 9)
    twin_b, twin_a, twin_a2 = reminder(b, "x"), reminder(a, "x"), reminder(a, "y")
    elsewhere = reminder(c, "x", AT - 1)
    await log.commit(
        [
            turn(posted(b, 1), reminders=[twin_b]),
            turn(posted(a, 1), reminders=[late, twin_a2, soon, twin_a]),
            turn(posted(c, 1), reminders=[elsewhere]),
        ],
        heads,
    )
    reader = store.log()
    assert await pending(reader, partition) == [soon, twin_a, twin_a2, twin_b, late]
    assert await pending(reader, partition + 1, partition) == [soon, elsewhere, twin_a, twin_a2, twin_b, late]
    assert await pending(reader, partition + 2) == []
    assert await reader.reminders([partition, partition + 1], LATER, 2) == [soon, elsewhere]
    assert await reader.reminders([partition], AT + 9, 100) == [soon, twin_a, twin_a2, twin_b]  # before, not at
    assert await reader.reminders([], LATER, 100) == []


async def test_reminders_of_all_partitions_come_in_one_order(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, *range(partition, partition + 4))
    streams = [conversation(partition + n % 4) for n in range(24)]
    wanted = [reminder(stream, due_at=AT - 10**9 - n * 7 % 24) for n, stream in enumerate(streams)]
    await log.commit([turn(posted(r.stream, 1), reminders=[r]) for r in wanted], heads)
    found = await log.reminders(range(PARTITIONS), AT - 10**9 + 1, 20)
    assert [r for r in found if r in wanted] == sorted(wanted, key=lambda r: (r.due_at, r.stream, r.name))[:20]
    await log.drop_reminders(wanted)


async def test_one_of_the_same_name_is_replaced_and_one_that_is_done_is_gone(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream, other = conversation(partition), conversation(partition)
    first = [reminder(stream, "a"), reminder(stream, "b"), reminder(other, "a")]
    heads.update((await log.commit([turn(posted(stream, 1), posted(other, 1), reminders=first)], heads)).heads)

    again = reminder(stream, "a", AT - 5, 2)
    moved = turn(posted(stream, 2), reminders=[again], done=[(stream, "b"), (stream, "never set")])
    await log.commit([moved], heads)

    assert await pending(log, partition) == [again, first[2]]


async def test_the_later_turn_of_one_commit_wins(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    kept, gone, back = (conversation(partition) for _ in range(3))
    stored = reminder(back)
    heads.update((await log.commit([turn(posted(back, 1), reminders=[stored])], heads)).heads)
    late, anew = reminder(kept, due_at=AT + 1, fence_offset=2), reminder(back, due_at=AT + 2, fence_offset=3)
    turns = [
        turn(posted(kept, 1), posted(gone, 1), reminders=[reminder(kept), reminder(gone)]),
        turn(posted(back, 2), done=[(back, "expire")]),
        turn(posted(kept, 2), reminders=[late]),
        turn(posted(gone, 2), done=[(gone, "expire")]),
        turn(posted(back, 3), reminders=[anew]),
    ]
    await log.commit(turns, heads)
    assert await pending(log, partition) == [late, anew]


async def test_turns_that_are_left_out_leave_their_reminders_out(store: Store, partition: int) -> None:
    old, new = store.log(), store.log()
    heads = await owned(old, partition, partition + 1)
    lost, moved, good = conversation(partition), conversation(partition + 1), conversation(partition + 1)
    before = [reminder(lost, "before"), reminder(moved, "before")]
    first = [turn(posted(r.stream, 1), reminders=[r]) for r in before]
    heads.update((await old.commit(first, heads)).heads)
    await new.take([partition], "new", AT)

    done = await old.commit(
        [
            turn(posted(lost, 2), reminders=[reminder(lost)], done=[(lost, "before")]),
            turn(posted(moved, 1), reminders=[reminder(moved)], done=[(moved, "before")]),
            turn(posted(good, 1), reminders=[reminder(good)]),
        ],
        heads,
    )

    assert (done.fenced, done.stale) == ({partition}, {moved})
    assert await pending(new, partition) == [before[0]]
    assert set(await pending(new, partition + 1)) == {before[1], reminder(good)}


async def test_reminders_share_the_fate_of_claims_and_rows_that_are_read_first(store: Store, partition: int) -> None:
    """A flush that must read before it writes takes another way on SQLite."""
    log, key = store.log(), f"cal:{new_id()}:0"
    heads = await owned(log, partition)
    stream, thief = conversation(partition), conversation(partition)
    heads.update(
        (await log.commit([turn(posted(stream, 1), claims=(key,), reminders=[reminder(stream)])], heads)).heads
    )
    refused = await log.commit([turn(posted(thief, 1), claims=(key,), reminders=[reminder(thief)])], heads)
    assert refused.stale == {thief}
    assert await pending(log, partition) == [reminder(stream)]
    await log.commit([turn(posted(stream, 2), releases=(key,), done=[(stream, "expire")])], heads)
    assert await pending(log, partition) == []


async def test_only_exactly_what_is_named_is_dropped(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream = conversation(partition)
    over, earlier, caused_anew = reminder(stream, "a"), reminder(stream, "b", AT - 1), reminder(stream, "c", AT, 7)
    stored = [over, reminder(stream, "b"), reminder(stream, "c")]
    await log.commit([turn(posted(stream, 1), reminders=stored)], heads)

    await store.log().drop_reminders([over, earlier, caused_anew, reminder(conversation(partition), "a")])
    await store.log().drop_reminders([over])
    await store.log().drop_reminders([])

    assert await pending(log, partition) == stored[1:]


async def test_many_are_dropped_at_once(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    streams = [conversation(partition) for _ in range(300)]
    wanted = [reminder(stream) for stream in streams]
    await log.commit([turn(posted(r.stream, 1), reminders=[r]) for r in wanted], heads)
    await log.drop_reminders(wanted[1:])
    assert await pending(log, partition) == wanted[:1]


@pytest.mark.parametrize("width", [0, 256])
async def test_the_next_ones_are_read_off_an_index_in_their_order(sql_store: InSql, partition: int, width: int) -> None:
    """However many there are: neither database sorts them, or reads one that is not due."""
    database, far = sql_store.database(), AT + 10**10
    rows = [(partition + n % 4, f"order:{n}", "x", far + n, 1, "expire", b"{}") for n in range(3_000)]
    async with database.write() as connection:
        await run(connection, database.sql.insert(tables.reminder), rows)
    statement = database.sql.prepare(_due, width)
    values = {**numbered(p=range(partition, partition + width)), "before": far + 50, "most": 20}
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    async with database.read() as connection:
        plan = [tuple(row) for row in await connection.exec_driver_sql(explain + statement.text, statement.row(values))]
    async with database.write() as connection:
        await connection.execute(sa.delete(tables.reminder).where(tables.reminder.c.due_at >= far))
    assert len(plan) == 1, plan
    assert "ix_reminder_due_at_stream_name_partition" in str(plan[0])
    assert "sort" not in str(plan[0])


async def test_a_turn_that_would_change_reminders_without_an_event_is_a_mistake(store: Store, partition: int) -> None:
    """Nothing would keep a former owner from doing it."""
    log = store.log()
    heads = await owned(log, partition)
    stream = conversation(partition)
    bare = turn(posted(stream, 1), reminders=[reminder(stream)])
    bare.entries = []
    with pytest.raises(AssertionError, match="events"):
        await log.commit([bare], heads)
    assert await pending(log, partition) == []
