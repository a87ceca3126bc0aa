"""Never a hole, never a double: where one subscription stands in its stream, and what an event means to it.

A cursor is *live* when it has everything the gateway knows of; then each next event goes straight to its session. In every
other case it is *catching up*: it ignores live events, and its session reads pages, from the hub's tail or from the log,
until the cursor has reached the hub's head. Both are decided on the event loop without an await in between, so that no
event can slip through between the last page and the first live event.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from domain.commands import Actor
from domain.presence import Present
from gateway.attendance import Moved
from gateway.publication import Address, Event, Publication


class Sink(Protocol):
    """A session as the hub sees it. Nothing here blocks."""

    @property
    def actor(self) -> Actor:
        """For whom the session asks."""
        ...

    @property
    def present(self) -> Present | None:
        """The client as others see it; None before it is authenticated."""
        ...

    def offer(self, event: Event) -> bool:
        """Queue what can be read again; False when the session's queue has no room for such."""
        ...

    def hint(self, publication: Publication, key: object = None) -> None:
        """Queue what cannot be read again and must not be lost while the session lives; of one key, the latest will do."""
        ...

    def state(self, publication: Publication, key: object) -> None:
        """Queue what the next publication of the same key replaces: of those that wait, the latest is sent."""
        ...

    def moved(self, moved: Moved) -> None:
        """Queue a coming or going on a channel; it may be lost."""
        ...

    def lagging(self, cursor: "Cursor") -> None:
        """The cursor is no longer live: pages must be read for it."""
        ...

    def expelled(self, cursor: "Cursor") -> None:
        """The user has just been told of their own leaving: the subscription ends here."""
        ...


class Cursor:
    """One session's position in one stream. `authorised_at` is the head at which its membership was checked.

    It is `held` where it stands, with neither live events nor pages, while that is asked anew.
    """

    __slots__ = ("authorised_at", "channel", "gone", "held", "live", "position", "sink", "user")

    def __init__(self, sink: Sink, channel: str, user: str, position: int, authorised_at: int) -> None:
        self.sink = sink
        self.channel = channel
        self.user = user
        self.position = position
        self.authorised_at = authorised_at
        self.live = False
        self.gone = False
        self.held = False

    def hold(self) -> None:
        """Nothing more until its membership has been asked."""
        self.held = True
        self.live = False

    def deliver(self, event: Event) -> bool:
        """A live event: pass it on, drop it as seen, or fall back to catching up. True if the user leaves with it."""
        if not self.live or event.offset <= self.position:
            return False
        if event.offset > self.position + 1 or not self.sink.offer(event):
            self.live = False
            self.sink.lagging(self)
            return False
        self.position = event.offset
        self.stops_at(event)
        return self.leaves_with(event)

    def stops_at(self, event: Event) -> bool:
        """Whether the event may have ended this membership: then the cursor is held."""
        if event.recheck and event.offset > self.authorised_at:
            self.hold()
        return self.held

    def leaves_with(self, event: Event) -> bool:
        """Whether the event ends this membership. One from before the membership was checked is history."""
        return event.left == self.user and event.offset > self.authorised_at


class _Left(msgspec.Struct):
    type: str = ""
    user_id: str = ""


_decode_left = msgspec.json.Decoder(_Left).decode


def encode_event(address: Address, offset: int, data: bytes) -> Event:
    """The event as every session gets it. The text search spares nearly all events the decoding."""
    left, recheck = "", False
    if b'"member.left"' in data or b'"order.reopened"' in data:
        body = _decode_left(data)
        left = body.user_id if body.type == "member.left" else ""
        recheck = body.type == "order.reopened"
    return Event(address, data, offset, left, recheck)


def may_recover(epoch: str, offset: int, known_epoch: str, head: int) -> bool:
    """Whether a client at (epoch, offset) can be given what follows. No epoch is right only for the very beginning."""
    return offset <= head and (epoch == known_epoch or (epoch == "" and offset == 0))


def first_page(events: Sequence[Event], max_bytes: int) -> Sequence[Event]:
    """As many events from the start as fit into `max_bytes`, and at least one if there is any."""
    total = 0
    for index, event in enumerate(events):
        total += len(event.json)
        if total > max_bytes and index:
            return events[:index]
    return events
