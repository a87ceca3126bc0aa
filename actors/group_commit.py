"""Many turns, one transaction: answers and publications wait until the flush that holds them is durable."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

from actors.activation import Activation
from actors.relay import Outgoing, Relay
from actors.turn import Outcome
from domain.commands import Answer
from domain.errors import Code, Refused
from domain.ports import Clock, Metrics, OutcomeUnknown, PartitionLog, StoreUnavailable, Subscription

log = logging.getLogger(__name__)

FENCED: Final = Refused(Code.FENCED, "the partition has moved")
"""What callers are told who must ask again; the router does so by itself."""


class Partition:
    """A partition that this host owns: under which takeover position, and how far its log goes."""

    __slots__ = ("admitting", "head", "number", "owner", "subscription")

    def __init__(self, number: int, owner: int) -> None:
        self.number = number
        self.owner = owner
        self.head = owner
        self.admitting = True
        self.subscription: Subscription | None = None


class Pending:
    """Something that waits for the next commit: a turn with its answer, or an answer that must not overtake one."""

    __slots__ = ("activation", "outcome", "reply")

    def __init__(self, activation: Activation, outcome: Outcome, reply: str) -> None:
        self.activation = activation
        self.outcome = outcome
        self.reply = reply

    def touched(self) -> Iterable[Activation]:
        yield self.activation
        for step in self.outcome.steps:
            yield step.activation


class Owner(Protocol):
    """The host, as its group commit sees it."""

    partitions: dict[int, Partition]

    def answer(self, reply: str, answer: Answer) -> None: ...
    def lost(self, partitions: Iterable[int]) -> None:
        """Somebody else has taken these."""
        ...

    def doubt(self, partitions: set[int]) -> None:
        """What was decided for these may or may not be committed: forget it and take them anew."""
        ...

    def forget(self, activation: Activation) -> None:
        """Throw the activation away; it is loaded again when it is next needed."""
        ...

    def find(self, stream: str) -> Activation | None: ...
    def lease_fresh(self) -> bool: ...


class GroupCommit:
    """One flush is in flight and one is filling; a flush leaves as soon as the former is done."""

    def __init__(
        self, owner: Owner, partition_log: PartitionLog, relay: Relay, clock: Clock, metrics: Metrics, largest: int
    ) -> None:
        self._owner = owner
        self._log = partition_log
        self._relay = relay
        self._clock = clock
        self._metrics = metrics
        self._largest = largest
        self._waiting: deque[Pending] = deque()
        self._filled = asyncio.Event()
        self._settled = asyncio.Event()
        self._rate = 1_000.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def wait_s(self) -> float:
        """How long it will take until everything that waits now is committed, by the measured rate."""
        return max(0.05, len(self._waiting) / self._rate)

    def add(self, pending: Pending) -> None:
        for touched in pending.touched():
            touched.uncommitted += 1
        self._waiting.append(pending)
        self._filled.set()

    async def settle(self, activation: Activation, timeout_s: float) -> None:
        """Return when everything the activation has decided is committed, or the activation is dead.

        Raises:
            StoreUnavailable: not within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while activation.uncommitted and not activation.dead:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            raise StoreUnavailable(f"{activation.stream} did not settle in {timeout_s} s") from None

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._largest))]
            if not self._waiting:
                self._filled.clear()
            began_s = self._clock.monotonic_s()
            try:
                await self._flush(batch)
            except Exception:
                log.exception("a flush failed in an unforeseen way")
                self._owner.doubt({pending.activation.partition for pending in batch})
                self._fail(batch)
            took_s = max(1e-6, self._clock.monotonic_s() - began_s)
            self._rate += 0.1 * (len(batch) / took_s - self._rate)
            self._metrics.observe("flush_seconds", took_s)
            self._metrics.observe("flush_commands", len(batch))

    async def _flush(self, batch: list[Pending]) -> None:
        alive = self._living(batch)
        written = await self._commit(alive)
        alive = await self._confirm(self._living(alive), written)
        self._publish(alive)

    async def _commit(self, alive: list[Pending]) -> frozenset[int]:
        """Commit the turns; returns the partitions whose ownership that proves."""
        turns = [pending.outcome.turn for pending in alive if pending.outcome.turn is not None]
        if not turns:
            return frozenset()
        partitions = self._owner.partitions
        heads = {turn.partition: partitions[turn.partition].head for turn in turns}
        try:
            committed = await self._log.commit(turns, heads)
        except (OutcomeUnknown, StoreUnavailable) as error:
            log.warning("a flush of %d turns did not commit: %r", len(turns), error)
            self._metrics.count("flushes_failed")
            self._owner.doubt(set(heads))
            return frozenset()
        self._owner.lost(committed.fenced)
        for stream in committed.stale:
            log.warning("%s has moved and is loaded anew", stream)
            activation = self._owner.find(stream)
            if activation is not None:
                self._owner.forget(activation)
        for number, head in committed.heads.items():
            if number in partitions:
                partitions[number].head = head
        return frozenset(committed.heads) - committed.fenced

    def _living(self, batch: list[Pending]) -> list[Pending]:
        """Those that may go on; whatever touches something dead dies with all that it touched, and is asked again."""
        alive: list[Pending] = []
        for pending in batch:
            dead = any(touched.dead for touched in pending.touched())
            if dead or pending.activation.partition not in self._owner.partitions:
                for touched in pending.touched():
                    self._owner.forget(touched)
                self._fail([pending])
            else:
                alive.append(pending)
        return alive

    def _fail(self, batch: Iterable[Pending]) -> None:
        for pending in batch:
            for touched in pending.touched():
                touched.uncommitted -= 1
            self._owner.answer(pending.reply, FENCED)
        self._settled.set()

    async def _confirm(self, alive: list[Pending], written: frozenset[int]) -> list[Pending]:
        """For answers that commit nothing: make sure that the host still owns what it speaks for."""
        quiet = [p for p in alive if p.outcome.turn is None and p.activation.partition not in written]
        if not quiet or self._owner.lease_fresh():
            return alive
        numbers = sorted({pending.activation.partition for pending in quiet})
        try:
            heads = await self._log.heads(numbers)
        except StoreUnavailable:
            for pending in quiet:
                pending.outcome.answer = Refused(Code.UNAVAILABLE, "the store does not answer", retry_after_s=1.0)
            return alive
        partitions = self._owner.partitions
        self._owner.lost([n for n in numbers if n in partitions and heads.get(n, 0) != partitions[n].head])
        return self._living(alive)

    def _publish(self, alive: list[Pending]) -> None:
        """After the commit: events in order, then answers."""
        partitions = self._owner.partitions
        outgoing: dict[str, Outgoing] = {}
        for pending in alive:
            for step in pending.outcome.steps:
                activation = step.activation
                activation.committed = max(activation.committed, step.events[-1][0])
                found = outgoing.get(activation.stream)
                if found is None:
                    owner = partitions[activation.partition].owner
                    found = outgoing[activation.stream] = Outgoing(activation, owner, [], [])
                found.events += step.events
                found.publications += step.publications
            for touched in pending.touched():
                touched.uncommitted -= 1
        self._relay.publish(outgoing.values())
        for number in {out.activation.partition for out in outgoing.values()}:
            self._relay.published(number, partitions[number].head)
        for pending in alive:
            self._owner.answer(pending.reply, pending.outcome.answer)
        self._metrics.count("turns", len(alive))
        self._settled.set()
