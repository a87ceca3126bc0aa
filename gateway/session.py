"""A session: what one authenticated client has said, and what follows from it. Bytes in, effects out, no I/O.

Whoever drives a session performs the effects and reports back: `bytes` are queued for the client; a `Signal` is passed on;
`Work` is done and answered by exactly one of `verified`, `attached`, `detached`, `succeeded` or `failed`; after `Close`
nothing more happens.

Commands about one stream are worked on one after the other, in the order they came; those about different streams at once.
"""

from collections import deque
from typing import Literal

import msgspec

from domain.channels import parse_channel
from domain.commands import Actor, Command, Query, Signal
from domain.errors import Refusal, Refused
from domain.ports import Identity
from gateway import codes, protocol, rpc
from gateway.codes import Disconnect, ErrorCode
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


class Close(msgspec.Struct, frozen=True):
    """Flush what is queued and close the connection."""

    why: Disconnect


Effect = bytes | Signal | Verify | Attach | Detach | Ask | Sync | History | Close
AnyWork = Verify | Attach | Detach | Ask | Sync | History

_TOKEN_LANE = "token"  # noqa: S105 - a lane, not a secret


class Session:
    """The state of one client. `client_id` names the connection, `now_s` is monotonic throughout."""

    __slots__ = (
        "_allowance", "_allowance_at", "_attaching", "_effects", "_expires_at", "_held", "_lanes", "_opened_at", "_overdrawn",
        "_ping_at", "_pong_by", "_settings", "_state", "_waiting", "client_id", "identity", "in_flight", "subscriptions",
    )  # fmt: skip

    def __init__(self, settings: GatewaySettings, client_id: str, now_s: float) -> None:
        self._settings = settings
        self._state: Literal["new", "verifying", "open", "closed"] = "new"
        self._opened_at = now_s
        self._ping_at = 0.0
        self._pong_by = 0.0
        self._expires_at = 0.0
        self._effects: list[Effect] = []
        self._held: list[protocol.Command] | None = None
        self._lanes: dict[str, deque[AnyWork] | None] = {}
        self._waiting: deque[AnyWork] | None = None
        self._allowance = settings.commands_per_s * 4
        self._allowance_at = now_s
        self._overdrawn = 0
        self._attaching = 0
        self.client_id = client_id
        self.identity: Identity | None = None
        self.in_flight = 0
        """Works under way."""
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
        if frame == protocol.PING:
            self._pong()
            return self._take()
        try:
            commands = protocol.decode_commands(frame, self._settings.max_depth)
        except protocol.MalformedFrame:
            return self.close(codes.BAD_FRAME)
        for command in commands:
            self._receive(command, now_s)
            if self.closed:
                break
        return self._take()

    def tick(self, now_s: float) -> list[Effect]:
        """Time has passed: ping, or give up on a client that is late."""
        if self._state == "closed":
            return []
        if self._state != "open":
            return self.close(codes.STALE) if now_s >= self.deadline_s else []
        if self._pong_by and now_s >= self._pong_by:
            return self.close(codes.NO_PONG)
        if now_s >= self._expires_at:
            return self.close(codes.EXPIRED)
        if now_s >= self._ping_at:
            self._ping_at = now_s + self._settings.ping_interval_s
            self._pong_by = self._pong_by or now_s + self._settings.pong_timeout_s
            self._effects.append(protocol.PING)
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

    def verified(self, work: Verify, identity: Identity, now_s: float, now_ms: int) -> list[Effect]:
        """The token is good."""
        if self._state == "closed":
            return []
        known = self.identity
        if known is not None and (known.user_id, known.session_id) != (identity.user_id, identity.session_id):
            return self.close(codes.INVALID_TOKEN)
        life_s = (identity.expires_at - now_ms) / 1000
        self.identity = identity
        self._expires_at = now_s + life_s + self._settings.expiry_grace_s
        ttl = max(1, int(life_s))
        settings = self._settings
        if work.name == "refresh":
            refreshed = protocol.RefreshResult(self.client_id, settings.version, True, ttl)
            return self.succeeded(work, protocol.reply(work.command_id, "refresh", refreshed))
        self._state = "open"
        self._ping_at = now_s + settings.ping_interval_s
        connected = protocol.ConnectResult(
            client=self.client_id,
            version=settings.version,
            expires=True,
            ttl=ttl,
            ping=max(1, round(settings.ping_interval_s)),
            pong=True,
            session=self.client_id,
            node=settings.name,
            subs={f"user:{identity.user_id}": {}},
        )
        self._effects.append(protocol.reply(work.command_id, "connect", connected))
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
        return self.succeeded(work, protocol.reply(work.command_id, "subscribe", result))

    def detached(self, work: Detach) -> list[Effect]:
        """The subscription is gone."""
        self.subscriptions.pop(work.lane, None)
        return self.succeeded(work, protocol.reply(work.command_id, "unsubscribe", {}))

    def expelled(self, channel: str) -> list[Effect]:
        """The server ends a subscription: the user is no longer a member."""
        if self.subscriptions.pop(channel, None) is not None and self._state != "closed":
            self._effects.append(protocol.unsubscribe_push(channel, codes.MEMBERSHIP_LOST))
        return self._take()

    def succeeded(self, work: AnyWork, reply: bytes) -> list[Effect]:
        """The work is done, and this is its answer."""
        if self._state != "closed":
            self._effects.append(reply)
        self._finish(work)
        return self._take()

    def failed(self, work: AnyWork, error: ErrorCode, refused: Refused | None = None) -> list[Effect]:
        """The work could not be done."""
        if self._state == "verifying":
            self._state, self._held = "new", None
        if isinstance(work, Attach):
            self._attaching -= 1
        detail = None if refused is None else _detail(refused)
        return self.succeeded(work, protocol.error_reply(work.command_id, error, detail))

    # --- inside --------------------------------------------------------------------------------------------------

    def _take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def _pong(self) -> None:
        self._pong_by = 0.0

    def _bad(self) -> None:
        self._effects = [*self._effects, *self.close(codes.BAD_FRAME)]

    def _error(self, command: protocol.Command, error: ErrorCode) -> None:
        self._effects.append(protocol.error_reply(command.id, error))

    def _receive(self, command: protocol.Command, now_s: float) -> None:
        if command.connect is not None:
            if self._state != "new" or command.id == 0:
                return self._bad()
            self._state = "verifying"
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
        """A token bucket; who keeps on against its answers for ten bursts is cut off."""
        rate = self._settings.commands_per_s
        if not rate:
            return True
        self._allowance = min(rate * 4, self._allowance + (now_s - self._allowance_at) * rate)
        self._allowance_at = now_s
        if self._allowance >= 1:
            self._allowance -= 1
            self._overdrawn = 0
            return True
        self._overdrawn += 1
        if self._overdrawn > rate * 40:
            self._effects = [*self._effects, *self.close(codes.PROTOCOL_ABUSE)]
        return False

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
        elif command.presence or command.presence_stats or command.sub_refresh:
            self._error(command, codes.NOT_AVAILABLE)
        elif command.ping is not None:
            self._effects.append(protocol.reply(command.id, "ping", {}))
        else:
            self._error(command, codes.METHOD_NOT_FOUND)

    def _subscribe(self, command: protocol.Command, request: protocol.SubscribeRequest) -> None:
        assert self.identity is not None
        channel = parse_channel(request.channel)
        if channel is None or channel.kind == "user":
            own = channel is not None and channel.id == self.identity.user_id
            return self._error(command, codes.ALREADY_SUBSCRIBED if own else codes.PERMISSION_DENIED)
        return self._start(Attach(command.id, request.channel, request, channel.kind, channel.id))

    def _rpc(self, command: protocol.Command, request: protocol.RpcRequest) -> None:
        if request.method == "sync":
            return self._start(Sync(command.id, "sync"))
        try:
            planned = rpc.plan(request.method, request.data, self.actor)
        except Refusal as refusal:
            error = codes.catalogue_error(refusal.code)
            self._effects.append(protocol.error_reply(command.id, error, _detail(refusal.refused)))
            return None
        if planned is None:
            return self._error(command, codes.METHOD_NOT_FOUND)
        return self._start(Ask(command.id, planned.stream, request.method, planned))

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
            if len(self.subscriptions) + self._attaching >= self._settings.max_subscriptions:
                return self._settle(work, codes.LIMIT_EXCEEDED)
            self._attaching += 1
        elif isinstance(work, History) and work.lane not in self.subscriptions:
            return self._settle(work, codes.PERMISSION_DENIED)
        self._effects.append(work)
        return None

    def _settle(self, work: AnyWork, error: ErrorCode) -> None:
        self._effects.append(protocol.error_reply(work.command_id, error))
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


def _detail(refused: Refused) -> dict[str, object] | None:
    """What REST would say beside the code: the facts that disagree, and what would be allowed."""
    detail: dict[str, object] = {}
    if refused.detail:
        detail["detail"] = refused.detail
    if refused.errors:
        detail["errors"] = refused.errors
    if refused.current is not None:
        detail["current"] = refused.current
    if refused.allowed_commands is not None:
        detail["allowed_commands"] = refused.allowed_commands
    if refused.retry_after_s is not None:
        detail["retry_after_s"] = refused.retry_after_s
    return detail or None
