"""What the log says when its database is lost, slow or busy: surely not committed, or unknown, and never a guess."""

import asyncio
import time

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from domain.ports import OutcomeUnknown, StoreUnavailable
from storage.engine import Database, DatabaseSettings
from storage.partition_log import SqlPartitionLog
from tests.contract.conftest import InSql
from tests.support.log_rows import AT, conversation, posted, turn

SCHEMAS = {"conversation": 1}


@pytest.fixture
async def mariadb(mariadb_url: str):
    made = InSql(mariadb_url)
    yield made
    await made.close()


async def kill(store: InSql, connection_id: int | None) -> None:
    async with store.database().read() as connection:
        await connection.execute(sa.text(f"KILL {connection_id}"))


async def owned(log: SqlPartitionLog, partition: int) -> dict[int, int]:
    return {partition: (await log.take([partition], "host", AT))[partition].position}


async def test_a_connection_that_died_while_idle_is_replaced_without_a_word(mariadb: InSql, partition: int) -> None:
    log = mariadb.log()
    heads = await owned(log, partition)
    stream = conversation(partition)
    heads.update((await log.commit([turn(posted(stream, 1))], heads)).heads)
    await kill(mariadb, await log.writer())
    done = await log.commit([turn(posted(stream, 2))], heads)
    assert done.heads == {partition: heads[partition] + 1}
    assert not done.stale


async def test_a_connection_that_dies_while_committing_leaves_the_outcome_unknown(
    mariadb: InSql, partition: int
) -> None:
    log = mariadb.log()
    heads = await owned(log, partition)
    stream = conversation(partition)
    heads.update((await log.commit([turn(posted(conversation(partition), 1))], heads)).heads)
    number = await log.writer()
    async with mariadb.database().read() as blocker:
        # Inserts go through, COMMIT waits: the moment in which nobody can know.
        await blocker.execute(sa.text("BACKUP STAGE START"))
        await blocker.execute(sa.text("BACKUP STAGE BLOCK_COMMIT"))
        try:
            committing = asyncio.create_task(log.commit([turn(posted(stream, 1))], heads))
            running = sa.text(f"SELECT info FROM information_schema.processlist WHERE id = {number}")
            while (await blocker.scalar(running)) != "COMMIT":
                assert not committing.done()
                await asyncio.sleep(0.01)
            await kill(mariadb, number)
            with pytest.raises(OutcomeUnknown):
                await committing
        finally:
            await blocker.execute(sa.text("BACKUP STAGE END"))
    # Taking the partition anew settles it, either way.
    heads = await owned(log, partition)
    tail = (await log.load([stream], SCHEMAS))[stream].tail
    done = await log.commit([turn(posted(stream, len(tail) + 1))], heads)
    assert done.heads == {partition: heads[partition] + 1}


async def test_an_owner_that_holds_a_transaction_open_delays_a_takeover_no_longer_than_the_lock_wait(
    mariadb: InSql, partition: int
) -> None:
    zombie = await mariadb.database().writer()
    database = Database(mariadb.url, DatabaseSettings(lock_wait_s=1))
    taker = SqlPartitionLog(database)
    await zombie.execute(
        sa.text(
            "INSERT INTO partition_log (`partition`, position, type, actor, at, body)"
            f" VALUES ({partition}, 1, 'takeover', 'zombie', 0, '')"
        )
    )
    number = await zombie.scalar(sa.text("SELECT connection_id()"))
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await taker.take([partition], "host", AT)
    assert time.monotonic() - started < 3
    await kill(mariadb, number)
    assert (await taker.take([partition], "host", AT))[partition].position == 1
    with pytest.raises(OperationalError):
        await zombie.commit()
        await zombie.execute(sa.text("SELECT 1"))
    await zombie.invalidate()
    await zombie.close()
    await database.close()


