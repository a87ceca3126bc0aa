"""A realistic flush, alone: 256 events with everything that is written beside them, one transaction after the other.

Nothing else runs: no sockets, no broker, no turns. It says what the store itself takes of each event, of this process and of
the database's, and is where a profile of the flush is taken.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import msgspec

from benchmarks.figures import Latency, Usage, latency
from benchmarks.machine import Meter
from domain.chat import CHAT, ChatEvent, MessageEdited, MessagePosted, MessageReacted, ReceiptDelivered, ReceiptRead
from domain.commands import Reminder
from domain.ids import PARTITIONS, derived_uuid7, partition_of, uuid7
from domain.ports import Entry, Snapshot, Turn
from domain.times import rfc3339
from storage.engine import Database, migrate
from storage.partition_log import SqlPartitionLog

EVENTS: Final = 256
ORDER_TURNS: Final = 12
RECEIPTS: Final = 60
REACTIONS: Final = 8
EDITS: Final = 4
MESSAGES: Final = EVENTS - 2 * ORDER_TURNS - RECEIPTS - REACTIONS - EDITS
CONVERSATIONS: Final = 2_000
ORDERS: Final = 400
ACTIVE: Final = 100
"""Conversations that a flush touches, about."""
AHEAD: Final = 16
"""Flushes that are made up at a time, while nothing is measured."""
WARM_UP: Final = 8
PROFILER: Final = "py-spy"
_AT_MS: Final = 1_800_000_000_000
_HASH: Final = b"0123456789abcdef"
_SNAPSHOT_EVERY: Final = 64
_TEXT: Final = "Could you come on Thursday instead? The floor needs one more day to dry. "


class FlushStep(msgspec.Struct, frozen=True, kw_only=True):
    """One round on one database."""

    database: str
    flushes: int
    events_per_s: float
    flush: Latency
    client_cpu_ms: float
    """Per event, of this process: SQLite runs in it."""
    server_cpu_ms: float | None
    """Per event, of the database's process; None where there is none, or it is not known."""
    usage: Usage
    faults: list[str]


