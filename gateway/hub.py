"""The hub: channels and the sessions of one gateway that follow them.

One broker subscription per channel, however many sessions; every event is decoded once, encoded once, and the same bytes
are handed to every session. A short tail per channel serves those who come back without asking the store.
"""

import asyncio
import contextlib
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from domain.channels import event_subject, user_subject
from domain.commands import Attached, Delivery, Hint
from domain.ids import partition_of
from domain.ports import Broker, BrokerUnavailable, Clock, Metrics, Received, StreamReader, Subscription
from domain.presence import Move, Present, keeps_last_seen, user_channel
from gateway.attendance import Moved
from gateway.presence import Presence
from gateway.publication import Address, Event, Publication
from gateway.recovery import Cursor, Sink, encode_event
from gateway.settings import GatewaySettings

log = logging.getLogger("renoveasy.gateway")

_decode_delivery = msgspec.msgpack.Decoder(Delivery).decode
_decode_hint = msgspec.msgpack.Decoder(Hint).decode


class _About(msgspec.Struct):
    """What kind of state a publication tells, and of whom."""

    type: str = ""
    by: str = ""
    conversation_id: str = ""
    order_id: str = ""


_decode_about = msgspec.json.Decoder(_About).decode
_STOPPED_AT_ONCE = 250
_ACTIVITY = frozenset({"conversation.activity", "order.activity"})
"""Hints that say where something stands: the latest says it all."""


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
        "address", "cursors", "epoch", "followers", "head", "idle_since", "name", "opening", "owner", "subscription", "tail",
        "tail_bytes", "watchers",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = Address(name)
        self.head = 0
        self.epoch = ""
        self.owner = 0
        self.tail: deque[Event] = deque()
        self.tail_bytes = 0
        self.cursors: dict[Cursor, None] = {}
        """In the order in which they joined, which is that of delivery."""
        self.watchers: dict[Cursor, None] | None = None
        """Those who asked to be told who comes and goes."""
        self.followers = 0
        self.idle_since = 0.0
        self.opening: asyncio.Task[None] | None = None
        self.subscription: Subscription | None = None

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
        self.presence: Presence | None = None
        """Is told who comes and goes."""

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
        """One follower less; without any the channel lingers for those who come back soon, if its owner ever spoke of it."""
        channel.followers -= 1
        if channel.followers == 0 and self._channels.get(channel.name) is channel:
            self._idle[channel.name] = channel
            channel.idle_since = self._clock.monotonic_s()
            if not channel.epoch:
                channel.idle_since -= self._settings.linger_s
                self._idle.move_to_end(channel.name, last=False)

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
                self._event(channel, encode_event(channel.address, item.offset, item.data))
            elif current:
                self._ephemeral(channel, item.data)
        if delivery.moves and channel.watchers:
            self._moved(channel, delivery.moves)
        if delivery.committed_ms and channel.cursors:
            age_s = (self._clock.now_ms() - delivery.committed_ms) / 1000
            self._metrics.observe("commit_to_socket_seconds", max(0.0, age_s))

    def _ephemeral(self, channel: HubChannel, data: bytes) -> None:
        """State of the moment: who is behind gets it too, as the latest of its kind, when there is room again."""
        publication = Publication(channel.address, data)
        about = _decode_about(data)
        key = (channel.name, about.type, about.by)
        for cursor in channel.cursors:
            if not cursor.held:
                cursor.sink.state(publication, key)

    def _moved(self, channel: HubChannel, moves: Sequence[Move]) -> None:
        for move in moves:
            moved = Moved(channel.name, move)
            for cursor in channel.watchers or ():
                cursor.sink.moved(moved)

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

    def attached(self, channel: HubChannel, answer: Attached) -> None:
        """Take over what the stream's owner says of it; its last events go in front of those heard since."""
        channel.head = max(channel.head, answer.head)
        channel.owner = max(channel.owner, answer.owner)
        channel.epoch = answer.epoch
        heard = list(channel.tail)
        older = [item for item in answer.events if not heard or item.offset < heard[0].offset]
        if not older or (heard and older[-1].offset != heard[0].offset - 1):
            return
        self._forget_tail(channel)
        for event in [*(encode_event(channel.address, item.offset, item.data) for item in older), *heard]:
            self._remember(channel, event)

    def _remember(self, channel: HubChannel, event: Event) -> None:
        """Keep it for those who come back; nothing from before an erasure is kept."""
        tail, settings = channel.tail, self._settings
        if tail and event.offset <= tail[-1].offset:
            return
        hole = tail and event.offset != tail[-1].offset + 1
        if hole or event.erases or self._tails_bytes > settings.tails_bytes:
            self._forget_tail(channel)
        tail.append(event)
        channel.tail_bytes += len(event.json)
        self._tails_bytes += len(event.json)
        while len(tail) > settings.tail_events or (channel.tail_bytes > settings.tail_bytes and len(tail) > 1):
            size = len(tail.popleft().json)
            channel.tail_bytes -= size
            self._tails_bytes -= size

    def _forget_tail(self, channel: HubChannel) -> None:
        channel.tail.clear()
        self._tails_bytes -= channel.tail_bytes
        channel.tail_bytes = 0

    def join(self, channel: HubChannel, cursor: Cursor, *, watches: bool = False) -> None:
        """From now on the cursor gets live events, or pages if it is behind; if it `watches`, also who comes and goes."""
        channel.cursors[cursor] = None
        if watches:
            channel.watchers = channel.watchers or {}
            channel.watchers[cursor] = None
        if self.presence is not None and cursor.sink.present is not None:
            self.presence.joined(channel.name, cursor.sink.present)
        if cursor.held:
            self._recheck(channel)
        else:
            self.go_on(channel, cursor)

    def go_on(self, channel: HubChannel, cursor: Cursor) -> None:
        """Live events for who has everything, else pages."""
        cursor.held = False
        if cursor.position >= channel.head:
            cursor.live = True
        else:
            cursor.sink.lagging(cursor)

    def recheck(self, channel: HubChannel) -> None:
        """Somebody may have lost the right to listen, as of where a cursor is held."""
        self._recheck(channel)

    def leave(self, cursor: Cursor) -> None:
        """The cursor gets nothing more."""
        cursor.gone = True
        cursor.live = False
        channel = self._channels.get(cursor.channel)
        if channel is not None and cursor in channel.cursors:
            del channel.cursors[cursor]
            if channel.watchers is not None:
                channel.watchers.pop(cursor, None)
            if self.presence is not None and cursor.sink.present is not None:
                self.presence.left(channel.name, cursor.sink.present, last=not channel.cursors)
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
        return [encode_event(channel.address, offset, data) for offset, data in rows if offset <= channel.head]

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

    def arrived(self, sink: Sink) -> None:
        """The user whom the sink follows is known to be there by it."""
        if self.presence is not None and sink.present is not None:
            self.presence.joined(user_channel(sink.present.user), sink.present)

    def departed(self, sink: Sink) -> None:
        """The sink has been the user's no more, as of now."""
        if self.presence is not None and sink.present is not None:
            channel = user_channel(sink.present.user)
            self.presence.left(channel, sink.present, last=not self.here(channel))

    def _hinted(self, message: Received) -> None:
        try:
            hint = _decode_hint(message.data)
        except msgspec.MsgspecError:
            log.warning("undecodable hint on %s", message.subject)
            self._metrics.count("gateway_bad_deliveries")
            return
        sinks = self._users.get(hint.user_id)
        if sinks:
            publication = Publication(Address(f"user:{hint.user_id}"), hint.data)
            about = _decode_about(hint.data)
            moved = about.conversation_id or about.order_id
            key = (about.type, moved) if moved and about.type in _ACTIVITY else None
            for sink in tuple(sinks):
                sink.hint(publication, key)

    # --- who is here ---------------------------------------------------------------------------------------------

    def here(self, name: str) -> Sequence[Present]:
        """The clients on a channel of this gateway."""
        sinks: Iterable[Sink]
        if keeps_last_seen(name):
            sinks = self._users.get(name.partition(":")[2], ())
        else:
            channel = self._channels.get(name)
            sinks = [cursor.sink for cursor in channel.cursors] if channel is not None else ()
        return tuple(sink.present for sink in sinks if sink.present is not None)

    def peopled(self) -> Iterable[str]:
        """Every channel that somebody is on."""
        yield from [user_channel(user_id) for user_id in self._users]
        yield from [channel.name for channel in self.channels if channel.cursors]

    # --- housekeeping --------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Stop following channels that nobody has followed for a while."""
        now = self._clock.monotonic_s()
        over: list[Subscription] = []
        while self._idle:
            name, channel = next(iter(self._idle.items()))
            expired = now - channel.idle_since >= self._settings.linger_s
            if not expired and len(self._idle) <= self._settings.linger_channels:
                break
            del self._idle[name], self._channels[name]
            self._forget_tail(channel)
            if channel.subscription is not None:
                over.append(channel.subscription)
                channel.subscription = None  # whose handler holds the channel
            if len(over) == _STOPPED_AT_ONCE:
                await asyncio.gather(*map(stopped, over))
                over.clear()
        await asyncio.gather(*map(stopped, over))

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
