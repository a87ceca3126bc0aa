"""Who comes back at once is looked up together."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import uuid_utils

from deploy.connections import SessionBatches
from domain.ports import Device, DeviceSession
from storage.engine import Database, migrate
from storage.sessions import SqlSessions


async def test_sessions_asked_for_at_once_take_a_few_look_ups_and_nobody_who_gives_up_takes_others_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/sessions.sqlite3"
    await migrate(url, "test")
    database = Database(url)
    stored = SqlSessions(database)
    ids = [str(uuid_utils.uuid7()) for _ in range(20)]
    for number, each in enumerate(ids):
        session = DeviceSession(each, str(uuid_utils.uuid7()), Device("a", "b", "c"), 1, 1)
        await stored.open(session, number.to_bytes(32, "big"), 2**50)
    asked: list[int] = []
    get_many = SqlSessions.get_many

    async def counted(self: SqlSessions, session_ids: Sequence[str]) -> dict[str, DeviceSession]:
        asked.append(len(session_ids))
        return await get_many(self, session_ids)

    monkeypatch.setattr(SqlSessions, "get_many", counted)
    batches = SessionBatches(database)
    impatient = asyncio.create_task(batches.get(ids[0]))
    waiting = asyncio.gather(*(batches.get(each) for each in [*ids, str(uuid_utils.uuid7())]))
    await asyncio.sleep(0)
    impatient.cancel()
    found = await waiting
    assert [session.id if session else None for session in found] == [*ids, None]
    assert len(asked) <= 2
    await batches.close()
    await database.close()
