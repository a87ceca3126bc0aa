"""A client's device in virtual time: what an app built on an official SDK does, outbox and recovery included.

What must survive a restart of the app is in `Disk`; everything else is gone with the process. Writes of one stream are sent one
after the other, each with its own id, until they are answered; a subscription goes on from the last event that was shown.
"""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from domain.commands import Accepted, Actor, Command, Query, Viewed
from domain.errors import RETRYABLE, Refusal
from domain.times import rfc3339
from tests.simulation.ledger import Ledger, Write
from tests.support.simulated_loop import Handle, Process
from tests.support.simulated_network import GONE, Wire
from tests.support.simulated_parts import Cluster, RestPart

REPLY_S = 6.0
_METHODS = {"message.send": "send", "message.edit": "edit", "message.delete": "delete", "message.react": "react"}
_NO_RETURN = ((3500, 3999), (4500, 4999))
_TOLERATED = frozenset({3502})
"""`stale`: the network was slower than the gateway's patience."""

_encode = msgspec.json.encode
_decode_lines = msgspec.json.Decoder(dict[str, Any]).decode_lines
_raw_push = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Disk:
    """What an app keeps: positions by channel, what waits to be sent by stream, and the channels it follows."""

    def __init__(self) -> None:
        self.positions: dict[str, tuple[str, int]] = {}
        self.outbox: dict[str, deque[Write]] = {}
        self.channels: dict[str, None] = {}
        self.messages: dict[str, list[tuple[str, str]]] = {}
        """By conversation: (message id, author), the latest last."""


