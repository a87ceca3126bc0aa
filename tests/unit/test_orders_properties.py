# ruff: noqa: PT017 - a refusal is one of two ordinary outcomes here
"""What holds for an order whatever anybody does in whatever order: hypothesis plays the people, the provider and time."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.commands import Command
from domain.errors import Code, Refusal
from domain.order_events import Awarded, DisputeDecided, Funded, Nudged, chain
from domain.order_table import PLANNED, ROWS, SAME, STATES, TABLE
from domain.order_turn import held_keys
from domain.times import DAY_MS, HOUR_MS, MINUTE_MS, rfc3339
from tests.unit.order_world import ACTORS, ORDER, World, make_id

USERS = ("anna", "ben", "eve", "zoe", "opal")
AMOUNTS = ((50_000,), (15_000, 35_000), (3, 7), (1, 1, 8))
QUOTED = ({"title": "a", "amount": 9_000}, {"title": "b", "amount": 40_000}, {"title": "c", "amount": 5})
BY_WHOM = {
    "psp": [r.command for r in TABLE if "psp" in r.who],
    "system": [r.command for r in TABLE if "system" in r.who],
}

RARE = frozenset(
    {
        "cancel",
        "expire",
        "withdraw_quote",
        "reject_quote",
        "open_dispute",
        "propose_change",
        "deposit_failed",
        "deposit_timeout",
        "close",
        "payouts_confirmed",
        "refund_paid",
        "abort_trip",
        "slot_timeout",
        "worker_no_show",
        "dispute_default",
        "escrow_expiring",
    }
)
"""What ends things, or turns them aside: drawn seldom, so that orders live long."""


class Moves:
    """Draws commands that make some sense, and some that make none."""

    def __init__(self, world: World, pick: Callable[[Any], Any], number: Callable[[int, int], int]) -> None:
        self.world = world
        self.pick = pick
        self.number = number

    def next(self) -> tuple[str, str, int | None, dict[str, Any]]:
        world = self.world
        who = self.pick(("anna", "ben") * 5 + (*USERS, "psp", "psp", "system"))
        if who in BY_WHOM:
            names = BY_WHOM[who]
        else:
            view = world.view(who)
            names = view["allowed_commands"] if view else []
            if who == "anna" and world.state.milestone_due is not None:
                names = [*names, "start_payment", "start_payment"]
        if not names or self.number(0, 14) == 0:
            names = [*ROWS, *PLANNED, "explode"]
        elif self.number(0, 9):
            names = [n for n in names if n not in RARE] or ["explode"]
        name = self.pick(names)
        return who, name, self.version(name), self.payload(name)

    def version(self, name: str) -> int | None:
        current = self.world.state.version
        if name == "accept_quote":
            return self.pick((current, current, current, current - 1, None))
        return self.pick((None, None, None, current, current + 1)) if self.number(0, 9) == 0 else None

    def one_of(self, items: Any) -> Any:
        return self.pick([*(i.id for i in items), make_id(0x77)]) if items else make_id(0x77)

    def payload(self, name: str) -> dict[str, Any]:
        world, state = self.world, self.world.state
        match name:
            case "create":
                return world.wish(publish=self.pick((True, False)))
            case "submit_quote":
                lines = [{"title": f"p{n}", "amount": a} for n, a in enumerate(self.pick(AMOUNTS), 1)]
                quote_id = self.pick([world.new_id(), *(q.id for q in state.quotes)])
                rev = 1 + max((q.rev for q in state.quotes), default=0)
                return {"quote_id": quote_id, "rev": rev, "milestones": lines, "currency": "CNY"}
            case "withdraw_quote" | "reject_quote":
                return {"quote_id": self.one_of(state.quotes)}
            case "accept_quote":
                quote = self.pick(state.quotes) if state.quotes else None
                return {"quote_id": quote.id if quote else make_id(0x77), "rev": quote.rev if quote else 1}
            case "start_payment":
                return {
                    "payment_id": self.pick([world.new_id(), *(p.id for p in state.payments)]),
                    "milestone": state.milestone_due or self.number(1, 3),
                    "rail": "sandbox",
                }
            case "deposit_held" | "deposit_failed":
                payment = self.pick(state.payments) if state.payments else None
                news: dict[str, Any] = {
                    "payment_id": payment.id if payment else make_id(0x77),
                    "psp_event_id": f"e{self.number(0, 40)}",
                }
                if name == "deposit_held":
                    news |= {"amount": payment.amount if payment else 1, "currency": "CNY"}
                return news
            case "refund_paid":
                return {"milestone": 1, "amount": self.number(1, 50), "currency": "CNY", "psp_event_id": world.new_id()}
            case "propose_slot":
                start = world.now + self.number(1, 40) * HOUR_MS
                end = start + self.number(1, 30) * 10 * MINUTE_MS
                return {"visit_id": world.new_id(), "start": rfc3339(start), "end": rfc3339(end)}
            case "check_in":
                visit = self.pick(state.visits) if state.visits else None
                code = visit.code if visit and self.number(0, 2) else "none"
                return {"visit_id": visit.id if visit else make_id(0x77), "code": code}
            case "confirm_slot" | "start_trip" | "abort_trip" | "arrived" | "check_out" | "confirm_check_in":
                return {"visit_id": self.one_of(state.visits)}
            case "worker_no_show":
                return {"visit_id": self.one_of(state.visits)}
            case "auto_approve_milestone":
                n = self.number(1, max(1, len(state.milestones)))
                return {"n": n, "submission_no": self.number(1, 2)}
            case "nudge":
                return {"reminder": self.pick([*state.due, "deposit_nudge", "explode", "respond:"])}
            case "submit_milestone" | "approve_milestone" | "escrow_expiring":
                return {"n": self.number(1, max(1, len(state.milestones)))}
            case "request_changes":
                return {"n": self.number(1, max(1, len(state.milestones))), "items": ["seal"]}
            case "propose_change":
                lines = [{"title": m.title, "amount": m.amount} for m in state.milestones]
                lines = lines[: self.number(1, 3)] + list(QUOTED[: self.number(0, 2)])
                if lines and lines[0]["amount"] > 1 and self.number(0, 1):
                    lines[0] = {**lines[0], "amount": lines[0]["amount"] - 1}
                return {"change_id": world.new_id(), "milestones": lines}
            case "accept_change":
                return {"change_id": self.one_of(state.changes)}
            case "open_dispute":
                n = self.number(1, max(1, len(state.milestones)))
                amount = self.number(1, max(1, state.escrow(n)))
                return {"dispute_id": world.new_id(), "n": n, "amount": amount, "reason": "scratched"}
            case "dispute_default":
                return {"dispute_id": self.one_of(state.disputes)}
            case "respond_dispute":
                return {"dispute_id": self.one_of(state.disputes), "text": "no"}
            case "decide_dispute":
                dispute = self.pick(state.disputes) if state.disputes else None
                amount = dispute.amount if dispute else 1
                part = self.number(0, amount)
                chosen = dispute.id if dispute else make_id(0x77)
                return {"dispute_id": chosen, "to_customer": part, "to_worker": amount - part}
            case "payouts_confirmed":
                return {"psp_event_id": world.new_id()}
            case "rate":
                return {"stars": self.number(1, 5), "text": "so so"}
            case "cancel":
                return {"reason": "why not"}
            case _:
                return {}


def play(world: World, moves: Moves) -> None:
    """One move, and what must be true of it whether it is accepted or refused."""
    standing = world.standing()
    if standing and moves.number(0, 5) == 0:
        reminder = moves.pick(standing)
        if moves.number(0, 1):
            world.now = max(world.now, reminder.due_at)
        if world.now >= reminder.due_at:
            world.fire(reminder)
            return
    who, name, version, payload = moves.next()
    before, view = world.state, world.view(who)
    offered = view["allowed_commands"] if view else ()
    try:
        world.do(who, name, version, **payload)
    except Refusal as refusal:
        assert refusal.code in set(Code)
        if refusal.code is Code.INVALID_TRANSITION:
            assert name not in offered, f"{name} was offered to {who}"
            assert refusal.refused.current == {"state": before.state, "version": before.version}
            assert refusal.refused.allowed_commands == tuple(offered)
        assert world.state.state == before.state
        return
    row = ROWS[name]
    assert before.state in row.states
    allowed = row.to - {SAME} | ({before.state} if SAME in row.to else set())
    if name == "cancel" and who in ("ben", "eve"):
        allowed |= {"open"}
    assert world.state.state in allowed


def check(world: World) -> None:
    """What is true of every order at every time."""
    state, books = world.state, world.state.books
    assert state.state in ("", *STATES)
    assert sum(books.balances.values()) == 0
    for milestone in state.milestones:
        n = milestone.n
        assert state.escrow(n) >= 0
        held, out = books.held.get(n, 0), books.released.get(n, 0) + books.refunded.get(n, 0)
        assert held == out + state.escrow(n)
    accepted = [q for q in state.quotes if q.status == "accepted"]
    assert len(accepted) == (1 if state.worker_id else 0)
    assert len([m for m in state.milestones if m.status in ("active", "submitted", "changes_requested")]) <= 1
    assert len([v for v in state.visits if v.status in ("en_route", "arrived", "checked_in")]) <= 1
    assert world.claims == held_keys(state, world.rules.policy)
    if state.state in ("approved", "cancelled", "settled", "closed", "expired"):
        assert world.claims == set()
    if state.state in ("approved", "settled", "closed"):
        assert all(state.escrow(m.n) == 0 for m in state.milestones)
    check_conversations(world)
    stored = world.rules.decode_state(world.rules.encode_state(state))
    assert stored == state
    assert world.rules.reminders(stored) == tuple(world.standing())


def check_conversations(world: World) -> None:
    """The hired worker's conversation tells every event since the award, in order; `World` checks that turn by turn."""
    state, hired = world.state, None
    if state.worker_id is not None:
        hired = state.quotes_of(state.worker_id)[0].conversation_id
        told = [event.card["version"] for event in world.said.get(hired, ()) if getattr(event, "card", None)]
        awarded = max(event.version for event in world.events if isinstance(event, Awarded))
        silent = {event.version for event in world.events if isinstance(event, Nudged)}
        assert told == sorted(set(told))
        assert told[told.index(awarded) :] == [n for n in range(awarded, state.version + 1) if n not in silent]
    funded = any(isinstance(event, Funded) for event in world.events)
    revealed = [room.id for room in world.rooms.values() if room.contacts_revealed]
    assert revealed == ([hired] if funded else [])


