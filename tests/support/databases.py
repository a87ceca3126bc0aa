"""Databases with the platform's schema, for fixtures: SQLite in a folder, and a MariaDB server of the test's own."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.engine import migrate
from tests.support.servers import MariaDb


@contextmanager
def migrated(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty, migrated database of a `kind`: `sqlite` or `mariadb`. Call it outside of any event loop."""
    if kind == "sqlite":
        url = f"sqlite+aiosqlite:///{folder / 'renoveasy.db'}"
        asyncio.run(migrate(url, "test"))
        yield url
        return
    with MariaDb() as server:
        url = server.url("renoveasy")
        asyncio.run(migrate(url, "test"))
        yield url
