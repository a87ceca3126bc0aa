"""A database that is gone, silent, full or locked: every call ends in time, says whether it changed anything, and works again."""

import asyncio
import importlib.metadata
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import sqlalchemy as sa

from domain.ports import Device, DeviceSession, OutcomeUnknown, StoreUnavailable
from storage.accounts import SqlAccounts
from storage.engine import Database, DatabaseSettings, migrate
from storage.mysql_connection import ASYNCMY
from storage.partition_log import SqlPartitionLog, SqlStreamReader
from storage.read_models import SqlReadModels
from storage.sessions import SqlSessions
from tests.support.keys import FixedKeys
from tests.support.log_rows import AT, conversation, new_id, posted, turn
from tests.support.servers import MariaDb
from tests.support.wire import Wire

QUICK = DatabaseSettings(
    connect_timeout_s=1.0, statement_timeout_s=1.0, commit_timeout_s=1.5, unacknowledged_s=1.0, busy_timeout_s=0.5
)
MOST_S = 4.0
"""Waiting for a pooled connection, connecting, and one statement, with `QUICK`; doubled for a busy machine."""


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDb]:
    with MariaDb("--max-connections=30") as made:
        asyncio.run(migrate(made.url("renoveasy"), "test"))
        yield made


@pytest.fixture
def mariadb(server: MariaDb) -> MariaDb:
    """A server of this module's own, running."""
    if not server.running:
        server.start()
    return server


@pytest.fixture
async def databases() -> AsyncIterator[Callable[..., Database]]:
    made: list[Database] = []

    def open_one(url: str, settings: DatabaseSettings = QUICK) -> Database:
        made.append(Database(url, settings))
        return made[-1]

    yield open_one
    for database in made:
        await database.close()


def through(wire: Wire, url: str, port: int) -> str:
    return url.replace(f":{port}/", f":{wire.port}/")


class Clock:
    def now_ms(self) -> int:
        return AT

    def monotonic_s(self) -> float:
        return time.monotonic()


def every_call(database: Database, log: SqlPartitionLog) -> list[Callable[[], Awaitable[object]]]:
    """One call of each kind that the platform makes, apart from commits."""
    stream, user = conversation(7), new_id()
    sessions = SqlSessions(database)
    return [
        lambda: log.take([7, 8], "host", AT),
        lambda: log.load([stream], {"conversation": 1}),
        lambda: log.heads([7]),
        lambda: log.ends([stream]),
        lambda: log.find_commands([(stream, new_id())]),
        lambda: log.read_partition(7, 0, 10),
        lambda: log.save_cursors({7: 1}),
        lambda: log.reserve("order:x", ["worker:1"], AT, AT + 1),
        lambda: log.reminders([7], AT, 10),
        lambda: SqlStreamReader(database).read(stream, 0, 10),
        lambda: SqlReadModels(database).conversations(user, None, 10),
        lambda: SqlAccounts(database, Clock(), new_id, FixedKeys()).get([user]),
        lambda: SqlAccounts(database, Clock(), new_id, FixedKeys()).find_or_create("+8613800000000", "en"),
        lambda: sessions.get(new_id()),
        lambda: sessions.open(
            DeviceSession(new_id(), user, Device("d", "phone", "ios"), AT, AT), new_id().encode()[:32], AT + 1000
        ),
    ]


async def timed(call: Callable[[], Awaitable[object]]) -> tuple[object, float]:
    began_s = time.monotonic()
    try:
        outcome: object = await call()
    except Exception as error:
        outcome = error
    return outcome, time.monotonic() - began_s


async def owned(log: SqlPartitionLog, partition: int) -> dict[int, int]:
    return {partition: (await log.take([partition], "host", AT))[partition].position}


def test_the_driver_is_the_one_whose_seams_are_known() -> None:
    assert importlib.metadata.version("asyncmy") == ASYNCMY


