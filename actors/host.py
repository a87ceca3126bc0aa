"""A host: thousands of activations in one process, their mailboxes, and one group commit for all of them."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import count
from typing import Any, Final, TypeGuard

import msgspec

from actors.activation import MAILBOX, Activation, Item, Landed, landings
from actors.background import Background
from actors.batcher import Batcher
from actors.deadlines import Deadlines
from actors.group_commit import AWAY, FENCED, GroupCommit, Partition, Pending
from actors.kinds import Kinds
from actors.ownership import Ownership
from actors.relay import Relay
from actors.reminders import Reminders
from actors.residents import Residents, expired
from actors.signals import Signals
from actors.turn import ATTEMPTS, Broken, Lookup, Outcome, attempt, conflict
from domain.aggregate import Need
from domain.channels import stream_partition
from domain.commands import (
    Accepted,
    Answer,
    Command,
    Compare,
    Compared,
    Query,
    Request,
    Signal,
    Status,
    Viewed,
    partition_asked,
)
from domain.errors import Code, Refusal, Refused
from domain.ports import (
    Broker,
    Clock,
    FactSource,
    Metrics,
    OutcomeUnknown,
    PartitionLog,
    ReadModels,
    Received,
    StoreUnavailable,
    Turn,
)

log = logging.getLogger(__name__)

LARGEST_ANSWER: Final = 500_000
"""Bytes of an answer; the broker takes 512 KiB. A larger one goes without what can be asked for on its own."""
SHARES: Final = {"order": 1.0, "conversation": 0.9, "read": 0.75, "signal": 0.5}
"""How full queues may be for requests of a class: under load typing is shed first, then reads, then chat, then orders."""


COMPARING: Final = 64
"""Questions of gateways after a gap that are answered at a time."""


class HostSettings(msgspec.Struct, frozen=True):
    """The limits of a host. Times in seconds."""

    name: str = "host-0"
    incarnation: str = "1"
    process: str = ""
    """Tells this process from every other one, to whoever may have to end it; empty: nobody can."""
    flush_commands: int = 256
    """Turns in one commit."""
    buffer_commands: int = 4_096
    """Requests in mailboxes, and turns and answers that wait for a commit; beyond that callers are told `busy`."""
    lease_s: float = 0.5
    """An answer that commits nothing is given without asking the log if placement heard from us this recently."""
    idle_s: float = 300.0
    idle_over_s: float = 30.0
    """The same for streams of which little is to be expected any more, such as closed orders."""
    activations: int = 20_000
    """Live activations before the least recently used are dropped."""
    activations_bytes: int = 512 << 20
    """The same by about how much memory they take."""
    activations_ever: int = 30_000
    """With this many, loading ones included, callers of further streams are told `busy`."""
    reserve_s: float = 30.0
    retry_s: float = 0.5
    """How long to wait before taking partitions anew when the store could not be reached."""


class Host:
    """Owns partitions and runs the turns of their streams.

    One event loop; nothing here is safe from another thread. Every answer to a durable write is sent after its commit.
    """

    def __init__(
        self,
        settings: HostSettings,
        partition_log: PartitionLog,
        facts: FactSource,
        read_models: ReadModels,
        broker: Broker,
        clock: Clock,
        metrics: Metrics,
        kinds: Kinds,
    ) -> None:
        self.settings = settings
        self._log = partition_log
        self._fact_source = facts
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._kinds = kinds
        self._decoder = msgspec.msgpack.Decoder(Request)
        self._encoder = msgspec.msgpack.Encoder()
        self._heard_s = float("-inf")
        self._cut_off_s = float("-inf")
        self._proved = self._proving = False
        self._gaps = 0
        self._background = Background()
        self._deadlines = Deadlines()
        self._comparing = 0
        self._inside: dict[str, Callable[[Answer], None]] = {}
        self._inside_names = count()
        self._ids: Batcher[tuple[str, str], Landed] = Batcher(self._find_many)
        self._facts: Batcher[Need, Any] = Batcher(self._facts_many)
        self._relay = Relay(broker, partition_log, kinds, metrics)
        self._commits = GroupCommit(self, partition_log, self._relay, clock, metrics, settings.flush_commands)
        self._signals = Signals(self._relay, read_models, clock, metrics)
        self.activations = Residents(kinds, partition_log, clock, metrics, self._background, self.answer, self._drain)
        self.ownership = Ownership(
            f"{settings.name}/{settings.incarnation}",
            settings.retry_s,
            self.activations,
            self._receive,
            partition_log,
            self._relay,
            broker,
            clock,
            metrics,
        )
        self.reminders = Reminders(partition_log, clock, metrics, self.submit, lambda: self.partitions)
        self.ownership.commits, self.ownership.reminders = self._commits, self.reminders

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._broker.on_lost(self._cut_off)
        self._broker.on_reconnect(self._reconnected)
        await self.ownership.start()
        own = (self._tidy_forever(), self._store_positions_forever())
        for work in (self._commits.run(), *self._relay.work(), self.reminders.run(), *own):
            self._background.spawn(work)

    async def stop(self) -> None:
        """Hand everything back: finish what was admitted, then stop."""
        await self.ownership.release(list(self.partitions))
        await self.ownership.stop()
        await self._background.stop()
        await self.activations.close()
        for batcher in (self._ids, self._facts):
            await batcher.close()

    def leased(self, sent_s: float) -> None:
        """Placement has acknowledged a heartbeat that was sent at `sent_s` (monotonic).

        After a gap that proves nothing: what is held may have been taken and given back meanwhile. Then the log is asked
        before the lease counts again.
        """
        if sent_s <= self._cut_off_s:
            return
        if sent_s - self._heard_s >= self.settings.lease_s:
            self._lapse()
        self._heard_s = max(self._heard_s, sent_s)
        if not self._proved and not self._proving:
            self._proving = True
            self._background.spawn(self._prove())

    async def _prove(self) -> None:
        try:
            gaps = self._gaps
            proved = await self._commits.prove()
            self._proved = proved and gaps == self._gaps
        finally:
            self._proving = False

    def _cut_off(self) -> None:
        """From here on placement may give our partitions away: nothing that it said before counts."""
        self._cut_off_s = self._clock.monotonic_s()
        self._heard_s = float("-inf")
        self._lapse()

    def _lapse(self) -> None:
        self._proved = False
        self._gaps += 1
        self._metrics.count("lease_gaps")

    def _reconnected(self) -> None:
        self._cut_off()
        self._relay.lose()

    async def writer(self) -> int:
        """The database's number of the connection that writes here; 0 where there is none."""
        return await self._log.writer()

    # --- partitions ----------------------------------------------------------------------------------------------

    @property
    def partitions(self) -> dict[int, Partition]:
        return self.ownership.partitions

    async def assign(
        self, partitions: Iterable[int], later: Collection[int] = (), giving: Collection[int] = ()
    ) -> None:
        """See `Ownership.assign`."""
        await self.ownership.assign(partitions, later, giving)

    def lost(self, partitions: Iterable[Partition]) -> None:
        self.ownership.lost(partitions)

    def suspect(self, partitions: set[int]) -> None:
        self.ownership.suspect(partitions)

    def doubt(self, partitions: set[int]) -> None:
        self.ownership.doubt(partitions)

    # --- receiving -----------------------------------------------------------------------------------------------

    def _receive(self, received: Received) -> None:
        try:
            request: Request = self._decoder.decode(received.data)
            partition = self.partitions.get(partition_asked(request))
        except (msgspec.DecodeError, ValueError):
            self.answer(received.reply, Refused(Code.INVALID, "not a request"))
            return
        until_s = None
        if not isinstance(request, Signal) and request.wait_ms:
            now_s = self._clock.monotonic_s()
            left_ms = self._deadlines.left_ms(received.reply, request.sent_ms, request.wait_ms, int(now_s * 1000))
            if left_ms < 0:
                self._metrics.count("expired_commands")
                return
            until_s = now_s + left_ms / 1000
        if partition is None or not partition.admitting:
            self.answer(received.reply, FENCED)
        elif isinstance(request, Compare):
            if self._comparing >= COMPARING:
                self.answer(received.reply, self._busy())
                return
            self._comparing += 1
            self._background.spawn(self._compare(request, partition, received.reply))
        else:
            self._admit(request, received.reply, until_s, partition)

    def submit(self, command: Command, answered: Callable[[Answer], None]) -> None:
        """Run a command of the platform's own, as if it had come by the broker."""
        reply = f"_INSIDE.{next(self._inside_names)}"
        self._inside[reply] = answered
        partition = self.partitions.get(stream_partition(command.stream_id))
        if partition is None or not partition.admitting:
            self.answer(reply, FENCED)
        else:
            self._admit(command, reply, None, partition)

    def _admit(
        self, request: Command | Query | Signal, reply: str, until_s: float | None, partition: Partition
    ) -> None:
        if partition.doubtful and isinstance(request, Command):
            self.answer(reply, AWAY)
            return
        stream = request.stream
        if stream not in self.activations and len(self.activations) >= self.settings.activations_ever:
            self.answer(reply, self._busy())
            return
        activation = self.activations.activate(stream, used=not _inspects(request))
        share = SHARES[_class_of(request)]
        if len(activation.mailbox) + activation.uncommitted >= MAILBOX * share or (
            len(self._commits) + self.activations.waiting >= self.settings.buffer_commands * share
        ):
            self.answer(reply, self._busy())
            return
        self.activations.put(activation, Item(request, reply, until_s))
        if activation.ready and not activation.paused:
            self._drain(activation)

    def _busy(self) -> Refused:
        self._metrics.count("busy_answers")
        return Refused(Code.BUSY, "too much is waiting", retry_after_s=round(self._commits.wait_s, 3))

    def answer(self, reply: str, answer: Answer) -> None:
        if not reply:
            return
        inside = self._inside.pop(reply, None)
        if inside is not None:
            inside(answer)
            return
        data = self._encoder.encode(answer)
        if len(data) > LARGEST_ANSWER:
            if isinstance(answer, Accepted):
                data = self._encoder.encode(Accepted(answer.offset, answer.at, (), answer.replayed))
            else:
                data = self._encoder.encode(Refused(Code.PAYLOAD_TOO_LARGE, "the answer is too large to be sent"))
        self._relay.send(reply, data)

    async def _compare(self, compare: Compare, partition: Partition, reply: str) -> None:
        """Where streams stand, from what is live here and for the rest from the log; no activation is made for it."""
        heads = {name: live.committed for name in compare.streams if (live := self.find(name)) is not None}
        try:
            if rest := [stream for stream in compare.streams if stream not in heads]:
                heads |= await self._log.ends(rest)
            if not self.lease_fresh() and not await self._still_owned(partition):
                self.answer(reply, FENCED)
                return
        except StoreUnavailable:
            self.answer(reply, AWAY)
            return
        finally:
            self._comparing -= 1
        self.answer(reply, Compared(partition.owner, tuple(heads.get(stream, 0) for stream in compare.streams)))

    async def _still_owned(self, partition: Partition) -> bool:
        """Ask the log. A position that is not ours yet may be that of our own flush under way: look again then."""
        for _ in range(5):
            heads = await self._log.heads([partition.number])
            if heads.get(partition.number, 0) == partition.head:
                return True
            await asyncio.sleep(0.02)
        return False

    # --- activations ---------------------------------------------------------------------------------------------

    async def _find_many(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Landed]:
        found = await self._log.find_commands(keys)
        return {
            key: landing
            for key, entries in found.items()
            if (landing := landings(self._kinds[key[0].partition(":")[0]], entries).get(key[1])) is not None
        }

    async def _facts_many(self, needs: Sequence[Need]) -> dict[Need, Any]:
        facts = await self._fact_source.facts(needs)
        return {need: facts.get(need) for need in needs}

    def forget(self, activation: Activation) -> None:
        self.activations.forget(activation)

    def find(self, stream: str) -> Activation | None:
        return self.activations.find(stream)

    def landed(self, turn: Turn) -> None:
        if turn.reminders or turn.done:
            self.reminders.landed(turn)

    # --- turns ---------------------------------------------------------------------------------------------------

    def _drain(self, activation: Activation) -> None:
        """Run turns until the mailbox is empty or one must wait for something."""
        while activation.mailbox and not activation.paused and not activation.dead:
            self._turn(activation, self.activations.take(activation))

    def _turn(self, activation: Activation, item: Item) -> None:
        partition = self.partitions.get(activation.partition)
        if partition is None:
            self.answer(item.reply, FENCED)
            return
        if expired(item, self._clock.monotonic_s()):
            self._metrics.count("expired_commands")
            return
        if partition.doubtful and isinstance(item.request, Command):
            self.answer(item.reply, AWAY)
            return
        try:
            if isinstance(item.request, Signal):
                self._signals.take(activation, item.request, partition.owner)
                return
            if _inspects(item.request):
                self._end(activation, item, Outcome(self._inspect(activation, item.request, partition), durable=True))
                return
            outcome = attempt(activation, item, self._clock.now_ms(), partition.owner, self.find)
        except Broken:
            log.exception("the partition %d is taken anew", activation.partition)
            self.answer(item.reply, Refused(Code.UNAVAILABLE, "the command failed"))
            self.doubt({activation.partition})
            return
        except Exception:
            log.exception("a turn of %s failed", activation.stream)
            self.answer(item.reply, Refused(Code.UNAVAILABLE, "the command failed"))
            return
        if partition.doubtful and isinstance(outcome, Outcome) and _denies(outcome.answer):
            self.answer(item.reply, AWAY)
            return
        if isinstance(outcome, Lookup):
            item.rounds += 1
            if item.rounds > ATTEMPTS:
                self.answer(item.reply, self._busy())
                return
            if isinstance(item.request, Query) and outcome.settle:
                self._background.spawn(self._ask_again(activation, item))
                return
            activation.paused = True
            self._background.spawn(self._look_up(activation, item, outcome))
            return
        self._end(activation, item, outcome)

    def _end(self, activation: Activation, item: Item, outcome: Outcome) -> None:
        waits = activation.uncommitted and not outcome.durable
        if outcome.turn is None and not waits and self.lease_fresh():
            self.answer(item.reply, outcome.answer)
            return
        self._commits.add(Pending(activation, outcome, item.reply))

    def lease_fresh(self) -> bool:
        """Whether an answer that commits nothing may be given without asking the log."""
        return self._proved and self._clock.monotonic_s() - self._heard_s < self.settings.lease_s

    async def _ask_again(self, activation: Activation, item: Item) -> None:
        """A denial is judged anew when what is under way has landed; nobody else waits for that."""
        try:
            await self._commits.settle(activation, 5.0)
        except StoreUnavailable:
            self.answer(item.reply, AWAY)
            return
        if activation.dead:
            self.answer(item.reply, FENCED)
            return
        self.activations.put(activation, item)
        if not activation.paused:
            self._drain(activation)

    async def _look_up(self, activation: Activation, item: Item, lookup: Lookup) -> None:
        refused: Refused | None = None
        try:
            await self._find_out(activation, item, lookup)
        except Refusal as refusal:
            refused = refusal.refused
        except (StoreUnavailable, OutcomeUnknown):
            refused = AWAY
        except Exception:
            log.exception("a look-up for %s failed", activation.stream)
            refused = Refused(Code.UNAVAILABLE, "the command failed")
        activation.paused = False
        if activation.dead:
            self.answer(item.reply, FENCED)
            return
        if refused is None:
            self._turn(activation, item)
        elif refused.code is Code.FENCED:
            self.answer(item.reply, refused)
        else:
            self._end(activation, item, Outcome(refused))
        self._drain(activation)

    async def _find_out(self, activation: Activation, item: Item, lookup: Lookup) -> None:
        request = item.request
        if lookup.settle:
            await self._commits.settle(activation, 5.0)
        if lookup.command and not isinstance(request, Signal):
            item.found = await self._ids.get((activation.stream, request.command_id))
            item.looked_up = True
        answers = await asyncio.gather(*map(self._facts.get, lookup.needs))
        item.facts.update(zip(lookup.needs, answers, strict=True))
        for stream in lookup.streams:
            await self._wait_ready(stream)
        if lookup.claims:
            now_ms = self._clock.now_ms()
            until_ms = now_ms + int(self.settings.reserve_s * 1000)
            held = await self._log.reserve(activation.stream, sorted(lookup.claims), now_ms, until_ms)
            if held is not None:
                assert isinstance(request, Command)
                raise conflict(Code.CONFLICT, "the worker has another job at that time", activation, item, request)
            item.reserved = item.reserved.union(lookup.claims)

    async def _wait_ready(self, stream: str) -> None:
        if stream_partition(stream) not in self.partitions:
            raise Refusal.of(FENCED)
        loading = self.activations.activate(stream).loading
        if loading is not None:
            done, _ = await asyncio.wait({loading}, timeout=5.0)
            if not done:
                raise StoreUnavailable(f"{stream} did not load in time")

    # --- seeing it -----------------------------------------------------------------------------------------------

    def _inspect(self, activation: Activation, query: Query, partition: Partition) -> Answer:
        """How an activation stands, for operators: nothing of what people wrote is in it."""
        if query.actor.kind not in ("system", "ops") or not activation.committed:
            return Refused(Code.NOT_FOUND, f"there is no such {query.kind}")
        standing = {
            "stream": activation.stream,
            "partition": partition.number,
            "host": self.settings.name,
            "incarnation": self.settings.incarnation,
            "owner": partition.owner,
            "version": activation.version,
            "committed": activation.committed,
            "snapshot_offset": activation.snapshot_offset,
            "mailbox": len(activation.mailbox),
            "uncommitted": activation.uncommitted,
            "bytes": activation.bytes,
            "idle_s": round(self._clock.monotonic_s() - activation.last_used_s, 3),
            "recent": [
                {"command_id": known, "offset": landed.offset, "at": landed.at}
                for known, landed in reversed(activation.recent.items())
            ],
            "reminders": [
                {"name": r.name, "due_at": r.due_at, "fence_offset": r.fence_offset}
                for r in activation.rules.reminders(activation.stable())
            ],
        }
        return Viewed(activation.committed, msgspec.json.encode(standing))

    async def _store_positions_forever(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                await self._signals.store()
            except Exception:
                log.exception("positions could not be stored")

    async def _tidy_forever(self) -> None:
        """Once a second: drop what is idle or too much, report depths."""
        settings = self.settings
        while True:
            await asyncio.sleep(1.0)
            try:
                self.activations.collect(
                    settings.idle_s,
                    settings.idle_over_s,
                    settings.activations,
                    settings.activations_bytes,
                    self.ownership.store,
                )
            except Exception:
                log.exception("tidying failed")
            self._metrics.gauge("pending_commits", len(self._commits))
            self._metrics.gauge("mailbox_depth", self.activations.deepest())


def _denies(answer: Answer) -> bool:
    """Whether the answer says that something is not there: in doubt it may be."""
    return isinstance(answer, Refused) or (isinstance(answer, Status) and not answer.known)


def _inspects(request: Command | Query | Signal) -> TypeGuard[Query]:
    """Whether an operator looks on, which is no use of a stream."""
    return isinstance(request, Query) and request.name == "inspect"


def _class_of(request: Command | Query | Signal) -> str:
    if isinstance(request, Command):
        return request.kind
    return "read" if isinstance(request, Query) else "signal"
