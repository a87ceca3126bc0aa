"""Where an order's money moves: deposits, releases, refunds, cancellation, payouts (T06 … T09, T25, T28 … T30)."""

from domain import order_events as ev
from domain import payments as ledger
from domain.errors import Code, Refusal, invalid
from domain.order_commands import Cancel, DepositFailed, DepositHeld, Nothing, PspEvent, RefundPaid, StartPayment
from domain.order_hiring import has_live_quote, reopen
from domain.order_state import AT_WORK, OrderState, Payment, Role
from domain.order_turn import OrderTurn
from domain.payments import Transaction, share
from domain.times import rfc3339

TAKES_DEPOSITS = frozenset({"awarded", "scheduled", "en_route", "in_progress"})


def payment_due(state: OrderState, role: Role, actor_id: str) -> bool:
    return state.milestone_due is not None


def start_payment(turn: OrderTurn, wish: StartPayment) -> None:
    state, policy = turn.state, turn.policy
    known = state.payment(wish.payment_id)
    if known is not None:
        if (known.milestone, known.rail) != (wish.milestone, wish.rail):
            raise invalid("payment_id", "taken", "this id belongs to another payment")
        return
    if wish.rail not in policy.rails:
        raise invalid("rail", "unknown", f"use one of: {', '.join(policy.rails)}")
    due = state.milestone_due
    milestone = state.milestone(wish.milestone)
    if milestone is None or wish.milestone != due:
        raise invalid("milestone", "not_due", f"milestone {due} is the one to be paid now")
    recent = turn.now - policy.payment_patience_ms
    running = next(
        (p for p in state.payments if p.milestone == due and p.status == "processing" and p.at > recent), None
    )
    if running is not None:
        raise turn.conflict("a payment for this milestone is being processed", payment_id=running.id)
    if len(state.payments) >= policy.payments_max:
        raise turn.conflict("too many attempts to pay")
    contract = state.contract
    assert contract is not None
    turn.emit(
        ev.PaymentStarted,
        payment_id=wish.payment_id,
        milestone=wish.milestone,
        rail=wish.rail,
        amount=milestone.amount,
        currency=contract.currency,
    )


def _known_payment(turn: OrderTurn, payment_id: str) -> Payment:
    payment = turn.state.payment(payment_id)
    if payment is None:
        raise invalid("payment_id", "unknown", "there is no such payment")
    return payment


def deposit_held(turn: OrderTurn, news: DepositHeld) -> None:
    """T06, and T09 for what comes too late: that is booked and goes back in full, whatever the order's state by then.

    A duplicate changes nothing.
    """
    state, payment = turn.state, _known_payment(turn, news.payment_id)
    if payment.status in ("held", "refunded") or news.psp_event_id in state.psp_events:
        return
    if (news.amount, news.currency) != (payment.amount, payment.currency):
        message = f"{payment.amount} {payment.currency} was asked for, {news.amount} {news.currency} was held"
        raise invalid("amount", "mismatch", message)
    expected = payment.status in ("processing", "failed") and state.milestone_due == payment.milestone
    if expected and state.state in TAKES_DEPOSITS:
        _fund(turn, payment, news.psp_event_id)
    else:
        _give_back(turn, payment, news.psp_event_id)


def _fund(turn: OrderTurn, payment: Payment, psp_event_id: str) -> None:
    state, n = turn.state, payment.milestone
    entry = ledger.deposit(state.id, n, payment.rail, payment.amount, payment.currency)
    private = ev.Private(psp_event_id=psp_event_id, ledger=(entry,))
    deadline = rfc3339(turn.now + turn.policy.rail_hold_ms)
    if state.state == "awarded":
        turn.conversation(turn.hired_conversation, "contacts.reveal", {})
        turn.emit(
            ev.Funded,
            to="funded",
            private=private,
            payment_id=payment.id,
            milestone=n,
            amount=payment.amount,
            currency=payment.currency,
            escrow_deadline=deadline,
        )
        return
    active = state.state == "in_progress" and not any(m.status in AT_WORK for m in state.milestones)
    turn.emit(
        ev.MilestoneFunded,
        private=private,
        payment_id=payment.id,
        milestone=n,
        amount=payment.amount,
        currency=payment.currency,
        active=active,
        escrow_deadline=deadline,
    )


