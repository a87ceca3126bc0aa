"""What an order does by itself when nobody does anything: each of its timers, from the event that sets it to its end."""

import json

import pytest

from domain.commands import SYSTEM, Command
from domain.errors import Code
from domain.order_schedule import business_time
from domain.order_table import CLIENT_COMMANDS
from domain.orders import OrderRules
from domain.policy import Policy
from domain.times import DAY_MS, HOUR_MS, MINUTE_MS, rfc3339
from tests.unit.order_world import ANNA, BEN, DISPUTE, EVE, NOW, ORDER, World, make_id

QUOTE = make_id(0x2001)


@pytest.fixture
def world() -> World:
    return World()


def last(world: World) -> dict[str, object]:
    publication: dict[str, object] = world.publications()[-1]
    return publication


def kinds(world: World) -> list[str]:
    """The ledger's transactions so far, in order."""
    return [entry.kind for event in world.events if event.private for entry in event.private.ledger]


def hinted(world: World) -> set[str]:
    return {user for user, _ in world.rules.hints(world.state, [(world.state.version, world.events[-1])])}


# --- draft and open --------------------------------------------------------------------------------------------------


def test_a_draft_that_nobody_touches_expires_after_thirty_days(world: World) -> None:
    world.do("anna", "create", **world.wish())
    assert world.timers() == {"draft_ttl": 30 * DAY_MS}
    world.wait_for("draft_ttl")
    assert (world.state.state, world.standing()) == ("expired", [])


def test_quotes_are_taken_for_three_days_and_then_the_order_expires(world: World) -> None:
    world.opened().quote()
    assert world.timers() == {"quote_window": 72 * HOUR_MS}
    world.wait_for("quote_window")
    assert world.state.state == "expired"
    assert hinted(world) == {ANNA, BEN}


def test_a_day_without_a_quote_is_said_to_the_customer_once(world: World) -> None:
    world.opened()
    assert world.timers()["no_quote_nudge"] == 24 * HOUR_MS
    before, cards = world.state, len(world.cards())
    world.wait_for("no_quote_nudge")
    nudged = {"type": "order.nudged", "reminder": "no_quote_nudge", "concerns": ["customer"], "by": "system"}
    assert nudged.items() <= last(world).items()
    assert (world.state.state, world.state.version) == ("open", before.version + 1)
    assert (hinted(world), len(world.cards())) == ({ANNA}, cards)
    assert list(world.timers()) == ["quote_window"]


def test_a_quote_ends_the_wait_for_one_even_if_it_is_withdrawn(world: World) -> None:
    world.opened().quote()
    world.do("ben", "withdraw_quote", quote_id=QUOTE)
    assert list(world.timers()) == ["quote_window"]


def test_a_reopened_order_takes_quotes_for_a_day_more(world: World) -> None:
    opened_at = world.now
    world.awarded().wait(20 * HOUR_MS)
    world.do("ben", "cancel", reason="too much work")
    assert world.timers()["quote_window"] == opened_at + 96 * HOUR_MS - world.now
    assert "no_quote_nudge" in world.timers()


def test_a_day_more_begins_now_where_the_time_was_over(world: World) -> None:
    world.opened().quote()
    world.quote("eve", 2)
    world.now += 71 * HOUR_MS
    world.do("anna", "accept_quote", world.state.version, quote_id=QUOTE, rev=1)
    world.wait(24 * HOUR_MS)
    assert (world.state.state, world.timers()) == ("open", {"quote_window": 24 * HOUR_MS})


# --- awarded ---------------------------------------------------------------------------------------------------------


def test_the_customer_is_reminded_of_the_deposit_twice_and_then_loses_the_award(world: World) -> None:
    world.awarded()
    assert world.timers() == {"deposit_nudge": HOUR_MS, "deposit_due": 24 * HOUR_MS}
    assert world.wait(24 * HOUR_MS) == ["deposit_nudge", "deposit_nudge", "deposit_due"]
    assert (world.state.state, world.state.worker_id, world.state.strikes) == ("open", None, {ANNA: 1})
    assert world.seen("ben")["quotes"][0]["status"] == "submitted"


