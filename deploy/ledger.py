"""What a client was promised: every acknowledged write, and how it is compared with what the platform has.

Nothing here talks to a network: `differences` takes the streams as they were read back.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

Entry = Literal["rest", "ws"]
Event = dict[str, Any]
"""Publication data with its `offset`."""


class Message(msgspec.Struct, frozen=True):
    """A message that was acknowledged."""

    conversation_id: str
    id: str
    by: str
    text: str
    offset: int
    at: str


class Transition(msgspec.Struct, frozen=True):
    """An event of an order that was acknowledged as the effect of a command."""

    order_id: str
    command: str
    offset: int
    type: str
    by: str
    at: str
    state: str
    version: int


class Step(msgspec.Struct, frozen=True):
    """A part of the story and how long it took."""

    name: str
    seconds: float


class Ledger(msgspec.Struct):
    """Grows while a story runs; shared by all who take part in it."""

    messages: list[Message] = []
    transitions: list[Transition] = []
    unanswered: dict[str, str] = {}
    """Ids of writes that were sent and not answered yet, each with its stream: their outcome is unknown."""
    retried: set[str] = set()
    """Ids that were sent more than once, because the first answer did not come."""
    entries: Counter[str] = msgspec.field(default_factory=Counter)
    """How many writes went in by REST, and how many by WebSocket."""
    sent_at: dict[str, float] = {}
    """When each message left its sender (monotonic seconds)."""
    ack_s: list[float] = []
    delivery_s: list[float] = []
    """From a message's departure to its arrival at the other side's subscription."""
    positions: int = 0
    hints: int = 0
    strangers: list[str] = []
    """Error answers that have no code of the catalogue: the platform promises that there are none."""
    steps: list[Step] = []

    @property
    def acknowledged(self) -> int:
        return len(self.messages) + len(self.transitions)

    def transitions_from(self, order_id: str, command: str, events: Iterable[Event]) -> list[Transition]:
        """Enter the events of an answered command."""
        added = [
            Transition(order_id, command, *(event[key] for key in ("offset", "type", "by", "at", "state", "version")))
            for event in events
        ]
        self.transitions.extend(added)
        return added

    def streams(self) -> set[str]:
        """The names of all streams that something was acknowledged in."""
        talked = {f"conversation:{message.conversation_id}" for message in self.messages}
        return talked | {f"order:{transition.order_id}" for transition in self.transitions}


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values do not exceed; NaN where there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def gaps(name: str, offsets: Sequence[int], first: int = 1) -> list[str]:
    """What is wrong with a sequence that should be `first`, `first + 1`, …: holes, doubles, disorder."""
    found = []
    for expected, offset in enumerate(offsets, first):
        if offset != expected:
            found.append(f"{name}: offset {offset} stands where {expected} should ({len(offsets)} events in all)")
            break
    doubled = [offset for offset, count in Counter(offsets).items() if count > 1]
    if doubled:
        found.append(f"{name}: offsets {doubled[:5]} come more than once")
    return found


def differences(ledger: Ledger, streams: Mapping[str, Sequence[Event]]) -> list[str]:
    """Every way in which the streams break a promise of the ledger; empty when all was kept.

    A promise is that each acknowledged message and transition is there, once, at its offset, as it was acknowledged, in
    a stream without hole or double.
    """
    found = [line for name, events in streams.items() for line in gaps(name, [event["offset"] for event in events])]
    found += [f"{name}: not read back" for name in ledger.streams() - streams.keys()]
    for message in ledger.messages:
        name = f"conversation:{message.conversation_id}"
        there = [event for event in streams.get(name, ()) if event.get("message_id") == message.id]
        posted = [event for event in there if event["type"] == "message.posted"]
        told = {"offset": message.offset, "at": message.at, "by": message.by, "text": message.text}
        found += _kept(f"{name}: message {message.id}", told, posted)
    for transition in ledger.transitions:
        name = f"order:{transition.order_id}"
        there = [event for event in streams.get(name, ()) if event["offset"] == transition.offset]
        told = {key: getattr(transition, key) for key in ("type", "by", "at", "state", "version")}
        found += _kept(f"{name}: {transition.type} at {transition.offset}", told, there)
    return found


def _kept(what: str, told: Mapping[str, Any], there: Sequence[Event]) -> list[str]:
    if len(there) != 1:
        return [f"{what} was acknowledged and is there {len(there)} times"]
    stored = {key: there[0].get(key) for key in told}
    return [] if stored == told else [f"{what} was acknowledged as {dict(told)} and is there as {stored}"]
