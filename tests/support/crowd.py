"""People at work while the platform is being hurt: devices that hold a session, an outbox and their places in streams.

A device does what a good client does: it sends a message again with the same id when no answer comes, when the answer says
so, and after every reconnect; it comes back with epoch and offset. It shows what it is sent as it comes: nothing is
sorted, skipped or dropped here, because that is the platform's part. Everything goes into the `Evidence`.
"""

import asyncio
import itertools
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter, time
from types import TracebackType
from typing import Any, Final, Protocol, Self

import msgspec
import uuid_utils
from picows import WSFrame, WSMsgType, WSTransport

from actors.router import BrokerRouter
from benchmarks.load.sockets import CALLS, ChatSocket, SocketFailed
from benchmarks.load.ticker import Ticker
from deploy.connections import SystemClock
from domain.channels import command_subject, stream_partition
from domain.commands import Accepted, Actor, Command, Query, Status, canonical_json
from domain.errors import RETRYABLE, Refusal
from domain.ports import Device as LoginDevice
from domain.ports import DeviceSession, NoMetrics
from domain.times import rfc3339
from storage.broker import NatsBroker
from storage.engine import Database
from storage.sessions import SqlSessions
from storage.tokens import JwtIssuer, SigningKeys
from tests.support.oracle import ONCE, Evidence, Sent
from tests.support.parts import Parts

ANSWER_S: Final = 5.0
"""How long a device waits for an answer: the SDKs' default."""
HANDSHAKE_S: Final = 5.0
BACKLOG_S: Final = 600.0
"""How long what piled up in outboxes may take to get to the platform when all is over."""
SILENCE_S: Final = 35.0
"""Without so much as a ping for this long the connection is taken for dead: the server's 25 s and the SDKs' 10 s."""
FIRST_BACKOFF_S: Final = 0.05
LONGEST_BACKOFF_S: Final = 2.0
RETRY_S: Final = 0.2
"""Before a message is sent again to who has answered that it may be."""
TOKEN_LIFE_S: Final = 6 * 3600
HANDSHAKES_AT_ONCE: Final = 64
_SWEEP_S: Final = 0.05
_HINT: Final = b'{"push":{"channel":"user:'


class _Data(msgspec.Struct):
    type: str = ""
    message_id: str = ""
    by: str = ""
    text: str | None = None


class _Pub(msgspec.Struct):
    data: _Data
    offset: int = 0


class _Ended(msgspec.Struct):
    code: int = 0


class _Push(msgspec.Struct):
    channel: str = ""
    pub: _Pub | None = None
    unsubscribe: _Ended | None = None


class _Pushed(msgspec.Struct):
    push: _Push


class _Subscribed(msgspec.Struct):
    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    publications: list[_Pub] = []


class _Written(msgspec.Struct):
    offset: int = 0
    at: str = ""
    replayed: bool = False


class _Rpc(msgspec.Struct):
    data: _Written


class _Error(msgspec.Struct):
    code: int = 0
    message: str = ""
    temporary: bool = False


class _Reply(msgspec.Struct):
    id: int
    error: _Error | None = None
    rpc: _Rpc | None = None
    subscribe: _Subscribed | None = None


_push = msgspec.json.Decoder(_Pushed).decode
_reply = msgspec.json.Decoder(_Reply).decode


class Line(ChatSocket):
    """A connection that answers the closing handshake at once, as browsers and the SDKs do."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        else:
            super().on_ws_frame(transport, frame)


class Place:
    """Where a device stands in a stream; `epoch` is empty until it has subscribed for the first time."""

    __slots__ = ("epoch", "offset")

    def __init__(self) -> None:
        self.epoch = ""
        self.offset = 0


class Outbox:
    """A sender's messages for one stream, in order: `window` of them may be under way at once, 1 keeps them in order for ever.

    With more than one the order is kept while connections last: what an unanswered message is overtaken by is its own fault.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.waiting: deque[Sent] = deque()
        self.under_way: list[Sent] = []
        """In the order of their first sending."""

    def put_back(self) -> None:
        """Nobody will answer what is under way: it goes first, in its order."""
        self.waiting.extendleft(reversed(self.under_way))
        self.under_way.clear()

    @property
    def empty(self) -> bool:
        return not self.waiting and not self.under_way


