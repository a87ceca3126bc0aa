"""The runtime alone: durable commands a second through one host on one processor, with no sockets at all.

Requests come encoded, as from the broker, and answers leave encoded; between them everything is as shipped: mailboxes,
turns, group commit, relay, the real store with fsync. `python -m benchmarks.scenarios.runtime --help`.
"""

import asyncio
import os
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
import msgspec
import uuid_utils
import uvloop

from actors.host import Host, HostSettings
from actors.kinds import kinds
from benchmarks.figures import percentile
from deploy import interpreter
from deploy.connections import SystemClock, new_id
from domain.channels import command_subject
from domain.commands import Accepted, Actor, Answer, Command
from domain.ids import PARTITIONS, partition_of
from domain.ports import NoMetrics, Received, Subscription
from storage.engine import Database, migrate
from storage.facts import SqlFacts
from storage.partition_log import SqlPartitionLog
from storage.read_models import SqlReadModels

TEXT: Final = "x" * 200
INBOX: Final = "_INBOX.bench"


class _Silent:
    async def stop(self) -> None: ...


class Ears:
    """A broker without a server: it hands requests to the host and hears its answers and publications."""

    def __init__(self) -> None:
        self.published = 0
        self.answered: Callable[[bytes], None] = lambda data: None
        self._handlers: dict[str, Callable[[Received], None]] = {}

    async def publish(self, subject: str, data: bytes) -> None:
        self.published += 1
        if subject == INBOX:
            self.answered(data)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        raise NotImplementedError

    async def subscribe(self, subject: str, handler: Callable[[Received], None]) -> Subscription:
        self._handlers[subject] = handler
        return _Silent()

    async def confirm(self, timeout_s: float = 2.0) -> None: ...
    def on_reconnect(self, handler: Callable[[], None]) -> None: ...
    def on_lost(self, handler: Callable[[], None]) -> None: ...
    async def close(self) -> None: ...

    def post(self, subject: str, data: bytes) -> None:
        self._handlers[subject](Received(subject, data, INBOX))


class Figures(msgspec.Struct):
    """Commands a second, CPU milliseconds of this process per command, latency in ms, commands in a flush."""

    per_s: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float
    flush: float


class Flushes(NoMetrics):
    def __init__(self) -> None:
        self.commands = 0.0
        self.flushes = 0

    def observe(self, name: str, value: float) -> None:
        if name == "flush_commands":
            self.commands += value
            self.flushes += 1


async def measure(url: str, conversations: int, outstanding: int, seconds: float) -> Figures:
    """Hold `outstanding` commands open over so many conversations for so long; the first second does not count."""
    await migrate(url, "bench")
    database, ears, clock, flushes = Database(url), Ears(), SystemClock(), Flushes()
    host = Host(
        HostSettings(), SqlPartitionLog(database), SqlFacts(database), SqlReadModels(database), ears, clock, flushes,
        kinds(b"pepper"),
    )  # fmt: skip
    await host.start()
    await host.assign(range(PARTITIONS))
    load = Load(ears, conversations)
    await load.open()
    interpreter.calm()
    latencies = await load.run(host, clock, outstanding, 1.0)
    began_s, cpu_s, flushes.commands, flushes.flushes = time.monotonic(), _cpu_s(), 0.0, 0
    latencies = await load.run(host, clock, outstanding, seconds)
    took_s, cpu_s, ordered = time.monotonic() - began_s, _cpu_s() - cpu_s, sorted(latencies)
    figures = Figures(
        len(latencies) / took_s,
        1_000 * cpu_s / max(1, len(latencies)),
        1_000 * percentile(ordered, 0.5),
        1_000 * percentile(ordered, 0.99),
        flushes.commands / max(1, flushes.flushes),
    )
    await host.stop()
    await database.close()
    return figures


class Load:
    """Two people in each conversation who send as soon as they are answered."""

    def __init__(self, ears: Ears, conversations: int) -> None:
        self._ears = ears
        self._people = [
            (Actor("user", new_id(), new_id()), Actor("user", new_id(), new_id())) for _ in range(conversations)
        ]
        self._rooms = [new_id() for _ in range(conversations)]
        self._encoder = msgspec.msgpack.Encoder()
        self._answers = msgspec.msgpack.Decoder(Answer)
        self._next = 0

    async def open(self) -> None:
        done, all_open = 0, asyncio.Event()

        def opened(data: bytes) -> None:
            nonlocal done
            assert isinstance(self._answers.decode(data), Accepted)
            done += 1
            if done == len(self._rooms):
                all_open.set()

        self._ears.answered = opened
        for room, people in zip(self._rooms, self._people, strict=True):
            payload = msgspec.json.encode({"member_ids": [person.id for person in people]})
            self._post(Command("conversation", room, "open", people[0], new_id(), payload))
            if len(self._rooms) > 1_000:
                await asyncio.sleep(0.001)
        await all_open.wait()

    def _post(self, command: Command) -> None:
        self._ears.post(command_subject(partition_of(command.stream_id)), self._encoder.encode(command))

    def _say(self) -> None:
        n = self._next = (self._next + 1) % (2 * len(self._rooms))
        room, person = self._rooms[n >> 1], self._people[n >> 1][n & 1]
        payload = msgspec.json.encode({"text": TEXT})
        self._post(Command("conversation", room, "send", person, str(uuid_utils.uuid7()), payload))

    async def run(self, host: Host, clock: SystemClock, outstanding: int, seconds: float) -> list[float]:
        latencies: list[float] = []
        sent: deque[float] = deque()
        end_s, over = time.monotonic() + seconds, asyncio.Event()

        def answered(data: bytes) -> None:
            now_s = time.monotonic()
            latencies.append(now_s - sent.popleft())
            if now_s < end_s:
                sent.append(now_s)
                asyncio.get_running_loop().call_soon(self._say)
            elif not sent:
                over.set()

        async def lease() -> None:
            while True:
                host.leased(clock.monotonic_s())
                await asyncio.sleep(0.1)

        leasing = asyncio.create_task(lease())
        self._ears.answered = answered
        for _ in range(outstanding):
            sent.append(time.monotonic())
            self._say()
        await over.wait()
        leasing.cancel()
        return latencies


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@click.command()
@click.option("--url", default="", help="The database; SQLite in a temporary folder by default.")
@click.option("--conversations", default=500, show_default=True)
@click.option("--outstanding", default=512, show_default=True, help="Commands that wait for their answer at any time.")
@click.option("--seconds", default=5.0, show_default=True)
@click.option("--cpu", type=int, help="Pin this process to one processor.")
@click.option("--folder", "where", type=click.Path(file_okay=False, path_type=Path), help="Where SQLite is put.")
def main(url: str, conversations: int, outstanding: int, seconds: float, cpu: int | None, where: Path | None) -> None:
    """Print the durable commands a second of one host."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    with tempfile.TemporaryDirectory(prefix="renoveasy-bench-", dir=where) as folder:
        database = url or f"sqlite+aiosqlite:///{folder}/bench.db"
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures = runner.run(measure(database, conversations, outstanding, seconds))
    click.echo(
        f"{figures.per_s:,.0f} commands/s, {figures.cpu_ms:.3f} CPU-ms each, p50 {figures.p50_ms:.1f} ms, "
        f"p99 {figures.p99_ms:.1f} ms, {figures.flush:.0f} a flush"
    )


if __name__ == "__main__":
    main()
