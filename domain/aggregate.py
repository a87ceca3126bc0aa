"""What an aggregate is: state that only its own events change, and the rules that decide them.

The actor runtime hosts any aggregate that follows `Rules`; conversations and orders are the two there are.
"""

from typing import Any, Generic, Protocol, TypeVar

import msgspec

from domain.channels import Kind
from domain.commands import Actor, Command, Reminder
from domain.errors import Refused


class AccountNeed(msgspec.Struct, frozen=True):
    """The rules need to know a user: answered by `Account`, or None for an unknown one."""

    user_id: str


class OpenOrdersNeed(msgspec.Struct, frozen=True):
    """The rules need the number of orders a customer has in state `open`: an int."""

    customer_id: str


class MessageNeed(msgspec.Struct, frozen=True):
    """The rules need a message that the state no longer remembers: `MessageFact`, or None."""

    conversation_id: str
    message_id: str


class BlockNeed(msgspec.Struct, frozen=True):
    """The rules need to know whether one user has blocked another: a bool."""

    blocker_id: str
    blocked_id: str


class UploadNeed(msgspec.Struct, frozen=True):
    """The rules need to know an upload that may be named: `UploadFact`, or None."""

    upload_id: str


Need = AccountNeed | OpenOrdersNeed | MessageNeed | BlockNeed | UploadNeed


class WorkerProfile(msgspec.Struct, frozen=True):
    """What a worker offers: skills (category names), a base in WGS84 degrees, and how far they drive."""

    skills: tuple[str, ...]
    base_lat: float
    base_lon: float
    radius_m: float
    hourly_rate: int
    currency: str
    bio: str = ""


class Account(msgspec.Struct, frozen=True):
    """A user as the rules see them. `roles` is a subset of customer, worker, ops, admin.

    `identity_until` and `licences` (by skill): until when operations vouch for them, Unix milliseconds.
    """

    user_id: str
    roles: tuple[str, ...]
    worker: WorkerProfile | None = None
    phone_verified: bool = True
    identity_until: int = 0
    licences: dict[str, int] = {}


class MessageFact(msgspec.Struct, frozen=True):
    """Who wrote a message, at which offset, whether it has been deleted, and how many other texts it had."""

    by: str
    offset: int
    deleted: bool = False
    edits: int = 0


class UploadFact(msgspec.Struct, frozen=True):
    """Whose an upload is, and what for."""

    owner_id: str
    purpose: str


class Facts:
    """Answers to needs, as they were a moment before the turn."""

    __slots__ = ("_known",)

    def __init__(self, known: dict[Need, Any] | None = None) -> None:
        self._known = known or {}

    def get(self, need: Need) -> Any:
        return self._known.get(need)

    def account(self, user_id: str) -> Account | None:
        answer: Account | None = self._known.get(AccountNeed(user_id))
        return answer

    def open_orders(self, customer_id: str) -> int:
        answer: int = self._known.get(OpenOrdersNeed(customer_id), 0)
        return answer

    def message(self, conversation_id: str, message_id: str) -> MessageFact | None:
        answer: MessageFact | None = self._known.get(MessageNeed(conversation_id, message_id))
        return answer

    def blocks(self, blocker_id: str, blocked_id: str) -> bool:
        """Whether the first has blocked the second; False for what was not asked."""
        return bool(self._known.get(BlockNeed(blocker_id, blocked_id)))

    def upload(self, upload_id: str) -> UploadFact | None:
        answer: UploadFact | None = self._known.get(UploadNeed(upload_id))
        return answer


NO_FACTS = Facts()

S = TypeVar("S")
E = TypeVar("E")


class Opening(msgspec.Struct, frozen=True):
    """An order of the customer's enters state `open` by their own command; they then have at most `most` of them."""

    customer_id: str
    most: int


