"""What an order's conversation hides until contacts are revealed, from whom, and what is left of it."""

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.aggregate import Facts, UploadFact, UploadNeed
from domain.chat import CHAT, Conversation
from domain.chat_events import erased
from domain.chat_state import MAX_MASKED, MAX_MASKED_TEXT
from domain.commands import SYSTEM
from domain.errors import Code
from tests.support.chat_turns import ANNA, BEN, ROOM, command, refused, run, user

NUMBER = "call me on 13800138000"


@pytest.fixture
def room() -> Conversation:
    state = CHAT.initial(ROOM)
    run(state, command("open", SYSTEM, member_ids=[ANNA, BEN], order_id=ROOM))
    return state


def test_a_number_is_hidden_from_what_is_published_and_kept_in_what_is_stored(room: Conversation) -> None:
    (posted,) = run(room, command("send", user(ANNA), text=NUMBER))
    stored = CHAT.encode_event(posted)
    public = json.loads(CHAT.publication(stored))
    assert "13800138000" not in CHAT.publication(stored).decode()
    assert (public["masked"], "private" in public) == (["phone"], False)
    assert json.loads(stored)["private"]["text"] == NUMBER
    assert CHAT.decode_event(stored) == posted


def test_a_plain_message_is_published_as_the_very_bytes_that_are_stored(room: Conversation) -> None:
    (posted,) = run(room, command("send", user(ANNA), text='he said "private": nothing'))
    body = CHAT.encode_event(posted)
    assert CHAT.publication(body) is body
    assert not room.masked


def test_without_an_order_nothing_is_hidden() -> None:
    state = CHAT.initial(ROOM)
    run(state, command("open", user(ANNA), member_ids=[ANNA, BEN]))
    (posted,) = run(state, command("send", user(ANNA), text=NUMBER))
    assert (posted.text, posted.masked, posted.private) == (NUMBER, (), None)


def test_revealing_says_every_hidden_text_once_and_hides_nothing_more(room: Conversation) -> None:
    first, second, gone = (command("send", user(ANNA), text=f"{NUMBER} {n}") for n in range(3))
    for made in (first, second, gone):
        run(room, made)
    run(room, command("edit", user(ANNA), message_id=second.command_id, text="or write to anna@example.com"))
    run(room, command("delete", user(ANNA), message_id=gone.command_id))
    begun, *revealed = run(room, command("contacts.reveal", SYSTEM))
    assert json.loads(CHAT.encode_event(begun))["type"] == "contacts.revealed"
    assert {event.message_id: event.text for event in revealed} == {
        first.command_id: f"{NUMBER} 0",
        second.command_id: "or write to anna@example.com",
    }
    assert run(room, command("contacts.reveal", SYSTEM)) == []
    (open_now,) = run(room, command("send", user(BEN), text=NUMBER))
    assert (open_now.text, open_now.masked) == (NUMBER, ())
    (edited,) = run(room, command("edit", user(ANNA), message_id=first.command_id, text=NUMBER))
    assert (edited.text, edited.private) == (NUMBER, None)


def test_an_edit_that_hides_nothing_leaves_nothing_to_reveal(room: Conversation) -> None:
    made = command("send", user(ANNA), text=NUMBER)
    run(room, made)
    run(room, command("edit", user(ANNA), message_id=made.command_id, text="never mind"))
    assert len(run(room, command("contacts.reveal", SYSTEM))) == 1


def test_only_the_platform_reveals(room: Conversation) -> None:
    assert refused(room, command("contacts.reveal", user(ANNA))) is Code.FORBIDDEN


def test_a_deleted_messages_original_is_nowhere_in_the_state(room: Conversation) -> None:
    made = command("send", user(ANNA), text=NUMBER)
    run(room, made)
    assert b"13800138000" in CHAT.encode_state(room)
    run(room, command("delete", user(ANNA), message_id=made.command_id))
    assert b"13800138000" not in CHAT.encode_state(room)


@pytest.mark.parametrize(("count", "size"), [(MAX_MASKED + 5, 10), (40, 7_000)])
def test_the_state_keeps_the_latest_originals_within_bounds(room: Conversation, count: int, size: int) -> None:
    sent = [command("send", user(ANNA), text=NUMBER + " x" * (size // 2)) for _ in range(count)]
    for made in sent:
        run(room, made)
    kept = list(room.masked)
    assert kept == [made.command_id for made in sent][-len(kept) :]
    assert len(kept) <= MAX_MASKED
    assert sum(original.size for original in room.masked.values()) <= MAX_MASKED_TEXT


@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "edit", "delete", "reveal"]), st.integers(0, 5), st.booleans()), max_size=30
    )
)
def test_the_log_without_what_was_deleted_makes_the_same_state(steps: list[tuple[str, int, bool]]) -> None:
    """A host that loads the stream after a deletion must go on like the one that saw it."""
    live = CHAT.initial(ROOM)
    events = run(live, command("open", SYSTEM, member_ids=[ANNA, BEN], order_id=ROOM))
    sent: list[str] = []
    gone: set[str] = set()
    for name, which, hides in steps:
        text = NUMBER if hides else "plain"
        if name == "send":
            made = command("send", user(ANNA), text=text)
            sent.append(made.command_id)
            events += run(live, made)
        elif name == "reveal":
            events += run(live, command("contacts.reveal", SYSTEM)) if which == 0 else []
        elif (left := [message_id for message_id in sent if message_id not in gone]) and name == "edit":
            events += run(live, command("edit", user(ANNA), message_id=left[which % len(left)], text=text))
        elif left:
            gone.add(left[which % len(left)])
            events += run(live, command("delete", user(ANNA), message_id=left[which % len(left)]))
    anew = CHAT.initial(ROOM)
    for offset, event in enumerate(events, 1):
        body = CHAT.encode_event(event)
        if getattr(event, "message_id", None) in gone:
            body = erased(body)
            assert b"13800138000" not in body
        CHAT.evolve(anew, CHAT.decode_event(body), offset)
    assert CHAT.encode_state(anew) == CHAT.encode_state(live)


def test_erasing_twice_is_erasing_once(room: Conversation) -> None:
    upload = str(uuid.uuid4())
    facts = Facts({UploadNeed(upload): UploadFact(ANNA, "chat")})
    (posted,) = run(room, command("send", user(ANNA), text=NUMBER, attachments=[upload]), facts)
    once = erased(CHAT.encode_event(posted))
    assert erased(once) == once
    assert json.loads(CHAT.publication(once)).keys() == {"type", "message_id", "by", "at", "erased"}
