"""Connections to the database: how they are opened, what every one of them promises, and the schema's version.

SQLite runs with WAL and `synchronous=FULL`, and a write transaction begins with `BEGIN IMMEDIATE`: it waits for its turn
at the start, and its commit has been synced when it returns. MariaDB/MySQL runs READ COMMITTED, with full Unicode.
"""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    NotSupportedError,
    PendingRollbackError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, PoolProxiedConnection

from domain.ids import PARTITIONS
from domain.ports import OutcomeUnknown, StoreUnavailable
from storage.migrations import whole
from storage.mysql_connection import Abandoned, BoundedConnection
from storage.statements import Preparer
from storage.tables import setting
from storage.turnstile import Turnstile

MIGRATIONS: Final = Path(__file__).parent / "migrations"
_MIGRATION_LOCK: Final = "renoveasy.migrate"
DEADLOCK: Final = 1213
# On MariaDB a prepared insert takes all its rows in one binary packet: a quarter of the CPU of escaping them as text.
_PREPARED: Final = 32
_OURS: Final = (IntegrityError, ProgrammingError, DataError, NotSupportedError)
"""What a statement of ours has done wrong; every other error is trouble of the database."""
_alembic = threading.Lock()


class DatabaseSettings(msgspec.Struct, frozen=True):
    """How long to wait for the database, in seconds, and how many pooled connections a process may hold.

    `connect_timeout_s` bounds a connection's handshake, and the wait for a pooled one; `statement_timeout_s` a read on
    MariaDB/MySQL, `commit_timeout_s` a statement of a write transaction, COMMIT included, `unacknowledged_s` the silence
    of a network that takes what is sent to it; `busy_timeout_s` one wait for the turn to write to SQLite; `lock_wait_s`
    one wait for a row lock of InnoDB. MariaDB itself ends a transaction whose client says nothing for `idle_transaction_s`.
    """

    connect_timeout_s: float = 3.0
    statement_timeout_s: float = 5.0
    commit_timeout_s: float = 10.0
    unacknowledged_s: float = 4.0
    busy_timeout_s: float = 5.0
    lock_wait_s: int = 3
    idle_transaction_s: int = 5
    readers: int = 4
    writers: int = 2


class WrongDatabase(Exception):
    """The database belongs to a platform of another shape, or has no schema yet; says which and what to do."""


class Contended(StoreUnavailable):
    """A deadlock: the transaction was rolled back and may be tried again at once."""


