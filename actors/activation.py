"""One order or conversation, live: its state, its mailbox, and what it remembers of recent commands."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from domain.aggregate import Facts, Need, Rules
from domain.commands import Accepted, Command, Publication, Query, Signal
from domain.errors import Refusal
from domain.ids import uuid7_ms
from domain.ports import Entry, Loaded, Snapshot
from domain.tracking import Track

MAILBOX: Final = 256
"""Requests that may wait for one activation, those not yet committed included."""
REMEMBERED: Final = 64
"""Committed commands that an activation remembers; it remembers every uncommitted one besides."""
TAIL_EVENTS: Final = 64
TAIL_BYTES: Final = 16_384
"""What an activation keeps of its last events, for readers who come back: at most so many, in so many bytes."""
BARE_BYTES: Final = 3_000
"""What an activation weighs before its state and what it remembers."""
_BEHIND: Final = 64
_ERASES: Final = b'"message.deleted"'
"""After such an event nothing may be handed out that was read before it. No text can hold this: its quotes are escaped."""


class Landed(msgspec.Struct):
    """A command that has had its effect (or will have, once its flush is durable)."""

    hash: bytes
    offset: int
    last_offset: int
    at: int
    events: tuple[Publication, ...]

    @property
    def weight(self) -> int:
        """About how many bytes it takes in memory."""
        size = 500
        for publication in self.events:
            size += len(publication.data)
        return size

    def replay(self, view: bytes | None) -> Accepted:
        return Accepted(self.offset, self.at, self.events, True, view)


class Item:
    """A request on its way through a turn, with what has been found out for it so far."""

    __slots__ = (
        "error", "facts", "found", "hash", "looked_up", "parsed", "reply", "request", "reserved", "rounds", "settled",
        "until_s",
    )  # fmt: skip

    def __init__(self, request: Command | Query | Signal, reply: str, until_s: float | None = None) -> None:
        """`until_s`: when, by our monotonic clock, nobody waits for the answer any more; None: never."""
        self.request = request
        self.reply = reply
        self.until_s = until_s
        self.parsed: Any = None
        self.error: Refusal | None = None
        self.hash: bytes | None = None
        self.looked_up = False
        self.found: Landed | None = None
        self.facts: dict[Need, Any] = {}
        self.reserved: frozenset[str] = frozenset()
        self.rounds = 0
        self.settled = False

    def missing(self, needs: tuple[Need, ...]) -> tuple[Need, ...]:
        return tuple(need for need in needs if need not in self.facts)

    def known(self) -> Facts:
        return Facts(self.facts)


class Activation:
    """The live state of one stream. Single-threaded by construction: only its host's event loop touches it.

    `version` is the offset up to which `state` has evolved, `committed` the one up to which that is durable; `stable`
    is the state at that one. A `dead` activation has been thrown away: whatever still refers to it must be asked again.
    `life` goes up whenever tentative turns were undone: what was decided in a former life must not be committed.
    """

    __slots__ = (
        "_base",
        "_behind",
        "_tail",
        "_tail_bytes",
        "bytes",
        "committed",
        "complete",
        "dead",
        "express",
        "last_used_s",
        "life",
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
        self.express = 0
        """How many of the uncommitted overtake others on their way into a flush."""
        self.snapshot_offset = 0
        self.loading: asyncio.Task[None] | None = None
        self.ready = False
        self.paused = False
        self.dead = False
        self.last_used_s = now_s
        self.track: Track | None = None
        self.life = 0
        self.bytes = BARE_BYTES
        """About what it weighs in memory: the stored state thrice, and what it remembers."""
        self._base: Any = None
        self._behind: list[tuple[int, Any]] = []
        self._tail: deque[Publication] = deque()
        self._tail_bytes = 0

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
            self.bytes += 3 * len(snapshot.body)
        for entry in loaded.tail:
            self.state = self.rules.evolve(self.state, self.rules.decode_event(entry.body), entry.offset)
        self.publish([Publication(e.offset, self.rules.publication(e.body)) for e in loaded.tail[-TAIL_EVENTS:]])
        self.committed = self.version
        for landed_id, landed in landings(self.rules, loaded.tail).items():
            self.remember(landed_id, landed)
        self.ready = True

    # --- what is decided but not yet durable -----------------------------------------------------------------------

    def begin(self) -> None:
        """The state is about to evolve by events that are not committed yet."""
        if self._base is None:
            self._base = self.rules.fork(self.state)

    @property
    def tentative(self) -> bool:
        """Whether the state holds anything that is not durable."""
        return self._base is not None

    def landed(self, events: list[tuple[int, Any]]) -> None:
        """These (offset, event) are durable now; they come in order."""
        self.committed = max(self.committed, events[-1][0])
        if self.committed >= self.version:
            self._base = None
            self._behind.clear()
        elif self._base is not None:
            self._behind += events
            if len(self._behind) > _BEHIND:
                self._catch_up()

    def publish(self, publications: Sequence[Publication]) -> None:
        """These are what readers see of events that are durable now; they come in order."""
        tail, before = self._tail, self._tail_bytes
        for publication in publications:
            if _ERASES in publication.data or (tail and publication.offset != tail[-1].offset + 1):
                tail.clear()
                self._tail_bytes = 0
            tail.append(publication)
            self._tail_bytes += len(publication.data)
            while len(tail) > TAIL_EVENTS or self._tail_bytes > TAIL_BYTES:
                self._tail_bytes -= len(tail.popleft().data)
        self.bytes += self._tail_bytes - before

    def tail_after(self, offset: int) -> tuple[Publication, ...]:
        """All publications after the offset, if they are still here; else none."""
        tail = self._tail
        if not tail or not tail[0].offset - 1 <= offset < tail[-1].offset:
            return ()
        return tuple(tail)[offset + 1 - tail[0].offset :]

    def stable(self) -> Any:
        """The state as committed: what may be shown at any time."""
        if self._base is None:
            return self.state
        self._catch_up()
        return self._base

    def _catch_up(self) -> None:
        for offset, event in self._behind:
            self._base = self.rules.evolve(self._base, event, offset)
        self._behind.clear()

    def revert(self) -> None:
        """Undo everything that is not durable."""
        self.life += 1
        self.state = self.stable()
        self._base = None
        for known in [known for known, landed in self.recent.items() if landed.last_offset > self.committed]:
            self._forget(known)
        if self.snapshot_offset > self.committed:
            self.snapshot_offset = max(0, self.committed - self.rules.snapshot_every)

    # --- commands seen before ---------------------------------------------------------------------------------------

    def rules_out(self, command_id: str) -> bool:
        """True if the id, which is not among the recent ones, cannot have landed in this stream before.

        Sound whatever clients' clocks say: an id made "later" than every id that was ever forgotten is none of them.
        """
        if self.complete:
            return True
        made_ms = uuid7_ms(command_id)
        return made_ms is not None and made_ms > self.newest_id_ms

    def remember(self, command_id: str, landed: Landed) -> None:
        if command_id in self.recent:
            self._forget(command_id)
        self.recent[command_id] = landed
        self.bytes += landed.weight
        while len(self.recent) > REMEMBERED:
            oldest_id = next(iter(self.recent))
            if self.recent[oldest_id].last_offset > self.committed:
                return
            self._forget(oldest_id)
            self.complete = False
            self.newest_id_ms = max(self.newest_id_ms, uuid7_ms(oldest_id) or 0)

    def _forget(self, command_id: str) -> None:
        self.bytes -= self.recent.pop(command_id).weight

    def snapshot(self, after: int = 0) -> Snapshot | None:
        """The state as it is, when `after` events have come since the last one; 0: as often as the rules say."""
        version = self.version
        if version - self.snapshot_offset < (after or self.rules.snapshot_every):
            return None
        self.snapshot_offset = version
        body = self.rules.encode_state(self.state)
        newest = max((uuid7_ms(known) or 0 for known in self.recent), default=0)
        return Snapshot(
            self.stream,
            version,
            self.rules.schema,
            body,
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
