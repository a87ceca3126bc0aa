"""Devices that hand over: told that their gateway drains, they stand on another one before they leave it."""

import asyncio
from contextlib import suppress
from time import perf_counter
from typing import Any, ClassVar, Final

import msgspec

from benchmarks.load.sockets import SocketFailed
from tests.support.crowd import (
    ANSWER_S,
    FIRST_BACKOFF_S,
    HANDSHAKE_S,
    LONGEST_BACKOFF_S,
    Crowd,
    Device,
    Line,
    _Pub,
    _push,
    _Reply,
    _reply,
)
from tests.support.oracle import Fault, Sent

LAST_ANSWERS_S: Final = 3.0
"""How long the former connection is kept for what was asked on it."""
_OWN: Final = b'{"push":{"channel":"user:'
_DRAINING: Final = b'"service.draining"'


class MovingLine(Line):
    """A connection whose client says that it hands over."""

    data: ClassVar[dict[str, Any]] = {"device_id": "bench", "handover": True}


class Leg:
    """One of a device's connections, and up to where each stream has come on it."""

    def __init__(self, device: "Mover", socket: MovingLine) -> None:
        self.device = device
        self.socket = socket
        self.at: dict[str, int] = {}
        self.asked: dict[int, tuple[str, int]] = {}
        self.standing = asyncio.Event()
        """It follows everything."""
        self.to_leave = asyncio.Event()
        self.over = False

    def pushed(self, line: bytes, now_s: float) -> None:
        self.device.heard(self, line, now_s)

    def replied(self, command_id: int, line: bytes, now_s: float) -> None:
        if command_id in self.asked:
            self.device.placed(self, *self.asked.pop(command_id), _reply(line), now_s)
        else:
            self.device.replied(command_id, line, now_s)

    def lost(self, reason: str) -> None:
        self.over = True
        self.to_leave.set()
        self.standing.set()
        self.device.leg_lost(self, reason)


