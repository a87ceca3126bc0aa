"""A session: what one authenticated client has said, and what follows from it. Bytes in, effects out, no I/O.

Whoever drives a session performs the effects and reports back: `bytes` are queued for the client; a `Signal` is passed on;
`Work` is done and answered by exactly one of `verified`, `attached`, `detached`, `answered` or `failed`; after `Close`
nothing more happens.

Commands about one stream are worked on one after the other, in the order they came; those about different streams at once.
"""

import zlib
from collections import deque
from typing import Any, Literal

import msgspec

from domain import access
from domain.channels import parse_channel
from domain.commands import Actor, Command, Query, Signal
from domain.errors import FieldError, Refusal, Refused
from domain.ports import Identity
from domain.presence import user_channel
from domain.redaction import redacted
from domain.sentences import in_language, language_of
from gateway import codes, protocol, rpc
from gateway.budget import Budget, Share
from gateway.codec import JSON, Codec
from gateway.codes import Disconnect, ErrorCode
from gateway.progress import NOTHING, Taken
from gateway.recovery import Cursor
from gateway.settings import GatewaySettings


class Work(msgspec.Struct):
    """Something to be done for command `command_id`. Works of one `lane` never overlap."""

    command_id: int
    lane: str


class Verify(Work, tag="verify"):
    """Check a token, for `connect` or `refresh`; for `connect` follow the user's hints before reporting."""

    token: str
    name: Literal["connect", "refresh"]


class Attach(Work, tag="attach"):
    """Subscribe to a stream."""

    request: protocol.SubscribeRequest
    kind: Literal["conversation", "order"]
    stream_id: str


class Detach(Work, tag="detach"):
    """Unsubscribe from a stream."""


class Ask(Work, tag="ask"):
    """Ask the stream's activation, and shape its answer as that of `method`."""

    method: str
    request: Command | Query


class Sync(Work, tag="sync"):
    """Where do all conversations and orders of the user stand?"""


class History(Work, tag="history"):
    """Read a page of a followed stream."""

    request: protocol.HistoryRequest


class Attend(Work, tag="attend"):
    """Who is on a followed channel, or how many?"""

    name: Literal["presence", "presence_stats"]


class Whereabouts(Work, tag="whereabouts"):
    """Which of these users are online, and on which devices?"""

    user_ids: tuple[str, ...]


class Close(msgspec.Struct, frozen=True):
    """Flush what is queued and close the connection."""

    why: Disconnect


AnyWork = Verify | Attach | Detach | Ask | Sync | History | Attend | Whereabouts
Effect = bytes | Signal | AnyWork | Close

_TOKEN_LANE = "token"  # noqa: S105 - a lane, not a secret


