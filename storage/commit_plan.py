"""Which turns a commit writes, and the rows they become; pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import astuple

from domain.aggregate import Opening
from domain.channels import stream_partition
from domain.commands import Reminder
from domain.ports import Entry, Snapshot, Turn


class Overtaken(Exception):
    """Others have moved these partitions or streams on; what touches them cannot be committed."""

    def __init__(self, fenced: set[int], stale: set[str]) -> None:
        super().__init__(f"fenced {sorted(fenced)}, stale {sorted(stale)}")
        self.fenced = fenced
        self.stale = stale


class CommitPlan(msgspec.Struct):
    """One transaction. All rows are sorted by their keys, so that two commits never wait for each other in a ring.

    `bases`: the position before the first row of each partition; `heads`: that of its last. `firsts` and `lasts`: the
    offsets of each stream. `claims` and `releases`: (key, streams of the turn, its time). `openings`: each with the streams
    of its turn, in order. `reminders` (with their partitions) and `done` are what all turns together set and remove. A
    stream is in `stale` when any turn that touches it was left out, even one that came before: then all of them were.
    """

    turns: list[Turn]
    fenced: set[int]
    stale: set[str]
    entries: list[Entry] = []
    snapshots: list[Snapshot] = []
    rows: list[tuple[Any, ...]] = []
    bases: dict[int, int] = {}
    heads: dict[int, int] = {}
    firsts: dict[str, int] = {}
    lasts: dict[str, int] = {}
    partition_of: dict[str, int] = {}
    claims: list[tuple[str, tuple[str, ...], int]] = []
    releases: list[tuple[str, tuple[str, ...], int]] = []
    openings: list[tuple[Opening, tuple[str, ...]]] = []
    reminders: list[tuple[int, Reminder]] = []
    done: list[tuple[str, str]] = []


def plan_commit(turns: Sequence[Turn], heads: Mapping[int, int], fenced: set[int], stale: set[str]) -> CommitPlan:
    """The transaction of all turns that touch nothing fenced and nothing stale."""
    kept, stale = _kept(turns, fenced, stale)
    plan = CommitPlan(kept, set(fenced), stale)
    newest: dict[str, Snapshot] = {}
    pending: dict[tuple[str, str], tuple[int, Reminder] | None] = {}
    for turn in kept:
        partition = turn.partition
        if turn.entries:
            head = plan.heads.get(partition)
            if head is None:
                head = plan.bases[partition] = heads.get(partition, 0)
            for entry in turn.entries:
                head += 1
                stream = entry.stream
                plan.rows.append((partition, head, *astuple(entry)))
                plan.entries.append(entry)
                plan.firsts.setdefault(stream, entry.offset)
                plan.lasts[stream] = entry.offset
                plan.partition_of[stream] = partition
            plan.heads[partition] = head
        for snapshot in turn.snapshots:
            newest[snapshot.stream] = snapshot
        if turn.reminders or turn.done:
            # Without a log row nothing would keep a former owner from writing them.
            assert turn.entries, "reminders change with events only"
            pending.update((key, None) for key in turn.done)
            pending.update(((r.stream, r.name), (partition, r)) for r in turn.reminders)
        if turn.claims or turn.releases:
            streams, at = touched(turn), max((entry.at for entry in turn.entries), default=0)
            plan.claims.extend((key, streams, at) for key in turn.claims)
            plan.releases.extend((key, streams, at) for key in turn.releases)
        if turn.opening is not None:
            plan.openings.append((turn.opening, touched(turn)))
    plan.rows.sort(key=_position)
    plan.claims.sort()
    plan.releases.sort()
    plan.snapshots = [newest[stream] for stream in sorted(newest)]
    for key, reminder in sorted(pending.items(), key=_key):
        if reminder is None:
            plan.done.append(key)
        else:
            plan.reminders.append(reminder)
    return plan


def touched(turn: Turn) -> tuple[str, ...]:
    """The streams of a turn, the one it is about first."""
    return tuple(dict.fromkeys([e.stream for e in turn.entries] + [s.stream for s in turn.snapshots]))


def _kept(turns: Sequence[Turn], fenced: set[int], stale: set[str]) -> tuple[list[Turn], set[str]]:
    """The turns to write, and the stale streams with all those that they drag along.

    A turn that is left out leaves a hole in each of its streams, so every other turn of these goes too, until that
    changes nothing any more.
    """
    stale = stale | _broken(turn for turn in turns if turn.partition not in fenced)
    while stale:
        left_out = [turn for turn in turns if turn.partition not in fenced and not stale.isdisjoint(touched(turn))]
        wider = stale.union(*map(touched, left_out))
        if wider == stale:
            break
        stale = wider
    kept = [turn for turn in turns if turn.partition not in fenced and stale.isdisjoint(touched(turn))]
    return kept, stale


def _broken(turns: Any) -> set[str]:
    """Streams whose rows cannot be right whatever is stored: holes, doubled command ids, or a foreign partition."""
    last: dict[str, int] = {}
    ids: set[tuple[str, str]] = set()
    broken: set[str] = set()
    for turn in turns:
        for entry in turn.entries:
            key = (entry.stream, entry.command_id or "")
            if last.get(entry.stream, entry.offset - 1) != entry.offset - 1 or entry.offset < 1:
                broken.add(entry.stream)
            if entry.command_id is not None and key in ids:
                broken.add(entry.stream)
            if stream_partition(entry.stream) != turn.partition:
                broken.add(entry.stream)
            ids.add(key)
            last[entry.stream] = entry.offset
    return broken


def _position(row: tuple[Any, ...]) -> tuple[int, int]:
    return row[0], row[1]


def _key(item: tuple[tuple[str, str], object]) -> tuple[str, str]:
    return item[0]
