"""One user of the platform, seen from outside: a phone, a REST client, and the platform's own WebSocket client.

Every write keeps its id until it is answered: whatever is lost on the way, asking again with the same id settles it.
"""

import asyncio
import contextlib
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import httpx
import msgspec

from deploy.ledger import Entry, Event, Ledger, Message, gaps
from domain.errors import RETRYABLE, Refusal
from gateway.client import Client, ClientEnded, NoToken, Position, StreamLost
from gateway.client_dial import dial
from gateway.client_feed import Change, Changes
from gateway.client_settings import ClientSettings, Pace
from gateway.client_wire import rpc

T = TypeVar("T")

ANSWER_LIMIT_S: Final = 8.0
"""How long one attempt waits for its answer before the outcome is unknown."""
_BACKOFF_S: Final = (0.05, 0.5)
_RETRYABLE: Final = frozenset(str(code) for code in RETRYABLE)
_SETTINGS: Final = ClientSettings(answer_s=ANSWER_LIMIT_S, pace=Pace(first_s=0.1, longest_s=1.0), sync=False)


class StoryError(Exception):
    """The platform answered something else than it promises; the text says what was expected and what came."""


class RefusedError(StoryError):
    """The platform said no; `code` is from its catalogue, `problem` the whole answer."""

    def __init__(self, what: str, code: str, problem: dict[str, Any]) -> None:
        super().__init__(f"{what} was refused: {code} {problem.get('detail', '')} {problem}")
        self.code = code
        self.problem = problem


class UnansweredError(StoryError):
    """No answer, or one that says: ask again. What became of the write is unknown."""


class Addresses(msgspec.Struct, frozen=True):
    """Where a platform is, such as `http://127.0.0.1:8000` and `ws://127.0.0.1:8080/connection/websocket`."""

    rest: str
    ws: str
    certificates: tuple[str, ...] = ()
    """PEM files whose certificates are trusted, whatever names they bear: those of this machine's own platform."""

    def trusting(self) -> ssl.SSLContext | None:
        """What a client of theirs needs for TLS; None where the system's authorities are to be asked."""
        if not self.certificates:
            return None
        context = ssl.create_default_context()
        context.check_hostname = False  # they are for a name in the world, and here it is 127.0.0.1
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        for certificate in self.certificates:
            context.load_verify_locations(certificate)
        return context