class Device:
    """One person's device on a WebSocket. `url` may be changed at any time; the next connection goes there."""

    def __init__(self, crowd: "Crowd", name: str, user: str, token: str, url: str) -> None:
        self.crowd = crowd
        self.name = name
        self.user = user
        self.token = token
        self.url = url
        self.places: dict[str, Place] = {}
        self.outboxes: dict[str, Outbox] = {}
        self.connections = 0
        self._socket: Line | None = None
        self._numbers = itertools.count(CALLS)
        self._asked: dict[int, Sent | str] = {}
        self._subscribed: set[str] = set()
        self._lost_s = perf_counter()
        self._heard_s = self._lost_s
        self._pings = 0
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # --- what a person does --------------------------------------------------------------------------------------

    def follow(self, stream: str) -> None:
        """Show the stream from its present end on; as long as the device lives, without a hole."""
        self.places.setdefault(stream, Place())
        if self._socket is not None:
            self._subscribe(stream)

    def say(self, message: Sent) -> None:
        """Send the message, and again until it is answered."""
        outbox = self.outboxes.setdefault(message.stream, Outbox(self.crowd.window))
        outbox.waiting.append(message)
        self._send_next(outbox)

    @property
    def online(self) -> bool:
        """Whether it is connected and subscribed to all that it follows."""
        return self._socket is not None and len(self._subscribed) == len(self.places)

    @property
    def settled(self) -> bool:
        return all(outbox.empty for outbox in self.outboxes.values())

    # --- the connection ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.create_task(self._stay_connected())
        self._task.add_done_callback(self.crowd.has_ended)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._socket is not None:
            self._socket.traffic = None
            self._socket.close()
            self._socket = None

    async def _stay_connected(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                async with self.crowd.door, asyncio.timeout(self.crowd.handshake_s):
                    socket = await Line.open(self.url, self.token)
            except (SocketFailed, TimeoutError) as error:
                self.crowd.evidence.errors[_short(error)] += 1
                await asyncio.sleep(backoff_s * self.crowd.random.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
                continue
            backoff_s = FIRST_BACKOFF_S
            self._begin(socket)
            await self._gone.wait()
            await asyncio.sleep(backoff_s * self.crowd.random.uniform(0.5, 1.0))

    def _begin(self, socket: Line) -> None:
        self._gone.clear()
        self.connections += 1
        self._heard_s = perf_counter()
        self._pings = 0
        self._socket = socket
        socket.traffic = self
        for stream in self.places:
            self._subscribe(stream)
        for outbox in self.outboxes.values():
            self._send_next(outbox)

    def lost(self, reason: str) -> None:
        """The connection is gone: all that was under way is unknown."""
        if self._socket is None:
            return
        self.crowd.evidence.errors[f"connection lost: {reason}"] += 1
        self._socket = None
        if self._subscribed or not self.places:
            self._lost_s = perf_counter()
        self._asked.clear()
        self._subscribed.clear()
        for outbox in self.outboxes.values():
            outbox.put_back()
        self._gone.set()

    def check(self, now_s: float) -> None:
        """Give up a connection that says nothing any more."""
        socket = self._socket
        if socket is None:
            return
        if socket.pings != self._pings:
            self._pings, self._heard_s = socket.pings, now_s
        elif now_s - self._heard_s > self.crowd.silence_s:
            self._hang_up("no ping came")

    def _hang_up(self, reason: str) -> None:
        """Leave the connection; nothing that it still brings is heard."""
        if self._socket is not None:
            self._socket.traffic = None
            self._socket.close()
            self.lost(reason)

    # --- what comes ----------------------------------------------------------------------------------------------

    def pushed(self, line: bytes, now_s: float) -> None:
        self._heard_s = now_s
        if line.startswith(_HINT):
            return
        push = _push(line).push
        if push.channel not in self.places:
            return
        if push.pub is not None:
            self._show(push.channel, push.pub, now_s)
        elif push.unsubscribe is not None:
            self.crowd.evidence.errors[f"unsubscribed: {push.unsubscribe.code}"] += 1
            self._subscribed.discard(push.channel)
            self._subscribe(push.channel)

    def replied(self, command_id: int, line: bytes, now_s: float) -> None:
        self._heard_s = now_s
        asked = self._asked.pop(command_id, None)
        if asked is None:
            self.crowd.evidence.errors["answers that came too late"] += 1
            late = self.crowd.given_up.pop((self, command_id), None)
            if late is not None:
                reply = _reply(line)
                if reply.rpc is not None:
                    self.crowd.answered(late, reply.rpc.data, now_s)
            return
        reply = _reply(line)
        if reply.error is not None:
            self.crowd.evidence.errors[f"{reply.error.code} {reply.error.message}"] += 1
        if isinstance(asked, str):
            self._placed(asked, reply, now_s)
        else:
            self._answered(asked, reply, now_s)

    def _placed(self, stream: str, reply: _Reply, now_s: float) -> None:
        if reply.subscribe is None:
            asyncio.get_running_loop().call_later(RETRY_S, self._subscribe, stream)
            return
        place, answer = self.places[stream], reply.subscribe
        evidence = self.crowd.evidence
        if not place.epoch:
            place.epoch, place.offset = answer.epoch, answer.offset
            evidence.began[self.name, stream] = answer.offset
            evidence.shown.setdefault((self.name, stream), [])
        elif not answer.recovered or answer.epoch != place.epoch:
            evidence.errors["not recovered"] += 1
        for publication in answer.publications:
            self._show(stream, publication, now_s)
        self._subscribed.add(stream)
        if len(self._subscribed) == len(self.places) and self.connections > 1:
            evidence.resumed_s.append(now_s - self._lost_s)

    def _show(self, stream: str, publication: _Pub, now_s: float) -> None:
        if not publication.offset:
            return
        data = publication.data
        body = {"message_id": data.message_id, "by": data.by, "text": data.text}
        self.crowd.evidence.show(self.name, stream, publication.offset, data.type, body, now_s)
        self.places[stream].offset = publication.offset

    def _answered(self, message: Sent, reply: _Reply, now_s: float) -> None:
        outbox = self.outboxes[message.stream]
        if reply.rpc is not None:
            outbox.under_way.remove(message)
            self.crowd.answered(message, reply.rpc.data, now_s)
        elif reply.error is not None and reply.error.temporary:
            asyncio.get_running_loop().call_later(RETRY_S, self._again, message, self.connections)
            return
        else:
            outbox.under_way.remove(message)
            message.refused = reply.error.message if reply.error is not None else "an answer of no meaning"
        self._send_next(outbox)

    def _again(self, message: Sent, connection: int) -> None:
        if connection == self.connections and self._socket is not None:
            self._write(message)

    # --- what goes -----------------------------------------------------------------------------------------------

    def _subscribe(self, stream: str) -> None:
        if self._socket is None or stream in self._asked.values():
            return
        place, number = self.places[stream], next(self._numbers)
        request: dict[str, Any] = {"channel": stream}
        if place.epoch:
            request |= {"recover": True, "epoch": place.epoch, "offset": place.offset}
        self._asked[number] = stream
        self._socket.send(msgspec.json.encode({"id": number, "subscribe": request}))
        self.crowd.expect(self, number, self.connections)

    def _send_next(self, outbox: Outbox) -> None:
        while self._socket is not None and outbox.waiting and len(outbox.under_way) < outbox.window:
            message = outbox.waiting.popleft()
            outbox.under_way.append(message)
            self._write(message)

    def _write(self, message: Sent) -> None:
        assert self._socket is not None
        number = next(self._numbers)
        now_s = perf_counter()
        if not message.attempts:
            message.sent_s = now_s
            message.connection = f"{self.name}/{self.connections}"
        message.attempts += 1
        self._asked[number] = message
        self._socket.send(
            b'{"id":%d,"rpc":{"method":"message.send","data":{"conversation_id":"%s","id":"%s","text":"%s"}}}'
            % (number, message.stream[13:].encode(), message.id.encode(), message.text.encode())
        )
        self.crowd.expect(self, number, self.connections)

    def overdue(self, number: int, connection: int) -> None:
        """No answer came in time: a message is sent again on the same connection, as nobody knows what became of it.

        Where a subscription stands is not known either, and what its late answer recovers belongs before all that follows it:
        the connection is given up, as the SDKs do.
        """
        if connection != self.connections or self._socket is None:
            return
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        self.crowd.evidence.errors["no answer in time"] += 1
        if isinstance(asked, str):
            self._hang_up("a subscription was not answered")
        else:
            self.crowd.given_up[self, number] = asked
            self._write(asked)


class Walkie:
    """A sender without a gateway: it speaks to hosts by NATS as gateways do, and follows nothing."""

    def __init__(self, crowd: "Crowd", name: str, user: str, router: BrokerRouter) -> None:
        self.crowd = crowd
        self.name = name
        self.user = user
        self.outboxes: dict[str, Outbox] = {}
        self.places: dict[str, Place] = {}
        self.online = True
        self._router = router
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None: ...

    def check(self, now_s: float) -> None: ...

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def say(self, message: Sent) -> None:
        outbox = self.outboxes.setdefault(message.stream, Outbox(self.crowd.window))
        outbox.waiting.append(message)
        self._send_next(outbox)

    @property
    def settled(self) -> bool:
        return all(outbox.empty for outbox in self.outboxes.values())

    def _send_next(self, outbox: Outbox) -> None:
        while outbox.waiting and len(outbox.under_way) < outbox.window:
            message = outbox.waiting.popleft()
            outbox.under_way.append(message)
            task = asyncio.get_running_loop().create_task(self._send(outbox, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, outbox: Outbox, message: Sent) -> None:
        command = Command(
            "conversation",
            message.stream[13:],
            "send",
            Actor("user", self.user, self.name),
            message.id,
            canonical_json({"text": message.text}),
        )
        message.sent_s = perf_counter()
        message.connection = message.id  # a router keeps no order between requests; gateways do, per session
        while True:
            message.attempts += 1
            try:
                answer = await self._router.ask(command, ANSWER_S)
            except Refusal as refusal:
                self.crowd.evidence.errors[refusal.code.value] += 1
                if refusal.code in RETRYABLE:
                    await asyncio.sleep(RETRY_S)
                    continue
                message.refused = refusal.code.value
            else:
                assert isinstance(answer, Accepted)
                written = _Written(answer.offset, rfc3339(answer.at), answer.replayed)
                self.crowd.answered(message, written, perf_counter())
            break
        outbox.under_way.remove(message)
        self._send_next(outbox)


class Ground(Protocol):
    """A platform to stand on: `Parts`, or a whole one on Ray. `folder` holds the signing keys in `keys/`."""

    @property
    def nats_url(self) -> str: ...
    @property
    def database_url(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def websocket(self) -> str: ...


class Crowd:
    """Devices on a platform. As an async context manager its connections are closed outside.

    `window` is how many messages a sender has under way in one stream. What `furnish` makes is fixed by `seed`.
    """

    def __init__(self, ground: Ground, *, window: int = 1, silence_s: float = SILENCE_S, seed: int = 1) -> None:
        self.ground = ground
        self.evidence = Evidence()
        self.window = window
        self.silence_s = silence_s
        self.handshake_s = HANDSHAKE_S
        """How long a device waits until it is connected."""
        self.random = random.Random(seed)
        self.devices: list[Device | Walkie] = []
        self.rooms: list[tuple[str, list[Device | Walkie]]] = []
        """Each conversation with those who write in it."""
        self.door = asyncio.Semaphore(HANDSHAKES_AT_ONCE)
        self.given_up: dict[tuple[Device, int], Sent] = {}
        self.began_s = self.ended_s = perf_counter()
        self.clock_ms = time() * 1000 - perf_counter() * 1000
        """What to add to this observer's clock to get Unix milliseconds."""
        self._expected: deque[tuple[float, Device, int, int]] = deque()
        self._broker: NatsBroker | None = None
        self._router: BrokerRouter | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._ended: list[BaseException | None] = []

    # --- life ----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._broker = await NatsBroker(self.ground.nats_url, "", "crowd", "rest").start()
        self._router = BrokerRouter(self._broker, SystemClock(), NoMetrics())
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.gather(*(device.stop() for device in self.devices))
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        if self._broker is not None:
            await self._broker.close()

    @property
    def router(self) -> BrokerRouter:
        """The way to the hosts without a gateway."""
        assert self._router is not None
        return self._router

    async def furnish(
        self,
        rooms: int,
        *,
        members: int = 2,
        writers: int = 1,
        sockets: bool = True,
        device: "Callable[[Crowd, str, str, str, str], Device] | None" = None,
    ) -> None:
        """Open so many conversations with so many members each, the first `writers` of whom will write in it.

        Without writers nobody says anything by themselves.

        With `sockets` every member has a device that follows the conversation; returns when all are online. Without,
        nobody follows anything and the writers speak to the hosts by NATS.
        """
        users = [str(uuid_utils.uuid7()) for _ in range(rooms * members)]
        streams = [f"conversation:{uuid_utils.uuid7()}" for _ in range(rooms)]
        for number, stream in enumerate(streams):
            self.evidence.opened[stream] = tuple(users[number * members : (number + 1) * members])
        await _each(streams, self._open)
        if sockets:
            tokens = await log_in(self.ground, users)
            make = device or Device
            devices: list[Device | Walkie] = [
                make(self, f"{user[-6:]}#{number}", user, token, self.ground.websocket)
                for number, (user, token) in enumerate(zip(users, tokens, strict=True), len(self.devices))
            ]
        else:
            devices = [
                Walkie(self, f"{user[-6:]}#{n}", user, self.router) for n, user in enumerate(users, len(self.devices))
            ]
        self.devices += devices
        for number, stream in enumerate(streams):
            there = devices[number * members : (number + 1) * members]
            self.rooms.append((stream, there[:writers]))
            for device in there:
                if isinstance(device, Device):
                    device.follow(stream)
        for device in devices:
            device.start()
        await self.all_online()

    async def _open(self, stream: str) -> None:
        members = self.evidence.opened[stream]
        actor = Actor("user", members[0], "opener")
        payload = canonical_json({"member_ids": list(members)})
        command = Command("conversation", stream[13:], "open", actor, str(uuid_utils.uuid7()), payload)
        await self.router.ask(command, 30.0)

    # --- at work -------------------------------------------------------------------------------------------------

    def message(self, stream: str, device: Device | Walkie, due_s: float | None = None) -> Sent:
        """A new message, not sent yet."""
        identifier = str(uuid_utils.uuid7())
        due_s = perf_counter() if due_s is None else due_s
        message = Sent(identifier, stream, device.user, f"{device.name} says {identifier[-12:]}", due_s)
        self.evidence.sent[identifier] = message
        return message

    async def talk(self, rate: float, seconds: float, meanwhile: Callable[[], Awaitable[object]] | None = None) -> None:
        """Send `rate` messages a second, spread evenly over all conversations, for so long or for as long as `meanwhile`
        runs if that is longer. An open loop: who waits for an answer does not send later because of it."""
        talking = [(stream, itertools.cycle(writers)) for stream, writers in self.rooms if writers]
        rooms = itertools.cycle(talking)
        sent = 0

        def send_due() -> None:
            nonlocal sent
            due = int((perf_counter() - ticker.began_s) * rate) + 1
            while sent < due:
                stream, writers = next(rooms)
                device = next(writers)
                device.say(self.message(stream, device, ticker.began_s + sent / rate))
                sent += 1

        self.began_s = perf_counter()
        ticker = Ticker(max(1 / rate, 0.002), send_due)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(seconds))
                if meanwhile is not None:
                    group.create_task(_awaited(meanwhile))
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from several
        finally:
            ticker.stop()
            self.ended_s = perf_counter()

    @property
    def unsettled(self) -> int:
        """How many messages wait in outboxes or for their answer."""
        boxes = [box for device in self.devices for box in device.outboxes.values()]
        return sum(len(box.waiting) + len(box.under_way) for box in boxes)

    def happened(self, what: str) -> None:
        """Something was done to the platform just now."""
        self.evidence.happened(what, perf_counter())

    # --- afterwards ----------------------------------------------------------------------------------------------

    async def settle(self, limit_s: float = 30.0) -> None:
        """Return when every message is settled and everybody has been shown everything; what is not so after `limit_s`
        is left for the judge to find.

        The time begins anew while what piled up in outboxes grows less: until that is gone it is overload that goes on, and
        not yet the time after it. At most `BACKLOG_S`.

        Raises:
            RuntimeError: a device has ended by itself. That is a fault of this crowd, and no evidence against the platform.
        """
        await self._worked_off(limit_s)
        try:
            async with asyncio.timeout(limit_s):
                while not all(device.settled and device.online for device in self.devices):
                    await asyncio.sleep(0.02)
                heads: Counter[str] = Counter()
                for message in self.evidence.sent.values():
                    heads[message.stream] = max(heads[message.stream], message.offset)
                followed = [(place, heads[name]) for d in self.devices for name, place in d.places.items()]
                while not all(place.offset >= head for place, head in followed):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            # What is told and shown while the log is being read cannot be judged by it.
            await asyncio.gather(*(device.stop() for device in self.devices))
        await asyncio.sleep(0.3)  # time for a double to come
        if self._ended:
            raise RuntimeError(f"{len(self._ended)} devices have ended by themselves") from self._ended[0]
        for message in self.evidence.sent.values():
            if message.attempts and not message.acked and not message.refused:
                await self._ask_whether_it_landed(message)

    def has_ended(self, task: "asyncio.Task[None]") -> None:
        """A device's task is over, which but for `stop` none ever should be."""
        if not task.cancelled():
            self._ended.append(task.exception())

    async def _worked_off(self, limit_s: float) -> None:
        """Return when nothing waits in an outbox, or hardly less of it than `limit_s` ago, or after `BACKLOG_S`."""
        ending_s = perf_counter() + BACKLOG_S
        least, since_s = self.unsettled, perf_counter()
        while least and perf_counter() < min(ending_s, since_s + limit_s):
            await asyncio.sleep(0.1)
            if self.unsettled < 0.95 * least:
                least, since_s = self.unsettled, perf_counter()

    async def say_once(self, stream: str, text: str) -> None:
        """A message to the stream's owner from somebody who waits for no answer and will not send it again."""
        by = self.evidence.opened[stream][0]
        now_s = perf_counter()
        message = Sent(str(uuid_utils.uuid7()), stream, by, text, now_s, now_s, ONCE, 1)
        self.evidence.sent[message.id] = message
        payload = canonical_json({"text": text})
        command = Command("conversation", stream[13:], "send", Actor("user", by, ONCE), message.id, payload)
        assert self._broker is not None
        await self._broker.publish(command_subject(stream_partition(stream)), msgspec.msgpack.encode(command))

    async def _ask_whether_it_landed(self, message: Sent) -> None:
        query = Query("conversation", message.stream[13:], "status", Actor("user", message.by, "s"), message.id)
        with suppress(Refusal):
            answer = await self.router.ask(query, 5.0)
            assert isinstance(answer, Status)
            message.absent = not answer.known

    async def all_online(self, limit_s: float = 60.0) -> None:
        """Return when every device is connected and subscribed.

        Raises:
            AssertionError: not in time; says who is not, and what everybody was told.
        """
        deadline_s = perf_counter() + limit_s
        while absent := [device.name for device in self.devices if not device.online]:
            told = dict(self.evidence.errors)
            assert perf_counter() < deadline_s, (
                f"{len(absent)} of {len(self.devices)} are not online: {absent[:5]}, {told}"
            )
            await asyncio.sleep(0.02)

    async def reconnected(self, limit_s: float = 30.0) -> None:
        """Return when the hosts answer again. Raises TimeoutError."""
        query = Query("conversation", str(uuid_utils.uuid7()), "view", Actor("user", str(uuid_utils.uuid7())))
        async with asyncio.timeout(limit_s):
            while True:
                try:
                    await self.router.ask(query)
                except Refusal as refusal:
                    if refusal.code not in RETRYABLE:
                        return

    def commits(self) -> dict[str, list[tuple[int, int, int]]]:
        """What each life of each host knows to have committed, for the judge."""
        assert isinstance(self.ground, Parts), "only parts keep a journal"
        return commits_of(self.ground)

    # --- what devices call ---------------------------------------------------------------------------------------

    def answered(self, message: Sent, written: _Written, now_s: float) -> None:
        self.evidence.acked(message, written.offset, written.at, written.replayed, now_s)

    def expect(self, device: Device, number: int, connection: int) -> None:
        self._expected.append((perf_counter() + ANSWER_S, device, number, connection))

    async def _sweep(self) -> None:
        checked_s = perf_counter()
        while True:
            await asyncio.sleep(_SWEEP_S)
            now_s = perf_counter()
            while self._expected and self._expected[0][0] <= now_s:
                _, device, number, connection = self._expected.popleft()
                device.overdue(number, connection)
            if now_s - checked_s > 1.0:
                checked_s = now_s
                for each in self.devices:
                    each.check(now_s)


def commits_of(parts: Parts) -> dict[str, list[tuple[int, int, int]]]:
    """By incarnation: the (partition, first, last) positions that its host knows to have committed."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for part in parts.hosts:
        for line in part.commits():
            rows = [(int(partition), first, last) for partition, (first, last) in line["rows"].items()]
            found.setdefault(line["incarnation"], []).extend(rows)
    return found


async def log_in(ground: Ground, users: Sequence[str], life_s: int = TOKEN_LIFE_S) -> list[str]:
    """An access token for each user, as a login would give it: the same rows, the platform's own key."""
    keys = await asyncio.to_thread(SigningKeys.open, ground.folder / "keys")
    issuer, database, now_ms = JwtIssuer(keys), Database(ground.database_url), SystemClock().now_ms()
    sessions = SqlSessions(database)
    tokens: dict[str, str] = {}

    async def open_one(user: str) -> None:
        session = DeviceSession(str(uuid_utils.uuid7()), user, LoginDevice("chaos", "chaos", "python"), now_ms, now_ms)
        await sessions.open(session, issuer.hash(issuer.refresh()), now_ms + life_s * 1000)
        tokens[user] = issuer.access(user, session.id, now_ms, life_s)

    try:
        await _each(users, open_one)
    finally:
        await database.close()
    return [tokens[user] for user in users]


async def _awaited(work: Callable[[], Awaitable[object]]) -> None:
    await work()


async def _each(items: Iterable[Any], work: Callable[[Any], Awaitable[None]], at_once: int = 32) -> None:
    """The work on every item, a few at a time."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())


def _short(error: Exception) -> str:
    text = str(error)
    return f"no connection: {type(error).__name__} {text[-80:]}"
