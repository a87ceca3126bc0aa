"""The story of an order from wish to rating, and what each of its transitions asks for."""

import pytest

from domain.aggregate import Account
from domain.errors import Code
from domain.order_table import CLIENT_COMMANDS, PLANNED, ROWS, client_name
from domain.policy import CategoryPolicy, Policy
from domain.times import DAY_MS, HOUR_MS, MINUTE_MS, rfc3339
from tests.unit.order_world import ACTORS, ANNA, BEN, EVE, ORDER, SITE, World, fix, make_id, profile, user

QUOTE = make_id(0x2001)


@pytest.fixture
def world() -> World:
    return World()


# --- the whole road --------------------------------------------------------------------------------------------------


def test_an_order_goes_from_wish_to_rating(world: World) -> None:
    world.do("anna", "create", **world.wish())
    seen = [world.state.state]
    world.do("anna", "publish")
    seen.append(world.state.state)
    world.quote()
    world.do("anna", "accept_quote", world.state.version, quote_id=QUOTE, rev=1)
    seen.append(world.state.state)
    world.pay()
    seen.append(world.state.state)
    visit_id = world.slot(world.now + 3 * HOUR_MS)
    world.do("anna", "confirm_slot", visit_id=visit_id)
    seen.append(world.state.state)
    world.do("ben", "start_trip", visit_id=visit_id, fix=fix(world.now, 31.3))
    seen.append(world.state.state)
    world.do("ben", "arrived", visit_id=visit_id, fix=fix(world.now))
    world.do("ben", "check_in", visit_id=visit_id, code=world.code, fix=fix(world.now))
    seen.append(world.state.state)
    world.do("ben", "check_out", visit_id=visit_id)
    world.do("ben", "submit_completion", note="done")
    seen.append(world.state.state)
    world.do("anna", "approve_completion")
    seen.append(world.state.state)
    world.do("anna", "rate", stars=5, text="good")
    world.do("ben", "rate", stars=4)
    assert seen == [
        "draft", "open", "awarded", "funded", "scheduled", "en_route", "in_progress", "work_submitted", "approved",
    ]  # fmt: skip
    assert [e["version"] for e in world.publications()] == list(range(1, world.state.version + 1))
    assert world.claims == set()


def test_two_milestones_are_paid_and_released_one_after_the_other(world: World) -> None:
    world.in_progress((15_000, 35_000))
    world.do("ben", "submit_milestone", n=1)
    world.do("anna", "approve_milestone", n=1)
    assert world.seen("ben")["milestones"][1]["status"] == "planned"
    assert "submit_completion" not in world.seen("ben")["allowed_commands"]
    world.pay(2)
    assert world.seen("ben")["milestones"][1]["status"] == "active"
    world.do("ben", "check_out", visit_id=world.visit_id)
    world.do("ben", "submit_completion")
    world.do("anna", "approve_completion")
    assert [f["status"] for f in world.seen("anna")["funding"]] == ["released", "released"]


def test_the_only_milestone_may_be_approved_before_the_completion_is_submitted(world: World) -> None:
    world.in_progress()
    world.do("ben", "submit_milestone", n=1)
    world.do("anna", "approve_milestone", n=1)
    world.do("ben", "submit_completion")
    world.do("anna", "approve_completion")
    assert world.state.state == "approved"
    assert world.seen("anna")["funding"][0]["released"] == 50_000


# --- create and publish ----------------------------------------------------------------------------------------------


def test_create_with_publish_gives_both_events(world: World) -> None:
    events = world.do("anna", "create", **world.wish(publish=True))
    assert [world.rules.event_type(e) for e in events] == ["order.created", "order.published"]
    assert [e.state for e in events] == ["draft", "open"]


def test_a_short_description_needs_a_photo(world: World) -> None:
    refused = world.refused("anna", "create", **world.wish(description="Tap drips", publish=True))
    assert (refused.code, refused.errors[0].field) == (Code.INVALID, "description")
    world.do("anna", "create", **world.wish(description="Tap drips", photos=[world.uploaded("anna")], publish=True))
    assert world.state.state == "open"