async def test_every_call_to_a_database_that_is_silent_ends_in_time_and_works_again_when_it_answers(
    mariadb: MariaDb, databases: Callable[..., Database]
) -> None:
    database = databases(mariadb.url("renoveasy"))
    log = SqlPartitionLog(database)
    for call in every_call(database, log):
        await call()
    mariadb.pause()
    try:
        outcomes = await asyncio.gather(*(timed(call) for call in every_call(database, log) * 3))
    finally:
        mariadb.resume()
    assert [error for error, _ in outcomes if not isinstance(error, StoreUnavailable)] == []
    assert max(took_s for _, took_s in outcomes) < MOST_S
    began_s = time.monotonic()
    for call in every_call(database, log):
        await call()
    assert time.monotonic() - began_s < 2.0
    await log.close()


async def test_a_commit_that_the_database_does_not_answer_is_unknown_in_time(
    mariadb: MariaDb, databases: Callable[..., Database]
) -> None:
    log = SqlPartitionLog(databases(mariadb.url("renoveasy")))
    heads, stream = await owned(log, 9), conversation(9)
    blocker = await databases(mariadb.url("renoveasy"), DatabaseSettings()).writer()
    await blocker.exec_driver_sql("BACKUP STAGE START")
    await blocker.exec_driver_sql("BACKUP STAGE BLOCK_COMMIT")
    outcome, took_s = await timed(lambda: log.commit([turn(posted(stream, 1))], heads))
    await blocker.exec_driver_sql("BACKUP STAGE END")
    await blocker.close()
    assert isinstance(outcome, OutcomeUnknown)
    assert took_s < MOST_S
    heads = await owned(log, 9)
    landed = (await log.ends([stream])).get(stream, 0)
    assert (await log.commit([turn(posted(stream, landed + 1))], heads)).heads == {9: heads[9] + 1}
    await log.close()


async def test_a_commit_to_a_silent_database_that_is_refused_is_never_stored(
    mariadb: MariaDb, databases: Callable[..., Database]
) -> None:
    log = SqlPartitionLog(databases(mariadb.url("renoveasy")))
    heads, stream = await owned(log, 10), conversation(10)
    mariadb.pause()
    outcome, took_s = await timed(lambda: log.commit([turn(posted(stream, 1))], heads))
    mariadb.resume()
    assert isinstance(outcome, StoreUnavailable)
    assert took_s < MOST_S
    await asyncio.sleep(0.2)
    assert (await log.ends([stream])).get(stream, 0) == 0
    assert (await log.commit([turn(posted(stream, 1))], heads)).heads == {10: heads[10] + 1}
    await log.close()


async def test_a_database_that_was_killed_is_used_again_as_soon_as_it_runs(
    mariadb: MariaDb, databases: Callable[..., Database]
) -> None:
    database = databases(mariadb.url("renoveasy"))
    log = SqlPartitionLog(database)
    for call in every_call(database, log) * 2:
        await call()
    mariadb.kill()
    outcomes = [await timed(call) for call in every_call(database, log)]
    assert [error for error, _ in outcomes if not isinstance(error, StoreUnavailable)] == []
    assert max(took_s for _, took_s in outcomes) < 0.5
    mariadb.start()
    for call in every_call(database, log):
        await call()
    await log.close()


async def test_connections_that_died_in_the_pool_are_nobodys_trouble(
    mariadb: MariaDb, databases: Callable[..., Database]
) -> None:
    database = databases(mariadb.url("renoveasy"))
    log = SqlPartitionLog(database)
    await asyncio.gather(*(call() for call in every_call(database, log)))
    mariadb.restart()
    await asyncio.sleep(0.05)
    await asyncio.gather(*(call() for call in every_call(database, log)))
    await log.close()


async def test_a_large_statement_to_a_silent_database_holds_nobody_up(
    mariadb: MariaDb, databases: Callable[..., Database]
) -> None:
    """More than the kernel buffers: the connection cannot even be closed politely."""
    database = databases(mariadb.url("renoveasy"))
    began_s = time.monotonic()
    try:
        with pytest.raises(StoreUnavailable):
            async with database.write() as connection:
                mariadb.pause()
                began_s = time.monotonic()
                await connection.exec_driver_sql("SELECT LENGTH(%s)", ("x" * 12_000_000,))
        assert time.monotonic() - began_s < MOST_S
    finally:
        mariadb.resume()