class Traffic:
    """What people do, as the turns of one flush after the other; the same for the same seed, and other ids for another."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ends: dict[str, int] = {}
        self._posted: dict[str, list[str]] = {}
        self._at_ms = _AT_MS
        self._orders = [self._id() for _ in range(ORDERS)]
        # An order's conversation is in its partition.
        self._rooms = [derived_uuid7(_AT_MS, f"conversation of {order}", order) for order in self._orders]
        self._rooms += [self._id() for _ in range(CONVERSATIONS - ORDERS)]
        self._people = [self._id() for _ in range(2 * CONVERSATIONS)]

    def flush(self) -> list[Turn]:
        """The turns of the next flush: 256 events."""
        rooms = self._random.sample(range(CONVERSATIONS), ACTIVE)
        turns = [self._said(self._random.choice(rooms)) for _ in range(MESSAGES)]
        turns += [self._read(self._random.choice(rooms)) for _ in range(RECEIPTS)]
        turns += [self._reacted(self._random.choice(rooms)) for _ in range(REACTIONS)]
        turns += [self._edited(self._random.choice(rooms)) for _ in range(EDITS)]
        turns += [self._moved(number) for number in self._random.sample(range(ORDERS), ORDER_TURNS)]
        assert sum(len(turn.entries) for turn in turns) == EVENTS
        return turns

    def _id(self) -> str:
        self._at_ms += 1
        return uuid7(self._at_ms, self._random.randbytes(10))

    def _person(self, room: int) -> str:
        return self._people[2 * room + self._random.getrandbits(1)]

    def _entry(self, room: int, event: ChatEvent, by: str, command: str | None) -> Entry:
        stream = f"conversation:{self._rooms[room]}"
        offset = self._ends[stream] = self._ends.get(stream, 0) + 1
        return Entry(
            stream,
            offset,
            CHAT.event_type(event),
            command,
            None if command is None else _HASH,
            f"user:{by}",
            self._at_ms,
            CHAT.encode_event(event),
        )

    def _post(self, room: int, by: str, **content: Any) -> Entry:
        message = self._id()
        self._posted.setdefault(self._rooms[room], []).append(message)
        return self._entry(room, MessagePosted(message, by, rfc3339(self._at_ms), **content), by, message)

    def _turn(self, entry: Entry) -> Turn:
        turn = Turn(partition_of(entry.stream), [entry])
        if entry.offset % _SNAPSHOT_EVERY == 0:
            turn.snapshots.append(Snapshot(entry.stream, entry.offset, 1, b'{"recent":"%s"}' % (b"x" * 1_500), 1))
        return turn

    def _said(self, room: int) -> Turn:
        return self._turn(self._post(room, self._person(room), text=_TEXT * (1 + self._random.getrandbits(2))))

    def _read(self, room: int) -> Turn:
        by, at = self._person(room), rfc3339(self._at_ms)
        offset = self._ends.get(f"conversation:{self._rooms[room]}", 0)
        kind = self._random.choice((ReceiptRead, ReceiptDelivered))
        return self._turn(self._entry(room, kind(by, at, offset), by, None))

    def _reacted(self, room: int) -> Turn:
        by = self._person(room)
        return self._turn(
            self._entry(
                room, MessageReacted(self._some_message(room), by, rfc3339(self._at_ms), "👍", True), by, self._id()
            )
        )

    def _edited(self, room: int) -> Turn:
        by = self._person(room)
        return self._turn(
            self._entry(room, MessageEdited(self._some_message(room), by, rfc3339(self._at_ms), _TEXT), by, self._id())
        )

    def _some_message(self, room: int) -> str:
        posted = self._posted.get(self._rooms[room])
        return self._random.choice(posted) if posted else self._id()

    def _moved(self, number: int) -> Turn:
        """An order goes on: its event, a card in its conversation, its state, a reminder, and perhaps money."""
        order, stream = self._orders[number], f"order:{self._orders[number]}"
        customer, worker = self._people[2 * number], self._people[2 * number + 1]
        offset = self._ends[stream] = self._ends.get(stream, 0) + 1
        at = rfc3339(self._at_ms)
        event: dict[str, Any] = {
            "type": "order.milestone_approved", "by": customer, "at": at, "state": "in_progress", "version": offset,
            "changes": {"milestones": [{"n": n, "title": "Tiling", "state": "approved"} for n in range(3)]},
        }  # fmt: skip
        if self._random.randrange(3) == 0:
            postings = [
                {"account": f"escrow:{order}", "amount": 50_000},
                {"account": f"worker:{worker}", "amount": -50_000},
            ]
            event["private"] = {"ledger": [{"kind": "L3", "milestone": 1, "currency": "CNY", "postings": postings}]}
        state = {
            "id": order, "state": "in_progress", "version": offset, "customer_id": customer, "worker_id": worker,
            "quotes": [{"worker_id": worker, "amount": 150_000}], "title": "Bathroom", "description": _TEXT * 20,
        }  # fmt: skip
        entry = Entry(
            stream, offset, "order.milestone_approved", self._id(), _HASH, f"user:{customer}", self._at_ms,
            msgspec.json.encode(event),
        )  # fmt: skip
        due_ms = self._at_ms + 3 * 86_400_000
        return Turn(
            partition_of(order),
            [entry, self._post(number, "system", card={"kind": "order", "type": entry.type, "version": offset})],
            [Snapshot(stream, offset, 1, msgspec.json.encode(state), 1)],
            reminders=[Reminder(stream, f"auto_approve:{offset % 2}", due_ms, offset, "approve_milestone", b"{}")],
            done=[(stream, f"auto_approve:{(offset + 1) % 2}")] if offset > 1 else [],
        )


async def flush_step(url: str, name: str, server: int | None, seconds: float, profile: Path | None) -> FlushStep:
    """Flush for so long as one owner of all partitions. `server` is the pid of the database, if it has one.

    With `profile`, py-spy writes there what this process does: a flame graph for `.svg`, else what its format `raw` is.
    """
    await migrate(url, "bench")
    database = Database(url)
    # Of a database that was there before, nobody knows what has been put into it.
    log, traffic = SqlPartitionLog(database), Traffic(random.SystemRandom().getrandbits(64))
    heads = {p: taken.position for p, taken in (await log.take(range(PARTITIONS), "bench", _AT_MS)).items()}
    for _ in range(WARM_UP):
        heads.update((await log.commit(traffic.flush(), heads)).heads)
    samples: list[float] = []
    usages: list[Usage] = []
    with _profiled(profile, seconds):
        while sum(usage.wall_s for usage in usages) < seconds:
            ahead = [traffic.flush() for _ in range(AHEAD)]
            meter = Meter(lambda: None if server is None else {server: "database"})
            for turns in ahead:
                began_s = perf_counter()
                done = await log.commit(turns, heads)
                samples.append(perf_counter() - began_s)
                assert not done.stale
                assert not done.fenced
                heads.update(done.heads)
            usages.append(meter.stop())
    await log.close()
    await database.close()
    usage = _sum(usages)
    measured, events = latency(samples), EVENTS * len(samples)
    assert measured is not None
    return FlushStep(
        database=name,
        flushes=len(samples),
        events_per_s=events / usage.wall_s,
        flush=measured,
        client_cpu_ms=1_000 * usage.generator_cpu_s / events,
        server_cpu_ms=None if usage.servers_cpu_s is None else 1_000 * usage.servers_cpu_s / events,
        usage=usage,
        faults=[fault for fault in usage.faults() if not fault.startswith("void")],  # it is meant to be busy
    )


def _sum(usages: list[Usage]) -> Usage:
    servers: dict[str, float] | None = None
    for usage in usages:
        for role, cpu_s in (usage.servers or {}).items():
            servers = servers or {}
            servers[role] = round(servers.get(role, 0.0) + cpu_s, 3)
    return Usage(
        sum(usage.wall_s for usage in usages),
        sum(usage.generator_cpu_s for usage in usages),
        sum(usage.machine_cpu_s for usage in usages),
        sum(usage.stolen_cpu_s for usage in usages),
        servers,
    )


@contextlib.contextmanager
def _profiled(path: Path | None, seconds: float) -> Iterator[None]:
    if path is None:
        yield
        return
    form = "flamegraph" if path.suffix == ".svg" else "raw"
    command = [str(Path(sys.executable).parent / PROFILER), "record", "--pid", str(os.getpid()), "--nonblocking"]
    command += ["--format", form, "--output", str(path), "--rate", "500", "--duration", str(int(seconds * 4) + 60)]
    with tempfile.TemporaryFile() as said:
        profiler = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            yield
        finally:
            profiler.send_signal(signal.SIGINT)
            profiler.wait(60)