class Session:
    """The state of one client. `client_id` names the connection to others, `now_s` is monotonic throughout.

    `key` is what a client shows with commands that do not come on the connection itself; empty where they all do.
    """

    __slots__ = (
        "_attaching", "_bytes", "_codec", "_commands", "_effects", "_expires_at", "_held", "_key", "_lanes", "_opened_at",
        "_ping_at", "_pong_by", "_ponged", "_settings", "_share", "_state", "_taken_bytes", "_too_much", "_waiting", "client_id",
        "hands_over", "identity", "in_flight", "locale", "subscriptions",
    )  # fmt: skip

    def __init__(
        self, settings: GatewaySettings, client_id: str, now_s: float, codec: Codec = JSON, key: str = ""
    ) -> None:
        self._settings = settings
        self._codec = codec
        self._key = key
        self._state: Literal["new", "verifying", "open", "closed"] = "new"
        self._opened_at = now_s
        self._ping_at = 0.0
        self._pong_by = 0.0
        self._ponged = False
        self._taken_bytes = 0
        self._expires_at = 0.0
        self._effects: list[Effect] = []
        self._held: list[protocol.Command] | None = None
        self._lanes: dict[str, deque[AnyWork] | None] = {}
        self._waiting: deque[AnyWork] | None = None
        self._commands = Budget(settings.commands_per_s, now_s)
        self._bytes = Budget(settings.bytes_per_s, now_s)
        self._too_much = False
        self._share: Share[Any] | None = None
        self._attaching = 0
        self.client_id = client_id
        self.identity: Identity | None = None
        self.in_flight = 0
        """Works under way."""
        self.hands_over = False
        """Whether the client connects anew before it lets go of a connection that is to end."""
        self.locale = ""
        """The language that it has asked for, if it is one of ours."""
        self.subscriptions: dict[str, Cursor] = {}

    # --- what the driver may look at -----------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return self._state == "closed"

    @property
    def open(self) -> bool:
        """Whether the client is authenticated."""
        return self._state == "open"

    @property
    def following(self) -> int:
        """How many subscriptions stand or are being made."""
        return len(self.subscriptions) + self._attaching

    @property
    def saturated(self) -> bool:
        """Whether so much is waiting that the client should not be read for now."""
        return self._waiting is not None and len(self._waiting) >= self._settings.max_in_flight

    @property
    def actor(self) -> Actor:
        assert self.identity is not None
        return Actor("user", self.identity.user_id, self.identity.session_id)

    @property
    def deadline_s(self) -> float:
        """When `tick` should be called at the latest."""
        if self._state == "open":
            return min(self._pong_by or self._ping_at, self._ping_at, self._expires_at)
        return self._opened_at + self._settings.connect_timeout_s

    # --- input ---------------------------------------------------------------------------------------------------

    def receive(self, frame: bytes, now_s: float) -> list[Effect]:
        """One frame from the client."""
        if self._state == "closed":
            return []
        if frame == self._codec.ping:
            self._pong()
            return self._take()
        try:
            commands = self._codec.decode(frame, self._settings.max_depth)
        except protocol.MalformedFrame:
            return self.close(codes.BAD_FRAME)
        self._weigh(frame, now_s)
        for command in commands:
            self._receive(command, now_s)
            if self.closed:
                break
        return self._take()

    def tick(self, now_s: float, taken: Taken = NOTHING) -> list[Effect]:
        """Time has passed: ping, or give up on a client that is late.

        Who takes what waits for it is not late: the ping is behind that. Who takes nothing, or has nothing left to take, is.
        Nor is an answer worth anything from who has not even taken the ping: that one reads nothing.
        """
        if self._state == "closed":
            return []
        if self._state != "open":
            return self.close(codes.STALE) if now_s >= self.deadline_s else []
        if self._pong_by and now_s >= self._pong_by:
            moves = taken.bytes > self._taken_bytes
            if self._ponged:
                if taken.waiting and not moves:
                    return self.close(codes.SLOW)
                self._pong_by = 0.0
            elif not (taken.waiting and moves):
                return self.close(codes.NO_PONG)
            else:
                self._pong_by = now_s + self._settings.pong_timeout_s
                self._taken_bytes = taken.bytes
        if now_s >= self._expires_at:
            return self.close(codes.EXPIRED)
        if now_s >= self._ping_at:
            self._ping_at = now_s + self._settings.ping_interval_s
            if not self._pong_by:
                self._pong_by = now_s + self._settings.pong_timeout_s
                self._ponged = False
                self._taken_bytes = taken.bytes
            self._effects.append(self._codec.ping)
        return self._take()

    def close(self, why: Disconnect) -> list[Effect]:
        """End the session; what was queued before still goes out."""
        if self._state == "closed":
            return []
        self._state = "closed"
        self._held = None
        self._lanes.clear()
        self._waiting = None
        self._effects.append(Close(why))
        return self._take()

    # --- reports -------------------------------------------------------------------------------------------------

    def verified(
        self, work: Verify, identity: Identity, now_s: float, now_ms: int, share: Share[Any] | None = None
    ) -> list[Effect]:
        """The token is good. `share` is what the user's connections share."""
        if self._state == "closed":
            return []
        known = self.identity
        if known is not None and (known.user_id, known.session_id) != (identity.user_id, identity.session_id):
            return self.close(codes.INVALID_TOKEN)
        life_s = (identity.expires_at - now_ms) / 1000
        self.identity = identity
        self._share = share
        self._expires_at = now_s + life_s + self._settings.expiry_grace_s
        ttl = max(1, int(life_s))
        settings = self._settings
        if work.name == "refresh":
            refreshed = protocol.RefreshResult(self.client_id, settings.version, True, ttl)
            return self.answered(work, "refresh", refreshed)
        self._state = "open"
        self._ping_at = now_s + settings.ping_interval_s * _first_ping(self.client_id)
        connected = protocol.ConnectResult(
            client=self.client_id,
            version=settings.version,
            expires=True,
            ttl=ttl,
            ping=max(1, round(settings.ping_interval_s)),
            pong=True,
            session=self._key,
            node=settings.name,
            subs={f"user:{identity.user_id}": {}},
        )
        self._effects.append(self._codec.reply(work.command_id, "connect", connected))
        self._finish(work)
        held, self._held = self._held or [], None
        for command in held:
            self._receive(command, now_s)
        return self._take()

    def attached(self, work: Attach, cursor: Cursor, result: protocol.SubscribeResult) -> list[Effect]:
        """The subscription stands. The cursor has joined the hub already: what the effects begin may take it out again."""
        self._attaching -= 1
        if self._state != "closed":
            self.subscriptions[work.lane] = cursor
        return self.answered(work, "subscribe", result)

    def detached(self, work: Detach) -> list[Effect]:
        """The subscription is gone."""
        self.subscriptions.pop(work.lane, None)
        return self.answered(work, "unsubscribe", protocol.EmptyResult())

    def expelled(self, channel: str) -> list[Effect]:
        """The server ends a subscription: the user is no longer a member."""
        if self.subscriptions.pop(channel, None) is not None and self._state != "closed":
            self._effects.append(self._codec.unsubscribed(channel, codes.MEMBERSHIP_LOST))
        return self._take()

    def answered(self, work: AnyWork, name: str, result: protocol.Result) -> list[Effect]:
        """The work is done, and this is what the command of this name is answered."""
        if self._state != "closed":
            self._effects.append(self._codec.reply(work.command_id, name, result))
        self._finish(work)
        return self._take()

    def failed(self, work: AnyWork, error: ErrorCode, refused: Refused | None = None) -> list[Effect]:
        """The work could not be done."""
        if self._state == "verifying":
            self._state, self._held = "new", None
        if isinstance(work, Attach):
            self._attaching -= 1
        if self._state != "closed":
            detail = None if refused is None else self._detail(refused)
            self._effects.append(self._codec.error(work.command_id, error, detail))
        self._finish(work)
        return self._take()

    # --- inside --------------------------------------------------------------------------------------------------

    def _take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def _pong(self) -> None:
        self._ponged = True

    def _bad(self) -> None:
        self._effects = [*self._effects, *self.close(codes.BAD_FRAME)]

    def _error(self, command: protocol.Command, error: ErrorCode) -> None:
        self._effects.append(self._codec.error(command.id, error))

    def _receive(self, command: protocol.Command, now_s: float) -> None:
        if command.connect is not None:
            if self._state != "new" or command.id == 0:
                return self._bad()
            self._state = "verifying"
            known = command.connect.known
            self.hands_over, self.locale = known.handover, language_of(known.locale)
            return self._start(Verify(command.id, _TOKEN_LANE, command.connect.token, "connect"))
        if self._state == "verifying":
            return self._hold(command)
        if self._state != "open":
            return self._bad()
        if command.id == 0:
            return self._without_reply(command, now_s)
        if not self._within_budget(now_s):
            if not self.closed:
                self._error(command, codes.TOO_MANY_REQUESTS)
            return None
        return self._dispatch(command)

    def _hold(self, command: protocol.Command) -> None:
        """Clients may send subscriptions right behind `connect`; they wait for its answer."""
        if self._held is None:
            self._held = []
        self._held.append(command)
        if len(self._held) > self._settings.max_subscriptions + self._settings.max_in_flight:
            self._bad()

    def _without_reply(self, command: protocol.Command, now_s: float) -> None:
        if command.send is not None:
            if self._within_budget(now_s):
                signal = rpc.signal(command.send.data, self.actor)
                if signal is not None:
                    self._effects.append(signal)
        elif command == _EMPTY:
            self._pong()
        else:
            self._bad()

    def _within_budget(self, now_s: float) -> bool:
        """One command more. Who keeps on against the answers is cut off; what other devices of the user do is not held
        against this one."""
        if not self._too_much and self._commands.spend(1, now_s):
            return self._share is None or self._share.commands.spend(1, now_s)
        if self._commands.abused or self._bytes.abused:
            self._effects = [*self._effects, *self.close(codes.PROTOCOL_ABUSE)]
        return False

    def _weigh(self, frame: bytes, now_s: float) -> None:
        """Every command of a frame that is beyond the bytes that may come is refused."""
        size = len(frame)
        self._too_much = not self._bytes.spend(size, now_s)
        if not self._too_much and self._share is not None:
            self._too_much = not self._share.bytes.spend(size, now_s)

    def _dispatch(self, command: protocol.Command) -> None:
        if command.subscribe is not None:
            self._subscribe(command, command.subscribe)
        elif command.unsubscribe is not None:
            self._start(Detach(command.id, command.unsubscribe.channel))
        elif command.history is not None:
            self._start(History(command.id, command.history.channel, command.history))
        elif command.rpc is not None:
            self._rpc(command, command.rpc)
        elif command.refresh is not None:
            self._start(Verify(command.id, _TOKEN_LANE, command.refresh.token, "refresh"))
        elif command.publish is not None:
            self._error(command, codes.PERMISSION_DENIED)
        elif command.presence is not None:
            self._start(Attend(command.id, command.presence.channel, "presence"))
        elif command.presence_stats is not None:
            self._start(Attend(command.id, command.presence_stats.channel, "presence_stats"))
        elif command.sub_refresh is not None:
            self._error(command, codes.NOT_AVAILABLE)
        elif command.ping is not None:
            self._effects.append(self._codec.reply(command.id, "ping", protocol.EmptyResult()))
        else:
            self._error(command, codes.METHOD_NOT_FOUND)

    def _subscribe(self, command: protocol.Command, request: protocol.SubscribeRequest) -> None:
        assert self.identity is not None
        channel = parse_channel(request.channel)
        if channel is None or not access.on_the_wire(access.CHANNELS.get(channel.kind)):
            return self._error(command, codes.PERMISSION_DENIED)
        if channel.kind == "user":
            own = channel.id == self.identity.user_id
            return self._error(command, codes.ALREADY_SUBSCRIBED if own else codes.PERMISSION_DENIED)
        return self._start(Attach(command.id, request.channel, request, channel.kind, channel.id))

    def _rpc(self, command: protocol.Command, request: protocol.RpcRequest) -> None:
        if not access.on_the_wire(access.RPC.get(request.method)):
            return self._error(command, codes.METHOD_NOT_FOUND)
        if request.method == "sync":
            return self._start(Sync(command.id, "sync"))
        try:
            if request.method == "presence.get":
                return self._start(Whereabouts(command.id, request.method, rpc.users_asked(request.data)))
            planned = rpc.plan(request.method, request.data, self.actor)
        except Refusal as refusal:
            error = codes.catalogue_error(refusal.code)
            self._effects.append(self._codec.error(command.id, error, self._detail(refusal.refused)))
            return None
        if planned is None:
            return self._error(command, codes.METHOD_NOT_FOUND)
        return self._start(Ask(command.id, planned.stream, request.method, planned))

    def _detail(self, refused: Refused) -> dict[str, object] | None:
        own = "" if self.identity is None else language_of(self.identity.locale)
        return _detail(refused, self.locale or own)

    # --- lanes ---------------------------------------------------------------------------------------------------

    def _start(self, work: AnyWork) -> None:
        """Begin the work now, or queue it behind its lane or behind everything."""
        full = self.in_flight >= self._settings.max_in_flight or bool(self._waiting)
        if full and not self._urgent(work):
            if self._waiting is None:
                self._waiting = deque()
            self._waiting.append(work)
        elif work.lane in self._lanes:
            queue = self._lanes[work.lane]
            if queue is None:
                queue = self._lanes[work.lane] = deque()
            queue.append(work)
            self.in_flight += 1
        else:
            self._lanes[work.lane] = None
            self.in_flight += 1
            self._begin(work)

    def _urgent(self, work: AnyWork) -> bool:
        """A refresh does not queue behind other work, or a busy client would expire."""
        return work.lane == _TOKEN_LANE and work.lane not in self._lanes

    def _begin(self, work: AnyWork) -> None:
        """Settle what needs nobody else, by what is true at this point of the lane; hand out the rest."""
        if isinstance(work, Attach):
            if work.lane in self.subscriptions:
                return self._settle(work, codes.ALREADY_SUBSCRIBED)
            if not self._may_follow_more():
                return self._settle(work, codes.LIMIT_EXCEEDED)
            self._attaching += 1
        elif isinstance(work, History | Attend) and not self._follows(work):
            return self._settle(work, codes.PERMISSION_DENIED)
        self._effects.append(work)
        return None

    def _may_follow_more(self) -> bool:
        if self.following >= self._settings.max_subscriptions:
            return False
        return self._share is None or self._share.following < self._settings.max_user_subscriptions

    def _follows(self, work: History | Attend) -> bool:
        """Whether the client is on the channel; on its user's own it is from the start, but that has no history."""
        assert self.identity is not None
        own = isinstance(work, Attend) and work.lane == user_channel(self.identity.user_id)
        return own or work.lane in self.subscriptions

    def _settle(self, work: AnyWork, error: ErrorCode) -> None:
        self._effects.append(self._codec.error(work.command_id, error))
        self._finish(work)

    def _finish(self, work: AnyWork) -> None:
        """Let the next of the lane begin, then those who wait for room."""
        if self._state == "closed":
            self.in_flight = max(0, self.in_flight - 1)
            return
        self.in_flight -= 1
        queue = self._lanes.get(work.lane)
        if queue:
            following = queue.popleft()
            if not queue:
                self._lanes[work.lane] = None
            self._begin(following)
        else:
            self._lanes.pop(work.lane, None)
        waiting = self._waiting
        while waiting and self.in_flight < self._settings.max_in_flight:
            self._waiting = None
            self._start(waiting.popleft())
            self._waiting = waiting
        if not waiting:
            self._waiting = None


_EMPTY = protocol.Command()


def _detail(refused: Refused, locale: str) -> dict[str, object] | None:
    """What REST would say beside the code: the facts that disagree, and what would be allowed."""
    detail: dict[str, object] = {}
    if refused.detail:
        detail["detail"] = in_language(redacted(refused.detail), locale)
    if refused.errors:
        detail["errors"] = [
            FieldError(redacted(item.field), item.code, in_language(redacted(item.message), locale))
            for item in refused.errors
        ]
    if refused.current is not None:
        detail["current"] = refused.current
    if refused.allowed_commands is not None:
        detail["allowed_commands"] = refused.allowed_commands
    if refused.retry_after_s is not None:
        detail["retry_after_s"] = refused.retry_after_s
    return detail or None


def _first_ping(client_id: str) -> float:
    """After which part of the interval a connection is pinged first: from half of it to four fifths.

    Each at its own, so that those who come together, from another gateway perhaps, are not pinged together ever after.
    """
    return 0.5 + 0.3 * zlib.crc32(client_id.encode()) / 2**32
