"""Where the siblings meet: what each needs from the others, with the guarantee that an implementation must give."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from domain.acts import Act
from domain.aggregate import Facts, Need, Opening, WorkerProfile
from domain.commands import Answer, Command, Compare, Query, Reminder, Signal
from domain.places import Seen
from domain.presence import Heard, Present
from domain.search import Wanted


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
    Where turns of one commit disagree the later one wins. A turn may hold snapshots only. A turn with an `opening` is left
    out, its streams stale, where the customer would have more open orders than that, whoever opens others meanwhile.
    """

    partition: int
    entries: list[Entry]
    snapshots: list[Snapshot] = []
    claims: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    reminders: list[Reminder] = []
    done: list[tuple[str, str]] = []
    opening: Opening | None = None


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
    identity_until: int = 0
    """Until when operations vouch for who they are; each skill's licence is in `licences`."""
    licences: dict[str, int] = {}


class Accounts(Protocol):
    """Users. Reads see every earlier write of the same database."""

    async def find_or_create(self, phone: str, locale: str) -> tuple[User, bool]:
        """The user of a verified phone and whether they are new; one user per phone under any race."""
        ...

    async def locale_of(self, phone: str) -> str | None:
        """The locale of a phone's account. It costs the same whether or not there is one."""
        ...

    async def get(self, user_ids: Sequence[str]) -> dict[str, User]: ...
    async def update(self, user_id: str, *, name: str | None, locale: str | None, avatar: str | None) -> User: ...
    async def become_worker(self, user_id: str, profile: WorkerProfile) -> User:
        """Set the worker profile; adds the role `worker`."""
        ...

    async def grant(self, user_id: str, role: str, act: Act | None = None) -> User:
        """Add a role such as `ops`; for operators. `act` goes into the audit log with it, or neither happens."""
        ...


class Device(msgspec.Struct, frozen=True):
    id: str
    name: str
    platform: str


class DeviceSession(msgspec.Struct, frozen=True):
    """One login on one device: its id is the tokens' `sid`, and the family of its refresh tokens.

    `confirmed_at`: when a one-time code was last given on it, 0 for never; `second_factor_at` the same of a second factor.
    `device_key_id`: the device key that opened it. `locale` and `roles` are the user's, where it is looked up by its id.
    """

    id: str
    user_id: str
    device: Device
    created_at: int
    last_seen_at: int
    revoked_at: int | None = None
    seen: Seen = Seen()
    confirmed_at: int = 0
    second_factor_at: int = 0
    device_key_id: str | None = None
    locale: str = ""
    roles: tuple[str, ...] = ()


Judge = Callable[[DeviceSession], DeviceSession]
"""Whether a session may go on: raises `Refusal`, or gives the session as it is to be stored. Pure: it may be asked twice."""


class SessionSource(Protocol):
    """Where a device session is looked up."""

    async def get(self, session_id: str) -> DeviceSession | None: ...


class Sessions(SessionSource, Protocol):
    """Device sessions and their refresh tokens. Only hashes of tokens are stored.

    An `act` that is given goes into the audit log in the same transaction: both happen, or neither.
    """

    async def open(self, session: DeviceSession, refresh_hash: bytes, expires_at: int, act: Act | None = None) -> None:
        """Store a new session and its first refresh token.

        Raises:
            Refusal: `unauthenticated` where the device key that opens it is not there any more; looked up in the same
                transaction.
        """
        ...

    async def of_refresh(self, refresh_hash: bytes) -> DeviceSession | None:
        """The session that this refresh token, spent or not, belongs to; nothing is changed."""
        ...

    async def rotate(
        self,
        spent_hash: bytes,
        new_hash: bytes,
        new_token_sealed: bytes,
        now_ms: int,
        expires_at: int,
        grace_ms: int,
        judge: Judge | None = None,
        reused: Act | None = None,
    ) -> tuple[DeviceSession, bytes | None]:
        """Spend a refresh token and store its successor, atomically.

        `judge` is asked while nobody else can change the session, also within the grace, but not about a token that is
        reused. What it refuses changes nothing: the token can still be spent.

        Within `grace_ms` after it was spent the same token gives the same pair, as long as the successor has not been
        used: the second item is then the sealed successor stored the first time (else None). Otherwise it is being
        reused: the session is revoked, and `reused` is written down in the name of its user.

        Raises:
            Refusal: `unauthenticated` for an unknown or expired token, `session_revoked` for a revoked session or reuse,
                then with the session's id as `current`, so that its sockets can be closed; and what `judge` raises.
        """
        ...

    async def list_of(self, user_id: str) -> list[DeviceSession]: ...
    async def revoke(self, session_ids: Sequence[str], now_ms: int, act: Act | None = None) -> None: ...