def test_nobody_is_told_to_pay_while_a_payment_is_processed(world: World) -> None:
    """The reminder that comes back is another one: the runtime may still be removing the first."""
    world.awarded()
    (before,) = (r for r in world.standing() if r.name == "deposit_nudge")
    payment_id = world.new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    assert list(world.timers()) == ["deposit_due"]
    world.do("psp", "deposit_failed", payment_id=payment_id, psp_event_id="evt-1")
    (after,) = (r for r in world.standing() if r.name == "deposit_nudge")
    assert (after.due_at, after.fence_offset) == (before.due_at, world.state.version)
    assert after.command_id != before.command_id


def test_a_payment_under_way_when_the_deposit_is_due_is_waited_for_once(world: World) -> None:
    world.awarded()
    payment_id = world.new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    world.wait_for("deposit_due")
    assert world.timers() == {"deposit_due": HOUR_MS}
    assert {"type": "order.extended", "until": rfc3339(world.now + HOUR_MS)}.items() <= last(world).items()
    assert world.standing()[0].fence_offset == world.state.version
    world.fork().held(payment_id)
    world.wait_for("deposit_due")
    assert world.state.state == "open"


def test_money_that_comes_after_the_award_has_ended_is_booked_and_goes_back(world: World) -> None:
    payment_id = world.awarded().new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    world.wait(25 * HOUR_MS)
    world.do("anna", "accept_quote", world.state.version, quote_id=QUOTE, rev=1)
    world.held(payment_id)
    assert (world.state.state, kinds(world)) == ("awarded", ["L1", "L5", "L5"])
    assert set(world.state.books.balances.values()) == {0}
    assert world.seen("anna")["funding"][0]["status"] == "requires_payment"
    assert world.held(payment_id) == []


def test_late_money_of_a_slow_rail_goes_back_over_that_rail() -> None:
    world = World(Policy(rails=("sandbox", "bank"))).awarded()
    payment_id = world.new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="bank")
    world.wait(25 * HOUR_MS)
    world.held(payment_id)
    assert world.state.books.balance("psp:bank:cash") == 50_000
    world.do("bank", "refund_paid", milestone=1, amount=50_000, currency="CNY", psp_event_id="evt-r")
    assert set(world.state.books.balances.values()) == {0}


def test_a_refund_goes_over_the_rail_that_was_paid_with_whatever_came_too_late_over_another() -> None:
    world = World(Policy(rails=("sandbox", "bank"))).awarded()
    first = world.new_id()
    world.do("anna", "start_payment", payment_id=first, milestone=1, rail="bank")
    world.now += 15 * MINUTE_MS
    world.pay()
    world.held(first)
    world.do("bank", "refund_paid", milestone=1, amount=50_000, currency="CNY", psp_event_id="evt-r")
    assert world.state.books.balance("psp:sandbox:cash") == 50_000
    world.do("anna", "cancel", reason="")
    assert set(world.state.books.balances.values()) == {0}


def test_a_deposit_is_not_waited_for_for_ever(world: World) -> None:
    world.awarded()
    graces = 0
    while world.state.state == "awarded":
        world.do("anna", "start_payment", payment_id=world.new_id(), milestone=1, rail="sandbox")
        world.wait_for("deposit_due")
        graces += 1
    assert graces == 4
    assert world.now == world.state.created_at + 27 * HOUR_MS


def test_a_failed_payment_is_not_waited_for(world: World) -> None:
    payment_id = world.awarded().new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    world.do("psp", "deposit_failed", payment_id=payment_id, psp_event_id="evt-1")
    world.wait_for("deposit_due")
    assert world.state.state == "open"


# --- funded ----------------------------------------------------------------------------------------------------------


def test_a_paid_order_without_a_visit_is_called_off_after_a_week(world: World) -> None:
    world.funded()
    assert {"slot_nudge": DAY_MS, "slot_due": 3 * DAY_MS, "slot_timeout": 7 * DAY_MS}.items() <= world.timers().items()
    assert world.wait(2 * DAY_MS) == ["slot_nudge", "slot_nudge"]
    assert hinted(world) == {ANNA, BEN}
    world.wait_for("slot_due")
    assert (last(world)["concerns"], hinted(world)) == (["ops"], set())
    world.wait_for("slot_timeout")
    assert (world.state.state, last(world)["side"], last(world)["reason"]) == ("cancelled", "system", "slot_timeout")
    assert (last(world)["refunded"], world.state.strikes) == (50_000, {})
    assert world.state.books.refunded == {1: 50_000}


def test_a_visit_ends_the_wait_for_one(world: World) -> None:
    world.scheduled()
    assert not any(name.startswith("slot") for name in world.timers())


