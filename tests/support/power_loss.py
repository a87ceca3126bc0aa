"""A store, a host and placement on a disk that loses its power, and writers who note what they were told.

`Stack` runs the real parts with their database on a `Disk`. `Stack.lose_power` gives what the disk holds at one instant and
what had been acknowledged by then; `revive` starts a new stack from that and has the judge look at it.
"""

import asyncio
import contextlib
import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

import msgspec
import sqlalchemy as sa
import uuid_utils
from sqlalchemy import event
from sqlalchemy.pool import Pool

from actors.router import BrokerRouter
from deploy.connections import SystemClock
from domain.commands import Accepted, Actor, Command
from domain.errors import Refusal
from domain.ports import NoMetrics
from storage import tables as t
from storage.broker import NatsBroker
from storage.engine import Database, migrate
from tests.support.disks import Disk, stopped
from tests.support.oracle import Evidence, Fault, Row, Sent, judge, read_log
from tests.support.parts import Parts
from tests.support.servers import MariaDb, Nats

StoreName = Literal["sqlite", "mariadb"]
STORES: Final[tuple[StoreName, ...]] = ("sqlite", "mariadb")
PATIENCE_S: Final = 30.0


# --- stores on a disk --------------------------------------------------------------------------------------------


class SqliteOn:
    """SQLite in a folder of the disk: it lives in the processes that use it."""

    pids: tuple[int, ...] = ()
    environment: Mapping[str, str]

    def __init__(self, disk: Disk, *, synced: bool = True) -> None:
        self._folder = disk.folder
        self.url = self.url_of("renoveasy")
        self.environment = {} if synced else {"PART_WIRING": f"{__name__}:never_sync"}

    def url_of(self, name: str) -> str:
        """Another database of this store, empty when it is first used."""
        return f"sqlite+aiosqlite:///{self._folder}/{name}.db"

    def start(self) -> None: ...
    def close(self) -> None: ...


class MariaDbOn:
    """A MariaDB server with everything it has on the disk; `options` are further ones of mariadbd."""

    environment: Mapping[str, str] = {}

    def __init__(self, disk: Disk, *options: str, synced: bool = True) -> None:
        # Without syncing, InnoDB writes and flushes its log once a second, whatever has been committed.
        self.server = MariaDb(*options, *([] if synced else ["--innodb-flush-log-at-trx-commit=0"]))
        shutil.rmtree(self.server.folder)
        self.server.folder = disk.folder / "mariadb"
        self.server.folder.mkdir(exist_ok=True)
        self.url = ""

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.server.pid,)

    def url_of(self, name: str) -> str:
        """Another database of this server, empty when it is first used."""
        return self.server.url(name)

    def start(self) -> None:
        self.server.start()
        self.url = self.server.url("renoveasy")

    def close(self) -> None:
        self.server.kill()
        self.server.close()


def never_sync(_role: str) -> None:
    """Wiring for a part: SQLite hands its writes to the kernel and believes that they are safe."""

    def unsafe(connection: Any, *_: object) -> None:
        connection.cursor().execute("PRAGMA synchronous = OFF")

    event.listen(Pool, "checkout", unsafe)


def store_on(disk: Disk, name: StoreName, *, synced: bool = True) -> SqliteOn | MariaDbOn:
    return SqliteOn(disk, synced=synced) if name == "sqlite" else MariaDbOn(disk, synced=synced)


# --- the stack ---------------------------------------------------------------------------------------------------


class Image(NamedTuple):
    """What a disk held at one instant, and what had been sent and acknowledged by then."""

    path: Path
    evidence: Evidence
    at_s: float
    under_way: int
    """Writes without an answer at that instant: the group commits that the power loss hit."""
    acked_per_s: float
    """Acknowledgements in the second before."""


class Stack:
    """One host and placement on a store, with a NATS of their own that keeps nothing."""

    def __init__(self, disk: Disk, store: SqliteOn | MariaDbOn) -> None:
        self.disk = disk
        self.store = store
        self._open = contextlib.AsyncExitStack()
        self.nats = Nats()
        self.parts: Parts
        self.router: BrokerRouter

    async def __aenter__(self) -> Self:
        try:
            self._open.callback(self.store.close)
            self._open.enter_context(self.nats)
            await asyncio.to_thread(self.store.start)
            await migrate(self.store.url, "power")
            sync(self.disk)
            environment = self.store.environment
            self.parts = Parts(self.store.url, self.nats.url, hosts=1, gateways=0, environment=environment)
            await self._open.enter_async_context(self.parts)
            broker = NatsBroker(self.nats.url, "", "writers")
            self._open.push_async_callback(broker.close)
            await broker.start()
            self.router = BrokerRouter(broker, SystemClock(), NoMetrics())
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._open.aclose()

    @property
    def pids(self) -> list[int]:
        """Everybody who writes to the disk."""
        return [*self.store.pids, *(part.pid for part in self.parts.parts.values())]

    async def lose_power(self, evidence: Evidence, into: Path, *, running: bool) -> Image:
        """Copy the disk; afterwards everybody goes on as if nothing had been.

        Running processes are caught in the middle of what they write, stopped ones have been allowed to finish the system
        call that they were in: only then it is certain that every answer they sent is held against the copy.
        """
        at_s = time.perf_counter()
        if running:
            await asyncio.to_thread(self.disk.copy_running, into)
        else:
            with await asyncio.to_thread(_enter, stopped(self.pids)):
                await asyncio.sleep(0.02)
                at_s = time.perf_counter()
                await asyncio.to_thread(self.disk.copy, into)
        then = known_at(evidence, at_s)
        under_way = sum(1 for sent in then.sent.values() if sent.sent_s < at_s and not sent.acked)
        lately = sum(1 for sent in then.sent.values() if sent.acked and at_s - sent.acked_s < 1.0)
        return Image(into, then, at_s, under_way, float(lately))


