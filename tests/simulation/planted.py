"""Bugs that are planted on purpose: what the simulation is worth is how fast it finds them.

Each is a `Wiring` that puts one thing together wrongly; the platform's code is untouched. Its docstring says what is wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from actors.host import Host
from actors.kinds import Kinds
from domain.chat import ChatEvent, Conversation
from domain.commands import Publication, Reminder
from domain.ports import Committed, Entry, Loaded, Takeover, Turn
from gateway.recovery import Cursor, Event
from storage.commit_plan import plan_commit
from storage.partition_log import publication
from tests.simulation.rules import RemindingChat, Room, alarm_over
from tests.support.simulated_network import Wire
from tests.support.simulated_parts import Cluster, HostPart, NumberedConnection, Part, Switchboard, Wiring
from tests.support.simulated_store import SimulatedLog


class _Around:
    """A partition log with something else around it."""

    def __init__(self, inner: SimulatedLog, cluster: Cluster, part: Part) -> None:
        self._inner = inner
        self._cluster = cluster
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Hasty(_Around):
    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        plan = plan_commit(turns, heads, set(), set())
        self._part.process.spawn(self._later(turns, heads))
        return Committed(plan.heads)

    async def _later(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> None:
        try:
            await self._inner.commit(turns, heads)
        except Exception:
            self._cluster.trace(self._part.incarnation, "did not commit what it had acknowledged")


class AckBeforeCommit(Wiring):
    """The host answers when a flush begins, not when it is durable."""

    def log(self, cluster: Cluster, part: Part, owner: str) -> Any:
        return _Hasty(super().log(cluster, part, owner), cluster, part)


class _Forgetful(_Around):
    def _new(self, turns: Sequence[Turn]) -> list[Turn]:
        known = self._cluster.database.store.commands
        return [
            msgspec.structs.replace(
                turn,
                entries=[
                    msgspec.structs.replace(entry, command_id=None)
                    if (entry.stream, entry.command_id) in known
                    else entry
                    for entry in turn.entries
                ],
            )
            for turn in turns
        ]

    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        return await self._inner.commit(self._new(turns), heads)

    async def find_commands(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[Entry]]:
        return {}

    async def load(self, streams: Sequence[str], schemas: Mapping[str, int]) -> dict[str, Loaded]:
        found = await self._inner.load(streams, schemas)
        for loaded in found.values():
            loaded.tail = [msgspec.structs.replace(entry, command_id=None, command_hash=None) for entry in loaded.tail]
        return found


class DedupeOff(Wiring):
    """An id that an activation has forgotten is taken for a new one, and no unique key stands against it."""

    def log(self, cluster: Cluster, part: Part, owner: str) -> Any:
        return _Forgetful(super().log(cluster, part, owner), cluster, part)


class _Unfenced(_Around):
    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        store = self._cluster.database.store
        return await self._inner.commit(turns, {partition: store.head(partition) for partition in heads})


class FenceOff(Wiring):
    """The store takes whatever comes, wherever its owner thinks that the log ends."""

    def log(self, cluster: Cluster, part: Part, owner: str) -> Any:
        return _Unfenced(super().log(cluster, part, owner), cluster, part)


class _Silent(_Around):
    async def take(self, partitions: Sequence[int], owner: str, at: int) -> dict[int, Takeover]:
        taken = await self._inner.take(partitions, owner, at)
        return {number: Takeover(found.position, found.position) for number, found in taken.items()}


class RelaySkipped(Wiring):
    """A new owner does not publish again what the former one may not have published."""

    def log(self, cluster: Cluster, part: Part, owner: str) -> Any:
        return _Silent(super().log(cluster, part, owner), cluster, part)


class _OneFurther(NumberedConnection):
    __slots__ = ()

    def _advance(self, cursor: Cursor, events: Sequence[Event]) -> tuple[list[Event], bool]:
        if len(events) > 1 and cursor.position:
            cursor.position += 1
            events = events[1:]
        return super()._advance(cursor, events)


class RecoveryOffByOne(Wiring):
    """A recovered subscription goes on one event too far, whenever it has missed more than one."""

    def connection(self, board: Switchboard, wire: Wire) -> Any:
        return _OneFurther(board, wire)


class _Overwriting(_Around):
    """Loads a stream without its last entry, and has the store take what then is written over it."""

    async def load(self, streams: Sequence[str], schemas: Mapping[str, int]) -> dict[str, Loaded]:
        found = await self._inner.load(streams, schemas)
        for loaded in found.values():
            del loaded.tail[-1:]
        return found

    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        store = self._cluster.database.store
        for stream, first in plan_commit(turns, heads, set(), set()).firsts.items():
            for entry in store.streams.get(stream, [])[first - 1 :]:
                store.commands.pop((stream, entry.command_id or ""), None)
            del store.streams.get(stream, [])[first - 1 :]
        return await self._inner.commit(turns, heads)


class OffsetReuse(Wiring):
    """A stream is loaded up to the last entry but one, whose offset is given again: `INSERT` has become `REPLACE`."""

    def log(self, cluster: Cluster, part: Part, owner: str) -> Any:
        return _Overwriting(super().log(cluster, part, owner), cluster, part)


class _Torn(_Around):
    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        committed: Committed = await self._inner.commit(turns[:1], heads)
        plan = plan_commit(turns, heads, set(committed.fenced), set(committed.stale))
        return Committed(plan.heads, committed.fenced, committed.stale)


class TornCommit(Wiring):
    """Of a flush of several turns the first one is stored, and all of them are taken to be."""

    def log(self, cluster: Cluster, part: Part, owner: str) -> Any:
        return _Torn(super().log(cluster, part, owner), cluster, part)


class _Loud(_Around):
    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        host = self._part.host  # type: ignore[attr-defined]
        for turn in turns:
            for entry in turn.entries:
                owned = host.partitions.get(turn.partition)
                if owned is not None:
                    said = Publication(entry.offset, publication(entry.stream, entry.body))
                    host._relay._deliver(entry.stream, owned.owner, [said])
        return await self._inner.commit(turns, heads)


class PublishBeforeCommit(Wiring):
    """Events are published when their flush begins."""

    def log(self, cluster: Cluster, part: Part, owner: str) -> Any:
        return _Loud(super().log(cluster, part, owner), cluster, part)


class _Premature(_Around):
    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        ahead = [
            msgspec.structs.replace(
                turn, snapshots=[msgspec.structs.replace(each, offset=each.offset + 1) for each in turn.snapshots]
            )
            for turn in turns
        ]
        return await self._inner.commit(ahead, heads)


class SnapshotAhead(Wiring):
    """A snapshot says that it holds one event more than it does."""

    def log(self, cluster: Cluster, part: Part, owner: str) -> Any:
        return _Premature(super().log(cluster, part, owner), cluster, part)


class _Improvising(_Around):
    async def find_commands(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[Entry]]:
        found = await self._inner.find_commands(keys)
        return {
            key: [msgspec.structs.replace(entry, at=entry.at + 1) for entry in entries]
            for key, entries in found.items()
        }


class AnswerDiffers(Wiring):
    """Who sends a write again, long after it, is told another time than at first."""

    def log(self, cluster: Cluster, part: Part, owner: str) -> Any:
        return _Improvising(super().log(cluster, part, owner), cluster, part)


class _Oblivious(_Around):
    async def reminders(self, partitions: Sequence[int], before_ms: int, limit: int) -> list[Reminder]:
        return []


class TimerLost(Wiring):
    """A new owner does not read the reminders that the former one had stored."""

    def log(self, cluster: Cluster, part: Part, owner: str) -> Any:
        return _Oblivious(super().log(cluster, part, owner), cluster, part)


class _Snoozing(RemindingChat):
    def evolve(self, state: Conversation, event: ChatEvent, offset: int) -> Conversation:
        over = alarm_over(event)
        due_at = state.alarms.get(over[0], (0, 0))[0] if over is not None and isinstance(state, Room) else 0
        super().evolve(state, event, offset)
        if over is not None and over[1] is not None and isinstance(state, Room):
            state.alarms.setdefault(over[0], (due_at + 2_000, offset))
        return state


class TimerDouble(Wiring):
    """A reminder that has fired is set again by its own firing, for two seconds later."""

    def kinds(self, cluster: Cluster) -> Kinds:
        return {**cluster.kinds, "conversation": _Snoozing()}


class LeaseForEver(Wiring):
    """A host believes for ever that it owns what it once took, and answers questions from memory."""

    def host(self, cluster: Cluster, part: HostPart) -> Host:
        host = super().host(cluster, part)
        host.lease_fresh = lambda: True  # type: ignore[method-assign]
        return host


class UndoSkipped(Wiring):
    """What a failed flush had decided stays in its activations."""

    def host(self, cluster: Cluster, part: HostPart) -> Host:
        host = super().host(cluster, part)
        host._commits._undo = lambda batch: None  # type: ignore[method-assign]
        return host


class _Abandoned(NumberedConnection):
    __slots__ = ()

    def lagging(self, cursor: Cursor) -> None:
        """Nothing is read for it, ever."""


class LaggingForgotten(Wiring):
    """A session that was too slow for its events, or missed one, is not caught up."""

    def connection(self, board: Switchboard, wire: Wire) -> Any:
        return _Abandoned(board, wire)


PLANTED: Final[dict[str, type[Wiring]]] = {
    "ack-before-commit": AckBeforeCommit,
    "publish-before-commit": PublishBeforeCommit,
    "torn-commit": TornCommit,
    "undo-skipped": UndoSkipped,
    "dedupe-off": DedupeOff,
    "answer-differs": AnswerDiffers,
    "fence-off": FenceOff,
    "lease-for-ever": LeaseForEver,
    "offset-reuse": OffsetReuse,
    "snapshot-ahead": SnapshotAhead,
    "relay-skipped": RelaySkipped,
    "recovery-off-by-one": RecoveryOffByOne,
    "lagging-forgotten": LaggingForgotten,
    "timer-lost": TimerLost,
    "timer-double": TimerDouble,
}

PROFILES: Final = {"lease-for-ever": "network"}
"""Where a bug is looked for, if not in the swarm: this one shows only where a host is cut off from placement alone."""
