"""Disputes over a milestone's money: opened by one side, answered by the other, decided by operations (T33 … T36, T38)."""

from domain import order_events as ev
from domain import payments as ledger
from domain.errors import invalid
from domain.order_commands import DecideDispute, DisputeRef, MilestoneRef, OpenDispute, RespondDispute
from domain.order_money import call_off, rail_of, refunds, releases
from domain.order_nudges import extend
from domain.order_state import Dispute, OrderState, Role
from domain.order_timers import unheard
from domain.order_turn import OrderTurn
from domain.payments import Transaction


def money_to_dispute(state: OrderState, role: Role, actor_id: str) -> bool:
    return any(disputable(state, m.n) > 0 and not state.held_on(m.n) for m in state.milestones)


def dispute_to_answer(state: OrderState, role: Role, actor_id: str) -> bool:
    return any(d.status == "open" and d.by != role for d in state.disputes)


def dispute_to_decide(state: OrderState, role: Role, actor_id: str) -> bool:
    return any(d.status != "decided" for d in state.disputes)


def disputable(state: OrderState, n: int) -> int:
    """What of a milestone can be argued about: what is in escrow, else what was released and has not gone back."""
    escrow = state.escrow(n)
    if escrow > 0:
        return escrow
    return state.books.released.get(n, 0) - state.books.returned.get(n, 0)


def open_dispute(turn: OrderTurn, wish: OpenDispute) -> None:
    state, contract = turn.state, turn.state.contract
    assert contract is not None
    milestone = state.milestone(wish.n)
    if state.dispute(wish.dispute_id) is not None:
        raise invalid("dispute_id", "taken", "this id has been used")
    if milestone is None:
        raise invalid("n", "unknown", "there is no such milestone")
    if state.held_on(wish.n):
        raise turn.conflict(f"a dispute over milestone {wish.n} is open")
    if len(state.disputes) >= turn.policy.disputes_max:
        raise turn.conflict("this order takes no more disputes")
    limit = disputable(state, wish.n)
    since = milestone.approved_at
    window = turn.policy.dispute_after_release_ms
    if state.escrow(wish.n) == 0 and (since is None or turn.now - since > window):
        raise turn.conflict(f"milestone {wish.n} can no longer be disputed")
    if wish.amount > limit:
        raise invalid("amount", "too_large", f"{limit} is what can be disputed")
    turn.emit(
        ev.DisputeOpened,
        private=ev.Private(evidence=wish.evidence),
        dispute_id=wish.dispute_id,
        side=turn.side,
        milestone=wish.n,
        amount=wish.amount,
        currency=contract.currency,
        reason=wish.reason,
    )


def _known_dispute(turn: OrderTurn, dispute_id: str) -> Dispute:
    dispute = turn.state.dispute(dispute_id)
    if dispute is None:
        raise invalid("dispute_id", "unknown", "there is no such dispute")
    return dispute


def respond_dispute(turn: OrderTurn, answer: RespondDispute) -> None:
    dispute = _known_dispute(turn, answer.dispute_id)
    if dispute.status != "open" or dispute.by == turn.side:
        standing = {"id": dispute.id, "status": dispute.status}
        raise turn.conflict("this dispute does not wait for your answer", dispute=standing)
    turn.emit(
        ev.DisputeAnswered,
        private=ev.Private(evidence=answer.evidence),
        dispute_id=dispute.id,
        text=answer.text,
    )


def decide_dispute(turn: OrderTurn, ruling: DecideDispute) -> None:
    dispute = _known_dispute(turn, ruling.dispute_id)
    if dispute.status == "decided":
        raise turn.conflict("the dispute has been decided", dispute={"id": dispute.id, "status": dispute.status})
    if ruling.to_customer + ruling.to_worker != dispute.amount:
        raise invalid("to_customer", "mismatch", f"the two parts must sum to {dispute.amount}")
    _decide(turn, dispute, ruling.to_customer)


def _decide(turn: OrderTurn, dispute: Dispute, to_customer: int, auto: bool = False) -> None:
    """Split the disputed amount: out of escrow while it is there, else back from what was released.

    In a cancelled order the rest of the milestone's escrow goes back to the customer.
    """
    state, contract = turn.state, turn.state.contract
    assert contract is not None
    n, held, to_worker = dispute.n, state.escrow(dispute.n), dispute.amount - to_customer
    entries: list[Transaction] = []
    if held >= dispute.amount:
        left_over = held - dispute.amount if state.state == "cancelled" else 0
        entries += releases(state, n, to_worker)
        entries += refunds(turn, n, to_customer + left_over, contract.currency, rail_of(state, n))
    elif to_customer:
        rates = (contract.commission_bp, contract.vat_bp)
        entries.append(
            ledger.refund_after_release(n, turn.worker_id, state.customer_id, to_customer, contract.currency, *rates)
        )
    turn.emit(
        ev.DisputeDecided,
        private=ev.Private(ledger=tuple(entries)),
        dispute_id=dispute.id,
        milestone=n,
        to_customer=to_customer,
        to_worker=to_worker,
        currency=contract.currency,
        auto=auto,
    )


def dispute_default(turn: OrderTurn, which: DisputeRef) -> None:
    """T36: who was asked and says nothing loses, once they were reminded while there was time; else it is put off, once.

    There is no appeal: what was released can be disputed again for a while, what went back to the customer cannot.
    """
    dispute = _known_dispute(turn, which.dispute_id)
    if dispute.status != "open":
        raise turn.conflict("the dispute was answered", dispute={"id": dispute.id, "status": dispute.status})
    if unheard(turn.state, f"respond:{dispute.id}", f"respond_nudge:{dispute.id}"):
        grace_ms = turn.policy.unheard_extension_ms
        extend(turn, f"respond:{dispute.id}", grace_ms)
        return
    to_customer = dispute.amount if dispute.by == "customer" else 0
    _decide(turn, dispute, to_customer, auto=True)


def escrow_expiring(turn: OrderTurn, which: MilestoneRef) -> None:
    """T38: the rail lets go of a milestone's money soon, and what happens to it is decided here, never by the rail.

    The rule: what the customer has not approved by now goes back to them in full, work submitted or not, for the rail may
    give it to anybody. A dispute over it ends the same way, since its hold would outlive the money. Where no work has
    begun the order is cancelled with it; else it goes on, and the milestone is `refunded`.
    """
    state, contract = turn.state, turn.state.contract
    if contract is None or state.escrow(which.n) == 0:
        raise turn.conflict(f"nothing is held for milestone {which.n}")
    for dispute in [d for d in state.disputes if d.n == which.n and d.status != "decided"]:
        _decide(turn, dispute, dispute.amount, auto=True)
    left = turn.state.escrow(which.n)
    if left:
        entries = refunds(turn, which.n, left, contract.currency, rail_of(state, which.n))
        turn.emit(
            ev.EscrowReturned,
            private=ev.Private(ledger=tuple(entries)),
            milestone=which.n,
            amount=left,
            currency=contract.currency,
        )
    if not state.begun and state.state in ("funded", "scheduled", "en_route"):
        call_off(turn, "escrow_expiring")
