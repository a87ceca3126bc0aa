"""Which partitions a host owns: taken under the fence, given back in an orderly way, taken anew when in doubt."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, Protocol

import msgspec

from actors.activation import Activation
from actors.background import Background
from actors.group_commit import GroupCommit, Partition, Pending
from actors.relay import Relay
from actors.reminders import Reminders
from actors.turn import Outcome
from domain.channels import command_subject
from domain.commands import Accepted
from domain.ports import (
    Broker,
    BrokerUnavailable,
    Clock,
    Metrics,
    OutcomeUnknown,
    PartitionLog,
    Received,
    StoreUnavailable,
    Subscription,
    Turn,
)

log = logging.getLogger(__name__)

TAKEN_SUBJECT: Final = "host.taken"
"""Where hosts say what they have taken, before they listen for it."""
HOT_EVENTS: Final = 32
"""An activation with this many events since its last snapshot is stored before it goes, so that the next load is short."""
SETTLE_S: Final = 2.0


class TakeoverNotice(msgspec.Struct, frozen=True, array_like=True):
    """An owner (name/incarnation) has taken these partitions, at these positions."""

    owner: str
    positions: dict[int, int]


_encoder = msgspec.msgpack.Encoder()
_taken = msgspec.msgpack.Decoder(TakeoverNotice)


class Tenants(Protocol):
    """The host's activations, as ownership sees them."""

    def living_in(self, partitions: Collection[int]) -> list[Activation]: ...
    def evict(self, partition: int) -> None:
        """Throw away every activation of the partition; whoever waits is told to ask again."""
        ...