def test_disputed_money_is_not_refunded_by_a_timer_but_when_the_dispute_is_over(world: World) -> None:
    world.funded()
    world.do("anna", "open_dispute", dispute_id=DISPUTE, n=1, amount=10_000, reason="not what we said")
    world.do("ben", "respond_dispute", dispute_id=DISPUTE, text="it is")
    assert "slot_timeout" not in world.timers()
    world.wait(8 * DAY_MS)
    world.do("opal", "decide_dispute", dispute_id=DISPUTE, to_customer=0, to_worker=10_000)
    assert world.timers()["slot_timeout"] == -DAY_MS
    world.wait_for("slot_timeout")
    assert (world.state.books.released, world.state.books.refunded) == ({1: 10_000}, {1: 40_000})


# --- visits ----------------------------------------------------------------------------------------------------------


def test_both_are_reminded_of_a_visit_a_day_and_two_hours_before(world: World) -> None:
    world.scheduled(in_ms=3 * DAY_MS)
    assert world.timers()["visit_reminder"] == 2 * DAY_MS
    assert world.wait(3 * DAY_MS) == ["visit_reminder", "visit_reminder"]
    assert (last(world)["concerns"], hinted(world)) == (["customer", "worker"], {ANNA, BEN})


def test_a_visit_on_short_notice_is_reminded_of_only_where_that_lies_ahead(world: World) -> None:
    world.scheduled(in_ms=3 * HOUR_MS)
    assert world.timers()["visit_reminder"] == HOUR_MS
    world.do("anna", "confirm_slot", visit_id=world.slot(world.now + 2 * HOUR_MS, who="ben"))
    assert "visit_reminder" not in world.timers()


def test_nobody_is_reminded_of_a_visit_that_is_being_driven_to(world: World) -> None:
    world.en_route()
    assert "visit_reminder" not in world.timers()
    world.do("ben", "abort_trip", visit_id=world.visit_id, reason="flat tyre")
    assert world.timers()["visit_reminder"] == HOUR_MS


def test_a_new_time_for_the_visit_moves_what_hangs_on_it(world: World) -> None:
    world.scheduled(in_ms=2 * DAY_MS)
    world.do("anna", "confirm_slot", visit_id=world.slot(world.now + 4 * DAY_MS))
    moved = {"visit_reminder": 3 * DAY_MS, "no_show": 4 * DAY_MS + 2 * HOUR_MS + 45 * MINUTE_MS}
    assert moved.items() <= world.timers().items()


def test_a_worker_who_does_not_come_gets_a_strike_and_the_customer_chooses(world: World) -> None:
    world.scheduled()
    visit = world.state.visits[0]
    world.wait_for("no_show")
    assert world.now == visit.end + 45 * MINUTE_MS
    assert (world.state.state, world.state.strikes, world.claims) == ("funded", {BEN: 1}, set())
    assert (world.seen("anna")["visits"][0]["status"], world.state.visits[0].code) == ("no_show_w", "")
    assert (world.cards()[-1]["type"], world.timers()["slot_timeout"]) == ("order.worker_no_show", 7 * DAY_MS)
    again = world.fork()
    again.do("anna", "confirm_slot", visit_id=again.slot(again.now + DAY_MS))
    assert again.state.state == "scheduled"
    world.do("anna", "cancel", reason="never again")
    assert world.state.books.refunded == {1: 50_000}


def test_who_is_on_the_way_and_does_not_arrive_has_not_come(world: World) -> None:
    world.en_route().wait_for("no_show")
    assert (world.state.state, world.claims) == ("funded", set())


def test_the_customer_may_say_that_nobody_came_but_not_before_that_time(world: World) -> None:
    world.scheduled()
    visit = world.state.visits[0]
    assert "worker_no_show" in world.seen("anna")["allowed_commands"]
    assert "worker_no_show" not in world.seen("ben")["allowed_commands"]
    assert "worker_no_show" in CLIENT_COMMANDS
    world.now = visit.end + 45 * MINUTE_MS - 1
    assert world.refused("anna", "worker_no_show", visit_id=visit.id).code == Code.CONFLICT
    assert world.refused("ben", "worker_no_show", visit_id=visit.id).code == Code.FORBIDDEN
    world.now += 1
    world.do("anna", "worker_no_show", visit_id=visit.id)
    assert world.state.state == "funded"