def test_ten_open_orders_are_the_limit(world: World) -> None:
    world.do("anna", "create", **world.wish())
    world.open_orders = 10
    assert world.refused("anna", "publish").code == Code.CONFLICT
    world.open_orders = 9
    world.do("anna", "publish")


def test_an_order_needs_a_verified_phone(world: World) -> None:
    for account in (None, Account(make_id(4), ("customer",), phone_verified=False)):
        world.accounts[make_id(4)] = account  # type: ignore[assignment]
        assert world.refused("zoe", "create", **world.wish()).code == Code.FORBIDDEN


def test_an_id_in_use_cannot_be_created_again(world: World) -> None:
    world.opened()
    assert world.refused("anna", "create", **world.wish()).code == Code.INVALID_TRANSITION
    taken = world.refused("zoe", "create", **world.wish())
    assert (taken.code, taken.current) == (Code.IDEMPOTENCY_MISMATCH, None)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"site": {"lat": 91, "lon": 0, "address": "x"}}, "site.lat"),
        ({"site": {"lat": 1, "lon": 181, "address": "x"}}, "site.lon"),
        ({"site": {"lat": 1, "lon": 1}}, "site.address"),
        ({"site": {"lat": 1, "lon": 1, "address": "  "}}, "site.address"),
        ({"title": ""}, "title"),
        ({"title": "   "}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"title": 7}, "title"),
        ({"category": None}, "category"),
        ({"budget": {"amount": 0, "currency": "CNY"}}, "budget.amount"),
        ({"budget": {"amount": 2**60, "currency": "CNY"}}, "budget.amount"),
        ({"budget": {"amount": 1, "currency": "yuan"}}, "budget.currency"),
        ({"photos": ["x"] * 31}, "photos"),
    ],
)
def test_a_bad_field_of_a_wish_is_named(world: World, change: dict[str, object], field: str) -> None:
    refused = world.refused("anna", "create", **{**world.wish(), **change})
    assert (refused.code, refused.errors[0].field) == (Code.INVALID, field)


# --- quotes ----------------------------------------------------------------------------------------------------------


def test_the_first_of_several_milestones_is_at_most_thirty_percent(world: World) -> None:
    world.opened()
    with pytest.raises(Exception, match="30 %"):
        world.quote(amounts=(30_001, 69_999))
    world.quote(amounts=(30_000, 70_000))


def test_a_quote_has_one_to_ten_milestones(world: World) -> None:
    world.opened()
    for amounts in ((), (1_000,) * 11):
        with pytest.raises(Exception, match=r"milestones|length"):
            world.quote(amounts=amounts)
    world.quote(amounts=(1_000,) * 10)