class Identity(msgspec.Struct, frozen=True):
    """Who an access token speaks for. `expires_at` is Unix milliseconds; `locale` is the account's of some seconds ago."""

    user_id: str
    session_id: str
    expires_at: int
    locale: str = ""


class TokenVerifier(Protocol):
    async def verify(self, token: str) -> Identity:
        """Signature, times, audience, issuer and the session's life.

        Raises:
            Refusal: `unauthenticated`, `token_expired` or `session_revoked`.
        """
        ...

    async def check_session(self, session_id: str) -> None:
        """Return if the device session still lives, whatever became of the token that it was opened with.

        Raises:
            Refusal: `session_revoked`.
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


class TicketStore(Protocol):
    """Tickets that were issued and not used. Atomic under any race. Raises `StoreUnavailable`: then none is let through.

    A store that has forgotten everything lets none through either.
    """

    async def issue(self, ticket_id: str, ttl_s: int) -> None: ...

    async def spend(self, ticket_id: str) -> bool:
        """True once, within `ttl_s` of its issue."""
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
    """A message with its edits applied. `data` is its publication JSON as posted; deleted ones have no text.

    `text` is what every member may read. Where contact details are `masked` in it (their kinds), `original` is for its
    author alone.
    """

    offset: int
    data: bytes
    text: str | None = None
    edited_at: int | None = None
    deleted_at: int | None = None
    reactions: dict[str, tuple[str, ...]] = {}
    masked: tuple[str, ...] = ()
    original: str | None = None


class MessageVersion(msgspec.Struct, frozen=True):
    """What a message said from `at` (Unix ms) on; `original` as in `MessageRow`."""

    offset: int
    at: int
    by: str
    text: str | None
    original: str | None = None


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

    async def history(self, conversation_id: str, message_id: str) -> list[MessageVersion] | None:
        """Everything that the message ever said, oldest first; nothing once it is deleted, None where there is none."""
        ...

    async def unread(self, conversation_id: str, user_id: str, after: int) -> int:
        """How many messages other people have posted after an offset. Deleted ones and the platform's cards do not count."""
        ...

    async def contacts(self, user_id: str, others: Sequence[str]) -> frozenset[str]:
        """Those of the others who are members of a conversation of which the user is one, and have not blocked the user."""
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


# --- presence ----------------------------------------------------------------------------------------------------


class Buried(msgspec.Struct, frozen=True):
    """What a gateway that is over had said: who is taken off which channel with it. `more`: there is more to be buried."""

    gateway: str = ""
    gone: dict[str, tuple[Present, ...]] = {}
    more: bool = False


class PresenceStore(Protocol):
    """Who is on which channel, said by each gateway for its own clients. It may forget everything at any moment.

    A gateway speaks under a name that it uses once. When it has not beaten for 30 s, what it said counts no more; then
    anybody may bury it, and from then on the name means nothing: its gateway enters under a fresh one and says all again.
    All times are by the store's clock. Every method may raise `StoreUnavailable`: then it may or may not have happened, and
    doing it again is harmless.
    """

    async def enter(self, gateway: str) -> None:
        """The gateway is there, and has said nothing yet."""
        ...

    async def beat(self, gateway: str) -> bool:
        """The gateway lives. False: the name is not known, or no longer; nothing that was said under it counts."""
        ...

    async def say(
        self, gateway: str, here: Mapping[str, Sequence[Present]], gone: Mapping[str, int] | None = None
    ) -> bool:
        """Who is now on these channels at this gateway, instead of what was said of them before; all or nothing.

        On those in `gone` nobody is any more, since so many milliseconds: on a user's channel that is remembered as last
        seen, for 30 days, unless later is known. False: the name is not known; nothing was changed.
        """
        ...

    async def leave(self, gateway: str) -> None:
        """The gateway goes in good order: nobody is there by it any more, and all were last seen now."""
        ...

    async def bury(self, limit: int = 500) -> Buried:
        """Take off about `limit` channels of one gateway that is over; their users were last seen when it beat last."""
        ...

    async def read(self, channels: Sequence[str]) -> list[Heard]:
        """What every gateway has said of each channel, in one step."""
        ...


