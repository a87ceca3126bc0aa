"""The hub: channels and the sessions of one gateway that follow them.

One broker subscription per channel, however many sessions; every event is decoded once, encoded once, and the same bytes
are handed to every session. A short tail per channel serves those who come back without asking the store.
"""

import asyncio
import contextlib
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from domain.channels import event_subject, user_subject
from domain.commands import Attached, Delivery, Hint
from domain.ids import partition_of
from domain.ports import Broker, BrokerUnavailable, Clock, Metrics, Received, StreamReader, Subscription
from gateway.protocol import publication, push, push_prefix
from gateway.recovery import Cursor, Event, Sink, encode_event
from gateway.settings import GatewaySettings

log = logging.getLogger("renoveasy.gateway")

_decode_delivery = msgspec.msgpack.Decoder(Delivery).decode
_decode_hint = msgspec.msgpack.Decoder(Hint).decode


def _noted(task: asyncio.Task[Any]) -> None:
    """A failed opening is told to whoever waits for it; nobody may be waiting any more."""
    if not task.cancelled():
        task.exception()


async def stopped(subscription: Subscription) -> None:
    """The subscription is over; a broker that is away has nothing to be told."""
    with contextlib.suppress(BrokerUnavailable):
        await subscription.stop()


class HubChannel:
    """A stream as this gateway knows it. `head` is the highest offset heard of, `owner` the highest takeover position."""

    __slots__ = (
        "cursors", "epoch", "followers", "head", "idle_since", "name", "opening", "owner", "prefix", "subscription",
        "tail", "tail_bytes",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefix = push_prefix(name)
        self.head = 0
        self.epoch = ""
        self.owner = 0
        self.tail: deque[Event] = deque()
        self.tail_bytes = 0
        self.cursors: dict[Cursor, None] = {}
        """In the order in which they joined, which is that of delivery."""
        self.followers = 0
        self.idle_since = 0.0
        self.opening: asyncio.Task[None] | None = None
        self.subscription: Subscription | None = None

    def attached(self, answer: Attached) -> None:
        """Take over what the stream's owner says of it."""
        self.head = max(self.head, answer.head)
        self.owner = max(self.owner, answer.owner)
        self.epoch = answer.epoch

    def tail_after(self, offset: int) -> list[Event] | None:
        """The events after `offset`, if the tail reaches back that far."""
        tail = self.tail
        if not tail or tail[0].offset > offset + 1:
            return None
        return list(tail)[offset + 1 - tail[0].offset :]


class Hub:
    """Follows channels on the broker and hands events to cursors, in order.

    `recheck` is called after an event with which somebody may have lost the right to listen.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        broker: Broker,
        reader: StreamReader,
        clock: Clock,
        metrics: Metrics,
        recheck: Callable[[HubChannel], None],
        counts: Counter[str],
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._reader = reader
        self._clock = clock
        self._metrics = metrics
        self._recheck = recheck
        self._counts = counts
        self._channels: dict[str, HubChannel] = {}
        self._idle: OrderedDict[str, HubChannel] = OrderedDict()
        self._tails_bytes = 0
        self._users: dict[str, set[Sink]] = {}
        self._partitions: dict[int, asyncio.Task[Subscription]] = {}
        self._reads = asyncio.Semaphore(settings.recovery_reads)

    @property
    def channels(self) -> list[HubChannel]:
        return list(self._channels.values())

    # --- streams -------------------------------------------------------------------------------------------------

    async def follow(self, name: str) -> HubChannel:
        """The channel, with its broker subscription active; give it back with `unfollow`.

        Raises:
            BrokerUnavailable: it cannot be followed now.
        """
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = HubChannel(name)
            channel.opening = asyncio.create_task(self._open(channel))
            channel.opening.add_done_callback(_noted)
        channel.followers += 1
        self._idle.pop(name, None)
        try:
            if channel.opening is not None:
                await asyncio.shield(channel.opening)
        except BaseException:
            self.unfollow(channel)
            raise
        return channel

    def unfollow(self, channel: HubChannel) -> None:
        """One follower less; without any the channel lingers for those who come back soon."""
        channel.followers -= 1
        if channel.followers == 0 and self._channels.get(channel.name) is channel:
            channel.idle_since = self._clock.monotonic_s()
            self._idle[channel.name] = channel

    async def _open(self, channel: HubChannel) -> None:
        try:
            handler = partial(self._delivered, channel)
            channel.subscription = await self._broker.subscribe(event_subject(channel.name), handler)
            channel.opening = None
        except BaseException:
            self._channels.pop(channel.name, None)
            self._idle.pop(channel.name, None)
            raise

    def _delivered(self, channel: HubChannel, message: Received) -> None:
        try:
            delivery = _decode_delivery(message.data)
        except msgspec.MsgspecError:
            log.warning("undecodable delivery on %s", message.subject)
            self._metrics.count("gateway_bad_deliveries")
            return
        current = delivery.owner >= channel.owner
        if current:
            channel.owner = delivery.owner
        for item in delivery.items:
            if item.offset:
                self._event(channel, encode_event(channel.prefix, item.offset, item.data))
            elif current:
                frame = push(channel.prefix, publication(item.data, 0))
                for cursor in channel.cursors:
                    if cursor.live:
                        cursor.sink.ephemeral(frame)
        if delivery.committed_ms and channel.cursors:
            age_s = (self._clock.now_ms() - delivery.committed_ms) / 1000
            self._metrics.observe("commit_to_socket_seconds", max(0.0, age_s))

    def _event(self, channel: HubChannel, event: Event) -> None:
        if event.offset > channel.head:
            if channel.cursors and event.offset > channel.head + 1:
                self._counts["gateway_missed_events"] += event.offset - channel.head - 1
            channel.head = event.offset
        self._remember(channel, event)
        leaving = [cursor for cursor in channel.cursors if cursor.deliver(event)]
        for cursor in leaving:
            cursor.sink.expelled(cursor)
        if event.recheck and channel.cursors:
            self._recheck(channel)

    def _remember(self, channel: HubChannel, event: Event) -> None:
        tail, settings = channel.tail, self._settings
        if tail and event.offset != tail[-1].offset + 1:
            if event.offset <= tail[-1].offset:
                return
            self._forget_tail(channel)
        if self._tails_bytes > settings.tails_bytes:
            self._forget_tail(channel)
        tail.append(event)
        channel.tail_bytes += len(event.frame)
        self._tails_bytes += len(event.frame)
        while len(tail) > settings.tail_events or (channel.tail_bytes > settings.tail_bytes and len(tail) > 1):
            size = len(tail.popleft().frame)
            channel.tail_bytes -= size
            self._tails_bytes -= size

    def _forget_tail(self, channel: HubChannel) -> None:
        channel.tail.clear()
        self._tails_bytes -= channel.tail_bytes
        channel.tail_bytes = 0

    def join(self, channel: HubChannel, cursor: Cursor) -> None:
        """From now on the cursor gets live events, or pages if it is behind."""
        channel.cursors[cursor] = None
        if cursor.position >= channel.head:
            cursor.live = True
        else:
            cursor.sink.lagging(cursor)

    def leave(self, cursor: Cursor) -> None:
        """The cursor gets nothing more."""
        cursor.gone = True
        cursor.live = False
        channel = self._channels.get(cursor.channel)
        if channel is not None and cursor in channel.cursors:
            del channel.cursors[cursor]
            self.unfollow(channel)

    def channel_of(self, cursor: Cursor) -> HubChannel:
        return self._channels[cursor.channel]

    async def page(self, channel: HubChannel, after: int, max_events: int, max_bytes: int) -> list[Event]:
        """Events right after `after`, in order, without a hole; empty when the store has none (yet).

        None that the stream's owner has not spoken of: a commit may stand in the store before its owner knows of it, and a
        client who had seen that would come back with an offset of which the owner says that it does not exist.

        Raises:
            StoreUnavailable: the store cannot be read now.
        """
        tail = channel.tail_after(after)
        if tail:
            return tail[:max_events]
        async with self._reads:
            self._metrics.count("gateway_recovery_pages")
            rows = await self._reader.read(channel.name, after, max_events, max_bytes)
        return [encode_event(channel.prefix, offset, data) for offset, data in rows if offset <= channel.head]

    async def rows(self, name: str, start: int | None, limit: int, *, back: bool) -> list[tuple[int, bytes]]:
        """(offset, data) for `history`: after `start`, or before it when `back`."""
        async with self._reads:
            if back:
                return await self._reader.read_back(name, 2**62 if start is None else start, limit)
            return await self._reader.read(name, start or 0, limit, self._settings.page_bytes)

    # --- users ---------------------------------------------------------------------------------------------------

    async def follow_user(self, user_id: str, sink: Sink) -> None:
        """From the return on the sink gets the user's hints. One broker subscription per partition of users, kept."""
        partition = partition_of(user_id)
        task = self._partitions.get(partition)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._broker.subscribe(user_subject(user_id), self._hinted))
            task.add_done_callback(_noted)
            self._partitions[partition] = task
        await asyncio.shield(task)
        self._users.setdefault(user_id, set()).add(sink)

    def unfollow_user(self, user_id: str, sink: Sink) -> None:
        sinks = self._users.get(user_id)
        if sinks is not None:
            sinks.discard(sink)
            if not sinks:
                del self._users[user_id]

    def _hinted(self, message: Received) -> None:
        try:
            hint = _decode_hint(message.data)
        except msgspec.MsgspecError:
            log.warning("undecodable hint on %s", message.subject)
            self._metrics.count("gateway_bad_deliveries")
            return
        sinks = self._users.get(hint.user_id)
        if sinks:
            frame = push(push_prefix(f"user:{hint.user_id}"), publication(hint.data, 0))
            for sink in tuple(sinks):
                sink.hint(frame)

    # --- housekeeping --------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Stop following channels that nobody has followed for a while."""
        now = self._clock.monotonic_s()
        while self._idle:
            name, channel = next(iter(self._idle.items()))
            expired = now - channel.idle_since >= self._settings.linger_s
            if not expired and len(self._idle) <= self._settings.linger_channels:
                break
            del self._idle[name], self._channels[name]
            self._forget_tail(channel)
            if channel.subscription is not None:
                await stopped(channel.subscription)

    async def close(self) -> None:
        """Stop following everything."""
        for task in self._partitions.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                await stopped(task.result())
            else:
                task.cancel()
        for channel in self.channels:
            if channel.opening is not None:
                channel.opening.cancel()
            if channel.subscription is not None:
                await stopped(channel.subscription)
        self._channels.clear()
        self._idle.clear()
        self._users.clear()
        self._partitions.clear()