async def test_what_a_lost_connection_held_locked_is_free_when_the_network_is_back(
    mariadb: MariaDb, databases: Callable[..., Database]
) -> None:
    """The server does not know that the client is gone, and would keep its rows locked for as long as it does not."""
    url = mariadb.url("renoveasy")
    patient = DatabaseSettings(
        connect_timeout_s=1, statement_timeout_s=1, commit_timeout_s=1, lock_wait_s=1, idle_transaction_s=600
    )
    async with Wire(mariadb.port) as wire:
        database = databases(through(wire, url, mariadb.port), patient)
        log = SqlPartitionLog(database)
        heads = await owned(log, 11)
        row = (
            "INSERT INTO partition_log (`partition`, position, type, actor, at, body)"
            f" VALUES (11, {heads[11] + 1}, 'takeover', 'x', 0, '')"
        )
        with pytest.raises(StoreUnavailable):
            async with database.write() as connection:
                await connection.execute(sa.text(row))
                wire.cut()
                await connection.execute(sa.text("SELECT 1"))
        wire.heal_for_new_ones()
        open_ones = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_rows_modified > 0"
        assert mariadb.execute(open_ones).strip() == "1"
        began_s = time.monotonic()
        assert (await owned(log, 11))[11] == heads[11] + 1
        assert time.monotonic() - began_s < 0.8
        await log.close()
        await database.close()


async def test_the_server_ends_a_transaction_whose_client_has_vanished(
    mariadb: MariaDb, databases: Callable[..., Database]
) -> None:
    url = mariadb.url("renoveasy")
    vanishing = DatabaseSettings(idle_transaction_s=1)
    async with Wire(mariadb.port) as wire:
        zombie = await databases(through(wire, url, mariadb.port), vanishing).writer()
        log = SqlPartitionLog(databases(url))
        await zombie.execute(
            sa.text(
                "INSERT INTO partition_log (`partition`, position, type, actor, at, body)"
                " VALUES (13, 1, 'takeover', 'zombie', 0, '')"
            )
        )
        wire.cut()
        await asyncio.sleep(1.5)
        began_s = time.monotonic()
        await log.take([13], "host", AT)
        assert time.monotonic() - began_s < 0.8
        await log.close()
        await zombie.invalidate()
        await zombie.close()


async def test_a_server_without_a_free_connection_is_unavailable_at_once_and_works_when_one_is_free(
    mariadb: MariaDb, databases: Callable[..., Database]
) -> None:
    url = mariadb.url("renoveasy")
    taken = []
    greedy = databases(url)
    with pytest.raises(StoreUnavailable):
        while True:
            taken.append(await greedy.writer())
    database = databases(url)
    log = SqlPartitionLog(database)
    outcomes = [await timed(call) for call in every_call(database, log)]
    assert [error for error, _ in outcomes if not isinstance(error, StoreUnavailable)] == []
    assert max(took_s for _, took_s in outcomes) < 1.0
    for connection in taken:
        await connection.close()
    for call in every_call(database, log):
        await call()
    await log.close()


LOCKER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(60)
"""


async def test_a_sqlite_file_that_another_program_has_locked_refuses_writes_in_time_and_reads_go_on(
    sqlite_url: str, databases: Callable[..., Database]
) -> None:
    database = databases(sqlite_url)
    log = SqlPartitionLog(database)
    heads = await owned(log, 900)
    stream = conversation(900)
    path = sqlite_url.partition(":///")[2]
    with subprocess.Popen([sys.executable, "-c", LOCKER, path], stdout=subprocess.PIPE) as locker:
        assert locker.stdout is not None
        await asyncio.to_thread(locker.stdout.readline)
        try:
            writes = [timed(lambda: log.save_cursors({900: 1})) for _ in range(8)]
            writes.append(timed(lambda: log.commit([turn(posted(stream, 1))], heads)))
            outcomes = await asyncio.gather(*writes)
            assert [error for error, _ in outcomes if not isinstance(error, StoreUnavailable)] == []
            assert max(took_s for _, took_s in outcomes) < 4 * QUICK.busy_timeout_s
            assert await log.ends([stream]) in ({}, {stream: 0})
        finally:
            locker.kill()
    done = await log.commit([turn(posted(stream, 1))], heads)
    assert done.heads == {900: heads[900] + 1}
    await log.close()
