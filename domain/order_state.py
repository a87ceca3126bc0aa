"""What an order knows: immutable structs, changed only by `order_events.evolve`, stored as JSON in snapshots.

Times are Unix milliseconds, money is integer minor units. Tuples keep the order in which things came.
"""

from typing import Any, Literal

import msgspec

from domain.ids import derived_uuid7
from domain.payments import Books

Role = Literal["customer", "worker", "bidder", "ops", "psp", "system"]
"""Who somebody is to one order: `worker` is the hired one, `bidder` one who has quoted or may."""

Side = Literal["customer", "worker"]

ACTIVE_QUOTE = frozenset({"submitted", "parked", "accepted"})
FINISHED = frozenset({"approved", "released", "cancelled", "refunded"})
"""Milestones on which no work is left to do."""
AT_WORK = frozenset({"active", "submitted", "changes_requested"})
ON_THE_WAY = frozenset({"en_route", "arrived"})


class Money(msgspec.Struct, frozen=True):
    """An amount in integer minor units of an ISO 4217 currency."""

    amount: int
    currency: str


class Place(msgspec.Struct, frozen=True):
    """Where the work is: WGS84 degrees and an address for people."""

    lat: float
    lon: float
    address: str


class Line(msgspec.Struct, frozen=True):
    """One milestone as quoted."""

    title: str
    amount: int


