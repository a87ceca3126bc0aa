"""Taking partitions, whoever had them before, and ending the connections of those who may be paused.

A takeover row clashes with what the former owner has inserted and not committed, and InnoDB lets it wait for that. A host
that is stopped in the middle of a transaction would be waited for as long as it is stopped; so the wait is short, and the
host's connection is ended first where its number is known.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.ports import OutcomeUnknown, StoreUnavailable, Takeover
from storage import log_queries
from storage import tables as t
from storage.engine import Contended, Database
from storage.statements import play, run

TAKEOVER: Final = "takeover"
_ATTEMPTS: Final = 16
_LOCK_WAIT_S: Final = 1
_LIMIT_S: Final = 2.0
"""After that no further wait for a lock begins."""
_LOCK_WAIT_TIMEOUT: Final = 1205
_NO_SUCH_THREAD: Final = 1094


async def take(database: Database, partitions: Sequence[int], owner: str, at: int) -> dict[int, Takeover]:
    """One takeover row after the last row of each partition, in one transaction.

    Raises:
        StoreUnavailable: somebody holds rows in a transaction that does not end, or too many want them.
    """
    wanted = sorted(set(partitions))
    deadline_s = time.monotonic() + _LIMIT_S
    clash: Exception | None = None
    for _ in range(_ATTEMPTS):
        try:
            async with database.write() as connection, _impatient(database, connection):
                heads = await play(connection, log_queries.heads(database.sql, wanted))
                cursors = await log_queries.cursors(connection, database.sql, wanted)
                rows: list[tuple[Any, ...]] = [
                    (p, heads[p] + 1, None, None, TAKEOVER, None, None, owner, at, b"{}") for p in wanted
                ]
                await run(connection, database.sql.insert(t.partition_log), rows)
        except (IntegrityError, Contended, OutcomeUnknown) as error:
            clash = error  # somebody takes them too; a second takeover row of ours would do no harm
        except StoreUnavailable as error:
            if _number(error.__cause__) != _LOCK_WAIT_TIMEOUT or time.monotonic() >= deadline_s:
                raise
            clash = error
        else:
            return {p: Takeover(heads[p] + 1, cursors.get(p, 0)) for p in wanted}
    raise StoreUnavailable(f"partitions {wanted[0]}…{wanted[-1]} are wanted by too many") from clash


@contextlib.asynccontextmanager
async def _impatient(database: Database, connection: AsyncConnection) -> AsyncIterator[None]:
    """Within, a statement waits for a lock for a second at most."""
    if database.is_sqlite:
        yield
        return
    patient = f"SET SESSION innodb_lock_wait_timeout = {database.settings.lock_wait_s}"
    await connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {_LOCK_WAIT_S}")
    try:
        yield
    except BaseException:
        # The connection goes back to the pool, as it was. If it is lost there is nothing to put right.
        with contextlib.suppress(DBAPIError, PendingRollbackError):
            await connection.exec_driver_sql(patient)
        raise
    await connection.exec_driver_sql(patient)


async def end_connections(database: Database, numbers: Sequence[int], spared: int) -> None:
    """End these connections on the server, except the one `spared`; those that are gone already are fine.

    Raises:
        StoreUnavailable: the server refuses, or does not answer in time; some may have been ended.
    """
    doomed = sorted({int(number) for number in numbers} - {0, spared})
    if database.is_sqlite or not doomed:
        return
    try:
        async with asyncio.timeout(database.settings.connect_timeout_s), database.read() as connection:
            own = await connection.scalar(sa.select(sa.func.connection_id()))
            for number in doomed:
                if number != own:
                    await _end(connection, number)
    except TimeoutError as error:
        raise StoreUnavailable("the database does not end connections in time") from error
    except DBAPIError as error:
        raise StoreUnavailable(str(error.orig)) from error


async def _end(connection: AsyncConnection, number: int) -> None:
    try:
        await connection.exec_driver_sql(f"KILL {number}")
    except DBAPIError as error:
        if _number(error) != _NO_SUCH_THREAD:
            raise


def _number(error: BaseException | None) -> Any:
    """The server's number of an error."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    return next(iter(cause.args), None) if cause is not None else None
