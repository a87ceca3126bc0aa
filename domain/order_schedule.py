"""When an order's timers go off: what each event starts, by the policy of its time."""

from typing import Final

from domain import order_events as ev
from domain.order_state import OrderState
from domain.policy import Moments, Policy
from domain.times import DAY_MS, parse_rfc3339

Schedule = dict[str, tuple[int, ...]]
"""Timer names, and when they go off in Unix milliseconds. No times: a timer of that name ends."""

THURSDAY: Final = 3
"""1 January 1970, with Monday as 0."""


def schedule(state: OrderState, event: ev.AnyEvent, policy: Policy, now_ms: int) -> Schedule:
    """The timers that begin with an event that happens now to an order that stands at `state`."""
    match event:
        case ev.Created():
            return {"draft_ttl": (now_ms + policy.draft_ttl_ms,)}
        case ev.Published():
            return _quoting(now_ms, now_ms + policy.quote_window_ms, policy)
        case ev.Reopened():
            return _quoting(now_ms, max(state.quoting_ends or now_ms, now_ms) + policy.quote_extension_ms, policy)
        case ev.Awarded():
            nudges = _after(now_ms, policy.deposit_nudge_ms)
            return {"deposit_nudge": nudges, "deposit_due": (now_ms + policy.deposit_due_ms,)}
        case ev.Funded():
            return _slot(now_ms, policy) | _escrow(event.milestone, event.escrow_deadline, policy, now_ms)
        case ev.MilestoneFunded():
            return _escrow(event.milestone, event.escrow_deadline, policy, now_ms)
        case ev.SlotConfirmed() | ev.CheckedIn() | ev.CheckedOut() | ev.WorkerNoShow():
            return _visiting(state, event, policy, now_ms)
        case ev.MilestoneSubmitted():
            nudges = _after(now_ms, policy.review_nudge_ms)
            return {"review_nudge": nudges, "review": (now_ms + policy.review_ms,)}
        case ev.WorkSubmitted():
            nudges = _after(now_ms, policy.final_nudge_ms)
            return {"final_nudge": nudges, "final_auto_approve": (now_ms + policy.final_auto_approve_ms,)}
        case ev.Approved():
            return _approved(state, policy, now_ms)
        case ev.DisputeOpened():
            return _disputed(event, policy, now_ms)
        case ev.DisputeAnswered():
            return {f"mediation:{event.dispute_id}": (now_ms + policy.mediation_ms,)}
        case _:
            return {}


def _after(at_ms: int, moments: Moments) -> tuple[int, ...]:
    return tuple(sorted({at_ms + moment for moment in moments}))


def _before(at_ms: int, moments: Moments, now_ms: int) -> tuple[int, ...]:
    """Those that are still to come."""
    return tuple(sorted({at_ms - moment for moment in moments if at_ms - moment > now_ms}))


def _quoting(now_ms: int, ends_ms: int, policy: Policy) -> Schedule:
    return {"no_quote_nudge": _after(now_ms, policy.no_quote_nudge_ms), "quote_window": (ends_ms,)}


def _slot(now_ms: int, policy: Policy) -> Schedule:
    return {
        "slot_nudge": _after(now_ms, policy.slot_nudge_ms),
        "slot_due": (now_ms + policy.slot_due_ms,),
        "slot_timeout": (now_ms + policy.slot_timeout_ms,),
    }


def _escrow(n: int, deadline: str, policy: Policy, now_ms: int) -> Schedule:
    """Before the rail lets go of this milestone's money."""
    ends_ms = parse_rfc3339(deadline)
    return {
        f"escrow_nudge:{n}": _before(ends_ms, policy.escrow_nudge_ms, now_ms),
        f"escrow_default:{n}": (ends_ms - policy.escrow_default_ms,),
    }


def _visiting(
    state: OrderState,
    event: ev.SlotConfirmed | ev.CheckedIn | ev.CheckedOut | ev.WorkerNoShow,
    policy: Policy,
    now_ms: int,
) -> Schedule:
    match event:
        case ev.SlotConfirmed():
            reminded = _before(parse_rfc3339(event.start), policy.visit_reminder_ms, now_ms)
            return {"visit_reminder": reminded, "no_show": (parse_rfc3339(event.end) + policy.no_show_ms,)}
        case ev.CheckedIn():
            return {"check_out_due": (now_ms + policy.check_out_ms,)} | _reviewable(state, policy, now_ms)
        case ev.CheckedOut():
            return {"next_visit_due": (now_ms + policy.next_visit_due_ms,)}
        case ev.WorkerNoShow() if event.state == "funded":
            return _slot(now_ms, policy)
        case ev.WorkerNoShow():
            return {"next_visit_due": (now_ms + policy.next_visit_due_ms,)} | _reviewable(state, policy, now_ms)


def _reviewable(state: OrderState, policy: Policy, now_ms: int) -> Schedule:
    """While the worker was expected the customer could not judge what was submitted: some time is left for that."""
    review, least = state.due.get("review"), now_ms + policy.unheard_extension_ms
    return {"review": (least,)} if review is not None and review.times[0] < least else {}


def _approved(state: OrderState, policy: Policy, now_ms: int) -> Schedule:
    rails = {payment.rail for payment in state.payments if payment.status == "held"}
    ends: Schedule = {"rating_window": (now_ms + policy.rating_window_ms,)}
    if rails <= set(policy.instant_payout_rails):
        ends["payout_due"] = (business_time(now_ms, policy.payout_ms),)
    return ends


def _disputed(event: ev.DisputeOpened, policy: Policy, now_ms: int) -> Schedule:
    """What a cancellation leaves in dispute nobody has claimed: silence decides nothing there, operations do."""
    if event.state == "cancelled":
        return {f"mediation:{event.dispute_id}": (now_ms + policy.mediation_ms,)}
    nudges = _after(now_ms, policy.respond_nudge_ms)
    due = business_time(now_ms, policy.respond_ms)
    return {f"respond_nudge:{event.dispute_id}": nudges, f"respond:{event.dispute_id}": (due,)}


def business_time(at_ms: int, duration_ms: int) -> int:
    """The instant a duration later, of which whole days count only from Monday to Friday (UTC)."""
    days, rest_ms = divmod(duration_ms, DAY_MS)
    while days:
        at_ms += DAY_MS
        days -= (at_ms // DAY_MS + THURSDAY) % 7 < 5
    return at_ms + rest_ms