class Decision(msgspec.Struct, Generic[E]):
    """What a command leads to.

    `events` in order; none means that nothing changes and the command is answered all the same.
    `related` are commands for other streams of the same partition, decided in the same turn, committed with it.
    `claims` are keys of which the platform grants each to one stream only (`cal:<worker>:<quarter>`); they are reserved
    before the turn and kept by its commit. `releases` are keys given back by it. `opening` is counted by its commit.

    `refusal` is how a wrong try is remembered: the events are committed, and then the caller is refused with it. Refusals
    are not remembered, so the log row of such a turn carries no command id: the same id sent again is decided again.

    `snapshot`: the stored state must not be older than this turn, because something in it has to be forgotten.
    """

    events: list[E] = []
    related: list[Command] = []
    claims: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    refusal: Refused | None = None
    snapshot: bool = False
    opening: Opening | None = None


class Rules(Protocol[S, E]):
    """One kind of aggregate. Every method is a pure function of its arguments; `evolve` may reuse the state it got.

    `decide` raises `Refusal` for what is not allowed. A state starts as `initial` and has `version` 0 until its first event.
    """

    @property
    def kind(self) -> Kind: ...
    @property
    def schema(self) -> int:
        """The version of the snapshot format; older snapshots are ignored and the state is rebuilt from the log."""
        ...

    @property
    def snapshot_every(self) -> int:
        """A snapshot is written whenever this many events have come since the last."""
        ...

    def initial(self, stream_id: str) -> S: ...

    def parse(self, command: Command) -> Any:
        """The payload as the struct of its command; Refusal `invalid` with the fields that are wrong.

        Access comes before parameters: the runtime calls `admit` first.
        """
        ...

    def admit(self, state: S, command: Command, facts: Facts) -> None:
        """Refusal `not_found` for who may not know of the stream, `forbidden` for who may know but not do this."""
        ...

    def needs(self, state: S, actor: Actor, name: str) -> tuple[Need, ...]:
        """What `admit` and `view` must know beside the state, for this command (or query) name."""
        ...

    def needs_of(self, state: S, command: Command, parsed: Any) -> tuple[Need, ...]:
        """What `decide` must know beside the state, now that the payload is understood."""
        ...

    def touches(self, state: S, command: Command, parsed: Any) -> tuple[str, ...]:
        """Names of the other streams that `decide` may send related commands to."""
        ...

    def decide(self, state: S, command: Command, parsed: Any, now_ms: int, facts: Facts) -> Decision[E]: ...
    def evolve(self, state: S, event: E, offset: int) -> S: ...
    def fork(self, state: S) -> S:
        """The state, safe from what `evolve` does to the original; the state itself where `evolve` never reuses it."""
        ...

    def is_over(self, state: S) -> bool:
        """Whether little is to be expected of the stream any more, so that it may leave memory early."""
        ...

    def version(self, state: S) -> int: ...
    def epoch(self, state: S) -> str:
        """Constant for the life of the stream, different if another stream ever had its name."""
        ...

    def may_read(self, state: S, actor: Actor, facts: Facts) -> bool:
        """Whether the actor may follow the stream: its publications and its history."""
        ...

    def may_signal(self, state: S, actor: Actor, name: str) -> bool:
        """Whether the actor may send the ephemeral `typing` or `fix` to the stream now."""
        ...

    def view(self, state: S, actor: Actor, facts: Facts) -> bytes | None:
        """The object as JSON, holding what the actor may see of it; None where they may not know of it."""
        ...

    def reminders(self, state: S) -> tuple[Reminder, ...]:
        """What the stream will do by itself as things stand; names are unique.

        The runtime compares the answer before and after every turn and stores the difference with its commit. So a
        reminder depends on the state alone: its time and the offset that caused it are in the state, put there by events.
        """
        ...

    def hints(self, state: S, events: list[tuple[int, E]]) -> list[tuple[str, bytes]]:
        """Publications for `user:` channels after these (offset, event) were committed: (user id, JSON)."""
        ...

    def event_type(self, event: E) -> str: ...
    def encode_event(self, event: E) -> bytes: ...
    def decode_event(self, body: bytes) -> E: ...
    def publication(self, body: bytes) -> bytes:
        """What the members see of a stored event: its body without the private part, as JSON."""
        ...

    def encode_state(self, state: S) -> bytes: ...
    def decode_state(self, body: bytes) -> S: ...
