"""What a disk holds when the power goes, and what a platform makes of it that starts from there."""

import asyncio
import contextlib
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec
import sqlalchemy as sa
from alembic import command

from storage import tables as t
from storage.engine import Database, _config, migrate
from tests.support.disks import Disk, stopped
from tests.support.oracle import Evidence, Fault, Row, judge, read_log
from tests.support.stacks import MariaDbOn, SqliteOn, Stack, StoreName, Writers, store_on, sync


class Image(NamedTuple):
    """What a disk held at one instant, and what had been sent and acknowledged by then."""

    path: Path
    evidence: Evidence
    at_s: float
    under_way: int
    """Writes without an answer at that instant: the group commits that the power loss hit."""
    acked_per_s: float
    """Acknowledgements in the second before."""


async def lose_power(
    stack: Stack, evidence: Evidence, into: Path, *, running: bool, at: Callable[[], None] | None = None
) -> Image:
    """Copy the disk; afterwards everybody goes on as if nothing had been. `at` is called when they have stopped.

    Running processes are caught in the middle of what they write, stopped ones have been allowed to finish the system
    call that they were in: only then it is certain that every answer they sent is held against the copy.
    """
    at_s = time.perf_counter()
    if running:
        await asyncio.to_thread(stack.disk.copy_running, into)
    else:
        with await asyncio.to_thread(_enter, stopped(stack.pids)):
            await asyncio.sleep(0.02)
            at_s = time.perf_counter()
            if at is not None:
                at()
            await asyncio.to_thread(stack.disk.copy, into)
    then = known_at(evidence, at_s)
    under_way = sum(1 for sent in then.sent.values() if sent.sent_s < at_s and not sent.acked)
    lately = sum(1 for sent in then.sent.values() if sent.acked and at_s - sent.acked_s < 1.0)
    return Image(into, then, at_s, under_way, float(lately))


def _enter(context: contextlib.AbstractContextManager[None]) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    stack.enter_context(context)
    return stack


def known_at(evidence: Evidence, at_s: float) -> Evidence:
    """The evidence with what has been sent by now, and with the answers that had come by then."""
    then = Evidence()
    for key, sent in evidence.sent.items():
        forgotten = {"offset": 0, "at": "", "acked_s": math.nan} if sent.acked and sent.acked_s > at_s else {}
        then.sent[key] = msgspec.structs.replace(sent, **forgotten)
    then.opened = dict(evidence.opened)
    then.contradictions = list(evidence.contradictions)
    return then


