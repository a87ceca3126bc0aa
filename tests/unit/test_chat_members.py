"""Who comes and goes, whose devices are how far, and who has blocked whom."""

import json
import uuid
from typing import Any

import pytest

from domain.aggregate import Account, AccountNeed, BlockNeed, Facts
from domain.chat import CHAT, MAX_DEVICES, MAX_MEMBERS, Conversation
from domain.commands import SYSTEM
from domain.errors import Code, Refusal
from tests.support.chat_turns import ANNA, BEN, EVE, ROOM, command, refused, run, user

KNOWN = Facts({AccountNeed(EVE): Account(EVE, ("customer",))})


@pytest.fixture
def room() -> Conversation:
    state = CHAT.initial(ROOM)
    run(state, command("open", user(ANNA), member_ids=[ANNA, BEN]))
    return state


@pytest.fixture
def of_order() -> Conversation:
    state = CHAT.initial(ROOM)
    run(state, command("open", SYSTEM, member_ids=[ANNA, BEN], order_id=ROOM))
    return state


# --- members -----------------------------------------------------------------------------------------------------


def test_any_member_adds_a_user_who_exists(room: Conversation) -> None:
    add = command("member.add", user(BEN), user_id=EVE)
    assert CHAT.needs_of(room, add, CHAT.parse(add)) == (AccountNeed(EVE), BlockNeed(EVE, BEN))
    assert refused(room, add) is Code.INVALID
    (joined,) = run(room, add, KNOWN)
    assert json.loads(CHAT.encode_event(joined))["type"] == "member.joined"
    assert (joined.by, joined.user_id, room.members[EVE].joined_offset) == (BEN, EVE, 3)
    assert run(room, command("member.add", user(ANNA), user_id=EVE), KNOWN) == []


def test_a_stranger_adds_nobody_not_even_themselves(room: Conversation) -> None:
    assert refused(room, command("member.add", user(EVE), user_id=EVE), KNOWN) is Code.NOT_FOUND


def test_a_full_conversation_takes_nobody_in(room: Conversation) -> None:
    for n in range(MAX_MEMBERS - 2):
        run(room, command("member.add", SYSTEM, user_id=str(uuid.UUID(int=1_000 + n, version=4))))
    assert len(room.members) == MAX_MEMBERS
    assert refused(room, command("member.add", user(ANNA), user_id=EVE), KNOWN) is Code.INVALID


def test_who_opened_the_conversation_takes_others_out_and_nobody_else_does(room: Conversation) -> None:
    assert refused(room, command("member.remove", user(BEN), user_id=ANNA)) is Code.FORBIDDEN
    (left,) = run(room, command("member.remove", user(ANNA), user_id=BEN))
    assert (left.by, left.user_id, list(room.members)) == (ANNA, BEN, [ANNA])
    assert run(room, command("member.remove", user(ANNA), user_id=BEN)) == []


@pytest.mark.parametrize("made", [("leave", {}), ("member.remove", {"user_id": BEN})])
def test_everybody_may_leave_and_then_there_is_nothing_for_them(
    room: Conversation, made: tuple[str, dict[str, Any]]
) -> None:
    (left,) = run(room, command(made[0], user(BEN), **made[1]))
    assert (left.by, left.user_id) == (BEN, BEN)
    assert not CHAT.may_read(room, user(BEN), KNOWN)
    assert CHAT.view(room, user(BEN), KNOWN) is None
    assert refused(room, command("send", user(BEN), text="still here?")) is Code.NOT_FOUND
    assert refused(room, command("leave", user(BEN))) is Code.NOT_FOUND
    assert {who for who, _ in CHAT.hints(room, [(3, left)])} == {ANNA, BEN}


@pytest.mark.parametrize(
    "made", [("member.add", {"user_id": EVE}), ("member.remove", {"user_id": ANNA}), ("leave", {})]
)
def test_only_the_platform_changes_the_members_of_an_orders_conversation(
    of_order: Conversation, made: tuple[str, dict[str, Any]]
) -> None:
    assert refused(of_order, command(made[0], user(BEN), **made[1]), KNOWN) is Code.FORBIDDEN
    run(of_order, command("member.remove", SYSTEM, user_id=BEN))
    run(of_order, command("member.add", SYSTEM, user_id=EVE))
    assert list(of_order.members) == [ANNA, EVE]


