"""A database that has been used for long: any number of conversations, with the rows that the log would have written.

`python -m benchmarks.load.streams --help` fills one, and measures how long activations take to load from it.
"""

import asyncio
import hashlib
import random
import time
from collections.abc import Callable
from typing import Any, Final

import click
import msgspec

from benchmarks.figures import Latency, latency
from domain.chat import CHAT, ChatEvent, MemberJoined, MessagePosted, ReceiptRead
from domain.ids import PARTITIONS, partition_of, uuid7
from domain.ports import Entry
from domain.times import rfc3339
from storage import tables as t
from storage.engine import Database, migrate
from storage.partition_log import SqlPartitionLog
from storage.statements import run

AT_ONCE: Final = 5_000
_HASH: Final = b"0123456789abcdef"
_TEXT: Final = "The tiles came today, but two boxes are of another shade. " * 3


class Population(msgspec.Struct, frozen=True):
    """`count` conversations of two members, 3 to 5 rows each; the number of one says all of it, in every process.

    One begins each second since `began_ms`, so that ids are as close to the order of time as those of real clients.
    """

    count: int
    users: int = 100_000
    began_ms: int = 1_700_000_000_000

    def at_ms(self, number: int) -> int:
        return self.began_ms + number * 1_000

    def id(self, number: int) -> str:
        return _uuid(self.at_ms(number), b"conversation", number)

    def stream(self, number: int) -> str:
        return f"conversation:{self.id(number)}"

    def members(self, number: int) -> tuple[str, str]:
        first, second = number % self.users, (number * 7 + 1) % self.users
        return _uuid(self.began_ms, b"user", first), _uuid(self.began_ms, b"user", second + (first == second))

    def entries(self, number: int) -> list[Entry]:
        """Both join and send one to three messages; in every second of the longer ones the last one is read instead."""
        stream, at_ms, people = self.stream(number), self.at_ms(number), self.members(number)
        at, messages = rfc3339(at_ms), 1 + number % 3
        read = messages > 1 and number % 2 == 1
        events: list[tuple[str | None, str, ChatEvent]] = [
            (_uuid(at_ms, b"open", number), people[0], MemberJoined(people[0], at, people[0])),
            (None, people[0], MemberJoined(people[0], at, people[1])),
        ]
        for n in range(messages - read):
            message, by = _uuid(at_ms + n, b"message", number), people[n % 2]
            events.append((message, by, MessagePosted(message, by, at, _TEXT[: 40 + number % 120])))
        if read:
            events.append((None, people[1], ReceiptRead(people[1], at, len(events))))
        return [
            Entry(
                stream,
                offset,
                kind := CHAT.event_type(event),
                command,
                None if kind.startswith("receipt.") else _HASH,
                f"user:{by}",
                at_ms,
                CHAT.encode_event(event),
            )
            for offset, (command, by, event) in enumerate(events, 1)
        ]


def _uuid(at_ms: int, what: bytes, number: int) -> str:
    return uuid7(at_ms, hashlib.blake2b(b"%s %d" % (what, number), digest_size=10).digest())


async def fill(database: Database, population: Population, told: Callable[[int], None] = lambda done: None) -> None:
    """Add the whole population to a migrated database of nobody's; `told` hears how many are done."""
    log = SqlPartitionLog(database)
    heads = await log.heads(range(PARTITIONS))
    await log.close()
    sql = database.sql
    async with database.turn():
        connection = await database.writer()
        try:
            for start in range(0, population.count, AT_ONCE):
                end = min(start + AT_ONCE, population.count)
                log_rows, conversations, members = _rows(population, range(start, end), heads)
                await connection.begin()
                await run(connection, sql.insert(t.partition_log), log_rows)
                await run(connection, sql.insert(t.conversation), conversations)
                await run(connection, sql.insert(t.conversation_member), members)
                await connection.commit()
                told(end)
        finally:
            await connection.close()


Rows = list[tuple[Any, ...]]


def _rows(population: Population, numbers: range, heads: dict[int, int]) -> tuple[Rows, Rows, Rows]:
    log_rows: Rows = []
    conversations: Rows = []
    members: Rows = []
    for number in numbers:
        entries = population.entries(number)
        identifier = entries[0].stream.partition(":")[2]
        partition = partition_of(identifier)
        for entry in entries:
            heads[partition] += 1
            log_rows.append((partition, heads[partition], *msgspec.structs.astuple(entry)))
        last = [entry.body for entry in entries if entry.type == "message.posted"][-1]
        at_ms = population.at_ms(number)
        # Empty text for no order, as the platform writes it: MariaDB takes rows in bulk only where no column is all NULL.
        conversations.append((identifier, "", at_ms, at_ms, len(entries), last, 0))
        members += [(identifier, user, n, None, 0, 0) for n, user in enumerate(population.members(number), 1)]
    log_rows.sort(key=lambda row: row[:2])
    return log_rows, conversations, members


async def loads(database: Database, population: Population, width: int, times: int, seed: int = 1) -> Latency:
    """How long it takes to load so many random streams in one batch, over `times` batches."""
    chosen, samples = random.Random(seed), []
    log = SqlPartitionLog(database)
    for _ in range(times):
        streams = [population.stream(chosen.randrange(population.count)) for _ in range(width)]
        began_s = time.perf_counter()
        found = await log.load(streams, {"conversation": 1})
        samples.append(time.perf_counter() - began_s)
        assert all(loaded.tail or loaded.snapshot for loaded in found.values())
    await log.close()
    measured = latency(samples)
    assert measured is not None
    return measured


async def main_of(url: str, population: Population, filling: bool, times: int) -> None:
    """Fill, measure, and say both."""
    await migrate(url, "bench")
    database = Database(url)
    if filling:
        began_s = said_s = time.monotonic()

        def told(done: int) -> None:
            nonlocal said_s
            if time.monotonic() - said_s > 5:
                said_s = time.monotonic()
                click.echo(f"{done:,} of {population.count:,} conversations, {said_s - began_s:.0f} s")

        await fill(database, population, told)
        click.echo(f"filled in {time.monotonic() - began_s:.0f} s")
    for width in (1, 16, 256):
        found = await loads(database, population, width, times)
        click.echo(
            f"{width:>4} streams: p50 {found.p50_ms:.2f} ms, p95 {found.p95_ms:.2f} ms, p99 {found.p99_ms:.2f} ms,"
            f" most {found.max_ms:.2f} ms, of {times} loads"
        )
    await database.close()


@click.command()
@click.argument("url")
@click.option("--count", default=1_000_000, show_default=True, help="Conversations.")
@click.option("--fill/--no-fill", default=True, show_default=True, help="Not where the database has them already.")
@click.option("--times", default=200, show_default=True, help="Loads of each width.")
def main(url: str, count: int, fill: bool, times: int) -> None:
    """Fill the database at URL with conversations and load random ones of them, as activations do."""
    asyncio.run(main_of(url, Population(count), fill, times))


if __name__ == "__main__":
    main()
