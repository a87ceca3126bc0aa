"""One command's turn on an order: what the decide functions read, and where they put what follows from the command."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from domain import order_events as ev
from domain.aggregate import Account, Decision, Facts, Opening
from domain.commands import SYSTEM, Command
from domain.errors import Code, Refusal, Refused
from domain.ids import derived_uuid7
from domain.order_cards import cards
from domain.order_evolve import evolve
from domain.order_schedule import schedule
from domain.order_state import ON_THE_WAY, OrderState, Role, Side
from domain.policy import Policy
from domain.times import rfc3339
from domain.verification import Kind, missing

CLAIMING = frozenset({"confirmed", "en_route", "arrived", "checked_in"})
"""Visits that take up the worker's calendar."""


class OrderTurn:
    """Folds every event into `state` at once, so that what a decide function reads is always what is true by now."""

    def __init__(
        self,
        state: OrderState,
        command: Command,
        role: Role,
        now_ms: int,
        facts: Facts,
        policy: Policy,
        pepper: bytes,
        allowed: Callable[[OrderState], tuple[str, ...]],
    ) -> None:
        self.state = state
        self.command = command
        self.role = role
        self.now = now_ms
        self.facts = facts
        self.policy = policy
        self._pepper = pepper
        self._allowed = allowed
        self._start = state
        self._events: list[ev.AnyEvent] = []
        self._related: list[Command] = []
        self._refusal: Refused | None = None
        self._opening: Opening | None = None

    @property
    def side(self) -> Side:
        return "customer" if self.role == "customer" else "worker"

    @property
    def actor_id(self) -> str:
        return self.command.actor.id

    @property
    def hired_conversation(self) -> str:
        """The customer's conversation with the hired worker."""
        return self.state.quotes_of(self.worker_id)[0].conversation_id

    @property
    def worker_id(self) -> str:
        """The hired worker; only asked for in states that have one."""
        worker_id = self.state.worker_id
        assert worker_id is not None
        return worker_id

    def lacking(self, worker_id: str, at_ms: int) -> Kind | None:
        """What the category asks of a worker and this one has not, or not until then."""
        account = self.facts.account(worker_id) or Account(worker_id, ())
        return missing(self.state.category, account.identity_until, account.licences, self.policy, at_ms)

    def decision(self) -> Decision[ev.AnyEvent]:
        """What follows from the command. Keys are claimed and released by what visits hold before and after it."""
        before, after = held_keys(self._start, self.policy), held_keys(self.state, self.policy)
        claims, releases = tuple(sorted(after - before)), tuple(sorted(before - after))
        return Decision(self._events, self._related, claims, releases, self._refusal, opening=self._opening)

    def emit(
        self, kind: Callable[..., ev.AnyEvent], to: str | None = None, private: ev.Private | None = None, **fields: Any
    ) -> ev.AnyEvent:
        """Add an event that leads to the state `to` (or leaves it), with its timers and its cards, and make it true."""
        masked = getattr(kind, "masks_by", False) and self.command.actor.kind == "user"
        event = kind(
            by=self.role.replace("bidder", "worker") if masked else self.command.actor.by,
            at=rfc3339(self.now),
            state=self.state.state if to is None else to,
            version=self.state.version + 1,
            private=private,
            **fields,
        )
        due = schedule(self.state, event, self.policy, self.now)
        if due:
            event = replace(event, private=replace(event.private or ev.Private(), due=due))
        event = ev.sealed(event, self.state.hash)
        before, self.state = self.state, evolve(self.state, event)
        self._events.append(event)
        for card in cards(event, before, self.state):
            self.conversation(card.conversation_id, "card", {"card": card.data, "text": card.text})
        return event

    def conversation(self, conversation_id: str, name: str, payload: dict[str, Any]) -> None:
        """Send a command to a conversation of this order, in the same turn."""
        # A refused command's id may come again: what tells its turns apart is the version that they began with.
        seed = f"{self.command.command_id}:{self._start.version}:{conversation_id}:{len(self._related)}"
        self._related.append(
            Command(
                kind="conversation",
                stream_id=conversation_id,
                name=name,
                actor=SYSTEM,
                command_id=derived_uuid7(self.now, seed, conversation_id),
                payload=msgspec.json.encode(payload),
            )
        )

    def one_more_open(self) -> None:
        """The order enters state `open` by this turn, if its commit finds that the customer may have one more."""
        self._opening = Opening(self.state.customer_id, self.policy.open_orders_max)

    def refuse_after(self, refused: Refused) -> None:
        """Commit the events so far and then refuse: a wrong try that must not be forgotten."""
        self._refusal = refused

    def conflict(self, detail: str, code: Code = Code.CONFLICT, **current: Any) -> Refusal:
        """The refusal for what does not fit how things stand, with that standing."""
        return conflict(self._start, code, detail, self._allowed(self._start), **current)

    def derived_id(self, purpose: str) -> str:
        """An id that this command alone makes for this purpose."""
        return derived_uuid7(self.now, f"{self.command.command_id}:{purpose}", self.state.id)

    def secret_digits(self, purpose: str) -> str:
        """Four digits that only who knows the order's seed (or the platform's pepper) could foretell."""
        seed = f"{self.state.seed}:{self.state.hash}:{purpose}:{self.command.command_id}:{self.now}".encode()
        digest = hashlib.blake2b(seed, key=self._pepper[:64], digest_size=8).digest()
        return f"{int.from_bytes(digest, 'big') % 10_000:04d}"


def conflict(state: OrderState, code: Code, detail: str, allowed: tuple[str, ...], **current: Any) -> Refusal:
    """A refusal that says how the order stands and what its caller could do instead."""
    return Refusal(
        code, detail, current={"state": state.state, "version": state.version, **current}, allowed_commands=allowed
    )


def slot_keys(worker_id: str, start: int, end: int, unit_ms: int) -> tuple[str, ...]:
    """The calendar keys of every quarter hour that [start, end) touches."""
    return tuple(f"cal:{worker_id}:{quarter}" for quarter in range(start // unit_ms, (end - 1) // unit_ms + 1))


def trip_key(worker_id: str) -> str:
    return f"trip:{worker_id}"


def held_keys(state: OrderState, policy: Policy) -> set[str]:
    """All that the order's visits hold of the hired worker's time: quarter hours, and their one trip."""
    keys: set[str] = set()
    for visit in state.visits:
        if state.worker_id is None or visit.status not in CLAIMING:
            continue
        keys.update(slot_keys(state.worker_id, visit.start, visit.end, policy.slot_unit_ms))
        if visit.status in ON_THE_WAY:
            keys.add(trip_key(state.worker_id))
    return keys