# --- after the power loss ----------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What was broken after a power loss, how many acknowledged writes stood against it, how many of them are gone, and
    how long it took until all that had had no answer was settled, in seconds."""

    faults: list[Fault]
    acked: int
    lost: int
    settled_s: float


async def run_images(
    store: StoreName, images: int, seed: int, folder: Path, *, synced: bool = True, conversations: int = 64
) -> list[Image]:
    """Images of one run at random instants, by turns of stopped and of running processes, with hundreds of writes a second."""
    rng = random.Random(seed)
    taken: list[Image] = []
    with Disk(1024) as beneath, Disk(512, on=beneath) as disk:
        async with Stack(disk, store_on(disk, store, synced=synced)) as stack:
            writers = Writers(stack.router, Evidence())
            await writers.open(conversations)
            sync(disk)
            async with writers:
                for number in range(images):
                    await asyncio.sleep(rng.uniform(0.2, 1.2))
                    into = folder / f"{store}-{seed}-{number}.image"
                    taken.append(await lose_power(stack, writers.evidence, into, running=number % 2 == 1))
    return taken


async def revive(store: StoreName, image: Image, first: Callable[[Disk], None] | None = None) -> Verdict:
    """Start a new stack from what the disk held, send what had no answer again, write on, and judge.

    The image is used up. `first` is done to the disk before anything starts from it.
    """
    acked = [sent.id for sent in image.evidence.sent.values() if sent.acked]
    with Disk(image=image.path) as disk:
        if first is not None:
            first(disk)
        async with Stack(disk, store_on(disk, store)) as stack:
            found = await read_log(stack.store.url)
            faults = judge(image.evidence, found, until_s=image.at_s, members=False)
            stored = {row.what for row in found}
            lost = sum(1 for identifier in acked if identifier not in stored)
            settled_s = 0.0
            if not faults:
                began_s = time.perf_counter()
                writers = Writers(stack.router, image.evidence)
                await writers.settle()
                settled_s = time.perf_counter() - began_s
                await writers.write_everywhere()
                rows = await read_log(stack.store.url)
                faults = judge(image.evidence, rows, members=False) + await sound(stack.store.url, rows)
    return Verdict(faults, len(acked), lost, settled_s)


async def sound(url: str, rows: Sequence[Row]) -> list[Fault]:
    """Whether the database finds itself whole, and lists agree with the log they were committed with."""
    ends = {row.stream: row.offset for row in sorted(rows, key=lambda row: row.offset) if row.stream is not None}
    database = Database(url)
    try:
        async with database.read() as connection:
            check = (
                "PRAGMA integrity_check"
                if database.is_sqlite
                else "CHECK TABLE partition_log, conversation, stream_state"
            )
            found = [str(row[-1]) for row in await connection.execute(sa.text(check))]
            c = t.conversation.c
            lists = {f"conversation:{row[0]}": row[1] for row in await connection.execute(sa.select(c.id, c.offset))}
    finally:
        await database.close()
    faults = [Fault("L", "database", f"{check} says {word}") for word in found if word.lower() != "ok"]
    faults += [
        Fault("L", stream, f"the list of conversations is at {lists.get(stream)}, the log at {end}")
        for stream, end in ends.items()
        if lists.get(stream) != end
    ]
    return faults


# --- the first start ---------------------------------------------------------------------------------------------


class FirstStart(NamedTuple):
    """How a first start went on after a power loss: the tables that were there of all there are, and what went wrong."""

    tables: int
    of: int
    error: str


_CUTS_OF_A_START: Final = 3
_TWO_BACK: Final = "0008"
_MIGRATE: Final = """
import asyncio, sys
from storage.engine import migrate
print("begun", flush=True)
asyncio.run(migrate(sys.argv[1], "power"))
print("done", flush=True)
"""


async def cut_off_first_start(store: StoreName, images: int, rng: random.Random, folder: Path) -> list[FirstStart]:
    """Cut the power a few times while a process makes the schema of an empty database, and migrate again after each."""
    taken: list[tuple[Path, str]] = []
    with Disk() as disk, _Migrations(store_on(disk, store)) as migrations:
        sync(disk)
        whole_s = await migrations.run("whole")
        while len(taken) < images:
            name = f"cut{len(taken)}"
            process = await migrations.begin(name)
            for number in range(min(_CUTS_OF_A_START, images - len(taken))):
                await asyncio.sleep(rng.uniform(0.0, 2.0 * whole_s / _CUTS_OF_A_START))
                into = folder / f"{store}-{name}-{number}.image"
                # One that has ended meanwhile is as good: what it has made must come up too.
                pids = [*migrations.store.pids, *([process.pid] if process.returncode is None else [])]
                with await asyncio.to_thread(_enter, stopped(pids)):
                    taken.append((await asyncio.to_thread(disk.copy, into), name))
            await process.communicate()
    outcomes = []
    for image, name in taken:
        with Disk(image=image) as disk, _Migrations(store_on(disk, store)) as migrations:
            outcomes.append(await migrations.again(name))
    return outcomes


async def change_schema_and_lose_power(store: StoreName, image: Path) -> int:
    """Take the newest schema two versions back, which ends with changes of tables; cut the power; read every table.

    Returns the number of tables that could be read, and raises when one could not.
    """
    with Disk() as disk, _Migrations(store_on(disk, store)) as migrations:
        url = migrations.store.url_of("changed")
        await migrate(url, "power")
        sync(disk)
        database = Database(url)
        async with database.write() as connection:
            await connection.run_sync(lambda there: command.downgrade(_config(there), _TWO_BACK))
        with await asyncio.to_thread(_enter, stopped(migrations.store.pids)):
            await asyncio.to_thread(disk.copy, image)
        await database.close()
    with Disk(image=image) as disk, _Migrations(store_on(disk, store)) as migrations:
        database = Database(migrations.store.url_of("changed"))
        try:
            async with database.read() as connection:
                names = await connection.run_sync(lambda there: sa.inspect(there).get_table_names())
                for name in names:
                    await connection.execute(sa.select(sa.func.count()).select_from(sa.table(name)))
        finally:
            await database.close()
    return len(names)


class _Migrations:
    """Empty databases by name, and processes that make the schema in them."""

    def __init__(self, store: SqliteOn | MariaDbOn) -> None:
        self.store = store

    def __enter__(self) -> Self:
        self.store.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    async def begin(self, name: str) -> asyncio.subprocess.Process:
        """A process that has just begun to migrate."""
        command = [sys.executable, "-c", _MIGRATE, self.store.url_of(name)]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"
        return process

    async def run(self, name: str) -> float:
        """How long a whole migration takes, in seconds."""
        process = await self.begin(name)
        began_s = time.perf_counter()
        said, _ = await process.communicate()
        assert said == b"done\n"
        return time.perf_counter() - began_s

    async def again(self, name: str) -> FirstStart:
        url = self.store.url_of(name)
        database = Database(url)
        try:
            async with database.read() as connection:
                tables = await connection.run_sync(lambda there: sa.inspect(there).get_table_names())
            await migrate(url, "power")
            await database.check()
            error = ""
        except Exception as failure:
            error = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
        finally:
            await database.close()
        return FirstStart(len(set(tables) & set(t.metadata.tables)), len(t.metadata.tables), error)
