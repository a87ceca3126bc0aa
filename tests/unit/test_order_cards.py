"""What the conversation of customer and worker says of their order, and when it stops hiding contacts."""

import json
import string
from typing import Any, get_args

import pytest

from domain import order_events as ev
from domain.chat import CHAT, ContactsRevealed, MessagePosted
from domain.commands import Command
from domain.errors import Refusal
from domain.order_cards import CARDS, EXTENDED, Posted, Unposted
from domain.order_timers import TIMERS
from domain.times import HOUR_MS
from tests.unit.order_world import ACTORS, BEN, EVE, ORDER, World, make_id

EVENTS = get_args(ev.AnyEvent)


@pytest.fixture
def world() -> World:
    return World()


def room_of(world: World, worker_id: str) -> str:
    return world.state.quotes_of(worker_id)[0].conversation_id


def heard(world: World, worker_id: str = BEN) -> list[str]:
    """The types of what the order has said in a worker's conversation."""
    said = world.said[room_of(world, worker_id)]
    return [
        event.card["type"] if isinstance(event, MessagePosted) else str(event.__struct_config__.tag) for event in said
    ]


def last_card(world: World, worker_id: str = BEN) -> dict[str, Any]:
    said = world.said[room_of(world, worker_id)][-1]
    return {"text": said.text, **said.card}


def say(world: World, who: str, text: str, worker_id: str) -> MessagePosted:
    room = world.rooms[room_of(world, worker_id)]
    command = Command("conversation", room.id, "send", ACTORS[who], world.new_id(), json.dumps({"text": text}).encode())
    (event,) = CHAT.decide(room, command, CHAT.parse(command), world.now, world.facts()).events
    world.rooms[room.id] = CHAT.evolve(CHAT.fork(room), event, room.version + 1)
    return event


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_for_every_event_it_is_decided_whether_the_parties_read_of_it(kind: type[ev.OrderEvent]) -> None:
    decided = CARDS.get(kind)

    assert decided is not None, f"{kind.__name__} needs a card in domain/order_cards.py, or the reason why it has none"
    if isinstance(decided, Unposted):
        assert decided.reason


def test_nothing_is_decided_for_what_is_no_event() -> None:
    assert set(CARDS) == set(EVENTS)


@pytest.mark.parametrize("kind", [kind for kind, card in CARDS.items() if isinstance(card, Posted)])
def test_the_text_of_a_card_says_only_what_both_may_know(kind: type[ev.OrderEvent]) -> None:
    card = CARDS[kind]
    assert isinstance(card, Posted)
    if isinstance(card.text, str):
        named = {field for _, field, _, _ in string.Formatter().parse(card.text) if field}
        assert named <= set(kind.__struct_fields__) - {"private", "hash", "by", "at", "state", "version"}


def test_what_is_said_of_a_timer_that_is_put_off_is_said_of_one_that_there_is() -> None:
    assert set(EXTENDED) <= set(TIMERS)


def test_a_card_has_the_ids_and_the_amounts_of_what_happened(world: World) -> None:
    world.opened().quote("ben", amounts=(15_000, 35_000))

    card = last_card(world)

    quote = world.state.quotes_of(BEN)[0]
    assert card == {
        "text": "A quote was submitted.", "type": "order.quote_submitted", "order_id": ORDER, "state": "open", "version": 3,
        "quote_id": quote.id, "rev": 1, "total": 50_000, "currency": "CNY",
    }  # fmt: skip
    world.quote("ben", rev=2)
    assert last_card(world)["text"] == "A quote was revised."


def test_a_card_about_a_milestone_says_what_it_is_worth(world: World) -> None:
    world.approved()

    said = [event.card for event in world.said[room_of(world, BEN)] if isinstance(event, MessagePosted)]
    (approved,) = [card for card in said if card is not None and card["type"] == "order.approved"]
    assert (approved["milestone"], approved["amount"], approved["currency"]) == (1, 50_000, "CNY")


def test_a_wrong_code_at_the_door_is_said_though_its_command_is_refused(world: World) -> None:
    world.en_route()

    with pytest.raises(Refusal):
        world.do("ben", "check_in", visit_id=world.visit_id, code="none")

    assert last_card(world)["text"] == "A wrong check-in code was entered; tries left: 4."


def test_a_worker_who_comes_without_a_trip_has_checked_in_all_the_same(world: World) -> None:
    world.scheduled()
    world.do("ben", "check_in", visit_id=world.visit_id, code=world.code)

    assert heard(world)[-1] == "order.checked_in"


def test_money_that_comes_too_late_is_said_to_go_back(world: World) -> None:
    world.awarded()
    payment_id = world.new_id()
    world.do("anna", "start_payment", payment_id=payment_id, milestone=1, rail="sandbox")
    world.do("anna", "cancel", reason="")
    world.held(payment_id, "evt-late")

    assert last_card(world)["type"] == "order.payment_returned"
    assert last_card(world)["amount"] == 50_000


def test_contacts_are_revealed_to_the_hired_worker_with_the_card_of_the_deposit(world: World) -> None:
    world.awarded()
    hidden = say(world, "anna", "call me at 138 0013 8000", BEN)
    assert hidden.text == "call me at •••"
    world.pay()

    assert heard(world)[-3:] == ["contacts.revealed", "message.revealed", "order.funded"]
    assert say(world, "anna", "call me at 138 0013 8000", BEN).text == "call me at 138 0013 8000"


def test_who_was_not_hired_never_sees_a_contact(world: World) -> None:
    world.opened().quote("eve", 2)
    world.quote("ben", 1)
    world.do("anna", "accept_quote", world.state.version, quote_id=make_id(0x2001), rev=1)
    world.pay()

    assert "contacts.revealed" not in heard(world, EVE)
    assert say(world, "anna", "call me at 138 0013 8000", EVE).text == "call me at •••"


def test_what_was_revealed_stays_when_the_order_is_cancelled(world: World) -> None:
    world.funded()
    world.do("anna", "cancel", reason="sold the flat")

    assert heard(world).count("contacts.revealed") == 1
    assert say(world, "ben", "I am at ben@example.com", BEN).text == "I am at ben@example.com"


def test_contacts_are_revealed_once_and_only_by_the_deposit(world: World) -> None:
    world.in_progress()

    assert [type(event) for event in world.said[room_of(world, BEN)]].count(ContactsRevealed) == 1


def test_a_reason_to_cancel_is_no_way_around_the_mask_while_nothing_is_paid(world: World) -> None:
    world.opened().quote("ben")
    world.do("anna", "cancel", reason="rather call me at 138 0013 8000")
    assert last_card(world)["reason"] == "rather call me at •••"

    paid = World().funded()
    paid.now += HOUR_MS
    paid.do("anna", "cancel", reason="rather call me at 138 0013 8000")
    assert last_card(paid)["reason"] == "rather call me at 138 0013 8000"


def test_two_wrong_codes_under_one_command_id_are_two_cards(world: World) -> None:
    """A refusal is not remembered, so its id may come again at once; the cards' own ids must differ all the same."""
    world.en_route()
    command_id, before = world.new_id(), len(world.related)
    for code in ("none", "nine"):
        with pytest.raises(Refusal):
            world.do("ben", "check_in", command_id=command_id, visit_id=world.visit_id, code=code)

    cards = world.related[before:]
    assert len({card.command_id for card in cards}) == len(cards) == 2
