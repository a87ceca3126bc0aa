"""The work and its acceptance: milestones, completion, changes, ratings (T19 … T27, T39)."""

from domain import order_events as ev
from domain.errors import invalid
from domain.order_commands import (
    ChangeRef,
    MilestoneRef,
    Nothing,
    ProposeChange,
    Rate,
    RequestChanges,
    Submission,
    SubmitCompletion,
    SubmitMilestone,
)
from domain.order_money import rail_of, refunds, refuse_held, releases
from domain.order_nudges import extend
from domain.order_state import AT_WORK, FINISHED, Line, Milestone, OrderState, Role
from domain.order_timers import unheard
from domain.order_turn import OrderTurn
from domain.payments import Transaction

WORKABLE = frozenset({"active", "changes_requested"})


def work_to_submit(state: OrderState, role: Role, actor_id: str) -> bool:
    """A milestone is being worked on that is not the last: the last goes with the completion, or alone."""
    return any(m.status in WORKABLE for m in state.milestones)


def work_to_judge(state: OrderState, role: Role, actor_id: str) -> bool:
    return any(m.status == "submitted" for m in state.milestones)


def completable(state: OrderState, role: Role, actor_id: str) -> bool:
    """Everything but the last milestone is finished, the last is at work or finished too, and no change is open."""
    if not state.milestones or any(c.status == "open" for c in state.changes):
        return False
    *former, last = state.milestones
    return last.status in AT_WORK | FINISHED and all(m.status in FINISHED for m in former)


def change_to_accept(state: OrderState, role: Role, actor_id: str) -> bool:
    return any(c.status == "open" and c.by != role for c in state.changes)


def not_rated(state: OrderState, role: Role, actor_id: str) -> bool:
    return role not in state.ratings


def _milestone(turn: OrderTurn, n: int, *statuses: str) -> Milestone:
    milestone = turn.state.milestone(n)
    if milestone is None:
        raise invalid("n", "unknown", "there is no such milestone")
    if milestone.status not in statuses:
        raise turn.conflict(f"milestone {n} is {milestone.status}", milestone={"n": n, "status": milestone.status})
    return milestone


def _enough_photos(turn: OrderTurn, photos: tuple[str, ...]) -> None:
    wanted = turn.policy.category(turn.state.category).photos_per_milestone
    if len(set(photos)) < wanted:
        raise invalid("photos", "too_few", f"this category asks for {wanted} photos")


def submit_milestone(turn: OrderTurn, work: SubmitMilestone) -> None:
    milestone = _milestone(turn, work.n, *WORKABLE)
    _enough_photos(turn, work.photos)
    turn.emit(
        ev.MilestoneSubmitted,
        milestone=work.n,
        submission_no=milestone.submission_no + 1,
        photos=work.photos,
        note=work.note,
    )


def approve_milestone(turn: OrderTurn, which: MilestoneRef) -> None:
    milestone = _milestone(turn, which.n, "submitted")
    refuse_held(turn, which.n)
    entries = releases(turn.state, which.n, turn.state.escrow(which.n))
    turn.emit(ev.MilestoneApproved, milestone=milestone.n, private=ev.Private(ledger=entries))


def auto_approve_milestone(turn: OrderTurn, which: Submission) -> None:
    """T21: silence is consent to exactly this submission, once somebody was reminded while there was time.

    "Reminded" means that the order said so by a nudge: there is no provider yet that would accept a push or a message.
    Where none was said before the review was due, it is put off, once.
    """
    milestone, state = _milestone(turn, which.n, "submitted"), turn.state
    if milestone.submission_no != which.submission_no:
        raise turn.conflict(f"submission {milestone.submission_no} is the one to be judged")
    refuse_held(turn, which.n)
    if unheard(state, "review", "review_nudge"):
        extend(turn, "review", turn.policy.unheard_extension_ms)
        return
    entries = releases(state, which.n, state.escrow(which.n))
    turn.emit(ev.MilestoneApproved, milestone=which.n, auto=True, private=ev.Private(ledger=entries))


def request_changes(turn: OrderTurn, wish: RequestChanges) -> None:
    """T22, and T27 where the whole work had been submitted: then the order goes on."""
    milestone, policy = _milestone(turn, wish.n, "submitted"), turn.policy
    finished = turn.state.state == "work_submitted"
    if milestone.rounds >= policy.change_rounds_max or (finished and turn.state.reworks >= policy.reworks_max):
        raise turn.conflict("no more rounds of changes; open a dispute instead")
    turn.emit(ev.ChangesRequested, to="in_progress", milestone=wish.n, items=wish.items)


def submit_completion(turn: OrderTurn, work: SubmitCompletion) -> None:
    last = turn.state.milestones[-1]
    if last.status in WORKABLE:
        _enough_photos(turn, work.photos)
    turn.emit(
        ev.WorkSubmitted,
        to="work_submitted",
        milestone=last.n,
        submission_no=last.submission_no + (last.status in WORKABLE),
        photos=work.photos or last.photos,
        note=work.note or last.note,
    )


