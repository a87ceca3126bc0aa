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
from domain.ports import (
    Clock,
    Committed,
    Metrics,
    OutcomeUnknown,
    PartitionLog,
    StoreUnavailable,
    Subscription,
    Turn,
)

log = logging.getLogger(__name__)

FENCED: Final = Refused(Code.FENCED, "the partition has moved")
"""What callers are told who must ask again; the router does so by itself."""
AWAY: Final = Refused(Code.FENCED, "the store is away", retry_after_s=0.2)
"""The same while the store cannot be reached: nothing has changed, and the router asks again until its deadline."""
RAREST_S: Final = 1.0
"""How seldom it asks again in the end: each asking costs a turn and a flush that fails."""


class Partition:
    """A partition that this host owns: under which takeover position, and how far its log goes.

    While it is `doubtful` nobody knows if the last flush is in the log: reads go on, and nothing else until it has been
    taken anew.
    """

    __slots__ = ("admitting", "doubtful", "head", "number", "owner", "subscription")

    def __init__(self, number: int, owner: int) -> None:
        self.number = number
        self.owner = owner
        self.head = owner
        self.admitting = True
        self.doubtful = False
        self.subscription: Subscription | None = None


class Pending:
    """Something that waits for the next commit: a turn with its answer, or an answer that must not overtake one."""

    __slots__ = ("_lives", "activation", "outcome", "reply", "touched")

    def __init__(self, activation: Activation, outcome: Outcome, reply: str) -> None:
        self.activation = activation
        self.outcome = outcome
        self.reply = reply
        self.touched = tuple({id(a): a for a in (activation, *(step.activation for step in outcome.steps))}.values())
        self._lives = tuple(touched.life for touched in self.touched)

    @property
    def void(self) -> bool:
        """Whether any of what this was decided on has been thrown away or undone."""
        return any(a.dead or a.life != life for a, life in zip(self.touched, self._lives, strict=True))

    def undo(self) -> None:
        """It never happened. What has been decided since an earlier undoing stands on firm ground and stays."""
        for touched, life in zip(self.touched, self._lives, strict=True):
            if touched.life == life and touched.tentative and not touched.dead:
                touched.revert()
        if not self.outcome.steps:
            self.activation.snapshot_offset = 0  # it was only a snapshot, and is due again