def check_reminders(world: World) -> None:
    """Whatever stands can fire when its time comes, and is then gone (`World.fire`)."""
    for reminder in world.standing():
        other = world.fork()
        other.now = max(other.now, reminder.due_at)
        other.fire(reminder)
        check(other)


def check_rest(world: World) -> None:
    """An order that is left alone comes to rest, and by then it holds nobody's money."""
    world.wait(3_650 * DAY_MS)
    check(world)
    state = world.state
    assert world.standing() == []
    assert all(state.escrow(m.n) == 0 for m in state.milestones)
    assert not any(name.startswith("escrow:") and left for name, left in state.books.balances.items())


def check_offers(world: World) -> None:
    """Nothing that is offered is refused as out of place, whatever its payload."""
    for who in USERS:
        view = world.view(who)
        for name in view["allowed_commands"] if view else ():
            command = Command("order", ORDER, name, ACTORS[who], world.new_id(), b'{"n": "?"}', world.state.version)
            try:
                parsed = world.rules.parse(command)
                facts = world.facts(*world.rules.needs(world.state, ACTORS[who], name))
                world.rules.admit(world.state, command, facts)
                world.rules.decide(world.state, command, parsed, world.now, facts)
            except Refusal as refusal:
                assert refusal.code not in (Code.INVALID_TRANSITION, Code.NOT_FOUND, Code.VERSION_CONFLICT)


