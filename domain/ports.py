"""Where the siblings meet: what each needs from the others, with the guarantee that an implementation must give."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from domain.aggregate import Facts, Need, WorkerProfile
from domain.commands import Answer, Command, Compare, Query, Reminder, Signal


class Clock(Protocol):
    """Time as an argument, so that a whole cluster can run under virtual time."""

    def now_ms(self) -> int:
        """Unix milliseconds; may jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only ever go forward."""
        ...


# --- the partition log -------------------------------------------------------------------------------------------


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One row of the log: an event of a stream.

    `command_id` stands on the first row of a command only, its hash on all of them; rows that belong to no command
    (receipts) have neither.
    """

    stream: str
    offset: int
    type: str
    command_id: str | None
    command_hash: bytes | None
    actor: str
    at: int
    body: bytes


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """A stream's state at an offset. `newest_id_ms` is the largest time in a UUIDv7 command id up to there."""

    stream: str
    offset: int
    schema: int
    body: bytes
    newest_id_ms: int = 0


class Loaded(msgspec.Struct):
    """A stream as stored: its last snapshot and the entries after it, by offset without a hole."""

    snapshot: Snapshot | None
    tail: list[Entry]


class Turn(msgspec.Struct):
    """What one command changes, all or nothing, in one partition.

    `reminders` are set (one of the same stream and name is replaced), those named in `done` (stream, name) are removed.
    Where turns of one commit disagree the later one wins. A turn may hold snapshots only.
    """

    partition: int
    entries: list[Entry]
    snapshots: list[Snapshot] = []
    claims: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    reminders: list[Reminder] = []
    done: list[tuple[str, str]] = []


class Committed(msgspec.Struct):
    """How a commit ended. Turns that touch a fenced partition or a stale stream were left out; all others are durable.

    `heads`: the last position of every partition that was written. `fenced`: somebody else has taken these partitions.
    `stale`: these streams have moved past what the turns expected, and must be loaded anew.
    """

    heads: dict[int, int]
    fenced: frozenset[int] = frozenset()
    stale: frozenset[str] = frozenset()


class Takeover(msgspec.Struct, frozen=True):
    """The takeover row's position, and the relay cursor: everything after it must be published again."""

    position: int
    cursor: int


class OutcomeUnknown(Exception):
    """The store did not say whether the transaction committed. Whoever gets it must take the partitions anew."""


class StoreUnavailable(Exception):
    """The store cannot be reached, or is too busy: nothing was changed."""


class PartitionLog(Protocol):
    """The truth: an append-only log per partition, fenced by its primary key (partition, position).

    Every method may raise `StoreUnavailable`. One `commit` at a time per instance; the caller serialises.
    """

    async def take(self, partitions: Sequence[int], owner: str, at: int) -> dict[int, Takeover]:
        """Insert a takeover row after the last one of each partition, in as few transactions as it can.

        From then on every other owner's commit to these partitions fails.
        """
        ...

    async def commit(self, turns: Sequence[Turn], heads: Mapping[int, int]) -> Committed:
        """Commit the turns, with all their projections, in one durable transaction (fsync before it returns).

        `heads` is the last position the caller knows of each partition; positions follow on without holes.

        Raises:
            OutcomeUnknown: the connection was lost, or a deadlock or lock timeout ended the transaction, at a point
                where it may or may not have committed.
        """
        ...

    async def load(self, streams: Sequence[str], schemas: Mapping[str, int]) -> dict[str, Loaded]:
        """The streams as stored, in one read. A snapshot whose schema differs from `schemas[kind]` is not used."""
        ...

    async def heads(self, partitions: Sequence[int]) -> dict[int, int]:
        """The last position of each partition (0 for an empty one)."""
        ...

    async def ends(self, streams: Sequence[str]) -> dict[str, int]:
        """The last offset of each stream; those that have none are left out."""
        ...

    async def find_commands(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[Entry]]:
        """The entries of each (stream, command id) that has landed; ids that have not are left out."""
        ...

    async def read_partition(self, partition: int, after: int, limit: int) -> list[tuple[int, Entry]]:
        """Entries by position, takeover rows left out, for publishing again."""
        ...

    async def save_cursors(self, cursors: Mapping[int, int]) -> None:
        """Remember how far events are known to be published; a cursor only ever moves forward."""
        ...

    async def reminders(self, partitions: Sequence[int], before_ms: int, limit: int) -> list[Reminder]:
        """Stored reminders of these partitions that are due before then, earliest first, at most `limit`."""
        ...

    async def drop_reminders(self, reminders: Sequence[Reminder]) -> None:
        """Remove exactly these, where they are stored; one that has been replaced meanwhile stays.

        Harmless from any host at any time: no two reminders are ever equal, and these are known to be over.
        """
        ...

    async def writer(self) -> int:
        """The server's number of the connection that writes; 0 where there is none or it has no number (SQLite)."""
        ...

    async def end_writers(self, numbers: Sequence[int]) -> None:
        """End these connections on the server, with whatever transaction they hold open; those that are gone are fine.

        For a takeover from a host that may be paused inside a transaction. Does nothing on SQLite.
        """
        ...

    async def reserve(self, holder: str, keys: Sequence[str], now_ms: int, until_ms: int) -> str | None:
        """Reserve all keys for the stream `holder` until then, or none: the first key that another one holds.

        What a commit names in `Turn.claims` is kept for good, until a turn of the holder releases it.
        """
        ...


