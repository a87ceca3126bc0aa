"""The worker comes to the site: slots, the trip, the check-in by code, the check-out (T10 … T17)."""

from domain import order_events as ev
from domain.errors import Refusal, invalid
from domain.geo import distance_m
from domain.order_commands import CheckIn, FixInput, OnVisit, ProposeSlot, VisitRef, wrong
from domain.order_state import FINISHED, ON_THE_WAY, OrderState, Role, Visit
from domain.order_turn import OrderTurn
from domain.times import epoch_ms, rfc3339


def other_proposed(state: OrderState, role: Role, actor_id: str) -> bool:
    """A slot waits for the caller's side to confirm it."""
    return any(v.status == "proposed" and v.proposed_by != role for v in state.visits)


def visit_confirmed(state: OrderState, role: Role, actor_id: str) -> bool:
    return state.visit_in("confirmed") is not None


def visit_on_the_way(state: OrderState, role: Role, actor_id: str) -> bool:
    return state.visit_in("en_route") is not None


def visit_travelling(state: OrderState, role: Role, actor_id: str) -> bool:
    return state.visit_in(*ON_THE_WAY) is not None


def visit_expected(state: OrderState, role: Role, actor_id: str) -> bool:
    return state.visit_in("confirmed", *ON_THE_WAY) is not None


def visit_checked_in(state: OrderState, role: Role, actor_id: str) -> bool:
    return state.visit_in("checked_in") is not None


def _known_visit(turn: OrderTurn, visit_id: str, *statuses: str) -> Visit:
    visit = turn.state.visit(visit_id)
    if visit is None:
        raise invalid("visit_id", "unknown", "there is no such visit")
    if visit.status not in statuses:
        raise turn.conflict(f"the visit is {visit.status}", visit={"id": visit.id, "status": visit.status})
    return visit


def propose_slot(turn: OrderTurn, wish: ProposeSlot) -> None:
    state, policy = turn.state, turn.policy
    if state.visit(wish.visit_id) is not None:
        raise invalid("visit_id", "taken", "this id has been used")
    if len(state.visits) >= policy.visits_max:
        raise turn.conflict("this order takes no more visits")
    start, end = epoch_ms(wish.start), epoch_ms(wish.end)
    notice = policy.notice_ms(state.category)
    if end <= start:
        raise invalid("end", "not_after_start", "the end is not after the start")
    if end - start > policy.slot_max_ms:
        raise invalid("end", "too_long", f"a slot is at most {policy.slot_max_ms // 3_600_000} hours")
    if start < turn.now + notice - policy.slot_clock_slack_ms:
        raise invalid("start", "too_soon", f"a slot begins {notice // 60_000} minutes from now or later")
    _within_escrow(turn, end)
    turn.emit(ev.SlotProposed, visit_id=wish.visit_id, start=rfc3339(start), end=rfc3339(end), side=turn.side)


def _within_escrow(turn: OrderTurn, end: int) -> None:
    latest = turn.now + turn.policy.slot_horizon_ms
    if turn.state.escrow_deadline is not None:
        latest = min(latest, turn.state.escrow_deadline - turn.policy.escrow_margin_ms)
    if end >= latest:
        raise invalid("end", "too_late", f"the money is held safely only until {rfc3339(latest)}")


def confirm_slot(turn: OrderTurn, which: VisitRef) -> None:
    state, policy = turn.state, turn.policy
    visit = _known_visit(turn, which.visit_id, "proposed")
    if visit.proposed_by == turn.side:
        raise turn.conflict("who proposes a slot cannot confirm it", visit={"id": visit.id, "status": visit.status})
    notice = policy.notice_ms(state.category)
    if notice and visit.start < turn.now + notice - policy.slot_answer_grace_ms:
        raise invalid("visit_id", "too_soon", "the slot is too near by now; propose a later one")
    if visit.end <= turn.now:
        raise invalid("visit_id", "past", "the slot is over")
    _within_escrow(turn, visit.end)
    if (what := turn.lacking(turn.worker_id, visit.start)) is not None:
        raise turn.conflict(f"the worker has no document that is approved until then: {what}", visit={"id": visit.id})
    replaced = state.visit_in("confirmed")
    if replaced is not None and state.reschedules.get(visit.proposed_by, 0) >= policy.reschedules_max:
        raise turn.conflict(f"each side may reschedule {policy.reschedules_max} times")
    turn.emit(
        ev.SlotConfirmed,
        to="in_progress" if state.visit_in("checked_in") else "scheduled",
        private=ev.Private(code=turn.secret_digits(visit.id)),
        visit_id=visit.id,
        start=rfc3339(visit.start),
        end=rfc3339(visit.end),
        replaces=replaced.id if replaced else None,
    )


def _judge_fix(turn: OrderTurn, fix: FixInput) -> None:
    """The guards of a command's own fix on age and accuracy; distance is judged by who needs it."""
    age = turn.now - epoch_ms(fix.at)
    if abs(age) > turn.policy.fix_age_max_ms:
        raise invalid("fix.at", "stale", f"the fix is {age / 1000:.0f} s old, and 30 s is the limit")
    if fix.accuracy_m > turn.policy.fix_accuracy_max_m:
        limit = turn.policy.fix_accuracy_max_m
        raise invalid(
            "fix.accuracy_m", "inaccurate", f"accurate to {fix.accuracy_m:.0f} m, and {limit:.0f} m is the limit"
        )


