"""How an order changes with each of its events. Only here; a replay of the same events gives the same state and hash."""

from typing import Any, Final

from msgspec.structs import replace

from domain import order_events as ev
from domain.order_state import (
    FINISHED,
    ON_THE_WAY,
    Change,
    Contract,
    Dispute,
    Milestone,
    OrderState,
    Payment,
    Quote,
    Rating,
    Visit,
    changed,
)
from domain.order_timers import timers_after
from domain.payments import post
from domain.times import parse_rfc3339

Fields = dict[str, Any]

REMEMBERED: Final = {"quote_window": "quoting_ends", "rating_window": "rating_ends"}
"""Timers whose time is asked for when they no longer run."""


def evolve(state: OrderState, event: ev.AnyEvent) -> OrderState:
    """The state after the event, as a new object."""
    at = parse_rfc3339(event.at)
    private = event.private or ev.Private()
    fields = _changes(state, event, private, at)
    if private.ledger:
        fields["books"] = post(state.books, private.ledger)
    if private.psp_event_id:
        fields["psp_events"] = (*state.psp_events, private.psp_event_id)
    if private.strikes and private.worker_id:
        count = state.strikes.get(private.worker_id, 0) + private.strikes
        fields["strikes"] = {**state.strikes, private.worker_id: count}
    for name, field in REMEMBERED.items():
        if name in private.due:
            fields[field] = private.due[name][-1]
    after = replace(state, **fields, state=event.state, version=event.version, hash=event.hash, updated_at=at)
    due = timers_after(state, after, event, at)
    return after if due == state.due else replace(after, due=due)


def _changes(state: OrderState, event: ev.AnyEvent, private: ev.Private, at: int) -> Fields:
    match event:
        case ev.Created():
            return _created(event, private, at)
        case ev.QuoteSubmitted() | ev.QuoteWithdrawn() | ev.QuoteRejected() | ev.Awarded() | ev.Reopened():
            return _quotes(state, event, private, at)
        case (
            ev.PaymentStarted() | ev.Funded() | ev.MilestoneFunded() | ev.PaymentFailed() | ev.PaymentReturned()
            | ev.RefundPaid()
        ):  # fmt: skip
            return _payments(state, event, private, at)
        case (
            ev.SlotProposed() | ev.SlotConfirmed() | ev.TripStarted() | ev.TripAborted() | ev.Arrived()
            | ev.CodeRefused() | ev.CheckedIn() | ev.CheckedOut() | ev.WorkerNoShow()
        ):  # fmt: skip
            return _visits(state, event, private)
        case (
            ev.MilestoneSubmitted() | ev.MilestoneApproved() | ev.ChangesRequested() | ev.WorkSubmitted()
            | ev.Approved() | ev.ChangeProposed() | ev.ChangeAccepted()
        ):  # fmt: skip
            return _work(state, event, at)
        case ev.DisputeOpened() | ev.DisputeAnswered() | ev.DisputeDecided():
            return _disputes(state, event, private, at)
        case ev.EscrowReturned():
            milestone = state.milestone(event.milestone)
            return {"milestones": changed(state.milestones, milestone, status="refunded")}
        case ev.Extended() if event.reminder == "deposit_due":
            waiting = (replace(p, awaited=True) if p.status == "processing" else p for p in state.payments)
            return {"payments": tuple(waiting)}
        case ev.Rated():
            rating = Rating(private.stars, at, private.text)
            return {"ratings": {**state.ratings, event.side: rating}}
        case ev.Cancelled():
            return _cancelled(state)
        case ev.Expired():
            return {"quotes": _closed_quotes(state, "expired")}
        case ev.Settled():
            return {"milestones": _each(state, {"approved"}, status="released")}
        case _:
            return {}


def _each(state: OrderState, statuses: set[str], **fields: Any) -> tuple[Milestone, ...]:
    return tuple(replace(m, **fields) if m.status in statuses else m for m in state.milestones)


def _closed_quotes(state: OrderState, status: str) -> tuple[Quote, ...]:
    return tuple(replace(q, status=status) if q.status in ("submitted", "parked") else q for q in state.quotes)


def _created(event: ev.Created, private: ev.Private, at: int) -> Fields:
    return {
        "customer_id": event.by,
        "category": event.category,
        "title": event.title,
        "description": event.description,
        "site": private.site,
        "budget": event.budget,
        "photos": event.photos,
        "seed": private.seed,
        "created_at": at,
    }