async def test_a_busy_sqlite_is_unavailable_and_nothing_was_changed(sqlite_url: str, partition: int) -> None:
    other = Database(sqlite_url)
    database = Database(sqlite_url, DatabaseSettings(busy_timeout_s=0.05))
    log = SqlPartitionLog(database)
    heads = await owned(log, partition)
    stream = conversation(partition)
    async with other.write():
        with pytest.raises(StoreUnavailable):
            await log.commit([turn(posted(stream, 1))], heads)
        with pytest.raises(StoreUnavailable):
            await log.take([partition], "host", AT)
        assert (await log.load([stream], SCHEMAS))[stream].tail == []  # readers do not wait for writers
    done = await log.commit([turn(posted(stream, 1))], heads)
    assert not done.fenced
    await log.close()
    await database.close()
    await other.close()


async def test_a_database_that_is_not_there_is_unavailable() -> None:
    database = Database("mysql+asyncmy://nobody:x@127.0.0.1:1/none", DatabaseSettings(connect_timeout_s=1))
    log = SqlPartitionLog(database)
    with pytest.raises(StoreUnavailable):
        await log.commit([turn(posted(conversation(1), 1))], {1: 1})
    with pytest.raises(StoreUnavailable):
        await log.take([1], "host", AT)
    with pytest.raises(StoreUnavailable):
        await log.heads([1])
    await database.close()


async def test_a_cancelled_commit_leaves_no_connection_in_the_middle_of_something(
    sql_store: InSql, partition: int
) -> None:
    log = sql_store.log()
    heads = await owned(log, partition)
    stream = conversation(partition)
    for pause in (0, 0.0005, 0.001, 0.002, 0.004):
        task = asyncio.create_task(log.commit([turn(posted(stream, 1))], heads))
        await asyncio.sleep(pause)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        heads = await owned(log, partition)
        offset = len((await log.load([stream], SCHEMAS))[stream].tail)
        stream = stream if offset == 0 else conversation(partition)
    done = await log.commit([turn(posted(stream, 1))], heads)
    assert done.heads == {partition: heads[partition] + 1}


async def test_connections_are_given_out_first_come_first_served(mariadb_url: str) -> None:
    database = Database(mariadb_url, DatabaseSettings(readers=1, connect_timeout_s=2.0))
    turns: list[str] = []

    async def read(name: str, times: int) -> None:
        for _ in range(times):
            async with database.read() as connection:
                await connection.execute(sa.text("SELECT 1"))
            turns.append(name)

    try:
        greedy = asyncio.create_task(read("greedy", 500))
        while not turns:
            await asyncio.sleep(0)
        before = len(turns)
        await read("patient", 1)
        assert turns.index("patient") - before <= 2
    finally:
        greedy.cancel()
        await asyncio.gather(greedy, return_exceptions=True)
        await database.close()


async def test_whoever_finds_every_connection_taken_is_told_so_in_time(mariadb_url: str) -> None:
    database = Database(mariadb_url, DatabaseSettings(readers=1, connect_timeout_s=0.1))
    try:
        async with database.read():
            with pytest.raises(StoreUnavailable, match="no connection"):
                async with database.read():
                    pass
        async with database.read() as connection:
            assert await connection.scalar(sa.text("SELECT 1")) == 1
    finally:
        await database.close()


@pytest.mark.parametrize("greeting", [b"\x0a", b"\x0a10.11\0\x01", b"\xff\x28", b"", b"\x0a10.11\0" + b"\x01" * 12])
async def test_a_server_that_is_cut_off_in_its_greeting_is_one_that_cannot_be_reached(greeting: bytes) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(len(greeting).to_bytes(3, "little") + b"\0" + greeting)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    database = Database(
        f"mysql+asyncmy://u:p@127.0.0.1:{port}/x?charset=utf8mb4", DatabaseSettings(connect_timeout_s=1)
    )
    try:
        with pytest.raises(StoreUnavailable):
            await database.writer()
        with pytest.raises(StoreUnavailable):
            async with database.read():
                pass
    finally:
        await database.close()
        server.close()
