"""Eight processes want one partition, are stopped, and lose their connections: there is one history, and everybody's
answers agree with it.
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Self

import msgspec
import pytest
import sqlalchemy as sa

from domain.commands import Reminder
from domain.ports import Entry
from storage.engine import Database
from storage.partition_log import SqlPartitionLog
from tests.chaos.conftest import Chaos
from tests.chaos.contender import Commit, Job, Taken, journal, last_reminder
from tests.support.log_rows import AT, conversation

CONTENDERS = 8
PARTITION = 641
STREAMS = 6
PATIENCE_S = 0.3


class Row(NamedTuple):
    """A row of the partition; `entry` is None for a takeover."""

    position: int
    actor: str
    entry: Entry | None


class Contest:
    """All contenders at work; afterwards they are over."""

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs = msgspec.json.encode(jobs).decode()
        self.pids: list[int] = []

    async def __aenter__(self) -> Self:
        command = [sys.executable, "-m", "tests.chaos.contender", self._jobs]
        self._process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pids = msgspec.json.decode(await self._process.stdout.readline())
        self._process.stdin.write(b"go\n")
        return self

    @property
    def over(self) -> bool:
        return self._process.returncode is not None

    async def failed(self) -> int:
        """How many ended in a way that they should not; their tracebacks are on stderr."""
        async with asyncio.timeout(60):
            return await self._process.wait()

    async def __aexit__(self, *_: object) -> None:
        if not self.over:
            for pid in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await self._process.communicate()


async def stop_and_go(chaos: Chaos, contest: Contest, seconds: float) -> None:
    """Stop one process after the other for a moment, wherever it is."""
    clock = asyncio.get_running_loop()
    deadline_s = clock.time() + seconds
    while clock.time() < deadline_s and not contest.over:
        victim = chaos.random.choice(contest.pids)
        os.kill(victim, signal.SIGSTOP)
        await asyncio.sleep(chaos.random.uniform(0.02, 0.2))
        os.kill(victim, signal.SIGCONT)
        chaos.tell(f"{deadline_s - clock.time():.0f} s left")
        await asyncio.sleep(chaos.random.uniform(0, 0.1))


async def cut(chaos: Chaos, database: Database, contest: Contest, seconds: float) -> None:
    """End one connection to the server after the other, whatever it is at."""
    log, clock = SqlPartitionLog(database), asyncio.get_running_loop()
    deadline_s = clock.time() + seconds
    while clock.time() < deadline_s and not contest.over:
        await log.end_writers([chaos.random.choice(await connections(database))])
        await asyncio.sleep(chaos.random.uniform(0, 0.04))


async def connections(database: Database) -> list[int]:
    listed = sa.text("SELECT id FROM information_schema.processlist WHERE user = substring_index(user(), '@', 1)")
    async with database.read() as connection:
        return [row.id for row in await connection.execute(listed)]


async def history(database: Database) -> list[Row]:
    listed = sa.text(
        "SELECT position, actor, stream, `offset`, type, command_id, command_hash, actor, at, body"
        f" FROM partition_log WHERE `partition` = {PARTITION} ORDER BY position"
    )
    async with database.read() as connection:
        rows = (await connection.execute(listed)).all()
    return [Row(row[0], row[1], Entry(*row[2:]) if row[2] is not None else None) for row in rows]


def check_one_history(rows: list[Row]) -> None:
    """Nothing but the rows: no hole, and between two takeovers only whom the first one names."""
    assert [row.position for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0].entry is None
    owner, ends = "", Counter[str]()
    for row in rows:
        if row.entry is None:
            owner = row.actor
            continue
        assert row.actor == f"user:{owner}", f"{row} was written while {owner} owned the partition"
        ends[row.entry.stream] += 1
        assert row.entry.offset == ends[row.entry.stream], row
    ids = Counter(row.entry.command_id for row in rows if row.entry is not None)
    assert set(ids.values()) == {1}


def check_answers(name: str, lines: list[Taken | Commit], rows: list[Row]) -> Counter[str]:
    """What one contender was told agrees with the rows; how often it was told what."""
    known = {row.entry.command_id: row for row in rows if row.entry is not None}
    told = Counter[str]()
    for line in lines:
        if isinstance(line, Taken):
            told["takeovers"] += 1
            assert rows[line.position - 1] == Row(line.position, name, None)
            continue
        told[line.told] += 1
        there = [known[entry.command_id] for entry in line.entries if entry.command_id in known]
        if line.told == "committed":
            first = line.head - len(line.entries) + 1
            wanted = [Row(first + n, entry.actor, entry) for n, entry in enumerate(line.entries)]
            assert there == wanted, "it was acknowledged and is not there as it was told"
        elif line.told == "unknown":
            assert len(there) in (0, len(line.entries)), "half of a transaction is there"
        else:
            assert not there, f"it was told that this is {line.told}, and it is there"
    return told


def wanted_reminders(rows: list[Row]) -> list[Reminder]:
    """Each stream's, as its last transaction set it."""
    last = {row.entry.stream: last_reminder(row.entry) for row in rows if row.entry is not None}
    return sorted(last.values(), key=lambda reminder: (reminder.due_at, reminder.stream))


@pytest.mark.catalogue("Contention", "8 processes take and write one partition, are stopped and lose connections")
@pytest.mark.timeout(600)
async def test_eight_owners_of_one_partition_make_one_history(chaos: Chaos, store: str, tmp_path: Path) -> None:
    seconds = chaos.seconds(short=2.5, full=120)
    chaos.load(f"{CONTENDERS} processes, {STREAMS} streams, {seconds:g} s")
    streams = [conversation(PARTITION) for _ in range(STREAMS)]
    names = [f"host-{n}" for n in range(CONTENDERS)]
    journals = [tmp_path / f"{name}.journal" for name in names]
    jobs = [
        Job(store, name, PARTITION, streams, seconds, PATIENCE_S, str(path))
        for name, path in zip(names, journals, strict=True)
    ]
    database = Database(store)
    async with Contest(jobs) as contest:
        troubles = [stop_and_go(chaos, contest, seconds - 0.5)]
        if not database.is_sqlite:
            troubles.append(cut(chaos, database, contest, seconds - 0.5))
        await asyncio.gather(*troubles)
        assert await contest.failed() == 0
    rows = await history(database)
    reminders = await SqlPartitionLog(database).reminders([PARTITION], AT + 1, 1_000)
    await database.close()

    check_one_history(rows)
    told = Counter[str]()
    for name, path in zip(names, journals, strict=True):
        told += check_answers(name, journal(path), rows)
    assert reminders == wanted_reminders(rows)
    chaos.record(rows=len(rows), **told)
    # It was a contest: everybody had the partition, and lost it in the middle of something.
    assert {row.actor for row in rows if row.entry is None} == set(names)
    assert told["committed"] > CONTENDERS
    assert told["fenced"] > CONTENDERS
