"""The SQL log from close by: small mistakes that no caller would have noticed at once, and what would have come of each."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from domain.commands import Reminder
from domain.ports import Snapshot, StoreUnavailable, Turn
from storage.engine import Contended, Database, DatabaseSettings
from storage.partition_log import SqlPartitionLog, SqlStreamReader
from tests.contract.conftest import InSql, Store
from tests.support.log_rows import AT, conversation, new_id, order_row, order_state, posted, turn

SCHEMAS = {"conversation": 1, "order": 1}


class Seen:
    """A log on SQLite, and the statements that its writing connection has run since `begin`."""

    def __init__(self, database: Database) -> None:
        self.log = SqlPartitionLog(database)
        self.statements: list[str] = []

    async def begin(self) -> None:
        assert self.log._writer._connection is not None
        driver = (await self.log._writer._connection.get_raw_connection()).driver_connection
        await driver.set_trace_callback(self.statements.append)  # type: ignore[union-attr]
        self.statements.clear()

    @property
    def questions(self) -> list[str]:
        return [statement for statement in self.statements if statement.startswith("SELECT")]


@pytest.fixture
async def seen(sqlite_url: str) -> AsyncIterator[Seen]:
    database = Database(sqlite_url)
    made = Seen(database)
    yield made
    await made.log.close()
    await database.close()


@pytest.fixture
async def busy(sqlite_url: str) -> AsyncIterator[SqlPartitionLog]:
    """A log whose database somebody else is writing to, for as long as the test takes."""
    database, other = Database(sqlite_url, DatabaseSettings(busy_timeout_s=0.05)), Database(sqlite_url)
    log = SqlPartitionLog(database)
    async with other.write():
        with pytest.raises(StoreUnavailable):
            await log.take([1], "host", AT)
        yield log
    await log.close()
    await database.close()
    await other.close()


async def owned(log: SqlPartitionLog, *partitions: int) -> dict[int, int]:
    return {p: taken.position for p, taken in (await log.take(partitions, "host", AT)).items()}


# --- committing --------------------------------------------------------------------------------------------------


async def test_an_owner_asks_nothing_about_what_it_has_written_or_read_itself(seen: Seen, partition: int) -> None:
    """Two questions before every flush: a third of the commits that a host can make in a second."""
    log = seen.log
    heads = await owned(log, partition)
    first, second, third = (conversation(partition) for _ in range(3))
    heads.update((await log.commit([turn(posted(first, 1))], heads)).heads)
    await seen.begin()
    for done in (posted(first, 2), posted(second, 1), posted(second, 2), posted(third, 1)):
        heads.update((await log.commit([turn(done)], heads)).heads)
    assert seen.questions == []
    assert any(statement.startswith("INSERT") for statement in seen.statements)


async def test_an_owner_asks_nothing_about_a_partition_that_it_has_just_taken(seen: Seen, partition: int) -> None:
    log = seen.log
    heads = await owned(log, partition)
    await log.commit([turn(posted(conversation(partition), 1))], heads)
    await seen.begin()
    heads = await owned(log, partition)
    await log.commit([turn(posted(conversation(partition), 1))], heads)
    assert seen.questions == []


@pytest.mark.parametrize("stored", ["rows", "a snapshot", "a snapshot and rows"])
async def test_an_owner_asks_nothing_about_a_stream_that_it_has_loaded(
    seen: Seen, sqlite_url: str, partition: int, stored: str
) -> None:
    """After a takeover every first message of a conversation would cost a question."""
    stream, former = conversation(partition), SqlPartitionLog(Database(sqlite_url))
    snapshots = {"rows": [], "a snapshot": [3], "a snapshot and rows": [1]}[stored]
    rows = [posted(stream, n) for n in (1, 2, 3)]
    await former.commit(
        [turn(*rows, snapshots=[Snapshot(stream, n, 1, b"{}") for n in snapshots])], await owned(former, partition)
    )
    await former.close()
    await former._db.close()
    heads = await owned(seen.log, partition)
    heads.update((await seen.log.commit([turn(posted(conversation(partition), 1))], heads)).heads)
    await seen.log.load([stream], SCHEMAS)
    await seen.begin()
    await seen.log.commit([turn(posted(stream, 4))], heads)
    assert seen.questions == []


@pytest.mark.parametrize("known", ["the partition", "the stream"])
async def test_what_is_doubtful_is_asked_about_even_where_the_rest_is_known(
    sql_store: InSql, partition: int, known: str
) -> None:
    """A flush that leaves a hole in one and fits the other would be taken whole: readers wait for the hole for ever."""
    log, other = sql_store.log(), sql_store.log()
    heads = await owned(log, partition)
    stream, fine = conversation(partition), conversation(partition + 1)
    heads.update((await log.commit([turn(posted(stream, 1))], heads)).heads)
    heads.update(await owned(log, partition + 1))
    if known == "the partition":
        done = await log.commit([turn(posted(stream, 3)), turn(posted(fine, 1))], heads)
        assert (done.fenced, done.stale) == (frozenset(), {stream})
    else:
        done = await log.commit(
            [turn(posted(stream, 2)), turn(posted(fine, 1))], heads | {partition: heads[partition] + 5}
        )
        assert (done.fenced, done.stale) == ({partition}, frozenset())
    assert done.heads == {partition + 1: heads[partition + 1] + 1}
    assert len((await other.load([stream], SCHEMAS))[stream].tail) == 1


async def test_a_stream_that_was_never_read_here_goes_on_where_it_ends(sql_store: InSql, partition: int) -> None:
    """Doubt is only a question: where the answer fits the flush is taken, else every takeover would refuse once a stream."""
    log, former = sql_store.log(), sql_store.log()
    stream, other = conversation(partition), conversation(partition)
    heads = await owned(former, partition)
    await former.commit([turn(posted(stream, 1), posted(stream, 2))], heads)
    heads = await owned(log, partition)
    done = await log.commit([turn(posted(stream, 3)), turn(posted(other, 1))], heads)
    assert (done.fenced, done.stale) == (frozenset(), frozenset())
    assert done.heads == {partition: heads[partition] + 2}


async def test_of_65536_streams_it_is_known_how_far_they_go_and_those_used_last_stay(seen: Seen) -> None:
    """Without a bound a host that lives for months knows every stream there ever was."""
    log = seen.log
    for n in range(65_536):
        log._know(f"conversation:{n}", 1)
    assert len(log._offsets) == 65_536
    log._know("conversation:0", 2)
    log._know("conversation:new", 1)
    assert len(log._offsets) == 65_536
    assert log._offsets["conversation:0"] == 2
    assert "conversation:1" not in log._offsets
    assert "conversation:2" in log._offsets


async def test_a_flush_waits_for_its_turn_at_sqlite(sqlite_url: str, seen: Seen, partition: int) -> None:
    """Without the turnstile two hosts sleep in SQLite's busy handler, up to 100 ms a time, instead of writing in turn."""
    heads = await owned(seen.log, partition)
    other = Database(sqlite_url)
    async with other.turn():
        committing = asyncio.create_task(seen.log.commit([turn(posted(conversation(partition), 1))], heads))
        await asyncio.sleep(0.15)
        assert not committing.done()
    assert not (await committing).fenced
    await other.close()