class Mover(Device):
    """A device that is on two connections while it moves. What it has from the one it does not show again from the other;
    on each of them, nothing may come twice or be left out.

    `gaps_s` has, for every connection after the first, how long it could not receive anything: 0 where it had both.
    """

    def __init__(self, crowd: Crowd, name: str, user: str, token: str, url: str) -> None:
        super().__init__(crowd, name, user, token, url)
        self.gaps_s: list[float] = []
        self._leg: Leg | None = None
        self._cut_s: float | None = None

    # --- moving --------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        await super().stop()
        if self._leg is not None:
            self._leg.socket.close()

    async def _stay_connected(self) -> None:
        while True:
            leg = await self._arrive()
            former = self._take(leg)
            try:
                if former is not None and not former.over:
                    await self._last_answers(former)
                    former.over = True
                    former.socket.close()
                await leg.to_leave.wait()
            finally:
                if former is not None:
                    former.socket.close()

    async def _arrive(self) -> Leg:
        """A new connection that follows everything."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            leg: Leg | None = None
            try:
                async with self.crowd.door, asyncio.timeout(HANDSHAKE_S):
                    leg = Leg(self, await MovingLine.open(self.url, self.token))
                leg.socket.traffic = leg
                for stream in self.places:
                    self._place(leg, stream)
                async with asyncio.timeout(ANSWER_S):
                    await leg.standing.wait()
                if not leg.over:
                    return leg
            except (SocketFailed, TimeoutError) as error:
                self.crowd.evidence.errors[f"no connection: {type(error).__name__} {str(error)[-60:]}"] += 1
            except BaseException:
                if leg is not None:
                    leg.socket.close()
                raise
            if leg is not None:
                leg.over = True
                leg.socket.close()
            await asyncio.sleep(backoff_s * self.crowd.random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    def _take(self, leg: Leg) -> Leg | None:
        """From now on this is the connection; returns the former one."""
        now_s, former = perf_counter(), self._leg
        self._leg, self._socket = leg, leg.socket
        self.connections += 1
        self._heard_s, self._pings = now_s, leg.socket.pings
        self._subscribed = set(self.places)
        if former is not None:
            self.gaps_s.append(0.0 if self._cut_s is None else now_s - self._cut_s)
        self._cut_s = None
        if former is None or former.over:
            self._say_again()
        return former

    async def _last_answers(self, former: Leg) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_ANSWERS_S):
                while self._asked and not former.over:
                    await asyncio.sleep(0.01)
        self._say_again()

    def _say_again(self) -> None:
        """Nobody will answer what was asked before."""
        self._asked.clear()
        for outbox in self.outboxes.values():
            outbox.put_back()
            self._send_next(outbox)

    def leg_lost(self, leg: Leg, reason: str) -> None:
        self.crowd.evidence.errors[f"connection lost: {reason}"] += 1
        if leg is self._leg:
            self._cut_s = perf_counter()
            self._socket = None
            self._asked.clear()
            self._subscribed.clear()

    def check(self, now_s: float) -> None:
        leg = self._leg
        if leg is None or leg.over:
            return
        if leg.socket.pings != self._pings:
            self._pings, self._heard_s = leg.socket.pings, now_s
        elif now_s - self._heard_s > self.crowd.silence_s:
            leg.socket.close()
            leg.lost("no ping came")

    # --- what comes ----------------------------------------------------------------------------------------------

    def heard(self, leg: Leg, line: bytes, now_s: float) -> None:
        """A push on one of the connections."""
        self._heard_s = now_s
        if line.startswith(_OWN):
            if _DRAINING in line:
                leg.to_leave.set()
            return
        push = _push(line).push
        if push.channel not in self.places:
            return
        if push.pub is not None:
            self._come(leg, push.channel, push.pub, now_s)
        elif push.unsubscribe is not None:
            self.crowd.evidence.errors[f"unsubscribed: {push.unsubscribe.code}"] += 1
            leg.at.pop(push.channel, None)
            self._place(leg, push.channel)

    def placed(self, leg: Leg, stream: str, after: int, reply: _Reply, now_s: float) -> None:
        """The answer to a subscription that asked for what comes after an offset."""
        if reply.subscribe is None:
            code = reply.error.code if reply.error is not None else 0
            self.crowd.evidence.errors[f"not subscribed: {code}"] += 1
            leg.socket.close()
            leg.lost("not subscribed")
            return
        place, answer = self.places[stream], reply.subscribe
        leg.at[stream] = after if place.epoch else answer.offset
        if not place.epoch:
            place.epoch, place.offset = answer.epoch, answer.offset
            self.crowd.evidence.began[self.name, stream] = answer.offset
            self.crowd.evidence.shown.setdefault((self.name, stream), [])
        elif not answer.recovered or answer.epoch != place.epoch:
            self.crowd.evidence.errors["not recovered"] += 1
        for publication in answer.publications:
            self._come(leg, stream, publication, now_s)
        if len(leg.at) == len(self.places):
            leg.standing.set()

    def _come(self, leg: Leg, stream: str, publication: _Pub, now_s: float) -> None:
        if not publication.offset:
            return
        next_offset = leg.at.get(stream, -1) + 1
        if publication.offset != next_offset:
            how = f"on one connection {publication.offset} came where {next_offset} was next"
            promise = "D" if publication.offset < next_offset else "O"
            self.crowd.evidence.contradictions.append(Fault(promise, f"{stream} at {self.name}", how))
        leg.at[stream] = publication.offset
        if publication.offset > self.places[stream].offset:
            self._show(stream, publication, now_s)

    # --- what goes -----------------------------------------------------------------------------------------------

    def _place(self, leg: Leg, stream: str) -> None:
        place, number = self.places[stream], next(self._numbers)
        request: dict[str, Any] = {"channel": stream}
        if place.epoch:
            request |= {"recover": True, "epoch": place.epoch, "offset": place.offset}
        leg.asked[number] = stream, place.offset
        leg.socket.send(msgspec.json.encode({"id": number, "subscribe": request}))

    def _again(self, message: Sent, connection: int) -> None:
        under_way = self.outboxes[message.stream].under_way
        if self._socket is not None and message in under_way and message not in self._asked.values():
            self._write(message)
