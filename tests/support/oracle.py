"""One judge for all that is done to the platform: what clients sent, were told and were shown, against the log itself.

L  every acknowledged write is in the log at its offset, and was shown to every device that follows the stream.
D  no id is stored twice, none is shown twice.
O  offsets have no hole; every device is shown what the log holds, in its order; and a message that was acknowledged, or was
   sent once before another one by the same connection, stands before what was sent after it.
P  nothing that was not sent is stored or shown, and nothing under another name or with another text.
U  every write that was sent ends as stored or as not stored, whatever its first answers were; all answers to one id agree.
W  a partition's positions have no hole, and between two takeover rows only the host that the first one names has written.

Everything here is a function of the evidence and the rows. Times are `time.perf_counter` seconds of the observer.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from domain.channels import stream_partition
from storage import tables as t
from storage.engine import Database

TAKEOVER = "takeover"
POSTED = "message.posted"
ONCE = "once"
"""The connection of a message that its sender does not wait for: nobody is kept waiting by it."""


class Sent(msgspec.Struct):
    """A message, from the moment it was due at its sender. `connection` is the one it was first written to."""

    id: str
    stream: str
    by: str
    text: str
    due_s: float
    sent_s: float = math.nan
    connection: str = ""
    attempts: int = 0
    acked_s: float = math.nan
    offset: int = 0
    at: str = ""
    originals: int = 0
    """Answers that said that this very request had the effect."""
    refused: str = ""
    """The code of a refusal that no retry can mend; empty for none."""
    absent: bool = False
    """After all was over the platform said that this id had not landed, and it was not sent again."""

    @property
    def acked(self) -> bool:
        return self.offset > 0


class Shown(NamedTuple):
    """A publication as a device got it. `what` is a message's id, or the type of any other event."""

    offset: int
    what: str
    at_s: float


class Row(NamedTuple):
    """A row of the log. A takeover row has no stream; its actor is `<host's name>/<incarnation>`."""

    partition: int
    position: int
    stream: str | None
    offset: int
    type: str
    command_id: str | None
    actor: str
    at_ms: int
    what: str
    text: str


class Fault(NamedTuple):
    """A broken promise: which one, in which stream or partition, and how."""

    promise: str
    where: str
    how: str

    def __str__(self) -> str:
        return f"{self.promise} {self.where}: {self.how}"


class Evidence:
    """What was sent, told and shown. Whoever speaks to the platform writes it down here, as it happens."""

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        self.shown: dict[tuple[str, str], list[Shown]] = {}
        """By (device, stream)."""
        self.began: dict[tuple[str, str], int] = {}
        """After which offset a device followed the stream."""
        self.opened: dict[str, tuple[str, ...]] = {}
        """The members of every stream that was opened, in order."""
        self.contradictions: list[Fault] = []
        self.errors: Counter[str] = Counter()
        """Error answers and lost connections, by what was told; most are mended by sending again."""
        self.events: list[tuple[float, str]] = []
        """What was done to the platform, and when."""
        self.resumed_s: list[float] = []
        """From a device's lost connection to the moment it was subscribed again."""

    def acked(self, message: Sent, offset: int, at: str, replayed: bool, now_s: float) -> None:
        """A positive answer: all to one id name the same place and time, and at most one is not a replay.

        The first may be one already: within the platform an unanswered request is sent again.
        """
        message.originals += not replayed
        if message.originals > 1 and not replayed:
            self._contradict(message, "was acknowledged twice as new")
        if message.acked:
            if (offset, at) != (message.offset, message.at):
                self._contradict(message, f"was acknowledged as {(message.offset, message.at)}, then as {(offset, at)}")
            return
        if offset < 1:
            self._contradict(message, f"was acknowledged at offset {offset}")
        message.offset, message.at, message.acked_s = offset, at, now_s

    def _contradict(self, message: Sent, how: str) -> None:
        self.contradictions.append(Fault("U", message.stream, f"{message.id} {how}"))

    def show(self, device: str, stream: str, offset: int, kind: str, data: Mapping[str, Any], now_s: float) -> None:
        """A publication that a device was shown."""
        what = str(data["message_id"]) if kind == POSTED else kind
        self.shown.setdefault((device, stream), []).append(Shown(offset, what, now_s))
        if kind == POSTED:
            self._compare(device, stream, what, str(data.get("by")), str(data.get("text")))

    def _compare(self, device: str, stream: str, what: str, by: str, text: str) -> None:
        message = self.sent.get(what)
        if message is not None and (message.stream, message.by, message.text) != (stream, by, text):
            how = f"{device} was shown {what} by {by} as {text[:60]!r}; sent was {message.text[:60]!r} by {message.by}"
            self.contradictions.append(Fault("P", stream, how))

    def happened(self, what: str, now_s: float) -> None:
        self.events.append((now_s, what))