class Owner(Protocol):
    """The host, as its group commit sees it."""

    @property
    def partitions(self) -> dict[int, Partition]: ...
    def answer(self, reply: str, answer: Answer) -> None: ...
    def lost(self, partitions: Iterable[Partition]) -> None:
        """Somebody else has taken these."""
        ...

    def suspect(self, partitions: set[int]) -> None:
        """What was decided for these may or may not be committed: decide nothing more until they are taken anew."""
        ...

    def doubt(self, partitions: set[int]) -> None:
        """What lives in these mirrors nothing any more: forget it and take them anew."""
        ...

    def forget(self, activation: Activation) -> None:
        """Throw the activation away; it is loaded again when it is next needed."""
        ...

    def landed(self, turn: Turn) -> None:
        """The turn is durable."""
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
        self._express: deque[Pending] = deque()
        self._filled = asyncio.Event()
        self._settled = asyncio.Event()
        self._proofs: list[asyncio.Future[bool]] = []
        self._rate = 1_000.0
        self._away_since_s: float | None = None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._express)

    @property
    def wait_s(self) -> float:
        """How long it will take until everything that waits now is committed, by the measured rate."""
        return max(0.05, len(self) / self._rate)

    def add(self, pending: Pending) -> None:
        """Orders overtake conversations, except where they share an activation with something that waits already."""
        order = pending.activation.rules.kind == "order"
        express = order and not any(touched.uncommitted for touched in pending.touched)
        for touched in pending.touched:
            touched.uncommitted += 1
            touched.express += express
        (self._express if express else self._waiting).append(pending)
        self._filled.set()

    def _next(self) -> list[Pending]:
        """The next flush. A quarter of it is for those who do not overtake, however many orders come.

        One of these may build on an order that waits still: then it waits too, and with it everybody behind it.
        """
        reserved = min(len(self._waiting), self._largest // 4)
        batch = [self._express.popleft() for _ in range(min(len(self._express), self._largest - reserved))]
        for pending in batch:
            for touched in pending.touched:
                touched.express -= 1
        while self._waiting and len(batch) < self._largest:
            if any(touched.express for touched in self._waiting[0].touched):
                break
            batch.append(self._waiting.popleft())
        if not len(self) and not self._proofs:
            self._filled.clear()
        return batch

    async def settle(self, activation: Activation, timeout_s: float) -> None:
        """Return when everything the activation has decided until now is committed or undone, or the activation is dead.

        Raises:
            StoreUnavailable: not within `timeout_s`.
        """
        decided, life = activation.version, activation.life
        try:
            async with asyncio.timeout(timeout_s):
                while activation.uncommitted and not activation.dead:
                    if activation.life != life or decided <= activation.committed < activation.version:
                        return
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            raise StoreUnavailable(f"{activation.stream} did not settle in {timeout_s} s") from None

    async def prove(self) -> bool:
        """Compare the log with what is held, between two flushes; whoever has lost partitions is told. False: no answer."""
        proof: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._proofs.append(proof)
        self._filled.set()
        return await proof

    async def _prove(self) -> None:
        proofs, self._proofs = self._proofs, []
        # Those in doubt too: one that has moved on is forgotten, whoever moved it, and taken anew if it is wanted here.
        held = list(self._owner.partitions.values())
        proved = False
        try:
            heads = await self._log.heads([partition.number for partition in held]) if held else {}
            self._owner.lost([partition for partition in held if heads.get(partition.number, 0) != partition.head])
            proved = True
        except StoreUnavailable:
            pass
        except Exception:
            log.exception("what is held could not be compared with the log")
        finally:
            for proof in proofs:
                if not proof.done():
                    proof.set_result(proved)

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            if self._proofs:
                await self._prove()
            batch = self._next()
            if not batch:
                continue
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
            if isinstance(error, OutcomeUnknown):
                self._owner.suspect({number for number in heads if self._owner.partitions.get(number) is held[number]})
            self._undo(pending)
            self._fail(pending, self._away())
            return [], set()
        self._away_since_s = None
        for number, head in committed.heads.items():
            held[number].head = head
        done = [p for p in pending if _is_in(committed, p)]
        left_out = [p for p in pending if not _is_in(committed, p)]
        self._owner.lost([held[number] for number in committed.fenced])
        for activation in dict.fromkeys(a for p in left_out for a in p.touched):
            if not activation.dead:
                log.warning("%s has moved and is loaded anew", activation.stream)
            self._owner.forget(activation)
        self._fail(left_out)
        return done, set(committed.heads) - committed.fenced

    def _away(self) -> Refused:
        """What callers are told of a failed flush: to ask again, the more seldom the longer the store has been away."""
        now_s = self._clock.monotonic_s()
        if self._away_since_s is None:
            self._away_since_s = now_s
        pause_s = max(AWAY.retry_after_s or 0.0, min(RAREST_S, (now_s - self._away_since_s) / 4))
        return Refused(AWAY.code, AWAY.detail, retry_after_s=round(pause_s, 3))

    def _living(self, batch: list[Pending]) -> list[Pending]:
        """Those that may go on; what was decided on something undone is undone with all that it touched, and asked again.

        That may undo what came before it too, so this goes on until nothing changes.
        """
        alive = batch
        while True:
            dead = [p for p in alive if p.void or not self._may_commit(p)]
            if not dead:
                return alive
            self._undo(dead)
            self._fail(dead)
            gone = set(map(id, dead))
            alive = [p for p in alive if id(p) not in gone]

    def _may_commit(self, pending: Pending) -> bool:
        partition = self._owner.partitions.get(pending.activation.partition)
        return partition is not None and (pending.outcome.turn is None or not partition.doubtful)

    def _undo(self, batch: Iterable[Pending]) -> None:
        """What these decided never happened. Whatever else was decided on top of it is void from now on."""
        for pending in batch:
            if pending.outcome.turn is not None:
                pending.undo()

    def _fail(self, batch: Iterable[Pending], answer: Refused = FENCED) -> None:
        for pending in batch:
            for touched in pending.touched:
                touched.uncommitted -= 1
            self._owner.answer(pending.reply, answer)
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
                pending.outcome.answer = AWAY
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
                activation.landed(step.events)
                activation.publish(step.publications)
                found = outgoing.get(id(activation))
                if found is None:
                    owner = held[activation.partition].owner
                    found = outgoing[id(activation)] = Outgoing(activation, owner, [], [])
                found.events += step.events
                found.publications += step.publications
            for touched in pending.touched:
                touched.uncommitted -= 1
            if pending.outcome.turn is not None:
                self._owner.landed(pending.outcome.turn)
        self._relay.publish(outgoing.values(), self._clock.now_ms())
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
