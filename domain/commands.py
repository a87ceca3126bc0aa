"""What is said to an activation and what it answers; encoded as MessagePack between the platform's processes.

JSON that clients sent, or will be sent, travels inside as bytes and is never taken apart on the way. None of these can be
part of a reference cycle, so the garbage collector is spared them (`gc=False`).
"""

import hashlib
from typing import Literal

import msgspec

from domain.channels import Kind, stream_name
from domain.errors import Refused
from domain.ids import derived_uuid7, partition_of
from domain.presence import Move

ActorKind = Literal["user", "system", "psp", "ops"]


class Actor(msgspec.Struct, frozen=True, array_like=True):
    """Who asks: a user (through one of their device sessions), the platform itself, a payment provider, or operations."""

    kind: ActorKind
    id: str
    session_id: str = ""

    @property
    def label(self) -> str:
        """The actor as the log keeps it, such as `user:<id>`."""
        return f"{self.kind}:{self.id}"

    @property
    def by(self) -> str:
        """The actor as publications name it: the id of a user, else the kind."""
        return self.id if self.kind in ("user", "ops") else self.kind


SYSTEM = Actor("system", "renoveasy")


class Reminder(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A command that a stream will give itself at `due_at` (Unix ms), unless something else happens before.

    `name` is unique among the pending reminders of a stream; `fence_offset` is the offset of the event that caused this
    one, so that no two reminders are ever equal. `payload` is a JSON object.
    """

    stream: str
    name: str
    due_at: int
    fence_offset: int
    command: str
    payload: bytes = b"{}"

    @property
    def command_id(self) -> str:
        """The same for every firing of this reminder: the second one has no effect."""
        seed = f"{self.stream}\n{self.name}\n{self.due_at}\n{self.fence_offset}"
        return derived_uuid7(max(0, self.due_at), seed, self.stream)


class Command(msgspec.Struct, frozen=True, gc=False, tag="command"):
    """A wish to change one stream. `command_id` makes its repetition harmless.

    `payload` is a JSON object. `command_id` is empty only for receipts, which are idempotent by value. `sent_ms` is the
    sender's own monotonic clock as it sends this, `wait_ms` how long it will then wait for an answer: later the command
    is dropped unrun; 0 means for ever. Nobody's wall clock has a say in it.
    `reminder` is the one that fired: the command runs only while that still stands.
    """

    kind: Kind
    stream_id: str
    name: str
    actor: Actor
    command_id: str = ""
    payload: bytes = b"{}"
    expected_version: int | None = None
    sent_ms: int = 0
    wait_ms: int = 0
    reminder: Reminder | None = None

    @property
    def stream(self) -> str:
        return stream_name(self.kind, self.stream_id)


class Query(msgspec.Struct, frozen=True, gc=False, tag="query"):
    """A question to one stream's activation that changes nothing.

    `attach`: may the actor read, where does the stream stand, and what came `after` an offset? answered by `Attached`.
    `view`: the object as the actor may see it; answered by `Viewed`.
    `status`: has `command_id` landed? answered by `Status`.
    `inspect`: how does the activation stand, for operators (actor kind `system` or `ops`)? answered by `Viewed`.
    """

    kind: Kind
    stream_id: str
    name: Literal["attach", "view", "status", "inspect"]
    actor: Actor
    command_id: str = ""
    sent_ms: int = 0
    wait_ms: int = 0
    after: int | None = None

    @property
    def stream(self) -> str:
        return stream_name(self.kind, self.stream_id)


class Signal(msgspec.Struct, frozen=True, gc=False, tag="signal"):
    """Something ephemeral for a stream: `typing` or `fix`. Nobody waits for an answer, and it may be lost."""

    kind: Kind
    stream_id: str
    name: Literal["typing", "fix"]
    actor: Actor
    payload: bytes = b"{}"

    @property
    def stream(self) -> str:
        return stream_name(self.kind, self.stream_id)


class Publication(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One item on a stream's channel: its data as JSON, and its offset, 0 for what is ephemeral."""

    offset: int
    data: bytes


class Accepted(msgspec.Struct, frozen=True, gc=False, tag="accepted"):
    """The command is committed with fsync. `offset` is that of its first event, or the stream's where it made none.

    `at` is Unix milliseconds. `view` is the object as the caller may see it now (orders), as JSON. `replayed` says that
    this id had its effect before: offset, time and events are those of the first time, `view` is the current one.
    """

    offset: int
    at: int
    events: tuple[Publication, ...] = ()
    replayed: bool = False
    view: bytes | None = None


class Attached(msgspec.Struct, frozen=True, gc=False, tag="attached"):
    """Where a stream stands: `head` is its last committed offset, `owner` the takeover position of who answers.

    `events` is everything after the offset that was asked about, if the activation still has all of it; else nothing.
    """

    epoch: str
    head: int
    owner: int
    events: tuple[Publication, ...] = ()


class Viewed(msgspec.Struct, frozen=True, gc=False, tag="viewed"):
    """An object as JSON, projected for who asked, at the stream's offset `version`."""

    version: int
    body: bytes


class Status(msgspec.Struct, frozen=True, gc=False, tag="status"):
    """Whether a command id has landed in a stream, and at which offset."""

    known: bool
    offset: int | None = None


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """How far do these streams of one partition go? For a gateway that may have missed something; answered by `Compared`."""

    partition: int
    streams: tuple[str, ...]
    sent_ms: int = 0
    wait_ms: int = 0


class Compared(msgspec.Struct, frozen=True, tag="compared"):
    """The last committed offset of each stream, in the order of the question; `owner` is the takeover position."""

    owner: int
    heads: tuple[int, ...]


Request = Command | Query | Signal | Compare
Answer = Accepted | Attached | Viewed | Status | Compared | Refused


def partition_asked(request: Request) -> int:
    """The partition whose owner the request is for."""
    return request.partition if isinstance(request, Compare) else partition_of(request.stream_id)


class Delivery(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What travels on a stream's event subject: publications of one stream in order, and who speaks.

    `owner` is the takeover position under which the host speaks: a receiver drops ephemeral items of a lower one.
    `committed_ms` is when they were committed, by the host's clock; 0 where that was long ago, or never will be.
    """

    stream: str
    owner: int
    items: tuple[Publication, ...]
    committed_ms: int = 0
    moves: tuple[Move, ...] = ()
    """Clients that have come to the channel, or gone; gateways say it, for themselves and under no takeover."""


class Hint(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What travels on a user subject: a publication (JSON) for the channel `user:<user_id>`, without an offset."""

    user_id: str
    data: bytes


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return msgspec.json.encode(value, order="deterministic")


def command_hash(actor: Actor, name: str, parsed: object) -> bytes:
    """Sixteen bytes that tell a retry from a misuse of its id: equal for the same actor, command and payload."""
    digest = hashlib.sha256(f"{actor.label}\n{name}\n".encode())
    digest.update(canonical_json(parsed))
    return digest.digest()[:16]