async def test_a_flush_that_fails_without_a_rival_is_given_up_and_says_why(
    sqlite_url: str, seen: Seen, partition: int
) -> None:
    """A clash that comparing does not explain came back for ever: one damaged row held up a whole host."""
    database = Database(sqlite_url)
    heads = await owned(seen.log, partition)
    cursed, fine = conversation(partition), conversation(partition)
    async with database.write() as connection:
        await connection.exec_driver_sql(
            f"CREATE TRIGGER curse BEFORE INSERT ON partition_log WHEN NEW.stream = '{cursed}'"
            " BEGIN SELECT RAISE(ABORT, 'cursed'); END"
        )
    try:
        async with asyncio.timeout(5):
            with pytest.raises(StoreUnavailable, match="nothing was changed") as caught:
                await seen.log.commit([turn(posted(cursed, 1)), turn(posted(fine, 1))], heads)
        assert "cursed" in str(caught.value.__cause__)
    finally:
        async with database.write() as connection:
            await connection.exec_driver_sql("DROP TRIGGER curse")
        await database.close()
    assert not (await seen.log.commit([turn(posted(fine, 1))], heads)).stale


async def test_a_deadlock_is_tried_again_and_endless_ones_are_given_up(mariadb_url: str, partition: int) -> None:
    """Deadlocks are the database's way to say "again": the first must not reach a caller, an endless row of them must."""
    database = Database(mariadb_url)
    log = SqlPartitionLog(database)
    heads = await owned(log, partition)
    stream = conversation(partition)
    async with database.write() as connection:
        await connection.exec_driver_sql("CREATE TABLE tries (n INTEGER AUTO_INCREMENT PRIMARY KEY) ENGINE=Aria")
        await connection.exec_driver_sql(
            "CREATE TRIGGER locked BEFORE INSERT ON partition_log FOR EACH ROW IF NEW.stream = "
            f"'{stream}' AND (SELECT COUNT(*) FROM tries) <> 3 THEN INSERT INTO tries VALUES (NULL);"
            " SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'deadlock'; END IF"
        )
    try:
        async with asyncio.timeout(20):
            done = await log.commit([turn(posted(stream, 1))], heads)
            assert done.heads == {partition: heads[partition] + 1}
            async with database.write() as connection:
                await connection.exec_driver_sql("INSERT INTO tries VALUES (NULL)")
            with pytest.raises(StoreUnavailable, match="nothing was changed") as caught:
                await log.commit([turn(posted(stream, 2))], done.heads)
        assert isinstance(caught.value.__cause__, Contended)
        async with database.read() as connection:
            assert 4 < await connection.scalar(sa.text("SELECT COUNT(*) FROM tries")) < 104
    finally:
        async with database.write() as connection:
            await connection.exec_driver_sql("DROP TRIGGER locked")
            await connection.exec_driver_sql("DROP TABLE tries")
        await log.close()
        await database.close()