class StreamReader(Protocol):
    """Committed events of a stream, for recovery and history, readable from any process."""

    async def read(self, stream: str, after: int, limit: int, max_bytes: int = 262_144) -> list[tuple[int, bytes]]:
        """(offset, publication JSON) in order, starting right after `after`, without a hole; at least one if any."""
        ...

    async def read_back(self, stream: str, before: int, limit: int) -> list[tuple[int, bytes]]:
        """The same, newest first, starting right before `before`."""
        ...


class FactSource(Protocol):
    """Answers what rules need to know beside their own state, in one read."""

    async def facts(self, needs: Sequence[Need]) -> Facts: ...


# --- the broker --------------------------------------------------------------------------------------------------


class Received(msgspec.Struct, frozen=True):
    """A message from the broker; `reply` is where its answer goes, empty for none."""

    subject: str
    data: bytes
    reply: str = ""


class Subscription(Protocol):
    async def stop(self) -> None:
        """Receive nothing more; returns when the broker has been told."""
        ...


class NoResponders(Exception):
    """Nobody listens on the subject: the request had no effect."""


class RequestTimeout(Exception):
    """No answer came in time: the outcome is unknown."""


class BrokerUnavailable(Exception):
    """The broker cannot be reached."""


class Broker(Protocol):
    """Publish/subscribe and request/reply, at most once.

    Per publisher and subject, order is kept. Handlers are plain functions, called in order of arrival on the event loop;
    they must not block. A message is at most 512 KiB.
    """

    async def publish(self, subject: str, data: bytes) -> None: ...

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """Ask and wait. Raises NoResponders, RequestTimeout or BrokerUnavailable."""
        ...

    async def subscribe(self, subject: str, handler: Callable[[Received], None]) -> Subscription:
        """Returns when the broker knows of the subscription: what is published afterwards is received."""
        ...

    async def confirm(self, timeout_s: float = 2.0) -> None:
        """Return when everything published before has reached the broker (PING/PONG); BrokerUnavailable otherwise."""
        ...

    def on_reconnect(self, handler: Callable[[], None]) -> None:
        """Call the handler after every lost and regained connection, or when messages were dropped as too slow."""
        ...

    def on_lost(self, handler: Callable[[], None]) -> None:
        """Call the handler as soon as the connection is found lost, before anything is received on a new one."""
        ...

    async def close(self) -> None: ...


# --- the actor runtime, as gateways and REST see it --------------------------------------------------------------


class Router(Protocol):
    """Takes requests to whichever host owns their partition; nobody else knows who that is.

    Unanswered attempts are sent again with the same id until the deadline. Raises `Refusal` with the catalogue's code:
    `unavailable` when the deadline passed without an answer, and then the outcome is unknown.
    """

    async def ask(self, request: Command | Query | Compare, timeout_s: float = 5.0) -> Answer:
        """The host's answer; never `Refused`, which is raised as `Refusal`."""
        ...

    async def signal(self, signal: Signal) -> None:
        """Send and forget."""
        ...


# --- accounts and device sessions --------------------------------------------------------------------------------


class User(msgspec.Struct, frozen=True):
    """A person. `phone` is E.164, never shown in full to anybody else. Times are Unix milliseconds."""

    id: str
    phone: str
    name: str
    locale: str
    roles: tuple[str, ...]
    created_at: int
    avatar: str | None = None
    worker: WorkerProfile | None = None
    rating_sum: int = 0
    rating_count: int = 0