def test_who_comes_back_begins_anew(room: Conversation) -> None:
    run(room, command("receipt.read", user(BEN), offset=2))
    run(room, command("leave", user(BEN)))
    run(room, command("member.add", SYSTEM, user_id=BEN))
    assert (room.members[BEN].joined_offset, room.members[BEN].read_offset) == (5, 0)


@pytest.mark.parametrize("name", ["member.add", "member.remove", "block", "unblock"])
def test_a_user_is_named_by_an_id(room: Conversation, name: str) -> None:
    with pytest.raises(Refusal) as caught:
        CHAT.parse(command(name, user(ANNA), user_id="eve"))
    assert caught.value.refused.errors[0].field == "user_id"


# --- watermarks --------------------------------------------------------------------------------------------------


def busy(room: Conversation) -> Conversation:
    for n in range(40):
        run(room, command("send", user(ANNA), text=str(n)))
    return room


def test_a_member_is_as_far_as_the_furthest_of_their_devices(room: Conversation) -> None:
    busy(room)
    (phone,) = run(room, command("receipt.read", user(BEN, "phone"), offset=20))
    (tablet,) = run(room, command("receipt.read", user(BEN, "tablet"), offset=10))
    assert (phone.read_offset, phone.device, phone.device_offset) == (20, "phone", 20)
    assert (tablet.read_offset, tablet.device, tablet.device_offset) == (20, "tablet", 10)
    (delivered,) = run(room, command("receipt.delivered", user(BEN, "tablet"), offset=30))
    assert (delivered.delivered_offset, delivered.device, delivered.device_offset) == (30, "tablet", 30)
    assert room.members[BEN].read_offset == 20
    assert room.members[BEN].devices == {"phone": (20, 0), "tablet": (10, 30)}


def test_a_receipt_that_moves_nothing_makes_no_event(room: Conversation) -> None:
    busy(room)
    run(room, command("receipt.read", user(BEN, "phone"), offset=20))
    for device, offset in (("phone", 20), ("phone", 5), ("tablet", 0)):
        assert run(room, command("receipt.read", user(BEN, device), offset=offset)) == []
    assert len(run(room, command("receipt.read", user(BEN, "tablet"), offset=5))) == 1


def test_of_many_devices_the_one_that_is_furthest_behind_is_forgotten(room: Conversation) -> None:
    busy(room)
    for n in range(MAX_DEVICES):
        run(room, command("receipt.read", user(BEN, f"d{n}"), offset=10 + n))
    run(room, command("receipt.read", user(BEN, "new"), offset=15))
    assert "d0" not in room.members[BEN].devices
    assert len(room.members[BEN].devices) == MAX_DEVICES


def test_a_device_behind_all_that_are_remembered_says_nothing_for_ever(room: Conversation) -> None:
    """Each of nine devices that repeats itself would otherwise push another one out, and make an event each time."""
    busy(room)
    for n in range(MAX_DEVICES):
        run(room, command("receipt.read", user(BEN, f"d{n}"), offset=10 + n))
    for _ in range(3):
        assert run(room, command("receipt.read", user(BEN, "late"), offset=10)) == []
        assert run(room, command("receipt.read", user(BEN, "d0"), offset=10)) == []


def test_the_view_says_how_far_everybody_and_their_devices_are(room: Conversation) -> None:
    run(room, command("receipt.read", user(BEN, "phone"), offset=2))
    body = CHAT.view(room, user(ANNA), KNOWN)
    assert body is not None
    view = json.loads(body)
    assert view["watermarks"] == [
        {"user_id": ANNA, "read_offset": 0, "delivered_offset": 0, "devices": []},
        {
            "user_id": BEN,
            "read_offset": 2,
            "delivered_offset": 0,
            "devices": [{"device": "phone", "read_offset": 2, "delivered_offset": 0}],
        },
    ]
    assert (view["offset"], view["read_offset"], view["joined_offset"]) == (3, 0, 1)


def test_what_was_stored_by_the_first_version_is_still_read() -> None:
    event = CHAT.decode_event(b'{"type":"receipt.read","by":"b","at":"2026-01-01T00:00:00.000Z","read_offset":7}')
    state = CHAT.decode_state(
        b'{"id":"c","version":9,"epoch":"e","order_id":null,"members":{"b":[2,3,4]},"recent":{"m":["b",5,false]}}'
    )
    CHAT.evolve(state, event, 10)
    assert (state.members["b"].read_offset, state.members["b"].delivered_offset) == (7, 4)
    assert state.members["b"].devices == {}
    assert not state.contacts_revealed
    # Who opened it is in the log alone: such snapshots are not used, and the state is made anew.
    assert CHAT.schema == 2