def approve_completion(turn: OrderTurn, _: Nothing) -> None:
    """Releases whatever the order still has in escrow, milestone by milestone.

    By the platform itself as `auto_approve_milestone`: silence is consent, once somebody was reminded in time.
    """
    state, last, auto = turn.state, turn.state.milestones[-1], turn.role == "system"
    entries: list[Transaction] = []
    for milestone in state.milestones:
        refuse_held(turn, milestone.n)
        entries += releases(state, milestone.n, state.escrow(milestone.n))
    if auto and unheard(state, "final_auto_approve", "final_nudge"):
        extend(turn, "final_auto_approve", turn.policy.unheard_extension_ms)
        return
    private = ev.Private(ledger=tuple(entries))
    turn.emit(ev.Approved, to="approved", milestone=last.n, auto=auto, private=private)


def propose_change(turn: OrderTurn, wish: ProposeChange) -> None:
    state, contract = turn.state, turn.state.contract
    assert contract is not None
    if state.change(wish.change_id) is not None:
        raise invalid("change_id", "taken", "this id has been used")
    if len(state.changes) >= turn.policy.changes_max:
        raise turn.conflict("this order takes no more changes")
    if wish.contract_rev is not None and wish.contract_rev != contract.rev:
        raise turn.conflict(f"the contract is at revision {contract.rev}", contract_rev=contract.rev)
    lines = tuple(line.line() for line in wish.milestones)
    plan_of(state, lines)
    turn.emit(
        ev.ChangeProposed,
        change_id=wish.change_id,
        side=turn.side,
        contract_rev=contract.rev,
        milestones=lines,
    )


def plan_of(state: OrderState, lines: tuple[Line, ...]) -> tuple[Milestone, ...]:
    """The milestones as a change would have them: what is finished stays, what is paid may only become cheaper.

    Raises:
        Refusal: `invalid`, naming the milestone that cannot become what was asked.
    """
    plan: list[Milestone] = []
    for n, line in enumerate(lines, 1):
        old = state.milestone(n)
        if old is None or old.status == "planned":
            plan.append(Milestone(n, line.title, line.amount))
            continue
        field = f"milestones[{n - 1}].amount"
        if old.status in FINISHED and line.amount != old.amount:
            raise invalid(field, "finished", f"milestone {n} is {old.status}")
        if line.amount > old.amount:
            raise invalid(field, "paid", f"milestone {n} is paid: add what comes on top as a milestone of its own")
        if old.amount - line.amount > state.escrow(n) or (state.held_on(n) and line.amount != old.amount):
            raise invalid(field, "held", f"{state.escrow(n)} is in escrow for milestone {n}")
        plan.append(_renamed(old, line))
    for old in state.milestones[len(lines) :]:
        if old.status != "planned":
            raise invalid("milestones", "missing", f"milestone {old.n} is {old.status} and cannot be left out")
    if not plan or all(m.status in FINISHED for m in plan):
        raise invalid("milestones", "nothing_left", "a change leaves some work to do; else submit the completion")
    return tuple(plan)


def _renamed(old: Milestone, line: Line) -> Milestone:
    return Milestone(
        old.n,
        line.title,
        line.amount,
        old.status,
        old.submission_no,
        old.rounds,
        old.photos,
        old.note,
        old.approved_at,
    )


def accept_change(turn: OrderTurn, which: ChangeRef) -> None:
    state, contract = turn.state, turn.state.contract
    assert contract is not None
    change = state.change(which.change_id)
    if change is None:
        raise invalid("change_id", "unknown", "there is no such change")
    if change.status != "open" or change.by == turn.side or change.contract_rev != contract.rev:
        raise turn.conflict("this change is not yours to accept now", change={"id": change.id, "status": change.status})
    plan = plan_of(state, change.milestones)
    paying = next((p.milestone for p in state.payments if p.status == "processing"), None)
    if paying is not None:
        raise turn.conflict(f"a payment for milestone {paying} is being processed")
    entries: list[Transaction] = []
    for new in plan:
        old = state.milestone(new.n)
        if old is not None and old.status != "planned" and old.amount > new.amount:
            rail = rail_of(state, new.n)
            entries += refunds(turn, new.n, old.amount - new.amount, contract.currency, rail)
    turn.emit(
        ev.ChangeAccepted,
        change_id=change.id,
        contract_rev=contract.rev + 1,
        total=sum(m.amount for m in plan),
        currency=contract.currency,
        plan=plan,
        private=ev.Private(ledger=tuple(entries)),
    )


def rate(turn: OrderTurn, opinion: Rate) -> None:
    """Double-blind: what is said comes out with the second rating, for both at once."""
    state = turn.state
    if turn.now > state.rating_end(turn.policy.rating_window_ms):
        raise turn.conflict("the rating window is over")
    parties = {"customer": state.customer_id, "worker": turn.worker_id}
    other = "worker" if turn.side == "customer" else "customer"
    shown: tuple[ev.Revealed, ...] = ()
    if other in state.ratings:
        first = state.ratings[other]
        shown = (
            ev.Revealed(by=parties[other], to=parties[turn.side], stars=first.stars, text=first.text),
            ev.Revealed(by=parties[turn.side], to=parties[other], stars=opinion.stars, text=opinion.text),
        )
    turn.emit(ev.Rated, side=turn.side, ratings=shown, private=ev.Private(stars=opinion.stars, text=opinion.text))
