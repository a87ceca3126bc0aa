"""What the connections of one gateway share: the hub, deadlines, flushing, revocations, ephemeral items, counts."""

import asyncio
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from domain.channels import REVOKED_SUBJECT
from domain.commands import Actor, Attached, Query, Signal
from domain.errors import RETRYABLE, Code, Refusal
from domain.ports import (
    Broker,
    BrokerUnavailable,
    Clock,
    Metrics,
    ReadModels,
    Received,
    Router,
    StoreUnavailable,
    StreamReader,
    Subscription,
    TokenVerifier,
)
from gateway import codes
from gateway.codes import Disconnect
from gateway.hub import Hub, HubChannel, stopped
from gateway.recovery import Cursor
from gateway.settings import GatewaySettings

log = logging.getLogger("renoveasy.gateway")

_RESYNCS = 16
"""Questions at once after the broker came back."""


class Peer(Protocol):
    """A connection as its switchboard sees it."""

    due_key: int

    @property
    def actor(self) -> Actor: ...
    @property
    def token(self) -> str: ...
    @property
    def deadline_s(self) -> float: ...
    @property
    def authenticated(self) -> bool: ...
    @property
    def busy(self) -> bool: ...
    def tick(self, now_s: float) -> None: ...
    def flush(self) -> None: ...
    def disconnect(self, why: Disconnect) -> None: ...