class Feed:
    """What came on one channel, in the order in which it came, from the moment of subscribing."""

    def __init__(self, channel: str, heard: Callable[[Event], None]) -> None:
        self.channel = channel
        self.start = 0
        """The stream's offset when the subscription began: the first event is the one after it."""
        self.epoch = ""
        self.events: list[Event] = []
        self.ephemeral: list[Event] = []
        self.recoveries: list[bool] = []
        """For every time that the subscription came back: whether all that was missed came with it."""
        self._heard = heard
        self._news = asyncio.Event()

    @property
    def head(self) -> int:
        return int(self.events[-1]["offset"]) if self.events else self.start

    def faults(self) -> list[str]:
        """Holes, doubles and disorder, and recoveries that were none."""
        found = gaps(self.channel, [event["offset"] for event in self.events], self.start + 1)
        return found + [f"{self.channel}: a subscription came back without what it had missed"] * (
            self.recoveries.count(False)
        )

    async def until(self, what: str, wanted: Callable[[Event], bool], timeout_s: float = 20.0) -> Event:
        """The first thing that came, or comes, and is wanted.

        Raises:
            StoryError: it did not come in time; the text says what did.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    for item in (*self.events, *self.ephemeral):
                        if wanted(item):
                            return item
                    await self._news.wait()
        came = [item.get("type") for item in self.events[-5:]]
        raise StoryError(f"{self.channel}: no {what} in {timeout_s} s; up to offset {self.head} came {came} last")

    async def reach(self, offset: int, timeout_s: float = 20.0) -> None:
        """Everything up to this offset has come; raises as `until`."""
        if self.head < offset:
            await self.until(f"offset {offset}", lambda event: event.get("offset", 0) >= offset, timeout_s)

    @property
    def position(self) -> Position:
        """Where to go on."""
        return Position(self.epoch, self.head)

    def begin(self, epoch: str, offset: int) -> None:
        self.epoch, self.start = epoch, offset

    async def read(self, changes: Changes) -> None:
        """Take everything that comes, for as long as the subscription lasts."""
        with contextlib.suppress(StreamLost, ClientEnded):
            async for change in changes:
                self._take(change)

    def _take(self, change: Change) -> None:
        if change.reloaded:
            self.recoveries.append(False)
            return
        event = {"offset": change.offset, **change.event} if change.offset else change.event
        (self.events if change.offset else self.ephemeral).append(event)
        self._heard(event)
        self._news.set()
        self._news = asyncio.Event()


class Person:
    """A user who may be a customer or a worker. `patience_s` is how long a write is tried again before giving up."""

    def __init__(
        self, http: httpx.AsyncClient, addresses: Addresses, phone: str, name: str, ledger: Ledger, patience_s: float
    ) -> None:
        self.phone = phone
        self.name = name
        self.id = ""
        self.ledger = ledger
        self.feeds: dict[str, Feed] = {}
        self.token = ""
        self._refresh_token = ""
        self._http = http
        self._addresses = addresses
        self._patience_s = patience_s
        self._client: Client | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._token_is_spent = False

    # --- coming and going ----------------------------------------------------------------------------------------

    async def log_in(self) -> None:
        """By a one-time code to the phone, which the sandbox sender shows in its outbox."""
        sent = await self.rest("POST", "/v1/auth/otp", {"phone": self.phone})
        expect("the answer to a phone number", sent.keys() >= {"expires_in_s", "resend_in_s"}, sent)
        items = (await self.rest("GET", "/dev/outbox", params={"to": self.phone}))["items"]
        code = next((item["code"] for item in items if item.get("code")), None)
        expect(f"a code for {self.phone} in /dev/outbox", code is not None, items[:3])
        device = {"id": f"story-{self.phone[-6:]}", "name": "story", "platform": "python"}
        grant = await self.rest("POST", "/v1/auth/otp/verify", {"phone": self.phone, "code": code, "device": device})
        self.id, self.token, self._refresh_token = grant["user"]["id"], grant["access_token"], grant["refresh_token"]
        me = await self.rest("PATCH", "/v1/me", {"name": self.name})
        expect("the profile after a change of name", (me["id"], me["name"]) == (self.id, self.name), me)
        expect("a masked phone number", self.phone not in me["phone"], me["phone"])

    async def connect(self) -> None:
        """Open the WebSocket; it comes back by itself, with its subscriptions, until `leave`."""
        settings = msgspec.structs.replace(_SETTINGS, device_id=f"story-{self.phone[-6:]}")
        self._client = Client(
            self._addresses.ws,
            token=self._access_token,
            settings=settings,
            folds={},
            hinted=self._on_hint,
            dial=partial(dial, trusting=self._addresses.trusting() if self._addresses.ws.startswith("wss:") else None),
        )
        self._token_is_spent = False
        await self._client.__aenter__()
        async with self._patience("the WebSocket's connect"):
            await self._client.online()

    async def disconnect(self) -> None:
        """Close the WebSocket; `reconnect` opens it again and recovers what was missed."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        await asyncio.gather(*self._readers)
        self._readers.clear()

    async def reconnect(self) -> None:
        """As an app that is started again: with what it knows of each stream, and nothing else."""
        await self.connect()
        for feed in self.feeds.values():
            if not await self._listen(feed, feed.position):
                feed.recoveries.append(True)

    async def leave(self) -> None:
        """Close the WebSocket, if there is one."""
        await self.disconnect()

    @property
    def client(self) -> Client:
        if self._client is None:
            raise StoryError(f"{self.name} is not connected")
        return self._client

    async def _access_token(self) -> str:
        if self._token_is_spent:
            try:
                await self._renew()
            except RefusedError as error:
                raise NoToken(str(error)) from error
        self._token_is_spent = True
        return self.token

    async def _renew(self) -> None:
        grant = await self.rest("POST", "/v1/auth/refresh", {"refresh_token": self._refresh_token})
        self.token, self._refresh_token = grant["access_token"], grant["refresh_token"]

    def _on_hint(self, hint: dict[str, Any]) -> None:
        self.ledger.hints += 1

    async def follow(self, channel: str, heard: Callable[[Event], None] = lambda event: None) -> Feed:
        """Subscribe to a stream. Everything that comes from now on is in the feed that is returned."""

        def listen(event: Event) -> None:
            left = self.ledger.sent_at.get(event.get("message_id", ""))
            if left is not None and event["type"] == "message.posted" and event["by"] != self.id:
                self.ledger.delivery_s.append(time.perf_counter() - left)
            heard(event)

        feed = self.feeds[channel] = Feed(channel, listen)
        await self._listen(feed, None)
        return feed

    async def _listen(self, feed: Feed, after: Position | None) -> int:
        """Fill the feed from a position, or from now on; how often what was known turned out to be void."""
        kind, _, identifier = feed.channel.partition(":")
        stream = (self.client.order if kind == "order" else self.client.conversation)(identifier, after=after)
        changes = stream.changes()
        try:
            async with self._patience(f"the subscription to {feed.channel}"):
                await stream
        except StreamLost as error:
            raise StoryError(f"{self.name} could not subscribe to {feed.channel}: {error}") from error
        if after is None and stream.position is not None:
            feed.begin(stream.position.epoch, changes.taken)
        self._readers.append(asyncio.create_task(feed.read(changes)))
        return stream.follow().reloads

    # --- asking --------------------------------------------------------------------------------------------------

    async def rest(
        self, method: str, path: str, body: dict[str, Any] | None = None, params: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The JSON of a successful answer.

        Raises:
            RefusedError: the platform said no.
            UnansweredError: it did not say anything for as long as patience lasts.
        """
        return await self._patiently(f"{method} {path}", lambda: self._rest_once(method, path, body, params))

    async def _rest_once(
        self, method: str, path: str, body: dict[str, Any] | None, params: dict[str, Any] | None
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        url = self._addresses.rest + path
        try:
            answer = await self._http.request(method, url, json=body, params=params, headers=headers)
        except httpx.TransportError as error:
            raise UnansweredError(f"{method} {path}: {error!r}") from error
        if answer.is_success:
            return dict(answer.json()) if answer.content else {}
        problem = _problem(answer)
        code = str(problem.get("code", ""))
        if not code:
            # Not the platform's answer: something before it, such as a proxy whose backend is gone, spoke in its place.
            self.ledger.strangers.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
        if not code or code in _RETRYABLE:
            raise UnansweredError(f"{method} {path}: {answer.status_code} {problem or answer.text[:200]}")
        raise RefusedError(f"{method} {path}", code, problem)

    async def rpc(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        """The result of an rpc, which is asked again until there is one; raises as `rest` does."""
        async with self._patience(f"rpc {method}"):
            body = rpc(method, msgspec.json.encode(data))
            return dict(msgspec.json.decode(await self.client.ask("rpc", body, self._patience_s)))

    def send(self, data: dict[str, Any]) -> None:
        """Send without an answer; lost when the connection is away."""
        self.client.say(data)

    @contextlib.asynccontextmanager
    async def _patience(self, what: str) -> AsyncIterator[None]:
        """Waits for the WebSocket's client no longer than patience lasts, and says what came of it as `rest` does."""
        try:
            async with asyncio.timeout(self._patience_s + 1.0):
                yield
        except Refusal as refusal:
            if refusal.code in RETRYABLE:
                raise UnansweredError(f"{what}: {refusal}") from refusal
            raise RefusedError(what, str(refusal.code), _plain(refusal.refused)) from refusal
        except (ClientEnded, TimeoutError) as error:
            raise UnansweredError(f"{what}: no answer in {self._patience_s:.0f} s; {error!r}") from error

    async def _patiently(self, what: str, ask: Callable[[], Awaitable[T]], write_id: str = "") -> T:
        deadline = time.monotonic() + self._patience_s
        delay_s, longest_s = _BACKOFF_S
        while True:
            try:
                return await ask()
            except UnansweredError as error:
                if time.monotonic() + delay_s > deadline:
                    raise UnansweredError(f"{what}: no answer in {self._patience_s:.0f} s; last: {error}") from error
            if write_id:
                self.ledger.retried.add(write_id)
            await asyncio.sleep(delay_s)
            delay_s = min(longest_s, delay_s * 2)

    # --- writing -------------------------------------------------------------------------------------------------

    async def _write(
        self, stream: str, write_id: str, entry: Entry, what: str, by_rest: tuple[str, dict[str, Any]],
        by_ws: tuple[str, dict[str, Any]],
    ) -> dict[str, Any]:  # fmt: skip
        ledger = self.ledger
        ledger.unanswered[write_id] = stream
        ledger.entries[entry] += 1
        started = time.perf_counter()

        try:
            if entry == "rest":
                answer = await self._patiently(what, lambda: self._rest_once("POST", *by_rest, None), write_id)
            else:
                answer = await self._write_by_socket(stream, write_id, what, *by_ws)
        except RefusedError:
            del ledger.unanswered[write_id]
            raise
        del ledger.unanswered[write_id]
        if write_id not in ledger.retried:
            ledger.ack_s.append(time.perf_counter() - started)
        return answer

    async def _write_by_socket(
        self, stream: str, write_id: str, what: str, method: str, data: dict[str, Any]
    ) -> dict[str, Any]:
        """The client sends it until it is answered; the ids are in its outbox, not here."""
        async with self._patience(what):
            pending = self.client.write(method, stream, write_id, data)
            try:
                answer = await pending
            finally:
                if pending.attempts > 1:
                    self.ledger.retried.add(write_id)
        return _plain(answer)

    async def say(self, conversation_id: str, text: str, entry: Entry = "ws", message_id: str = "") -> Message:
        """Post a message and enter it in the ledger once it is acknowledged."""
        message_id = message_id or str(uuid.uuid4())
        fields = {"id": message_id, "text": text}
        self.ledger.sent_at.setdefault(message_id, time.perf_counter())
        answer = await self._write(
            f"conversation:{conversation_id}", message_id, entry, f"message {message_id}",
            (f"/v1/conversations/{conversation_id}/messages", fields),
            ("message.send", {"conversation_id": conversation_id, **fields}),
        )  # fmt: skip
        message = Message(conversation_id, message_id, self.id, text, answer["offset"], answer["at"])
        self.ledger.messages.append(message)
        return message

    async def command(
        self, order_id: str, name: str, payload: dict[str, Any], entry: Entry = "rest", version: int | None = None
    ) -> dict[str, Any]:
        """Give an order a command, enter its events in the ledger, and return the order as this person sees it."""
        command_id = str(uuid.uuid4())
        body: dict[str, Any] = {"command": name, "command_id": command_id, "payload": payload}
        if version is not None:
            body["expected_version"] = version
        answer = await self._write(
            f"order:{order_id}", command_id, entry, f"command {name}",
            (f"/v1/orders/{order_id}/commands", body), ("order.command", {"order_id": order_id, **body}),
        )  # fmt: skip
        events, order = answer["events"], dict(answer["order"])
        expect(f"{name}: at least one event", bool(events), answer)
        expect(f"{name}: an order at least at its events' version", order["version"] >= events[-1]["offset"], answer)
        self.ledger.transitions_from(order_id, name, events)
        return order

    async def stream(self, channel: str) -> list[Event]:
        """All events of a stream, read back over REST."""
        kind, _, identifier = channel.partition(":")
        path, events, after = f"/v1/{kind}s/{identifier}/events", list[Event](), 0
        while True:
            page = await self.rest("GET", path, params={"after": after, "limit": 1000})
            events += page["items"]
            if page["next_cursor"] is None:
                return events
            after = page["next_cursor"]


def expect(what: str, true: bool, came: object) -> None:
    """Raises StoryError with what came, unless it is true."""
    if not true:
        raise StoryError(f"expected {what}; came: {came}")


def _problem(answer: httpx.Response) -> dict[str, Any]:
    """The problem document (RFC 9457) of an answer; empty where it is none."""
    try:
        problem = answer.json()
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _plain(answer: msgspec.Struct) -> dict[str, Any]:
    """As it came over the wire."""
    return dict(msgspec.json.decode(msgspec.json.encode(answer)))