class Ownership:
    """The partitions of one host. `partitions` are those that it owns as far as it knows, `wanted` those it should."""

    def __init__(
        self,
        owner: str,
        retry_s: float,
        tenants: Tenants,
        receive: Callable[[Received], None],
        partition_log: PartitionLog,
        relay: Relay,
        broker: Broker,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._owner = owner
        self._retry_s = retry_s
        self._tenants = tenants
        self._receive = receive
        self._log = partition_log
        self._relay = relay
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._background = Background()
        self._moving = asyncio.Lock()
        self._ended: set[int] = set()
        self.partitions: dict[int, Partition] = {}
        self.wanted: set[int] = set()
        self._notices: Subscription | None = None
        self.commits: GroupCommit
        self.reminders: Reminders

    async def start(self) -> None:
        self._notices = await self._broker.subscribe(TAKEN_SUBJECT, self._heard_taken)

    async def stop(self) -> None:
        await self._background.stop()

    # --- as placement wants it ---------------------------------------------------------------------------------------

    async def assign(self, wanted: Iterable[int], later: Collection[int] = (), giving: Collection[int] = ()) -> None:
        """Own exactly `wanted` from now on: release what is not among them, take what is missing.

        Those in `later` are not taken yet: their owner hands them over. Those in `giving` are not released yet.
        """
        mine = self.wanted = set(wanted)
        async with self._moving:
            if self.wanted is not mine:
                return  # somebody knows better by now
            await self.release([n for n in self.partitions if n not in self.wanted and n not in giving])
        await self.retake(self.wanted - set(later))

    async def hand_over(self, numbers: Sequence[int]) -> None:
        """Release these for another host, which is told when this returns."""
        async with self._moving:
            await self.release(numbers)

    async def end(self, writers: Iterable[int]) -> None:
        """End the writing connections of hosts that were given up, each once: a paused one may hold a transaction open."""
        fresh = [number for number in writers if number not in self._ended]
        if fresh:
            try:
                await self._log.end_writers(fresh)
                self._ended.update(fresh)
            except (StoreUnavailable, OutcomeUnknown) as error:
                log.warning("writers of lost hosts were not ended: %s", error)

    async def release(self, numbers: Sequence[int]) -> None:
        """Stop admitting, finish and commit what was admitted, store what is hot, forget the partitions."""
        leaving = [self.partitions[number] for number in numbers if number in self.partitions]
        if not leaving:
            return
        for partition in leaving:
            partition.admitting = False
        gone = {partition.number for partition in leaving}
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._settle(gone)
                await self._relay.settle(gone)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("left partitions unsettled: %r", error)
        mine = [partition for partition in leaving if self.partitions.get(partition.number) is partition]
        await asyncio.gather(*(self._deaf(partition) for partition in mine))
        for partition in mine:
            self.drop(partition.number)
        self._metrics.count("handoffs", len(mine))

    async def _settle(self, numbers: set[int]) -> None:
        for activation in self._tenants.living_in(numbers):
            await self.commits.settle(activation, SETTLE_S)
        for activation in self._tenants.living_in(numbers):
            self.store(activation)
        for activation in self._tenants.living_in(numbers):
            await self.commits.settle(activation, SETTLE_S)

    def store(self, activation: Activation) -> bool:
        """Write a snapshot of an activation that is about to go, if it is hot; True if one is on its way now."""
        if not activation.ready or activation.dead or activation.tentative:
            return False
        snapshot = activation.snapshot(HOT_EVENTS)
        if snapshot is None:
            return False
        turn = Turn(activation.partition, [], [snapshot])
        self.commits.add(Pending(activation, Outcome(Accepted(0, 0), turn), ""))
        return True

    # --- taking --------------------------------------------------------------------------------------------------

    async def retake(self, numbers: Iterable[int]) -> None:
        """Take these partitions, however long the store is away, as long as they are wanted here."""
        while missing := self._missing(numbers):
            try:
                async with self._moving:
                    await self._take(sorted(self._missing(missing)))
            except (StoreUnavailable, OutcomeUnknown, BrokerUnavailable) as error:
                log.warning("could not take %d partitions: %s", len(missing), error)
                await asyncio.sleep(self._retry_s)
            except Exception:
                log.exception("could not take %d partitions", len(missing))
                await asyncio.sleep(self._retry_s)

    def _missing(self, numbers: Iterable[int]) -> set[int]:
        owned = self.partitions
        return {n for n in numbers if n in self.wanted and (n not in owned or owned[n].doubtful)}

    async def _take(self, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        taken = await self._log.take(numbers, self._owner, self._clock.now_ms())
        for number, takeover in taken.items():
            self.drop(number)  # what was in doubt is loaded anew
            self.partitions[number] = Partition(number, takeover.position)
        try:
            # Whoever held these until now hears of it before any question that we could have made its answer stale.
            positions = {number: takeover.position for number, takeover in taken.items()}
            await self._broker.publish(TAKEN_SUBJECT, _encoder.encode(TakeoverNotice(self._owner, positions)))
            await self._relay.take_over(taken)
            await asyncio.gather(*(self._listen(p) for n in taken if (p := self.partitions.get(n)) is not None))
        except BaseException:
            for number in taken:
                self.drop(number)
            raise
        self.reminders.look()
        self._metrics.count("takeovers", len(taken))
        self._metrics.gauge("partitions", len(self.partitions))

    async def _listen(self, partition: Partition) -> None:
        partition.subscription = await self._broker.subscribe(command_subject(partition.number), self._receive)
        if self.partitions.get(partition.number) is not partition:
            await self._deaf(partition)

    async def _deaf(self, partition: Partition) -> None:
        subscription, partition.subscription = partition.subscription, None
        if subscription is not None:
            try:
                await subscription.stop()
            except BrokerUnavailable:
                log.info("the broker was away when partition %d was left", partition.number)

    def _heard_taken(self, received: Received) -> None:
        taken = _taken.decode(received.data)
        if taken.owner != self._owner:
            held = ((self.partitions.get(number), position) for number, position in taken.positions.items())
            self.lost([p for p, position in held if p is not None and p.owner < position])

    # --- losing --------------------------------------------------------------------------------------------------

    def drop(self, number: int) -> None:
        """Forget a partition and everything that lives in it, at once; whoever waits is told to ask again."""
        partition = self.partitions.pop(number, None)
        if partition is None:
            return
        self._relay.forget(number)
        self.reminders.forget(number)
        self._tenants.evict(number)
        if partition.subscription is not None:
            self._background.spawn(self._deaf(partition))
        self._metrics.gauge("partitions", len(self.partitions))

    def lost(self, partitions: Iterable[Partition]) -> None:
        """Somebody else has taken these; whether they should come back is placement's to say."""
        gone = []
        for partition in partitions:
            if self.partitions.get(partition.number) is partition:
                gone.append(partition.number)
                self.drop(partition.number)
        if gone:
            log.warning("%d partitions were taken by another host, such as %s", len(gone), gone[:4])
            self._metrics.count("fenced_partitions", len(gone))

    def suspect(self, numbers: Iterable[int]) -> None:
        """The last flush may or may not be in the log: nothing is decided here until these have been taken anew.

        What lives there goes on answering questions from what is known to be durable.
        """
        doubtful = {number for number in numbers if number in self.partitions}
        for number in doubtful:
            self.partitions[number].doubtful = True
        self._background.spawn(self.retake(doubtful))

    def doubt(self, numbers: Iterable[int]) -> None:
        """What lives in these mirrors nothing any more: forget it and take the partitions anew."""
        doubtful = set(numbers)
        for number in doubtful:
            self.drop(number)
        self._background.spawn(self.retake(doubtful))
