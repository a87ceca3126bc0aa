"""Who sees what of an order: views, publications, cards and hints."""

import json

import pytest

from domain.commands import canonical_json
from domain.errors import Code
from domain.geo import distance_m
from domain.order_events import chain
from domain.orders import ORDERS, OrderRules
from domain.times import HOUR_MS
from tests.unit.order_world import ACTORS, ANNA, BEN, EVE, ORDER, SITE, World, fix, make_id


@pytest.fixture
def world() -> World:
    return World()


def test_a_draft_is_the_customers_alone(world: World) -> None:
    world.do("anna", "create", **world.wish())
    assert world.view("ben") is None
    assert world.view("opal") is not None
    assert world.seen("anna")["allowed_commands"] == ["publish", "cancel"]


def test_a_worker_who_is_not_hired_sees_a_cell_of_a_kilometre(world: World) -> None:
    site = world.opened().seen("ben")["site"]
    assert "address" not in site
    assert (site["lat"], site["lon"]) != (SITE["lat"], SITE["lon"])
    assert distance_m(site["lat"], site["lon"], 31.2304, 121.4737) < 750
    assert world.seen("anna")["site"]["address"] == SITE["address"]


def test_the_hired_worker_sees_the_address(world: World) -> None:
    assert world.awarded().seen("ben")["site"]["address"] == SITE["address"]


def test_workers_see_only_their_own_quote(world: World) -> None:
    world.opened().quote("ben", note="ben's secret")
    world.quote("eve", 2, amounts=(77_777,))
    assert [q["worker_id"] for q in world.seen("anna")["quotes"]] == [BEN, EVE]
    assert [q["worker_id"] for q in world.seen("eve")["quotes"]] == [EVE]
    world.do("anna", "accept_quote", world.state.version, quote_id=make_id(0x2001), rev=1)
    assert "77777" not in json.dumps(world.seen("ben"))


def test_who_was_not_hired_sees_neither_contract_nor_visits_nor_money(world: World) -> None:
    world.opened().quote("ben")
    world.quote("eve", 2)
    world.do("anna", "accept_quote", world.state.version, quote_id=make_id(0x2001), rev=1)
    world.pay()
    seen = world.seen("eve")
    assert "contract" not in seen
    assert (seen["visits"], seen["milestones"], seen["funding"]) == ([], [], [])
    assert BEN not in json.dumps(seen)


def test_the_code_is_shown_to_the_customer_alone_and_only_until_the_check_in(world: World) -> None:
    world.en_route()
    code = world.code
    assert len(code) == 4
    assert code.isdigit()
    assert all("check_in_code" not in v for who in ("ben", "opal") for v in world.seen(who)["visits"])
    world.do("ben", "check_in", visit_id=world.visit_id, code=code)
    assert "check_in_code" not in json.dumps(world.seen("anna"))


def test_the_code_depends_on_what_only_the_customer_or_the_platform_knows() -> None:
    codes = set()
    for n in range(12):
        world = World()
        world.rules = OrderRules(pepper=f"pepper {n}".encode())
        codes.add(world.scheduled().code)
    assert len(codes) > 6


def test_no_publication_and_no_card_carries_what_is_private(world: World) -> None:
    world.opened().quote("eve", 2, amounts=(77_777,), note="eve's note")
    world.quote("ben", 1)
    world.do("anna", "accept_quote", world.state.version, quote_id=make_id(0x2001), rev=1)
    world.pay()
    visit_id = world.slot(world.now + 3 * HOUR_MS)
    world.do("anna", "confirm_slot", visit_id=visit_id)
    code = world.code
    world.do("ben", "check_in", visit_id=visit_id, code=code)
    for body in world.publications():
        assert "private" not in body
        assert "hash" not in body
        assert code not in [str(v) for v in body.values()]
        assert EVE not in json.dumps(body)
        assert "77777" not in json.dumps(body)
    for_ben = world.state.quotes_of(BEN)[0].conversation_id
    told = [c.payload.decode() for c in world.related if c.stream_id == for_ben]
    assert told
    assert all(EVE not in t and "77777" not in t and SITE["address"] not in t for t in told)


def test_a_bare_hash_in_public_would_give_the_code_away(world: World) -> None:
    """Ten thousand codes are tried in a second: so the hash of an event is as private as what it covers."""
    world.scheduled()
    confirmed = json.loads(world.bodies[-1])
    assert confirmed["hash"] == chain(json.loads(world.bodies[-2])["hash"], confirmed)
    assert "hash" not in world.publications()[-1]