# --- judging -----------------------------------------------------------------------------------------------------


def judge(
    evidence: Evidence,
    rows: Sequence[Row],
    commits: Mapping[str, Sequence[tuple[int, int, int]]] | None = None,
    *,
    until_s: float = math.inf,
    members: bool = True,
    whole: bool = True,
) -> list[Fault]:
    """Every promise that was broken; empty when all were kept.

    `rows` is the whole log by partition and position. `commits` are, by incarnation, the (partition, first, last)
    positions that its host knows it committed. `until_s`: what was told and shown later is not held against the platform
    (a power loss took it back). Without `members`, nobody had to be shown anything. Not `whole`: the rows are only those of
    the evidence's streams and the takeover rows, so that positions have holes.
    """
    streams: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.stream is not None:
            streams[row.stream].append(row)
    for stored in streams.values():
        stored.sort(key=lambda row: row.offset)
    faults = list(evidence.contradictions)
    faults += _positions(rows) if whole else []
    faults += _stored(evidence, streams, until_s)
    faults += _settled(evidence, streams, until_s)
    faults += _order(evidence)
    for (device, stream), shown in evidence.shown.items():
        seen = [item for item in shown if item.at_s <= until_s]
        after = evidence.began.get((device, stream), 0)
        faults += _shown(
            device, stream, seen, streams.get(stream, []), after, to_the_end=members and until_s == math.inf
        )
    if commits is not None:
        faults += _writers(rows, commits)
    return faults


def _positions(rows: Sequence[Row]) -> Iterable[Fault]:
    for partition, group in itertools.groupby(rows, key=lambda row: row.partition):
        positions = [row.position for row in group]
        if positions != list(range(1, len(positions) + 1)):
            hole = next((n for n, found in enumerate(positions, 1) if n != found), len(positions))
            yield Fault("W", f"partition {partition}", f"positions are not 1, 2, 3 … at {hole}")
    for row in rows:
        if row.stream is not None and stream_partition(row.stream) != row.partition:
            yield Fault("W", row.stream, f"is in partition {row.partition}")


def _stored(evidence: Evidence, streams: Mapping[str, list[Row]], until_s: float) -> Iterable[Fault]:
    """The log by itself, against what was sent and acknowledged."""
    for stream, stored in streams.items():
        offsets = [row.offset for row in stored]
        if offsets != list(range(1, len(offsets) + 1)):
            at = next((n for n, found in enumerate(offsets, 1) if n != found), len(offsets))
            yield Fault("O", stream, f"the log's offsets are not 1, 2, 3 …: {offsets[at - 1]} stands where {at} should")
        for what, times in Counter(row.what for row in stored if row.type == POSTED).items():
            if times > 1:
                yield Fault("D", stream, f"message {what} is stored {times} times")
        yield from _unsent(evidence, stream, stored)
    places = {row.what: row for stored in streams.values() for row in stored if row.type == POSTED}
    for message in evidence.sent.values():
        row = places.get(message.id)
        if not message.acked or message.acked_s > until_s:
            continue
        if row is None:
            yield Fault("L", message.stream, f"{message.id} was acknowledged at {message.offset} and is not stored")
        elif (row.stream, row.offset) != (message.stream, message.offset):
            how = f"{message.id} was acknowledged at {message.offset} and is stored at {row.offset} of {row.stream}"
            yield Fault("L", message.stream, how)
    for stream, members in evidence.opened.items():
        if len(streams.get(stream, ())) < len(members):
            yield Fault("L", stream, "was opened and is not stored")


