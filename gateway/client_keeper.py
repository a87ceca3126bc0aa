"""When a client's outbox is written: new writes and refusals at once, many together; what may be late, when it suits."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from gateway.client_effects import Discard
from gateway.client_feed import Feed
from gateway.client_store import Batch, OutboxBroken, OutboxFile, Place
from gateway.client_wire import Write

log = logging.getLogger("renoveasy.client")

_SAVE_EVERY_S: Final = 0.5
"""How far a view may be ahead of what is kept of it, and how long a failed commit waits."""


class Keeper:
    """One commit at a time. `stored`, `discarded` and `failed` are called as commits end; `places` is what was kept before."""

    def __init__(
        self, outbox: OutboxFile, places: dict[str, Place], stored: Callable[[Write], None],
        discarded: Callable[[Discard], None], failed: Callable[[Write, OutboxBroken], None],
    ) -> None:  # fmt: skip
        self.places = places
        self._outbox = outbox
        self._stored = stored
        self._discarded = discarded
        self._failed = failed
        self._batch = Batch()
        self._refused: list[Discard] = []
        self._dirty: dict[str, Feed] = {}
        self._due = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._closing = False
        self._task = asyncio.create_task(self._keep(), name="client-keeper")

    async def close(self) -> None:
        """Commit what there is, and close the outbox."""
        self._closing = True
        self._due.set()
        await self._task
        await self._outbox.close()

    def save(self, write: Write) -> None:
        self._batch.saved.append(write)
        self._due.set()

    def discard(self, refusal: Discard) -> None:
        self._refused.append(refusal)
        self._batch.settled.append(refusal.write)
        self._due.set()

    def forget(self, write: Write) -> None:
        self._batch.settled.append(write)
        self._soon()

    def own(self, user_id: str) -> None:
        self._batch.owner = user_id
        self._soon()

    def mark(self, feed: Feed) -> None:
        """The feed's place has moved."""
        self._dirty[feed.channel] = feed
        self._soon()

    def take_place(self, feed: Feed) -> None:
        """The feed is left: keep where it was."""
        self._dirty.pop(feed.channel, None)
        place = feed.place()
        if place is not None:
            self.places[feed.channel] = self._batch.places[feed.channel] = place
            self._soon()

    def drop_place(self, channel: str) -> None:
        self._dirty.pop(channel, None)
        self.places.pop(channel, None)
        self._batch.places[channel] = None
        self._soon()

    def _soon(self) -> None:
        if self._later is None and not self._closing:
            self._later = asyncio.get_running_loop().call_later(_SAVE_EVERY_S, self._due.set)

    async def _keep(self) -> None:
        while not self._closing:
            await self._due.wait()
            self._due.clear()
            try:
                await self._commit()
            except OutboxBroken as error:
                log.warning("%s", error)
                await asyncio.sleep(_SAVE_EVERY_S)
                self._due.set()
        with suppress(OutboxBroken):
            await self._commit()

    async def _commit(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        for feed in list(self._dirty.values()):
            self.take_place(feed)
        batch, self._batch = self._batch, Batch()
        refused, self._refused = self._refused, []
        if not batch:
            return
        try:
            await self._outbox.commit(batch)
        except OutboxBroken as error:
            self._put_back(batch, refused, error)
            raise
        for write in batch.saved:
            self._stored(write)
        for refusal in refused:
            self._discarded(refusal)

    def _put_back(self, batch: Batch, refused: list[Discard], error: OutboxBroken) -> None:
        """New writes fail; everything else is tried again with the next batch."""
        later = self._batch
        later.owner = later.owner or batch.owner
        later.settled = batch.settled + later.settled
        later.places = {**batch.places, **later.places}
        self._refused = refused + self._refused
        for write in batch.saved:
            self._failed(write, error)
