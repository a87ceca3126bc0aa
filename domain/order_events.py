"""The events of an order as they stand in the log, and their chain of hashes.

Every event has `by`, `at` (RFC 3339), `state` and `version` after it. `private` is what not every member may know; the
publication leaves it out, and `hash` with it: a hash over a four-digit code would give the code away to who tries all.
"""

import hashlib
from typing import Any, ClassVar

import msgspec

from domain.commands import canonical_json
from domain.order_state import Line, Milestone, Money, Place
from domain.payments import Transaction


class Private(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What an event keeps to itself: for the rules, for operations, and for the object's projected views."""

    site: Place | None = None
    seed: str = ""
    quote_id: str = ""
    worker_id: str = ""
    conversation_id: str = ""
    rev: int = 0
    milestones: tuple[Line, ...] = ()
    currency: str = ""
    note: str = ""
    valid_until: int | None = None
    commission_bp: int = 0
    vat_bp: int = 0
    psp_event_id: str = ""
    ledger: tuple[Transaction, ...] = ()
    code: str = ""
    tried: str = ""
    evidence: tuple[str, ...] = ()
    stars: int = 0
    text: str = ""
    strikes: int = 0
    due: dict[str, tuple[int, ...]] = {}
    """Timers that begin with the event, and when they go off (Unix ms): frozen, whatever the policy says later."""


class OrderEvent(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="type"):
    """What all events have."""

    by: str
    at: str
    state: str
    version: int
    private: Private | None = None
    hash: str = ""

    masks_by: ClassVar[bool] = False
    """The actor is named by their role, since not every member may know who they are."""


class Created(OrderEvent, frozen=True, kw_only=True, tag="order.created"):
    category: str
    title: str
    description: str
    budget: Money | None = None
    photos: tuple[str, ...] = ()


class Published(OrderEvent, frozen=True, kw_only=True, tag="order.published"):
    pass


class QuoteSubmitted(OrderEvent, frozen=True, kw_only=True, tag="order.quote_submitted"):
    masks_by: ClassVar[bool] = True


class QuoteWithdrawn(OrderEvent, frozen=True, kw_only=True, tag="order.quote_withdrawn"):
    masks_by: ClassVar[bool] = True


class QuoteRejected(OrderEvent, frozen=True, kw_only=True, tag="order.quote_rejected"):
    pass


class Awarded(OrderEvent, frozen=True, kw_only=True, tag="order.awarded"):
    """Whose quote, and what it says, is private: the order may be reopened, and another worker then reads its history."""

    cancellation_policy: str


class Reopened(OrderEvent, frozen=True, kw_only=True, tag="order.reopened"):
    """The contract came to nothing before it was paid; parked quotes count again."""

    masks_by: ClassVar[bool] = True
    reason: str


class PaymentStarted(OrderEvent, frozen=True, kw_only=True, tag="order.payment_started"):
    """What the rail shall collect."""

    payment_id: str
    milestone: int
    rail: str
    amount: int
    currency: str


class Funded(OrderEvent, frozen=True, kw_only=True, tag="order.funded"):
    """The deposit, which is milestone 1, is held."""

    payment_id: str
    milestone: int
    amount: int
    currency: str
    escrow_deadline: str


class MilestoneFunded(OrderEvent, frozen=True, kw_only=True, tag="order.milestone_funded"):
    payment_id: str
    milestone: int
    amount: int
    currency: str
    active: bool
    escrow_deadline: str


class PaymentFailed(OrderEvent, frozen=True, kw_only=True, tag="order.payment_failed"):
    payment_id: str
    milestone: int
    reason: str = ""


class PaymentReturned(OrderEvent, frozen=True, kw_only=True, tag="order.payment_returned"):
    """Money that came when it was no longer wanted goes back in full."""

    payment_id: str
    milestone: int
    amount: int
    currency: str


class RefundPaid(OrderEvent, frozen=True, kw_only=True, tag="order.refund_paid"):
    milestone: int
    amount: int
    currency: str


class SlotProposed(OrderEvent, frozen=True, kw_only=True, tag="order.slot_proposed"):
    visit_id: str
    start: str
    end: str
    side: str


class SlotConfirmed(OrderEvent, frozen=True, kw_only=True, tag="order.slot_confirmed"):
    visit_id: str
    start: str
    end: str
    replaces: str | None = None


class TripStarted(OrderEvent, frozen=True, kw_only=True, tag="order.trip_started"):
    visit_id: str


class TripAborted(OrderEvent, frozen=True, kw_only=True, tag="order.trip_aborted"):
    visit_id: str
    reason: str = ""


class Arrived(OrderEvent, frozen=True, kw_only=True, tag="order.arrived"):
    visit_id: str


class CodeRefused(OrderEvent, frozen=True, kw_only=True, tag="order.code_refused"):
    """A wrong check-in code was tried."""

    visit_id: str
    tries_left: int


class CheckedIn(OrderEvent, frozen=True, kw_only=True, tag="order.checked_in"):
    visit_id: str
    milestone: int | None = None


class CheckedOut(OrderEvent, frozen=True, kw_only=True, tag="order.checked_out"):
    visit_id: str


class WorkerNoShow(OrderEvent, frozen=True, kw_only=True, tag="order.worker_no_show"):
    """The worker did not come: the visit is void, and another one may be agreed."""

    visit_id: str


class MilestoneSubmitted(OrderEvent, frozen=True, kw_only=True, tag="order.milestone_submitted"):
    milestone: int
    submission_no: int
    photos: tuple[str, ...] = ()
    note: str = ""


class MilestoneApproved(OrderEvent, frozen=True, kw_only=True, tag="order.milestone_approved"):
    """`auto`: by silence, when the time for the review was over."""

    milestone: int
    auto: bool = False


class ChangesRequested(OrderEvent, frozen=True, kw_only=True, tag="order.changes_requested"):
    milestone: int
    items: tuple[str, ...]


class WorkSubmitted(OrderEvent, frozen=True, kw_only=True, tag="order.work_submitted"):
    milestone: int
    submission_no: int
    photos: tuple[str, ...] = ()
    note: str = ""


class Approved(OrderEvent, frozen=True, kw_only=True, tag="order.approved"):
    """`auto`: by silence, when the time for it was over."""

    milestone: int
    auto: bool = False


class ChangeProposed(OrderEvent, frozen=True, kw_only=True, tag="order.change_proposed"):
    change_id: str
    side: str
    contract_rev: int
    milestones: tuple[Line, ...]


class ChangeAccepted(OrderEvent, frozen=True, kw_only=True, tag="order.change_accepted"):
    """`plan` is the list of milestones from now on, with their standing."""

    change_id: str
    contract_rev: int
    total: int
    currency: str
    plan: tuple[Milestone, ...]


class DisputeOpened(OrderEvent, frozen=True, kw_only=True, tag="order.dispute_opened"):
    dispute_id: str
    side: str
    milestone: int
    amount: int
    currency: str
    reason: str


class DisputeAnswered(OrderEvent, frozen=True, kw_only=True, tag="order.dispute_answered"):
    dispute_id: str
    text: str


class DisputeDecided(OrderEvent, frozen=True, kw_only=True, tag="order.dispute_decided"):
    """`auto`: nobody decided; a deadline did."""

    dispute_id: str
    milestone: int
    to_customer: int
    to_worker: int
    currency: str
    auto: bool = False


class EscrowReturned(OrderEvent, frozen=True, kw_only=True, tag="order.escrow_returned"):
    """The rail would not hold the milestone's money any longer: what was not approved by then goes back."""

    milestone: int
    amount: int
    currency: str


class Nudged(OrderEvent, frozen=True, kw_only=True, tag="order.nudged"):
    """Something waits to be done by those it `concerns` (customer, worker, ops). Nothing else changes."""

    reminder: str
    concerns: tuple[str, ...]


class Extended(OrderEvent, frozen=True, kw_only=True, tag="order.extended"):
    """What was due is put off."""

    reminder: str
    until: str


class Cancelled(OrderEvent, frozen=True, kw_only=True, tag="order.cancelled"):
    side: str
    reason: str = ""
    refunded: int = 0
    fee: int = 0
    currency: str | None = None


class Expired(OrderEvent, frozen=True, kw_only=True, tag="order.expired"):
    pass


class Settled(OrderEvent, frozen=True, kw_only=True, tag="order.settled"):
    pass


class Closed(OrderEvent, frozen=True, kw_only=True, tag="order.closed"):
    pass


class Revealed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rating that both sides may see."""

    by: str
    to: str
    stars: int
    text: str = ""


class Rated(OrderEvent, frozen=True, kw_only=True, tag="order.rated"):
    """`side` has rated. Only when both have does the event say what they said."""

    side: str
    ratings: tuple[Revealed, ...] = ()


AnyEvent = (
    Created | Published | QuoteSubmitted | QuoteWithdrawn | QuoteRejected | Awarded | Reopened | PaymentStarted
    | Funded | MilestoneFunded | PaymentFailed | PaymentReturned | RefundPaid | SlotProposed | SlotConfirmed
    | TripStarted | TripAborted | Arrived | CodeRefused | CheckedIn | CheckedOut | WorkerNoShow | MilestoneSubmitted
    | MilestoneApproved | ChangesRequested | WorkSubmitted | Approved | ChangeProposed | ChangeAccepted
    | DisputeOpened | DisputeAnswered | DisputeDecided | EscrowReturned | Nudged | Extended | Cancelled | Expired
    | Settled | Closed | Rated
)  # fmt: skip

_DECODER: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_ENCODER = msgspec.json.Encoder()


def encode(event: OrderEvent) -> bytes:
    """The body of the log row."""
    return _ENCODER.encode(event)


def decode(body: bytes) -> AnyEvent:
    """The event of a log row's body."""
    return _DECODER.decode(body)


def type_of(event: OrderEvent) -> str:
    return str(type(event).__struct_config__.tag)


def chain(previous: str, body: dict[str, Any]) -> str:
    """The hash of an event's body (as JSON values): SHA-256 in hex over the previous hash and the rest, canonically.

    The previous hash goes in as its hex text, empty before the first event; the body without its own `hash`.
    """
    rest = {key: value for key, value in body.items() if key != "hash"}
    return hashlib.sha256(previous.encode() + canonical_json(rest)).hexdigest()


def sealed(event: AnyEvent, previous: str) -> AnyEvent:
    """The event with its hash set."""
    return msgspec.structs.replace(event, hash=chain(previous, msgspec.to_builtins(event)))


def public(body: bytes) -> bytes:
    """What members see of a stored event."""
    data: dict[str, Any] = msgspec.json.decode(body)
    data.pop("private", None)
    data.pop("hash", None)
    return _ENCODER.encode(data)


def public_fields(event: AnyEvent) -> dict[str, Any]:
    """The public fields of an event beside those that all events have, and its type."""
    data: dict[str, Any] = msgspec.to_builtins(event)
    for key in ("by", "at", "state", "version", "private", "hash"):
        data.pop(key, None)
    return data