# --- blocks ------------------------------------------------------------------------------------------------------


def test_whom_the_other_has_blocked_says_nothing_more(room: Conversation) -> None:
    made = command("send", user(BEN), text="hello")
    run(room, made)
    (blocked,) = run(room, command("block", user(ANNA), user_id=BEN))
    assert json.loads(CHAT.encode_event(blocked)) == {
        "type": "member.blocked",
        "by": ANNA,
        "at": "2026-01-01T00:00:00.000Z",
        "user_id": BEN,
        "on": True,
    }
    for name, payload in (
        ("send", {"text": "hello?"}),
        ("edit", {"message_id": made.command_id, "text": "hello?"}),
        ("react", {"message_id": made.command_id, "emoji": "!", "on": True}),
        ("member.add", {"user_id": EVE}),
    ):
        assert refused(room, command(name, user(BEN), **payload), KNOWN) is Code.FORBIDDEN
    assert not CHAT.may_signal(room, user(BEN), "typing")
    assert CHAT.may_signal(room, user(ANNA), "typing")
    assert run(room, command("receipt.read", user(BEN), offset=3))
    assert run(room, command("send", user(ANNA), text="and I may"))
    assert run(room, command("delete", user(BEN), message_id=made.command_id))
    assert run(room, command("block", user(ANNA), user_id=BEN)) == []

    (freed,) = run(room, command("unblock", user(ANNA), user_id=BEN))
    assert freed.on is False
    assert run(room, command("send", user(BEN), text="thank you"))
    assert run(room, command("unblock", user(ANNA), user_id=BEN)) == []


def test_among_three_a_block_silences_nobody(room: Conversation) -> None:
    run(room, command("member.add", SYSTEM, user_id=EVE))
    run(room, command("block", user(ANNA), user_id=BEN))
    assert run(room, command("send", user(BEN), text="hello"))
    run(room, command("leave", user(EVE)))
    assert refused(room, command("send", user(BEN), text="hello")) is Code.FORBIDDEN


def test_blocking_oneself_is_wrong_and_blocking_somebody_who_is_gone_is_nothing(room: Conversation) -> None:
    assert refused(room, command("block", user(ANNA), user_id=ANNA)) is Code.INVALID
    assert run(room, command("block", user(ANNA), user_id=EVE)) == []


def test_nobody_opens_a_conversation_with_whom_has_blocked_them() -> None:
    blocked, state = Facts({BlockNeed(BEN, ANNA): True}), CHAT.initial(ROOM)
    made = command("open", user(ANNA), member_ids=[ANNA, BEN])
    assert CHAT.needs_of(state, made, CHAT.parse(made)) == (BlockNeed(BEN, ANNA), BlockNeed(ANNA, BEN))
    assert refused(state, made, blocked) is Code.FORBIDDEN
    by_platform = command("open", SYSTEM, member_ids=[ANNA, BEN], order_id=ROOM)
    assert CHAT.needs_of(state, by_platform, CHAT.parse(by_platform)) == ()
    assert run(state, by_platform, blocked)


def test_a_conversation_with_whom_one_has_blocked_begins_with_the_block() -> None:
    facts, state = Facts({BlockNeed(ANNA, BEN): True}), CHAT.initial(ROOM)
    *_, blocked = run(state, command("open", user(ANNA), member_ids=[ANNA, BEN]), facts)
    assert (blocked.by, blocked.user_id, blocked.on) == (ANNA, BEN, True)
    assert refused(state, command("send", user(BEN), text="Hello?")) is Code.FORBIDDEN
    assert run(state, command("send", user(ANNA), text="Hello"))


def test_nobody_adds_whom_has_blocked_them(room: Conversation) -> None:
    facts = Facts({AccountNeed(EVE): Account(EVE, ("customer",)), BlockNeed(EVE, ANNA): True})
    assert refused(room, command("member.add", user(ANNA), user_id=EVE), facts) is Code.FORBIDDEN
    assert run(room, command("member.add", user(BEN), user_id=EVE), facts)