class Accounts(Protocol):
    """Users. Reads see every earlier write of the same database."""

    async def find_or_create(self, phone: str, locale: str) -> tuple[User, bool]:
        """The user of a verified phone and whether they are new; one user per phone under any race."""
        ...

    async def get(self, user_ids: Sequence[str]) -> dict[str, User]: ...
    async def update(self, user_id: str, *, name: str | None, locale: str | None, avatar: str | None) -> User: ...
    async def become_worker(self, user_id: str, profile: WorkerProfile) -> User:
        """Set the worker profile; adds the role `worker`."""
        ...

    async def grant(self, user_id: str, role: str) -> User:
        """Add a role such as `ops`; for operators."""
        ...


class Device(msgspec.Struct, frozen=True):
    id: str
    name: str
    platform: str


class DeviceSession(msgspec.Struct, frozen=True):
    """One login on one device: its id is the tokens' `sid`, and the family of its refresh tokens."""

    id: str
    user_id: str
    device: Device
    created_at: int
    last_seen_at: int
    revoked_at: int | None = None


class SessionSource(Protocol):
    """Where a device session is looked up."""

    async def get(self, session_id: str) -> DeviceSession | None: ...


class Sessions(SessionSource, Protocol):
    """Device sessions and their refresh tokens. Only hashes of tokens are stored."""

    async def open(self, session: DeviceSession, refresh_hash: bytes, expires_at: int) -> None: ...

    async def rotate(
        self, spent_hash: bytes, new_hash: bytes, new_token_sealed: bytes, now_ms: int, expires_at: int, grace_ms: int
    ) -> tuple[DeviceSession, bytes | None]:
        """Spend a refresh token and store its successor, atomically.

        Within `grace_ms` after it was spent the same token gives the same pair, as long as the successor has not been
        used: the second item is then the sealed successor stored the first time (else None). Otherwise it is being
        reused: the session is revoked.

        Raises:
            Refusal: `unauthenticated` for an unknown or expired token, `session_revoked` for a revoked session or reuse,
                then with the session's id as `current`, so that its sockets can be closed.
        """
        ...

    async def list_of(self, user_id: str) -> list[DeviceSession]: ...
    async def revoke(self, session_ids: Sequence[str], now_ms: int) -> None: ...


class Identity(msgspec.Struct, frozen=True):
    """Who an access token speaks for. `expires_at` is Unix milliseconds."""

    user_id: str
    session_id: str
    expires_at: int


class TokenVerifier(Protocol):
    async def verify(self, token: str) -> Identity:
        """Signature, times, audience, issuer and the session's life.

        Raises:
            Refusal: `unauthenticated`, `token_expired` or `session_revoked`.
        """
        ...

    def forget(self, session_id: str) -> None:
        """The session may have been revoked: ask about it anew the next time it is seen."""
        ...


# --- short-lived shared state (Redis) ----------------------------------------------------------------------------


class Outbox(Protocol):
    """What the sandbox senders would have sent; newest first, the last 1,000 kept. For development only."""

    async def add(self, to: str, kind: str, text: str, code: str | None, at: int) -> None: ...
    async def items(self, to: str | None, limit: int) -> list[dict[str, Any]]: ...


class OtpStore(Protocol):
    """One-time codes. Every method is atomic under any race. Raises `StoreUnavailable`: then nothing is let through."""

    async def put(self, phone: str, code_hash: bytes, ttl_s: int) -> None:
        """The phone's only valid code from now on, with a fresh count of tries."""
        ...

    async def check(self, phone: str, code_hash: bytes, tries: int) -> bool:
        """True once, for the right code, within `tries` attempts; every attempt counts, a right one uses the code up."""
        ...


class RateLimiter(Protocol):
    async def hit(self, key: str, limit: int, window_s: int) -> float | None:
        """Count one; None when within the limit, else the seconds until the next is allowed."""
        ...


# --- read models -------------------------------------------------------------------------------------------------


class ConversationRow(msgspec.Struct, frozen=True):
    """A conversation in somebody's list. `last_message` is the publication data of its newest message, as JSON."""

    id: str
    members: tuple[str, ...]
    order_id: str | None
    offset: int
    read_offset: int
    unread: int
    last_message: bytes | None
    updated_at: int