def _unsent(evidence: Evidence, stream: str, stored: Iterable[Row]) -> Iterable[Fault]:
    joined = 0
    for row in stored:
        message = evidence.sent.get(row.what) if row.type == POSTED else None
        if row.type == "member.joined" and joined < len(evidence.opened.get(stream, ())):
            joined += 1
        elif row.type != POSTED or message is None:
            yield Fault("P", stream, f"{row.type} {row.what} at {row.offset} was sent by nobody")
        elif (message.stream, f"user:{message.by}", message.text) != (stream, row.actor, row.text):
            yield Fault("P", stream, f"{row.what} by {row.actor} as {row.text[:60]!r} is not what was sent")


def _settled(evidence: Evidence, streams: Mapping[str, list[Row]], until_s: float) -> Iterable[Fault]:
    stored = {row.what for rows in streams.values() for row in rows if row.type == POSTED}
    for message in evidence.sent.values():
        if message.refused and message.acked:
            yield Fault("U", message.stream, f"{message.id} was refused ({message.refused}) and acknowledged")
        elif (message.refused or message.absent) and message.id in stored:
            how = message.refused or "said not to have landed"
            yield Fault("U", message.stream, f"{message.id} was {how} and is stored")
        elif not (message.acked or message.refused or message.absent) and until_s == math.inf:
            yield Fault(
                "U", message.stream, f"{message.id} was sent {message.attempts} times and has never been settled"
            )


def _order(evidence: Evidence) -> Iterable[Fault]:
    """What was acknowledged before something was sent stands before it; what one connection sent once is in its order."""
    by_stream: dict[str, list[Sent]] = defaultdict(list)
    for message in evidence.sent.values():
        if message.acked:
            by_stream[message.stream].append(message)
    for stream, messages in by_stream.items():
        acked = sorted(messages, key=lambda message: message.acked_s)
        highest, done = 0, 0
        for message in sorted(messages, key=lambda message: message.sent_s):
            while done < len(acked) and acked[done].acked_s < message.sent_s:
                highest = max(highest, acked[done].offset)
                done += 1
            if message.offset <= highest:
                how = f"{message.id} at {message.offset} was sent when {highest} had been acknowledged"
                yield Fault("O", stream, how)
        last: dict[tuple[str, str], int] = {}
        for message in sorted(messages, key=lambda message: message.sent_s):
            key = (message.by, message.connection)
            if message.attempts == 1:
                if message.offset < last.get(key, 0):
                    yield Fault(
                        "O", stream, f"{message.id} at {message.offset} stands before what {message.by} sent earlier"
                    )
                last[key] = message.offset


def _shown(
    device: str, stream: str, shown: Sequence[Shown], stored: Sequence[Row], after: int, *, to_the_end: bool
) -> Iterable[Fault]:
    where = f"{stream} at {device}"
    for expected, item in enumerate(shown, after + 1):
        if item.offset != expected:
            how = "twice" if item.offset < expected else "after a hole"
            yield Fault(
                "D" if item.offset < expected else "O", where, f"was shown {item.offset} {how}: {expected} was next"
            )
            return
        if expected > len(stored):
            yield Fault("P", where, f"was shown {item.what} at {item.offset}; the log ends at {len(stored)}")
            return
        row = stored[expected - 1]
        if row.what != item.what:
            yield Fault("O", where, f"was shown {item.what} at {item.offset}; the log holds {row.what} there")
            return
    for what, times in Counter(item.what for item in shown if "." not in item.what).items():
        if times > 1:
            yield Fault("D", where, f"was shown {what} {times} times")
    if to_the_end and after + len(shown) < len(stored):
        yield Fault("L", where, f"was shown nothing after {after + len(shown)}; the log ends at {len(stored)}")


def _writers(rows: Sequence[Row], commits: Mapping[str, Sequence[tuple[int, int, int]]]) -> Iterable[Fault]:
    """Each row that a host knows to have committed stands in a reign of that host."""
    takeovers: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for row in rows:
        if row.type == TAKEOVER and row.stream is None:
            takeovers[row.partition].append((row.position, row.actor.rpartition("/")[2]))
    for incarnation, written in commits.items():
        for partition, first, last in written:
            reigns = [(position, owner) for position, owner in takeovers[partition] if position <= last]
            owner = reigns[-1][1] if reigns else "nobody"
            if owner != incarnation or reigns[-1][0] >= first:
                how = f"{incarnation} has committed {first}…{last}, where {owner} reigned"
                yield Fault("W", f"partition {partition}", how)