def test_who_has_arrived_is_not_missing_until_they_leave_again(world: World) -> None:
    world.en_route()
    world.do("ben", "arrived", visit_id=world.visit_id)
    assert "no_show" not in world.timers()
    assert "worker_no_show" not in world.seen("anna")["allowed_commands"]
    world.do("ben", "abort_trip", visit_id=world.visit_id, reason="nobody opens")
    world.wait_for("no_show")
    assert world.state.state == "funded"


def test_work_that_has_begun_goes_on_when_nobody_comes_to_a_later_visit(world: World) -> None:
    world.under_review()
    world.do("anna", "confirm_slot", visit_id=world.slot(world.now + 8 * DAY_MS))
    world.wait_for("no_show")
    assert (world.state.state, world.timers()["next_visit_due"]) == ("in_progress", 72 * HOUR_MS)
    assert world.timers()["review"] == 48 * HOUR_MS
    world.do("anna", "approve_milestone", n=1)


def test_who_forgets_to_check_out_is_checked_out_after_twelve_hours(world: World) -> None:
    world.in_progress()
    assert world.timers()["check_out_due"] == 12 * HOUR_MS
    world.wait_for("check_out_due")
    assert (last(world)["type"], last(world)["by"], world.claims) == ("order.checked_out", "system", set())
    assert world.timers()["next_visit_due"] == 72 * HOUR_MS


def test_three_days_after_the_last_visit_both_are_asked_for_the_next(world: World) -> None:
    world.in_progress()
    world.do("ben", "check_out", visit_id=world.visit_id)
    other = world.fork()
    other.do("anna", "confirm_slot", visit_id=other.slot(other.now + DAY_MS))
    assert "next_visit_due" not in other.timers()
    world.wait_for("next_visit_due")
    assert (last(world)["concerns"], world.state.state) == (["customer", "worker"], "in_progress")


# --- acceptance by silence -------------------------------------------------------------------------------------------


def test_a_milestone_nobody_objects_to_in_a_week_is_approved(world: World) -> None:
    world.under_review()
    assert {"review_nudge": DAY_MS, "review": 7 * DAY_MS}.items() <= world.timers().items()
    fired = world.wait(7 * DAY_MS)
    assert [name for name in fired if name.startswith("review")] == ["review_nudge"] * 3 + ["review"]
    assert {"type": "order.milestone_approved", "auto": True, "by": "system"}.items() <= last(world).items()
    assert (world.state.books.released, world.state.milestones[0].status) == ({1: 15_000}, "approved")
    assert kinds(world) == ["L1", "L3"]


def test_an_objection_ends_the_review_and_another_submission_begins_it_anew(world: World) -> None:
    world.under_review().wait(6 * DAY_MS)
    world.do("anna", "request_changes", n=1, items=["the seal"])
    assert not any(name.startswith("review") for name in world.timers())
    world.do("ben", "submit_milestone", n=1)
    assert {"review_nudge": DAY_MS, "review": 7 * DAY_MS}.items() <= world.timers().items()
    (review,) = (r for r in world.standing() if r.name == "review")
    assert json.loads(review.payload) == {"n": 1, "submission_no": 2}


def test_completing_the_work_ends_the_review_of_its_last_part(world: World) -> None:
    world.in_progress()
    world.do("ben", "submit_milestone", n=1)
    assert "review" in world.state.due
    world.do("ben", "submit_completion")
    assert not {"review", "review_nudge"} & set(world.state.due)


def test_what_is_held_is_not_approved_even_if_the_platform_says_so(world: World) -> None:
    world.under_review()
    world.do("anna", "open_dispute", dispute_id=DISPUTE, n=1, amount=5_000, reason="a scratch")
    assert world.refused("system", "auto_approve_milestone", n=1, submission_no=1).code == Code.HOLD


def test_only_the_submission_that_was_reviewed_is_approved(world: World) -> None:
    world.under_review()
    assert world.refused("system", "auto_approve_milestone", n=1, submission_no=2).code == Code.CONFLICT


@pytest.mark.parametrize("reminded_late", [False, True])
def test_silence_is_no_consent_where_nobody_was_reminded_in_time(world: World, reminded_late: bool) -> None:
    """After an outage the nudge and the review are due at once: the customer has read nothing."""
    world.under_review()
    world.now += 8 * DAY_MS
    if reminded_late:
        world.wait_for("review_nudge")
    world.wait_for("review")
    assert (last(world)["type"], world.timers()["review"]) == ("order.extended", 48 * HOUR_MS)
    world.wait_for("review")
    assert world.state.milestones[0].status == "approved"


