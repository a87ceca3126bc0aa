"""From a wish to a hired worker: create, publish, quotes, and the choice of one of them (T01 … T05, T08, T32)."""

import hashlib

from domain import order_events as ev
from domain.errors import Code, Refusal, invalid
from domain.geo import distance_m
from domain.order_commands import AcceptQuote, Create, Nothing, QuoteRef, SubmitQuote
from domain.order_nudges import extend
from domain.order_state import OrderState, Place, Quote, Role, conversation_of
from domain.order_turn import OrderTurn
from domain.times import epoch_ms


def create(turn: OrderTurn, wish: Create) -> None:
    for field in ("title", "category"):
        if not getattr(wish, field).strip():
            raise invalid(field, "required", f"{field} is empty")
    if not wish.site.address.strip():
        raise invalid("site.address", "required", "address is empty")
    actor = turn.command.actor
    seed = hashlib.sha256(f"{turn.state.id}:{actor.session_id}:{turn.command.command_id}:{turn.now}".encode())
    turn.emit(
        ev.Created,
        to="draft",
        category=wish.category,
        title=wish.title,
        description=wish.description,
        budget=wish.budget.money() if wish.budget else None,
        photos=wish.photos,
        private=ev.Private(site=Place(wish.site.lat, wish.site.lon, wish.site.address), seed=seed.hexdigest()[:32]),
    )
    if wish.publish:
        publish(turn, Nothing())


def publish(turn: OrderTurn, _: Nothing) -> None:
    state, policy = turn.state, turn.policy
    if len(state.description.strip()) < policy.description_min and not state.photos:
        message = f"describe the work in {policy.description_min} characters or more, or add a photo"
        raise invalid("description", "too_short", message)
    open_orders = turn.facts.open_orders(state.customer_id)
    if open_orders >= policy.open_orders_max:
        raise turn.conflict(f"{open_orders} orders are open, and {policy.open_orders_max} is the limit")
    turn.one_more_open()  # others may be opened in this very moment: the commit counts again
    turn.emit(ev.Published, to="open")


def may_quote(state: OrderState, role: Role, actor_id: str) -> bool:
    return role == "bidder"


def has_live_quote(state: OrderState, role: Role, actor_id: str) -> bool:
    """A worker has a quote that can be withdrawn; the customer one that can be rejected or accepted."""
    return any(q.status == "submitted" and (role == "customer" or q.worker_id == actor_id) for q in state.quotes)


def submit_quote(turn: OrderTurn, offer: SubmitQuote) -> None:
    state, worker_id = turn.state, turn.actor_id
    _not_blocked(turn, worker_id)
    _vouched_for(turn, worker_id)
    _in_reach(turn, worker_id)
    _well_formed(turn, offer)
    own = state.quotes_of(worker_id)
    active = state.active_quote_of(worker_id)
    _identified(turn, offer, own, active)
    live = [q for q in state.quotes if q.status == "submitted" and q.worker_id != worker_id]
    if len(live) >= turn.policy.quotes_active_max:
        raise turn.conflict(f"{len(live)} quotes are active, and that is the limit")
    conversation_id = conversation_of(state, worker_id)
    lines = tuple(line.line() for line in offer.milestones)
    if not own:
        members = [state.customer_id, worker_id]
        turn.conversation(conversation_id, "open", {"member_ids": members, "order_id": state.id})
    turn.emit(
        ev.QuoteSubmitted,
        private=ev.Private(
            quote_id=offer.quote_id,
            worker_id=worker_id,
            conversation_id=conversation_id,
            rev=offer.rev,
            milestones=lines,
            currency=offer.currency,
            note=offer.note,
            valid_until=None if offer.valid_until is None else epoch_ms(offer.valid_until),
        ),
    )


def _not_blocked(turn: OrderTurn, worker_id: str) -> None:
    """A quote opens a conversation of the two: none begins between people of whom one has blocked the other."""
    customer_id = turn.state.customer_id
    if turn.facts.blocks(customer_id, worker_id):
        raise Refusal(Code.FORBIDDEN, "the customer has blocked you")
    if turn.facts.blocks(worker_id, customer_id):
        raise Refusal(Code.FORBIDDEN, "you have blocked the customer")


def _vouched_for(turn: OrderTurn, worker_id: str) -> None:
    if (what := turn.lacking(worker_id, turn.now)) is not None:
        raise Refusal(Code.FORBIDDEN, f"quotes in this category need a document that is approved: {what}")


def _in_reach(turn: OrderTurn, worker_id: str) -> None:
    account, site = turn.facts.account(worker_id), turn.state.site
    profile = account.worker if account else None
    if not turn.policy.check_radius or profile is None or site is None:
        return
    away = distance_m(profile.base_lat, profile.base_lon, site.lat, site.lon)
    if away > profile.radius_m:
        detail = f"the site is {away / 1000:.0f} km from your base, and your radius is {profile.radius_m / 1000:.0f} km"
        raise Refusal(Code.FORBIDDEN, detail)


