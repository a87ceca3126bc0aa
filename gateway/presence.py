"""Who is there, as this gateway says and hears it.

Nothing is refreshed client by client. What changed is collected, and said to the store a few times a second, a batch of
channels at a time; one beat every ten seconds keeps all of it alive. Who is on a channel of this gateway is not kept here
either: the hub is asked when it is to be said. So neither can a client be forgotten, nor one stay that is gone.

Comings and goings are published at once, on the channel's own subject, to those who asked for them.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, Protocol

import msgspec

from domain.channels import event_subject
from domain.commands import Delivery
from domain.ports import Broker, BrokerUnavailable, Clock, PresenceStore, StoreUnavailable
from domain.presence import (
    BEAT_S,
    DEAD_AFTER_MS,
    Attendance,
    Heard,
    Move,
    Present,
    Said,
    attendance,
    keeps_last_seen,
)

log = logging.getLogger("renoveasy.gateway")

_encode = msgspec.msgpack.encode
_MOVES_AT_ONCE: Final = 1_000
"""In one message: that is 150 KB at most."""
_PUBLISHED_AT_ONCE: Final = 64
"""Before others have their turn."""


class PresenceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds."""

    beat_s: float = BEAT_S
    flush_s: float = 0.25
    """How often changes are said to the store, and comings and goings to whoever asked."""
    hold_s: float = 2
    """A leave is told so much later: who reconnects has come before they went, and their user was never away."""
    retry_s: float = 1
    """How long after a failure the store is tried again."""
    batch_channels: int = 500
    batch_clients: int = 2_000
    batches: int = 8
    """Said to the store at one time; what is more waits for the next."""
    max_left: int = 20_000
    """Channels without anybody that the store has not been told of. Beyond, all is said anew under another name."""
    max_published: int = 2_000
    """Channels on which comings and goings are told at one time."""
    max_listed: int = 2_000
    """Clients in one answer; of a channel with more of them only the numbers can be had."""
    reads: int = 8
    """Of the store at once: beats must find a connection."""


class View(Protocol):
    """Who is at this gateway now."""

    def here(self, channel: str) -> Sequence[Present]:
        """The clients on the channel."""
        ...

    def peopled(self) -> Iterable[str]:
        """Every channel with a client."""
        ...