class Switchboard:
    """Shared by all connections of a gateway; everything runs on one event loop."""

    def __init__(
        self,
        settings: GatewaySettings,
        router: Router,
        broker: Broker,
        reader: StreamReader,
        read_models: ReadModels,
        verifier: TokenVerifier,
        clock: Clock,
        new_id: Callable[[], str],
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.router = router
        self.read_models = read_models
        self.verifier = verifier
        self.clock = clock
        self.new_id = new_id
        self.metrics = metrics
        self.hub = Hub(settings, broker, reader, clock, metrics, self._recheck)
        self.peers: set[Peer] = set()
        self.counts: Counter[str] = Counter()
        self._broker = broker
        self._by_sid: dict[str, set[Peer]] = {}
        self._revoked: dict[str, float] = {}
        self._wheel: defaultdict[int, list[Peer]] = defaultdict(list)
        self._turned = int(clock.monotonic_s() / settings.tick_s)
        self._dirty: list[Peer] = []
        self._signals: deque[Signal] = deque(maxlen=settings.signals)
        self._signalling: asyncio.Task[None] | None = None
        self._resyncing: asyncio.Task[None] | None = None
        self._resync_again = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._revocations: Subscription | None = None
        self._stopped = False

    async def start(self) -> None:
        """Listen for revocations and lost connections to the broker; keep time.

        Raises:
            BrokerUnavailable: revocations cannot be heard, so nobody may be let in.
        """
        self._revocations = await self._broker.subscribe(REVOKED_SUBJECT, self._revoke)
        self._broker.on_reconnect(self._reconnected)
        self.spawn(self._keep_time())
        self.spawn(self._sweep())

    async def stop(self) -> None:
        """End every task and every subscription; connections must be closed before."""
        self._stopped = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._revocations is not None:
            await stopped(self._revocations)
        await self.hub.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in the background; the reference is kept, a failure is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a gateway task failed", exc_info=error)

    # --- writing -------------------------------------------------------------------------------------------------

    def dirty(self, peer: Peer) -> None:
        """Something is queued for the peer: all such peers are flushed together, once per turn of the event loop."""
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._flush)
        self._dirty.append(peer)

    def _flush(self) -> None:
        peers, self._dirty = self._dirty, []
        for peer in peers:
            peer.flush()

    def signal(self, signal: Signal) -> None:
        """Pass something ephemeral on; the oldest ones are lost when the broker cannot keep up."""
        self._signals.append(signal)
        if self._signalling is None:
            self._signalling = self.spawn(self._pass_signals())

    async def _pass_signals(self) -> None:
        try:
            while self._signals:
                try:
                    await self.router.signal(self._signals.popleft())
                except (BrokerUnavailable, Refusal):
                    self.counts["gateway_signals_lost"] += 1
        finally:
            self._signalling = None

    # --- time ----------------------------------------------------------------------------------------------------

    def schedule(self, peer: Peer) -> None:
        """Call `peer.tick` at its deadline, give or take a tick."""
        key = max(self._turned + 1, int(peer.deadline_s / self.settings.tick_s) + 1)
        if peer.due_key != key:
            peer.due_key = key
            self._wheel[key].append(peer)

    async def _keep_time(self) -> None:
        """Nothing that fails here may stop the clock."""
        while True:
            await asyncio.sleep(self.settings.tick_s)
            try:
                self._turn(self.clock.monotonic_s())
                self._write_metrics()
            except Exception:
                log.exception("a tick of the gateway failed")

    def _turn(self, now_s: float) -> None:
        current = int(now_s / self.settings.tick_s)
        self._turned = current
        for key in sorted(key for key in self._wheel if key <= current):
            for peer in self._wheel.pop(key):
                if peer.due_key == key:
                    peer.tick(now_s)
        while self._revoked and now_s - next(iter(self._revoked.values())) > self.settings.revocation_memory_s:
            del self._revoked[next(iter(self._revoked))]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.settings.tick_s)
            try:
                await self.hub.sweep()
            except Exception:
                log.exception("a channel could not be let go")

    def _write_metrics(self) -> None:
        metrics = self.metrics
        metrics.gauge("gateway_connections", len(self.peers))
        metrics.gauge("gateway_sessions", sum(len(peers) for peers in self._by_sid.values()))
        metrics.gauge("gateway_channels", len(self.hub.channels))
        metrics.gauge("gateway_subscriptions", sum(len(channel.cursors) for channel in self.hub.channels))
        for name, value in self.counts.items():
            metrics.count(name, value)
        self.counts.clear()

    # --- device sessions -----------------------------------------------------------------------------------------

    def register(self, peer: Peer) -> bool:
        """The peer speaks for its device session from now on; False if that was revoked a moment ago."""
        session_id = peer.actor.session_id
        if session_id in self._revoked:
            return False
        self._by_sid.setdefault(session_id, set()).add(peer)
        return True

    def unregister(self, peer: Peer) -> None:
        session_id = peer.actor.session_id
        peers = self._by_sid.get(session_id)
        if peers is not None:
            peers.discard(peer)
            if not peers:
                del self._by_sid[session_id]

    def _revoke(self, message: Received) -> None:
        session_id = message.data.decode("ascii", "replace")
        self._revoked.pop(session_id, None)
        self._revoked[session_id] = self.clock.monotonic_s()
        for peer in tuple(self._by_sid.get(session_id, ())):
            peer.disconnect(codes.SESSION_REVOKED)

    # --- after a gap ---------------------------------------------------------------------------------------------

    def _reconnected(self) -> None:
        """Messages may have been missed: compare heads, and ask again who may stay."""
        if self._stopped:
            return
        self._resync_again = True
        if self._resyncing is None:
            self._resyncing = self.spawn(self._resync())

    async def _resync(self) -> None:
        try:
            while self._resync_again:
                self._resync_again = False
                followed = deque(channel for channel in self.hub.channels if channel.cursors)
                peers = deque(peer for peer in self.peers if peer.authenticated)
                await asyncio.gather(*(self._resync_some(followed, peers) for _ in range(_RESYNCS)))
        finally:
            self._resyncing = None

    async def _resync_some(self, followed: deque[HubChannel], peers: deque[Peer]) -> None:
        while followed:
            await self._compare(followed.popleft())
        while peers:
            peer = peers.popleft()
            try:
                await self.verifier.verify(peer.token)
            except Refusal as refusal:
                if refusal.code is Code.SESSION_REVOKED:
                    peer.disconnect(codes.SESSION_REVOKED)
            except StoreUnavailable:
                self.counts["gateway_rechecks_failed"] += 1

    def _recheck(self, channel: HubChannel) -> None:
        self.spawn(self._compare(channel))

    async def _compare(self, channel: HubChannel) -> None:
        """Where does the stream stand? Whoever is behind catches up.

        A conversation says itself who has left it, so any one follower may ask. An order does not: each asks for itself.
        """
        kind, _, stream_id = channel.name.partition(":")
        asked = 0
        for cursor in tuple(channel.cursors):
            if not cursor.gone and (kind == "order" or not asked):
                query = Query(kind, stream_id, "attach", cursor.sink.actor)  # type: ignore[arg-type]
                asked += await self._ask_again(channel, cursor, query)
        for cursor in tuple(channel.cursors):
            self._unhook(cursor, channel)

    async def _ask_again(self, channel: HubChannel, cursor: Cursor, query: Query) -> bool:
        """Ask until there is an answer; False if the subscription ended instead."""
        delay_s = 0.1
        while not cursor.gone:
            try:
                answer = await self.router.ask(query, self.settings.ask_timeout_s)
                if isinstance(answer, Attached):
                    channel.attached(answer)
                return True
            except Refusal as refusal:
                if refusal.code not in RETRYABLE:
                    cursor.sink.expelled(cursor)
                    return False
            except BrokerUnavailable:
                self.counts["gateway_rechecks_failed"] += 1
            await asyncio.sleep(delay_s)
            delay_s = min(2.0, delay_s * 2)
        return False

    def _unhook(self, cursor: Cursor, channel: HubChannel) -> None:
        if cursor.live and cursor.position < channel.head:
            cursor.live = False
            cursor.sink.lagging(cursor)
