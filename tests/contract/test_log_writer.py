"""A transaction that is given up, or overruns its time: surely not committed, or unknown, and which of the two is true."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from domain.ports import OutcomeUnknown, StoreUnavailable
from storage.engine import Database, DatabaseSettings, migrate
from storage.log_writer import LogWriter, Visit
from storage.partition_log import SqlPartitionLog
from storage.statements import Ask, Prepared, Script, Step
from tests.contract.conftest import InSql
from tests.support.log_rows import AT, conversation, posted, turn
from tests.support.servers import MariaDb

SCHEMAS = {"conversation": 1}
INSERT = Prepared("INSERT INTO thing VALUES (?)", ("n",), {})


class Gate:
    """Where a thread waits until somebody opens; `reached` when it is there."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self._opened.wait(10)

    def open(self) -> None:
        self._opened.set()


def slow_script(gate: Gate, step: Step) -> Script[None]:
    """A step that takes until the gate opens."""
    gate.pass_through()
    yield step


def script(*steps: Step) -> Script[None]:
    yield from steps


class SlowCommit(sqlite3.Connection):
    """A connection whose COMMIT takes until the gate opens."""

    gate: Gate

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        if statement == "COMMIT":
            self.gate.pass_through()
        return super().execute(statement, *parameters)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "things.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE thing (n INTEGER)")
    connection.close()
    return path


def stored(file: Path) -> int:
    connection = sqlite3.connect(file)
    (found,) = connection.execute("SELECT count(*) FROM thing").fetchone()
    connection.close()
    return int(found)


class Visiting:
    """A visit in a thread of its own; `error` is how it ended."""

    def __init__(self, visit: Visit, file: Path, gate: Gate) -> None:
        self.error: BaseException | None = None
        self._visit, self._file, self._gate = visit, file, gate
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection = sqlite3.connect(self._file, isolation_level=None, factory=SlowCommit)
        connection.gate = self._gate
        try:
            self._visit.run(connection)
        except sqlite3.Error as error:
            self.error = error
        connection.close()

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_a_visit_that_is_given_up_while_it_writes_never_commits(file: Path) -> None:
    gate, commits = Gate(), Gate()
    visit = Visit(slow_script(gate, (INSERT, [(1,)])))
    visiting = Visiting(visit, file, commits)
    assert gate.reached.wait(10)
    assert visit.abandon() is False
    gate.open()
    visiting.join()
    assert isinstance(visiting.error, sqlite3.OperationalError)
    assert stored(file) == 0


def test_a_visit_that_has_asked_for_its_commit_says_so(file: Path) -> None:
    commits = Gate()
    visit = Visit(script((INSERT, [(1,)])))
    visiting = Visiting(visit, file, commits)
    assert commits.reached.wait(10)
    assert visit.abandon() is True
    assert stored(file) == 0  # nobody can know yet
    commits.open()
    visiting.join()
    assert visiting.error is None
    assert stored(file) == 1


async def test_a_visit_that_hangs_while_it_writes_is_surely_not_committed(sqlite_url: str, partition: int) -> None:
    database = Database(sqlite_url, DatabaseSettings(commit_timeout_s=0.3))
    writer, gate = LogWriter(database), Gate()
    insert = Prepared("INSERT INTO relay_cursor VALUES (?, 1)", ("n",), {})
    with pytest.raises(StoreUnavailable):
        await writer.transact(lambda: slow_script(gate, (insert, [(partition,)])))
    gate.open()
    await writer.transact(
        lambda: script((insert, [(partition,)]))
    )  # on another connection, as soon as the first one lets go
    await writer.close()
    await database.close()


async def test_a_commit_that_sqlite_refuses_is_unknown_and_leaves_nothing_open(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'new.db'}")
    async with database.write() as connection:
        await connection.exec_driver_sql("CREATE TABLE one (n INTEGER PRIMARY KEY)")
        await connection.exec_driver_sql(
            "CREATE TABLE thing (n INTEGER REFERENCES one DEFERRABLE INITIALLY DEFERRED)"  # checked by COMMIT
        )
    writer = LogWriter(database)
    with pytest.raises(OutcomeUnknown):
        await writer.transact(lambda: script((INSERT, [(1,)])))
    await writer.transact(lambda: script((INSERT, [(None,)])))
    await writer.close()
    await database.close()


