"""The schema that migrations build is the one that the code is written against, whoever builds it and how often."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import Connection

from storage.engine import Database, WrongDatabase, _config, current_revision, migrate
from storage.tables import metadata
from tests.support.servers import MariaDb
from tests.support.stacks import STORES


def of_sqlalchemy(name: str | None, _kind: str, _parents: object) -> bool:
    """Full text is made by the migration alone: no table of SQLAlchemy's can say what it is."""
    return name is None or not name.startswith("message_text")


def differences(connection: Connection) -> list[object]:
    options = {"compare_type": True, "include_name": of_sqlalchemy}
    return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


async def test_a_new_database_gets_the_tables_that_the_code_knows(sql_place: str) -> None:
    database = Database(sql_place)
    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


def _described(connection: Connection) -> dict[str, list[str]]:
    """Each table as the server tells it; the order of columns is not told."""
    if connection.dialect.name != "sqlite":
        tables = sa.inspect(connection).get_table_names()
        shown = [connection.exec_driver_sql(f"SHOW CREATE TABLE `{name}`").one() for name in tables]
        return {name: sorted(line.strip().rstrip(",") for line in told.splitlines()) for name, told in shown}
    inspector = sa.inspect(connection)
    told = {
        name: [
            *sorted(f"{dict(column, type=str(column['type']))}" for column in inspector.get_columns(name)),
            *sorted(map(str, inspector.get_indexes(name))),
            *sorted(map(str, inspector.get_unique_constraints(name))),
            str(inspector.get_pk_constraint(name)),
        ]
        for name in inspector.get_table_names()
    }
    others = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type NOT IN ('table', 'index')")
    return told | {f"{name} itself": [sql] for name, sql in others}


async def described(url: str) -> dict[str, list[str]]:
    database = Database(url)
    async with database.read() as connection:
        told = await connection.run_sync(_described)
    await database.close()
    return told


async def step_by_step(url: str) -> None:
    database = Database(url)
    async with database.write() as connection:
        await connection.run_sync(lambda there: command.upgrade(_config(there), "head"))
    await database.close()


@pytest.fixture(params=STORES)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Empty databases by their names."""
    if request.param == "sqlite":
        yield lambda name: f"sqlite+aiosqlite:///{tmp_path / name}.db"
        return
    server = MariaDb()
    server.start()
    yield server.url
    server.close()


async def test_step_by_step_and_at_once_end_in_the_same_schema(empty: Callable[[str], str]) -> None:
    await migrate(empty("at_once"), "test")
    await step_by_step(empty("steps"))
    at_once, steps = await described(empty("at_once")), await described(empty("steps"))
    assert len(at_once) > len(metadata.tables)
    assert at_once == steps


async def test_a_table_of_an_older_version_is_taken_through_every_step(empty: Callable[[str], str]) -> None:
    """As an older program leaves it that was cut off before it had noted any version."""
    url = empty("older")
    database = Database(url)
    async with database.write() as connection:
        await connection.run_sync(lambda there: command.upgrade(_config(there), "0002"))
        await connection.exec_driver_sql("DELETE FROM alembic_version")
    await database.close()
    await migrate(url, "test")
    await migrate(empty("at_once"), "test")
    assert await described(url) == await described(empty("at_once"))


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