def test_who_was_reminded_in_time_needs_no_second_reminder(world: World) -> None:
    """The platform was down when the later nudges were due: the first one had been said."""
    world.under_review().wait(2 * DAY_MS)
    world.now += 6 * DAY_MS
    world.wait_for("review_nudge")
    world.wait_for("review")
    assert world.state.milestones[0].status == "approved"


def test_after_an_outage_the_same_thing_is_not_said_three_times(world: World) -> None:
    world.under_review()
    world.now += 4 * DAY_MS
    world.wait_for("review_nudge")
    assert world.timers()["review_nudge"] == 2 * DAY_MS


def test_a_dispute_stops_the_clock_of_its_milestone_and_its_end_starts_it_again(world: World) -> None:
    world.under_review().wait(2 * DAY_MS)
    world.do("anna", "open_dispute", dispute_id=DISPUTE, n=1, amount=5_000, reason="a scratch")
    world.do("ben", "respond_dispute", dispute_id=DISPUTE, text="no")
    assert not any(name.startswith("review") for name in world.timers())
    world.wait(10 * DAY_MS)
    assert world.state.escrow(1) == 15_000
    world.do("opal", "decide_dispute", dispute_id=DISPUTE, to_customer=5_000, to_worker=0)
    assert world.timers()["review"] < 0
    world.wait_for("review")
    assert (world.state.books.released, world.state.books.refunded) == ({1: 10_000}, {1: 5_000})


def test_the_customer_has_two_days_to_judge_after_a_time_in_which_they_could_not(world: World) -> None:
    world.under_review()
    world.do("anna", "confirm_slot", visit_id=world.slot(world.now + 8 * DAY_MS))
    assert "review" not in world.timers()
    world.wait(8 * DAY_MS)
    world.do("ben", "check_in", visit_id=world.visit_id, code=world.code)
    assert world.timers()["review"] == 48 * HOUR_MS


def test_a_visit_leaves_a_review_that_has_time_left_as_it_is(world: World) -> None:
    world.under_review()
    world.do("anna", "confirm_slot", visit_id=world.slot(world.now + DAY_MS))
    world.wait(DAY_MS)
    world.do("ben", "check_in", visit_id=world.visit_id, code=world.code)
    assert world.timers()["review"] == 6 * DAY_MS


def test_finished_work_nobody_objects_to_in_a_week_is_approved(world: World) -> None:
    world.submitted()
    assert {"final_nudge": DAY_MS, "final_auto_approve": 7 * DAY_MS}.items() <= world.timers().items()
    assert [n for n in world.wait(7 * DAY_MS) if n.startswith("final")] == ["final_nudge"] * 3 + ["final_auto_approve"]
    assert {"type": "order.approved", "auto": True, "state": "approved"}.items() <= last(world).items()
    assert world.state.books.released == {1: 50_000}


def test_finished_work_is_not_approved_unheard(world: World) -> None:
    world.submitted()
    world.now += 7 * DAY_MS
    world.wait_for("final_auto_approve")
    assert (world.state.state, world.timers()["final_auto_approve"]) == ("work_submitted", 48 * HOUR_MS)
    world.wait_for("final_auto_approve")
    assert world.state.state == "approved"


def test_finished_work_in_dispute_is_approved_only_after_it(world: World) -> None:
    world.submitted()
    world.do("anna", "open_dispute", dispute_id=DISPUTE, n=1, amount=5_000, reason="a scratch")
    assert not any(name.startswith("final") for name in world.timers())
    world.wait(7 * DAY_MS)
    assert (last(world)["type"], world.timers()["final_auto_approve"]) == ("order.extended", 48 * HOUR_MS)
    world.wait(2 * DAY_MS)
    assert world.state.state == "approved"
    assert (world.state.books.released, world.state.books.refunded) == ({1: 45_000}, {1: 5_000})


# --- the end ---------------------------------------------------------------------------------------------------------


def test_an_approved_order_is_paid_out_on_the_next_business_day_and_closed_after_a_fortnight(world: World) -> None:
    world.approved()
    assert world.timers() == {"payout_due": DAY_MS}
    world.wait_for("payout_due")
    assert (world.state.state, world.state.books.balance(f"worker:{BEN}:payable")) == ("settled", 0)
    assert kinds(world)[-2:] == ["L4", "L4"]
    assert world.timers() == {"rating_window": 13 * DAY_MS}
    world.wait_for("rating_window")
    assert (world.state.state, world.standing()) == ("closed", [])