async def test_what_changes_nothing_waits_for_nobody(busy: SqlPartitionLog, partition: int) -> None:
    """A host with nothing to say would hang behind another one's long transaction, and call the store away."""
    assert await busy.take([], "host", AT) == {}
    assert await busy.reserve("order:x", [], 1, 2) is None
    await busy.save_cursors({})
    await busy.drop_reminders([])
    nothing = await busy.commit([], {})
    assert (nothing.heads, nothing.fenced, nothing.stale) == ({}, frozenset(), frozenset())
    holed = await busy.commit([turn(posted(stream := conversation(partition), 1), posted(stream, 3))], {partition: 1})
    assert (holed.heads, holed.stale) == ({}, {stream})
    assert await busy.writer() == 0


async def test_cursors_go_in_the_order_of_their_keys(sqlite_url: str, partition: int) -> None:
    """Two hosts that lock the same rows in different orders wait for each other until the database ends one of them."""
    database = Database(sqlite_url)
    given: list[object] = []
    event.listen(
        database._writers.sync_engine,
        "before_cursor_execute",
        lambda _c, _k, _s, parameters, *_: given.append(parameters),
    )
    await SqlPartitionLog(database).save_cursors({partition + 2: 1, partition: 2, partition + 1: 3})
    assert given[-1] == [(partition, 2), (partition + 1, 3), (partition + 2, 1)]
    await database.close()


async def test_after_a_clash_the_same_flush_goes_on_without_what_others_have_moved(
    sql_store: InSql, partition: int
) -> None:
    """A flush that meets a rival at three places at once: each is named, and everything else is in the log."""
    old, new = sql_store.log(), sql_store.log()
    heads = await owned(old, partition, partition + 1, partition + 2)
    lost, ahead, twice, fine = (conversation(p) for p in (partition, partition + 1, partition + 1, partition + 2))
    same = new_id()
    heads.update((await old.commit([turn(posted(ahead, 1)), turn(posted(twice, 1))], heads)).heads)
    await new.take([partition], "new", AT)
    # Somebody who does not know the rules has gone on with the old one's own partition, and these are its next rows.
    await new.load([ahead, twice], SCHEMAS)
    theirs = await new.commit([turn(posted(ahead, 2)), turn(posted(twice, 2, message_id=same))], heads)
    assert not (theirs.fenced | theirs.stale)

    done = await old.commit(
        [turn(posted(lost, 1)), turn(posted(ahead, 2)), turn(posted(twice, 2, message_id=same)), turn(posted(fine, 1))],
        heads | theirs.heads,
    )

    assert (done.fenced, done.stale) == ({partition}, {ahead, twice})
    assert done.heads == {partition + 2: heads[partition + 2] + 1}
    assert [len(found.tail) for found in (await new.load([lost, ahead, twice, fine], SCHEMAS)).values()] == [0, 2, 2, 1]


