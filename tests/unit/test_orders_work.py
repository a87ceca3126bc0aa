"""The work itself: milestones, cancellation, disputes, ratings, and how an order ends."""

import pytest

from domain.errors import Code
from domain.policy import CategoryPolicy, Policy
from domain.times import DAY_MS, HOUR_MS
from tests.unit.order_world import BEN, World, make_id

QUOTE = make_id(0x2001)


@pytest.fixture
def world() -> World:
    return World()


# --- the work --------------------------------------------------------------------------------------------------------


def test_changes_may_be_requested_three_times(world: World) -> None:
    world.in_progress((10_000, 40_000))
    for _ in range(3):
        world.do("ben", "submit_milestone", n=1)
        world.do("anna", "request_changes", n=1, items=["the seal"])
    world.do("ben", "submit_milestone", n=1)
    assert world.refused("anna", "request_changes", n=1, items=["again"]).code == Code.CONFLICT
    world.do("anna", "approve_milestone", n=1)


def test_rework_brings_submitted_work_back(world: World) -> None:
    world.submitted()
    world.do("anna", "request_changes", n=1, items=["clean up"])
    assert world.state.state == "in_progress"
    world.do("ben", "submit_completion")
    world.do("anna", "approve_completion")


def test_a_category_may_ask_for_photos() -> None:
    world = World(Policy(categories={"plumbing": CategoryPolicy(photos_per_milestone=2)})).in_progress()
    one = world.uploaded("ben")
    assert world.refused("ben", "submit_milestone", n=1, photos=[one, one]).errors[0].field == "photos"
    world.do("ben", "submit_milestone", n=1, photos=[one, world.uploaded("ben")])


def test_an_accepted_change_replaces_what_is_not_begun(world: World) -> None:
    world.in_progress((10_000, 40_000))
    change_id = world.new_id()
    lines = [
        {"title": "Part 1", "amount": 8_000},
        {"title": "Tiles", "amount": 30_000},
        {"title": "Paint", "amount": 9},
    ]
    world.do("ben", "propose_change", change_id=change_id, milestones=lines)
    assert world.refused("ben", "accept_change", change_id=change_id).code == Code.INVALID_TRANSITION
    world.do("anna", "accept_change", change_id=change_id)
    seen = world.seen("anna")
    assert [m["amount"] for m in seen["milestones"]] == [8_000, 30_000, 9]
    assert (seen["contract"]["rev"], seen["contract"]["price"]["amount"]) == (2, 38_009)
    assert (seen["funding"][0]["held"], seen["funding"][0]["refunded"]) == (8_000, 2_000)


def test_a_paid_milestone_cannot_become_dearer_or_vanish(world: World) -> None:
    world.in_progress((10_000, 40_000))
    for amounts in ((10_001, 40_000), ()):
        lines = [{"title": "x", "amount": a} for a in amounts]
        assert world.refused("ben", "propose_change", change_id=world.new_id(), milestones=lines).code == Code.INVALID


# --- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "who", "state", "refunded", "strikes"),
    [
        ("opened", "anna", "cancelled", 0, 0),
        ("awarded", "anna", "cancelled", 0, 0),
        ("awarded", "ben", "open", 0, 1),
        ("funded", "anna", "cancelled", 50_000, 0),
        ("funded", "ben", "cancelled", 50_000, 1),
        ("scheduled", "anna", "cancelled", 45_000, 0),
        ("scheduled", "ben", "cancelled", 50_000, 2),
        ("en_route", "anna", "cancelled", 42_500, 0),
        ("en_route", "ben", "cancelled", 50_000, 2),
        ("in_progress", "anna", "cancelled", 0, 0),
        ("funded", "opal", "cancelled", 50_000, 0),
    ],
)
def test_the_cancellation_matrix(world: World, stage: str, who: str, state: str, refunded: int, strikes: int) -> None:
    getattr(world, stage)()
    world.do(who, "cancel", reason="plans changed")
    assert world.state.state == state
    assert world.state.books.refunded.get(1, 0) == refunded
    assert world.state.strikes.get(BEN, 0) == strikes
    assert world.claims == set()


def test_cancelling_a_day_before_the_visit_is_free(world: World) -> None:
    world.scheduled(in_ms=DAY_MS + HOUR_MS)
    world.do("anna", "cancel", reason="")
    assert world.state.books.refunded == {1: 50_000}


def test_cancelling_work_that_goes_on_leaves_its_money_to_a_decision(world: World) -> None:
    world.in_progress()
    world.do("anna", "cancel", reason="fell out")
    seen = world.seen("anna")
    assert (seen["state"], seen["display_status"], seen["funding"][0]["held"]) == ("cancelled", "disputed", 50_000)
    dispute_id = seen["disputes"][0]["id"]
    world.do("opal", "decide_dispute", dispute_id=dispute_id, to_customer=20_000, to_worker=30_000)
    assert world.seen("anna")["funding"][0]["released"] == 30_000
    assert world.seen("anna")["display_status"] == "cancelled"


