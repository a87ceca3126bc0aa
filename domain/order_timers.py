# ruff: noqa: E501 - one timer is one line
"""What an order does by itself: one table of its timers, and which of them run as things stand.

Events set timers (`order_schedule`) and freeze their times into the state. From there a timer lives as long as what it
waits for is still missing, and rests while it could do nothing: under a hold, or in a state that has no room for its
command. A timer that has rested runs again under a new fence, so that no reminder ever comes back as it was.

A terminal order has no timers, but for what a cancellation leaves behind: a dispute, and the money it holds.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from domain import order_events as ev
from domain.channels import stream_name
from domain.commands import Reminder
from domain.order_state import ON_THE_WAY, Due, OrderState, Role
from domain.times import parse_rfc3339, rfc3339

Judge = Callable[[OrderState, str], bool]
"""Asked with what follows the colon in a timer's name: the dispute or the milestone that it is about."""


def in_state(*names: str) -> Judge:
    return lambda state, key: state.state in names


def never(state: OrderState, key: str) -> bool:
    return False


def unquoted(state: OrderState, key: str) -> bool:
    return state.state == "open" and not any(q.status == "submitted" for q in state.quotes)


def processing(state: OrderState, key: str) -> bool:
    return any(p.status == "processing" for p in state.payments)


def held(state: OrderState, key: str) -> bool:
    return bool(state.holds)


def visit_ahead(state: OrderState, key: str) -> bool:
    return state.visit_in("confirmed", *ON_THE_WAY) is not None


def visit_begun(state: OrderState, key: str) -> bool:
    return state.visit_in("confirmed") is None or state.state not in ("scheduled", "in_progress")


def not_missing(state: OrderState, key: str) -> bool:
    """Nobody is expected now, or the worker has arrived."""
    return state.state not in ("scheduled", "en_route") or state.visit_in("confirmed", "en_route") is None


def checked_in(state: OrderState, key: str) -> bool:
    return state.visit_in("checked_in") is not None


def not_at_work(state: OrderState, key: str) -> bool:
    return state.state != "in_progress"


def under_review(state: OrderState, key: str) -> bool:
    at_work = state.state in ("in_progress", "scheduled", "en_route")
    return at_work and any(m.status == "submitted" for m in state.milestones)


def not_judged(state: OrderState, key: str) -> bool:
    """The customer could neither approve nor object now."""
    return state.state != "in_progress" or any(m.status == "submitted" and state.held_on(m.n) for m in state.milestones)


def unsettled(state: OrderState, key: str) -> bool:
    return state.state != "settled" or bool(state.holds)


def unanswered(state: OrderState, key: str) -> bool:
    dispute = state.dispute(key)
    return dispute is not None and dispute.status == "open"


def undecided(state: OrderState, key: str) -> bool:
    dispute = state.dispute(key)
    return dispute is not None and dispute.status != "decided"


def in_escrow(state: OrderState, key: str) -> bool:
    return state.escrow(int(key)) > 0


Say = Callable[[OrderState, str], dict[str, Any]]


def nothing(state: OrderState, key: str) -> dict[str, Any]:
    return {}


def missed_visit(state: OrderState, key: str) -> dict[str, Any]:
    visit = state.visit_in("confirmed", "en_route")
    return {"visit_id": visit.id if visit else ""}


def visit_inside(state: OrderState, key: str) -> dict[str, Any]:
    visit = state.visit_in("checked_in")
    return {"visit_id": visit.id if visit else ""}


def submission(state: OrderState, key: str) -> dict[str, Any]:
    milestone = next(m for m in state.milestones if m.status == "submitted")
    return {"n": milestone.n, "submission_no": milestone.submission_no}


def payout_id(state: OrderState, key: str) -> dict[str, Any]:
    return {"psp_event_id": f"payout-{state.id}"}


def dispute_id(state: OrderState, key: str) -> dict[str, Any]:
    return {"dispute_id": key}


def milestone_n(state: OrderState, key: str) -> dict[str, Any]:
    return {"n": int(key)}


Roles = frozenset[Role]
C: Final[Roles] = frozenset({"customer"})
W: Final[Roles] = frozenset({"worker"})
B: Final[Roles] = frozenset({"bidder"})
A: Final[Roles] = frozenset({"ops"})


class Timer(NamedTuple):
    """`lives`, `rests`: see the module. `concerns` are those who are reminded, or who see when it goes off."""

    command: str
    concerns: Roles
    lives: Judge
    rests: Judge = never
    payload: Say = nothing


NUDGE: Final = "nudge"