async def test_what_a_new_owner_has_written_on_is_fenced_and_not_stale_besides(
    sql_store: InSql, partition: int
) -> None:
    """Whoever is told "stale" loads the stream anew and goes on; in a partition that is lost there is nothing to go on with."""
    old, new = sql_store.log(), sql_store.log()
    heads = await owned(old, partition, partition + 1)
    stream, fine = conversation(partition), conversation(partition + 1)
    heads.update((await old.commit([turn(posted(stream, 1))], heads)).heads)
    theirs = await owned(new, partition)
    await new.load([stream], SCHEMAS)
    await new.commit([turn(posted(stream, 2))], theirs)

    done = await old.commit([turn(posted(stream, 2)), turn(posted(fine, 1))], heads)

    assert (done.fenced, done.stale) == ({partition}, frozenset())
    assert done.heads == {partition + 1: heads[partition + 1] + 1}


# --- snapshots and loading ---------------------------------------------------------------------------------------


async def test_a_snapshot_at_the_same_place_replaces_the_one_of_an_older_release(store: Store, partition: int) -> None:
    """After an upgrade the old one is of no use; kept, it would be ignored at every load for as long as nothing happens."""
    log = store.log()
    heads = await log.take([partition], "host", AT)
    stream = conversation(partition)
    old, new = Snapshot(stream, 1, 1, b"old", 5), Snapshot(stream, 1, 2, b"new", 7)
    await log.commit([turn(posted(stream, 1), snapshots=[old])], {partition: heads[partition].position})
    await log.commit([Turn(partition, [], [new])], {})
    assert (await log.load([stream], {"conversation": 2}))[stream].snapshot == new


async def test_a_newer_snapshot_replaces_all_of_the_older(store: Store, partition: int) -> None:
    log = store.log()
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    stream = conversation(partition)
    first, second = Snapshot(stream, 1, 1, b"first", 5), Snapshot(stream, 2, 1, b"second", 9)
    heads.update((await log.commit([turn(posted(stream, 1), snapshots=[first])], heads)).heads)
    await log.commit([turn(posted(stream, 2), snapshots=[second])], heads)
    assert (await log.load([stream], SCHEMAS))[stream].snapshot == second


async def test_a_stream_asked_for_twice_is_loaded_once(store: Store, partition: int) -> None:
    """Its tail would be doubled, and the activation would evolve by every event twice."""
    log = store.log()
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    stream = conversation(partition)
    rows = [posted(stream, 1), posted(stream, 2)]
    await log.commit([turn(*rows)], heads)
    loaded = await store.log().load([stream, stream, conversation(partition), stream], SCHEMAS)
    assert loaded[stream].tail == rows
    assert len(loaded) == 2


async def test_each_kind_has_its_own_schema(store: Store, partition: int) -> None:
    """An order's snapshot that is taken for one of a conversation's release is decoded as something else, or never used."""
    log = store.log()
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    order, chat = f"order:{new_id(partition)}", conversation(partition)
    first = turn(order_row(order, 1, "order.created"), snapshots=[order_state(order, 1, "draft", "u1")])
    second = turn(posted(chat, 1), snapshots=[Snapshot(chat, 1, 2, b"chat")])
    await log.commit([first, second], heads)
    for schemas, wanted in (({"order": 1, "conversation": 2}, True), ({"order": 2, "conversation": 1}, False)):
        loaded = await store.log().load([order, chat], schemas)
        assert [found.snapshot is not None for found in loaded.values()] == [wanted, wanted]
        assert [len(found.tail) for found in loaded.values()] == [not wanted, not wanted]


