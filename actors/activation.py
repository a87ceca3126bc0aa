"""One order or conversation, live: its state, its mailbox, and what it remembers of recent commands."""

import asyncio
from collections import OrderedDict, deque
from typing import Any, Final

import msgspec
from domain.tracking import Track

from domain.aggregate import Facts, Need, Rules
from domain.commands import Accepted, Command, Publication, Query, Signal
from domain.errors import Refusal
from domain.ids import uuid7_ms
from domain.ports import Entry, Loaded, Snapshot

MAILBOX: Final = 256
"""Requests that may wait for one activation, those not yet committed included."""
REMEMBERED: Final = 64
"""Committed commands that an activation remembers; it remembers every uncommitted one besides."""


class Landed(msgspec.Struct):
    """A command that has had its effect (or will have, once its flush is durable)."""

    hash: bytes
    offset: int
    last_offset: int
    at: int
    events: tuple[Publication, ...]

    def replay(self, view: bytes | None) -> Accepted:
        return Accepted(self.offset, self.at, self.events, True, view)


class Item:
    """A request on its way through a turn, with what has been found out for it so far."""

    __slots__ = ("error", "facts", "found", "hash", "looked_up", "parsed", "reply", "request", "reserved", "rounds")

    def __init__(self, request: Command | Query | Signal, reply: str) -> None:
        self.request = request
        self.reply = reply
        self.parsed: Any = None
        self.error: Refusal | None = None
        self.hash: bytes | None = None
        self.looked_up = False
        self.found: Landed | None = None
        self.facts: dict[Need, Any] = {}
        self.reserved: frozenset[str] = frozenset()
        self.rounds = 0

    def missing(self, needs: tuple[Need, ...]) -> tuple[Need, ...]:
        return tuple(need for need in needs if need not in self.facts)

    def known(self) -> Facts:
        return Facts(self.facts)


class Activation:
    """The live state of one stream. Single-threaded by construction: only its host's event loop touches it.

    `version` is the offset up to which `state` has evolved, `committed` the one up to which that is durable.
    A `dead` activation has been thrown away: whatever still refers to it must be asked again.
    """

    __slots__ = (
        "committed",
        "complete",
        "dead",
        "last_used_s",
        "loading",
        "mailbox",
        "newest_id_ms",
        "partition",
        "paused",
        "ready",
        "recent",
        "rules",
        "snapshot_offset",
        "state",
        "stream",
        "track",
        "uncommitted",
    )

    def __init__(self, stream: str, partition: int, rules: Rules[Any, Any], now_s: float) -> None:
        self.stream = stream
        self.partition = partition
        self.rules = rules
        self.state: Any = rules.initial(stream.partition(":")[2])
        self.mailbox: deque[Item] = deque()
        self.recent: OrderedDict[str, Landed] = OrderedDict()
        self.newest_id_ms = 0
        self.complete = True
        self.committed = 0
        self.uncommitted = 0
        self.snapshot_offset = 0
        self.loading: asyncio.Task[None] | None = None
        self.ready = False
        self.paused = False
        self.dead = False
        self.last_used_s = now_s
        self.track: Track | None = None

    @property
    def version(self) -> int:
        return self.rules.version(self.state)

    def load(self, loaded: Loaded) -> None:
        """Take the stored stream as the state: the snapshot, then every entry after it."""
        snapshot = loaded.snapshot
        if snapshot is not None:
            self.state = self.rules.decode_state(snapshot.body)
            self.newest_id_ms = snapshot.newest_id_ms
            self.snapshot_offset = snapshot.offset
            self.complete = False
        for entry in loaded.tail:
            self.state = self.rules.evolve(self.state, self.rules.decode_event(entry.body), entry.offset)
        self.committed = self.version
        for landed_id, landed in landings(self.rules, loaded.tail).items():
            self.remember(landed_id, landed)
        self.ready = True

    def rules_out(self, command_id: str) -> bool:
        """True if the id, which is not among the recent ones, cannot have landed in this stream before.

        Sound whatever clients' clocks say: an id made "later" than every id that was ever forgotten is none of them.
        """
        if self.complete:
            return True
        made_ms = uuid7_ms(command_id)
        return made_ms is not None and made_ms > self.newest_id_ms

    def remember(self, command_id: str, landed: Landed) -> None:
        self.recent[command_id] = landed
        while len(self.recent) > REMEMBERED:
            oldest_id = next(iter(self.recent))
            if self.recent[oldest_id].last_offset > self.committed:
                return
            del self.recent[oldest_id]
            self.complete = False
            self.newest_id_ms = max(self.newest_id_ms, uuid7_ms(oldest_id) or 0)

    def snapshot(self) -> Snapshot | None:
        """The state as it is, when a snapshot is due."""
        version = self.version
        if version - self.snapshot_offset < self.rules.snapshot_every:
            return None
        self.snapshot_offset = version
        newest = max((uuid7_ms(known) or 0 for known in self.recent), default=0)
        return Snapshot(
            self.stream,
            version,
            self.rules.schema,
            self.rules.encode_state(self.state),
            max(newest, self.newest_id_ms),
        )


def landings(rules: Rules[Any, Any], entries: list[Entry]) -> dict[str, Landed]:
    """The commands that stand in consecutive entries of a stream, by id; entries before the first id belong to none."""
    found: dict[str, Landed] = {}
    current: Landed | None = None
    for entry in entries:
        publication = Publication(entry.offset, rules.publication(entry.body))
        if entry.command_id is not None:
            current = Landed(entry.command_hash or b"", entry.offset, entry.offset, entry.at, (publication,))
            found[entry.command_id] = current
        elif current is not None and entry.command_hash == current.hash:
            current.events = (*current.events, publication)
            current.last_offset = entry.offset
    return found