class MessageRow(msgspec.Struct, frozen=True):
    """A message with its edits applied. `data` is its publication JSON as posted; deleted ones have no text."""

    offset: int
    data: bytes
    text: str | None = None
    edited_at: int | None = None
    deleted_at: int | None = None
    reactions: dict[str, tuple[str, ...]] = {}


class Page(msgspec.Struct, frozen=True):
    """Items as they come, and an opaque cursor for what follows; None at the end."""

    items: list[Any]
    next_cursor: str | None


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """A recorded place of a visit. `at` is Unix milliseconds; degrees WGS84, metres, metres a second."""

    at: int
    lat: float
    lon: float
    accuracy_m: float
    speed_mps: float | None = None
    heading_deg: float | None = None
    visit_id: str = ""


class ReadModels(Protocol):
    """Lists, written in the same transaction as the events they come from. Cursors: Refusal `invalid` for a bad one."""

    async def conversations(self, user_id: str, cursor: str | None, limit: int) -> Page:
        """`ConversationRow`s of a member, latest activity first."""
        ...

    async def messages(
        self, conversation_id: str, *, before: int | None, after: int | None, limit: int
    ) -> tuple[list[MessageRow], int | None]:
        """Messages newest first before an offset (or from the end), or oldest first after one; and where to go on."""
        ...

    async def orders(self, user_id: str, role: str, state: str | None, cursor: str | None, limit: int) -> Page:
        """Snapshots of order states (bytes) in which the user is `customer` or `worker`, latest activity first."""
        ...

    async def order_heads(self, user_id: str) -> list[tuple[str, int, str]]:
        """(id, offset, state) of all orders of a user that are not closed, for `sync`."""
        ...

    async def add_positions(self, order_id: str, positions: Sequence[Position]) -> None: ...
    async def positions(self, order_id: str, visit_id: str | None, limit: int) -> list[Position]: ...


# --- seeing it ---------------------------------------------------------------------------------------------------


class Taken(msgspec.Struct, frozen=True):
    """Who took a partition last: `owner` as it was given to `PartitionLog.take`, the takeover row's position and time."""

    owner: str
    position: int
    at: int


class StreamRecord(msgspec.Struct, frozen=True):
    """What the database has of a stream and of the partition it lives in.

    `head` is the stream's last offset (0: it does not exist) and `at` that event's time; `position` is the last one of
    the partition, `cursor` the one up to which events are known to be published, `taken` its last takeover.
    """

    head: int
    at: int | None
    snapshot_offset: int
    position: int
    cursor: int
    taken: Taken | None
    reminders: tuple[Reminder, ...] = ()


class StreamRecords(Protocol):
    """The database's side of a stream, for operators: what its activation should agree with."""

    async def record(self, stream: str) -> StreamRecord:
        """Raises `StoreUnavailable`."""
        ...


class Metrics(Protocol):
    """Counters, gauges and histograms, cheap enough for a hot path: values are gathered and flushed once a second."""

    def count(self, name: str, value: float = 1.0) -> None: ...
    def gauge(self, name: str, value: float) -> None: ...
    def observe(self, name: str, value: float) -> None: ...


class NoMetrics:
    """Metrics that go nowhere."""

    def count(self, name: str, value: float = 1.0) -> None: ...
    def gauge(self, name: str, value: float) -> None: ...
    def observe(self, name: str, value: float) -> None: ...


# --- making tokens -----------------------------------------------------------------------------------------------


class TokenIssuer(Protocol):
    """Makes what `TokenVerifier` and `Sessions` later check. Plain functions: they sign and seal, and wait for nothing."""

    def access(self, user_id: str, session_id: str, now_ms: int, ttl_s: int) -> str:
        """A signed access token (RS256 with `kid`) for the user on this device session.

        Equal arguments give an equal token while the key is the same: a repeated refresh answers with the same pair.
        """
        ...

    def refresh(self) -> str:
        """A new refresh token: at least 256 bits that nobody can guess, URL-safe."""
        ...

    def hash(self, refresh_token: str) -> bytes:
        """What is stored of a refresh token; equal for equal tokens, useless to who reads it."""
        ...

    def seal(self, text: str) -> bytes:
        """The text (up to 4 KiB), encrypted so that only `unseal` of the same keys reads it and a change is noticed."""
        ...

    def unseal(self, sealed: bytes) -> str: ...

    def jwks(self) -> dict[str, Any]:
        """The public keys as a JWK set (RFC 7517), the current and those still accepted."""
        ...
