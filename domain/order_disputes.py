"""Disputes over a milestone's money: opened by one side, answered by the other, decided by operations (T33 … T35)."""

from domain import order_events as ev
from domain import payments as ledger
from domain.errors import invalid
from domain.order_commands import DecideDispute, OpenDispute, RespondDispute
from domain.order_money import rail_of, refunds, releases
from domain.order_state import Dispute, OrderState, Role
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
    event = turn.emit(
        ev.DisputeOpened,
        private=ev.Private(evidence=wish.evidence),
        dispute_id=wish.dispute_id,
        side=turn.side,
        milestone=wish.n,
        amount=wish.amount,
        currency=contract.currency,
        reason=wish.reason,
    )
    turn.tell(event, f"A dispute over milestone {wish.n} was opened; its money is held.")


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
    event = turn.emit(
        ev.DisputeAnswered,
        private=ev.Private(evidence=answer.evidence),
        dispute_id=dispute.id,
        text=answer.text,
    )
    turn.tell(event, "The dispute was answered.")


def decide_dispute(turn: OrderTurn, ruling: DecideDispute) -> None:
    """Split the disputed amount: out of escrow while it is there, else back from what was released.

    In a cancelled order the rest of the milestone's escrow goes back to the customer.
    """
    state, contract = turn.state, turn.state.contract
    assert contract is not None
    dispute = _known_dispute(turn, ruling.dispute_id)
    if dispute.status == "decided":
        raise turn.conflict("the dispute has been decided", dispute={"id": dispute.id, "status": dispute.status})
    if ruling.to_customer + ruling.to_worker != dispute.amount:
        raise invalid("to_customer", "mismatch", f"the two parts must sum to {dispute.amount}")
    n, held = dispute.n, state.escrow(dispute.n)
    entries: list[Transaction] = []
    if held >= dispute.amount:
        left_over = held - dispute.amount if state.state == "cancelled" else 0
        entries += releases(state, n, ruling.to_worker)
        entries += refunds(turn, n, ruling.to_customer + left_over, contract.currency, rail_of(state, n))
    elif ruling.to_customer:
        rates = (contract.commission_bp, contract.vat_bp)
        entries.append(
            ledger.refund_after_release(
                n, turn.worker_id, state.customer_id, ruling.to_customer, contract.currency, *rates
            )
        )
    event = turn.emit(
        ev.DisputeDecided,
        private=ev.Private(ledger=tuple(entries)),
        dispute_id=dispute.id,
        milestone=n,
        to_customer=ruling.to_customer,
        to_worker=ruling.to_worker,
        currency=contract.currency,
    )
    turn.tell(event, "The dispute was decided.")