def _near(turn: OrderTurn, fix: FixInput | None, limit_m: float) -> None:
    site = turn.state.site
    if fix is None or site is None:
        return
    away = distance_m(fix.lat, fix.lon, site.lat, site.lon)
    if away > limit_m:
        raise invalid("fix", "too_far", f"{away:.0f} m from the site, and {limit_m:.0f} m is the limit")


def start_trip(turn: OrderTurn, wish: OnVisit) -> None:
    visit, policy = _known_visit(turn, wish.visit_id, "confirmed"), turn.policy
    if not visit.start - policy.trip_early_ms <= turn.now <= visit.end:
        window = f"{rfc3339(visit.start - policy.trip_early_ms)} to {rfc3339(visit.end)}"
        raise turn.conflict(f"a trip to this visit may start from {window}")
    if wish.fix is not None:
        _judge_fix(turn, wish.fix)
    turn.emit(ev.TripStarted, to="en_route", visit_id=visit.id)


def abort_trip(turn: OrderTurn, wish: OnVisit) -> None:
    visit = _known_visit(turn, wish.visit_id, *ON_THE_WAY)
    turn.emit(ev.TripAborted, to="scheduled", visit_id=visit.id, reason=wish.reason)


def arrived(turn: OrderTurn, wish: OnVisit) -> None:
    visit = _known_visit(turn, wish.visit_id, "en_route")
    _near(turn, wish.fix, turn.policy.arrived_within_m)
    turn.emit(ev.Arrived, visit_id=visit.id)


def check_in(turn: OrderTurn, wish: CheckIn) -> None:
    """The code counts: a wrong one is remembered, and after five of them no code opens the door any more.

    The same wrong code under the same command id is a retry, not another try.
    """
    visit, limit = _known_visit(turn, wish.visit_id, "confirmed", *ON_THE_WAY), turn.policy.code_tries_max
    _near(turn, wish.fix, turn.policy.check_in_within_m)
    tried = f"{turn.command.command_id}:{wish.code}"
    if tried in visit.tries:
        raise Refusal.of(wrong("code", "wrong", _tries_left(limit - len(visit.tries))))
    if len(visit.tries) >= limit:
        raise invalid("code", "locked", _tries_left(0))
    if wish.code != visit.code:
        left = limit - len(visit.tries) - 1
        turn.emit(ev.CodeRefused, visit_id=visit.id, tries_left=left, private=ev.Private(tried=tried))
        turn.refuse_after(wrong("code", "wrong", _tries_left(left)))
        return
    _enter(turn, visit)


def _tries_left(left: int) -> str:
    return f"not the code; {left} tries left" if left else "no tries left: the customer can confirm the check-in"


def code_tried(state: OrderState, role: Role, actor_id: str) -> bool:
    """Someone stands at the door with a wrong code."""
    visit = state.visit_in("confirmed", *ON_THE_WAY)
    return visit is not None and len(visit.tries) > 0


def confirm_check_in(turn: OrderTurn, which: VisitRef) -> None:
    """The customer opens the door themselves, where the code did not."""
    _enter(turn, _known_visit(turn, which.visit_id, "confirmed", *ON_THE_WAY))


def _enter(turn: OrderTurn, visit: Visit) -> None:
    state = turn.state
    begins = None
    if not any(m.status in ("active", "submitted", "changes_requested") for m in state.milestones):
        begins = next((m.n for m in state.milestones if m.status not in FINISHED and m.status == "funded"), None)
    turn.emit(ev.CheckedIn, to="in_progress", visit_id=visit.id, milestone=begins)


def visit_missed(state: OrderState, role: Role, actor_id: str) -> bool:
    """A worker was or is expected and has not arrived; whether for long enough is said when it is claimed."""
    return state.visit_in("confirmed", "en_route") is not None


def worker_no_show(turn: OrderTurn, which: VisitRef) -> None:
    """T17. The visit is void and the worker gets a strike; the customer may agree on another one, or cancel for nothing.

    Work that had begun goes on being in progress; an order without any is where it was when the deposit had been paid.
    """
    visit, state = _known_visit(turn, which.visit_id, "confirmed", "en_route"), turn.state
    due = state.due.get("no_show")
    missed_at = due.times[0] if due is not None and due.times else visit.end + turn.policy.no_show_ms
    if turn.role == "customer" and turn.now < missed_at:
        raise turn.conflict(f"the worker may still come until {rfc3339(missed_at)}")
    turn.emit(
        ev.WorkerNoShow,
        to="in_progress" if state.begun else "funded",
        visit_id=visit.id,
        private=ev.Private(worker_id=turn.worker_id, strikes=1),
    )


def check_out(turn: OrderTurn, wish: OnVisit) -> None:
    visit = _known_visit(turn, wish.visit_id, "checked_in")
    later = turn.state.visit_in("confirmed") is not None
    turn.emit(ev.CheckedOut, to="scheduled" if later else "in_progress", visit_id=visit.id)