def check_history(world: World) -> None:
    """The log alone gives the state, its hashes hold, and the publications keep what is private.

    Money under a hold is released by nothing but the decision of the dispute.
    """
    state, previous = world.rules.initial(ORDER), ""
    codes = {v.code for v in world.state.visits if v.code}
    for raw in world.bodies:
        body = json.loads(raw)
        for entry in body.get("private", {}).get("ledger", ()):
            assert sum(p["amount"] for p in entry["postings"]) == 0
        assert chain(previous, body) == body["hash"]
        previous = body["hash"]
        event = world.rules.decode_event(raw)
        for entry in event.private.ledger if event.private else ():
            decided = isinstance(event, DisputeDecided)
            assert entry.kind != "L3" or decided or not state.held_on(entry.milestone)
        state = world.rules.evolve(state, event, state.version + 1)
        public = json.loads(world.rules.publication(raw))
        assert not {"private", "hash"} & set(public)
        assert not codes & {v for v in public.values() if isinstance(v, str)}
        assert (public["version"], public["state"]) == (state.version, state.state)
    assert state == world.state


STAGES = (
    "", "opened", "awarded", "funded", "scheduled", "en_route", "in_progress", "under_review", "disputed", "submitted",
    "approved",
)  # fmt: skip


@settings(max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_an_order_keeps_its_promises_whatever_anybody_does(data: st.DataObject) -> None:
    world = World()
    stage = data.draw(st.sampled_from(STAGES))
    if stage in ("awarded", "funded", "scheduled", "en_route", "in_progress"):
        getattr(world, stage)(data.draw(st.sampled_from(((50_000,), (15_000, 35_000)))))
    elif stage:
        getattr(world, stage)()
    moves = Moves(
        world,
        lambda options: data.draw(st.sampled_from(list(options))),
        lambda low, high: data.draw(st.integers(low, high)),
    )
    for _ in range(data.draw(st.integers(1, 30))):
        world.now += data.draw(st.sampled_from((0, 1_000, MINUTE_MS, HOUR_MS, 7 * HOUR_MS)))
        play(world, moves)
        check(world)
        check_offers(world)
        check_reminders(world)
    check_rest(world)
    check_history(world)


@pytest.mark.parametrize("seed", range(25))
def test_long_lives_of_orders_keep_the_same_promises(seed: int) -> None:
    """Plain chance goes further into an order's life than shrinkable draws do."""
    chance = random.Random(seed)
    world = World()
    stage = chance.choice(("", "opened", "awarded", "in_progress"))
    if stage in ("awarded", "in_progress"):
        getattr(world, stage)(chance.choice(((50_000,), (15_000, 35_000))))
    elif stage:
        getattr(world, stage)()
    moves = Moves(world, lambda options: chance.choice(list(options)), chance.randint)
    for _ in range(100):
        world.now += chance.choice((0, 1_000, MINUTE_MS, 10 * MINUTE_MS, HOUR_MS))
        play(world, moves)
        check(world)
    check_offers(world)
    check_reminders(world)
    check_rest(world)
    check_history(world)


@settings(max_examples=60, deadline=None)
@given(st.permutations(["held", "held", "failed", "held again", "cancel", "slot"]))
def test_reports_of_the_provider_in_any_order_end_in_the_same_ledger(news: list[str]) -> None:
    """A duplicate, late or reordered webhook: the customer has paid once, and once only it is held or given back."""
    world = World().awarded()
    payment_id = world.new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    for item in news:
        try:
            match item:
                case "held" | "held again":
                    world.held(payment_id, f"evt-{item}")
                case "failed":
                    world.do("psp", "deposit_failed", payment_id=payment_id, psp_event_id="evt-failed")
                case "cancel":
                    world.do("anna", "cancel", reason="")
                case _:
                    world.slot(world.now + 50 * HOUR_MS)
        except Refusal as refusal:
            assert refusal.code is Code.INVALID_TRANSITION  # the slot comes before the money, or after the end
        check(world)
    books = world.state.books
    assert (world.state.state, books.held, books.refunded) == ("cancelled", {1: 50_000}, {1: 50_000})
    assert all(balance == 0 for balance in books.balances.values())


@settings(max_examples=60, deadline=None)
@given(st.permutations(["held", "held", "failed", "held again", *["timer"] * 5]), st.booleans())
def test_reports_of_the_provider_between_timers_never_keep_money_that_nobody_wants(
    news: list[str], hired_again: bool
) -> None:
    """The deposit may be reported before, while and after it is waited for, and when the worker is hired a second time."""
    world = World().awarded()
    payment_id = world.new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    for item in news:
        match item:
            case "timer":
                if world.standing():
                    world.wait_for(world.standing()[0].name)
            case "failed":
                world.do("psp", "deposit_failed", payment_id=payment_id, psp_event_id="evt-failed")
            case _:
                world.held(payment_id, f"evt-{item}")
        if world.state.state == "open" and hired_again and world.state.quotes[0].status == "submitted":
            world.do("anna", "accept_quote", world.state.version, quote_id=make_id(0x2001), rev=1)
        check(world)
        check_reminders(world)
    check_rest(world)
    books = world.state.books
    assert (books.held, books.refunded) == ({1: 50_000}, {1: 50_000})
    assert all(balance == 0 for balance in books.balances.values())


@given(st.binary(max_size=60), st.sampled_from(sorted(ROWS)), st.sampled_from(sorted(ACTORS)))
def test_no_payload_whatever_breaks_the_rules(payload: bytes, name: str, who: str) -> None:
    world = World().in_progress()
    command = Command("order", ORDER, name, ACTORS[who], world.new_id(), payload)
    try:
        facts = world.facts(*world.rules.needs(world.state, ACTORS[who], name))
        world.rules.admit(world.state, command, facts)
        parsed = world.rules.parse(command)
        world.rules.touches(world.state, command, parsed)
        world.rules.needs_of(world.state, command, parsed)
        world.rules.decide(world.state, command, parsed, world.now, facts)
    except Refusal as refusal:
        assert refusal.code in set(Code)
