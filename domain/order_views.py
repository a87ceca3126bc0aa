"""The order as each caller may see it, and who somebody is to it."""

from typing import Any

from domain import payments as ledger
from domain.access import OPERATORS
from domain.aggregate import Facts
from domain.commands import Actor
from domain.geo import cell_centre
from domain.order_state import ON_THE_WAY, Milestone, Money, OrderState, Quote, Rating, Role, Visit
from domain.order_table import allowed_commands
from domain.order_timers import timer_views
from domain.policy import Policy
from domain.times import rfc3339

INSIDE = frozenset({"customer", "worker", "ops"})
"""Who sees the contract, the visits and the money."""

CODE_SHOWN = frozenset({"confirmed"}) | ON_THE_WAY


def role_of(state: OrderState, actor: Actor, facts: Facts) -> Role | None:
    """Who the actor is to this order; None for who may not know of it."""
    if actor.kind != "user":
        return actor.kind
    if actor.id == state.customer_id:
        return "customer"
    if state.worker_id is not None and actor.id == state.worker_id:
        return "worker"
    account = facts.account(actor.id)
    roles = account.roles if account is not None else ()
    if any(q.worker_id == actor.id for q in state.quotes):
        return "bidder"
    if not OPERATORS.isdisjoint(roles):
        return "ops"
    return "bidder" if "worker" in roles and state.state == "open" else None


def project(state: OrderState, role: Role, actor_id: str, policy: Policy) -> dict[str, Any]:
    """The order object of the protocol, holding what this role may see of it."""
    inside = role in INSIDE
    hired = state.worker_id if inside else None
    seen: dict[str, Any] = {
        "id": state.id,
        "state": state.state,
        "display_status": "disputed" if state.holds and inside else state.state,
        "version": state.version,
        "customer_id": state.customer_id,
        "worker_id": hired,
        "category": state.category,
        "title": state.title,
        "description": state.description,
        "site": _site(state, inside, policy),
        "photos": list(state.photos),
        "budget": _money(state.budget),
        "contract": _contract(state, role) if inside else None,
        "quotes": [quote_view(q) for q in state.quotes if role in ("customer", "ops") or q.worker_id == actor_id],
        "visits": [_visit(v, role) for v in state.visits] if inside else [],
        "milestones": [_milestone(state, m) for m in state.milestones] if inside else [],
        "funding": _funding(state) if inside else [],
        "disputes": [_dispute(state, d.id, role) for d in state.disputes] if inside else [],
        "changes": [_change(state, c.id) for c in state.changes] if inside else [],
        "holds": list(state.holds) if inside else [],
        "timers": timer_views(state, role),
        "ratings": _ratings(state, role),
        "allowed_commands": list(allowed_commands(state, role, actor_id)),
        "created_at": rfc3339(state.created_at),
        "updated_at": rfc3339(state.updated_at),
        "conversation_id": _conversation(state, hired),
    }
    return {key: value for key, value in seen.items() if value is not None}


def _money(money: Money | None) -> dict[str, Any] | None:
    return None if money is None else {"amount": money.amount, "currency": money.currency}


def _conversation(state: OrderState, worker_id: str | None) -> str | None:
    own = state.quotes_of(worker_id) if worker_id is not None else []
    return own[0].conversation_id if own else None


def _site(state: OrderState, inside: bool, policy: Policy) -> dict[str, Any] | None:
    site = state.site
    if site is None:
        return None
    if inside:
        return {"lat": site.lat, "lon": site.lon, "address": site.address}
    lat, lon = cell_centre(site.lat, site.lon, policy.site_cell_m)
    return {"lat": lat, "lon": lon, "cell_m": policy.site_cell_m}


def _contract(state: OrderState, role: Role) -> dict[str, Any] | None:
    contract = state.contract
    if contract is None:
        return None
    seen: dict[str, Any] = {
        "quote_id": contract.quote_id,
        "quote_rev": contract.quote_rev,
        "rev": contract.rev,
        "price": {"amount": contract.total, "currency": contract.currency},
        "cancellation_policy": contract.cancellation_policy,
    }
    if role != "customer":
        seen |= {"commission_bp": contract.commission_bp, "vat_bp": contract.vat_bp}
    return seen


def quote_view(quote: Quote) -> dict[str, Any]:
    seen: dict[str, Any] = {
        "id": quote.id,
        "rev": quote.rev,
        "worker_id": quote.worker_id,
        "status": quote.status,
        "total": quote.total,
        "currency": quote.currency,
        "milestones": [{"title": line.title, "amount": line.amount} for line in quote.milestones],
        "conversation_id": quote.conversation_id,
        "at": rfc3339(quote.at),
    }
    if quote.note:
        seen["note"] = quote.note
    if quote.valid_until is not None:
        seen["valid_until"] = rfc3339(quote.valid_until)
    return seen