def test_submitted_work_is_not_cancelled(world: World) -> None:
    world.submitted()
    assert world.refused("anna", "cancel", reason="no").code == Code.INVALID_TRANSITION


def test_a_bidder_who_cancels_withdraws_the_quote(world: World) -> None:
    world.opened().quote()
    world.do("ben", "cancel", reason="busy")
    assert (world.state.state, world.state.quotes[0].status) == ("open", "withdrawn")


# --- disputes --------------------------------------------------------------------------------------------------------


def test_a_dispute_holds_the_money_until_it_is_decided(world: World) -> None:
    world.submitted()
    dispute_id, evidence = world.new_id(), [world.uploaded("anna", "evidence")]
    wish = {"dispute_id": dispute_id, "n": 1, "amount": 10_000, "reason": "a scratch", "evidence": evidence}
    world.do("anna", "open_dispute", **wish)
    held = world.refused("anna", "approve_completion")
    assert (held.code, held.current["holds"]) == (Code.HOLD, [f"dispute:{dispute_id}"])
    world.do("ben", "respond_dispute", dispute_id=dispute_id, text="it was there before")
    assert (
        world.refused("opal", "decide_dispute", dispute_id=dispute_id, to_customer=1, to_worker=1).code == Code.INVALID
    )
    world.do("opal", "decide_dispute", dispute_id=dispute_id, to_customer=4_000, to_worker=6_000)
    world.do("anna", "approve_completion")
    funding = world.seen("anna")["funding"][0]
    assert (funding["held"], funding["released"], funding["refunded"]) == (0, 46_000, 4_000)


def test_only_what_is_there_can_be_disputed(world: World) -> None:
    world.submitted()
    wish = {"dispute_id": world.new_id(), "n": 1, "amount": 50_001, "reason": "all of it"}
    assert world.refused("anna", "open_dispute", **wish).errors[0].field == "amount"


def test_released_money_can_be_disputed_for_a_fortnight(world: World) -> None:
    world.approved()
    wish = {"dispute_id": world.new_id(), "n": 1, "amount": 50_000, "reason": "it drips again"}
    world.now += 15 * DAY_MS
    assert world.refused("anna", "open_dispute", **wish).code == Code.CONFLICT
    world.now -= 2 * DAY_MS
    world.do("anna", "open_dispute", **wish)
    world.do("opal", "decide_dispute", dispute_id=wish["dispute_id"], to_customer=50_000, to_worker=0)
    assert world.state.books.returned == {1: 50_000}
    assert "open_dispute" not in world.seen("anna")["allowed_commands"]


# --- ratings ---------------------------------------------------------------------------------------------------------


def test_ratings_are_hidden_until_both_are_in(world: World) -> None:
    world.approved()
    world.do("anna", "rate", stars=2, text="late")
    assert "ratings" not in world.seen("ben")
    assert "late" not in str(world.publications()) + str(world.cards())
    assert world.refused("anna", "rate", stars=5).code == Code.INVALID_TRANSITION
    world.do("ben", "rate", stars=5)
    assert {r["stars"] for r in world.publications()[-1]["ratings"]} == {2, 5}
    assert world.seen("ben")["ratings"]["customer"]["text"] == "late"


def test_ratings_end_after_a_fortnight(world: World) -> None:
    world.approved()
    world.now += 14 * DAY_MS + 1
    assert world.refused("ben", "rate", stars=5).code == Code.CONFLICT


@pytest.mark.parametrize("stars", [0, 6, 4.5, "5", True])
def test_stars_are_whole_and_one_to_five(world: World, stars: object) -> None:
    world.approved()
    assert world.refused("ben", "rate", stars=stars).code == Code.INVALID


# --- the end ---------------------------------------------------------------------------------------------------------


def test_payout_and_closing_end_the_order(world: World) -> None:
    world.approved()
    world.do("psp", "payouts_confirmed", psp_event_id="evt-payout")
    assert world.state.books.balance(f"worker:{BEN}:payable") == 0
    with pytest.raises(Exception, match="window"):
        world.do("system", "close")
    world.do("anna", "rate", stars=5)
    world.do("ben", "rate", stars=5)
    world.do("system", "close")
    assert world.seen("anna")["allowed_commands"] == []


def test_an_order_closes_without_ratings_once_their_time_is_over(world: World) -> None:
    world.approved()
    world.do("psp", "payouts_confirmed", psp_event_id="evt-payout")
    world.now += 15 * DAY_MS
    world.do("system", "close")
    assert world.state.state == "closed"


def test_an_order_without_a_choice_expires(world: World) -> None:
    world.opened().quote()
    world.do("system", "expire")
    assert (world.state.state, world.seen("ben")["quotes"][0]["status"]) == ("expired", "expired")
