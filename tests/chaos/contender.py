"""Many who all want the same partition, and what they were told: a program that `test_contention` runs.

Each takes the partition, commits until somebody else has it, and takes it again. Everything that it asked for and the
answer go to its journal, a line each, so that the log can be compared with it.
"""

import asyncio
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from domain.commands import Reminder
from domain.ports import Entry, OutcomeUnknown, StoreUnavailable, Turn
from storage.engine import Database
from storage.partition_log import SqlPartitionLog
from tests.support.log_rows import AT, posted, turn

Told = Literal["committed", "fenced", "unknown", "unavailable"]
LAST = "last"


class Taken(msgspec.Struct, tag="taken"):
    """The partition was taken with the row at `position`."""

    position: int


class Commit(msgspec.Struct, tag="commit"):
    """What was to be committed in one transaction, and what came of it. `head` is the last position, 0 if unknown."""

    entries: list[Entry]
    told: Told
    head: int = 0


Line = Taken | Commit


class Job(msgspec.Struct):
    """What a contender is to do, for how long. Once it is fenced it waits for up to `patience_s` before it takes again."""

    url: str
    name: str
    partition: int
    streams: list[str]
    seconds: float
    patience_s: float
    journal: str


def last_reminder(entry: Entry) -> Reminder:
    """The one that a stream has after its last event: it says which that was."""
    return Reminder(entry.stream, LAST, entry.at, entry.offset, "close", b'{"by":"%s"}' % entry.actor.encode())


class Contender:
    """One owner after the other; it never trusts what it knew before it was fenced."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._random = random.Random(job.name)
        self._database = Database(job.url)
        self._log = SqlPartitionLog(self._database)
        self._journal = Path(job.journal)
        self._deadline_s = time.monotonic() + job.seconds

    async def run(self) -> None:
        while time.monotonic() < self._deadline_s:
            try:
                taken = await self._log.take([self._job.partition], self._job.name, AT)
                position = taken[self._job.partition].position
                self._write(Taken(position))
                await self._own(position)
            except StoreUnavailable:
                continue
            finally:
                await asyncio.sleep(self._random.random() * self._job.patience_s)

    async def close(self) -> None:
        await self._log.close()
        await self._database.close()

    async def _own(self, head: int) -> None:
        ends = await self._log.ends(self._job.streams)
        while time.monotonic() < self._deadline_s:
            turns = [self._turn(ends) for _ in range(self._random.randint(1, 4))]
            entries = [entry for each in turns for entry in each.entries]
            try:
                done = await self._log.commit(turns, {self._job.partition: head})
            except OutcomeUnknown:
                self._write(Commit(entries, "unknown"))
                return
            except StoreUnavailable:
                self._write(Commit(entries, "unavailable"))
                return
            assert not done.stale, f"{done} although the partition was ours"
            if done.fenced:
                self._write(Commit(entries, "fenced"))
                return
            head = done.heads[self._job.partition]
            self._write(Commit(entries, "committed", head))
            await asyncio.sleep(self._random.random() * 0.004)

    def _turn(self, ends: dict[str, int]) -> Turn:
        stream = self._random.choice(self._job.streams)
        entries = []
        for _ in range(self._random.randint(1, 3)):
            ends[stream] = ends.get(stream, 0) + 1
            entries.append(posted(stream, ends[stream], by=self._job.name))
        return turn(*entries, reminders=[last_reminder(entries[-1])])

    def _write(self, line: Line) -> None:
        with self._journal.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


def journal(path: Path) -> list[Line]:
    """What a contender wrote down, in order."""
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]


async def contend(job: Job) -> None:
    contender = Contender(job)
    try:
        await contender.run()
    finally:
        await contender.close()


def forked(job: Job, gate: int) -> int:
    """The pid of a process that contends as soon as there is a byte for it in the pipe `gate`."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.read(gate, 1)
        asyncio.run(contend(job))
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(arguments: Sequence[str]) -> int:
    """Print the pids of a contender for each job, wait for a line, let them loose; the code is how many failed.

    They are forks of this process, which has imported everything: eight starts would take longer than the contest.
    """
    gate, holder = os.pipe()
    pids = [forked(job, gate) for job in msgspec.json.decode(arguments[0], type=list[Job])]
    print(json.dumps(pids), flush=True)
    sys.stdin.readline()
    os.write(holder, b"x" * len(pids))
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
