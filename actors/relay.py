"""Out of the log: what is committed goes to the broker in order, and again from a cursor when that is in doubt."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from actors.activation import Activation
from actors.kinds import Kinds
from domain.channels import event_subject, user_subject
from domain.commands import Delivery, Hint, Publication
from domain.ports import Broker, BrokerUnavailable, Metrics, PartitionLog, StoreUnavailable, Takeover

log = logging.getLogger(__name__)

LARGEST_BYTES: Final = 256 * 1024
"""Bytes of publications in one message; longer runs are split."""
PAGE: Final = 500
SAVE_EVERY_S: Final = 1.0
QUEUE: Final = 65_536
"""Messages that may wait for the broker; more are dropped, and come again from the cursor."""


class Outgoing(msgspec.Struct):
    """What one flush has to say on behalf of one activation."""

    activation: Activation
    owner: int
    events: list[tuple[int, Any]]
    publications: list[Publication]


class Progress(msgspec.Struct):
    """How far a partition's log has been published, and how far the broker is known to have it."""

    published: int
    confirmed: int
    saved: int
    doubtful: bool = False


class Relay:
    """Publishes at least once, in order per stream; consumers drop what they have seen, by stream and offset."""

    def __init__(self, broker: Broker, partition_log: PartitionLog, kinds: Kinds, metrics: Metrics) -> None:
        self._broker = broker
        self._log = partition_log
        self._kinds = kinds
        self._metrics = metrics
        self._encoder = msgspec.msgpack.Encoder()
        self._queue: deque[tuple[str, bytes]] = deque()
        self._filled = asyncio.Event()
        self._progress: dict[int, Progress] = {}
        self._again = asyncio.Event()

    # --- what the host calls ---------------------------------------------------------------------------------------

    def send(self, subject: str, data: bytes) -> None:
        if len(self._queue) >= QUEUE:
            self._metrics.count("messages_dropped")
            self.republish()
            return
        self._queue.append((subject, data))
        self._filled.set()

    def publish(self, outgoing: Iterable[Outgoing]) -> None:
        for out in outgoing:
            self._deliver(out.activation.stream, out.owner, out.publications)
            for user_id, data in out.activation.rules.hints(out.activation.state, out.events):
                self.send(user_subject(user_id), self._encoder.encode(Hint(user_id, data)))

    def ephemeral(self, stream: str, owner: int, publication: Publication) -> None:
        self._deliver(stream, owner, [publication])

    def published(self, partition: int, position: int) -> None:
        progress = self._progress.get(partition)
        if progress is not None:
            progress.published = max(progress.published, position)

    async def take_over(self, taken: Mapping[int, Takeover]) -> None:
        """Publish again whatever the former owners may not have published, before anything new is said."""
        for number, takeover in taken.items():
            self._progress[number] = Progress(takeover.position, takeover.cursor, takeover.cursor)
            if takeover.cursor < takeover.position - 1:
                await self._publish_again(number)

    def forget(self, partition: int) -> None:
        self._progress.pop(partition, None)

    def republish(self) -> None:
        """The broker may have lost something: publish again all that it has not confirmed."""
        for progress in self._progress.values():
            progress.doubtful = progress.published > progress.confirmed
        self._again.set()

    async def settle(self, partitions: Iterable[int]) -> None:
        """Before a handoff: have the broker confirm, and save how far it got. Best effort; the next owner repairs."""
        try:
            await self._confirm(set(partitions))
        except (BrokerUnavailable, StoreUnavailable):
            self._metrics.count("cursors_not_saved")

    # --- at work ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send_forever())
            group.create_task(self._confirm_forever())
            group.create_task(self._repair_forever())

    async def _send_forever(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            await self._send_all()

    async def _send_all(self) -> None:
        while self._queue:
            subject, data = self._queue.popleft()
            try:
                await self._broker.publish(subject, data)
            except BrokerUnavailable:
                self._metrics.count("messages_dropped", len(self._queue) + 1)
                self._queue.clear()
                self.republish()

    async def _confirm_forever(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            try:
                await self._confirm(set(self._progress))
            except (BrokerUnavailable, StoreUnavailable) as error:
                log.warning("relay cursors wait: %r", error)

    async def _confirm(self, partitions: set[int]) -> None:
        if self._queue:
            await self._send_all()
        reached = {
            number: progress.published
            for number, progress in self._progress.items()
            if number in partitions and progress.published > progress.saved and not progress.doubtful
        }
        if not reached:
            return
        await self._broker.confirm()
        for number, position in reached.items():
            progress = self._progress.get(number)
            if progress is not None and not progress.doubtful:
                progress.confirmed = max(progress.confirmed, position)
        cursors = {n: p.confirmed for n, p in self._progress.items() if n in reached and p.confirmed > p.saved}
        if cursors:
            await self._log.save_cursors(cursors)
            for number, position in cursors.items():
                if number in self._progress:
                    self._progress[number].saved = position

    async def _repair_forever(self) -> None:
        while True:
            await self._again.wait()
            self._again.clear()
            doubtful = [number for number, progress in self._progress.items() if progress.doubtful]
            try:
                for number in doubtful:
                    await self._publish_again(number)
                    if number in self._progress:
                        self._progress[number].doubtful = False
                if doubtful:
                    await self._broker.confirm()
            except (BrokerUnavailable, StoreUnavailable) as error:
                log.warning("publishing again waits: %r", error)
                await asyncio.sleep(0.5)
                self._again.set()

    async def _publish_again(self, number: int) -> None:
        progress = self._progress[number]
        after = progress.confirmed
        while after < progress.published:
            page = await self._log.read_partition(number, after, PAGE)
            if not page:
                break
            runs: dict[str, list[Publication]] = {}
            for _, entry in page:
                rules = self._kinds[entry.stream.partition(":")[0]]
                runs.setdefault(entry.stream, []).append(Publication(entry.offset, rules.publication(entry.body)))
            for stream, publications in runs.items():
                self._deliver(stream, progress.published, publications)
            after = page[-1][0]
            self._metrics.count("republished", len(page))
            await asyncio.sleep(0)

    def _deliver(self, stream: str, owner: int, publications: list[Publication]) -> None:
        subject = event_subject(stream)
        run: list[Publication] = []
        size = 0
        for publication in publications:
            if run and size + len(publication.data) > LARGEST_BYTES:
                self.send(subject, self._encoder.encode(Delivery(stream, owner, tuple(run))))
                run, size = [], 0
            run.append(publication)
            size += len(publication.data)
        if run:
            self.send(subject, self._encoder.encode(Delivery(stream, owner, tuple(run))))
