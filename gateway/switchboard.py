"""What the connections of one gateway share: the hub, deadlines, flushing, revocations, ephemeral items, counts."""

import asyncio
import logging
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec

from domain.channels import REVOKED_SUBJECT
from domain.commands import Actor, Signal
from domain.errors import Refusal
from domain.ports import (
    Broker,
    BrokerUnavailable,
    Clock,
    Metrics,
    PresenceStore,
    ReadModels,
    Received,
    Router,
    StreamReader,
    Subscription,
    TokenVerifier,
)
from gateway import codes
from gateway.audit import Auditor
from gateway.budget import Share
from gateway.codes import Disconnect
from gateway.hub import Hub, HubChannel, stopped
from gateway.ops_acts import OpsActs
from gateway.presence import Presence
from gateway.publication import Address, Publication
from gateway.settings import GatewaySettings

log = logging.getLogger("renoveasy.gateway")
_CANCEL_AGAIN_S: Final = 1.0


def notice(user_id: str, kind: str, **known: object) -> Publication:
    """What the gateway itself has to tell a user, on their own channel."""
    return Publication(Address(f"user:{user_id}"), msgspec.json.encode({"type": kind, **known}))


class Peer(Protocol):
    """A connection as its switchboard sees it."""

    due_key: int

    @property
    def actor(self) -> Actor: ...
    @property
    def deadline_s(self) -> float: ...
    @property
    def authenticated(self) -> bool: ...
    @property
    def busy(self) -> bool: ...
    @property
    def hands_over(self) -> bool: ...
    @property
    def following(self) -> int: ...
    def tick(self, now_s: float) -> None: ...
    def flush(self) -> None: ...
    def hint(self, publication: Publication, key: object = None) -> None: ...
    def state(self, publication: Publication, key: object) -> None: ...
    def take_no_more(self) -> None: ...
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
        chance: Callable[[], float] = random.random,
        presence: PresenceStore | None = None,
        ops_acts: OpsActs | None = None,
    ) -> None:
        """`chance` gives numbers from 0 to 1. Without a store for presence there is none; without `ops_acts` no operator's
        act is written down."""
        self.ops_acts = ops_acts
        self.settings = settings
        self.router = router
        self.read_models = read_models
        self.verifier = verifier
        self.clock = clock
        self.new_id = new_id
        self.metrics = metrics
        self.counts: Counter[str] = Counter()
        self.hub = Hub(settings, broker, reader, clock, metrics, self._recheck, self.counts)
        self.presence: Presence | None = None
        if presence is not None:
            self.presence = Presence(settings.presence, presence, broker, self.hub, clock, new_id, self.counts)
            self.hub.presence = self.presence
        self.peers: set[Peer] = set()
        self._broker = broker
        self._by_sid: dict[str, set[Peer]] = {}
        self._shares: dict[str, Share[Peer]] = {}
        self._revoked: dict[str, float] = {}
        self._wheel: defaultdict[int, dict[Peer, None]] = defaultdict(dict)
        self._turned = int(clock.monotonic_s() / settings.tick_s)
        self._dirty: list[Peer] = []
        self._signals: deque[Signal] = deque(maxlen=settings.signals)
        self._signalling: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._revocations: Subscription | None = None
        self._stopped = False
        self._auditor = Auditor(
            settings, router, self.hub, verifier, lambda: self.peers, self.spawn, self.counts, chance
        )

    async def start(self) -> None:
        """Listen for revocations and lost connections to the broker; keep time.

        Raises:
            BrokerUnavailable: revocations cannot be heard, so nobody may be let in.
        """
        self._revocations = await self._broker.subscribe(REVOKED_SUBJECT, self._revoke)
        self._broker.on_lost(self._broker_lost)
        self._broker.on_reconnect(self._broker_is_back)
        self.spawn(self._keep_time())
        self.spawn(self._sweep())
        self.spawn(self._auditor.watch())
        if self.presence is not None:
            self.spawn(self.presence.keep_for_ever())
            self.spawn(self.presence.tell_for_ever())

    async def stop(self) -> None:
        """End every task and every subscription; connections must be closed before."""
        self._stopped = True
        while tasks := list(self._tasks):
            # A library may lose a cancellation that comes in the moment of its answer, as Python 3.11's own `wait_for` does.
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CANCEL_AGAIN_S)
        if self.presence is not None:
            await self.presence.stop()
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
            self.unschedule(peer)
            peer.due_key = key
            self._wheel[key][peer] = None

    def unschedule(self, peer: Peer) -> None:
        """Forget its deadline, and with that the peer."""
        if peer.due_key in self._wheel:
            self._wheel[peer.due_key].pop(peer, None)

    async def _keep_time(self) -> None:
        """Nothing that fails here may stop the clock."""
        while True:
            # To the next multiple of a tick, which is what deadlines are rounded up to: so they are a tick late at most.
            await asyncio.sleep(self.settings.tick_s - self.clock.monotonic_s() % self.settings.tick_s)
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

    def share_of(self, user_id: str) -> Share[Peer]:
        """What the user's connections share, those that are there and the one that asks."""
        share = self._shares.get(user_id)
        return share if share is not None else Share(self.settings, self.clock.monotonic_s())

    def register(self, peer: Peer, share: Share[Peer]) -> bool:
        """The peer speaks for its device session from now on; False if that was revoked a moment ago."""
        session_id, user_id = peer.actor.session_id, peer.actor.id
        if session_id in self._revoked:
            return False
        self._by_sid.setdefault(session_id, set()).add(peer)
        self._shares.setdefault(user_id, share).peers[peer] = None
        most = self.settings.max_user_connections
        if most and len(share.peers) > most:
            next(iter(share.peers)).disconnect(codes.CONNECTION_LIMIT)
        return True

    def unregister(self, peer: Peer) -> None:
        share = self._shares.get(peer.actor.id)
        if share is not None:
            share.peers.pop(peer, None)
            if not share.peers:
                del self._shares[peer.actor.id]
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

    def _recheck(self, channel: HubChannel) -> None:
        self._auditor.recheck(channel)

    # --- while the broker is away --------------------------------------------------------------------------------

    def _broker_lost(self) -> None:
        for peer in self._there():
            peer.state(notice(peer.actor.id, "service.degraded"), "service")

    def _broker_is_back(self) -> None:
        """Messages may have been missed. Events are fetched; hints are gone, so whoever lives by them is told to `sync`."""
        if not self._stopped:
            self._auditor.resync(self._tell_restored)

    def _tell_restored(self) -> None:
        for peer in self._there():
            peer.hint(notice(peer.actor.id, "service.restored"))

    def _there(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.authenticated]