class Moves:
    """Comings and goings that are still to be told, by channel and client."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._coming: dict[tuple[str, str], Present] = {}
        self._going: dict[tuple[str, str], tuple[float, Present]] = {}
        """With when it is to be told; the earliest first."""

    def come(self, channel: str, client: Present) -> None:
        """Somebody has come; one whose leave was not told yet was never away."""
        if self._going.pop((channel, client.client), None) is None:
            self._coming[channel, client.client] = client

    def go(self, channel: str, client: Present, now_s: float) -> None:
        """Somebody has gone; one whose coming was not told yet was never there."""
        if self._coming.pop((channel, client.client), None) is None:
            self._going[channel, client.client] = (now_s + self._hold_s, client)

    def due(self, now_s: float, most: int) -> dict[str, list[Move]]:
        """What is to be told now, by channel: about `most` of it, and who came before who went."""
        moves: dict[str, list[Move]] = {}
        for key in list(islice(self._coming, most)):
            moves.setdefault(key[0], []).append(Move(True, self._coming.pop(key)))
        due: list[tuple[str, str]] = []
        for key, (at_s, _) in self._going.items():
            if at_s > now_s or len(due) >= most:
                break
            due.append(key)
        for key in due:
            moves.setdefault(key[0], []).append(Move(False, self._going.pop(key)[1]))
        return moves

    def __len__(self) -> int:
        return len(self._coming) + len(self._going)


class Presence:
    """What one gateway says of its own clients, and hears of all others'.

    `of` is exact for this gateway's own clients at once, and for those of others within a second or so; those of a gateway
    that died are there for at most 30 s after its last beat. While the store is away it raises, and nothing else is hurt;
    what is to be said waits, bounded, and is said when the store is back.
    """

    def __init__(
        self,
        settings: PresenceSettings,
        store: PresenceStore,
        broker: Broker,
        view: View,
        clock: Clock,
        new_id: Callable[[], str],
        counts: Counter[str],
    ) -> None:
        self.settings = settings
        self._store = store
        self._broker = broker
        self._view = view
        self._clock = clock
        self._counts = counts
        self._moves = Moves(settings.hold_s)
        self._incarnation = new_id()
        self._number = 0
        self._entered = False
        self._known = False
        """Whether the store has heard of this gateway before."""
        self._changed: dict[str, int] = {}
        """Channels with somebody, of which the store has not been told what changed; with the number of the change."""
        self._left: dict[str, float] = {}
        """Channels with nobody any more, since when, of which the store has not been told."""
        self._changes = 0
        self._beat_due_s = 0.0
        self._heard_s = 0.0
        self._steady_s = clock.monotonic_s()
        """Since when this gateway beats without a gap."""
        self._retry_s = 0.0
        self._reads = asyncio.Semaphore(settings.reads)

    @property
    def _name(self) -> str:
        return f"{self._incarnation}.{self._number}"

    def _is_own(self, name: str) -> bool:
        return name.startswith(f"{self._incarnation}.")

    # --- what happens here ---------------------------------------------------------------------------------------

    def joined(self, channel: str, client: Present) -> None:
        """The client is on the channel from now on."""
        self._left.pop(channel, None)
        self._changes += 1
        self._changed[channel] = self._changes
        if not keeps_last_seen(channel):
            self._moves.come(channel, client)

    def left(self, channel: str, client: Present, *, last: bool) -> None:
        """The client is on the channel no more; `last`: nor is anybody else of this gateway."""
        now_s = self._clock.monotonic_s()
        if last:
            self._changed.pop(channel, None)
            self._left[channel] = now_s
            if len(self._left) > self.settings.max_left:
                self._start_anew()
        else:
            self._changes += 1
            self._changed[channel] = self._changes
        if not keeps_last_seen(channel):
            self._moves.go(channel, client, now_s)

    # --- asking --------------------------------------------------------------------------------------------------

    async def of(self, channels: Sequence[str]) -> list[Attendance]:
        """Who is on each channel.

        Raises:
            StoreUnavailable: what other gateways say cannot be had now.
        """
        async with self._reads:
            heard = await self._store.read(channels)
        return [self._with_own(channel, each) for channel, each in zip(channels, heard, strict=True)]

    def _with_own(self, channel: str, heard: Heard) -> Attendance:
        """What is known here takes the place of what the store says of this gateway, under whatever name that was said."""
        others = [said for said in heard.said if not self._is_own(said.gateway)]
        own = Said(self._name, heard.now_ms, False, tuple(self._view.here(channel)))
        seen_ms = heard.last_seen_ms
        left_s = self._left.get(channel)
        if left_s is not None and keeps_last_seen(channel):
            seen_ms = max(seen_ms or 0, heard.now_ms - self._ago_ms(left_s))
        return attendance(Heard(heard.now_ms, (*others, own), seen_ms), DEAD_AFTER_MS)

    # --- telling those who asked ---------------------------------------------------------------------------------

    async def tell_for_ever(self) -> None:
        """Publish comings and goings as they happen."""
        while True:
            await asyncio.sleep(self.settings.flush_s)
            try:
                await self.tell()
            except Exception:
                log.exception("comings and goings could not be told")

    async def tell(self) -> None:
        """Publish what is due. What the broker does not take is lost, as everything that is ephemeral."""
        await self._publish(self._moves.due(self._clock.monotonic_s(), self.settings.max_published))

    async def _publish(self, moves: dict[str, list[Move]]) -> None:
        for number, (channel, told) in enumerate(moves.items(), 1):
            for start in range(0, len(told), _MOVES_AT_ONCE):
                delivery = Delivery(channel, 0, (), 0, tuple(told[start : start + _MOVES_AT_ONCE]))
                try:
                    await self._broker.publish(event_subject(channel), _encode(delivery))
                except BrokerUnavailable:
                    self._counts["gateway_moves_lost"] += 1
            if number % _PUBLISHED_AT_ONCE == 0:
                await asyncio.sleep(0)

    # --- saying it to the store ----------------------------------------------------------------------------------

    async def keep_for_ever(self) -> None:
        """Beat, and say what has changed."""
        while True:
            await asyncio.sleep(self.settings.flush_s)
            try:
                await self.keep()
            except Exception:
                log.exception("who is there could not be said")

    async def keep(self) -> None:
        """One step: enter or beat if it is time, and say what has changed. Does nothing for a while after a failure."""
        now_s = self._clock.monotonic_s()
        if now_s < self._retry_s:
            return
        try:
            if not self._entered:
                await self._enter()
            elif now_s >= self._beat_due_s:
                await self._beat(now_s)
            await self._say()
        except StoreUnavailable:
            self._counts["gateway_presence_failed"] += 1
            self._retry_s = self._clock.monotonic_s() + self.settings.retry_s
            self._steady_s = self._retry_s

    async def stop(self) -> None:
        """Go in good order: all who were here have gone, and everybody is told. The tasks must have ended before."""
        try:
            if self._entered:
                await self._store.leave(self._name)
                await self._bury()
        except StoreUnavailable:
            self._counts["gateway_presence_failed"] += 1
        self._entered = False
        while len(self._moves):
            await self._publish(self._moves.due(float("inf"), self.settings.max_published))

    def _start_anew(self) -> None:
        """Under the next name all is said again; what was said under the old one ends with its beats."""
        self._entered = False
        self._changed.clear()
        self._left.clear()

    async def _enter(self) -> None:
        """Enter under a name of our own, with everybody who is here.

        Nobody can tell whether the store has lost everything, or others have buried this gateway while it slept and told
        that its clients are gone. So these have come again; to who never heard that they went, that is no news.
        """
        self._number += 1
        await self._store.enter(self._name)
        self._entered = True
        self._beat_due_s = self._heard_s = self._clock.monotonic_s()
        self._beat_due_s += self.settings.beat_s
        for channel in self._view.peopled():
            self._changes += 1
            self._changed[channel] = self._changes
            if self._known and not keeps_last_seen(channel):
                for client in self._view.here(channel):
                    self._moves.come(channel, client)
        self._known = True

    async def _beat(self, now_s: float) -> None:
        if not await self._store.beat(self._name):
            self._counts["gateway_presence_again"] += 1
            self._start_anew()
            return await self._enter()
        if now_s - self._heard_s > 2 * self.settings.beat_s:
            self._steady_s = now_s
        self._heard_s = now_s
        self._beat_due_s = now_s + self.settings.beat_s
        # After a gap of one's own, others' silence says nothing: the store may have been away for all of them.
        if now_s - self._steady_s >= DEAD_AFTER_MS / 1000:
            await self._bury()
        return None

    async def _bury(self) -> None:
        """Take off what gateways had said that are over, and tell that their clients are gone."""
        more = True
        while more:
            buried = await self._store.bury(self.settings.batch_channels)
            more = buried.more
            if self._is_own(buried.gateway):
                continue
            now_s = self._clock.monotonic_s()
            for channel, clients in buried.gone.items():
                if not keeps_last_seen(channel):
                    for client in clients:
                        self._moves.go(channel, client, now_s)

    async def _say(self) -> None:
        for _ in range(self.settings.batches):
            here, stamps = self._next_here()
            left = dict(islice(self._left.items(), self.settings.batch_channels))
            if not (here or left):
                return None
            gone = {channel: self._ago_ms(since_s) for channel, since_s in left.items()}
            if not await self._store.say(self._name, here, gone):
                self._counts["gateway_presence_again"] += 1
                return self._start_anew()
            for channel, stamp in stamps.items():
                if self._changed.get(channel) == stamp:
                    del self._changed[channel]
            for channel, since_s in left.items():
                if self._left.get(channel) == since_s:
                    del self._left[channel]
        return None

    def _next_here(self) -> tuple[dict[str, Sequence[Present]], dict[str, int]]:
        """A batch of what has changed, and which change it was: what changes while it is being said is said again."""
        here: dict[str, Sequence[Present]] = {}
        stamps: dict[str, int] = {}
        clients = 0
        for channel, stamp in islice(self._changed.items(), self.settings.batch_channels):
            stamps[channel] = stamp
            here[channel] = self._view.here(channel)
            clients += len(here[channel])
            if clients >= self.settings.batch_clients:
                break
        return here, stamps

    def _ago_ms(self, since_s: float) -> int:
        return max(0, int((self._clock.monotonic_s() - since_s) * 1000))