# fmt: off
TIMERS: Final = {
    # name                      command                   concerns   lives                           rests           payload
    "draft_ttl":          Timer("expire",                 C,         in_state("draft")),
    "quote_window":       Timer("expire",                 C | B,     in_state("open")),
    "no_quote_nudge":     Timer(NUDGE,                    C,         unquoted),
    "deposit_nudge":      Timer(NUDGE,                    C,         in_state("awarded"),            processing),
    "deposit_due":        Timer("deposit_timeout",        C | W,     in_state("awarded")),
    "slot_nudge":         Timer(NUDGE,                    C | W,     in_state("funded")),
    "slot_due":           Timer(NUDGE,                    A,         in_state("funded")),
    "slot_timeout":       Timer("slot_timeout",           C | W,     in_state("funded"),             held),
    "visit_reminder":     Timer(NUDGE,                    C | W,     visit_ahead,                    visit_begun),
    "no_show":            Timer("worker_no_show",         C | W,     visit_ahead,                    not_missing,    missed_visit),
    "check_out_due":      Timer("check_out",              W,         checked_in,                     not_at_work,    visit_inside),
    "next_visit_due":     Timer(NUDGE,                    C | W,     in_state("in_progress")),
    "review_nudge":       Timer(NUDGE,                    C,         under_review,                   not_judged),
    "review":             Timer("auto_approve_milestone", C | W,     under_review,                   not_judged,     submission),
    "final_nudge":        Timer(NUDGE,                    C,         in_state("work_submitted"),     held),
    "final_auto_approve": Timer("approve_completion",     C | W,     in_state("work_submitted"),     held),
    "payout_due":         Timer("payouts_confirmed",      W,         in_state("approved"),           held,           payout_id),
    "rating_window":      Timer("close",                  C | W,     in_state("approved", "settled"), unsettled),
    "respond_nudge":      Timer(NUDGE,                    C | W,     unanswered),
    "respond":            Timer("dispute_default",        C | W,     unanswered,                     never,          dispute_id),
    "mediation":          Timer(NUDGE,                    A,         undecided),
    "escrow_nudge":       Timer(NUDGE,                    C | W | A, in_escrow),
    "escrow_default":     Timer("escrow_expiring",        C | W,     in_escrow,                      never,          milestone_n),
}
# fmt: on
"""All timers. A name in the state may go on after a colon with what it is about, where there can be several at a time."""


def _timer(name: str) -> tuple[Timer, str]:
    word, _, key = name.partition(":")
    return TIMERS[word], key


def concerned(state: OrderState, name: str) -> tuple[Role, ...]:
    """Whom the timer concerns, in a fixed order; of a dispute's nudge, the side that has not answered."""
    timer, key = _timer(name)
    roles = timer.concerns
    dispute = state.dispute(key) if name.startswith("respond_nudge:") else None
    if dispute is not None:
        roles = W if dispute.by == "customer" else C
    return tuple(sorted(roles))


def running(state: OrderState) -> list[str]:
    """The names of the timers that run now, next first."""
    found = []
    for name, due in state.due.items():
        timer, key = _timer(name)
        if due.times and not timer.rests(state, key):
            found.append((due.times[0], name))
    return [name for _, name in sorted(found)]


def reminders(state: OrderState) -> tuple[Reminder, ...]:
    """The reminders of the timers that run now; each is due at the next of its times."""
    stream, found = stream_name("order", state.id), []
    for name in running(state):
        (timer, key), due = _timer(name), state.due[name]
        payload = {"reminder": name} if timer.command == NUDGE else timer.payload(state, key)
        body = msgspec.json.encode(payload)
        found.append(Reminder(stream, name, due.times[0], due.fence, timer.command, body))
    return tuple(found)


def timer_views(state: OrderState, role: Role) -> list[dict[str, Any]]:
    """What runs and concerns the role; operations see all of it."""
    seen = [name for name in running(state) if role == "ops" or role in concerned(state, name)]
    return [{"name": name, "due_at": rfc3339(state.due[name].times[0])} for name in seen]


def unheard(state: OrderState, name: str, nudge: str) -> bool:
    """Silence is not yet consent: nobody was reminded before the timer was due, and it was not put off for that yet."""
    due, said = state.due.get(name), state.due.get(nudge)
    if due is None or not due.times or due.extensions:
        return False
    return said is None or said.said == 0 or said.said >= due.times[0]


def timers_after(before: OrderState, after: OrderState, event: ev.AnyEvent, at: int) -> dict[str, Due]:
    """The timers of the state `after` the event: those it sets or moves, less those that have nothing to wait for."""
    due = dict(before.due)
    if event.private is not None:
        due.update((name, Due(times, event.version)) for name, times in event.private.due.items())
    if isinstance(event, ev.Nudged):
        due[event.reminder] = _said(due[event.reminder], at)
    if isinstance(event, ev.Extended):
        old = due.get(event.reminder, Due((), 0))
        until = (parse_rfc3339(event.until),)
        due[event.reminder] = replace(old, times=until, fence=event.version, extensions=old.extensions + 1)
    return {name: _refenced(name, item, before, after) for name, item in due.items() if _lives(name, item, after)}


def _said(due: Due, at: int) -> Due:
    """Said once for all of its times that have passed: after an outage nobody is told the same thing three times."""
    return replace(due, times=tuple(time for time in due.times[1:] if time > at), said=due.said or at)


def _lives(name: str, due: Due, state: OrderState) -> bool:
    timer, key = _timer(name)
    return bool(due.times or due.said) and timer.lives(state, key)


def _refenced(name: str, due: Due, before: OrderState, after: OrderState) -> Due:
    """A reminder that is set again must not equal the one that was taken back: whoever drops that one drops no other."""
    timer, key = _timer(name)
    rested = name in before.due and timer.rests(before, key) and not timer.rests(after, key)
    return replace(due, fence=after.version) if rested else due
