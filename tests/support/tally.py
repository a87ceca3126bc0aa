"""Rules that do as they are told, for turns and activations by themselves."""

from typing import Any

import msgspec

from actors.activation import Activation, Landed
from domain.aggregate import Decision, Facts, Need
from domain.commands import Actor, Command, Publication, Reminder
from domain.errors import Code, Refusal
from tests.support.log_rows import AT

EVERY = 4


class Tally:
    """A stream whose state is the list of its name and its events; `evolve` reuses the list, as rules may.

    Commands carry JSON; what comes of one is `decisions[name]`, or one event with its name. Who is `banned` may know of
    nothing. `standing` are the reminders of a state, by its version.
    """

    kind = "conversation"
    schema = 1
    snapshot_every = EVERY

    def __init__(self) -> None:
        self.evolved: list[str] = []
        self.parsed: list[str] = []
        self.decisions: dict[str, Any] = {}
        self.decided: list[tuple[list[str], str, Any, int, Facts]] = []
        self.banned: Actor | None = None
        self.needed: tuple[Need, ...] = ()
        self.needed_to_decide: tuple[Need, ...] = ()
        self.touched: tuple[str, ...] = ()
        self.standing: dict[int, tuple[Reminder, ...]] = {}

    def initial(self, stream_id: str) -> list[str]:
        return [stream_id]

    def version(self, state: list[str]) -> int:
        return len(state) - 1

    def epoch(self, state: list[str]) -> str:
        return f"epoch of {state[0]}"

    def evolve(self, state: list[str], event: str, offset: int) -> list[str]:
        assert offset == len(state), "events come in order, each once"
        if event == "poison":
            raise ValueError("cannot evolve")
        self.evolved.append(event)
        state.append(event)
        return state

    def fork(self, state: list[str]) -> list[str]:
        return list(state)

    # --- commands and queries ------------------------------------------------------------------------------------

    def parse(self, command: Command) -> Any:
        self.parsed.append(command.command_id)
        if command.payload == b"bad":
            raise Refusal(Code.INVALID, "not JSON")
        return msgspec.json.decode(command.payload)

    def needs(self, state: list[str], actor: Actor, name: str) -> tuple[Need, ...]:
        return self.needed

    def needs_of(self, state: list[str], command: Command, parsed: Any) -> tuple[Need, ...]:
        return self.needed_to_decide

    def touches(self, state: list[str], command: Command, parsed: Any) -> tuple[str, ...]:
        return self.touched

    def admit(self, state: list[str], command: Command, facts: Facts) -> None:
        if command.actor == self.banned:
            raise Refusal(Code.FORBIDDEN, "banned")

    def may_read(self, state: list[str], actor: Actor, facts: Facts) -> bool:
        return actor != self.banned

    def view(self, state: list[str], actor: Actor, facts: Facts) -> bytes | None:
        if actor == self.banned:
            return None
        seen = {"state": "seen", "version": self.version(state), "allowed_commands": ["a", "b"], "events": state[1:]}
        return msgspec.json.encode(seen)

    def decide(self, state: list[str], command: Command, parsed: Any, now_ms: int, facts: Facts) -> Decision[str]:
        self.decided.append((list(state), command.name, parsed, now_ms, facts))
        decision = self.decisions.get(command.name, Decision([command.name]))
        if isinstance(decision, Exception):
            raise decision
        return decision

    def reminders(self, state: list[str]) -> tuple[Reminder, ...]:
        return self.standing.get(self.version(state), ())

    # --- what is stored ------------------------------------------------------------------------------------------

    def event_type(self, event: str) -> str:
        return f"type of {event}"

    def encode_event(self, event: str) -> bytes:
        return event.encode()

    def decode_event(self, body: bytes) -> str:
        return body.decode()

    def publication(self, body: bytes) -> bytes:
        return b"seen " + body

    def encode_state(self, state: list[str]) -> bytes:
        return ",".join(state).encode()

    def decode_state(self, body: bytes) -> list[str]:
        return body.decode().split(",")


class Stream(Activation):
    """An activation that decides by itself, as turns would have it decide."""

    def decide(self, *events: str, known: str = "") -> list[tuple[int, str]]:
        """Evolve by the events, which are a command's if its id is `known`."""
        self.begin()
        numbered = list(enumerate(events, self.version + 1))
        for offset, event in numbered:
            self.state = self.rules.evolve(self.state, event, offset)
        if known:
            publications = tuple(Publication(offset, event.encode()) for offset, event in numbered)
            self.remember(known, Landed(b"hash", numbered[0][0], numbered[-1][0], AT, publications))
        return numbered

    def commit(self, *events: str, known: str = "") -> None:
        self.landed(self.decide(*events, known=known))