class Database:
    """A database of the platform. `read` sees every commit so far; `write` is one transaction, durable on return.

    Both raise `StoreUnavailable` when no connection is to be had, or when it is lost. `sql` prepares statements.
    Nothing is connected before its first use.
    """

    def __init__(self, url: str, settings: DatabaseSettings | None = None) -> None:
        self.url = url
        self.settings = settings or DatabaseSettings()
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        level = None if self.is_sqlite else "READ COMMITTED"
        opener = _Opener(url, self.settings)
        # Reads are single statements: without transactions around them they cost one round trip instead of three.
        self._readers = opener.engine(
            "AUTOCOMMIT", self.settings.readers, self.settings.statement_timeout_s, skip_autocommit_rollback=True
        )
        self._writers = opener.engine(level, self.settings.writers, self.settings.commit_timeout_s)
        self._reading = asyncio.Semaphore(self.settings.readers)
        self._writing = asyncio.Semaphore(self.settings.writers)
        self._dedicated = opener.engine(level, 0, self.settings.commit_timeout_s, prepared=_PREPARED)
        if self.is_sqlite:
            event.listen(self._writers.sync_engine, "begin", _begin_immediate)
            event.listen(self._dedicated.sync_engine, "begin", _begin_immediate)
        self.sql = Preparer(self._writers.dialect)
        path = make_url(url).database
        self._turnstile = Turnstile(f"{path}-turn", self.settings.busy_timeout_s) if self.is_sqlite else None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose every statement is its own read of what is committed."""
        async with self._in_turn(self._reading), _reachable(self._readers) as connection:
            try:
                yield connection
            except _OURS:
                raise
            except (DBAPIError, PendingRollbackError) as error:
                raise unavailable(error) from error

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One write transaction: committed, and synced, when the block ends; rolled back when it raises.

        Raises:
            OutcomeUnknown: the connection was lost while committing.
        """
        async with self.turn(), self._in_turn(self._writing), _reachable(self._writers) as connection:
            try:
                await connection.begin()
                yield connection
            except _OURS:
                raise
            except (DBAPIError, PendingRollbackError) as error:
                raise unavailable(error) from error
            try:
                await connection.commit()
            except DBAPIError as error:
                raise (StoreUnavailable if disk_full(error.orig) else OutcomeUnknown)(str(error.orig)) from error

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The caller's turn to write; at once where the database has many writers."""
        if self._turnstile is None:
            yield
            return
        async with self._turnstile:
            yield

    @asynccontextmanager
    async def _in_turn(self, seats: asyncio.Semaphore) -> AsyncIterator[None]:
        """First come, first served: from the pool's own queue whoever gives a connection back may take it again at once."""
        if seats.locked():
            try:
                async with asyncio.timeout(self.settings.connect_timeout_s):
                    await seats.acquire()
            except TimeoutError as error:
                raise StoreUnavailable("no connection was free in time") from error
        else:
            await seats.acquire()
        try:
            yield
        finally:
            seats.release()

    async def writer(self) -> AsyncConnection:
        """A connection of one's own for write transactions; whoever asks for it closes it."""
        try:
            return await self._dedicated.connect()
        except (DBAPIError, PoolTimeout, OSError, TimeoutError) as error:
            raise StoreUnavailable(str(error)) from error

    async def check(self) -> str:
        """The database's id, once it is certain that schema and number of partitions are those of this program.

        Raises:
            WrongDatabase: they are not.
        """
        async with self.read() as connection:
            found = await connection.run_sync(_revision)
            wanted = _head()
            if found != wanted:
                raise WrongDatabase(f"the schema is at {found or 'nothing'}, this program needs {wanted}: run migrate")
            rows = await connection.execute(sa.select(setting.c.key, setting.c.value))
            settings = {row.key: row.value for row in rows}
        if settings.get("partitions") != str(PARTITIONS):
            raise WrongDatabase(f"made for {settings.get('partitions')} partitions, this program has {PARTITIONS}")
        return str(settings["database_id"])

    async def close(self) -> None:
        """Close every pooled connection."""
        await self._readers.dispose()
        await self._writers.dispose()
        if self._turnstile is not None:
            self._turnstile.close()


class _Opener:
    """Makes the engines of one database; what one of its connections leaves behind, the next one ends."""

    def __init__(self, url: str, settings: DatabaseSettings) -> None:
        self._url = url
        self._settings = settings
        self._sqlite = make_url(url).get_backend_name() == "sqlite"
        self._abandoned = Abandoned()

    def engine(
        self, isolation_level: str | None, pool_size: int, statement_s: float, prepared: int = 0, **options: Any
    ) -> AsyncEngine:
        """Pooled connections, or a new one for everybody who asks where `pool_size` is 0."""
        if isolation_level is not None:
            options["isolation_level"] = isolation_level
        pool: dict[str, Any] = {"poolclass": NullPool}
        if pool_size:
            pool = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": self._settings.connect_timeout_s}
        arguments = self._sqlite_arguments() if self._sqlite else self._mysql_arguments(statement_s, prepared)
        engine = create_async_engine(self._url, connect_args=arguments, hide_parameters=True, **pool, **options)
        if self._sqlite:
            event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        else:
            event.listen(engine.sync_engine, "checkout", _replace_broken)
        return engine

    def _sqlite_arguments(self) -> dict[str, Any]:
        # With isolation_level None the driver begins nothing by itself; the event on "begin" does.
        return {"timeout": self._settings.busy_timeout_s, "isolation_level": None}

    def _mysql_arguments(self, statement_s: float, prepared: int) -> dict[str, Any]:
        settings = self._settings
        # MySQL takes the second variable for a comment: it has no such limit.
        session = (
            f"innodb_lock_wait_timeout = {settings.lock_wait_s}"
            f" /*M!100300 , idle_write_transaction_timeout = {settings.idle_transaction_s} */"
        )
        opened = partial(
            BoundedConnection.opened,
            abandoned=self._abandoned,
            unacknowledged_s=settings.unacknowledged_s,
            session=session,
        )
        return {
            "async_creator_fn": opened,
            "connect_timeout": settings.connect_timeout_s,
            "read_timeout": statement_s,
            "charset": "utf8mb4",
            "stmt_cache_size": prepared,
        }