class Device:
    """One app of one user. `process` is replaced when it restarts."""

    def __init__(self, cluster: Cluster, ledger: Ledger, user: str, name: str, seed: str, partition: int) -> None:
        self.cluster = cluster
        self.ledger = ledger
        self.user = user
        self.name = name
        self.disk = Disk()
        self.chance = random.Random(f"{seed}/{name}")
        self.clock = cluster.clock()
        self.actor = Actor("user", user, cluster.new_id(self.clock, partition))
        self.process: Process = cluster.loop.process(name)
        self.live: Callable[[Device], Any] | None = None
        self.may_follow: Callable[[Device, str, float], bool] = lambda device, channel, since_s: True
        self.slow = False
        self._fresh()

    def _fresh(self) -> None:
        self.wire: Wire | None = None
        self.connected = False
        self.subscribed: set[str] = set()
        self._subscribing: set[str] = set()
        self._probing: dict[str, int] = {}
        self._sending: set[str] = set()
        self._replies: dict[int, tuple[Callable[[Any, Any], None], Handle]] = {}
        self._next_id = 0
        self._backoff_s = 0.05
        self._closing = False

    # --- life --------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        self.process.call(0.0, self._start)

    def _start(self) -> None:
        if self.live is not None:
            self.process.spawn(self.live(self))
        self._connect()

    def crash(self, noticed: bool) -> None:
        """The app is gone; the gateway hears of it at once, or never."""
        if self.wire is not None:
            self.wire.cut(None, 0.01 if noticed else None)
        self.process.crash()

    def restart(self) -> None:
        self.process = self.cluster.loop.process(self.name)
        self._fresh()
        self.boot()

    def close(self) -> None:
        """The app is closed in an orderly way, and stays so."""
        self._closing = True
        if self.wire is not None:
            self.wire.hang_up()
        self.process.crash()

    @property
    def settled(self) -> bool:
        """Connected, with nothing to send, and at the end of every stream it follows."""
        end = self.cluster.database.store.end
        return (
            self.connected
            and not any(self.disk.outbox.values())
            and self.subscribed >= self.disk.channels.keys()
            and all(self.disk.positions.get(name, ("", 0))[1] == end(name) for name in self.disk.channels)
        )

    # --- the connection ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        gateways = [part for part in self.cluster.of("gateway") if part.accepting]
        if not gateways or self._closing:
            self.process.call(0.2, self._connect)
            return
        self.wire = wire = self.cluster.connect(self.chance.choice(gateways), self)
        token = f"{self.user}/{self.actor.session_id}"
        self._ask({"connect": {"token": token, "data": {"device_id": self.name}}}, self._connect_answered)
        if self.slow:
            wire.read(False)

    def _connect_answered(self, reply: Any, error: Any) -> None:
        if reply is None or "connect" not in reply:
            self.hang_up()
            return
        self.connected = True
        self._backoff_s = 0.05
        self.sync()
        for channel in self.disk.channels:
            self.subscribe(channel)
        for stream in list(self.disk.outbox):
            self._send_next(stream)

    def hang_up(self) -> None:
        """Close the connection and come back."""
        if self.wire is not None:
            self.wire.hang_up()
            self._lost(GONE)

    def closed(self, wire: Wire, code: int, reason: str) -> None:
        if wire is not self.wire:
            return
        if any(low <= code <= high for low, high in _NO_RETURN) and code not in _TOLERATED:
            self.ledger.broken("clients come back", f"{self.name} was closed for good: {code} {reason}")
        self.ledger.counts[f"closed {code}"] += 1
        self._lost(code)

    def _lost(self, code: int) -> None:
        self.wire = None
        self.connected = False
        self.subscribed.clear()
        self._subscribing.clear()
        self._probing.clear()
        replies, self._replies = self._replies, {}
        self._sending.clear()
        for answered, deadline in replies.values():
            deadline.cancel()
            answered(None, None)
        self.process.call(self._backoff_s * (0.5 + self.chance.random()), self._reconnect)
        self._backoff_s = min(2.0, self._backoff_s * 2)

    def _reconnect(self) -> None:
        if self.wire is None:
            self._connect()

    def received(self, wire: Wire, frame: bytes) -> None:
        if wire is not self.wire:
            return
        for line in frame.split(b"\n"):
            if line == b"{}":
                wire.send(b"{}")
                continue
            reply = _raw_push(line)
            if "push" in reply:
                self._pushed(reply["push"])
            else:
                found = self._replies.pop(msgspec.json.decode(reply["id"]), None)
                if found is not None:
                    answered, deadline = found
                    deadline.cancel()
                    error = msgspec.json.decode(reply["error"]) if "error" in reply else None
                    answered(None if error is not None else reply, error)
            if self.wire is not wire:
                return

    def _ask(self, command: dict[str, Any], answered: Callable[[Any, Any], None], timeout_s: float = REPLY_S) -> None:
        """`answered` gets (reply, None), (None, error), or (None, None) when nothing came."""
        if self.wire is None or not (self.connected or "connect" in command):
            answered(None, None)
            return
        self._next_id += 1
        number = self._next_id
        self._replies[number] = (answered, self.process.call(timeout_s, self._expire, number))
        self.wire.send(_encode({"id": number, **command}))

    def _expire(self, number: int) -> None:
        found = self._replies.pop(number, None)
        if found is not None:
            self.ledger.counts["replies missed"] += 1
            found[0](None, None)

    # --- following -----------------------------------------------------------------------------------------------------

    def follow(self, channel: str) -> None:
        """From now on, for good."""
        if channel not in self.disk.channels:
            self.disk.channels[channel] = None
            self.subscribe(channel)

    def subscribe(self, channel: str, *, recover: bool = True) -> None:
        if not self.connected or channel in self.subscribed or channel in self._subscribing:
            return
        self._subscribing.add(channel)
        epoch, offset = self.disk.positions.get(channel, ("", 0))
        floor, asked_s = self.ledger.floor(channel), self.cluster.loop.time()
        request: dict[str, Any] = {"channel": channel}
        if recover:
            request |= {"recover": True, "epoch": epoch, "offset": offset}

        def answered(reply: Any, error: Any) -> None:
            self._subscribing.discard(channel)
            if reply is not None:
                result = msgspec.json.decode(reply["subscribe"], type=_Subscribed)
                self._subscribed(channel, result, offset, floor, recover)
            elif error is not None and error.get("temporary"):
                self.process.call(0.2 + self.chance.random() * 0.3, self.subscribe, channel)
            elif error is not None:
                if self.may_follow(self, channel, asked_s):
                    self.ledger.broken("true refusals", f"{self.name} may not follow {channel}: {error}")
                self.disk.channels.pop(channel, None)
            elif error is None and self.connected:
                self.hang_up()  # the SDKs too reconnect when a subscription is not answered

        self._ask({"subscribe": request}, answered)

    def _subscribed(self, channel: str, result: "_Subscribed", asked: int, floor: int, recover: bool) -> None:
        self.subscribed.add(channel)
        if not recover:
            self.ledger.read(self.name, "subscribe", channel, floor, result.offset)
            self._probing[channel] = result.offset
            self.process.call(0.3, self._back, channel)
            return
        epoch, _ = self.disk.positions.get(channel, ("", 0))
        if not result.recovered or result.offset != asked or (epoch and epoch != result.epoch):
            self.ledger.broken("recovery", f"{self.name} asked {channel} for what follows {epoch}@{asked}: {result}")
            return
        self.disk.positions[channel] = (result.epoch, asked)
        for pub in result.publications:
            self._show(channel, pub.offset, bytes(pub.data))

    def _pushed(self, raw: msgspec.Raw) -> None:
        push = msgspec.json.decode(raw, type=_Push)
        channel = push.channel
        if push.pub is not None:
            if channel.startswith("user:"):
                self._hinted(msgspec.json.decode(push.pub.data))
            elif push.pub.offset:
                self._show(channel, push.pub.offset, bytes(push.pub.data))
            else:
                self.ledger.ephemeral(self.name, channel, msgspec.json.decode(push.pub.data).get("owner", 0))
        elif push.unsubscribe is not None:
            self.subscribed.discard(channel)
            self.ledger.counts["unsubscribed by the server"] += 1
            self.process.call(0.1, self.subscribe, channel)

    def _show(self, channel: str, offset: int, data: bytes) -> None:
        if channel in self._probing:
            # A second look without recovery: nothing is shown of it, but it must go on without a hole from its start.
            if offset != self._probing[channel] + 1:
                self.ledger.broken("shown without a hole", f"{self.name} is at {self._probing[channel]}, gets {offset}")
            self._probing[channel] = offset
            self.ledger.compare(self.name, channel, offset, data)
            return
        if channel not in self.subscribed:
            self.ledger.broken("shown once", f"{self.name} does not follow {channel}, and is pushed {offset}")
        self.ledger.show(self.name, channel, offset, data)
        epoch, _ = self.disk.positions.get(channel, ("", 0))
        self.disk.positions[channel] = (epoch, offset)
        if channel.startswith("conversation:") and b'"message.posted"' in data:
            event = msgspec.json.decode(data)
            self.disk.messages.setdefault(channel, []).append((event["message_id"], event["by"]))

    def _hinted(self, hint: dict[str, Any]) -> None:
        kind = hint["type"].partition(".")[0]
        if kind == "conversation":
            self.follow(f"conversation:{hint['conversation_id']}")
        elif kind == "order" and f"order:{hint['order_id']}" not in self.disk.channels:
            self.sync()

    def unsubscribe(self, channel: str) -> None:
        if channel not in self.subscribed:
            return

        def answered(reply: Any, error: Any) -> None:
            self._probing.pop(channel, None)
            if reply is None and self.connected:
                self.hang_up()  # as the SDKs do
            else:
                self.subscribe(channel)

        self.subscribed.discard(channel)
        # What was pushed before the unsubscription was heard of is not shown: it comes again.
        self._probing.setdefault(channel, self.disk.positions.get(channel, ("", 0))[1])
        self._ask({"unsubscribe": {"channel": channel}}, answered)

    def look(self, channel: str) -> None:
        """Subscribe anew without recovery, to see where the stream stands; then go on from where we were."""
        if channel not in self.subscribed or channel in self._probing:
            return
        self.subscribed.discard(channel)
        self._probing[channel] = self.disk.positions.get(channel, ("", 0))[1]

        def left(reply: Any, error: Any) -> None:
            self._probing.pop(channel, None)
            if reply is None and self.connected:
                self.hang_up()
            else:
                self.subscribe(channel, recover=False)

        self._ask({"unsubscribe": {"channel": channel}}, left)

    def _back(self, channel: str) -> None:
        if channel in self._probing and channel in self.subscribed:
            self.unsubscribe(channel)

    # --- asking --------------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Which streams are there? Follow those that are new."""
        floors = dict(self.ledger.known)

        def answered(reply: Any, error: Any) -> None:
            if reply is None:
                return
            data = msgspec.json.decode(reply["rpc"])["data"]
            for kind, rows in (("conversation", data["conversations"]), ("order", data["orders"])):
                for row in rows:
                    stream = f"{kind}:{row['id']}"
                    self.ledger.read(self.name, "sync", stream, floors.get(stream, 0), row["offset"])
                    self.follow(stream)

        self.rpc("sync", {}, answered)

    def rpc(self, method: str, data: dict[str, Any], answered: Callable[[Any, Any], None]) -> None:
        self._ask({"rpc": {"method": method, "data": data}}, answered)

    def status(self, write: Write) -> None:
        floor = self.ledger.floor(write.stream)

        def answered(reply: Any, error: Any) -> None:
            if reply is not None:
                data = msgspec.json.decode(reply["rpc"])["data"]
                self.ledger.status(self.name, write, floor, data["known"], data.get("offset"))
            elif error is not None and not error.get("temporary"):
                self.ledger.broken("true refusals", f"{self.name} asked for the status of {write.id}: {error}")

        self.rpc("write.status", {"stream": write.stream, "id": write.id}, answered)

    def history(self, channel: str, *, back: bool, limit: int) -> None:
        """A page of a stream, compared with what the log has."""
        if channel not in self.subscribed or channel in self._probing:
            return
        epoch, offset = self.disk.positions.get(channel, ("", 0))
        since = self.chance.randint(1, max(1, offset))
        request = {"channel": channel, "limit": limit, "reverse": back, "since": {"epoch": epoch, "offset": since}}

        def answered(reply: Any, error: Any) -> None:
            if reply is None:
                return
            page = msgspec.json.decode(reply["history"], type=_Page).publications
            self.ledger.counts["read history"] += 1
            for at, pub in enumerate(page, 1):
                expected = since - at if back else since + at
                if pub.offset != expected:
                    self.ledger.broken("true answers", f"{self.name} reads {channel}#{pub.offset}, not {expected}")
                self.ledger.compare(self.name, channel, pub.offset, bytes(pub.data))

        self._ask({"history": request}, answered)

    def signal(self, data: dict[str, Any]) -> None:
        if self.wire is not None and self.connected:
            self.wire.send(_encode({"send": {"data": data}}))

    # --- writing -------------------------------------------------------------------------------------------------------

    def write(self, stream: str, method: str, data: dict[str, Any], identifier: str) -> Write:
        """Put something into the outbox; it is sent until it is answered."""
        write = Write(identifier, stream, method, data, self.name, self.user)
        self.disk.outbox.setdefault(stream, deque()).append(write)
        self._send_next(stream)
        return write

    def _send_next(self, stream: str) -> None:
        queue = self.disk.outbox.get(stream)
        if not queue or stream in self._sending or not (self.connected or queue[0].method not in _BY_SOCKET):
            return
        write = queue[0]
        self._sending.add(stream)
        self.ledger.sent(write)
        drawn = self.chance.random()
        if write.method not in _BY_SOCKET or drawn < 0.05:
            self._send_by_rest(write)
        else:
            self.rpc(write.method, write.data, lambda reply, error: self._write_answered(write, reply, error))
            if drawn > 0.97:
                self._send_by_rest(write, impatient=True)

    def _write_answered(self, write: Write, reply: Any, error: Any) -> None:
        if reply is not None:
            data = msgspec.json.decode(reply["rpc"])["data"]
            events = data.get("events", [])
            offset = data["offset"] if "offset" in data else events[0]["offset"] if events else 0
            at = data["at"] if "at" in data else events[0]["at"] if events else ""
            write.result = data
            self._settle(write, lambda: self.ledger.answered(write, offset, at, events, data["replayed"]))
        elif error is not None and not error.get("temporary"):
            self._settle(write, lambda: self.ledger.refused(write, error["message"]))
        else:
            write.doubtful = True
            self._again(write)

    def _settle(self, write: Write, judged: Callable[[], None]) -> None:
        judged()
        queue = self.disk.outbox.get(write.stream)
        if queue and queue[0] is write:
            queue.popleft()
        self._sending.discard(write.stream)
        self._send_next(write.stream)

    def _again(self, write: Write) -> None:
        self.process.call(0.1 + self.chance.random() * 0.4, self._retry, write.stream)

    def _retry(self, stream: str) -> None:
        self._sending.discard(stream)
        self._send_next(stream)

    # --- by REST -------------------------------------------------------------------------------------------------------

    def rest(self, request: Command | Query, answered: Callable[[Any], None], timeout_s: float = REPLY_S) -> None:
        """Ask by REST: `answered` gets the answer, a Refusal, or None when nothing came."""
        cluster, parts = self.cluster, self.cluster.of("rest")
        done = False

        def once(answer: Any) -> None:
            nonlocal done
            if not done:
                done = True
                deadline.cancel()
                answered(answer)

        deadline = self.process.call(timeout_s, once, None)
        if not parts:
            return
        rest: RestPart = self.chance.choice(parts)
        there_s, back_s = (cluster.wires.least_s + self.chance.random() * cluster.wires.jitter_s for _ in range(2))

        async def work() -> None:
            answer = await rest.ask(request)
            self.process.call(back_s, once, answer)

        rest.process.call(there_s, lambda: rest.process.spawn(work()))

    def _send_by_rest(self, write: Write, *, impatient: bool = False) -> None:
        command = self.command(write)

        def answered(answer: Any) -> None:
            if isinstance(answer, Accepted):
                events = [{"offset": pub.offset, **msgspec.json.decode(pub.data)} for pub in answer.events]
                if command.kind == "conversation" and write.method in _BY_SOCKET:
                    events = []  # as over the WebSocket
                write.result = answer
                answer_of = (answer.offset, rfc3339(answer.at), events, answer.replayed)
                if impatient:
                    self.ledger.answered(write, *answer_of)
                else:
                    self._settle(write, lambda: self.ledger.answered(write, *answer_of))
            elif impatient:
                return
            elif isinstance(answer, Refusal) and answer.code not in RETRYABLE:
                self._settle(write, lambda: self.ledger.refused(write, answer.code.value))
            else:
                write.doubtful = True
                self._again(write)

        self.rest(command, answered)

    def command(self, write: Write) -> Command:
        """The write as a host gets it."""
        kind, _, stream_id = write.stream.partition(":")
        data = dict(write.data)
        if write.method == "order.command":
            payload = _encode(data.get("payload", {}))
            version = data.get("expected_version")
            return Command("order", stream_id, data["command"], self.actor, write.id, payload, version)
        actor = Actor("psp", "sandbox") if write.method == "deposit_held" else self.actor
        data.pop("conversation_id", None)
        name = _METHODS.get(write.method, write.method)
        return Command(kind, stream_id, name, actor, write.id, _encode(data))  # type: ignore[arg-type]

    def view(self, order_id: str, answered: Callable[[dict[str, Any] | None], None]) -> None:
        """The order as this user may see it now."""
        stream = f"order:{order_id}"
        floor = self.ledger.floor(stream)

        def done(answer: Any) -> None:
            if isinstance(answer, Viewed):
                self.ledger.read(self.name, "view", stream, floor, answer.version)
                answered(msgspec.json.decode(answer.body))
                return
            if isinstance(answer, Refusal) and answer.code not in RETRYABLE:
                self.ledger.broken("true refusals", f"{self.name} asked for {stream}: {answer}")
            answered(None)

        self.rest(Query("order", order_id, "view", self.actor), done)


_BY_SOCKET = frozenset({"message.send", "message.edit", "message.delete", "message.react", "order.command"})


class _Pub(msgspec.Struct):
    data: msgspec.Raw
    offset: int = 0


class _Subscribed(msgspec.Struct):
    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    publications: list[_Pub] = []


class _Page(msgspec.Struct):
    publications: list[_Pub] = []


class _Push(msgspec.Struct):
    channel: str = ""
    pub: _Pub | None = None
    unsubscribe: dict[str, Any] | None = None
