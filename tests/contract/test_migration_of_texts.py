"""A database of the second version, with edits and deletions in it, becomes one of the third: nothing deleted is left."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.engine import Connection

from domain.chat import CHAT, MessageDeleted, MessageEdited
from domain.ports import Entry, MessageVersion
from domain.times import rfc3339
from storage.engine import Database, _config, migrate
from storage.partition_log import SqlPartitionLog, SqlStreamReader
from storage.read_models import SqlReadModels
from tests.support.databases import migrated
from tests.support.log_rows import AT, chat_row, conversation, new_id, opened, posted, turn

WHEN = rfc3339(AT)
OLD = "0002"


@pytest.fixture(params=["sqlite", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of its own: others are not taken back and forth."""
    with migrated(request.param, tmp_path) as made:
        yield made


def _downgrade(connection: Connection) -> None:
    command.downgrade(_config(connection), OLD)


def _insert(connection: Connection, table: str, **values: Any) -> None:
    columns = [sa.column(name) for name in values]
    connection.execute(sa.insert(sa.table(table, *columns)).values(**values))


def _write_as_before(connection: Connection, entries: list[Entry], changes: dict[str, dict[str, Any]]) -> None:
    place = entries[0].stream.partition(":")[2]
    for position, entry in enumerate(entries, 1):
        fields = {name: getattr(entry, name) for name in Entry.__struct_fields__}
        _insert(connection, "partition_log", partition=9, position=position, **fields)
    last = next(entry for entry in reversed(entries) if entry.type == "message.posted")
    _insert(
        connection,
        "conversation",
        id=place,
        created_at=AT,
        updated_at=AT,
        offset=entries[-1].offset,
        last_message=last.body,
    )
    for message_id, values in changes.items():
        kept = {"text": None, "edited_at": None, "deleted_at": None, "reactions": b"{}"} | values
        _insert(connection, "message_change", conversation_id=place, message_id=message_id, **kept)
    connection.commit()


async def test_what_was_deleted_before_loses_its_content_and_edits_become_history(url: str) -> None:
    ann, bob = new_id(), new_id()
    stream = conversation(9)
    place = stream.partition(":")[2]
    kept, gone, last = (posted(stream, n, ann, text) for n, text in ((3, "one"), (4, "secret"), (5, "secret as well")))
    entries = [
        *opened(stream, ann, bob),
        kept,
        gone,
        last,
        chat_row(stream, 6, MessageEdited(kept.command_id or "", ann, WHEN, "two"), ann, new_id()),
        chat_row(stream, 7, MessageEdited(gone.command_id or "", ann, WHEN, "more secret"), ann, new_id()),
        chat_row(stream, 8, MessageDeleted(gone.command_id or "", ann, WHEN), ann, new_id()),
        chat_row(stream, 9, MessageDeleted(last.command_id or "", ann, WHEN), ann, new_id()),
    ]
    changes = {
        kept.command_id or "": {"text": "two", "edited_at": AT},
        gone.command_id or "": {"edited_at": AT, "deleted_at": AT},
        last.command_id or "": {"deleted_at": AT},
    }
    database = Database(url)
    async with database.write() as connection:
        await connection.run_sync(_downgrade)
        await connection.run_sync(_write_as_before, entries, changes)
    await database.close()
    await migrate(url, "test")
    await migrate(url, "test")

    database = Database(url)
    models = SqlReadModels(database)
    assert await models.history(place, kept.command_id or "") == [
        MessageVersion(3, AT, ann, "one"),
        MessageVersion(6, AT, ann, "two"),
    ]
    stored = await SqlStreamReader(database).read(stream, 0, 100)
    assert [offset for offset, _ in stored] == list(range(1, 10))
    assert [CHAT.decode_event(body) for _, body in stored[:3]] == [CHAT.decode_event(row.body) for row in entries[:3]]
    assert not any(b"secret" in body for _, body in stored)
    async with database.read() as connection:
        (body,) = (await connection.exec_driver_sql("SELECT last_message FROM conversation")).one()
    assert b"secret" not in body

    log = SqlPartitionLog(database)
    heads = {partition: taken.position for partition, taken in (await log.take([9], "host", AT)).items()}
    await log.commit(
        [turn(chat_row(stream, 10, MessageEdited(kept.command_id or "", ann, WHEN, "3"), ann, new_id()))], heads
    )
    history = await models.history(place, kept.command_id or "")
    assert history is not None
    assert [version.text for version in history] == ["one", "two", "3"]
    await log.close()
    await database.close()
