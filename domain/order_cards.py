"""What the members of an order's conversations are told of its events: a card for each, or the reason why not.

`CARDS` decides it for every event there is, and `OrderTurn.emit` follows it: no decide function posts or forgets a card.
"""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from domain import order_events as ev
from domain.masking import mask
from domain.order_state import OrderState

Readers = Literal["hired", "quoter", "quoters"]
"""The hired worker, whose award may end with the event; who made the quote that it is about; all whose quotes stood."""


class Posted(NamedTuple):
    """A card goes to these workers' conversations with the customer. `text` is a template over the event's fields."""

    to: Readers
    text: str | Callable[[Any, OrderState], str]


class Unposted(NamedTuple):
    """No card, since …"""

    reason: str


class Card(NamedTuple):
    """One card: for people (`text`) and for programs (`data`, whose `type` is the event's)."""

    conversation_id: str
    text: str
    data: dict[str, Any]


def _quoted(event: ev.QuoteSubmitted, before: OrderState) -> str:
    revised = any(before.active_quote_of(worker_id) for worker_id in _quoter(event))
    return "A quote was revised." if revised else "A quote was submitted."


def _approved(event: ev.MilestoneApproved, before: OrderState) -> str:
    silence = ": nobody objected in time" if event.auto else ""
    return f"Milestone {event.milestone} was approved{silence}."


def _accepted(event: ev.Approved, before: OrderState) -> str:
    return "The work was approved: nobody objected in time." if event.auto else "The work was approved."


def _decided(event: ev.DisputeDecided, before: OrderState) -> str:
    return "The dispute was decided by its deadline." if event.auto else "The dispute was decided."


def _extended(event: ev.Extended, before: OrderState) -> str:
    return EXTENDED.get(event.reminder.partition(":")[0], "There is more time.")


def _rated(event: ev.Rated, before: OrderState) -> str:
    return "Both have rated." if event.ratings else f"The {event.side} has left a rating."


EXTENDED: Final = {
    "deposit_due": "The payment is still being processed: it is waited for.",
    "review": "There is more time for the review.",
    "final_auto_approve": "There is more time for the approval.",
    "respond": "There is more time to answer the dispute.",
}
"""What is said when a timer is put off."""

CARDS: Final[dict[type[ev.OrderEvent], Posted | Unposted]] = {
    ev.Created: Unposted("nobody has a conversation about the order yet"),
    ev.Published: Unposted("nobody has a conversation about the order yet"),
    ev.QuoteSubmitted: Posted("quoter", _quoted),
    ev.QuoteWithdrawn: Posted("quoter", "The quote was withdrawn."),
    ev.QuoteRejected: Posted("quoter", "The quote was declined."),
    ev.Awarded: Posted("hired", "The quote was accepted."),
    ev.Reopened: Posted("hired", "The award has ended; the order is open again."),
    ev.PaymentStarted: Posted("hired", "The customer has started a payment."),
    ev.Funded: Posted("hired", "The deposit is held in escrow."),
    ev.MilestoneFunded: Posted("hired", "The money for milestone {milestone} is held in escrow."),
    ev.PaymentFailed: Posted("hired", "A payment has failed."),
    ev.PaymentReturned: Posted("hired", "A payment came when it was no longer wanted: it goes back in full."),
    ev.RefundPaid: Posted("hired", "A refund was paid out to the customer."),
    ev.SlotProposed: Posted("hired", "A time for the visit was proposed."),
    ev.SlotConfirmed: Posted("hired", "The time of the visit is confirmed."),
    ev.TripStarted: Posted("hired", "The worker is on the way."),
    ev.TripAborted: Posted("hired", "The trip was broken off."),
    ev.Arrived: Posted("hired", "The worker has arrived."),
    ev.CodeRefused: Posted("hired", "A wrong check-in code was entered; tries left: {tries_left}."),
    ev.CheckedIn: Posted("hired", "The worker has checked in."),
    ev.CheckedOut: Posted("hired", "The worker has checked out."),
    ev.WorkerNoShow: Posted("hired", "The worker did not come."),
    ev.MilestoneSubmitted: Posted("hired", "Milestone {milestone} was submitted."),
    ev.MilestoneApproved: Posted("hired", _approved),
    ev.ChangesRequested: Posted("hired", "Changes to milestone {milestone} were requested."),
    ev.WorkSubmitted: Posted("hired", "The work was submitted as complete."),
    ev.Approved: Posted("hired", _accepted),
    ev.ChangeProposed: Posted("hired", "A change of the contract was proposed."),
    ev.ChangeAccepted: Posted("hired", "The change of the contract was accepted."),
    ev.DisputeOpened: Posted("hired", "A dispute over milestone {milestone} was opened; its money is held."),
    ev.DisputeAnswered: Posted("hired", "The dispute was answered."),
    ev.DisputeDecided: Posted("hired", _decided),
    ev.EscrowReturned: Posted(
        "hired", "The money for milestone {milestone} could not be held any longer: it goes back."
    ),
    ev.Nudged: Unposted("a reminder goes to those whom it concerns, and changes nothing"),
    ev.Extended: Posted("hired", _extended),
    ev.Cancelled: Posted("quoters", "The order was cancelled."),
    ev.Expired: Posted("quoters", "The order has expired."),
    ev.Settled: Posted("hired", "The payout has been made."),
    ev.Closed: Posted("hired", "The order is closed."),
    ev.Rated: Posted("hired", _rated),
}