def unclaimed(rows: Sequence[Row], commits: Mapping[str, Sequence[tuple[int, int, int]]]) -> int:
    """How many rows no host knows to have committed: those of a host that died before it could write that down, and
    those of a commit whose outcome it never learned. Where none died there must be none, or **W** has not seen all."""
    claimed = {(p, n) for written in commits.values() for p, first, last in written for n in range(first, last + 1)}
    return sum(row.stream is not None and (row.partition, row.position) not in claimed for row in rows)


# --- figures -----------------------------------------------------------------------------------------------------


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of all values do not exceed; NaN where there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(share * len(ordered), 9)) - 1)] if ordered else math.nan


def spread(values: Sequence[float], unit: str = "_s") -> dict[str, float]:
    """p50, p99 and the largest, rounded to milliseconds."""
    names = {f"p50{unit}": 0.5, f"p99{unit}": 0.99, f"max{unit}": 1.0}
    return {name: round(quantile(values, share), 3) for name, share in names.items()}


def ack_seconds(evidence: Evidence) -> list[float]:
    """From the moment a message was due to its first acknowledgement, all waiting in the sender's outbox included."""
    return [message.acked_s - message.due_s for message in evidence.sent.values() if message.acked]


def silences(evidence: Evidence, began_s: float, ended_s: float) -> dict[str, float]:
    """Of each stream that was written to, the longest time without an acknowledged write between these moments."""
    return {stream: max(gap for gap, _ in gaps) for stream, gaps in _gaps(evidence, began_s, ended_s).items()}


def silences_after(
    evidence: Evidence, rows: Sequence[Row], what: str, began_s: float, ended_s: float, clock_ms: float
) -> list[float]:
    """For each event whose name begins with `what` and each stream that had to move because of it: the longest time
    without an acknowledged write that overlaps the time from the event to the next event of any name.

    A stream had to move if its partition has a takeover row of that time. `clock_ms` is what to add to the observer's
    clock, in milliseconds, to get that of the rows.
    """
    taken: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row.stream is None:
            taken[row.partition].append((row.at_ms - clock_ms) / 1000)
    gaps = _gaps(evidence, began_s, ended_s)
    moments = [*sorted(evidence.events), (ended_s, "")]
    found = []
    for (from_s, name), (to_s, _) in itertools.pairwise(moments):
        if not name.startswith(what):
            continue
        for stream, silent in gaps.items():
            if any(from_s <= at_s <= to_s for at_s in taken[stream_partition(stream)]):
                overlapping = [gap for gap, end_s in silent if end_s > from_s and end_s - gap < to_s]
                found.append(max(overlapping, default=0.0))
    return found


def _gaps(evidence: Evidence, began_s: float, ended_s: float) -> dict[str, list[tuple[float, float]]]:
    """Of each stream the times between acknowledged writes, as (length, end)."""
    acked: dict[str, list[float]] = defaultdict(list)
    for message in evidence.sent.values():
        if began_s <= message.due_s <= ended_s and message.connection != ONCE:
            acked[message.stream]
        if message.acked and began_s <= message.acked_s <= ended_s:
            acked[message.stream].append(message.acked_s)
    return {
        stream: [(b - a, b) for a, b in itertools.pairwise([began_s, *sorted(times), ended_s])]
        for stream, times in acked.items()
    }


# --- reading -----------------------------------------------------------------------------------------------------


class _Body(msgspec.Struct):
    message_id: str | None = None
    text: str | None = None


_body = msgspec.json.Decoder(_Body).decode


async def read_log(url: str) -> list[Row]:
    """The whole log by partition and position, read from the database itself."""
    c = t.partition_log.c
    columns = (c.partition, c.position, c.stream, c.offset, c.type, c.command_id, c.actor, c.at, c.body)
    query = sa.select(*columns).order_by(c.partition, c.position)
    database = Database(url)
    rows = []
    try:
        async with database.read() as connection:
            for partition, position, stream, offset, kind, command_id, actor, at, body in await connection.execute(
                query
            ):
                read = _body(body) if kind == POSTED else _Body()
                what = read.message_id or kind
                text = read.text or ""
                rows.append(Row(partition, position, stream, offset or 0, kind, command_id, actor, at, what, text))
    finally:
        await database.close()
    return rows
