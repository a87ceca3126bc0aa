"""Taking partitions from an owner that hangs in the middle of a transaction."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.ports import StoreUnavailable
from storage.engine import Database
from storage.partition_log import SqlPartitionLog
from tests.contract.conftest import InMemory, InSql
from tests.support.log_rows import AT, conversation, posted, turn


@pytest.fixture
async def mariadb(mariadb_url: str) -> AsyncIterator[InSql]:
    made = InSql(mariadb_url)
    yield made
    await made.close()


@pytest.fixture(params=["memory", "sqlite"])
def numberless(request: pytest.FixtureRequest) -> InMemory | InSql:
    """A store whose connections the server does not number."""
    return InMemory() if request.param == "memory" else InSql(request.getfixturevalue("sqlite_url"))


class Paused:
    """An owner that has inserted the next row of a partition and then hangs."""

    def __init__(self, connection: AsyncConnection, number: int) -> None:
        self.connection = connection
        self.number = number

    async def gone(self) -> bool:
        try:
            await self.connection.commit()
            await self.connection.execute(sa.text("SELECT 1"))
        except DBAPIError:
            return True
        return False


@pytest.fixture
async def paused(mariadb: InSql, partition: int) -> AsyncIterator[Paused]:
    connection = await mariadb.database().writer()
    await connection.execute(
        sa.text(
            "INSERT INTO partition_log (`partition`, position, type, actor, at, body)"
            f" VALUES ({partition}, 1, 'takeover', 'paused', 0, '')"
        )
    )
    yield Paused(connection, await connection.scalar(sa.text("SELECT connection_id()")))
    await connection.invalidate()
    await connection.close()


async def test_a_paused_owner_whose_connection_is_ended_is_not_waited_for(
    mariadb: InSql, partition: int, paused: Paused
) -> None:
    taker = mariadb.log()
    started = time.monotonic()
    await taker.end_writers([paused.number])
    taken = await taker.take([partition, partition + 1], "host", AT)
    assert time.monotonic() - started < 1
    assert {p: t.position for p, t in taken.items()} == {partition: 1, partition + 1: 1}
    assert await paused.gone()


async def test_a_paused_owner_is_waited_for_briefly_and_nothing_is_changed(
    mariadb: InSql, partition: int, paused: Paused
) -> None:
    taker = mariadb.log()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await taker.take([partition, partition + 1, partition + 2], "host", AT)
    assert 0.9 < time.monotonic() - started < 4
    assert await taker.heads(range(partition, partition + 3)) == {partition: 0, partition + 1: 0, partition + 2: 0}
    assert not await paused.gone()  # it committed: from here on its row is there
    assert (await taker.take([partition], "host", AT))[partition].position == 2


async def test_a_takeover_that_begins_while_the_owner_hangs_ends_when_its_connection_does(
    mariadb: InSql, partition: int, paused: Paused
) -> None:
    taking = asyncio.create_task(mariadb.log().take([partition], "host", AT))
    await asyncio.sleep(0.3)
    assert not taking.done()
    await mariadb.log().end_writers([paused.number])
    async with asyncio.timeout(0.6):
        assert (await taking)[partition].position == 1


async def test_the_short_wait_is_the_takeovers_own(mariadb: InSql, partition: int, paused: Paused) -> None:
    database = Database(mariadb.url)
    taker = SqlPartitionLog(database)
    with pytest.raises(StoreUnavailable):
        await taker.take([partition], "host", AT)
    async with database.write() as connection:
        found = await connection.scalar(sa.text("SELECT @@innodb_lock_wait_timeout"))
    assert found == database.settings.lock_wait_s
    await database.close()


async def test_the_writers_number_is_the_one_that_the_server_knows(mariadb: InSql, partition: int) -> None:
    log = mariadb.log()
    assert await log.writer() == 0
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    assert await log.writer() == 0  # taking is not what a paused owner hangs in
    await log.commit([turn(posted(conversation(partition), 1))], heads)
    number = await log.writer()
    async with mariadb.database().read() as connection:
        known = sa.text("SELECT count(*) FROM information_schema.processlist WHERE id = :number")
        assert await connection.scalar(known, {"number": number}) == 1
    await mariadb.log().end_writers([number])
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    assert not (await log.commit([turn(posted(conversation(partition), 1))], heads)).fenced
    assert await log.writer() not in (0, number)
    await log.close()
    assert await log.writer() == 0


async def test_ones_own_connection_and_unknown_ones_are_left_alone(mariadb: InSql, partition: int) -> None:
    log = mariadb.log()
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    heads.update((await log.commit([turn(posted(conversation(partition), 1))], heads)).heads)
    number = await log.writer()
    await log.end_writers([number, 0, 4_000_000_000])
    await log.end_writers([])
    await log.commit([turn(posted(conversation(partition), 1))], heads)
    assert await log.writer() == number


async def test_where_connections_have_no_number_there_is_nothing_to_end(
    numberless: InMemory | InSql, partition: int
) -> None:
    log = numberless.log()
    heads = {partition: (await log.take([partition], "host", AT))[partition].position}
    await log.commit([turn(posted(conversation(partition), 1))], heads)
    assert await log.writer() == 0
    await log.end_writers([1, 2, 3])
    await numberless.close()


async def test_what_went_wrong_in_a_transaction_is_told_although_its_connection_is_gone(mariadb: InSql) -> None:
    """A takeover that met a duplicate key on a connection that was ended a moment later brought the host down."""
    database = mariadb.database()
    for _ in range(database.settings.writers + 1):  # none of them is lost to the pool
        with pytest.raises(IntegrityError):
            async with database.write() as connection:
                number = await connection.scalar(sa.text("SELECT connection_id()"))
                await mariadb.log().end_writers([number])
                raise IntegrityError("INSERT", None, Exception("duplicate"))
