"""A conversation's rules as the runtime calls them, one turn after another."""

import json
import uuid
from typing import Any

import pytest

from domain.aggregate import NO_FACTS, Facts
from domain.chat import CHAT, Conversation
from domain.commands import Actor, Command
from domain.errors import Code, Refusal

NOW = 1_767_225_600_000
ANNA, BEN, EVE, ROOM = (str(uuid.UUID(int=n, version=4)) for n in (1, 2, 3, 99))


def user(user_id: str, session: str = "s") -> Actor:
    return Actor("user", user_id, session)


def command(name: str, actor: Actor, **payload: Any) -> Command:
    command_id = "" if name.startswith("receipt") else str(uuid.uuid4())
    return Command("conversation", ROOM, name, actor, command_id, json.dumps(payload).encode())


def run(state: Conversation, made: Command, facts: Facts = NO_FACTS) -> list[Any]:
    """The turn as the runtime takes it: parse, admit, decide, evolve."""
    parsed = CHAT.parse(made)
    CHAT.admit(state, made, facts)
    events = CHAT.decide(state, made, parsed, NOW, facts).events
    for event in events:
        CHAT.evolve(state, event, state.version + 1)
    return events


def refused(state: Conversation, made: Command, facts: Facts = NO_FACTS) -> Code:
    before = CHAT.encode_state(state)
    with pytest.raises(Refusal) as caught:
        run(state, made, facts)
    assert CHAT.encode_state(state) == before
    return caught.value.code
