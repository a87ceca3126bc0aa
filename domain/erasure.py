"""Erasing what is stored about a person, while streams stay gapless and what others rely on stays true.

An erasure is a row before anything is done, so whoever dies in the middle leaves word of it. It makes passes over the
person's conversations until one that began after everything they could still have under way finds nothing new.
"""

from typing import Final, Protocol

import msgspec

from domain.ports import Position

SETTLE_MS: Final = 120_000
"""What a person had under way when they asked has landed, or never will, after this."""
LEASE_MS: Final = 60_000
"""How long who works on an erasure is left alone by others, after the last word of them."""


class Erasure(msgspec.Struct, frozen=True):
    """One that is not finished. `pass_at` is when its pass began, 0 between passes; conversations up to `cursor` are done."""

    user_id: str
    requested_at: int
    pass_at: int
    cursor: str


class Written(msgspec.Struct, frozen=True):
    """A message that somebody posted: its publication JSON as it stands in the log."""

    offset: int
    message_id: str
    body: bytes


class Membership(msgspec.Struct, frozen=True):
    """A user's place in a conversation, left ones too. `muted_until_ms` None: not muted, 0: for ever."""

    conversation_id: str
    joined_offset: int
    left_offset: int | None
    read_offset: int
    delivered_offset: int
    muted_until_ms: int | None = None


def is_last(erasure: Erasure) -> bool:
    """Whether nothing of the person's could still land after the pass began."""
    return erasure.pass_at >= erasure.requested_at + SETTLE_MS


class Erasures(Protocol):
    """Erasures, and what is stored about a person outside of streams. Durable on return; each method is one transaction and
    harmless when repeated. Every method may raise `StoreUnavailable`."""

    async def begin(self, user_id: str, now_ms: int) -> list[str]:
        """Note the erasure, and `forget` in the same transaction. The ids of the sessions that ended."""
        ...

    async def forget(self, user_id: str) -> list[str]:
        """Leave of the account its id and when it was made, of sessions, links, blocks, mutes and documents nothing.

        What they have uploaded cannot be read by anybody any more.
        """
        ...

    async def claim(self, now_ms: int) -> Erasure | None:
        """One that is due and that nobody works on; it is the caller's for `LEASE_MS`."""
        ...

    async def advance(self, erasure: Erasure, now_ms: int) -> None:
        """Remember how far it is, and keep it for `LEASE_MS` more."""
        ...

    async def end_pass(self, erasure: Erasure) -> None:
        """After the last pass it is over; after another one, it is due again when `SETTLE_MS` have passed."""
        ...

    async def conversations(self, user_id: str, after: str, limit: int) -> list[str]:
        """Those that the user is or ever was a member of, by id."""
        ...

    async def messages(self, user_id: str, conversation_id: str, after: int, limit: int) -> list[Written]:
        """What the user has posted and what still has content, by offset."""
        ...

    async def memberships(self, user_id: str, after: str, limit: int) -> list[Membership]:
        """By the conversation's id, from the one after `after` on."""
        ...

    async def tracked_orders(self, user_id: str, after: str, limit: int) -> list[str]:
        """The orders, by id, for which the user was hired, and of which positions of theirs are recorded."""
        ...

    async def track(self, user_id: str, order_id: str, after_ms: int, limit: int) -> list[Position]:
        """Recorded positions of the worker whom the order hired, none for anybody else, oldest first.

        A worker is on one trip at a time: no two have the same time.
        """
        ...

    async def forget_tracks(self, user_id: str) -> None:
        """Leave no recorded position of a worker."""
        ...
