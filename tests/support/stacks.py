"""A store on a disk with a host and placement beside it, and people who write to it and read from it.

The parts are real processes; the disk may lose its power, fill up, break or hang under them.
"""

import asyncio
import contextlib
import json
import random
import shutil
import subprocess
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self

import uuid_utils
from sqlalchemy import event
from sqlalchemy.pool import Pool

from actors.router import BrokerRouter
from deploy.connections import SystemClock
from domain.commands import Accepted, Actor, Command, Query
from domain.errors import Refusal
from domain.ports import NoMetrics
from storage.broker import NatsBroker
from storage.engine import migrate
from tests.support.disks import Disk
from tests.support.oracle import Evidence, Sent
from tests.support.parts import Parts
from tests.support.servers import MariaDb, Nats, Valkey

StoreName = Literal["sqlite", "mariadb"]
STORES: Final[tuple[StoreName, ...]] = ("sqlite", "mariadb")
PATIENCE_S: Final = 30.0


# --- stores on a disk --------------------------------------------------------------------------------------------


class SqliteOn:
    """SQLite in a folder of the disk: it lives in the processes that use it."""

    pids: tuple[int, ...] = ()
    environment: Mapping[str, str]
    log = ""

    def __init__(self, disk: Disk, *, synced: bool = True) -> None:
        self._folder = disk.folder
        self.url = self.url_of("renoveasy")
        self.environment = {} if synced else {"PART_WIRING": f"{__name__}:never_sync"}

    def url_of(self, name: str) -> str:
        """Another database of this store, empty when it is first used."""
        return f"sqlite+aiosqlite:///{self._folder}/{name}.db"

    def start(self) -> None: ...
    def start_again(self) -> bool:
        return False

    def close(self) -> None: ...


class MariaDbOn:
    """A MariaDB server with everything it has on the disk; `options` are further ones of mariadbd."""

    environment: Mapping[str, str] = {}

    def __init__(self, disk: Disk, *options: str, synced: bool = True) -> None:
        # Without syncing, InnoDB writes and flushes its log once a second, whatever has been committed.
        self.server = MariaDb(*options, *([] if synced else ["--innodb-flush-log-at-trx-commit=0"]))
        shutil.rmtree(self.server.folder)
        self.server.folder = disk.folder / "mariadb"
        self.server.log_folder = disk.folder.parent  # which does not fill up with it
        self.server.folder.mkdir(exist_ok=True)
        self.url = ""

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.server.pid,)

    @property
    def log(self) -> str:
        """The last lines that the server wrote."""
        return self.server.log

    def url_of(self, name: str) -> str:
        """Another database of this server, empty when it is first used."""
        return self.server.url(name)

    def start(self) -> None:
        self.server.start()
        self.url = self.server.url("renoveasy")

    def start_again(self) -> bool:
        """What a supervisor does with a server that has ended by itself; whether it had."""
        ended = not self.server.running
        if ended:
            self.server.start()
        return ended

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


class Stack:
    """One host and placement on a store, with a NATS of their own that keeps nothing.

    With `rest` there is REST too, with a Valkey that keeps nothing, and the platform's folder is on the disk.
    """

    def __init__(self, disk: Disk, store: SqliteOn | MariaDbOn, *, rest: bool = False) -> None:
        self.disk = disk
        self.store = store
        self._rest = rest
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
            options: dict[str, Any] = {"hosts": 1, "gateways": 0, "environment": self.store.environment}
            if self._rest:
                valkey = self._open.enter_context(Valkey())
                options |= {"rest": True, "redis_url": valkey.url, "folder": self.disk.folder / "platform"}
                options["folder"].mkdir(exist_ok=True)
            self.parts = Parts(self.store.url, self.nats.url, **options)
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


def sync(disk: Disk) -> None:
    """What has been set up so far is not what the power loss is about."""
    subprocess.run(["sync", "--file-system", str(disk.folder)], check=True, timeout=60)


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


class Readers:
    """Somebody who asks, again and again, where one of the live conversations stands."""

    def __init__(self, router: BrokerRouter, evidence: Evidence, per_s: float = 30.0) -> None:
        self.answers: list[tuple[float, str]] = []
        """When each question was asked, and the code it was refused with; empty for an answer."""
        self._router = router
        self._evidence = evidence
        self._pause_s = 1.0 / per_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def refused(self, from_s: float, to_s: float) -> list[str]:
        """The codes of refusals to questions that were asked between these times."""
        return [code for at_s, code in self.answers if from_s <= at_s <= to_s and code]

    def asked(self, from_s: float, to_s: float) -> int:
        return sum(1 for at_s, _ in self.answers if from_s <= at_s <= to_s)

    async def _read(self) -> None:
        while True:
            stream, members = random.choice(list(self._evidence.opened.items()))
            query = Query("conversation", stream.partition(":")[2], "attach", _actor(members[0]))
            asked_s = time.perf_counter()
            try:
                await self._router.ask(query, 1.0)
            except Refusal as refusal:
                self.answers.append((asked_s, str(refusal.refused.code)))
            else:
                self.answers.append((asked_s, ""))
            await asyncio.sleep(self._pause_s)
