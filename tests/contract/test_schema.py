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


def of_sqlalchemy(name: str | None, _kind: str, _parents: object) -> bool:
    """Full text is made by the migration alone: no table of SQLAlchemy's can say what it is."""
    return name is None or not name.startswith("message_text")


def differences(connection: Connection) -> list[object]:
    options = {"compare_type": True, "include_name": of_sqlalchemy}
    return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


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


MIGRATING = """
import asyncio, sys
from storage.engine import migrate
for url in sys.argv[2:]:
    print("ready", flush=True)
    sys.stdin.readline()
    asyncio.run(migrate(url, sys.argv[1]))
"""


async def test_many_that_start_on_an_empty_file_at_once_make_one_database(tmp_path: Path) -> None:
    """Alembic reads the version before its transaction begins, and one in five rounds of this once failed over that."""
    urls = [f"sqlite+aiosqlite:///{tmp_path / str(n) / 'new.db'}" for n in range(15)]
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", MIGRATING, f"name-{n}", *urls, stdin=pipe, stdout=pipe
        )
        for n in range(4)
    ]
    for _ in urls:
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
    assert [await process.wait() for process in processes] == [0] * 4
    for url in urls:
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
