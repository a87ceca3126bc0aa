"""The schema that migrations build is the one that the code is written against, whoever builds it and how often."""

import asyncio
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import Connection

from storage.engine import Database, WrongDatabase, current_revision, migrate
from storage.tables import metadata


def differences(connection: Connection) -> list[object]:
    return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)


async def test_migrations_build_the_tables_that_the_code_knows(sql_place: str) -> None:
    database = Database(sql_place)
    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


async def test_migrating_again_changes_nothing_not_even_the_name(sql_place: str) -> None:
    revision = await current_revision(sql_place)
    assert await migrate(sql_place, "another name") == revision
    database = Database(sql_place)
    assert await database.check() == "test"
    await database.close()


async def test_many_that_start_on_an_empty_file_at_once_make_one_database(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'deep' / 'new.db'}"
    script = "import asyncio, sys; from storage.engine import migrate; asyncio.run(migrate(sys.argv[1], sys.argv[2]))"
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-W", "error", "-c", script, url, f"name-{n}")
        for n in range(3)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    database = Database(url)
    assert (await database.check()).startswith("name-")
    await database.close()


async def test_a_database_without_a_schema_is_refused_with_what_to_do(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}"
    assert await current_revision(url) is None
    database = Database(url)
    with pytest.raises(WrongDatabase, match="migrate"):
        await database.check()
    await database.close()


async def test_a_database_of_another_number_of_partitions_is_refused(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'other.db'}"
    await migrate(url, "test")
    database = Database(url)
    async with database.write() as connection:
        await connection.exec_driver_sql("UPDATE setting SET value = '512' WHERE key = 'partitions'")
    with pytest.raises(WrongDatabase, match="512"):
        await database.check()
    await database.close()


async def test_sqlite_syncs_every_commit(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    connection = await database.writer()
    assert (await connection.exec_driver_sql("PRAGMA synchronous")).scalar() == 2
    assert (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar() == "wal"
    await connection.close()
    await database.close()