# --- reading streams ---------------------------------------------------------------------------------------------


@pytest.fixture
async def pages(sqlite_url: str) -> AsyncIterator[tuple[SqlStreamReader, list[int]]]:
    """A reader, and how many rows it has asked for each time (the statement ends with LIMIT ? OFFSET ?)."""
    database = Database(sqlite_url)
    asked: list[int] = []
    event.listen(
        database._readers.sync_engine, "before_cursor_execute", lambda _c, _k, _s, values, *_: asked.append(values[-2])
    )
    yield SqlStreamReader(database), asked
    await database.close()


async def filled(store: InSql, partition: int, rows: int, letters: int) -> str:
    log = store.log()
    stream = conversation(partition)
    await log.commit(
        [turn(*(posted(stream, n, text="x" * letters) for n in range(1, rows + 1)))], await owned(log, partition)
    )
    return stream


@pytest.fixture
async def sqlite(sqlite_url: str) -> AsyncIterator[InSql]:
    made = InSql(sqlite_url)
    yield made
    await made.close()


async def test_a_page_may_be_as_large_as_was_said_and_not_a_byte_larger(sqlite: InSql, partition: int) -> None:
    stream = await filled(sqlite, partition, 10, 500)
    three = sum(len(body) for _, body in await sqlite.reader().read(stream, 0, 3))
    assert len(await sqlite.reader().read(stream, 0, 10, three)) == 3
    assert len(await sqlite.reader().read(stream, 0, 10, three - 1)) == 2


async def test_a_page_without_a_limit_in_bytes_has_one_all_the_same(sqlite: InSql, partition: int) -> None:
    """A recovery page of megabytes is a frame that no session may be sent."""
    stream = await filled(sqlite, partition, 100, 4_000)
    page = await sqlite.reader().read(stream, 0, 1_000)
    assert 250_000 < sum(len(body) for _, body in page) <= 262_144


async def test_a_long_page_is_read_in_pieces_none_of_them_longer_than_what_is_left(
    sqlite: InSql, pages: tuple[SqlStreamReader, list[int]], partition: int
) -> None:
    """All rows of a page at once are far more than its bytes allow, and one row more than asked for is a double later."""
    stream = await filled(sqlite, partition, 450, 1)
    reader, asked = pages
    assert [offset for offset, _ in await reader.read(stream, 0, 300)] == list(range(1, 301))
    assert asked == [200, 100]
    asked.clear()
    assert len(await reader.read(stream, 0, 100_000)) == 450
    assert asked == [200, 200, 200]


async def test_what_people_write_is_shown_as_it_is_stored(sqlite: InSql, partition: int) -> None:
    """Orders keep some fields to themselves; a conversation that was treated like one would lose fields of that name."""
    log = sqlite.log()
    stream, order = conversation(partition), f"order:{new_id(partition)}"
    body = b'{ "type": "message.posted", "hash": "of a file" }'
    said = msgspec.structs.replace(posted(stream, 1), body=body)
    kept = b'{ "type": "message.posted", "hash": "of a file", "private": true }'
    done = msgspec.structs.replace(order_row(order, 1, "order.created"), body=kept)
    await log.commit(
        [turn(said), turn(done, snapshots=[order_state(order, 1, "draft", "u1")])], await owned(log, partition)
    )
    assert await sqlite.reader().read(stream, 0, 5) == [(1, body)]
    assert await sqlite.reader().read(order, 0, 5) == [(1, b'{"type":"message.posted"}')]


# --- reminders ---------------------------------------------------------------------------------------------------


async def test_dropping_reminders_leaves_the_others(store: Store, partition: int) -> None:
    log = store.log()
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    stream = f"order:{new_id(partition)}"
    first, second = (Reminder(stream, name, AT + 5, 1, "expire", b"{}") for name in ("first", "second"))
    row = order_row(stream, 1, "order.created")
    created = turn(row, snapshots=[order_state(stream, 1, "draft", "u1")], reminders=[first, second])
    await log.commit([created], heads)
    await log.drop_reminders([first])
    assert await log.reminders([partition], AT + 10, 10) == [second]
