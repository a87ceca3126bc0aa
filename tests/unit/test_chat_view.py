"""What a device folds from publications is what REST says, whenever it began and whatever was deleted since."""

import asyncio
import json
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import chat_view
from domain.aggregate import Account, AccountNeed, Facts
from domain.chat import CHAT, MessagePosted
from domain.chat_view import Gap, View, apply, message_json, unread
from domain.commands import SYSTEM, Command
from domain.errors import Refusal
from domain.ids import partition_of
from domain.ports import Entry, Turn
from serve_apps.chat import message_view
from storage.memory import MemoryPartitionLog, MemoryReadModels, MemoryStore, MemoryStreamReader
from tests.support.chat_turns import ANNA, BEN, EVE, NOW, ROOM, command, user

PEOPLE = (ANNA, BEN, EVE)
EVERYBODY = Facts({AccountNeed(person): Account(person, ("customer",)) for person in PEOPLE})
STREAM = f"conversation:{ROOM}"
HASH = b"0123456789abcdef"
TEXTS = ("hello", "call 13800138000", "anna@example.com", "bye")


class Room:
    """A conversation on the store in memory; several turns go in one flush."""

    def __init__(self, of_order: bool) -> None:
        self.store = MemoryStore()
        self.log, self.reads = MemoryPartitionLog(self.store), MemoryReadModels(self.store)
        self.state = CHAT.initial(ROOM)
        self.live = View()
        self.sent: list[str] = []
        self.now = NOW
        self._turns: list[Turn] = []
        self._heads: dict[int, int] = {}
        opener = SYSTEM if of_order else user(ANNA)
        self.tell(command("open", opener, member_ids=[ANNA, BEN], **({"order_id": ROOM} if of_order else {})))

    def tell(self, made: Command) -> None:
        self.now += 1_000
        try:
            parsed = CHAT.parse(made)
            CHAT.admit(self.state, made, EVERYBODY)
            events = CHAT.decide(self.state, made, parsed, self.now, EVERYBODY).events
        except Refusal:
            return
        entries = []
        for event in events:
            offset = self.state.version + 1
            CHAT.evolve(self.state, event, offset)
            body = CHAT.encode_event(event)
            named, hashed = (made.command_id, HASH) if made.command_id else (None, None)
            entries.append(
                Entry(STREAM, offset, CHAT.event_type(event), named, hashed, made.actor.label, self.now, body)
            )
            made = Command(made.kind, made.stream_id, made.name, made.actor)
            apply(self.live, offset, CHAT.decode_event(CHAT.publication(body)))
            if isinstance(event, MessagePosted):
                self.sent.append(event.message_id)
        if entries:
            self._turns.append(Turn(partition_of(STREAM), entries))

    async def flush(self) -> None:
        if not self._heads:
            self._heads = {
                partition_of(STREAM): (await self.log.take([partition_of(STREAM)], "h", 0)).popitem()[1].position
            }
        if self._turns:
            self._heads = (await self.log.commit(self._turns, self._heads)).heads
            self._turns = []

    async def compare(self) -> None:
        await self.flush()
        view = View()
        for offset, body in await MemoryStreamReader(self.store).read(STREAM, 0, 10_000, 1 << 30):
            apply(view, offset, CHAT.decode_event(body))
        assert view == self.live
        rows, _ = await self.reads.messages(ROOM, before=None, after=0, limit=10_000)
        shown = [json.loads(bytes(message_view(row, "somebody else"))) for row in rows]
        assert [message_json(message) for message in view.messages.values()] == shown
        assert (view.offset, view.order_id, view.epoch) == (self.state.version, self.state.order_id, self.state.epoch)
        assert (view.members, view.blocks) == (self.state.members, self.state.blocks)
        assert (view.opened_by, view.contacts_revealed) == (self.state.opened_by, self.state.contacts_revealed)
        for person in PEOPLE:
            listed = (await self.reads.conversations(person, None, 10)).items
            assert len(listed) == (person in view.members)
            for row in listed:
                member = view.members[person]
                assert (row.unread, row.read_offset) == (unread(view, person), member.read_offset)
                after = max(member.read_offset, member.joined_offset)
                assert await self.reads.unread(ROOM, person, after) == row.unread


ACTS = ("send", "send", "send", "edit", "delete", "react", "read", "delivered", "add", "remove", "leave")
RARE = ("card", "block", "unblock", "reveal", "flush")
Step = tuple[str, int, int, int]


def act(room: Room, step: Step) -> None:
    name, who, which, how = step
    actor = user(PEOPLE[who % 3], f"device {how % 2}")
    message = room.sent[which % len(room.sent)] if room.sent else str(uuid.UUID(int=which))
    text, other = TEXTS[how % 4], PEOPLE[which % 3]
    payload: dict[str, Any] = {}
    match name:
        case "send":
            payload = {"text": text} | ({"reply_to": message} if which % 3 == 0 and room.sent else {})
        case "card":
            actor, payload = SYSTEM, {"text": text, "card": {"n": which}}
        case "edit":
            payload = {"message_id": message, "text": text}
        case "delete":
            payload = {"message_id": message}
        case "react":
            payload = {"message_id": message, "emoji": "+-"[which % 2], "on": how % 3 > 0}
        case "read" | "delivered":
            name, payload = f"receipt.{name}", {"offset": min(which * 3, room.state.version)}
        case "add" | "remove":
            actor = SYSTEM if how % 2 else actor
            name, payload = f"member.{name}", {"user_id": other}
        case "block" | "unblock":
            payload = {"user_id": other}
        case "reveal":
            name, actor = "contacts.reveal", SYSTEM
    room.tell(command(name, actor, **payload))


numbers = st.integers(0, 11)


@settings(max_examples=150, deadline=None)
@given(
    st.booleans(),
    st.lists(st.tuples(st.sampled_from(ACTS + RARE), numbers, numbers, numbers), max_size=60),
)
def test_folding_all_publications_is_what_rest_says(of_order: bool, steps: list[Step]) -> None:
    async def story() -> None:
        room = Room(of_order)
        for step in steps:
            if step[0] == "flush":
                await room.flush()
            else:
                act(room, step)
        await room.compare()

    asyncio.run(story())


def test_what_was_seen_before_changes_nothing_and_a_hole_is_said() -> None:
    view = View()
    event = CHAT.decode_event(b'{"type":"member.joined","by":"a","at":"t","user_id":"a"}')
    apply(view, 1, event)
    before = (view.offset, dict(view.members))
    apply(view, 1, event)
    assert (view.offset, view.members) == before
    with pytest.raises(Gap):
        apply(view, 3, event)
    assert view.offset == 1


def test_a_message_that_nobody_knows_is_no_fault() -> None:
    """A client may be newer or older than what it is told."""
    view = chat_view.View(offset=4)
    apply(view, 5, CHAT.decode_event(b'{"type":"message.deleted","message_id":"m","by":"a","at":"t"}'))
    assert view.messages == {}
