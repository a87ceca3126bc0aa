"""A host: thousands of activations in one process, their mailboxes, and one group commit for all of them."""

import asyncio
import heapq
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from actors.activation import MAILBOX, Activation, Item, Landed, landings
from actors.background import Background
from actors.batcher import Batcher
from actors.group_commit import FENCED, GroupCommit, Partition, Pending
from actors.kinds import Kinds
from actors.relay import Relay
from actors.turn import ATTEMPTS, Broken, Lookup, Outcome, attempt, conflict
from domain.aggregate import Need
from domain.channels import command_subject, stream_partition
from domain.chat import typing
from domain.commands import Accepted, Answer, Command, Publication, Query, Request, Signal
from domain.errors import Code, Refusal, Refused
from domain.orders import ORDERS
from domain.ports import (
    Broker,
    BrokerUnavailable,
    Clock,
    FactSource,
    Loaded,
    Metrics,
    OutcomeUnknown,
    PartitionLog,
    Position,
    ReadModels,
    Received,
    StoreUnavailable,
)
from domain.tracking import Track

log = logging.getLogger(__name__)

LARGEST_ANSWER: Final = 500_000
"""Bytes of an answer; the broker takes 512 KiB. A larger one goes without what can be asked for on its own."""


class HostSettings(msgspec.Struct, frozen=True):
    """The limits of a host. Times in seconds."""

    name: str = "host-0"
    incarnation: str = "1"
    flush_commands: int = 256
    """Turns in one commit."""
    buffer_commands: int = 4_096
    """Turns and answers that may wait for a commit; beyond that callers are told `busy`."""
    lease_s: float = 0.5
    """An answer that commits nothing is given without asking the log if placement heard from us this recently."""
    idle_s: float = 300.0
    activations: int = 20_000
    """Live activations before the least recently used are dropped."""
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
        self._read_models = read_models
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._kinds = kinds
        self._decoder = msgspec.msgpack.Decoder(Request)
        self._encoder = msgspec.msgpack.Encoder()
        self.partitions: dict[int, Partition] = {}
        self.wanted: set[int] = set()
        self.activations: dict[str, Activation] = {}
        self._lease_from_s = float("-inf")
        self._cut_off_s = float("-inf")
        self._background = Background()
        self._moving = asyncio.Lock()
        self._loads: Batcher[str, Loaded] = Batcher(self._load_many)
        self._ids: Batcher[tuple[str, str], Landed] = Batcher(self._find_many)
        self._facts: Batcher[Need, Any] = Batcher(self._facts_many)
        self._relay = Relay(broker, partition_log, kinds, metrics)
        self._commits = GroupCommit(self, partition_log, self._relay, clock, metrics, settings.flush_commands)
        self._positions: dict[str, list[Position]] = {}

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._broker.on_lost(self._cut_off)
        self._broker.on_reconnect(self._reconnected)
        self._background.spawn(self._commits.run())
        self._background.spawn(self._relay.run())
        self._background.spawn(self._tidy_forever())

    async def stop(self) -> None:
        """Hand everything back: finish what was admitted, then stop."""
        await self.release(list(self.partitions))
        await self._background.stop()
        for batcher in (self._loads, self._ids, self._facts):
            await batcher.close()

    def leased(self, sent_s: float) -> None:
        """Placement has acknowledged a heartbeat that was sent at `sent_s` (monotonic)."""
        if sent_s > self._cut_off_s:
            self._lease_from_s = max(self._lease_from_s, sent_s)

    def _cut_off(self) -> None:
        """From here on placement may give our partitions away: nothing that it said before counts."""
        self._cut_off_s = self._clock.monotonic_s()
        self._lease_from_s = float("-inf")

    def _reconnected(self) -> None:
        self._cut_off()
        self._relay.lose()

    # --- partitions ----------------------------------------------------------------------------------------------

    async def assign(self, partitions: Iterable[int]) -> None:
        """Own exactly these from now on: release what is not among them, take what is missing."""
        self.wanted = set(partitions)
        async with self._moving:
            await self.release([number for number in self.partitions if number not in self.wanted])
        await self._retake(self.wanted - self.partitions.keys())

    async def _take(self, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        owner = f"{self.settings.name}/{self.settings.incarnation}"
        taken = await self._log.take(numbers, owner, self._clock.now_ms())
        for number, takeover in taken.items():
            self.partitions[number] = Partition(number, takeover.position)
        try:
            await self._relay.take_over(taken)
            await asyncio.gather(*(self._listen(p) for n in taken if (p := self.partitions.get(n)) is not None))
        except BaseException:
            for number in taken:
                self._drop(number)
            raise
        self._metrics.count("takeovers", len(taken))
        self._metrics.gauge("partitions", len(self.partitions))

    async def _listen(self, partition: Partition) -> None:
        partition.subscription = await self._broker.subscribe(command_subject(partition.number), self._receive)
        if self.partitions.get(partition.number) is not partition:
            await partition.subscription.stop()

    async def release(self, numbers: Sequence[int]) -> None:
        """Stop admitting, finish and commit what was admitted, forget the partitions."""
        leaving = [self.partitions[number] for number in numbers if number in self.partitions]
        if not leaving:
            return
        await asyncio.gather(*(partition.subscription.stop() for partition in leaving if partition.subscription))
        for partition in leaving:
            partition.admitting = False
        gone = {partition.number for partition in leaving}
        try:
            for activation in [a for a in self.activations.values() if a.partition in gone]:
                await self._commits.settle(activation, 2.0)
            await self._relay.settle(gone)
        except StoreUnavailable as error:
            log.warning("left partitions unsettled: %s", error)
        for partition in leaving:
            self._drop(partition.number)

    def _drop(self, number: int) -> None:
        """Forget a partition and everything that lives in it, at once; whoever waits is told to ask again."""
        partition = self.partitions.pop(number, None)
        self._relay.forget(number)
        for stream, activation in list(self.activations.items()):
            if activation.partition == number:
                self._kill(activation)
                del self.activations[stream]
        if partition is not None and partition.subscription is not None:
            self._background.spawn(partition.subscription.stop())
        self._metrics.gauge("partitions", len(self.partitions))

    def _kill(self, activation: Activation) -> None:
        activation.dead = True
        while activation.mailbox:
            self.answer(activation.mailbox.popleft().reply, FENCED)

    def lost(self, partitions: Iterable[Partition]) -> None:
        """Somebody else has taken these; whether they should come back is placement's to say."""
        for partition in partitions:
            if self.partitions.get(partition.number) is partition:
                log.warning("partition %d was taken by another host", partition.number)
                self._metrics.count("fenced_partitions")
                self._drop(partition.number)

    def doubt(self, partitions: set[int]) -> None:
        """What was decided for these may or may not be committed: forget it and take the partitions anew."""
        for number in partitions:
            self._drop(number)
        self._background.spawn(self._retake(set(partitions)))

    async def _retake(self, numbers: set[int]) -> None:
        """Take these partitions, however long the store is away, as long as they are wanted here."""
        while numbers := {number for number in numbers if number in self.wanted and number not in self.partitions}:
            try:
                async with self._moving:
                    await self._take(sorted((numbers & self.wanted) - self.partitions.keys()))
            except (StoreUnavailable, OutcomeUnknown, BrokerUnavailable) as error:
                log.warning("could not take %d partitions: %s", len(numbers), error)
                await asyncio.sleep(self.settings.retry_s)
            except Exception:
                log.exception("could not take %d partitions", len(numbers))
                await asyncio.sleep(self.settings.retry_s)

    # --- receiving -----------------------------------------------------------------------------------------------

    def _receive(self, received: Received) -> None:
        try:
            request: Command | Query | Signal = self._decoder.decode(received.data)
            partition = self.partitions.get(stream_partition(request.stream_id))
        except (msgspec.DecodeError, ValueError):
            self.answer(received.reply, Refused(Code.INVALID, "not a request"))
            return
        if partition is None or not partition.admitting:
            self.answer(received.reply, FENCED)
            return
        if not isinstance(request, Signal) and request.deadline_ms and request.deadline_ms < self._clock.now_ms():
            self._metrics.count("expired_commands")
            return
        if request.stream not in self.activations and len(self.activations) >= self.settings.activations_ever:
            self.answer(received.reply, self._busy())
            return
        activation = self._activation(request.stream)
        if len(activation.mailbox) + activation.uncommitted >= MAILBOX or (
            len(self._commits) >= self.settings.buffer_commands
        ):
            self.answer(received.reply, self._busy())
            return
        activation.mailbox.append(Item(request, received.reply))
        if activation.ready and not activation.paused:
            self._drain(activation)

    def _busy(self) -> Refused:
        self._metrics.count("busy_answers")
        return Refused(Code.BUSY, "too much is waiting", retry_after_s=round(self._commits.wait_s, 3))

    def answer(self, reply: str, answer: Answer) -> None:
        if not reply:
            return
        data = self._encoder.encode(answer)
        if len(data) > LARGEST_ANSWER:
            if isinstance(answer, Accepted):
                data = self._encoder.encode(Accepted(answer.offset, answer.at, (), answer.replayed))
            else:
                data = self._encoder.encode(Refused(Code.PAYLOAD_TOO_LARGE, "the answer is too large to be sent"))
        self._relay.send(reply, data)

    # --- activations ---------------------------------------------------------------------------------------------

    def _activation(self, stream: str) -> Activation:
        activation = self.activations.get(stream)
        if activation is None:
            kind = stream.partition(":")[0]
            activation = Activation(stream, stream_partition(stream), self._kinds[kind], self._clock.monotonic_s())
            self.activations[stream] = activation
            activation.loading = self._background.spawn(self._load(activation))
            self._metrics.gauge("activations", len(self.activations))
        activation.last_used_s = self._clock.monotonic_s()
        return activation

    async def _load(self, activation: Activation) -> None:
        try:
            loaded = await self._loads.get(activation.stream)
            if activation.dead:
                return
            activation.load(loaded or Loaded(None, []))
        except StoreUnavailable as error:
            self._refuse_all(activation, Refused(Code.UNAVAILABLE, str(error), retry_after_s=1.0))
            return
        except Exception:
            log.exception("could not load %s", activation.stream)
            self._refuse_all(activation, Refused(Code.UNAVAILABLE, "the stream could not be loaded"))
            return
        self._drain(activation)

    def _refuse_all(self, activation: Activation, refused: Refused) -> None:
        if self.activations.get(activation.stream) is activation:
            del self.activations[activation.stream]
        activation.dead = True
        while activation.mailbox:
            self.answer(activation.mailbox.popleft().reply, refused)

    async def _load_many(self, streams: Sequence[str]) -> dict[str, Loaded]:
        self._metrics.count("activation_loads", len(streams))
        return await self._log.load(streams, {kind: rules.schema for kind, rules in self._kinds.items()})

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
        """Throw the activation away; whoever waits for it is told to ask again."""
        if self.activations.get(activation.stream) is activation:
            del self.activations[activation.stream]
        self._kill(activation)

    def find(self, stream: str) -> Activation | None:
        activation = self.activations.get(stream)
        return activation if activation is not None and activation.ready and not activation.dead else None

    # --- turns ---------------------------------------------------------------------------------------------------

    def _drain(self, activation: Activation) -> None:
        """Run turns until the mailbox is empty or one must wait for something."""
        while activation.mailbox and not activation.paused and not activation.dead:
            self._turn(activation, activation.mailbox.popleft())

    def _turn(self, activation: Activation, item: Item) -> None:
        partition = self.partitions.get(activation.partition)
        if partition is None:
            self.answer(item.reply, FENCED)
            return
        try:
            if isinstance(item.request, Signal):
                self._signal(activation, item.request, partition.owner)
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
        if isinstance(outcome, Lookup):
            item.rounds += 1
            if item.rounds > ATTEMPTS:
                self.answer(item.reply, self._busy())
                return
            activation.paused = True
            self._background.spawn(self._look_up(activation, item, outcome))
            return
        self._end(activation, item, outcome)

    def _end(self, activation: Activation, item: Item, outcome: Outcome) -> None:
        if outcome.turn is None and not activation.uncommitted and self.lease_fresh():
            self.answer(item.reply, outcome.answer)
            return
        self._commits.add(Pending(activation, outcome, item.reply))

    def lease_fresh(self) -> bool:
        """Whether an answer that commits nothing may be given without asking the log."""
        return self._clock.monotonic_s() - self._lease_from_s < self.settings.lease_s

    async def _look_up(self, activation: Activation, item: Item, lookup: Lookup) -> None:
        refused: Refused | None = None
        try:
            await self._find_out(activation, item, lookup)
        except Refusal as refusal:
            refused = refusal.refused
        except StoreUnavailable as error:
            refused = Refused(Code.UNAVAILABLE, str(error), retry_after_s=1.0)
        except Exception:
            log.exception("a look-up for %s failed", activation.stream)
            refused = Refused(Code.UNAVAILABLE, "the command failed")
        activation.paused = False
        if activation.dead:
            self.answer(item.reply, FENCED)
            return
        if refused is not None:
            self.answer(item.reply, refused)
        else:
            self._turn(activation, item)
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
        loading = self._activation(stream).loading
        if loading is not None:
            done, _ = await asyncio.wait({loading}, timeout=5.0)
            if not done:
                raise StoreUnavailable(f"{stream} did not load in time")

    # --- signals -------------------------------------------------------------------------------------------------

    def _signal(self, activation: Activation, signal: Signal, owner: int) -> None:
        """Typing and fixes: checked, conflated, published without an offset; never answered."""
        if not activation.version or not activation.rules.may_signal(activation.state, signal.actor, signal.name):
            self._metrics.count("signals_refused")
            return
        try:
            if signal.name == "typing":
                data: bytes | None = typing(signal.actor, signal.payload)
            else:
                activation.track = activation.track or Track()
                data, kept = ORDERS.signal(
                    activation.state,
                    activation.track,
                    signal.actor,
                    signal.name,
                    signal.payload,
                    self._clock.now_ms(),
                )
                if kept and len(self._positions) < 10_000:
                    self._positions.setdefault(signal.stream_id, []).extend(kept)
        except (msgspec.DecodeError, Refusal):
            self._metrics.count("signals_refused")
            return
        if data is not None:
            self._relay.ephemeral(activation.stream, owner, Publication(0, data))

    # --- tidying -------------------------------------------------------------------------------------------------

    async def _tidy_forever(self) -> None:
        """Once a second: store sampled positions, drop what is idle, report depths."""
        while True:
            await asyncio.sleep(1.0)
            try:
                await self._store_positions()
                self._collect()
            except Exception:
                log.exception("tidying failed")
            self._metrics.gauge("activations", len(self.activations))
            self._metrics.gauge("pending_commits", len(self._commits))

    async def _store_positions(self) -> None:
        kept, self._positions = self._positions, {}
        for order_id, positions in kept.items():
            try:
                await self._read_models.add_positions(order_id, positions)
            except (StoreUnavailable, OutcomeUnknown):
                self._metrics.count("positions_lost", len(positions))

    def _collect(self) -> None:
        """Drop what has been idle, and beyond the limit whatever was least recently used."""
        now_s = self._clock.monotonic_s()
        idle = [
            activation
            for activation in self.activations.values()
            if now_s - activation.last_used_s > (self.settings.idle_s if activation.version else 1.0)
        ]
        excess = len(self.activations) - self.settings.activations
        oldest = heapq.nsmallest(excess, self.activations.values(), key=lambda a: a.last_used_s) if excess > 0 else []
        for activation in (*idle, *oldest):
            if activation.ready and not (activation.mailbox or activation.paused or activation.uncommitted):
                activation.dead = True
                self.activations.pop(activation.stream, None)
