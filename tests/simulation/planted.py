"""Bugs that are planted on purpose: what the simulation is worth is how fast it finds them.

Each is a `Wiring` that puts one thing together wrongly; the platform's code is untouched. Its docstring says what is wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from domain.ports import Committed, Entry, Loaded, Takeover, Turn
from gateway.recovery import Cursor, Event
from storage.commit_plan import plan_commit
from tests.support.simulated_network import Wire
from tests.support.simulated_parts import Cluster, NumberedConnection, Part, Switchboard, Wiring
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

    def _advance(self, cursor: Cursor, channel: Any, events: Sequence[Event]) -> tuple[list[bytes], bool]:
        if len(events) > 1 and cursor.position:
            cursor.position += 1
            events = events[1:]
        return super()._advance(cursor, channel, events)


class RecoveryOffByOne(Wiring):
    """A recovered subscription goes on one event too far, whenever it has missed more than one."""

    def connection(self, board: Switchboard, wire: Wire) -> Any:
        return _OneFurther(board, wire)


PLANTED: Final[dict[str, type[Wiring]]] = {
    "ack-before-commit": AckBeforeCommit,
    "dedupe-off": DedupeOff,
    "fence-off": FenceOff,
    "relay-skipped": RelaySkipped,
    "recovery-off-by-one": RecoveryOffByOne,
}
