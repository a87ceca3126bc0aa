"""One client's connection: performs its session's effects on the ports, and hands events from the hub to its queue."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from domain.access import absent_in_s
from domain.commands import Actor, Answer, Attached, Command, Query, Signal
from domain.errors import RETRYABLE, Code, Refusal
from domain.ports import BrokerUnavailable, ConversationRow, StoreUnavailable
from domain.presence import Present
from domain.wire import ConversationHead, OrderHead, SyncResult
from gateway import attendance, codes, protocol, rpc
from gateway.codec import JSON, Codec
from gateway.codes import Disconnect
from gateway.hub import HubChannel
from gateway.outbound import Outbound
from gateway.progress import Taken
from gateway.publication import Event, Publication
from gateway.recovery import Cursor, first_page, may_recover
from gateway.session import (
    AnyWork,
    Ask,
    Attach,
    Attend,
    Close,
    Detach,
    Effect,
    History,
    Session,
    Sync,
    Verify,
    Whereabouts,
)
from gateway.switchboard import Switchboard, notice

log = logging.getLogger("renoveasy.gateway")


class Transport(Protocol):
    """The socket: `write` one frame while `writable`; when it is again, `Connection.flush` is called."""

    @property
    def writable(self) -> bool: ...
    @property
    def ip(self) -> str:
        """The client's address, as `domain.places.network_of` writes it."""
        ...

    def taken(self) -> Taken: ...
    def write(self, frame: bytes) -> None: ...
    def close(self, code: int, reason: str) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Connection:
    """A transport and its session. Implements `recovery.Sink` for the hub and `switchboard.Peer` for the gateway."""

    __slots__ = (
        "_board", "_codec", "_dirty", "_lagging", "_out", "_paused", "_pump", "_room", "_session", "_slow",
        "_transport", "due_key", "present",
    )  # fmt: skip

    def __init__(self, board: Switchboard, transport: Transport, codec: Codec = JSON, key: str = "") -> None:
        settings = board.settings
        self._board = board
        self._transport = transport
        self._codec = codec
        self._session = Session(settings, board.new_id(), board.clock.monotonic_s(), codec, key)
        self._out = Outbound(settings.outbound_bytes, settings.outbound_frames)
        self._lagging: deque[Cursor] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._dirty = False
        self._paused = False
        self._slow = False
        self.due_key = 0
        self.present: Present | None = None
        board.peers.add(self)
        board.schedule(self)

    # --- Peer ----------------------------------------------------------------------------------------------------

    @property
    def actor(self) -> Actor:
        return self._session.actor

    @property
    def deadline_s(self) -> float:
        return self._session.deadline_s

    @property
    def authenticated(self) -> bool:
        return self._session.open

    @property
    def hands_over(self) -> bool:
        return self._session.hands_over

    @property
    def following(self) -> int:
        """How many subscriptions stand or are being made."""
        return self._session.following

    @property
    def busy(self) -> bool:
        """Whether commands are under way, or replies still wait to be written."""
        return not self._session.closed and (self._session.in_flight > 0 or len(self._out) > 0)

    def tick(self, now_s: float) -> None:
        self._perform(self._session.tick(now_s, self._transport.taken()))
        if not self._session.closed:
            self._board.schedule(self)

    def take_no_more(self) -> None:
        """Read no further commands; what is under way is answered. For who is about to be sent elsewhere."""
        if not self._session.closed:
            self._transport.pause_reading()

    def disconnect(self, why: Disconnect) -> None:
        """Close with a code; what is queued goes out first, as far as the socket takes it."""
        self._perform(self._session.close(why))

    # --- the socket ----------------------------------------------------------------------------------------------

    def received(self, frame: bytes) -> None:
        """A frame from the client."""
        self._board.counts["gateway_frames_in"] += 1
        self._perform(self._session.receive(frame, self._board.clock.monotonic_s()))
        if self._session.saturated and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def lost(self) -> None:
        """The socket is gone."""
        if not self._session.closed:
            self._board.counts["gateway_disconnects_lost"] += 1
            self._session.close(codes.SHUTDOWN)
        self._clean_up()

    def flush(self) -> None:
        """Write what is queued, as far as the socket takes it."""
        self._dirty = False
        out, transport = self._out, self._transport
        target = self._board.settings.frame_target_bytes
        while len(out) and transport.writable:
            transport.write(out.take(target, self._codec.separator))
            self._board.counts["gateway_frames_out"] += 1
        if self._room is not None and out.low and not self._room.done():
            self._room.set_result(None)

    def _queued(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._board.dirty(self)

    def _clean_up(self) -> None:
        """Leave every channel and every list; whoever still works for this session finds it closed."""
        board, session = self._board, self._session
        self._out.clear()
        board.peers.discard(self)
        board.unschedule(self)
        for cursor in session.subscriptions.values():
            board.hub.leave(cursor)
        session.subscriptions.clear()
        if session.identity is not None:
            board.unregister(self)
            board.hub.unfollow_user(session.identity.user_id, self)
            board.hub.departed(self)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # --- Sink ----------------------------------------------------------------------------------------------------

    def offer(self, event: Event) -> bool:
        taken = self._out.offer(self._codec.push(event))
        if taken and not self._dirty:
            self._dirty = True
            self._board.dirty(self)
        if not taken and not self._slow:
            self._slow = True
            self.state(notice(self.actor.id, "session.lagging"), "flow")
        return taken

    def state(self, publication: Publication, key: object) -> None:
        if self._out.put(key, self._codec.push(publication)):
            self._queued()
        else:
            self._board.counts["gateway_states_dropped"] += 1

    def moved(self, moved: attendance.Moved) -> None:
        if self._out.put(moved.key, moved.encoded(self._codec)):
            self._queued()
        else:
            self._board.counts["gateway_states_dropped"] += 1

    def hint(self, publication: Publication, key: object = None) -> None:
        item = self._codec.push(publication)
        if key is None or self._transport.writable:
            self._push(item)
        elif self._out.put(key, item, kept=True):
            self._queued()
        elif not self._session.closed:
            self.disconnect(codes.SLOW)

    def expelled(self, cursor: Cursor) -> None:
        self._board.hub.leave(cursor)
        self._perform(self._session.expelled(cursor.channel))

    def lagging(self, cursor: Cursor) -> None:
        if self._lagging is None:
            self._lagging = deque()
        self._lagging.append(cursor)
        if self._pump is None:
            self._pump = self._board.spawn(self._catch_up())

    # --- effects -------------------------------------------------------------------------------------------------

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, bytes):
                self._push(effect)
            elif isinstance(effect, Signal):
                self._board.signal(effect)
            elif isinstance(effect, Close):
                self._close(effect.why)
            elif isinstance(effect, Detach):
                self._detach(effect)
            else:
                self._board.spawn(self._work(effect))

    def _push(self, item: bytes) -> None:
        if self._out.push(item):
            self._queued()
        elif not self._session.closed:
            self.disconnect(codes.SLOW)

    def _close(self, why: Disconnect) -> None:
        self._board.counts[f"gateway_disconnects_{why.code}"] += 1
        self.flush()
        self._transport.close(why.code, why.reason)
        self._clean_up()

    def _detach(self, work: Detach) -> None:
        cursor = self._session.subscriptions.get(work.lane)
        if cursor is not None:
            self._board.hub.leave(cursor)
        self._perform(self._session.detached(work))

    async def _work(self, work: AnyWork) -> None:
        clock = self._board.clock
        asked_s = clock.monotonic_s()
        try:
            effects = await self._do(work)
        except Refusal as refusal:
            if refusal.code is Code.NOT_FOUND:
                await asyncio.sleep(absent_in_s(asked_s, clock.monotonic_s()))
            effects = self._refused(work, refusal)
        except (BrokerUnavailable, StoreUnavailable):
            effects = self._refused(work, Refusal(Code.UNAVAILABLE))
        except Exception:
            log.exception("work for a session failed: %s", type(work).__name__)
            effects = self._session.failed(work, codes.INTERNAL)
        self._perform(effects)
        if self._paused and not self._session.saturated:
            self._paused = False
            self._transport.resume_reading()

    def _refused(self, work: AnyWork, refusal: Refusal) -> list[Effect]:
        session, refused = self._session, refusal.refused
        if isinstance(work, Attach):
            return session.failed(work, codes.subscribe_error(refused))
        if not isinstance(work, Verify):
            return session.failed(work, codes.catalogue_error(refused.code), refused)
        if refused.code in RETRYABLE:
            return session.failed(work, codes.INTERNAL)
        if refused.code is Code.SESSION_REVOKED:
            return session.close(codes.SESSION_REVOKED)
        if refused.code is not Code.TOKEN_EXPIRED:
            return session.close(codes.INVALID_TOKEN)
        # The SDKs end for good when a refresh is refused; told that the connection expired, they come back with a new token.
        return session.close(codes.EXPIRED) if work.name == "refresh" else session.failed(work, codes.TOKEN_EXPIRED)

    async def _do(self, work: AnyWork) -> list[Effect]:
        match work:
            case Ask():
                answer = await self._ask(work.request)
                return self._session.answered(work, "rpc", protocol.RpcResult(rpc.result(work.method, answer)))
            case Attach():
                return await self._attach(work)
            case Verify():
                return await self._verify(work)
            case History():
                return await self._history(work)
            case Sync():
                return self._session.answered(work, "rpc", protocol.RpcResult(await self._sync()))
            case Attend():
                return await self._attend(work)
            case Whereabouts():
                return await self._whereabouts(work)
            case Detach():
                raise TypeError("unsubscribing needs nobody else")

    async def _ask(self, request: Command | Query) -> Answer:
        board, timeout_s = self._board, self._board.settings.ask_timeout_s
        if board.ops_acts is None:
            return await board.router.ask(request, timeout_s)
        async with board.ops_acts.written(request, self._transport.ip):
            return await board.router.ask(request, timeout_s)

    async def _verify(self, work: Verify) -> list[Effect]:
        board, session = self._board, self._session
        if not work.token:
            return session.close(codes.INVALID_TOKEN)
        identity = await board.verifier.verify(work.token)
        if work.name == "connect":
            await board.hub.follow_user(identity.user_id, self)
            if session.closed:
                board.hub.unfollow_user(identity.user_id, self)
                return []
        share = board.share_of(identity.user_id)
        effects = session.verified(work, identity, board.clock.monotonic_s(), board.clock.now_ms(), share)
        if session.closed:
            return effects
        if not board.register(self, share):
            return session.close(codes.SESSION_REVOKED)
        board.schedule(self)
        if work.name == "connect" and not session.closed:
            self.present = Present(session.client_id, identity.user_id, identity.session_id, board.clock.now_ms())
            board.hub.arrived(self)
        return effects

    async def _attach(self, work: Attach) -> list[Effect]:
        """Follow the channel first, then ask where it stands: what is published in between is seen by the hub."""
        board, session, request = self._board, self._session, work.request
        channel = await board.hub.follow(work.lane)
        joined = False
        try:
            # What this gateway has not heard itself, the stream's owner may still know: that spares the log a read.
            ask_after = request.recover and channel.tail_after(request.offset) is None
            after = request.offset if ask_after else None
            query = Query(work.kind, work.stream_id, "attach", self.actor, after=after)
            answer = await board.router.ask(query, board.settings.ask_timeout_s)
            if not isinstance(answer, Attached):
                raise TypeError(f"{type(answer).__name__} does not answer attach")
            board.hub.attached(channel, answer)
            recovered = request.recover and may_recover(request.epoch, request.offset, answer.epoch, channel.head)
            if request.recover and not recovered and request.flag & protocol.REJECT_UNRECOVERED:
                return session.failed(work, codes.UNRECOVERABLE_POSITION)
            events = await self._first_page(channel, request.offset) if recovered else []
            if session.closed:
                return []
            # Not from what has been heard since: in that the user may have left.
            start = request.offset if recovered else answer.head
            cursor = Cursor(self, work.lane, self.actor.id, start, answer.head)
            pubs, leaves = self._advance(cursor, events)
            result = protocol.SubscribeResult(
                epoch=answer.epoch,
                offset=start,
                recoverable=True,
                positioned=True,
                was_recovering=request.recover,
                recovered=recovered,
                publications=tuple(pubs),
            )
            board.hub.join(channel, cursor, watches=request.join_leave)
            joined = True
            self._perform(session.attached(work, cursor, result))
            if leaves:
                self.expelled(cursor)
            return []
        finally:
            if not joined:
                board.hub.unfollow(channel)

    async def _first_page(self, channel: HubChannel, after: int) -> Sequence[Event]:
        if after >= channel.head:
            return []
        settings = self._board.settings
        events = await self._board.hub.page(channel, after, settings.page_events, settings.page_bytes)
        return first_page(events, settings.page_bytes)

    def _advance(self, cursor: Cursor, events: Sequence[Event]) -> tuple[list[Event], bool]:
        """Move the cursor over a page: what of it stands in the reply, and whether the user left with it."""
        pubs: list[Event] = []
        for event in events:
            if event.offset != cursor.position + 1:
                break
            pubs.append(event)
            cursor.position = event.offset
            if cursor.leaves_with(event):
                return pubs, True
            if cursor.stops_at(event):
                break
        return pubs, False

    async def _history(self, work: History) -> list[Effect]:
        board, request, session = self._board, work.request, self._session
        cursor = session.subscriptions.get(work.lane)
        if cursor is None:
            return session.failed(work, codes.PERMISSION_DENIED)
        channel = board.hub.channel_of(cursor)
        since = request.since
        if since is not None and not may_recover(
            since.epoch, min(since.offset, channel.head), channel.epoch, channel.head
        ):
            return session.failed(work, codes.UNRECOVERABLE_POSITION)
        limit = board.settings.history_limit
        limit = limit if request.limit < 0 else min(request.limit, limit)
        rows: list[tuple[int, bytes]] = []
        if limit:
            rows = await board.hub.rows(work.lane, None if since is None else since.offset, limit, back=request.reverse)
        pubs: list[Publication] = []
        size = 0
        for offset, data in rows:
            size += len(data)
            if pubs and size > board.settings.page_bytes:
                break
            pubs.append(Publication(channel.address, data, offset))
        head = max([channel.head, *(offset for offset, _ in rows)])
        return session.answered(work, "history", protocol.HistoryResult(tuple(pubs), channel.epoch, head))

    async def _attend(self, work: Attend) -> list[Effect]:
        presence, session = self._board.presence, self._session
        if presence is None:
            return session.failed(work, codes.NOT_AVAILABLE)
        answer = await attendance.answer(presence, work.lane, work.name)
        if answer is None:
            return session.failed(work, codes.LIMIT_EXCEEDED)
        return session.answered(work, work.name, answer)

    async def _whereabouts(self, work: Whereabouts) -> list[Effect]:
        presence, session = self._board.presence, self._session
        if presence is None:
            return session.failed(work, codes.NOT_AVAILABLE)
        users = await attendance.whereabouts(presence, self._board.read_models, self.actor.id, work.user_ids)
        return session.answered(work, "rpc", protocol.RpcResult(users))

    async def _sync(self) -> SyncResult:
        board, user_id = self._board, self.actor.id
        rows: list[ConversationRow] = []
        cursor: str | None = None
        while len(rows) < board.settings.sync_conversations:
            page = await board.read_models.conversations(user_id, cursor, 200)
            rows.extend(page.items)
            cursor = page.next_cursor
            if cursor is None:
                break
        orders = await board.read_models.order_heads(user_id)
        return SyncResult(
            tuple(ConversationHead(row.id, row.offset, row.read_offset, row.unread) for row in rows),
            tuple(OrderHead(*order) for order in orders),
        )

    # --- catching up ---------------------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Read pages for the cursors that are behind, in turns, as fast as the client drains its queue."""
        lagging = self._lagging
        assert lagging is not None
        idle, waited_s, delay_s = 0, 0.0, 0.02
        try:
            while lagging and not self._session.closed:
                await self._until_room()
                cursor = lagging.popleft()
                if cursor.gone or cursor.held:
                    continue
                if await self._catch_up_once(cursor):
                    idle, waited_s, delay_s = 0, 0.0, 0.02
                else:
                    idle += 1
                if not (cursor.live or cursor.gone or cursor.held):
                    lagging.append(cursor)
                if lagging and idle >= len(lagging):
                    if waited_s > self._board.settings.recovery_patience_s:
                        self.disconnect(codes.INSUFFICIENT_STATE)
                    await asyncio.sleep(delay_s)
                    idle, waited_s, delay_s = 0, waited_s + delay_s, min(1.0, delay_s * 2)
        except Exception:
            log.exception("catching up failed")
            self.disconnect(codes.SERVER_ERROR)
        finally:
            self._pump = self._lagging = None
            if self._slow and not self._session.closed:
                self._slow = False
                self.state(notice(self.actor.id, "session.caught_up"), "flow")

    async def _catch_up_once(self, cursor: Cursor) -> bool:
        """One page for one cursor; True if it got further. From the last check to the return nothing is awaited."""
        hub, settings = self._board.hub, self._board.settings
        channel = hub.channel_of(cursor)
        max_events = max(1, min(settings.page_events, settings.outbound_frames // 4))
        max_bytes = min(settings.page_bytes, settings.outbound_bytes // 4)
        events: Sequence[Event] = []
        if cursor.position < channel.head:
            try:
                page = await hub.page(channel, cursor.position, max_events, max_bytes)
                events = first_page(page, max_bytes)
            except StoreUnavailable:
                self._board.counts["gateway_recovery_failures"] += 1
        if cursor.gone or cursor.held or self._session.closed:
            return True
        before = cursor.position
        for event in events:
            if event.offset != cursor.position + 1 or not self._out.push(self._codec.push(event)):
                break
            cursor.position = event.offset
            if cursor.leaves_with(event):
                self._queued()
                self.expelled(cursor)
                return True
            if cursor.stops_at(event):
                self._queued()
                hub.recheck(channel)
                return True
        self._queued()
        cursor.live = cursor.position >= channel.head
        return cursor.live or cursor.position > before

    async def _until_room(self) -> None:
        while not (self._out.low or self._session.closed):
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None