def _quotes(
    state: OrderState,
    event: ev.QuoteSubmitted | ev.QuoteWithdrawn | ev.QuoteRejected | ev.Awarded | ev.Reopened,
    private: ev.Private,
    at: int,
) -> Fields:
    match event:
        case ev.QuoteSubmitted():
            quote = Quote(
                private.quote_id, private.worker_id, private.rev, "submitted", private.milestones, private.currency,
                private.conversation_id, at, private.note, private.valid_until,
            )  # fmt: skip
            rest = tuple(q for q in state.quotes if q.id != quote.id)
            return {"quotes": (*rest, quote)}
        case ev.QuoteWithdrawn() | ev.QuoteRejected():
            status = "withdrawn" if isinstance(event, ev.QuoteWithdrawn) else "rejected"
            return {"quotes": changed(state.quotes, state.quote(private.quote_id), status=status)}
        case ev.Awarded():
            return _awarded(state, event, private)
        case ev.Reopened():
            live = ("processing", "failed")
            return {
                "quotes": tuple(_unparked(q, private.quote_id) for q in state.quotes),
                "payments": tuple(replace(p, status="timed_out") if p.status in live else p for p in state.payments),
                "worker_id": None,
                "contract": None,
                "milestones": (),
            }


def _unparked(quote: Quote, withdrawn_id: str) -> Quote:
    if quote.id == withdrawn_id:
        return replace(quote, status="withdrawn")
    return replace(quote, status="submitted") if quote.status in ("parked", "accepted") else quote


def _awarded(state: OrderState, event: ev.Awarded, private: ev.Private) -> Fields:
    total = sum(line.amount for line in private.milestones)

    def after(quote: Quote) -> Quote:
        if quote.id == private.quote_id:
            return replace(quote, status="accepted")
        return replace(quote, status="parked") if quote.status == "submitted" else quote

    return {
        "quotes": tuple(after(q) for q in state.quotes),
        "worker_id": private.worker_id,
        "contract": Contract(
            private.quote_id,
            private.rev,
            1,
            total,
            private.currency,
            event.cancellation_policy,
            private.commission_bp,
            private.vat_bp,
        ),
        "milestones": tuple(Milestone(n, line.title, line.amount) for n, line in enumerate(private.milestones, 1)),
    }


def _payments(
    state: OrderState,
    event: ev.PaymentStarted | ev.Funded | ev.MilestoneFunded | ev.PaymentFailed | ev.PaymentReturned | ev.RefundPaid,
    private: ev.Private,
    at: int,
) -> Fields:
    match event:
        case ev.PaymentStarted():
            payment = Payment(
                event.payment_id, event.milestone, event.rail, event.amount, event.currency, "processing", at
            )
            return {"payments": (*state.payments, payment)}
        case ev.Funded() | ev.MilestoneFunded():
            active = isinstance(event, ev.MilestoneFunded) and event.active
            milestone = state.milestone(event.milestone)
            deadline = parse_rfc3339(event.escrow_deadline)
            fields: Fields = {
                "payments": changed(state.payments, state.payment(event.payment_id), status="held"),
                "milestones": changed(state.milestones, milestone, status="active" if active else "funded"),
                "escrow_deadline": min(deadline, state.escrow_deadline or deadline),
            }
            if isinstance(event, ev.Funded):
                fields["quotes"] = tuple(
                    replace(q, status="rejected") if q.status == "parked" else q for q in state.quotes
                )
            return fields
        case ev.PaymentFailed():
            return {"payments": changed(state.payments, state.payment(event.payment_id), status="failed")}
        case ev.PaymentReturned():
            return {"payments": changed(state.payments, state.payment(event.payment_id), status="refunded")}
        case ev.RefundPaid():
            return {}


def _visits(
    state: OrderState,
    event: ev.SlotProposed
    | ev.SlotConfirmed
    | ev.TripStarted
    | ev.TripAborted
    | ev.Arrived
    | ev.CodeRefused
    | ev.CheckedIn
    | ev.CheckedOut
    | ev.WorkerNoShow,
    private: ev.Private,
) -> Fields:
    if isinstance(event, ev.SlotProposed):
        side: Any = event.side
        visit = Visit(event.visit_id, "proposed", parse_rfc3339(event.start), parse_rfc3339(event.end), side)
        return {"visits": (*state.visits, visit)}
    if isinstance(event, ev.SlotConfirmed):
        return _slot_confirmed(state, event, private)
    found = state.visit(event.visit_id)
    assert found is not None
    match event:
        case ev.CodeRefused():
            return {"visits": changed(state.visits, found, tries=(*found.tries, private.tried))}
        case ev.CheckedIn():
            fields: Fields = {"visits": changed(state.visits, found, status="checked_in")}
            if event.milestone is not None:
                fields["milestones"] = changed(state.milestones, state.milestone(event.milestone), status="active")
            return fields
        case ev.TripStarted():
            status = "en_route"
        case ev.TripAborted():
            status = "confirmed"
        case ev.Arrived():
            status = "arrived"
        case ev.CheckedOut():
            status = "checked_out"
        case ev.WorkerNoShow():
            return {"visits": changed(state.visits, found, status="no_show_w", code="")}
    return {"visits": changed(state.visits, found, status=status)}