def test_what_is_approved_on_a_friday_is_paid_on_monday(world: World) -> None:
    world.now += DAY_MS
    world.approved()
    assert world.timers()["payout_due"] == 3 * DAY_MS


def test_payouts_of_other_rails_are_confirmed_by_the_provider_alone() -> None:
    world = World(Policy(instant_payout_rails=())).approved()
    assert world.standing() == []
    world.do("psp", "payouts_confirmed", psp_event_id="evt-p")
    assert list(world.timers()) == ["rating_window"]


def test_a_dispute_keeps_the_order_from_being_paid_out_and_closed(world: World) -> None:
    world.approved()
    world.do("anna", "open_dispute", dispute_id=DISPUTE, n=1, amount=10_000, reason="it drips again")
    assert "payout_due" not in world.timers()
    world.do("ben", "respond_dispute", dispute_id=DISPUTE, text="no")
    world.wait(20 * DAY_MS)
    assert world.state.state == "approved"
    world.do("opal", "decide_dispute", dispute_id=DISPUTE, to_customer=10_000, to_worker=0)
    assert world.wait(0) == ["payout_due", "rating_window"]
    assert world.state.state == "closed"


def test_ratings_end_when_they_were_said_to_end_whatever_the_policy_says_by_then(world: World) -> None:
    world.approved().wait(DAY_MS)
    world.rules = OrderRules(Policy(rating_window_ms=60 * DAY_MS), b"pepper")
    world.wait_for("rating_window")
    assert world.state.state == "closed"
    world.now += 1
    assert world.refused("anna", "rate", stars=5).code == Code.CONFLICT


# --- disputes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("who", "back", "released"), [("anna", {1: 5_000}, {}), ("ben", {}, {1: 5_000})])
def test_who_does_not_answer_a_dispute_in_five_business_days_loses_it(
    world: World, who: str, back: dict[int, int], released: dict[int, int]
) -> None:
    world.disputed(who)
    other = "worker" if who == "anna" else "customer"
    assert {f"respond_nudge:{DISPUTE}": DAY_MS, f"respond:{DISPUTE}": 7 * DAY_MS}.items() <= world.timers().items()
    world.wait_for(f"respond_nudge:{DISPUTE}")
    assert last(world)["concerns"] == [other]
    assert hinted(world) == {BEN if who == "anna" else ANNA}
    world.wait_for(f"respond_nudge:{DISPUTE}")
    world.wait_for(f"respond:{DISPUTE}")
    assert {"type": "order.dispute_decided", "auto": True}.items() <= last(world).items()
    assert (world.state.books.refunded, world.state.books.released, world.state.holds) == (back, released, ())


def test_a_dispute_is_not_lost_unheard(world: World) -> None:
    world.disputed()
    world.wait_for(f"respond:{DISPUTE}")
    assert (last(world)["type"], world.timers()[f"respond:{DISPUTE}"]) == ("order.extended", 48 * HOUR_MS)
    world.wait_for(f"respond:{DISPUTE}")
    assert world.state.holds == ()


def test_an_answered_dispute_waits_for_operations_who_are_asked_after_thirty_days(world: World) -> None:
    world.disputed()
    world.do("ben", "respond_dispute", dispute_id=DISPUTE, text="no")
    assert not any(name.startswith("respond") for name in world.timers())
    assert world.timers()[f"mediation:{DISPUTE}"] == 30 * DAY_MS
    world.wait_for(f"mediation:{DISPUTE}")
    assert (last(world)["concerns"], len(world.state.holds)) == (["ops"], 1)
    assert world.refused("system", "dispute_default", dispute_id=DISPUTE).code == Code.CONFLICT
    assert f"mediation:{DISPUTE}" not in world.timers()


def test_silence_decides_nothing_in_a_dispute_that_nobody_has_opened(world: World) -> None:
    """Who cancels while the work goes on has claimed no amount: were the other silent, they would get all of it."""
    world.in_progress()
    world.do("ben", "cancel", reason="fell out")
    dispute = world.state.disputes[0]
    assert {name.partition(":")[0] for name in world.timers()} == {"mediation", "escrow_nudge", "escrow_default"}
    world.do("opal", "decide_dispute", dispute_id=dispute.id, to_customer=50_000, to_worker=0)
    assert world.standing() == []