# --- making tokens -----------------------------------------------------------------------------------------------


class TokenIssuer(Protocol):
    """Makes what `TokenVerifier` and `Sessions` later check. Plain functions: they sign and seal, and wait for nothing."""

    def access(self, user_id: str, session_id: str, now_ms: int, ttl_s: int) -> str:
        """A signed access token (RS256 with `kid`) for the user on this device session.

        Equal arguments give an equal token while the key is the same: a repeated refresh answers with the same pair.
        """
        ...

    def ticket(self, user_id: str, session_id: str, ticket_id: str, now_ms: int, ttl_s: int) -> str:
        """A signed ticket (`domain.tickets`) of this id. No access token, and nothing that REST accepts."""
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


# --- content -----------------------------------------------------------------------------------------------------


class ObjectStore(Protocol):
    """Contents by name: 32 hexadecimal digits that the platform makes, never a client. Raises `StoreUnavailable`."""

    async def put(self, name: str, content: bytes) -> None:
        """Durable on return; whoever reads meanwhile gets the whole of the old content or the whole of the new one."""
        ...

    async def get(self, name: str) -> bytes | None: ...

    async def remove(self, name: str) -> None:
        """Gone on return; harmless where it is gone already."""
        ...

    async def close(self) -> None: ...


# --- searching, blocking, muting ---------------------------------------------------------------------------------


class MessageSearch(Protocol):
    """Finds messages of one conversation by what they say now; nothing of it is written when a message is sent."""

    async def find(self, conversation_id: str, wanted: Wanted, cursor: str | None, limit: int) -> Page:
        """`MessageRow`s that hold all that is wanted, newest first.

        A page may hold fewer than `limit` and still have a cursor: a search does a bounded amount of work, and the next
        page goes on where it ended. What was committed before the call is found, except texts that were changed in
        a conversation of which thousands of events have never been searched. Deleted messages are never found.

        Raises:
            Refusal: `invalid` for a cursor that no page has given out.
            StoreUnavailable.
        """
        ...


class Block(msgspec.Struct, frozen=True):
    """Whether the blocker has blocked the other one, and since when (Unix ms); no two changes of a pair have one time."""

    blocker_id: str
    blocked_id: str
    active: bool
    at: int


class Blocks(Protocol):
    """Who has blocked whom. Durable on return; reads see every earlier write. Every method may raise `StoreUnavailable`."""

    async def block(self, blocker_id: str, blocked_id: str, now_ms: int) -> Block:
        """Block, or the block that stands already; its time is then that of the first."""
        ...

    async def unblock(self, blocker_id: str, blocked_id: str, now_ms: int) -> Block | None:
        """End the block, or the block that was ended before; None where there never was one."""
        ...

    async def renew(self, known: Block, now_ms: int) -> Block:
        """The pair as it stands. Where it has come to be the contrary of what is known, with a new time.

        Whoever has told others what they know, late perhaps, asks this and tells them the answer, under its new time.
        """
        ...

    async def list_of(self, blocker_id: str, cursor: str | None, limit: int) -> Page:
        """Active `Block`s, latest first."""
        ...

    async def among(self, user_ids: Sequence[str]) -> frozenset[tuple[str, str]]:
        """(blocker, blocked) of every active block between any two of these users."""
        ...

    async def shared(self, user_id: str, other_id: str, *, alone: bool) -> list[str]:
        """The conversations that have both as members; `alone`: and nobody else."""
        ...


class Mutes(Protocol):
    """Which conversations a member does not want to be notified of; known to that member alone.

    `until_ms` is Unix milliseconds, 0 for ever. Every method may raise `StoreUnavailable`.
    """

    async def mute(self, conversation_id: str, user_id: str, until_ms: int) -> None: ...
    async def unmute(self, conversation_id: str, user_id: str) -> None: ...
    async def of(self, user_id: str, conversation_ids: Sequence[str], now_ms: int) -> dict[str, int]:
        """`until_ms` of those that the user has muted and that are muted now."""
        ...

    async def muted(self, conversation_id: str, user_ids: Sequence[str], now_ms: int) -> frozenset[str]:
        """Those of the users who have the conversation muted now: nothing is to be pushed to them."""
        ...