def _visit(visit: Visit, role: Role) -> dict[str, Any]:
    seen: dict[str, Any] = {
        "id": visit.id,
        "status": visit.status,
        "start": rfc3339(visit.start),
        "end": rfc3339(visit.end),
        "proposed_by": visit.proposed_by,
    }
    if role == "customer" and visit.status in CODE_SHOWN:
        seen["check_in_code"] = visit.code
    return seen


def _milestone(state: OrderState, milestone: Milestone) -> dict[str, Any]:
    currency = state.contract.currency if state.contract else None
    seen: dict[str, Any] = {
        "n": milestone.n,
        "title": milestone.title,
        "amount": milestone.amount,
        "currency": currency,
        "status": milestone.status,
    }
    if milestone.submission_no:
        seen |= {"submission_no": milestone.submission_no, "photos": list(milestone.photos), "note": milestone.note}
    return seen


def _funding(state: OrderState) -> list[dict[str, Any]]:
    """One entry per milestone that is, or should be, paid; every amount comes from the ledger."""
    contract = state.contract
    if contract is None:
        return []
    entries = []
    for milestone in state.milestones:
        over = {"timed_out", "refunded"} if milestone.n == state.milestone_due else {"timed_out"}
        paid = [p for p in state.payments if p.milestone == milestone.n and p.status not in over]
        if not paid and milestone.n != state.milestone_due:
            continue
        n, books = milestone.n, state.books
        latest = next((p for p in paid if p.status == "held"), paid[-1] if paid else None)
        entry: dict[str, Any] = {
            "milestone": n,
            "status": _funding_status(state, n, latest.status if latest else "requires_payment"),
            "amount": milestone.amount,
            "currency": contract.currency,
            "held": state.escrow(n),
            "released": books.released.get(n, 0) - books.returned.get(n, 0),
            "refunded": books.refunded.get(n, 0) + books.returned.get(n, 0),
        }
        if latest is not None:
            entry |= {"payment_id": latest.id, "rail": latest.rail}
        entries.append(entry)
    return entries


def _funding_status(state: OrderState, n: int, payment_status: str) -> str:
    if payment_status not in ("held", "refunded"):
        return payment_status
    held, released = state.escrow(n), state.books.released.get(n, 0)
    refunded = state.books.refunded.get(n, 0) + state.books.returned.get(n, 0)
    if refunded and state.books.balance(ledger.refund_account(state.customer_id)) < 0:
        return "refund_pending"
    if released:
        return "partially_released" if held else "released"
    if refunded:
        return "partially_refunded" if held else "refunded"
    return "held"


def _dispute(state: OrderState, dispute_id: str, role: Role) -> dict[str, Any]:
    dispute = state.dispute(dispute_id)
    assert dispute is not None
    assert state.contract is not None
    seen: dict[str, Any] = {
        "id": dispute.id,
        "n": dispute.n,
        "amount": dispute.amount,
        "currency": state.contract.currency,
        "reason": dispute.reason,
        "by": dispute.by,
        "status": dispute.status,
        "at": rfc3339(dispute.at),
    }
    if dispute.answer:
        seen["answer"] = dispute.answer
    if role in ("ops", dispute.by):
        seen["evidence"] = list(dispute.evidence)
    if role != dispute.by:
        seen["answer_evidence"] = list(dispute.answer_evidence)
    if dispute.status == "decided":
        seen |= {"to_customer": dispute.to_customer, "to_worker": dispute.to_worker}
    return seen


def _change(state: OrderState, change_id: str) -> dict[str, Any]:
    change = state.change(change_id)
    assert change is not None
    return {
        "id": change.id,
        "by": change.by,
        "contract_rev": change.contract_rev,
        "milestones": [{"title": line.title, "amount": line.amount} for line in change.milestones],
        "status": change.status,
    }


def _ratings(state: OrderState, role: Role) -> dict[str, Any] | None:
    """Both ratings once both are in; before that only one's own."""
    if role not in INSIDE or not state.ratings:
        return None
    both = len(state.ratings) == 2
    shown = {side: r for side, r in state.ratings.items() if both or side == role}
    return {side: _rating(rating) for side, rating in shown.items()} or None


def _rating(rating: Rating) -> dict[str, Any]:
    seen: dict[str, Any] = {"stars": rating.stars, "at": rfc3339(rating.at)}
    return seen | {"text": rating.text} if rating.text else seen