UNPAID: Final = frozenset({"", "draft", "open", "awarded"})
"""States before the deposit is held: nobody reads a contact out of a card either."""

_OF_A_QUOTE = (ev.QuoteSubmitted, ev.QuoteWithdrawn, ev.QuoteRejected, ev.Awarded)
_OF_A_MILESTONE = (
    ev.MilestoneSubmitted,
    ev.MilestoneApproved,
    ev.ChangesRequested,
    ev.WorkSubmitted,
    ev.Approved,
    ev.PaymentFailed,
)


def cards(event: ev.AnyEvent, before: OrderState, after: OrderState) -> list[Card]:
    """The cards of an event that led from one state to the other, each in a conversation of its own.

    A worker has one conversation with the customer about an order, opened with their first quote; without it there is none.
    """
    rule = CARDS[type(event)]
    if isinstance(rule, Unposted):
        return []
    fields = ev.public_fields(event)
    text = rule.text.format(**fields) if isinstance(rule.text, str) else rule.text(event, before)
    data = {**fields, **_known(event, before), "order_id": after.id, "state": event.state, "version": event.version}
    if before.state in UNPAID and data.get("reason"):
        data["reason"] = mask(data["reason"]).text
    rooms = (_room(after, worker_id) for worker_id in _readers(rule.to, event, before, after))
    return [Card(room, text, data) for room in rooms if room is not None]


def _room(state: OrderState, worker_id: str) -> str | None:
    return next((quote.conversation_id for quote in state.quotes_of(worker_id)), None)


def _readers(to: Readers, event: ev.AnyEvent, before: OrderState, after: OrderState) -> list[str]:
    if to == "quoter":
        return _quoter(event)
    if to == "quoters":
        return [quote.worker_id for quote in before.quotes if quote.status in ("submitted", "accepted")]
    hired = after.worker_id or before.worker_id
    return [] if hired is None else [hired]


def _quoter(event: ev.OrderEvent) -> list[str]:
    return [] if event.private is None else [event.private.worker_id]


def _known(event: ev.AnyEvent, before: OrderState) -> dict[str, Any]:
    """What the readers of a card know beside what every member of the order does."""
    if isinstance(event, _OF_A_QUOTE) and event.private is not None:
        offer: dict[str, Any] = {"quote_id": event.private.quote_id}
        if event.private.milestones:
            total = sum(line.amount for line in event.private.milestones)
            offer |= {"rev": event.private.rev, "total": total, "currency": event.private.currency}
        return offer
    if isinstance(event, _OF_A_MILESTONE):
        milestone, contract = before.milestone(event.milestone), before.contract
        if milestone is not None and contract is not None:
            return {"amount": milestone.amount, "currency": contract.currency}
    return {}
