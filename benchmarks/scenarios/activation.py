"""A host over a million stored streams: what touching many of them costs, and that its memory follows its caps.

`python -m benchmarks.scenarios.activation --help`. Each touch is a durable message of a member to a conversation that
nobody has touched for long, as all through a minute of a morning.
"""

import asyncio
import random
import tempfile
import time
from collections import deque
from pathlib import Path

import click
import msgspec
import psutil
import uvloop

from actors.host import Host, HostSettings
from actors.kinds import kinds
from benchmarks.figures import latency
from benchmarks.load.streams import Population, fill
from benchmarks.scenarios.runtime import Ears
from deploy import interpreter
from deploy.connections import SystemClock, new_id
from domain.channels import command_subject
from domain.commands import Accepted, Actor, Answer, Command
from domain.ids import PARTITIONS, partition_of
from domain.ports import NoMetrics
from storage.engine import Database, migrate
from storage.facts import SqlFacts
from storage.partition_log import SqlPartitionLog
from storage.read_models import SqlReadModels


class Watched(NoMetrics):
    """Keeps how long activations took to load, and the most there were."""

    def __init__(self) -> None:
        self.activation_s: list[float] = []
        self.activations = 0.0
        self.most = 0.0
        self.bytes = 0.0

    def observe(self, name: str, value: float) -> None:
        if name == "activation_seconds":
            self.activation_s.append(value)

    def gauge(self, name: str, value: float) -> None:
        if name == "activations":
            self.activations, self.most = value, max(self.most, value)
        elif name == "activations_bytes":
            self.bytes = value


async def touch(
    url: str, population: Population, filling: bool, touched: int, seconds: float, most: int, most_mib: int
) -> None:
    """Fill the database if it is new, touch the streams at an even pace, print what it took."""
    await migrate(url, "bench")
    database, ears, clock, watched = Database(url), Ears(), SystemClock(), Watched()
    if filling:
        click.echo(f"storing {population.count:,} conversations …")
        await fill(database, population)
    settings = HostSettings(activations=most, activations_ever=most * 3 // 2, activations_bytes=most_mib << 20)
    host = Host(
        settings, SqlPartitionLog(database), SqlFacts(database), SqlReadModels(database), ears, clock, watched,
        kinds(b"pepper"),
    )  # fmt: skip
    await host.start()
    await host.assign(range(PARTITIONS))
    interpreter.calm()
    process = psutil.Process()
    rss_before = process.memory_info().rss
    latencies: list[float] = []
    sent: deque[float] = deque()
    refused, drained = 0, asyncio.Event()
    decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
    encoder = msgspec.msgpack.Encoder()

    def answered(data: bytes) -> None:
        nonlocal refused
        if isinstance(decoder.decode(data), Accepted):
            latencies.append(time.monotonic() - sent.popleft())
        else:
            sent.popleft()
            refused += 1
        if not sent:
            drained.set()

    ears.answered = answered
    began_s = said_s = time.monotonic()
    for n, number in enumerate(random.Random(1).sample(range(population.count), touched)):
        due_s = began_s + n * seconds / touched
        while (now_s := time.monotonic()) < due_s:
            host.leased(clock.monotonic_s())
            await asyncio.sleep(min(0.05, due_s - now_s))
        conversation = population.id(number)
        actor = Actor("user", population.members(number)[0], "")
        payload = msgspec.json.encode({"text": "good morning"})
        command = Command("conversation", conversation, "send", actor, new_id(), payload)
        sent.append(due_s)
        drained.clear()
        ears.post(command_subject(partition_of(conversation)), encoder.encode(command))
        if now_s - said_s >= 5:
            said_s = now_s
            rss_mib = process.memory_info().rss / 2**20
            click.echo(f"{n:>7,} touched, {watched.activations:>6,.0f} live, {rss_mib:.0f} MiB")
    if sent:
        await drained.wait()
    loads, answers = latency(watched.activation_s), latency(latencies)
    assert loads is not None
    assert answers is not None
    grown_mib = (process.memory_info().rss - rss_before) / 2**20
    click.echo(
        f"{touched:,} of {population.count:,} streams touched in {time.monotonic() - began_s:.0f} s, {refused} refused; "
        f"at most {watched.most:,.0f} live (cap {most:,}), memory +{grown_mib:.0f} MiB"
    )
    click.echo(f"activation p50 {loads.p50_ms:.1f} ms, p99 {loads.p99_ms:.1f} ms, most {loads.max_ms:.1f} ms")
    click.echo(f"durable answer p50 {answers.p50_ms:.1f} ms, p99 {answers.p99_ms:.1f} ms, most {answers.max_ms:.1f} ms")
    await host.stop()
    await database.close()


@click.command()
@click.option("--url", default="", help="The database; SQLite in a temporary folder by default.")
@click.option("--fill/--no-fill", default=True, show_default=True, help="Not where the database has them already.")
@click.option("--count", default=1_000_000, show_default=True, help="Conversations stored.")
@click.option("--touched", default=20_000, show_default=True)
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--cap", default=5_000, show_default=True, help="Live activations before the least recently used go.")
@click.option("--cap-mib", default=512, show_default=True)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Where the temporary folder is made.")
def main(
    url: str, fill: bool, count: int, touched: int, seconds: float, cap: int, cap_mib: int, folder: Path | None
) -> None:
    """Touch many of very many stored streams."""
    with tempfile.TemporaryDirectory(prefix="renoveasy-bench-", dir=folder) as temporary:
        where = url or f"sqlite+aiosqlite:///{temporary}/bench.db"
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(touch(where, Population(count), fill, touched, seconds, cap, cap_mib))


if __name__ == "__main__":
    main()
