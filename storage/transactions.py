"""Small transactions outside the partition log: said again when the database undid them, and its troubles in our words."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.ports import StoreUnavailable
from storage.engine import Database

T = TypeVar("T")

_ATTEMPTS: Final = 4
# MariaDB: 1213 deadlock (undone in full), 1205 lock wait timeout (the statement is undone, and we undo the rest).
_UNDONE: Final = frozenset({1213, 1205})


@asynccontextmanager
async def reading(database: Database) -> AsyncIterator[AsyncConnection]:
    """As `Database.read`, with every trouble of the database as `StoreUnavailable`."""
    try:
        async with database.read() as connection:
            yield connection
    except DBAPIError as error:
        raise StoreUnavailable(str(error.orig)) from error


async def in_transaction(database: Database, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """The result of `work`, committed and synced. `work` runs again where a deadlock undid it, so it may do nothing else.

    Raises:
        IntegrityError: a unique key was violated; nothing was changed.
        StoreUnavailable: any other trouble of the database. If it came at the commit, the outcome is unknown, so `work`
            must be harmless when repeated.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            async with database.write() as connection:
                return await work(connection)
        except IntegrityError:
            raise
        except DBAPIError as error:
            if attempt == _ATTEMPTS or _number(error) not in _UNDONE:
                raise StoreUnavailable(str(error.orig)) from error
    raise AssertionError("unreachable")


def _number(error: DBAPIError) -> int | None:
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None