def test_the_chain_of_hashes_can_be_checked_from_the_stored_bodies_alone(world: World) -> None:
    world.approved()
    previous = ""
    for raw in world.bodies:
        body = json.loads(raw)
        assert chain(previous, body) == body["hash"]
        previous = body["hash"]
    forged = json.loads(world.bodies[3])
    forged["private"]["strikes"] = 1
    assert chain(json.loads(world.bodies[2])["hash"], forged) != forged["hash"]
    assert canonical_json({"b": 1, "a": 2}) == b'{"a":2,"b":1}'


def test_the_channel_is_for_customer_hired_worker_and_operations(world: World) -> None:
    world.opened().quote("ben")
    assert [world.may_read(who) for who in ("anna", "ben", "eve", "zoe", "opal")] == [True, False, False, False, True]
    world.do("anna", "accept_quote", world.state.version, quote_id=make_id(0x2001), rev=1)
    assert world.may_read("ben")


def test_an_order_that_does_not_exist_is_not_there_for_anybody(world: World) -> None:
    assert world.view("anna") is None
    assert not world.may_read("opal")
    assert world.refused("anna", "publish").code == Code.NOT_FOUND
    assert world.refused("psp", "deposit_held").code == Code.NOT_FOUND


def test_the_first_quote_opens_the_conversation_and_later_ones_do_not(world: World) -> None:
    world.opened().quote("ben")
    world.quote("ben", rev=2)
    opens = [c for c in world.related if c.name == "open"]
    assert len(opens) == 1
    assert json.loads(opens[0].payload) == {"member_ids": [ANNA, BEN], "order_id": ORDER}
    quote = world.seen("ben")["quotes"][0]
    assert (opens[0].kind, opens[0].stream_id) == ("conversation", quote["conversation_id"])
    assert [c["type"] for c in world.cards()] == ["order.quote_submitted"] * 2
    assert len({c.command_id for c in world.related}) == 3


def test_every_transition_after_the_award_posts_a_card_to_the_hired_worker(world: World) -> None:
    world.approved()
    cards = [c["type"] for c in world.cards()]
    assert cards == [p["type"] for p in world.publications()[2:]]
    assert world.seen("ben")["conversation_id"] == world.related[-1].stream_id


def test_cancelling_an_open_order_tells_everybody_who_has_quoted(world: World) -> None:
    world.opened().quote("ben")
    world.quote("eve", 2)
    before = len(world.related)
    world.do("anna", "cancel", reason="sold the flat")
    told = {c.stream_id for c in world.related[before:]}
    assert told == {q.conversation_id for q in world.state.quotes}


def test_hints_go_to_those_whom_an_event_concerns(world: World) -> None:
    def hinted() -> set[str]:
        return {u for u, _ in world.rules.hints(world.state, [(world.state.version, world.events[-1])])}

    world.opened()
    assert hinted() == {ANNA}
    world.quote("ben")
    assert hinted() == {ANNA, BEN}
    world.quote("eve", 2)
    assert hinted() == {ANNA, EVE}
    world.do("anna", "accept_quote", world.state.version, quote_id=make_id(0x2001), rev=1)
    assert hinted() == {ANNA, BEN, EVE}
    _, data = world.rules.hints(world.state, [(world.state.version, world.events[-1])])[0]
    assert json.loads(data) == {
        "type": "order.activity", "order_id": ORDER, "offset": 5, "state": "awarded", "event": "order.awarded",
    }  # fmt: skip


def test_commission_is_not_the_customers_business(world: World) -> None:
    world.awarded()
    assert "commission_bp" not in world.seen("anna")["contract"]
    assert world.seen("ben")["contract"]["commission_bp"] == 1_000


def test_fixes_are_taken_only_from_the_worker_on_the_way(world: World) -> None:
    world.scheduled()
    assert not ORDERS.may_signal(world.state, ACTORS["ben"], "fix")
    world.do("ben", "start_trip", visit_id=world.visit_id, fix=fix(world.now))
    assert ORDERS.may_signal(world.state, ACTORS["ben"], "fix")
    assert not ORDERS.may_signal(world.state, ACTORS["ben"], "typing")
    assert not ORDERS.may_signal(world.state, ACTORS["anna"], "fix")
    world.do("ben", "check_in", visit_id=world.visit_id, code=world.code)
    assert not ORDERS.may_signal(world.state, ACTORS["ben"], "fix")


def test_a_snapshot_reads_back_as_the_same_state(world: World) -> None:
    world.approved()
    world.do("anna", "rate", stars=5, text="尽善尽美")
    assert world.rules.decode_state(world.rules.encode_state(world.state)) == world.state


def test_a_list_row_is_the_same_object_as_the_view(world: World) -> None:
    world.scheduled()
    for who in ("anna", "ben"):
        row = world.rules.view_of(world.state, ACTORS[who], world.facts())
        assert json.loads(json.dumps(row)) == world.view(who)
