"""`ports.StreamRecords` on SQLite and on MariaDB: operators see what is stored, and who may write it."""

from domain.commands import Reminder
from domain.ports import Snapshot, Taken
from storage.stream_records import SqlStreamRecords
from tests.contract.conftest import InSql
from tests.support.log_rows import AT, conversation, posted, turn


async def test_a_stream_is_shown_as_it_is_stored_with_the_last_takeover_of_its_partition(
    sql_store: InSql, partition: int
) -> None:
    log, records = sql_store.log(), SqlStreamRecords(sql_store.database())
    stream, other = conversation(partition), conversation(partition)
    await log.take([partition], "host-0/first", AT)
    taken = (await log.take([partition], "host-1/second", AT + 5))[partition]
    await log.take([partition + 1], "host-2/elsewhere", AT)

    reminders = [Reminder(stream, name, AT + due_s * 1000, 1, "expire") for name, due_s in (("late", 60), ("soon", 30))]
    said = turn(
        *(posted(stream, n, at=AT + n) for n in (1, 2, 3)),
        snapshots=[Snapshot(stream, 2, 1, b"{}")],
        reminders=reminders,
    )
    done = await log.commit([said, turn(posted(other, 1))], {partition: taken.position})
    await log.save_cursors({partition: taken.position + 2})

    record = await records.record(stream)
    assert (record.head, record.at, record.snapshot_offset) == (3, AT + 3, 2)
    assert (record.position, record.cursor) == (done.heads[partition], taken.position + 2)
    assert record.taken == Taken("host-1/second", taken.position, AT + 5)
    assert [reminder.name for reminder in record.reminders] == ["soon", "late"]
    assert record.reminders[1].due_at == reminders[0].due_at


async def test_of_a_stream_that_does_not_exist_only_the_partition_is_known(sql_store: InSql, partition: int) -> None:
    records = SqlStreamRecords(sql_store.database())
    stream = conversation(partition)
    record = await records.record(stream)
    assert (record.head, record.at, record.snapshot_offset, record.taken) == (0, None, 0, None)

    await sql_store.log().take([partition], "host-0/first", AT)
    record = await records.record(stream)
    assert record.head == 0
    assert record.taken is not None