def _give_back(turn: OrderTurn, payment: Payment, psp_event_id: str) -> None:
    state, n = turn.state, payment.milestone
    entries = [ledger.deposit(state.id, n, payment.rail, payment.amount, payment.currency)]
    entries += refunds(turn, n, payment.amount, payment.currency, payment.rail)
    turn.emit(
        ev.PaymentReturned,
        private=ev.Private(psp_event_id=psp_event_id, ledger=tuple(entries)),
        payment_id=payment.id,
        milestone=n,
        amount=payment.amount,
        currency=payment.currency,
    )


def refunds(turn: OrderTurn, n: int, amount: int, currency: str, rail: str) -> list[Transaction]:
    """L5 for a part of what is held: both halves where the rail confirms at once."""
    if amount == 0:
        return []
    customer_id = turn.state.customer_id
    entries = [ledger.refund(turn.state.id, n, customer_id, amount, currency)]
    if rail in turn.policy.instant_refund_rails:
        entries.append(ledger.refund_paid(n, customer_id, rail, amount, currency))
    return entries


def rail_of(state: OrderState, n: int) -> str:
    """The rail over which a milestone was paid."""
    return next((p.rail for p in state.payments if p.milestone == n and p.status == "held"), state.rail)


def deposit_failed(turn: OrderTurn, news: DepositFailed) -> None:
    state, payment = turn.state, _known_payment(turn, news.payment_id)
    if payment.status != "processing" or news.psp_event_id in state.psp_events:
        return
    turn.emit(
        ev.PaymentFailed,
        private=ev.Private(psp_event_id=news.psp_event_id),
        payment_id=payment.id,
        milestone=payment.milestone,
        reason=news.reason,
    )
    failed = [p for p in turn.state.payments if p.status == "failed" and p.milestone == 1]
    if turn.state.state == "awarded" and len(failed) >= turn.policy.deposit_attempts_max:
        reopen(turn, "deposit_failed", state.customer_id)


def refund_paid(turn: OrderTurn, news: RefundPaid) -> None:
    """A provider speaks for its own rail: what came too late over one is not paid back by the other that was used."""
    state = turn.state
    if news.psp_event_id in state.psp_events:
        return
    owed = -state.books.balance(ledger.refund_account(state.customer_id))
    if news.amount > owed:
        raise invalid("amount", "mismatch", f"{owed} is owed, {news.amount} was refunded")
    rail = turn.actor_id if turn.actor_id in turn.policy.rails else rail_of(state, news.milestone)
    entry = ledger.refund_paid(news.milestone, state.customer_id, rail, news.amount, news.currency)
    turn.emit(
        ev.RefundPaid,
        private=ev.Private(psp_event_id=news.psp_event_id, ledger=(entry,)),
        milestone=news.milestone,
        amount=news.amount,
        currency=news.currency,
    )


def releases(state: OrderState, n: int, amount: int) -> tuple[Transaction, ...]:
    """L3 for a part of what a milestone has in escrow, at the contract's frozen rates."""
    contract, worker_id = state.contract, state.worker_id
    assert contract is not None
    assert worker_id is not None
    if amount == 0:
        return ()
    rates = (contract.commission_bp, contract.vat_bp)
    return (ledger.release(state.id, n, worker_id, amount, contract.currency, *rates),)


def refuse_held(turn: OrderTurn, n: int) -> None:
    """Refusal `hold` while a dispute blocks the milestone's money."""
    if turn.state.held_on(n):
        raise turn.conflict(f"a dispute holds the money of milestone {n}", Code.HOLD, holds=list(turn.state.holds))


def may_cancel(state: OrderState, role: Role, actor_id: str) -> bool:
    """The customer and operations at any time before the work is submitted; a bidder only their own quote."""
    if role == "bidder":
        return state.state == "open" and has_live_quote(state, role, actor_id)
    return role != "worker" or state.state not in ("draft", "open")


def slot_timeout(turn: OrderTurn, _: Nothing) -> None:
    """The deposit is held and no visit was ever agreed on: it goes back in full."""
    call_off(turn, "slot_timeout")


def call_off(turn: OrderTurn, reason: str) -> None:
    """The platform cancels: what is in escrow for work not begun goes back, nobody pays a fee or gets a strike."""
    _cancel_paid(turn, Cancel(reason))


