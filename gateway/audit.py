"""What has this gateway missed? Where streams stand, compared with what was heard of them.

The broker delivers at most once. What is lost before another event shows as a hole as soon as that one comes; the loss of a
stream's last event shows nowhere. So heads are compared, one question per partition: at once when the connection was lost
or messages were dropped, and otherwise slowly, over and over, so that a loss nobody noticed is mended too.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol

from domain.channels import stream_partition
from domain.commands import Actor, Attached, Compare, Compared, Query
from domain.errors import RETRYABLE, Code, Refusal
from domain.ports import BrokerUnavailable, Router, StoreUnavailable, TokenVerifier
from gateway import codes
from gateway.codes import Disconnect
from gateway.hub import Hub, HubChannel
from gateway.recovery import Cursor
from gateway.settings import GatewaySettings

log = logging.getLogger("renoveasy.gateway")

AT_ONCE: Final = 16
"""Questions under way after the broker came back."""
STREAMS: Final = 256
"""Streams in one question."""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class Guest(Protocol):
    """A connection whose device session may have been revoked while nothing was heard."""

    @property
    def actor(self) -> Actor: ...
    @property
    def authenticated(self) -> bool: ...
    def disconnect(self, why: Disconnect) -> None: ...


class Auditor:
    """Finds out what was missed and has it fetched; a cursor that is behind reads pages until it is not.

    `gateway_missed_events` counts events that never came, `gateway_silent_losses` the streams in which only the slow
    comparison found that out.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        router: Router,
        hub: Hub,
        verifier: TokenVerifier,
        guests: Callable[[], Iterable[Guest]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        counts: Counter[str],
        chance: Callable[[], float],
    ) -> None:
        """`chance` gives numbers from 0 to 1: gateways that started together shall not ask together."""
        self._settings = settings
        self._router = router
        self._hub = hub
        self._verifier = verifier
        self._guests = guests
        self._spawn = spawn
        self._counts = counts
        self._chance = chance
        self._resyncing: asyncio.Task[None] | None = None
        self._again = False

    # --- after a gap ---------------------------------------------------------------------------------------------

    def resync(self, then: Callable[[], None]) -> None:
        """Messages may have been missed: compare all heads, and ask again who may stay; `then` is called when that is done."""
        self._again = True
        if self._resyncing is None:
            self._resyncing = self._spawn(self._resync(then))

    async def _resync(self, then: Callable[[], None]) -> None:
        try:
            while self._again:
                self._again = False
                behind = deque(self._groups())
                guests = deque(guest for guest in self._guests() if guest.authenticated)
                await asyncio.gather(*(self._resync_some(behind, guests) for _ in range(AT_ONCE)))
            then()
        finally:
            self._resyncing = None

    async def _resync_some(self, groups: deque[list[HubChannel]], guests: deque[Guest]) -> None:
        while groups:
            await self._compare(groups.popleft(), patient=True)
        while guests:
            guest = guests.popleft()
            try:
                await self._verifier.check_session(guest.actor.session_id)
            except Refusal as refusal:
                if refusal.code is Code.SESSION_REVOKED:
                    guest.disconnect(codes.SESSION_REVOKED)
            except StoreUnavailable:
                self._counts["gateway_rechecks_failed"] += 1

    # --- without any sign ----------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Compare all heads once in `audit_s`, for ever: one question at a time, spread over that time."""
        period_s = self._settings.audit_s
        while period_s:
            groups = list(self._groups())
            pause_s = period_s / max(1, len(groups))
            for group in groups or [[]]:
                await asyncio.sleep(pause_s * (0.5 + self._chance()))
                try:
                    self._counts["gateway_silent_losses"] += await self._compare(group, patient=False)
                except Exception:
                    log.exception("heads could not be compared")

    # --- asking --------------------------------------------------------------------------------------------------

    def _groups(self) -> Iterable[list[HubChannel]]:
        """All channels that somebody follows, by partition."""
        by_partition: dict[int, list[HubChannel]] = {}
        for channel in self._hub.channels:
            if channel.cursors:
                by_partition.setdefault(stream_partition(channel.name), []).append(channel)
        for channels in by_partition.values():
            for start in range(0, len(channels), STREAMS):
                yield channels[start : start + STREAMS]

    async def _compare(self, channels: list[HubChannel], *, patient: bool) -> int:
        """In how many of these channels, all of one partition, something was missed. Who is `patient` asks until told."""
        pause_s = _FIRST_PAUSE_S
        while channels := [channel for channel in channels if channel.cursors]:
            names = tuple(channel.name for channel in channels)
            try:
                question = Compare(stream_partition(names[0]), names)
                answer = await self._router.ask(question, self._settings.ask_timeout_s)
            except (Refusal, BrokerUnavailable) as error:
                self._counts["gateway_rechecks_failed"] += 1
                if not patient or (isinstance(error, Refusal) and error.code not in RETRYABLE):
                    return 0
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                if not isinstance(answer, Compared):
                    raise TypeError(f"{type(answer).__name__} does not answer a comparison")
                heads = zip(channels, answer.heads, strict=True)
                return sum(self._found(channel, head, answer.owner) for channel, head in heads)
        return 0

    def _found(self, channel: HubChannel, head: int, owner: int) -> bool:
        """Whether events up to `head` are missing; then they are fetched.

        The head may be known already, from the owner's answer to a newcomer, while those who were here before have missed
        what led up to it.
        """
        channel.owner = max(channel.owner, owner)
        behind = min((cursor.position for cursor in channel.cursors if cursor.live), default=channel.head)
        if head <= behind:
            return False
        self._counts["gateway_missed_events"] += head - min(behind, channel.head)
        channel.head = max(channel.head, head)
        if channel.name.startswith("order:"):
            self.recheck(channel)
        else:
            self._unhook_all(channel)
        return True

    def recheck(self, channel: HubChannel) -> None:
        """Somebody may have lost the right to listen: ask, and have everybody who is behind catch up.

        An order's followers get nothing until the answer is in.
        """
        if channel.name.startswith("order:"):
            for cursor in channel.cursors:
                cursor.hold()
        self._spawn(self._recheck(channel))

    async def _recheck(self, channel: HubChannel) -> None:
        """A conversation says itself who has left it, so any one follower may ask. An order does not: each asks for itself."""
        kind, _, stream_id = channel.name.partition(":")
        asked = 0
        for cursor in tuple(channel.cursors):
            if not cursor.gone and (kind == "order" or not asked):
                query = Query(kind, stream_id, "attach", cursor.sink.actor)  # type: ignore[arg-type]
                asked += await self._ask_again(channel, cursor, query)
        self._unhook_all(channel)

    async def _ask_again(self, channel: HubChannel, cursor: Cursor, query: Query) -> bool:
        """Ask until there is an answer; False if the subscription ended instead."""
        pause_s = _FIRST_PAUSE_S
        while not cursor.gone:
            try:
                answer = await self._router.ask(query, self._settings.ask_timeout_s)
                if not isinstance(answer, Attached):
                    return True
                self._hub.attached(channel, answer)
                if answer.head >= cursor.position:
                    cursor.authorised_at = max(cursor.authorised_at, answer.head)
                    if cursor.held and not cursor.gone:
                        self._hub.go_on(channel, cursor)
                    return True
            except Refusal as refusal:
                if refusal.code not in RETRYABLE:
                    cursor.sink.expelled(cursor)
                    return False
            except BrokerUnavailable:
                self._counts["gateway_rechecks_failed"] += 1
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return False

    def _unhook_all(self, channel: HubChannel) -> None:
        for cursor in tuple(channel.cursors):
            if cursor.live and cursor.position < channel.head:
                cursor.live = False
                cursor.sink.lagging(cursor)