# --- the rail's deadline ---------------------------------------------------------------------------------------------


def test_both_and_operations_hear_a_week_before_the_rail_lets_go(world: World) -> None:
    world.in_progress()
    deadline = world.state.escrow_deadline
    assert deadline is not None
    world.wait(172 * DAY_MS)
    world.wait_for("escrow_nudge:1")
    assert (world.now, last(world)["concerns"]) == (deadline - 7 * DAY_MS, ["customer", "ops", "worker"])


@pytest.mark.parametrize("stage", ["funded", "scheduled", "en_route"])
def test_what_is_not_begun_when_the_rail_lets_go_is_cancelled_and_refunded(world: World, stage: str) -> None:
    getattr(world, stage)().wait_for("escrow_default:1")
    assert (world.state.state, world.state.books.refunded, world.claims) == ("cancelled", {1: 50_000}, set())
    assert last(world)["reason"] == "escrow_expiring"


def test_what_is_not_approved_when_the_rail_lets_go_is_refunded_and_the_order_goes_on(world: World) -> None:
    world.in_progress((15_000, 35_000))
    world.wait_for("escrow_default:1")
    assert (world.state.state, world.state.milestones[0].status) == ("in_progress", "refunded")
    assert {"type": "order.escrow_returned", "milestone": 1, "amount": 15_000}.items() <= last(world).items()
    world.pay(2)
    world.do("ben", "check_out", visit_id=world.visit_id)
    world.do("ben", "submit_completion")
    world.do("anna", "approve_completion")
    assert (world.state.books.refunded, world.state.books.released) == ({1: 15_000}, {2: 35_000})


def test_a_dispute_ends_with_the_money_it_is_about(world: World) -> None:
    world.disputed()
    world.do("ben", "respond_dispute", dispute_id=DISPUTE, text="no")
    world.wait_for("escrow_default:1")
    types = [p["type"] for p in world.publications()[-2:]]
    assert types == ["order.dispute_decided", "order.escrow_returned"]
    assert (world.state.holds, world.state.books.refunded, kinds(world)) == ((), {1: 15_000}, ["L1"] + ["L5"] * 4)


def test_the_money_that_a_cancellation_left_in_dispute_does_not_go_to_the_rail(world: World) -> None:
    world.in_progress()
    world.do("anna", "cancel", reason="fell out")
    world.wait_for("escrow_default:1")
    assert (world.state.books.refunded, world.standing()) == ({1: 50_000}, [])
    assert world.refused("system", "escrow_expiring", n=1).code == Code.CONFLICT


def test_disputed_money_that_outlives_a_cancellation_goes_back_without_another_cancellation(world: World) -> None:
    world.funded()
    world.do("anna", "open_dispute", dispute_id=DISPUTE, n=1, amount=10_000, reason="not what we said")
    world.do("ben", "respond_dispute", dispute_id=DISPUTE, text="it is")
    world.do("anna", "cancel", reason="then not")
    world.wait_for("escrow_default:1")
    assert world.state.books.refunded == {1: 50_000}
    assert [p["type"] for p in world.publications()].count("order.cancelled") == 1


def test_work_that_has_begun_is_not_cancelled_with_its_money(world: World) -> None:
    world.under_review()
    world.do("anna", "confirm_slot", visit_id=world.slot(world.now + DAY_MS))
    world.wait_for("escrow_default:1")
    assert (world.state.state, world.state.milestones[0].status) == ("scheduled", "refunded")


@pytest.mark.parametrize(
    ("duration_ms", "days"), [(0, 0), (3_000, 3_000 / DAY_MS), (DAY_MS, 1), (2 * DAY_MS, 4), (1.5 * DAY_MS, 1.5),
                              (5 * DAY_MS, 7)],
)  # fmt: skip
def test_business_days_skip_weekends_and_shorter_times_do_not(duration_ms: int, days: float) -> None:
    assert business_time(NOW, int(duration_ms)) - NOW == days * DAY_MS


def test_every_milestones_money_has_a_deadline_of_its_own_and_released_money_none(world: World) -> None:
    world.under_review()
    world.now += 10 * DAY_MS
    world.do("anna", "approve_milestone", n=1)
    world.pay(2)
    escrow = {name: due for name, due in world.timers().items() if name.startswith("escrow")}
    assert escrow == {"escrow_nudge:2": 173 * DAY_MS, "escrow_default:2": 179 * DAY_MS}