class Quote(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker's offer; `rev` goes up with every revision. Status: submitted, parked, accepted, rejected, withdrawn."""

    id: str
    worker_id: str
    rev: int
    status: str
    milestones: tuple[Line, ...]
    currency: str
    conversation_id: str
    at: int
    note: str = ""
    valid_until: int | None = None

    @property
    def total(self) -> int:
        return sum(line.amount for line in self.milestones)


class Contract(msgspec.Struct, frozen=True):
    """What was agreed when the quote was accepted, frozen; `rev` goes up only with accepted changes."""

    quote_id: str
    quote_rev: int
    rev: int
    total: int
    currency: str
    cancellation_policy: str
    commission_bp: int
    vat_bp: int


class Milestone(msgspec.Struct, frozen=True, omit_defaults=True):
    """Status: planned, funded, active, submitted, changes_requested, approved, released, cancelled, refunded."""

    n: int
    title: str
    amount: int
    status: str = "planned"
    submission_no: int = 0
    rounds: int = 0
    photos: tuple[str, ...] = ()
    note: str = ""
    approved_at: int | None = None


class Payment(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt to pay a milestone. Status: processing, failed, timed_out, held, refunded (it came too late)."""

    id: str
    milestone: int
    rail: str
    amount: int
    currency: str
    status: str
    at: int
    awaited: bool = False
    """The deposit's deadline was put off for it."""


class Visit(msgspec.Struct, frozen=True, omit_defaults=True):
    """Status: proposed, confirmed, en_route, arrived, checked_in, checked_out, rescheduled, cancelled, no_show_w."""

    id: str
    status: str
    start: int
    end: int
    proposed_by: Side
    code: str = ""
    tries: tuple[str, ...] = ()


class Dispute(msgspec.Struct, frozen=True, omit_defaults=True):
    """Status: open, answered, decided."""

    id: str
    n: int
    amount: int
    reason: str
    by: Side
    at: int
    status: str = "open"
    evidence: tuple[str, ...] = ()
    answer: str = ""
    answer_evidence: tuple[str, ...] = ()
    to_customer: int | None = None
    to_worker: int | None = None


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """A proposed new list of milestones. Status: open, accepted, superseded."""

    id: str
    by: Side
    contract_rev: int
    milestones: tuple[Line, ...]
    status: str = "open"


class Rating(msgspec.Struct, frozen=True, omit_defaults=True):
    """One to five stars and perhaps a text; shown to the other side only when both have rated."""

    stars: int
    at: int
    text: str = ""


class Due(msgspec.Struct, frozen=True, array_like=True):
    """When a timer of the order goes off: at the first of `times` (Unix ms), then at the next.

    `fence` is the offset of the event that set it or let it run again. `said` is when it was first said (0: not yet),
    which is remembered beyond the last of the times; `extensions` counts how often it was put off.
    """

    times: tuple[int, ...]
    fence: int
    said: int = 0
    extensions: int = 0


class OrderState(msgspec.Struct, frozen=True, omit_defaults=True):
    """One order. `state` is empty and `version` 0 until it is created; `hash` is that of its last event."""

    id: str
    state: str = ""
    version: int = 0
    hash: str = ""
    customer_id: str = ""
    worker_id: str | None = None
    category: str = ""
    title: str = ""
    description: str = ""
    site: Place | None = None
    budget: Money | None = None
    photos: tuple[str, ...] = ()
    seed: str = ""
    created_at: int = 0
    updated_at: int = 0
    quotes: tuple[Quote, ...] = ()
    contract: Contract | None = None
    milestones: tuple[Milestone, ...] = ()
    payments: tuple[Payment, ...] = ()
    psp_events: tuple[str, ...] = ()
    books: Books = Books()
    escrow_deadline: int | None = None
    visits: tuple[Visit, ...] = ()
    reschedules: dict[str, int] = {}
    disputes: tuple[Dispute, ...] = ()
    changes: tuple[Change, ...] = ()
    reworks: int = 0
    approved_at: int | None = None
    ratings: dict[str, Rating] = {}
    strikes: dict[str, int] = {}
    due: dict[str, Due] = {}
    """Timers by name; `order_timers` says which of them run."""
    quoting_ends: int | None = None
    rating_ends: int | None = None

    @property
    def holds(self) -> tuple[str, ...]:
        """Names of what blocks money: `dispute:<id>` for every dispute that is not decided."""
        return tuple(f"dispute:{d.id}" for d in self.disputes if d.status != "decided")

    def held_on(self, n: int) -> bool:
        return any(d.n == n and d.status != "decided" for d in self.disputes)

    def escrow(self, n: int) -> int:
        """Minor units held for milestone `n` now."""
        return self.books.escrow(self.id, n)

    def quote(self, quote_id: str) -> Quote | None:
        return next((q for q in self.quotes if q.id == quote_id), None)

    def quotes_of(self, worker_id: str) -> list[Quote]:
        return [q for q in self.quotes if q.worker_id == worker_id]

    def active_quote_of(self, worker_id: str) -> Quote | None:
        return next((q for q in self.quotes_of(worker_id) if q.status in ACTIVE_QUOTE), None)

    def visit(self, visit_id: str) -> Visit | None:
        return next((v for v in self.visits if v.id == visit_id), None)

    @property
    def begun(self) -> bool:
        """Whether the worker has been on the site: only then can a milestone have been worked on."""
        return any(v.status in ("checked_in", "checked_out") for v in self.visits)

    def visit_in(self, *statuses: str) -> Visit | None:
        """The first visit with one of these statuses."""
        return next((v for v in self.visits if v.status in statuses), None)

    def payment(self, payment_id: str) -> Payment | None:
        return next((p for p in self.payments if p.id == payment_id), None)

    def milestone(self, n: int) -> Milestone | None:
        return self.milestones[n - 1] if 0 < n <= len(self.milestones) else None

    def dispute(self, dispute_id: str) -> Dispute | None:
        return next((d for d in self.disputes if d.id == dispute_id), None)

    def change(self, change_id: str) -> Change | None:
        return next((c for c in self.changes if c.id == change_id), None)

    def rating_end(self, window_ms: int) -> int:
        """When ratings end: as frozen at the approval; orders that were approved before that was done take the window."""
        return (self.approved_at or 0) + window_ms if self.rating_ends is None else self.rating_ends

    @property
    def milestone_due(self) -> int | None:
        """The milestone that the customer should pay next: all before it finished, itself not paid."""
        for milestone in self.milestones:
            if milestone.status == "planned":
                return milestone.n
            if milestone.status not in FINISHED:
                return None
        return None

    @property
    def rail(self) -> str:
        """The rail of the money held last."""
        held = [p.rail for p in self.payments if p.status == "held"]
        return held[-1] if held else "sandbox"


def conversation_of(state: OrderState, worker_id: str) -> str:
    """The id of the customer's conversation with a worker about an order: always the same, in the order's partition.

    The order's seed is in it: nobody can foretell the id and open a conversation of their own under it.
    """
    return derived_uuid7(state.created_at, f"{state.seed}:{state.id}:{worker_id}", state.id)


def changed(items: tuple[Any, ...], item: Any, **fields: Any) -> tuple[Any, ...]:
    """The items with the fields of one of them replaced, found by identity."""
    return tuple(msgspec.structs.replace(i, **fields) if i is item else i for i in items)
