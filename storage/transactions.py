"""Small transactions outside the partition log: said again when the database undid them, and its troubles in our words."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.ports import OutcomeUnknown, StoreUnavailable
from storage.engine import Contended, Database

T = TypeVar("T")

_ATTEMPTS: Final = 4


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
        except Contended:
            if attempt == _ATTEMPTS:
                raise
        except (DBAPIError, OutcomeUnknown) as error:
            raise StoreUnavailable(str(error)) from error
    raise AssertionError("unreachable")
