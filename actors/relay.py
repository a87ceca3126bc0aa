"""Out of the log: what is committed goes to the broker in order, and again from a cursor when that is in doubt."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Final

import msgspec

from actors.activation import Activation
from actors.kinds import Kinds
from domain.channels import event_subject, user_subject
from domain.commands import Delivery, Hint, Publication
from domain.ports import Broker, BrokerUnavailable, Metrics, OutcomeUnknown, PartitionLog, StoreUnavailable, Takeover

log = logging.getLogger(__name__)

LARGEST_BYTES: Final = 256 * 1024
"""Bytes of publications in one message; longer runs are split."""
PAGE: Final = 500
SAVE_EVERY_S: Final = 1.0
PAUSE_S: Final = 0.2
"""How long to wait before trying again what failed."""
QUEUE: Final = 65_536
"""Messages that may wait for the broker; more are dropped, and come again from the cursor."""


class Outgoing(msgspec.Struct):
    """What one flush has to say on behalf of one activation."""

    activation: Activation
    owner: int
    events: list[tuple[int, Any]]
    publications: list[Publication]


class Progress(msgspec.Struct):
    """How far a partition's log was published, how far the broker is known to have it, and the cursor that is stored.

    `owner` is the takeover position under which the host speaks.
    """

    owner: int
    published: int
    confirmed: int
    saved: int


class Relay:
    """Publishes at least once, in order per stream; consumers drop what they have seen, by stream and offset.

    Whatever may not have reached the broker is a loss. While a loss is not repaired no cursor moves; the repair publishes
    again all that is not confirmed.
    """

    def __init__(self, broker: Broker, partition_log: PartitionLog, kinds: Kinds, metrics: Metrics) -> None:
        self._broker = broker
        self._log = partition_log
        self._kinds = kinds
        self._metrics = metrics
        self._encoder = msgspec.msgpack.Encoder()
        self._queue: deque[tuple[str, bytes]] = deque()
        self._filled = asyncio.Event()
        self._progress: dict[int, Progress] = {}
        self._sending = asyncio.Lock()
        self._lossy = asyncio.Event()
        self._losses = 0
        self._repaired = 0

    # --- what the host calls ---------------------------------------------------------------------------------------

    def send(self, subject: str, data: bytes) -> None:
        if len(self._queue) >= QUEUE:
            self._metrics.count("messages_dropped")
            self.lose()
            return
        self._queue.append((subject, data))
        self._filled.set()

    def publish(self, outgoing: Iterable[Outgoing], committed_ms: int) -> None:
        for out in outgoing:
            self._deliver(out.activation.stream, out.owner, out.publications, committed_ms)
            for user_id, data in out.activation.rules.hints(out.activation.stable(), out.events):
                self.send(user_subject(user_id), self._encoder.encode(Hint(user_id, data)))

    def ephemeral(self, stream: str, owner: int, publication: Publication) -> None:
        self._deliver(stream, owner, [publication])

    def published(self, partition: int, position: int) -> None:
        """Everything up to the position has been given to `publish`."""
        progress = self._progress.get(partition)
        if progress is not None:
            progress.published = max(progress.published, position)

    async def take_over(self, taken: Mapping[int, Takeover]) -> None:
        """Publish again whatever the former owners may not have published, before anything new is said.

        What has not been read yet is not published: a cursor that were saved meanwhile would pass over it for ever if the
        reading failed.
        """
        for number, takeover in taken.items():
            cursor = takeover.cursor
            progress = self._progress[number] = Progress(takeover.position, cursor, cursor, cursor)
            if cursor < takeover.position - 1:
                await self._publish_again(number, progress, takeover.position)
            progress.published = max(progress.published, takeover.position)

    def forget(self, partition: int) -> None:
        self._progress.pop(partition, None)

    def lose(self) -> None:
        """Something that was to be published may not have reached the broker."""
        self._losses += 1
        self._lossy.set()

    async def settle(self, partitions: Iterable[int]) -> None:
        """Before a handoff: have the broker confirm, and save how far it got. Best effort; the next owner repairs."""
        try:
            await self._confirm(set(partitions))
        except Exception as error:
            log.warning("cursors were not saved at a handoff: %r", error)

    # --- at work ---------------------------------------------------------------------------------------------------

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """What never ends: a task for each, so that whoever cancels one sees whether it has heard that."""
        return [self._forever(step) for step in (self._send_next, self._confirm_next, self._repair_next)]

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        """Nothing that goes wrong in one step may end the others, or the next ones."""
        while True:
            try:
                await step()
            except (BrokerUnavailable, StoreUnavailable, OutcomeUnknown) as error:
                log.warning("%s waits: %r", step.__name__, error)
                await asyncio.sleep(PAUSE_S)
            except Exception:
                log.exception("%s failed", step.__name__)
                await asyncio.sleep(PAUSE_S)

    async def _send_next(self) -> None:
        await self._filled.wait()
        self._filled.clear()
        await self._send_all()

    async def _send_all(self) -> None:
        """Empty the queue into the broker, in order."""
        async with self._sending:
            while self._queue:
                subject, data = self._queue.popleft()
                try:
                    await self._broker.publish(subject, data)
                except BrokerUnavailable:
                    self._metrics.count("messages_dropped", len(self._queue) + 1)
                    self._queue.clear()
                    self.lose()
                except ValueError:
                    log.exception("a message of %d bytes to %s cannot be sent", len(data), subject)

    async def _confirm_next(self) -> None:
        await asyncio.sleep(SAVE_EVERY_S)
        await self._confirm(set(self._progress))

    async def _confirm(self, partitions: set[int]) -> None:
        await self._send_all()
        losses = self._losses
        reached = {n: (p, p.published) for n, p in self._progress.items() if n in partitions and p.published > p.saved}
        if not reached or losses != self._repaired:
            return
        await self._broker.confirm()
        if losses != self._losses:
            return
        for progress, position in reached.values():
            progress.confirmed = max(progress.confirmed, position)
        await self._log.save_cursors({number: position for number, (_, position) in reached.items()})
        for progress, position in reached.values():
            progress.saved = max(progress.saved, position)

    async def _repair_next(self) -> None:
        await self._lossy.wait()
        await self._broker.confirm()
        losses = self._losses
        self._lossy.clear()
        try:
            for number, progress in list(self._progress.items()):
                if progress.published > progress.confirmed:
                    await self._publish_again(number, progress, progress.published)
            await self._send_all()
        except BaseException:
            self._lossy.set()
            raise
        if losses == self._losses:
            self._repaired = losses
        else:
            await asyncio.sleep(PAUSE_S)

    async def _publish_again(self, number: int, progress: Progress, end: int) -> None:
        """Publish what the broker has not confirmed of the partition up to a position, as long as it is ours."""
        after = progress.confirmed
        while after < end and self._progress.get(number) is progress:
            if len(self._queue) > QUEUE // 2:
                await self._send_all()
            page = await self._log.read_partition(number, after, PAGE)
            if not page:
                return
            runs: dict[str, list[Publication]] = {}
            for _, entry in page:
                rules = self._kinds[entry.stream.partition(":")[0]]
                runs.setdefault(entry.stream, []).append(Publication(entry.offset, rules.publication(entry.body)))
            for stream, publications in runs.items():
                self._deliver(stream, progress.owner, publications)
            after = page[-1][0]
            progress.published = max(progress.published, after)
            self._metrics.count("republished", len(page))
            await asyncio.sleep(0)

    def _deliver(self, stream: str, owner: int, publications: list[Publication], committed_ms: int = 0) -> None:
        subject = event_subject(stream)
        run: list[Publication] = []
        size = 0
        for publication in publications:
            if run and size + len(publication.data) > LARGEST_BYTES:
                self.send(subject, self._encoder.encode(Delivery(stream, owner, tuple(run), committed_ms)))
                run, size = [], 0
            run.append(publication)
            size += len(publication.data)
        if run:
            self.send(subject, self._encoder.encode(Delivery(stream, owner, tuple(run), committed_ms)))