@pytest.fixture
async def mariadb(mariadb_url: str) -> AsyncIterator[InSql]:
    made = InSql(mariadb_url)
    yield made
    await made.close()


async def test_a_commit_that_the_server_never_answers_is_unknown_within_its_time(
    mariadb: InSql, partition: int
) -> None:
    database = Database(mariadb.url, DatabaseSettings(commit_timeout_s=0.5))
    log = SqlPartitionLog(database)
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    heads.update((await log.commit([turn(posted(conversation(partition), 1))], heads)).heads)
    async with mariadb.database().read() as blocker:
        await blocker.execute(sa.text("BACKUP STAGE START"))
        await blocker.execute(sa.text("BACKUP STAGE BLOCK_COMMIT"))
        started = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            await log.commit([turn(posted(conversation(partition), 1))], heads)
        assert time.monotonic() - started < 2
        await blocker.execute(sa.text("BACKUP STAGE END"))
    await log.close()
    await database.close()


async def test_a_connection_that_is_ended_before_its_commit_is_replaced_without_a_word(
    mariadb: InSql, partition: int
) -> None:
    log = mariadb.log()
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    heads.update((await log.commit([turn(posted(conversation(partition), 1))], heads)).heads)
    number, stream = await log.writer(), conversation(partition)
    blocker = await mariadb.database().writer()
    await blocker.execute(
        sa.text(
            "INSERT INTO partition_log (`partition`, position, type, actor, at, body)"
            f" VALUES ({partition}, {heads[partition] + 1}, 'takeover', 'slow', 0, '')"
        )
    )
    committing = asyncio.create_task(log.commit([turn(posted(stream, 1))], heads))
    async with mariadb.database().read() as connection:
        waits = sa.text(
            f"SELECT count(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {number}"
            " AND trx_state = 'LOCK WAIT'"
        )
        while not await connection.scalar(waits):
            await asyncio.sleep(0.01)
    await mariadb.log().end_writers([number])
    await asyncio.sleep(0.2)
    assert not committing.done()
    await blocker.rollback()
    await blocker.close()
    assert (await committing).heads == {partition: heads[partition] + 1}
    assert await log.writer() not in (0, number)
    assert len((await log.load([stream], SCHEMAS))[stream].tail) == 1


async def test_a_flush_of_many_short_waits_has_one_limit_in_time(mariadb: InSql) -> None:
    database = Database(mariadb.url, DatabaseSettings(commit_timeout_s=0.5))
    writer, started = LogWriter(database), time.monotonic()
    nap = Ask(Prepared("SELECT SLEEP(0.3)", (), {}), {})

    def naps() -> Script[None]:
        for _ in range(10):
            yield nap

    with pytest.raises(StoreUnavailable):
        await writer.transact(naps)
    assert time.monotonic() - started < 1.5
    nothing = Prepared("DELETE FROM setting WHERE `key` = %s", ("key",), {})
    await writer.transact(lambda: script((nothing, [("no such",)])))
    await writer.close()
    await database.close()


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDb]:
    """One that may be paused: nobody else uses it."""
    with MariaDb() as made:
        asyncio.run(migrate(made.url("renoveasy"), "test"))
        yield made


async def test_a_server_that_is_paused_takes_nothing_and_holds_nobody_up(server: MariaDb, partition: int) -> None:
    database = Database(server.url("renoveasy"), DatabaseSettings(commit_timeout_s=0.5, connect_timeout_s=0.5))
    log = SqlPartitionLog(database)
    stream = conversation(partition)
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    heads.update((await log.commit([turn(posted(stream, 1))], heads)).heads)
    server.pause()
    try:
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await log.commit([turn(posted(stream, 2))], heads)
            assert time.monotonic() - started < 3
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await log.take([partition], "host", AT)
        with pytest.raises(StoreUnavailable):
            await log.end_writers([1])
        assert time.monotonic() - started < 6
    finally:
        server.resume()
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    assert [entry.offset for entry in (await log.load([stream], SCHEMAS))[stream].tail] == [1]
    assert not (await log.commit([turn(posted(stream, 2))], heads)).fenced
    await log.close()
    await database.close()
