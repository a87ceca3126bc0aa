"""What people sent, were told and were shown, judged at once wherever that is possible: the trace then ends where it broke."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from domain.chat_events import ERASED, erased
from storage.partition_log import publication
from tests.support.simulated_loop import VirtualLoop
from tests.support.simulated_store import SimulatedDatabase

WITHOUT_EFFECT = frozenset({"message.delete", "start_payment", "deposit_held"})
"""Writes that may be accepted and change nothing: deleting twice, paying what is paid."""


class Violation(Exception):
    """A promise was broken; the simulation ends here."""


class Write(msgspec.Struct):
    """Something that a device wants in the log. `floor` is the stream's known end when it was first sent."""

    id: str
    stream: str
    method: str
    data: dict[str, Any]
    device: str
    user: str
    first_sent_s: float = -1.0
    copies: int = 0
    """How often it was sent."""
    floor: int = 0
    answer: tuple[int, Any] | None = None
    originals: int = 0
    refused: str = ""
    doubtful: bool = False
    """An answer said that the outcome is unknown."""
    result: Any = None

    @property
    def over(self) -> bool:
        return self.answer is not None or bool(self.refused)


class Ledger:
    """Every promise that can be judged when something is said. `ended` is called at the first one that is broken."""

    def __init__(
        self,
        loop: VirtualLoop,
        database: SimulatedDatabase,
        trace: Callable[[str, str], None],
        ended: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._database = database
        self._trace = trace
        self._ended = ended
        self._said: dict[tuple[str, int], bytes] = {}
        """What stood at a (stream, offset) before it was erased, as far as anybody was shown it."""
        self.refusable: Callable[[Write, str, int | None], bool] = lambda write, code, before: True
        """Whether the refusal was right at some moment since the write was first sent, with the stream `before` an offset."""
        self.violations: list[str] = []
        self.writes: dict[str, Write] = {}
        self.known: dict[str, int] = {}
        """The end of each stream, as it was acknowledged or shown to somebody."""
        self.shown: dict[tuple[str, str], int] = {}
        """By (device, stream): the last offset."""
        self.owners: dict[tuple[str, str], int] = {}
        """By (device, stream): the newest owner whose ephemeral items were shown."""
        self.counts: Counter[str] = Counter()

    def broken(self, invariant: str, text: str) -> None:
        self.violations.append(f"{invariant}: {text}")
        self._trace("VIOLATION", f"{invariant}: {text}")
        self._ended()

    def floor(self, stream: str) -> int:
        return self.known.get(stream, 0)

    def _know(self, stream: str, offset: int) -> None:
        if offset > self.known.get(stream, 0):
            self.known[stream] = offset

    # --- writes ------------------------------------------------------------------------------------------------------

    def sent(self, write: Write) -> None:
        self.counts["sent"] += 1
        write.copies += 1
        if write.first_sent_s < 0:
            self.writes[write.id] = write
            write.first_sent_s = self._loop.time()
            write.floor = self.floor(write.stream)

    def answered(self, write: Write, offset: int, at: Any, events: Any, replayed: bool) -> None:
        """A positive answer has reached the device."""
        self.counts["acked"] += 1
        self._trace(write.device, f"is told that {write.id} is {write.stream}#{offset}{' again' if replayed else ''}")
        answer = (offset, msgspec.json.encode([at, events]))
        stored_at = self._database.store.commands.get((write.stream, write.id))
        if write.answer is not None and write.answer != answer and stored_at is not None:
            self.broken("equal answers", f"{write.id} was {write.answer} and is {answer}")
        if not replayed:
            write.originals += 1
            if write.originals > 1 and stored_at is not None:
                self.broken("exactly once", f"{write.id} was answered twice as new")
        write.answer = answer
        entries = self._database.store.streams.get(write.stream, [])
        if stored_at is None:
            if write.method not in WITHOUT_EFFECT:
                self.broken("acknowledged means durable", f"{write.id} was acknowledged at {offset}, and is not stored")
        elif stored_at != offset:
            self.broken("acknowledged means durable", f"{write.id} is at {stored_at}, acknowledged at {offset}")
        elif not replayed and offset <= write.floor:
            self.broken("acknowledged means durable", f"{write.id} got {offset}, where {write.floor} was taken already")
        if offset > len(entries):
            self.broken("acknowledged means durable", f"{write.stream} ends at {len(entries)}, not at {offset}")
        self._know(write.stream, offset)

    def refused(self, write: Write, code: str) -> None:
        """A refusal that no retry can mend."""
        self.counts[f"refused {code}"] += 1
        self._trace(write.device, f"is told that {write.id} ({write.method}) is refused: {code}")
        if write.answer is not None:
            self.broken("equal answers", f"{write.id} was acknowledged at {write.answer[0]} and is refused: {code}")
        stored_at = self._database.store.commands.get((write.stream, write.id))
        if stored_at is not None and write.copies == 1:
            self.broken("true refusals", f"{write.id} is stored, and its device is told {code}")
        elif not self.refusable(write, code, stored_at):
            # Refusals are not remembered: of several copies one may have come too early, and another one in time.
            self.broken("true refusals", f"{write.id} ({write.data}) was never to be refused as {code}")
        write.refused = code

    # --- events ------------------------------------------------------------------------------------------------------

    def show(self, device: str, stream: str, offset: int, data: bytes) -> None:
        """A device shows an event; each exactly once, in order, as the log has it."""
        self.counts["shown"] += 1
        last = self.shown.get((device, stream), 0)
        if offset <= last:
            self.broken("shown once", f"{device} is shown {stream}#{offset} after {last}")
            return
        if offset != last + 1:
            self.broken("shown without a hole", f"{device} is shown {stream}#{offset} after {last}")
            return
        self.compare(device, stream, offset, data)
        self.shown[device, stream] = offset
        self._know(stream, offset)

    def compare(self, device: str, stream: str, offset: int, data: bytes) -> None:
        """What somebody sees at an offset is what the log has there, or had before the message was deleted."""
        stored = self.public(stream, offset)
        if stored is None:
            self.broken("nothing unsent", f"{device} is shown {stream}#{offset}, which is not stored")
            return
        if ERASED in stored and ERASED not in data:
            said = self._said.setdefault((stream, offset), data)
            same = data == said and erased(data) == stored
        else:
            said, same = stored, data == stored
            if ERASED not in stored:
                self._said[stream, offset] = stored
        if not same:
            self.broken("the same everywhere", f"{device} is shown {data!r} at {stream}#{offset}, stored is {said!r}")

    def public(self, stream: str, offset: int) -> bytes | None:
        """What the members see of what is stored there now."""
        entries = self._database.store.streams.get(stream, [])
        return publication(stream, entries[offset - 1].body) if offset <= len(entries) else None

    def ephemeral(self, device: str, stream: str, owner: int) -> None:
        self.counts["ephemeral shown"] += 1
        newest = self.owners.get((device, stream), 0)
        if owner < newest:
            self.broken("stale words", f"{device} is shown an item of owner {owner} in {stream} after one of {newest}")
        self.owners[device, stream] = max(owner, newest)

    # --- reads -------------------------------------------------------------------------------------------------------

    def read(self, device: str, what: str, stream: str, floor: int, head: int) -> None:
        """An answer says that the stream goes up to `head`; `floor` had been said or shown before it was asked for."""
        self.counts[f"read {what}"] += 1
        end = self._database.store.end(stream)
        if head < floor:
            self.broken(
                "true answers", f"{device} is told by {what} that {stream} is at {head}: {floor} was known before"
            )
        if head > end:
            self.broken("true answers", f"{device} is told by {what} that {stream} is at {head}: it ends at {end}")

    def status(self, device: str, write: Write, floor: int, known: bool, offset: int | None) -> None:
        """What `write.status` said; `floor`: how far the stream was known to go before it was asked."""
        self.counts["read status"] += 1
        stored = self._database.store.commands.get((write.stream, write.id))
        if not known and stored is not None and stored <= floor:
            self.broken("true answers", f"{device} is told that {write.id} has not landed; {floor} was known before")
        if known and stored != offset:
            self.broken("true answers", f"{device} is told that {write.id} landed at {offset}; it is at {stored}")