def cancel(turn: OrderTurn, wish: Cancel) -> None:
    """The cancellation matrix: who leaves when decides what is refunded, what it costs, and who gets a strike."""
    state = turn.state
    if turn.role == "bidder":
        _cancel_quote(turn)
    elif state.state == "awarded" and turn.role == "worker":
        contract = state.contract
        assert contract is not None
        reopen(turn, "cancelled_by_worker", turn.actor_id, contract.quote_id)
    elif state.state in ("draft", "open", "awarded"):
        _cancel_unpaid(turn, wish)
    else:
        _cancel_paid(turn, wish)


def _cancel_quote(turn: OrderTurn) -> None:
    quote = next(q for q in turn.state.quotes_of(turn.actor_id) if q.status == "submitted")
    turn.emit(ev.QuoteWithdrawn, private=ev.Private(quote_id=quote.id, worker_id=quote.worker_id))


def _cancel_unpaid(turn: OrderTurn, wish: Cancel) -> None:
    turn.emit(ev.Cancelled, to="cancelled", side=turn.role, reason=wish.reason)


def fee_bp(turn: OrderTurn) -> int:
    """What the customer's late cancellation costs, in basis points of what is in escrow for work not begun."""
    state, policy = turn.state, turn.policy
    if turn.role != "customer":
        return 0
    if state.state == "en_route":
        return policy.call_out_bp + policy.travel_bp
    visit = state.visit_in("confirmed")
    late = visit is not None and visit.start - turn.now <= policy.late_cancel_ms
    return policy.call_out_bp if state.state == "scheduled" and late else 0


def _strikes(turn: OrderTurn) -> int:
    if turn.role != "worker":
        return 0
    visit = turn.state.visit_in("confirmed", "en_route", "arrived")
    return 2 if visit is not None and visit.start - turn.now <= turn.policy.late_cancel_ms else 1


def _cancel_paid(turn: OrderTurn, wish: Cancel) -> None:
    """Money of milestones not begun goes back, less a fee; a milestone at work becomes a dispute over what it holds."""
    state, contract = turn.state, turn.state.contract
    assert contract is not None
    begun = {m.n for m in state.milestones if m.status in AT_WORK}
    rate, fee, refunded, entries = fee_bp(turn), 0, 0, list[Transaction]()
    for milestone in state.milestones:
        held = state.escrow(milestone.n)
        if held == 0 or milestone.n in begun or state.held_on(milestone.n):
            continue
        part = share(held, rate)
        if part:
            entries.append(ledger.release(state.id, milestone.n, turn.worker_id, part, contract.currency, 0, 0))
        entries += refunds(turn, milestone.n, held - part, contract.currency, rail_of(state, milestone.n))
        fee, refunded = fee + part, refunded + held - part
    private = ev.Private(ledger=tuple(entries), worker_id=turn.worker_id, strikes=_strikes(turn))
    turn.emit(
        ev.Cancelled,
        to="cancelled",
        private=private,
        side=turn.role,
        reason=wish.reason,
        refunded=refunded,
        fee=fee,
        currency=contract.currency,
    )
    for n in sorted(begun):
        if turn.state.escrow(n) and not turn.state.held_on(n):
            _dispute_over(turn, n, wish.reason)


def _dispute_over(turn: OrderTurn, n: int, reason: str) -> None:
    contract = turn.state.contract
    assert contract is not None
    turn.emit(
        ev.DisputeOpened,
        dispute_id=turn.derived_id(f"cancel:{n}"),
        side=turn.side,
        milestone=n,
        amount=turn.state.escrow(n),
        currency=contract.currency,
        reason=reason or "cancelled while the work was going on",
    )


def payouts_confirmed(turn: OrderTurn, news: PspEvent) -> None:
    state, contract = turn.state, turn.state.contract
    assert contract is not None
    if state.holds:
        raise turn.conflict("a dispute holds money of this order", Code.HOLD, holds=list(state.holds))
    owed = -state.books.balance(ledger.payable_account(turn.worker_id))
    entries = ledger.payout(turn.worker_id, state.rail, owed, contract.currency) if owed > 0 else []
    turn.emit(ev.Settled, to="settled", private=ev.Private(psp_event_id=news.psp_event_id, ledger=tuple(entries)))


def close(turn: OrderTurn, _: object) -> None:
    state, policy = turn.state, turn.policy
    if state.holds:
        raise turn.conflict("a dispute is open", Code.HOLD, holds=list(state.holds))
    both = len(state.ratings) == 2
    if not both and turn.now < state.rating_end(policy.rating_window_ms):
        raise Refusal(Code.CONFLICT, "the rating window is still open")
    turn.emit(ev.Closed, to="closed")
