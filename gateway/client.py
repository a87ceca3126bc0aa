"""A client of the platform that loses nothing: an outbox, positions in streams, local views, reconnects.

    async with Client(url, token=token, outbox=SqliteOutbox("phone.db")) as client:
        conversation = await client.conversation(conversation_id)
        await conversation.send("On my way")
        async for change in conversation.changes():
            ...

This is the asyncio shell; what is to be done when is decided in `gateway/client_core.py`.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from domain.errors import Code, Refusal, Refused
from domain.ids import uuid7
from domain.wire import PresenceList, SyncResult, UserPresence, WriteStatus
from gateway import client_effects as effects
from gateway.client_core import ClientCore
from gateway.client_dial import Dial, dial
from gateway.client_feed import Changes, Feed, Folding, Loaded, StreamLost
from gateway.client_handles import Conversation, Order
from gateway.client_keeper import Keeper
from gateway.client_lines import Lines
from gateway.client_settings import ClientSettings
from gateway.client_store import MemoryOutbox, OutboxBroken, OutboxFile
from gateway.client_views import FOLDS
from gateway.client_wire import BEGINNING, Position, Write, rpc
from gateway.client_writes import ClientEnded, Pending, write_of

log = logging.getLogger("renoveasy.client")

_PATIENCE_S: Final = 1.0


class NoToken(Exception):
    """Raised by a `token` function: there is none, and will be none; the user must log in again."""


def new_id() -> str:
    """A UUIDv7 of now."""
    return uuid7(time.time_ns() // 1_000_000, secrets.token_bytes(10))


class Client:
    """One device of one user. Used as a context manager; entering does not wait for a connection (`online` does).

    `token` is an access token, or a coroutine function that gets a fresh one; it raises `NoToken` when the user must log in
    again, and anything else when it should be asked again. `outbox` keeps writes and positions; one of another user is
    refused. `folds` say by kind (`conversation`, `order`) how a stream's view is made. `reload` loads a stream anew when what
    is known of it continues nowhere; without it, it is read again from its beginning. `hinted` gets every hint of `user:<id>`.
    """

    def __init__(
        self, url: str, *, token: str | Callable[[], Awaitable[str]], outbox: OutboxFile | None = None,
        settings: ClientSettings = ClientSettings(), folds: Mapping[str, Folding] = FOLDS,  # noqa: B008 - frozen
        reload: Callable[[str], Awaitable[Loaded]] | None = None, hinted: Callable[[dict[str, Any]], None] | None = None,
        dial: Dial = dial, new_id: Callable[[], str] = new_id, chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._token = token
        self._token_used = False
        self._outbox: OutboxFile = MemoryOutbox() if outbox is None else outbox
        self._settings = settings
        self._folds = folds
        self._reload = reload
        self._hinted = hinted
        self._chance = chance
        self.new_id = new_id
        self.heads: SyncResult | None = None
        """Where all the user's streams stood when `sync` was asked last, which the client does by itself."""
        self._feeds: dict[str, Feed] = {}
        self._pending: dict[str, Pending[Any]] = {}
        self._asks: dict[str, asyncio.Future[bytes | Refused | None]] = {}
        self._asked = 0
        self._lines = Lines(url, dial, self, self._spawn)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._full: set[Feed] = set()
        self._stirred = asyncio.Event()
        self._changed = asyncio.Event()
        self._error: Exception | None = None
        self._open = False

    # --- coming and going ----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Raises OutboxBroken."""
        self._loop = asyncio.get_running_loop()
        kept = await self._outbox.open()
        self._pending = {write.id: Pending(write) for write in kept.writes if not write.watermark}
        for pending in self._pending.values():
            pending.keep()
        self._core = ClientCore(self._settings, self._chance, self._now, kept.writes, kept.owner)
        self._keeper = Keeper(
            self._outbox, dict(kept.places), self._stored, self._discarded, self._not_stored
        )  # fmt: skip
        self._open = True
        self._perform(self._core.start(self._now))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave at once. What is not answered stays in the outbox; places are kept."""
        if not self._open:
            return
        self._open = False
        self._perform(self._core.close(self._now))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._keeper.close()

    async def online(self) -> None:
        """Wait for a connection; raises ClientEnded when none will come."""
        await self._until(lambda: self._core.online)

    async def settled(self) -> None:
        """Wait until every write, receipts too, has its final answer; raises ClientEnded."""
        await self._until(lambda: not self._core.unsettled)

    @property
    def user_id(self) -> str:
        """Who this is; empty before the first connection of this outbox."""
        return self._core.user_id

    @property
    def waiting(self) -> list[Pending[Any]]:
        """Writes without a final answer, those of earlier processes included."""
        return list(self._pending.values())

    # --- talking -------------------------------------------------------------------------------------------------

    def conversation(self, conversation_id: str, *, after: Position | None = None) -> Conversation:
        """The conversation; await it to follow it. With `after`, it begins there, and has no view: that is the app's own."""
        return Conversation(self, conversation_id, after)

    def order(self, order_id: str, *, after: Position | None = None) -> Order:
        """The order; await it to follow it."""
        return Order(self, order_id, after)

    async def sync(self) -> SyncResult:
        """Where all the user's streams stand."""
        self.heads = msgspec.json.decode(await self.ask("rpc", rpc("sync", b"{}")), type=SyncResult)
        return self.heads

    async def write_status(self, stream: str, write_id: str) -> WriteStatus:
        """Has the write landed in the stream (a channel)?"""
        body = msgspec.json.encode({"stream": stream, "id": write_id})
        return msgspec.json.decode(await self.ask("rpc", rpc("write.status", body)), type=WriteStatus)

    async def presence(self, *user_ids: str) -> tuple[UserPresence, ...]:
        """Who of these users is online, on which devices, or when they were last seen; at most 100."""
        body = msgspec.json.encode({"user_ids": user_ids})
        return msgspec.json.decode(await self.ask("rpc", rpc("presence.get", body)), type=PresenceList).users

    async def present(self, channel: str) -> dict[str, Any]:
        """Who follows the channel now, by connection, as the protocol's `presence` says it."""
        return dict(msgspec.json.decode(await self.ask("presence", {"channel": channel}))["presence"])

    async def history(
        self, channel: str, *, after: Position | None = None, limit: int = 100, reverse: bool = False
    ) -> list[tuple[int, dict[str, Any]]]:
        """A page of a followed stream: offsets and events, from `after` on or, reversed, before it."""
        body: dict[str, Any] = {"channel": channel, "limit": limit, "reverse": reverse}
        if after is not None:
            body["since"] = {"epoch": after.epoch, "offset": after.offset}
        page = msgspec.json.decode(await self.ask("history", body))
        return [(pub["offset"], pub["data"]) for pub in page.get("publications", ())]

    async def ask(self, name: str, body: object, within_s: float = 15.0) -> bytes:
        """The JSON answer to a question, asked again over reconnects for `within_s` seconds.

        Raises:
            Refusal: the platform says no, or `unavailable`: it said nothing in time.
            ClientEnded: the client has ended.
        """
        self._check_open()
        self._asked += 1
        key = f"question {self._asked}"
        answer = self._asks[key] = self._loop.create_future()
        try:
            self._perform(self._core.ask(key, name, body, self._now + within_s, self._now))
            result: bytes | Refused | None = await answer
        finally:
            del self._asks[key]
            self._core.give_up(key)
        if result is None:
            raise Refusal(Code.UNAVAILABLE, f"no answer within {within_s} s")
        if isinstance(result, Refused):
            raise Refusal.of(result)
        return result

    def write(
        self, method: str, stream: str, write_id: str, fields: dict[str, Any], watermark: int = 0
    ) -> Pending[Any]:
        """Do something once: kept on the device first, then sent until there is an answer.

        Raises:
            Refusal: it cannot be sent at all, the outbox is full, or the id is that of another write that waits.
            ClientEnded: the client has ended.
        """
        self._check_open()
        write = write_of(method, stream, write_id, fields, watermark)
        known = self._pending.get(write_id)
        if known is not None and known.write != write:
            raise Refusal(Code.IDEMPOTENCY_MISMATCH, f"{write_id} waits with another payload")
        if known is not None:
            return known
        pending: Pending[Any] = Pending(write)
        todo = self._core.write(write)
        if not watermark:
            self._pending[write_id] = pending
        self._perform(todo)
        return pending

    def say(self, data: dict[str, Any]) -> bool:
        """Say something that is true for a moment (`typing`, `fix`); False if it could not even be sent."""
        todo = [] if self._lines.busy else self._core.send(data)
        self._perform(todo)
        return bool(todo)

    # --- following -----------------------------------------------------------------------------------------------

    def follow(self, channel: str, after: Position | None = None) -> Feed:
        """Follow a channel from `after`, or from where the outbox says, or, with a view, from its beginning, or from now."""
        self._check_open()
        feed = self._feeds.get(channel)
        if feed is None or feed.ended is not None:
            folding = None if after is not None else self._folds.get(channel.partition(":")[0])
            kept = self._keeper.places.get(channel)
            feed = self._feeds[channel] = Feed(channel, folding, after, kept, self._keeper.mark, self._roomy)
            self._perform(self._core.follow(channel, feed.position, self._now))
        return feed

    async def standing(self, feed: Feed) -> None:
        """Wait until the subscription stands; raises StreamLost, ClientEnded."""
        await feed.standing.wait()
        if feed.ended is not None:
            raise feed.ended

    def unfollow(self, channel: str) -> None:
        """Its place is kept."""
        feed = self._feeds.pop(channel, None)
        if feed is not None:
            self._keeper.take_place(feed)
            feed.end(StreamLost(channel, 0, "left"))
            self._full.discard(feed)
            self._perform(self._core.unfollow(channel, self._now))

    # --- effects -------------------------------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self._loop.time()

    def _perform(self, todo: list[effects.Effect]) -> None:
        for effect in todo:
            self._do(effect)
        self._changed.set()
        self._changed = asyncio.Event()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._core.finished is None and (due_s := self._core.deadline_s) < float("inf"):
            self._timer = self._loop.call_at(due_s, self._tick)

    def _tick(self) -> None:
        self._perform(self._core.tick(self._now))

    def _do(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Transmit():
                self._lines.write(effect.link, effect.frame)
                self._stirred.set()
            case effects.Published() if effect.channel in self._feeds:
                feed = self._feeds[effect.channel]
                feed.published(effect.offset, effect.data)
                self._check_full(feed)
            case effects.Ephemeral() if effect.channel in self._feeds:
                self._feeds[effect.channel].ephemeral(effect.data)
            case effects.Save():
                self._keeper.save(effect.write)
            case effects.Forget():
                self._keeper.forget(effect.write)
            case effects.Discard():
                self._keeper.discard(effect)
            case effects.Done():
                self._settle(effect.write, effect.result, effect.attempts)
            case effects.Rejected():
                self._settle(effect.write, Refusal.of(effect.why), effect.attempts)
            case effects.Answered():
                self._answer(effect.key, effect.result)
            case effects.Unanswered():
                self._answer(effect.key, None)
            case effects.Dial():
                self._lines.open(effect.link)
            case effects.HangUp():
                self._lines.hang_up(effect.link)
            case effects.RenewToken():
                self._spawn(self._renew())
            case effects.Owner():
                self._keeper.own(effect.user_id)
            case effects.Finished():
                self._finish(ClientEnded(effect.code, effect.reason))
            case effects.Synced():
                self.heads = msgspec.json.decode(effect.data, type=SyncResult)
            case effects.Hinted():
                if self._hinted is not None:
                    self._hinted(msgspec.json.decode(effect.data))
            case effects.Standing() if effect.channel in self._feeds:
                self._feeds[effect.channel].stands(effect.position)
            case effects.Reload():
                self._spawn(self._load(effect.channel))
            case effects.Expelled() if effect.channel in self._feeds:
                self._expelled(effect)
            case _:
                pass  # of a stream that was left meanwhile; or of no concern here

    def _spawn(self, work: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("the client ends", exc_info=task.exception())
            self._error = ClientEnded(0, repr(task.exception()))
            self._perform(self._core.close(self._now))

    def _settle(self, write: Write, result: bytes | Exception, attempts: int = 0) -> None:
        pending = self._pending.pop(write.id, None)
        if pending is not None:
            pending.settle(result, attempts)
        elif isinstance(result, Exception):
            log.warning("%s %s was refused: %s", write.method, write.id, result)

    def _answer(self, key: str, result: bytes | Refused | None) -> None:
        future = self._asks.get(key)
        if future is not None and not future.done():
            future.set_result(result)

    def _expelled(self, effect: effects.Expelled) -> None:
        feed = self._feeds[effect.channel]
        self._full.discard(feed)
        self._keeper.drop_place(effect.channel)
        feed.end(StreamLost(effect.channel, effect.code, effect.reason))

    def _finish(self, why: ClientEnded) -> None:
        self._error = why = self._error if isinstance(self._error, ClientEnded) else why
        for pending in self._pending.values():
            pending.settle(why)
        for feed in self._feeds.values():
            feed.end(why)
        for future in self._asks.values():
            if not future.done():
                future.set_exception(why)
        self._stirred.set()

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._check_open()
            await self._changed.wait()

    # --- connections ---------------------------------------------------------------------------------------------

    def dialled(self, number: int) -> None:
        """For `Lines`."""
        self._perform(self._core.dialled(number, self._now))

    async def received(self, number: int, frame: bytes) -> None:
        """For `Lines`."""
        self._perform(self._core.received(number, frame, self._now))
        await self._until_room()

    def lost(self, number: int, code: int, reason: str) -> None:
        """For `Lines`."""
        self._perform(self._core.lost(number, code, reason, self._now))

    async def _renew(self) -> None:
        try:
            if isinstance(self._token, str):
                if self._token_used:
                    raise NoToken
                text, self._token_used = self._token, True
            else:
                text = await self._token()
        except NoToken:
            self._perform(self._core.no_token(self._now, for_good=True))
        except Exception as error:
            log.warning("no access token: %r", error)
            self._perform(self._core.no_token(self._now, for_good=False))
        else:
            self._perform(self._core.token(text, self._now))

    # --- flow ----------------------------------------------------------------------------------------------------

    def _check_full(self, feed: Feed) -> None:
        if feed.full and not feed.parked:
            self._full.add(feed)

    def _roomy(self, feed: Feed) -> None:
        self._full.discard(feed)
        if not self._full:
            self._stirred.set()
        if feed.parked:
            feed.parked = False
            self._perform(self._core.unpark(feed.channel, self._now))

    async def _until_room(self) -> None:
        """Read no further while a consumer is behind, so that TCP holds the server back.

        Not for long, or the server would take the client for dead; and not while an answer is waited for, perhaps by that
        very consumer: then its stream is let go, and taken up again from its position when there is room.
        """
        until_s = self._now + _PATIENCE_S
        while self._full:
            if self._core.waiting or self._now >= until_s:
                for feed in self._full:
                    feed.parked = True
                    self._perform(self._core.park(feed.channel, self._now))
                self._full.clear()
                return
            self._stirred.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until_s):
                    await self._stirred.wait()

    async def _load(self, channel: str) -> None:
        """Load the stream anew; while that fails, again."""
        attempts = 0
        while True:
            loaded: Loaded | None = None
            try:
                loaded = await self._reload(channel) if self._reload is not None else None
                break
            except Exception as error:
                log.warning("%s could not be loaded: %r", channel, error)
                attempts += 1
                await asyncio.sleep(self._settings.pace.delay_s(attempts, self._chance()))
        feed = self._feeds.get(channel)
        if feed is not None:
            self._perform(self._core.reloaded(channel, feed.reloaded(loaded), self._now))

    # --- keeping -------------------------------------------------------------------------------------------------

    def _stored(self, write: Write) -> None:
        pending = self._pending.get(write.id)
        if pending is not None:
            pending.keep()
        self._perform(self._core.stored(write, self._now))

    def _discarded(self, refusal: effects.Discard) -> None:
        self._perform(self._core.discarded(refusal, self._now))

    def _not_stored(self, write: Write, error: OutboxBroken) -> None:
        self._core.not_stored()
        self._settle(write, error)


__all__ = ["BEGINNING", "Changes", "Client", "ClientEnded", "NoToken", "Position", "StreamLost"]
