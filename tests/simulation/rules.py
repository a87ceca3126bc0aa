"""Conversations that can remind: the real rules, and alarms that their members set, so that reminders have something to do.

A reaction `alarm-<n> <milliseconds>` sets one (of the same name: sets it anew), taking back `alarm-<n>` takes it back: the text
of a message may be erased, a reaction stays as it was. When it is due
the platform posts a card that says so. Everything about it is in the stream, where the checks find it.
"""

from copy import copy
from typing import Any

import msgspec

from domain.chat import ChatEvent, ChatRules, Conversation, MessagePosted, MessageReacted
from domain.commands import Reminder
from domain.times import epoch_ms, parse_rfc3339

__all__ = ["RemindingChat", "Room", "epoch_ms"]


class Room(Conversation):
    """`alarms`: name → (due at, offset of the reaction that set it)."""

    alarms: dict[str, tuple[int, int]] = {}  # noqa: RUF012 - msgspec copies it


_decoder = msgspec.json.Decoder(Room)


def alarm_set(event: ChatEvent) -> tuple[str, int] | None:
    """(name, due at) if the event sets an alarm."""
    if isinstance(event, MessageReacted) and event.on and event.emoji.startswith("alarm-"):
        name, after_ms = event.emoji.split()
        return name, parse_rfc3339(event.at) + int(after_ms)
    return None


def alarm_over(event: ChatEvent) -> tuple[str, int | None] | None:
    """(name, offset that set it) if the event is an alarm's ringing; None for the offset if somebody took it back."""
    if isinstance(event, MessagePosted) and event.card is not None and "ring" in event.card:
        return event.card["ring"], event.card["fence"]
    if isinstance(event, MessageReacted) and not event.on and event.emoji.startswith("alarm-"):
        return event.emoji, None
    return None


class RemindingChat(ChatRules):
    """`domain.aggregate.Rules` of such conversations."""

    snapshot_every = 7  # type: ignore[misc]

    def initial(self, stream_id: str) -> Room:
        return Room(stream_id)

    def fork(self, state: Conversation) -> Conversation:
        assert isinstance(state, Room)
        forked = copy(super().fork(state))
        assert isinstance(forked, Room)
        forked.alarms = dict(state.alarms)
        return forked

    def evolve(self, state: Conversation, event: ChatEvent, offset: int) -> Conversation:
        assert isinstance(state, Room)
        super().evolve(state, event, offset)
        if (made := alarm_set(event)) is not None:
            state.alarms[made[0]] = (made[1], offset)
        elif (over := alarm_over(event)) is not None:
            name, fence = over
            if fence is None or state.alarms.get(name, (0, 0))[1] == fence:
                state.alarms.pop(name, None)
        return state

    def reminders(self, state: Conversation) -> tuple[Reminder, ...]:
        assert isinstance(state, Room)
        return tuple(
            Reminder(f"conversation:{state.id}", name, due_at, fence, "card", _ringing(name, fence))
            for name, (due_at, fence) in state.alarms.items()
        )

    def decode_state(self, body: bytes) -> Conversation:
        return _decoder.decode(body)


def _ringing(name: str, fence: int) -> bytes:
    return msgspec.json.encode({"text": f"{name} rings", "card": {"ring": name, "fence": fence}})


def rings(event: ChatEvent) -> dict[str, Any] | None:
    """The card of a ringing alarm."""
    card = event.card if isinstance(event, MessagePosted) else None
    return card if card is not None and "ring" in card else None