def _enter(context: contextlib.AbstractContextManager[None]) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    stack.enter_context(context)
    return stack


def sync(disk: Disk) -> None:
    """What has been set up so far is not what the power loss is about."""
    subprocess.run(["sync", "--file-system", str(disk.folder)], check=True, timeout=60)


def known_at(evidence: Evidence, at_s: float) -> Evidence:
    """The evidence with what has been sent by now, and with the answers that had come by then."""
    then = Evidence()
    for key, sent in evidence.sent.items():
        forgotten = {"offset": 0, "at": "", "acked_s": math.nan} if sent.acked and sent.acked_s > at_s else {}
        then.sent[key] = msgspec.structs.replace(sent, **forgotten)
    then.opened = dict(evidence.opened)
    then.contradictions = list(evidence.contradictions)
    return then


# --- writers -----------------------------------------------------------------------------------------------------


class Writers:
    """One person in each of many conversations, who sends the next message when the last one is acknowledged."""

    def __init__(self, router: BrokerRouter, evidence: Evidence, each_per_s: float = 20.0) -> None:
        self.evidence = evidence
        self.timeout_s = 5.0
        self._router = router
        self._pause_s = 1.0 / each_per_s
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, conversations: int) -> None:
        await asyncio.gather(*(self._open() for _ in range(conversations)))

    async def _open(self) -> None:
        members, conversation = (new_id(), new_id()), new_id()
        payload = json.dumps({"member_ids": members}).encode()
        command = Command("conversation", conversation, "open", _actor(members[0]), new_id(), payload)
        await self._router.ask(command, PATIENCE_S)
        self.evidence.opened[command.stream] = members

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._write(stream)) for stream in self.evidence.opened]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        done = await asyncio.gather(*self._tasks, return_exceptions=True)
        if kind is None:
            for result in done:
                if isinstance(result, Exception):
                    raise result

    async def _write(self, stream: str) -> None:
        while True:
            await asyncio.sleep(random.uniform(0.0, 2.0 * self._pause_s))
            await self.write(stream)

    async def write(self, stream: str) -> Sent:
        """One more message in a conversation, sent until it is acknowledged."""
        person = self.evidence.opened[stream][0]
        identifier = new_id()
        sent = Sent(identifier, stream, person, f"message {identifier}", time.perf_counter(), connection="writers")
        self.evidence.sent[identifier] = sent
        while not sent.acked:
            await self.send(sent)
        return sent

    async def send(self, sent: Sent) -> str:
        """One attempt; empty when it was acknowledged, else the code it was refused with."""
        payload = json.dumps({"text": sent.text}).encode()
        command = Command("conversation", sent.stream.partition(":")[2], "send", _actor(sent.by), sent.id, payload)
        sent.attempts += 1
        if sent.attempts == 1:
            sent.sent_s = time.perf_counter()
        try:
            answer = await self._router.ask(command, self.timeout_s)
        except Refusal as refusal:
            self.evidence.errors[refusal.refused.code] += 1
            return str(refusal.refused.code)
        assert isinstance(answer, Accepted)
        # The router repeats by itself what it heard nothing of: a replay at the first answer is no contradiction here.
        replayed = answer.replayed and (sent.attempts > 1 or sent.acked)
        self.evidence.acked(sent, answer.offset, str(answer.at), replayed, time.perf_counter())
        return ""

    async def settle(self) -> None:
        """Send again whatever has had no answer, with its id, until it has one."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*map(self._settle, [s for s in self.evidence.sent.values() if not s.acked]))

    async def _settle(self, sent: Sent) -> None:
        while not sent.acked:
            await self.send(sent)

    async def write_everywhere(self) -> None:
        """One more message in every conversation."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*map(self.write, self.evidence.opened))


def new_id() -> str:
    return str(uuid_utils.uuid7())


def _actor(person: str) -> Actor:
    return Actor("user", person, person)


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
                    taken.append(await stack.lose_power(writers.evidence, into, running=number % 2 == 1))
    return taken


async def revive(store: StoreName, image: Image) -> Verdict:
    """Start a new stack from what the disk held, send what had no answer again, write on, and judge.

    The image is used up.
    """
    acked = [sent.id for sent in image.evidence.sent.values() if sent.acked]
    with Disk(image=image.path) as disk:
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


_MIGRATE: Final = """
import asyncio, sys
from storage.engine import migrate
print("begun", flush=True)
asyncio.run(migrate(sys.argv[1], "power"))
print("done", flush=True)
"""


async def cut_off_first_start(store: StoreName, images: int, rng: random.Random, folder: Path) -> list[FirstStart]:
    """Cut the power while a process makes the schema, each time in another empty database, and migrate once more."""
    taken: list[tuple[Path, str]] = []
    with Disk() as disk, _Migrations(store_on(disk, store)) as migrations:
        sync(disk)
        whole_s = await migrations.run("whole")
        while len(taken) < images:
            name = f"cut{len(taken)}"
            process = await migrations.begin(name)
            await asyncio.sleep(rng.uniform(0.0, whole_s))
            with await asyncio.to_thread(_enter, stopped([*migrations.store.pids, process.pid])):
                image = await asyncio.to_thread(disk.copy, folder / f"{store}-{name}.image")
            taken.append((image, name))
            await process.communicate()
    outcomes = []
    for image, name in taken:
        with Disk(image=image) as disk, _Migrations(store_on(disk, store)) as migrations:
            outcomes.append(await migrations.again(name))
    return outcomes


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
