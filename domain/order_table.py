# ruff: noqa: E501 - one transition is one line
"""The order machine as one table: which command leads from which states to which, who may give it, and what decides it.

Reading a row: `Row(command, from, to, who, payload, decide, when)`. `to` lists the states in which the order can be after
an accepted command; `SAME` is the state it was in. `when` is what must stand beside the state for the command to make
sense at all: where it does not hold the command is an invalid transition, as in a wrong state. All other guards, those that
depend on the payload, the time or the account, live in the decide functions.

Commands of the platform itself have no user among `who`, or are not `listed`: they are never offered to clients.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from domain.order_commands import (
    AcceptQuote,
    Cancel,
    ChangeRef,
    CheckIn,
    Create,
    DecideDispute,
    DepositFailed,
    DepositHeld,
    DisputeRef,
    MilestoneRef,
    Nothing,
    Nudge,
    OnVisit,
    OpenDispute,
    ProposeChange,
    ProposeSlot,
    PspEvent,
    QuoteRef,
    Rate,
    RefundPaid,
    RequestChanges,
    RespondDispute,
    StartPayment,
    Submission,
    SubmitCompletion,
    SubmitMilestone,
    SubmitQuote,
    VisitRef,
)
from domain.order_disputes import (
    decide_dispute,
    dispute_default,
    dispute_to_answer,
    dispute_to_decide,
    escrow_expiring,
    money_to_dispute,
    open_dispute,
    respond_dispute,
)
from domain.order_hiring import (
    accept_quote,
    create,
    deposit_timeout,
    expire,
    has_live_quote,
    may_quote,
    publish,
    reject_quote,
    submit_quote,
    withdraw_quote,
)
from domain.order_money import (
    cancel,
    close,
    deposit_failed,
    deposit_held,
    may_cancel,
    payment_due,
    payouts_confirmed,
    refund_paid,
    slot_timeout,
    start_payment,
)
from domain.order_nudges import nudge
from domain.order_state import OrderState, Role
from domain.order_turn import OrderTurn
from domain.order_visits import (
    abort_trip,
    arrived,
    check_in,
    check_out,
    code_tried,
    confirm_check_in,
    confirm_slot,
    other_proposed,
    propose_slot,
    start_trip,
    visit_checked_in,
    visit_confirmed,
    visit_expected,
    visit_missed,
    visit_on_the_way,
    visit_travelling,
    worker_no_show,
)
from domain.order_work import (
    accept_change,
    approve_completion,
    approve_milestone,
    auto_approve_milestone,
    change_to_accept,
    completable,
    not_rated,
    propose_change,
    rate,
    request_changes,
    submit_completion,
    submit_milestone,
    work_to_judge,
    work_to_submit,
)

WHO: Final[dict[str, Role]] = {"C": "customer", "W": "worker", "B": "bidder", "A": "ops", "P": "psp", "S": "system"}
"""Customer, hired worker, bidder, operations, payment provider, the platform itself."""

STATES: Final = (
    "draft", "open", "awarded", "funded", "scheduled", "en_route", "in_progress", "work_submitted", "approved",
    "settled", "closed", "cancelled", "expired",
)  # fmt: skip
"""All states of an order; the empty state, before it exists, is not one."""

TERMINAL: Final = frozenset({"closed", "cancelled", "expired"})
NEW: Final = ""
SAME: Final = "same"
PAID: Final = "funded scheduled en_route in_progress work_submitted approved settled"
OVER: Final = " closed cancelled"
PAYABLE: Final = "awarded scheduled en_route in_progress"
PLANNABLE: Final = "funded scheduled in_progress"
UNFINISHED: Final = "draft open awarded funded scheduled en_route in_progress"
EVERY: Final = " ".join(STATES)


def always(state: OrderState, role: Role, actor_id: str) -> bool:
    return True


class Row(NamedTuple):
    """One transition. `states` and `to` are sets of state names; `when` judges (state, role, actor id)."""

    command: str
    states: frozenset[str]
    to: frozenset[str]
    who: frozenset[Role]
    payload: type[msgspec.Struct]
    decide: Callable[[OrderTurn, Any], None]
    when: Callable[[OrderState, Role, str], bool]
    listed: bool


def row(
    command: str,
    states: str,
    to: str,
    who: str,
    payload: type[msgspec.Struct],
    decide: Callable[[OrderTurn, Any], None],
    when: Callable[[OrderState, Role, str], bool] = always,
    listed: bool = True,
) -> Row:
    names = frozenset(states.split()) if states else frozenset({NEW})
    return Row(
        command, names, frozenset(to.split()), frozenset(WHO[letter] for letter in who), payload, decide, when, listed
    )


# fmt: off
TABLE: Final = (
    # command                 from                          to                       who     payload           decide              when
    row("create",             NEW,                          "draft open",            "C",    Create,           create,             listed=False),
    row("publish",            "draft",                      "open",                  "C",    Nothing,          publish),
    row("submit_quote",       "open",                       SAME,                    "BW",   SubmitQuote,      submit_quote,       may_quote),
    row("withdraw_quote",     "open",                       SAME,                    "BW",   QuoteRef,         withdraw_quote,     has_live_quote),
    row("reject_quote",       "open",                       SAME,                    "C",    QuoteRef,         reject_quote,       has_live_quote),
    row("accept_quote",       "open",                       "awarded",               "C",    AcceptQuote,      accept_quote,       has_live_quote),
    row("expire",             "draft open",                 "expired",               "S",    Nothing,          expire),

    row("start_payment",      PAYABLE,                      SAME,                    "C",    StartPayment,     start_payment,      payment_due, listed=False),
    row("deposit_held",       EVERY,                        "funded same",           "P",    DepositHeld,      deposit_held),
    row("deposit_failed",     EVERY,                        "open same",             "P",    DepositFailed,    deposit_failed),
    row("deposit_timeout",    "awarded",                    "open same",             "S",    Nothing,          deposit_timeout),
    row("refund_paid",        EVERY,                        SAME,                    "P",    RefundPaid,       refund_paid),

    row("propose_slot",       PLANNABLE,                    SAME,                    "CW",   ProposeSlot,      propose_slot),
    row("confirm_slot",       PLANNABLE,                    "scheduled in_progress", "CW",   VisitRef,         confirm_slot,       other_proposed),
    row("start_trip",         "scheduled",                  "en_route",              "W",    OnVisit,          start_trip,         visit_confirmed),
    row("abort_trip",         "en_route",                   "scheduled",             "W",    OnVisit,          abort_trip,         visit_travelling),
    row("arrived",            "en_route",                   SAME,                    "W",    OnVisit,          arrived,            visit_on_the_way),
    row("check_in",           "scheduled en_route",         "in_progress same",      "W",    CheckIn,          check_in,           visit_expected),
    row("confirm_check_in",   "scheduled en_route",         "in_progress",           "C",    VisitRef,         confirm_check_in,   code_tried),
    row("check_out",          "in_progress",                "in_progress scheduled", "WS",   OnVisit,          check_out,          visit_checked_in),
    row("worker_no_show",     "scheduled en_route",         "funded in_progress",    "CS",   VisitRef,         worker_no_show,     visit_missed),
    row("slot_timeout",       "funded",                     "cancelled",             "S",    Nothing,          slot_timeout),

    row("submit_milestone",   "in_progress",                SAME,                    "W",    SubmitMilestone,  submit_milestone,   work_to_submit),
    row("approve_milestone",  "in_progress",                SAME,                    "C",    MilestoneRef,     approve_milestone,  work_to_judge),
    row("auto_approve_milestone", "in_progress",            SAME,                    "S",    Submission,       auto_approve_milestone, work_to_judge),
    row("request_changes",    "in_progress work_submitted", "in_progress",           "C",    RequestChanges,   request_changes,    work_to_judge),
    row("propose_change",     "in_progress",                SAME,                    "CW",   ProposeChange,    propose_change),
    row("accept_change",      "in_progress",                SAME,                    "CW",   ChangeRef,        accept_change,      change_to_accept),
    row("submit_completion",  "in_progress",                "work_submitted",        "W",    SubmitCompletion, submit_completion,  completable),
    row("approve_completion", "work_submitted",             "approved same",         "CSA",  Nothing,          approve_completion),
    row("payouts_confirmed",  "approved",                   "settled",               "PS",   PspEvent,         payouts_confirmed),
    row("close",              "settled",                    "closed",                "S",    Nothing,          close),
    row("rate",               "approved settled closed",    SAME,                    "CW",   Rate,             rate,               not_rated),

    row("cancel",             UNFINISHED,                   "cancelled open",        "CWBA", Cancel,           cancel,             may_cancel),
    row("open_dispute",       PAID,                         SAME,                    "CW",   OpenDispute,      open_dispute,       money_to_dispute),
    row("respond_dispute",    PAID + OVER,                  SAME,                    "CW",   RespondDispute,   respond_dispute,    dispute_to_answer),
    row("decide_dispute",     PAID + OVER,                  SAME,                    "A",    DecideDispute,    decide_dispute,     dispute_to_decide),
    row("dispute_default",    PAID + OVER,                  SAME,                    "S",    DisputeRef,       dispute_default,    dispute_to_decide),
    row("escrow_expiring",    PAID + OVER,                  "cancelled same",        "S",    MilestoneRef,     escrow_expiring),

    row("nudge",              EVERY,                        SAME,                    "S",    Nudge,            nudge),
)
# fmt: on

ROWS: Final = {entry.command: entry for entry in TABLE}

USERS: Final = frozenset({"customer", "worker", "bidder", "ops"})

CLIENT_COMMANDS: Final = frozenset(r.command for r in TABLE if r.listed and r.who & USERS)
"""What clients may send as commands. `create` and `start_payment` have routes of their own."""


OPS_COMMANDS: Final = frozenset(r.command for r in TABLE if "ops" in r.who)
"""What an order lets operators command: their acts are written down."""


def client_name(command: str) -> str:
    """The name under which a client's command is looked up: what has a route of its own is no command to clients."""
    row = ROWS.get(command)
    routed = row is not None and row.who & USERS and command not in CLIENT_COMMANDS
    return f"{command} (not for clients)" if routed else command


PLANNED: Final = frozenset(
    {
        "late_deposit", "reschedule", "customer_no_show", "request_rework", "chargeback_opened", "chargeback_closed",
        "override",
    }
)  # fmt: skip
"""Commands of the marketplace's rules that this machine knows by name and never allows.

Some of them happen under other names: a late deposit by `deposit_held`, a new time for a visit by `confirm_slot`, rework by
`request_changes`.
"""


def allowed_commands(state: OrderState, role: Role, actor_id: str) -> tuple[str, ...]:
    """What the caller could do now, in the table's order. Nothing here is ever refused as an invalid transition."""
    return tuple(
        r.command
        for r in TABLE
        if r.listed and role in r.who and state.state in r.states and r.when(state, role, actor_id)
    )
