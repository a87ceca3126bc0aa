"""What a conversation allows, refuses and remembers."""

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.aggregate import Facts, MessageFact, MessageNeed
from domain.chat import CHAT, MAX_EDITS, RECENT, Conversation
from domain.commands import SYSTEM
from domain.errors import Code, Refusal
from tests.support.chat_turns import ANNA, BEN, EVE, ROOM, command, refused, run, user


@pytest.fixture
def room() -> Conversation:
    state = CHAT.initial(ROOM)
    run(state, command("open", user(ANNA), member_ids=[ANNA, BEN]))
    return state


def test_opening_makes_everybody_named_a_member(room: Conversation) -> None:
    assert list(room.members) == [ANNA, BEN]
    assert room.version == 2
    assert CHAT.epoch(room)


def test_a_conversation_is_opened_once_and_only_with_oneself_in_it(room: Conversation) -> None:
    assert refused(room, command("open", user(ANNA), member_ids=[ANNA, EVE])) is Code.IDEMPOTENCY_MISMATCH
    assert refused(room, command("open", user(EVE), member_ids=[ANNA, EVE])) is Code.IDEMPOTENCY_MISMATCH
    assert refused(CHAT.initial(ROOM), command("open", user(EVE), member_ids=[ANNA, BEN])) is Code.INVALID


def test_only_the_platform_ties_a_conversation_to_an_order() -> None:
    state = CHAT.initial(ROOM)
    assert refused(state, command("open", user(ANNA), member_ids=[ANNA, BEN], order_id=ROOM)) is Code.INVALID
    run(state, command("open", SYSTEM, member_ids=[ANNA, BEN], order_id=ROOM))
    assert state.order_id == ROOM


def test_a_message_is_published_as_it_is_stored(room: Conversation) -> None:
    made = command("send", user(ANNA), text="hello")
    (event,) = run(room, made)
    body = CHAT.encode_event(event)
    assert CHAT.publication(body) == body
    assert json.loads(body) == {
        "type": "message.posted",
        "message_id": made.command_id,
        "by": ANNA,
        "at": "2026-01-01T00:00:00.000Z",
        "text": "hello",
    }


@pytest.mark.parametrize("name", ["send", "edit", "delete", "react", "receipt.read", "receipt.delivered", "card"])
def test_strangers_are_told_that_there_is_nothing(room: Conversation, name: str) -> None:
    payloads: dict[str, dict[str, Any]] = {
        "send": {"text": "hi"},
        "edit": {"message_id": ROOM, "text": "x"},
        "delete": {"message_id": ROOM},
        "react": {"message_id": ROOM, "emoji": "x", "on": True},
        "card": {"text": "x", "card": {}},
    }
    made = command(name, user(EVE), **payloads.get(name, {"offset": 1}))
    assert refused(room, made) is Code.NOT_FOUND
    assert refused(CHAT.initial(ROOM), made) is Code.NOT_FOUND


def test_members_post_no_cards(room: Conversation) -> None:
    assert refused(room, command("card", user(ANNA), text="paid", card={})) is Code.FORBIDDEN


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "text"),
        ({"text": "  "}, "text"),
        ({"text": "x" * 8_001}, "text"),
        ({"text": 7}, "text"),
        ({"attachments": ["no"]}, "attachments[0]"),
        ({"attachments": [ROOM] * 11}, "attachments"),
        ({"text": "x", "reply_to": "no"}, "reply_to"),
        ({"text": "x", "reply_to": ROOM}, "reply_to"),
    ],
)
def test_bad_messages_name_the_field(room: Conversation, payload: dict[str, Any], field: str) -> None:
    with pytest.raises(Refusal) as caught:
        run(room, command("send", user(ANNA), **payload))
    assert caught.value.code is Code.INVALID
    assert caught.value.refused.errors[0].field == field


def test_only_its_author_edits_or_deletes_a_message(room: Conversation) -> None:
    made = command("send", user(ANNA), text="hello")
    run(room, made)
    assert refused(room, command("edit", user(BEN), message_id=made.command_id, text="x")) is Code.FORBIDDEN
    assert refused(room, command("delete", user(BEN), message_id=made.command_id)) is Code.FORBIDDEN
    run(room, command("edit", user(ANNA), message_id=made.command_id, text="hello!"))
    run(room, command("delete", user(ANNA), message_id=made.command_id))
    assert refused(room, command("edit", user(ANNA), message_id=made.command_id, text="x")) is Code.CONFLICT
    assert run(room, command("delete", user(ANNA), message_id=made.command_id)) == []


