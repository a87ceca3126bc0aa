"""The one connection that writes to the log, and what can be said of a transaction that ended badly.

Before COMMIT is asked for, nothing has been committed, whatever happens next; from then on only the database knows. A
transaction has a limit in time: when a server is paused or a disk hangs, the answer is one of these two.
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, Final

from asyncmy.errors import Error as MySqlError
from asyncmy.errors import IntegrityError as MySqlIntegrityError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.ports import OutcomeUnknown, StoreUnavailable
from storage.commit_plan import Overtaken
from storage.engine import DEADLOCK, Contended, Database, disk_full
from storage.statements import Script, play_in_thread, play_on_cursor

_GOODBYE_S: Final = 1.0
_DRIVER_ERRORS: Final = (MySqlError, OSError)


class Clash(Exception):
    """A key is taken; nothing was committed."""


class LogWriter:
    """One transaction at a time; the caller serialises, and has the turn to write.

    `number` is the server's number of the connection, as its greeting told it; 0 without one, and on SQLite.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._limit_s = database.settings.commit_timeout_s
        self._connection: AsyncConnection | None = None
        self._driver: Any = None
        self._used = False
        self._leaving: set[asyncio.Task[None]] = set()
        self.number = 0

    async def close(self) -> None:
        """Give the connection back."""
        await self._drop()

    async def transact(self, script: Callable[[], Script[None]]) -> None:
        """Everything that the script does as one transaction, durable on return. It may be played from the start again.

        Raises:
            StoreUnavailable: nothing was committed; the same goes for whatever the script raises, and for
            Clash: a key is taken.
            OutcomeUnknown: it may have been committed.
            CancelledError: it may have been committed, if that had been asked for. The connection is not used again.
        """
        if self._db.is_sqlite:
            await self._visit(Visit(script()))
        else:
            await self._converse(script)

    async def _converse(self, script: Callable[[], Script[None]]) -> None:
        driver = await self._open()
        used = self._used
        try:
            async with asyncio.timeout(self._limit_s):
                try:
                    await self._say(driver, script())
                except _DRIVER_ERRORS:
                    if not (used and driver.broken):
                        raise
                    # It had died since its last use, or was ended just now: nothing of this has been committed.
                    await self._drop()
                    driver = await self._open()
                    await self._say(driver, script())
        except MySqlIntegrityError as error:
            await self._roll_back(driver)
            raise Clash(str(error)) from error
        except _DRIVER_ERRORS as error:
            await self._roll_back(driver)
            raise _trouble(error) from error
        except TimeoutError as error:
            await self._drop()
            raise StoreUnavailable(f"the transaction was not written within {self._limit_s:g} s") from error
        except Overtaken:
            await self._roll_back(driver)
            raise
        except BaseException:
            await self._drop()
            raise
        try:
            await driver.commit()
        except (*_DRIVER_ERRORS, AttributeError) as error:
            await self._drop()
            raise OutcomeUnknown(str(error)) from error
        except BaseException:
            await self._drop()
            raise

    async def _say(self, driver: Any, script: Script[None]) -> None:
        self._used = True
        cursor = driver.cursor()
        try:
            await play_on_cursor(cursor, script)
        except AttributeError as error:
            # A connection that is torn down under asyncmy shows in attributes that have become None.
            if driver.broken:
                raise MySqlError("the connection is gone") from error
            raise
        await cursor.close()

    async def _visit(self, visit: "Visit") -> None:
        """The whole transaction in one visit to SQLite's thread: a visit for each statement costs more than they do."""
        driver = await self._open()
        try:
            async with asyncio.timeout(self._limit_s):
                await driver._execute(visit.run, driver._conn)
        except Overtaken:
            raise
        except (sqlite3.Error, TimeoutError) as error:
            # The thread may still be at it: from here on it either has asked for the commit or never will.
            asked = visit.abandon() and not disk_full(error)
            if isinstance(error, sqlite3.IntegrityError) and not asked:
                raise Clash(str(error)) from error
            await self._drop()
            raise (OutcomeUnknown if asked else StoreUnavailable)(str(error) or "the disk hangs") from error
        except BaseException:
            visit.abandon()
            await self._drop()
            raise

    async def _open(self) -> Any:
        """The driver's connection."""
        if self._connection is None:
            self._connection = await self._db.writer()
            self._driver = (await self._connection.get_raw_connection()).driver_connection
            self._used = False
            if not self._db.is_sqlite:
                self.number = int(self._driver.thread_id())
        return self._driver

    async def _roll_back(self, driver: Any) -> None:
        try:
            await driver.rollback()
        except (*_DRIVER_ERRORS, AttributeError):
            await self._drop()

    async def _drop(self) -> None:
        """Never use the connection again: nobody knows what it is in the middle of."""
        connection, self._connection, self._driver, self.number = self._connection, None, None, 0
        if connection is not None:
            leaving = asyncio.create_task(_part_with(connection))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            # SQLite's thread may hang in a call to the disk: it says goodbye when it can.
            await asyncio.wait({leaving}, timeout=_GOODBYE_S)


async def _part_with(connection: AsyncConnection) -> None:
    with contextlib.suppress(DBAPIError, OSError):
        await connection.invalidate()
    with contextlib.suppress(DBAPIError, OSError):
        await connection.close()


class Visit:
    """A transaction that runs in SQLite's thread and can be given up from outside of it."""

    def __init__(self, script: Script[None]) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._asked = False
        self._abandoned = False

    def run(self, connection: sqlite3.Connection) -> None:
        """Write everything and commit it, unless it has been given up meanwhile."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            play_in_thread(connection, self._script)
            with self._lock:
                if self._abandoned:
                    raise sqlite3.OperationalError("given up before its commit")
                self._asked = True
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def abandon(self) -> bool:
        """Give it up. Returns whether it has asked for its commit; it never will afterwards."""
        with self._lock:
            self._abandoned = True
            return self._asked


def _trouble(error: BaseException) -> StoreUnavailable:
    return (Contended if error.args[:1] == (DEADLOCK,) else StoreUnavailable)(str(error))
