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
from domain.ports import Clock, Committed, Metrics, OutcomeUnknown, PartitionLog, StoreUnavailable, Subscription

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

    __slots__ = ("activation", "outcome", "reply", "touched")

    def __init__(self, activation: Activation, outcome: Outcome, reply: str) -> None:
        self.activation = activation
        self.outcome = outcome
        self.reply = reply
        self.touched = tuple({id(a): a for a in (activation, *(step.activation for step in outcome.steps))}.values())


class Owner(Protocol):
    """The host, as its group commit sees it."""

    partitions: dict[int, Partition]

    def answer(self, reply: str, answer: Answer) -> None: ...
    def lost(self, partitions: Iterable[Partition]) -> None:
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
        for touched in pending.touched:
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
        held = {p.activation.partition: self._owner.partitions[p.activation.partition] for p in alive}
        turns = [pending for pending in alive if pending.outcome.turn is not None]
        quiet = [pending for pending in alive if pending.outcome.turn is None]
        done, proved = await self._commit(turns, held) if turns else ([], set())
        self._publish(done, held)
        # What was only answered stands on what is committed now: it dies with what it saw, and needs an owner's word.
        quiet = self._living(quiet)
        await self._confirm([p for p in quiet if p.activation.partition not in proved], held)
        self._publish(self._living(quiet), held)

    async def _commit(self, pending: list[Pending], held: dict[int, Partition]) -> tuple[list[Pending], set[int]]:
        """Commit the turns. Returns those that are committed, and the partitions whose ownership that proves."""
        turns = [p.outcome.turn for p in pending if p.outcome.turn is not None]
        heads = {turn.partition: held[turn.partition].head for turn in turns}
        try:
            committed = await self._log.commit(turns, heads)
        except (OutcomeUnknown, StoreUnavailable) as error:
            log.warning("a flush of %d turns did not commit: %r", len(turns), error)
            self._metrics.count("flushes_failed")
            self._owner.doubt({number for number in heads if self._owner.partitions.get(number) is held[number]})
            self._fail(pending)
            return [], set()
        for number, head in committed.heads.items():
            held[number].head = head
        done = [p for p in pending if _is_in(committed, p)]
        left_out = [p for p in pending if not _is_in(committed, p)]
        self._owner.lost([held[number] for number in committed.fenced])
        for activation in {a for p in left_out for a in p.touched}:
            if not activation.dead:
                log.warning("%s has moved and is loaded anew", activation.stream)
            self._owner.forget(activation)
        self._fail(left_out)
        return done, set(committed.heads) - committed.fenced

    def _living(self, batch: list[Pending]) -> list[Pending]:
        """Those that may go on; whatever touches something dead dies with all that it touched, and is asked again.

        That may kill what came before it too, so this goes on until nothing changes.
        """
        alive = batch
        while True:
            dead = [p for p in alive if any(a.dead for a in p.touched)]
            dead += [p for p in alive if p.activation.partition not in self._owner.partitions and p not in dead]
            if not dead:
                return alive
            for pending in dead:
                for touched in pending.touched:
                    self._owner.forget(touched)
            self._fail(dead)
            alive = [p for p in alive if p not in dead]

    def _fail(self, batch: Iterable[Pending]) -> None:
        for pending in batch:
            for touched in pending.touched:
                touched.uncommitted -= 1
            self._owner.answer(pending.reply, FENCED)
        self._settled.set()

    async def _confirm(self, quiet: list[Pending], held: dict[int, Partition]) -> None:
        """Before answers that commit nothing: make sure that the host still owns what it speaks for."""
        if not quiet or self._owner.lease_fresh():
            return
        numbers = sorted({pending.activation.partition for pending in quiet})
        try:
            heads = await self._log.heads(numbers)
        except StoreUnavailable:
            for pending in quiet:
                pending.outcome.answer = Refused(Code.UNAVAILABLE, "the store does not answer", retry_after_s=1.0)
            return
        self._owner.lost([held[number] for number in numbers if heads.get(number, 0) != held[number].head])

    def _publish(self, done: list[Pending], held: dict[int, Partition]) -> None:
        """After the commit: events in order, then answers.

        That goes for activations too that have died meanwhile: what is committed is said.
        """
        outgoing: dict[int, Outgoing] = {}
        for pending in done:
            for step in pending.outcome.steps:
                activation = step.activation
                if not step.events:
                    continue
                activation.committed = max(activation.committed, step.events[-1][0])
                found = outgoing.get(id(activation))
                if found is None:
                    owner = held[activation.partition].owner
                    found = outgoing[id(activation)] = Outgoing(activation, owner, [], [])
                found.events += step.events
                found.publications += step.publications
            for touched in pending.touched:
                touched.uncommitted -= 1
        self._relay.publish(outgoing.values())
        for number in {out.activation.partition for out in outgoing.values()}:
            if self._owner.partitions.get(number) is held[number]:
                self._relay.published(number, held[number].head)
        for pending in done:
            self._owner.answer(pending.reply, pending.outcome.answer)
        self._metrics.count("turns", len(done))
        self._settled.set()


def _is_in(committed: Committed, pending: Pending) -> bool:
    """Whether a commit holds the pending turn: it was left out if it touches anything fenced or stale."""
    return pending.activation.partition not in committed.fenced and not any(
        activation.stream in committed.stale for activation in pending.touched
    )