def _well_formed(turn: OrderTurn, offer: SubmitQuote) -> None:
    lines, policy = offer.milestones, turn.policy
    if len(lines) > policy.milestones_max:
        raise invalid("milestones", "too_many", f"at most {policy.milestones_max} milestones")
    total = sum(line.amount for line in lines)
    if len(lines) >= 2 and lines[0].amount * 10_000 > total * policy.first_milestone_max_bp:
        part = policy.first_milestone_max_bp // 100
        raise invalid("milestones[0].amount", "too_large", f"the first milestone is at most {part} % of {total}")
    if offer.valid_until is not None and epoch_ms(offer.valid_until) <= turn.now:
        raise invalid("valid_until", "past", "the quote would have expired already")


def _identified(turn: OrderTurn, offer: SubmitQuote, own: list[Quote], active: Quote | None) -> None:
    known = turn.state.quote(offer.quote_id)
    if known is not None and known is not active:
        raise invalid("quote_id", "taken", "this id has been used; a new quote needs a new one")
    if known is None and active is not None:
        raise invalid("quote_id", "active", f"revise your quote {active.id}, or withdraw it first")
    newest = max((q.rev for q in own), default=0)
    if offer.rev <= newest:
        raise invalid("rev", "not_newer", f"the revision must be above {newest}")
    if offer.rev > turn.policy.quote_revisions_max:
        raise invalid("rev", "too_many", f"at most {turn.policy.quote_revisions_max} revisions")
    if known is None and len(turn.state.quotes) >= turn.policy.quotes_total_max:
        raise turn.conflict("this order takes no more quotes")


def _live_quote(turn: OrderTurn, quote_id: str) -> Quote:
    """The submitted quote that the caller may know of; others are answered like what does not exist."""
    quote = turn.state.quote(quote_id)
    if quote is None or (turn.role != "customer" and quote.worker_id != turn.actor_id):
        raise invalid("quote_id", "unknown", "there is no such quote")
    if quote.status != "submitted":
        raise turn.conflict(f"the quote is {quote.status}", quote={"id": quote.id, "status": quote.status})
    return quote


def withdraw_quote(turn: OrderTurn, which: QuoteRef) -> None:
    quote = _live_quote(turn, which.quote_id)
    turn.emit(ev.QuoteWithdrawn, private=ev.Private(quote_id=quote.id, worker_id=quote.worker_id))


def reject_quote(turn: OrderTurn, which: QuoteRef) -> None:
    quote = _live_quote(turn, which.quote_id)
    turn.emit(ev.QuoteRejected, private=ev.Private(quote_id=quote.id, worker_id=quote.worker_id))


def accept_quote(turn: OrderTurn, choice: AcceptQuote) -> None:
    quote, policy = _live_quote(turn, choice.quote_id), turn.policy
    if quote.rev != choice.rev:
        raise turn.conflict(
            f"revision {choice.rev} was replaced by {quote.rev}",
            Code.VERSION_CONFLICT,
            quote={"id": quote.id, "rev": quote.rev},
        )
    if quote.valid_until is not None and quote.valid_until <= turn.now:
        raise turn.conflict("the quote has expired", quote={"id": quote.id, "status": "expired"})
    if (what := turn.lacking(quote.worker_id, turn.now)) is not None:
        raise turn.conflict(f"the worker has no document any more that is approved: {what}", quote={"id": quote.id})
    turn.emit(
        ev.Awarded,
        to="awarded",
        cancellation_policy=policy.cancellation_policy,
        private=ev.Private(
            quote_id=quote.id,
            worker_id=quote.worker_id,
            rev=quote.rev,
            milestones=quote.milestones,
            currency=quote.currency,
            commission_bp=policy.commission_bp,
            vat_bp=policy.commission_vat_bp,
        ),
    )


def reopen(turn: OrderTurn, reason: str, striker_id: str, withdrawn: str = "") -> None:
    """Back to `open` from an unpaid award: parked quotes count again, who let it fail gets a strike."""
    turn.emit(
        ev.Reopened,
        to="open",
        reason=reason,
        private=ev.Private(worker_id=striker_id, strikes=1, quote_id=withdrawn),
    )


def deposit_timeout(turn: OrderTurn, _: Nothing) -> None:
    """T08. A payment that is still being processed is waited for, once, and only for so many of them.

    No provider can be asked how it stands: what it says after this is T09, and goes back in full (`deposit_held`).
    """
    state, policy = turn.state, turn.policy
    due = state.due.get("deposit_due")
    graces = due.extensions if due is not None else 0
    waiting = any(p.status == "processing" and not p.awaited for p in state.payments)
    if waiting and graces < policy.deposit_graces_max:
        extend(turn, "deposit_due", policy.deposit_grace_ms)
        return
    reopen(turn, "deposit_timeout", state.customer_id)


def expire(turn: OrderTurn, _: Nothing) -> None:
    turn.emit(ev.Expired, to="expired")