def unavailable(error: DBAPIError | PendingRollbackError) -> StoreUnavailable:
    """What an error of the connection or of its locks is called above the storage layer."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    number = next(iter(cause.args), None) if cause is not None else None
    return (Contended if number == DEADLOCK else StoreUnavailable)(str(cause or error))


def disk_full(error: BaseException | None) -> bool:
    """Whether SQLite found no room for a commit: its mark is written last, so nothing of it is in the log."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _prepare_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "temp_store = MEMORY",
        # 16 MiB: what several flushes have written to the same page goes to the database once. Commits sync as ever.
        "wal_autocheckpoint = 4000",
        # What is deleted or overwritten does not stay behind in pages that are written anyway.
        "secure_delete = FAST",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _replace_broken(connection: DBAPIConnection, _entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
    """A connection that died in the pool, with its server perhaps, is replaced before anybody's statement fails on it."""
    driver = connection.driver_connection
    if isinstance(driver, BoundedConnection) and driver.broken:
        raise DisconnectionError("the server has closed the connection")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@asynccontextmanager
async def _reachable(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    try:
        connection = await engine.connect()
    except (DBAPIError, PoolTimeout, OSError, TimeoutError) as error:
        raise StoreUnavailable(str(error)) from error
    try:
        yield connection
    finally:
        # It rolls back what was begun. Where that fails the connection is gone, and the block's own outcome is what counts.
        with suppress(DBAPIError):
            await connection.close()


# --- the schema's version ----------------------------------------------------------------------------------------


async def migrate(url: str, database_id: str, settings: DatabaseSettings | None = None) -> str:
    """Bring the schema to the newest version, whoever else tries it at the same time; returns that version.

    `database_id` names the database if it has no name yet. A SQLite file and its folder are made.
    """
    parsed = make_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite and parsed.database:
        await asyncio.to_thread(Path(parsed.database).parent.mkdir, parents=True, exist_ok=True)
    # Alembic's contexts are globals of the process, whatever database they are for.
    while not _alembic.acquire(blocking=False):  # noqa: ASYNC110 - a thread lock: there may be several event loops
        await asyncio.sleep(0.02)
    patient = settings or DatabaseSettings(busy_timeout_s=60, commit_timeout_s=600, idle_transaction_s=600)
    engine = _Opener(url, patient).engine(None, 1, patient.commit_timeout_s)
    if sqlite:
        event.listen(engine.sync_engine, "begin", _begin_immediate)
    # Alembic reads the version before its transaction begins: another process may have moved it by then.
    turnstile = Turnstile(f"{parsed.database}-turn", patient.busy_timeout_s) if sqlite else None
    try:
        async with turnstile or nullcontext(), _reachable(engine) as connection:
            # MySQL commits at each table it makes; on SQLite the whole migration is one transaction.
            if not sqlite and await connection.scalar(sa.func.get_lock(_MIGRATION_LOCK, 60)) != 1:
                raise StoreUnavailable("another process has been migrating the schema for a minute")
            await connection.run_sync(_upgrade)
            await connection.run_sync(_name, database_id)
            await connection.commit()
            if not sqlite:
                await connection.execute(sa.select(sa.func.release_lock(_MIGRATION_LOCK)))
    finally:
        _alembic.release()
        await engine.dispose()
        if turnstile is not None:
            turnstile.close()
    return _head()


async def current_revision(url: str) -> str | None:
    """The version of the schema that the database has; None for a database without one."""
    database = Database(url)
    try:
        async with database.read() as connection:
            return await connection.run_sync(_revision)
    finally:
        await database.close()


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    if _revision(connection) is None and whole.can_be_made(connection):
        whole.make(connection)
        command.stamp(_config(connection), "head")
    else:
        command.upgrade(_config(connection), "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _head() -> str:
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def _name(connection: Connection, database_id: str) -> None:
    known = {row.key for row in connection.execute(sa.select(setting.c.key))}
    wanted = {"partitions": str(PARTITIONS), "database_id": database_id}
    missing = [{"key": key, "value": value} for key, value in wanted.items() if key not in known]
    if missing:
        connection.execute(sa.insert(setting), missing)
