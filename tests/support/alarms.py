"""Conversations with an alarm clock: the smallest aggregate with reminders, for tests of the runtime.

Whoever says `alarm <name> <unix ms>` has the platform post the card `ring <name>` at that time; `quiet <name>` takes it back.
"""

from typing import Any

import msgspec

from actors.kinds import Kinds, kinds
from domain.chat import ChatRules, Conversation, MessagePosted
from domain.commands import Reminder


class Alarmed(Conversation):
    alarms: dict[str, tuple[int, int]] = {}  # noqa: RUF012 - msgspec copies it


class AlarmRules(ChatRules):
    def initial(self, stream_id: str) -> Conversation:
        return Alarmed(stream_id)

    def fork(self, state: Conversation) -> Conversation:
        assert isinstance(state, Alarmed)
        return msgspec.structs.replace(super().fork(state), alarms=dict(state.alarms))

    def evolve(self, state: Conversation, event: Any, offset: int) -> Conversation:
        assert isinstance(state, Alarmed)
        state = super().evolve(state, event, offset)
        assert isinstance(state, Alarmed)
        match (event.text or "").split() if isinstance(event, MessagePosted) else []:
            case ["alarm", name, due]:
                state.alarms[name] = (int(due), offset)
            case ["ring" | "quiet", name]:
                state.alarms.pop(name, None)
        return state

    def reminders(self, state: Conversation) -> tuple[Reminder, ...]:
        assert isinstance(state, Alarmed)
        return tuple(
            Reminder(
                f"conversation:{state.id}",
                name,
                due,
                offset,
                "card",
                msgspec.json.encode({"card": {"ring": name}, "text": f"ring {name}"}),
            )
            for name, (due, offset) in state.alarms.items()
        )

    def decode_state(self, body: bytes) -> Conversation:
        return msgspec.json.decode(body, type=Alarmed)


def alarm_kinds() -> Kinds:
    return {**kinds(b"pepper"), "conversation": AlarmRules()}