def test_an_old_message_is_known_by_the_log(room: Conversation) -> None:
    first = command("send", user(ANNA), text="first")
    run(room, first)
    for n in range(RECENT):
        run(room, command("send", user(BEN), text=str(n)))
    edit = command("edit", user(ANNA), message_id=first.command_id, text="x")
    (need,) = CHAT.needs_of(room, edit, CHAT.parse(edit))
    assert need == MessageNeed(ROOM, first.command_id)
    assert refused(room, edit) is Code.NOT_FOUND
    assert run(room, edit, Facts({need: MessageFact(ANNA, 3)}))


@pytest.mark.parametrize("remembered", [True, False])
def test_a_message_is_edited_a_hundred_times_and_no_more(room: Conversation, remembered: bool) -> None:
    """All its texts are overwritten in one transaction when it is deleted, and nobody else may wait for that."""
    made = command("send", user(ANNA), text="0")
    run(room, made)
    edit = command("edit", user(ANNA), message_id=made.command_id, text="x")
    if remembered:
        for _ in range(MAX_EDITS):
            run(room, edit)
        assert refused(room, edit) is Code.CONFLICT
        return
    for n in range(RECENT):
        run(room, command("send", user(BEN), text=str(n)))
    need = MessageNeed(ROOM, made.command_id)
    assert run(room, edit, Facts({need: MessageFact(ANNA, 3, edits=MAX_EDITS - 1)}))
    assert refused(room, edit, Facts({need: MessageFact(ANNA, 3, edits=MAX_EDITS)})) is Code.CONFLICT


def test_receipts_only_ever_go_forward_and_never_past_the_end(room: Conversation) -> None:
    run(room, command("send", user(ANNA), text="hello"))
    assert len(run(room, command("receipt.read", user(BEN), offset=3))) == 1
    assert run(room, command("receipt.read", user(BEN), offset=2)) == []
    assert refused(room, command("receipt.read", user(BEN), offset=99)) is Code.INVALID
    assert refused(room, command("receipt.read", user(BEN), offset=-1)) is Code.INVALID
    assert room.members[BEN].read_offset == 3


def test_activity_is_hinted_to_every_member_once_with_the_newest_offset(room: Conversation) -> None:
    one = run(room, command("send", user(ANNA), text="1"))
    two = run(room, command("send", user(ANNA), text="2"))
    hints = dict(CHAT.hints(room, [(3, one[0]), (4, two[0])]))
    assert set(hints) == {ANNA, BEN}
    assert json.loads(hints[BEN])["offset"] == 4


@given(st.lists(st.tuples(st.sampled_from(["send", "edit", "delete", "react", "read"]), st.booleans()), max_size=40))
def test_a_snapshot_is_the_same_as_all_events_before_it(steps: list[tuple[str, bool]]) -> None:
    live, events, sent = CHAT.initial(ROOM), [], [str(uuid.uuid4())]
    events += run(live, command("open", user(ANNA), member_ids=[ANNA, BEN]))
    for name, by_anna in steps:
        actor = user(ANNA if by_anna else BEN)
        made = {
            "send": command("send", actor, text="x"),
            "edit": command("edit", actor, message_id=sent[-1], text="y"),
            "delete": command("delete", actor, message_id=sent[-1]),
            "react": command("react", actor, message_id=sent[-1], emoji="+", on=True),
            "read": command("receipt.read", actor, offset=live.version),
        }[name]
        try:
            events += run(live, made)
        except Refusal:
            continue
        if name == "send":
            sent.append(made.command_id)
    rebuilt = CHAT.initial(ROOM)
    for offset, event in enumerate(events, 1):
        CHAT.evolve(rebuilt, CHAT.decode_event(CHAT.encode_event(event)), offset)
    assert CHAT.encode_state(rebuilt) == CHAT.encode_state(live)
    assert CHAT.encode_state(CHAT.decode_state(CHAT.encode_state(live))) == CHAT.encode_state(live)