def test_eight_quotes_may_be_active(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.opened()
    for n in range(8):
        worker_id = make_id(0x50 + n)
        world.accounts[worker_id] = Account(worker_id, ("worker",), profile())
        monkeypatch.setitem(ACTORS, f"w{n}", user(worker_id))
        world.quote(f"w{n}", n + 10)
    with pytest.raises(Exception, match="8 quotes"):
        world.quote("ben")
    world.do("anna", "reject_quote", quote_id=make_id(0x2000 + 10))
    world.quote("ben")


def test_a_revision_replaces_the_quote_and_an_older_one_is_refused(world: World) -> None:
    world.opened().quote()
    world.quote(rev=2, amounts=(60_000,))
    assert [(q["rev"], q["total"]) for q in world.seen("anna")["quotes"]] == [(2, 60_000)]
    with pytest.raises(Exception, match="above 2"):
        world.quote(rev=2)
    assert world.refused("anna", "accept_quote", world.state.version, quote_id=QUOTE, rev=1).code == (
        Code.VERSION_CONFLICT
    )


def test_one_worker_has_one_active_quote(world: World) -> None:
    world.opened().quote()
    with pytest.raises(Exception, match="revise your quote"):
        world.quote(n=2, rev=2)
    world.do("ben", "withdraw_quote", quote_id=QUOTE)
    world.quote(n=2, rev=2)


def test_an_id_of_another_quote_cannot_be_used(world: World) -> None:
    world.opened().quote("ben")
    with pytest.raises(Exception, match="has been used"):
        world.quote("eve")


def test_only_a_worker_in_reach_may_quote(world: World) -> None:
    world.opened()
    world.accounts[BEN] = Account(BEN, ("worker",), profile(lat=32.5, radius_m=20_000))
    lines = [{"title": "all", "amount": 1}]
    assert (
        world.refused("ben", "submit_quote", quote_id=QUOTE, rev=1, milestones=lines, currency="CNY").code
        == Code.FORBIDDEN
    )


@pytest.mark.parametrize("block", [(ANNA, BEN), (BEN, ANNA)], ids=["by the customer", "by the worker"])
def test_between_people_of_whom_one_has_blocked_the_other_there_are_no_quotes(
    world: World, block: tuple[str, str]
) -> None:
    world.opened()
    world.blocks.add(block)
    lines = [{"title": "all", "amount": 1}]
    refused = world.refused("ben", "submit_quote", quote_id=QUOTE, rev=1, milestones=lines, currency="CNY")
    assert "blocked" in refused.detail
    assert refused.code == Code.FORBIDDEN
    world.blocks.clear()
    world.quote("ben")


def test_who_is_no_worker_does_not_find_the_order(world: World) -> None:
    world.opened()
    assert world.refused("zoe", "submit_quote").code == Code.NOT_FOUND
    assert world.view("zoe") is None


def test_an_expired_quote_cannot_be_accepted(world: World) -> None:
    world.opened().quote(valid_until=rfc3339(world.now + HOUR_MS))
    world.now += HOUR_MS
    assert world.refused("anna", "accept_quote", world.state.version, quote_id=QUOTE, rev=1).code == Code.CONFLICT


def test_accepting_needs_the_version_one_has_seen(world: World) -> None:
    world.opened().quote()
    missing = world.refused("anna", "accept_quote", quote_id=QUOTE, rev=1)
    assert (missing.code, missing.errors[0].field) == (Code.INVALID, "expected_version")
    stale = world.refused("anna", "accept_quote", world.state.version - 1, quote_id=QUOTE, rev=1)
    assert stale.code == Code.VERSION_CONFLICT
    assert stale.current == {"state": "open", "version": world.state.version}


def test_accepting_parks_the_others_and_the_deposit_rejects_them(world: World) -> None:
    world.opened().quote("ben")
    world.quote("eve", 2)
    world.do("anna", "accept_quote", world.state.version, quote_id=QUOTE, rev=1)
    assert world.seen("eve")["quotes"][0]["status"] == "parked"
    world.pay()
    assert world.seen("eve")["quotes"][0]["status"] == "rejected"
    assert world.refused("eve", "start_trip", visit_id=make_id(9)).code == Code.FORBIDDEN


# --- payment ---------------------------------------------------------------------------------------------------------


def test_a_deposit_is_held_once_however_often_it_is_reported(world: World) -> None:
    payment_id = world.awarded().new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    assert world.held(payment_id, "evt-1")
    assert world.held(payment_id, "evt-1") == []
    assert world.held(payment_id, "evt-2") == []
    assert world.do("psp", "deposit_failed", payment_id=payment_id, psp_event_id="evt-3") == []
    assert world.seen("anna")["funding"][0]["held"] == 50_000


def test_the_same_payment_started_twice_is_one(world: World) -> None:
    payment_id = world.awarded().new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    assert world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox") == []
    other = world.refused("anna", "start_payment", payment_id=world.new_id(), milestone=1, rail="sandbox")
    assert other.code == Code.CONFLICT


def test_a_silent_payment_can_be_tried_again_and_only_one_is_kept(world: World) -> None:
    first, second = world.awarded().new_id(), world.new_id()
    world.do("anna", "start_payment", payment_id=first, milestone=1, rail="sandbox")
    world.now += 15 * MINUTE_MS
    world.do("anna", "start_payment", payment_id=second, milestone=1, rail="sandbox")
    world.held(first)
    world.held(second)
    funding = world.seen("anna")["funding"][0]
    assert (world.state.state, funding["held"], funding["refunded"]) == ("funded", 50_000, 50_000)


def test_clients_send_the_commands_of_the_protocol_and_no_others() -> None:
    for name in ("create", "start_payment", "deposit_held", "deposit_timeout", "expire", "close"):
        assert name not in CLIENT_COMMANDS
    assert {"publish", "check_in", "decide_dispute", "rate", "cancel"} <= CLIENT_COMMANDS


def test_a_deposit_of_another_amount_or_currency_is_not_taken(world: World) -> None:
    payment_id = world.awarded().new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    for wrong in ({"amount": 49_999}, {"currency": "EUR"}):
        with pytest.raises(Exception, match="was asked for"):
            world.held(payment_id, **wrong)
    assert world.state.state == "awarded"


def test_a_success_after_a_failure_counts(world: World) -> None:
    payment_id = world.awarded().new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    world.do("psp", "deposit_failed", payment_id=payment_id, psp_event_id="evt-1")
    world.held(payment_id)
    assert world.state.state == "funded"


def test_the_fifth_failure_reopens_the_order(world: World) -> None:
    world.awarded()
    for n in range(5):
        assert world.state.state == "awarded"
        payment_id = world.new_id()
        world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
        world.do("psp", "deposit_failed", payment_id=payment_id, psp_event_id=f"evt-{n}")
    assert (world.state.state, world.state.worker_id) == ("open", None)
    assert world.seen("ben")["quotes"][0]["status"] == "submitted"


def test_a_deposit_that_comes_too_late_goes_back_in_full(world: World) -> None:
    payment_id = world.awarded().new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    world.do("anna", "cancel", reason="changed my mind")
    world.held(payment_id)
    assert world.state.state == "cancelled"
    assert world.state.books.refunded == {1: 50_000}
    assert world.state.escrow(1) == 0
    assert world.held(payment_id) == []


def test_users_cannot_speak_for_the_provider(world: World) -> None:
    world.awarded()
    assert world.refused("anna", "deposit_held").code == Code.FORBIDDEN
    assert world.refused("zoe", "deposit_held").code == Code.NOT_FOUND


# --- visits ----------------------------------------------------------------------------------------------------------


def test_a_slot_begins_two_hours_from_now_or_later(world: World) -> None:
    world.funded()
    with pytest.raises(Exception, match="120 minutes"):
        world.slot(world.now + HOUR_MS)
    world.slot(world.now + 2 * HOUR_MS)


def test_urgent_categories_need_no_notice() -> None:
    policy = Policy(categories={"plumbing": CategoryPolicy(slot_notice_ms=0)})
    world = World(policy).funded()
    visit_id = world.slot(world.now)
    world.now += 30 * MINUTE_MS
    world.do("anna", "confirm_slot", visit_id=visit_id)
    assert world.state.state == "scheduled"


def test_a_slot_ends_after_it_starts_and_before_the_money_is_unsafe(world: World) -> None:
    world.funded()
    for start, hours in ((world.now + DAY_MS, 0), (world.now + DAY_MS, 25), (world.now + 174 * DAY_MS, 2)):
        with pytest.raises(Exception, match=r"the end is not|at most|held safely"):
            world.slot(start, hours)


def test_who_proposes_cannot_confirm(world: World) -> None:
    visit_id = world.funded().slot(world.now + DAY_MS, who="ben")
    assert world.refused("ben", "confirm_slot", visit_id=visit_id).code == Code.INVALID_TRANSITION
    world.slot(world.now + 2 * DAY_MS, who="anna")
    assert world.refused("ben", "confirm_slot", visit_id=visit_id).code == Code.CONFLICT


def test_a_confirmed_slot_takes_the_workers_quarter_hours(world: World) -> None:
    start = (world.now // (15 * MINUTE_MS) + 20) * 15 * MINUTE_MS
    visit_id = world.funded().slot(start, 0.5)
    world.do("anna", "confirm_slot", visit_id=visit_id)
    quarter = start // (15 * MINUTE_MS)
    assert world.claims == {f"cal:{BEN}:{quarter}", f"cal:{BEN}:{quarter + 1}"}


def test_a_new_slot_replaces_the_confirmed_one_and_its_quarter_hours(world: World) -> None:
    world.scheduled(in_ms=4 * HOUR_MS)
    first = world.state.visits[0]
    visit_id = world.slot(first.start + HOUR_MS, 2)
    world.do("anna", "confirm_slot", visit_id=visit_id)
    assert [v["status"] for v in world.seen("anna")["visits"]] == ["rescheduled", "confirmed"]
    assert len(world.claims) == 8
    assert world.state.state == "scheduled"


def test_each_side_may_reschedule_three_times(world: World) -> None:
    world.scheduled(in_ms=DAY_MS)
    for n in range(4):
        visit_id = world.slot(world.now + (2 + n) * DAY_MS)
        if n < 3:
            world.do("anna", "confirm_slot", visit_id=visit_id)
    assert world.refused("anna", "confirm_slot", visit_id=visit_id).code == Code.CONFLICT


def test_a_trip_starts_within_four_hours_before_the_slot(world: World) -> None:
    world.scheduled(in_ms=5 * HOUR_MS)
    assert world.refused("ben", "start_trip", visit_id=world.visit_id).code == Code.CONFLICT
    world.now += HOUR_MS
    world.do("ben", "start_trip", visit_id=world.visit_id)
    assert f"trip:{BEN}" in world.claims


@pytest.mark.parametrize(
    ("age_ms", "accuracy_m", "field"), [(31_000, 5, "fix.at"), (-31_000, 5, "fix.at"), (0, 101, "fix.accuracy_m")]
)
def test_a_trip_needs_a_fresh_and_accurate_fix_where_one_is_given(
    world: World, age_ms: int, accuracy_m: float, field: str
) -> None:
    world.scheduled()
    refused = world.refused(
        "ben", "start_trip", visit_id=world.visit_id, fix=fix(world.now - age_ms, accuracy_m=accuracy_m)
    )
    assert (refused.code, refused.errors[0].field) == (Code.INVALID, field)


def test_a_broken_off_trip_frees_the_worker_and_keeps_the_slot(world: World) -> None:
    world.en_route()
    world.do("ben", "abort_trip", visit_id=world.visit_id, reason="flat tyre")
    assert world.state.state == "scheduled"
    assert f"trip:{BEN}" not in world.claims
    world.do("ben", "start_trip", visit_id=world.visit_id)


def test_who_is_far_away_has_neither_arrived_nor_checked_in(world: World) -> None:
    world.en_route()
    lat = SITE["lat"] + 160 / 111_195  # type: ignore[operator]
    assert world.refused("ben", "arrived", visit_id=world.visit_id, fix=fix(world.now, lat)).errors[0].code == "too_far"
    world.do("ben", "arrived", visit_id=world.visit_id)
    far = fix(world.now, SITE["lat"] + 210 / 111_195)  # type: ignore[operator]
    assert world.refused("ben", "check_in", visit_id=world.visit_id, code=world.code, fix=far).code == Code.INVALID
    world.do("ben", "check_in", visit_id=world.visit_id, code=world.code, fix=fix(world.now, lat))


def test_five_wrong_codes_lock_the_door_until_the_customer_opens_it(world: World) -> None:
    world.en_route()
    right = world.code
    wrong = f"{(int(right) + 1) % 10_000:04d}"
    for left in (4, 3, 2, 1, 0):
        version = world.state.version
        assert world.refused("ben", "check_in", visit_id=world.visit_id, code=wrong).code == Code.INVALID
        assert world.state.version == version + 1
        assert world.publications()[-1]["tries_left"] == left
    locked = world.refused("ben", "check_in", visit_id=world.visit_id, code=right)
    assert (locked.code, locked.errors[0].code) == (Code.INVALID, "locked")
    world.do("anna", "confirm_check_in", visit_id=world.visit_id)
    assert world.state.state == "in_progress"


def test_a_retried_wrong_code_is_one_try_and_the_same_id_does_not_guess_twice(world: World) -> None:
    world.en_route()
    wrong = [f"{(int(world.code) + n) % 10_000:04d}" for n in (1, 2)]
    command_id = world.new_id()
    for code, tries in ((wrong[0], 1), (wrong[0], 1), (wrong[1], 2)):
        with pytest.raises(Exception, match="not the code"):
            world.do("ben", "check_in", command_id=command_id, visit_id=world.visit_id, code=code)
        assert len(world.state.visits[0].tries) == tries


def test_the_wrong_tries_survive_a_restart(world: World) -> None:
    world.en_route()
    world.refused("ben", "check_in", visit_id=world.visit_id, code="none")
    assert len(world.rules.decode_state(world.rules.encode_state(world.state)).visits[0].tries) == 1


def test_a_visit_after_the_check_in_keeps_the_work_going(world: World) -> None:
    world.in_progress()
    later = world.slot(world.now + DAY_MS)
    world.do("anna", "confirm_slot", visit_id=later)
    assert world.state.state == "in_progress"
    here = world.state.visit_in("checked_in")
    assert here is not None
    world.do("ben", "check_out", visit_id=here.id)
    assert world.state.state == "scheduled"


def test_overlapping_visits_of_one_order_share_their_quarter_hours(world: World) -> None:
    """A second visit was confirmed inside the first one's slot: the order claimed what it held, and then gave it away."""
    world.in_progress()
    first = world.state.visits[0]
    world.now = first.start - 2 * HOUR_MS
    world.do("anna", "confirm_slot", visit_id=world.slot(first.start, 1))
    assert len(world.claims) == len(set(world.claims)) == 8
    world.do("ben", "check_out", visit_id=first.id)
    assert len(world.claims) == 4


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_command_out_of_place_says_what_is_possible(world: World) -> None:
    world.opened()
    refused = world.refused("anna", "approve_completion")
    assert refused.code == Code.INVALID_TRANSITION
    assert refused.current == {"state": "open", "version": 2}
    assert refused.allowed_commands == ("cancel",)


def test_state_comes_before_parameters(world: World) -> None:
    world.opened()
    assert world.refused("anna", "approve_milestone", n="what").code == Code.INVALID_TRANSITION


def test_a_command_nobody_knows_is_invalid(world: World) -> None:
    world.opened()
    refused = world.refused("anna", "explode")
    assert (refused.code, refused.errors[0].field) == (Code.INVALID, "command")


def test_a_planned_command_is_an_invalid_transition_and_never_offered(world: World) -> None:
    world.in_progress()
    assert world.refused("ben", "reschedule", visit_id="x").code == Code.INVALID_TRANSITION


def test_a_stale_version_is_a_conflict_for_every_command(world: World) -> None:
    world.opened()
    assert world.refused("anna", "cancel", 1, reason="").code == Code.VERSION_CONFLICT


def test_every_command_of_a_stranger_is_not_found(world: World) -> None:
    world.in_progress()
    for name in ("cancel", "check_in", "explode", "override", "submit_quote"):
        assert world.refused("eve", name).code == Code.NOT_FOUND


def test_a_party_cannot_do_what_belongs_to_the_other(world: World) -> None:
    world.in_progress()
    assert world.refused("anna", "submit_completion").code == Code.FORBIDDEN
    assert world.refused("ben", "approve_completion").code == Code.FORBIDDEN
    assert world.refused("opal", "rate", stars=5).code == Code.FORBIDDEN


def test_a_worker_commanded_before_anybody_is_hired_is_out_of_place(world: World) -> None:
    world.opened().quote()
    assert world.refused("ben", "start_trip", visit_id=ORDER).code == Code.INVALID_TRANSITION
    assert world.refused("ben", "accept_quote", 3, quote_id=QUOTE, rev=1).code == Code.FORBIDDEN


def test_another_workers_quote_is_answered_like_one_that_does_not_exist(world: World) -> None:
    world.opened().quote("ben")
    world.quote("eve", 2)
    foreign = world.refused("eve", "withdraw_quote", quote_id=QUOTE)
    unknown = world.refused("eve", "withdraw_quote", quote_id=make_id(0x9999))
    assert foreign == unknown
    assert EVE not in str(foreign)


def test_what_has_a_route_of_its_own_is_no_command_to_clients() -> None:
    """A payment that is started as a plain command would be charged by nobody."""
    for routed in ("create", "start_payment"):
        assert client_name(routed) not in ROWS
    for public in CLIENT_COMMANDS | PLANNED | {"nonsense", "deposit_held"}:
        assert client_name(public) == public


def test_texts_hold_no_control_characters_but_tabs_and_line_ends(world: World) -> None:
    wish = world.wish(description="A tap that has been dripping\x07 for days.")
    assert world.refused("anna", "create", **wish).code == Code.INVALID
    world.do("anna", "create", **world.wish(description="A tap that has been\r\n\tdripping for days."))