# --- what all of them have in common ---------------------------------------------------------------------------------


def test_times_are_frozen_by_the_event_that_sets_them(world: World) -> None:
    world.opened()
    world.rules = OrderRules(Policy(quote_window_ms=1, no_quote_nudge_ms=(1,)), b"pepper")
    assert world.timers() == {"quote_window": 72 * HOUR_MS, "no_quote_nudge": 24 * HOUR_MS}
    assert json.loads(world.bodies[-1])["private"]["due"]["quote_window"] == [world.now + 72 * HOUR_MS]
    assert "due" not in str(world.publications())


def test_the_fence_is_the_event_that_set_the_timer(world: World) -> None:
    world.opened()
    published = world.state.version
    world.quote()
    assert [(r.name, r.fence_offset) for r in world.standing()] == [("quote_window", published)]


def test_everybody_sees_the_timers_that_concern_them(world: World) -> None:
    world.opened()
    window = {"name": "quote_window", "due_at": rfc3339(world.now + 72 * HOUR_MS)}
    nudge = {"name": "no_quote_nudge", "due_at": rfc3339(world.now + 24 * HOUR_MS)}
    assert world.seen("anna")["timers"] == world.seen("opal")["timers"] == [nudge, window]
    assert world.seen("ben")["timers"] == [window]
    world.quote("eve", 2)
    world.quote("ben")
    world.do("anna", "accept_quote", world.state.version, quote_id=QUOTE, rev=1)
    world.pay()
    names = {who: [t["name"] for t in world.seen(who)["timers"]] for who in ("anna", "ben", "eve", "opal")}
    assert names["anna"] == names["ben"] == ["slot_nudge", "slot_timeout", "escrow_nudge:1", "escrow_default:1"]
    assert names["eve"] == []
    assert names["opal"] == ["slot_nudge", "slot_due", "slot_timeout", "escrow_nudge:1", "escrow_default:1"]


def test_a_timer_that_rests_is_not_shown(world: World) -> None:
    world.submitted()
    world.do("anna", "open_dispute", dispute_id=DISPUTE, n=1, amount=1, reason="a scratch")
    assert not [t for t in world.seen("anna")["timers"] if t["name"].startswith("final")]


def test_timers_speak_for_the_platform_and_for_nobody_else(world: World) -> None:
    world.opened()
    for name in ("expire", "nudge", "deposit_timeout", "slot_timeout", "auto_approve_milestone", "dispute_default"):
        assert name not in CLIENT_COMMANDS
        assert world.refused("anna", name).code == Code.FORBIDDEN


def test_what_was_not_set_cannot_be_said(world: World) -> None:
    world.opened()
    for name in ("deposit_nudge", "quote_window", "explode"):
        assert world.refused("system", "nudge", reminder=name).code == Code.CONFLICT


def test_what_has_been_said_is_not_said_again(world: World) -> None:
    world.under_review().wait(6 * DAY_MS)
    assert world.refused("system", "nudge", reminder="review_nudge").code == Code.CONFLICT


def test_a_nudge_needs_no_conversation(world: World) -> None:
    world.awarded()
    command = Command("order", ORDER, "nudge", SYSTEM, make_id(1), b'{"reminder": "deposit_nudge"}')
    assert world.rules.touches(world.state, command, world.rules.parse(command)) == ()


def test_an_order_left_alone_at_any_time_comes_to_rest_without_anybodys_money() -> None:
    for stage in ("opened", "awarded", "funded", "scheduled", "en_route", "in_progress", "under_review", "disputed",
                  "submitted", "approved"):  # fmt: skip
        world = getattr(World(), stage)()
        world.wait(400 * DAY_MS)
        assert world.standing() == []
        assert all(world.state.escrow(m.n) == 0 for m in world.state.milestones)


def test_hints_of_a_nudge_name_the_order_and_the_event(world: World) -> None:
    world.opened().quote("eve", 2)
    world.wait(0)
    world.do("anna", "accept_quote", world.state.version, quote_id=make_id(0x2002), rev=1)
    world.wait_for("deposit_nudge")
    ((user, data),) = world.rules.hints(world.state, [(world.state.version, world.events[-1])])
    assert (user, json.loads(data)["event"], EVE in data.decode()) == (ANNA, "order.nudged", False)