def _slot_confirmed(state: OrderState, event: ev.SlotConfirmed, private: ev.Private) -> Fields:
    def after(visit: Visit) -> Visit:
        if visit.id == event.visit_id:
            return replace(visit, status="confirmed", code=private.code)
        if visit.id == event.replaces:
            return replace(visit, status="rescheduled", code="")
        return visit

    fields: Fields = {"visits": tuple(after(v) for v in state.visits)}
    confirmed = state.visit(event.visit_id)
    if event.replaces is not None and confirmed is not None:
        side = confirmed.proposed_by
        fields["reschedules"] = {**state.reschedules, side: state.reschedules.get(side, 0) + 1}
    return fields


def _work(
    state: OrderState,
    event: ev.MilestoneSubmitted
    | ev.MilestoneApproved
    | ev.ChangesRequested
    | ev.WorkSubmitted
    | ev.Approved
    | ev.ChangeProposed
    | ev.ChangeAccepted,
    at: int,
) -> Fields:
    match event:
        case ev.MilestoneSubmitted() | ev.WorkSubmitted():
            milestone = state.milestone(event.milestone)
            if milestone is None or milestone.status in FINISHED:
                return {}
            return {
                "milestones": changed(
                    state.milestones,
                    milestone,
                    status="submitted",
                    submission_no=event.submission_no,
                    photos=event.photos,
                    note=event.note,
                )
            }
        case ev.MilestoneApproved():
            milestone = state.milestone(event.milestone)
            return {"milestones": changed(state.milestones, milestone, status="approved", approved_at=at)}
        case ev.Approved():
            milestone = state.milestone(event.milestone)
            done = milestone is None or milestone.status in FINISHED
            judged = changed(state.milestones, milestone, status="approved", approved_at=at)
            return {
                "milestones": state.milestones if done else judged,
                "visits": tuple(_ended(v) for v in state.visits),
                "approved_at": at,
            }
        case ev.ChangesRequested():
            milestone = state.milestone(event.milestone)
            rounds = (milestone.rounds if milestone else 0) + 1
            fields: Fields = {
                "milestones": changed(state.milestones, milestone, status="changes_requested", rounds=rounds)
            }
            if state.state == "work_submitted":
                fields["reworks"] = state.reworks + 1
            return fields
        case ev.ChangeProposed():
            side: Any = event.side
            parked = tuple(replace(c, status="superseded") if c.status == "open" else c for c in state.changes)
            return {"changes": (*parked, Change(event.change_id, side, event.contract_rev, event.milestones))}
        case ev.ChangeAccepted():
            contract = state.contract
            assert contract is not None
            return {
                "changes": changed(state.changes, state.change(event.change_id), status="accepted"),
                "contract": replace(contract, rev=event.contract_rev, total=event.total),
                "milestones": event.plan,
            }


def _disputes(
    state: OrderState,
    event: ev.DisputeOpened | ev.DisputeAnswered | ev.DisputeDecided,
    private: ev.Private,
    at: int,
) -> Fields:
    if isinstance(event, ev.DisputeOpened):
        side: Any = event.side
        dispute = Dispute(
            event.dispute_id, event.milestone, event.amount, event.reason, side, at, evidence=private.evidence
        )
        return {"disputes": (*state.disputes, dispute)}
    found = state.dispute(event.dispute_id)
    if isinstance(event, ev.DisputeAnswered):
        return {
            "disputes": changed(
                state.disputes, found, status="answered", answer=event.text, answer_evidence=private.evidence
            )
        }
    fields: Fields = {
        "disputes": changed(
            state.disputes, found, status="decided", to_customer=event.to_customer, to_worker=event.to_worker
        )
    }
    milestone = state.milestone(event.milestone)
    empty = post(state.books, private.ledger).escrow(state.id, event.milestone) == 0
    if milestone is not None and empty and milestone.status not in ("approved", "released"):
        status = "approved" if event.to_worker > 0 else "refunded"
        fields["milestones"] = changed(state.milestones, milestone, status=status, approved_at=at)
    return fields


def _cancelled(state: OrderState) -> Fields:
    def milestone_after(milestone: Milestone) -> Milestone:
        if milestone.status == "planned":
            return replace(milestone, status="cancelled")
        return replace(milestone, status="refunded") if milestone.status == "funded" else milestone

    return {
        "quotes": _closed_quotes(state, "rejected"),
        "milestones": tuple(milestone_after(m) for m in state.milestones),
        "visits": tuple(_ended(v) for v in state.visits),
    }


def _ended(visit: Visit) -> Visit:
    if visit.status == "checked_in":
        return replace(visit, status="checked_out", code="")
    gone = visit.status in ("proposed", "confirmed") or visit.status in ON_THE_WAY
    return replace(visit, status="cancelled", code="") if gone else visit
