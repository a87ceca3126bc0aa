"""A small city for attackers: the real REST application, a real gateway and a real host over one SQLite database.

Everybody in it has something of their own: an order that a worker is hired for, with another worker's quote beside it and a
visit that is confirmed, the order's conversation, and a conversation with a friend. Bystanders have the same, and nothing
to do with the others.
"""

import asyncio
import hashlib
import itertools
import json
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote

import httpx
from websockets.asyncio.client import ClientConnection, connect

from domain.access import Role
from domain.channels import event_subject
from domain.devices import ApiKey
from domain.errors import Code, Refusal
from domain.identities import PendingLink, SignIn, Vouched
from domain.ports import NoMetrics, Received
from domain.times import rfc3339
from gateway.ops_acts import OpsActs
from gateway.server import GatewayServer
from gateway.settings import GatewaySettings
from storage.cache import RedisOtp, RedisOutbox, RedisRateLimiter, RedisServer, RedisTickets
from storage.challenges import RedisChallenges, RedisTries
from storage.memory_broker import MemoryBroker
from storage.otp_budget import RedisOtpBudget
from storage.presence import RedisPresence
from storage.sign_ins import RedisSignIns
from tests.support.device_keys import Handset
from tests.support.keys import PHONE_NAMES
from tests.support.pictures import PDF, picture
from tests.support.rest_platform import RestPlatform

SITE: Final = {"lat": 31.2304, "lon": 121.4737, "address": "1 Long Street"}
ORDER: Final = {
    "category": "plumbing",
    "title": "A tap",
    "description": "The kitchen tap has been dripping.",
    "site": SITE,
}
WORKER: Final = {"skills": ["plumbing"], "base": {"lat": 31.22, "lon": 121.47}, "radius_m": 30000, "hourly_rate": 12000}
LINES: Final = [{"title": "Parts", "amount": 3000}, {"title": "Work", "amount": 9000}]
ROLES: Final = tuple(Role)
PROVIDER: Final = "google"
"""The third party that everybody in the city can sign in by."""
REDIRECT: Final = "https://app.example/back"
DERIVED: Final = ("relay_cursor", "message_index", "message_text")
"""Tables that follow from others: how far events were published, and what a search has read of the messages."""


@dataclass
class Answer:
    """What came back: a status, a code of the catalogue where it is a refusal, and the bytes."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None

    @property
    def code(self) -> str:
        found = json.loads(self.body) if self.body[:1] == b"{" else {}
        return str(found.get("code") or "")

    def like(self, *ids: str) -> bytes:
        """The bytes without what differs between requests: the ids that were asked for, the request's own, and the time."""
        body = re.sub(rb'"at":"[^"]+"', b'"at":"<time>"', self.body)
        for each in ids:
            body = body.replace(each.encode(), b"<id>")
        request_id = self.headers.get("x-request-id", "")
        return body.replace(request_id.encode(), b"<request>") if request_id else body


class Person:
    """A user with a token, over REST and over a WebSocket."""

    def __init__(self, city: "City", phone: str, user_id: str, auth: dict[str, str]) -> None:
        self.city, self.phone, self.id, self.auth = city, phone, user_id, auth
        self.token = auth["Authorization"].removeprefix("Bearer ")
        self.session_id = ""

    async def ask(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        """One request; `content` in place of `body` for what is no JSON."""
        headers = self.auth | more.pop("headers", {})
        if body is not None:
            more["json"] = body
        response = await self.city.http.request(method, path, headers=headers, **more)
        return Answer(response.status_code, response.content, dict(response.headers))

    async def must(self, method: str, path: str, body: Any = None) -> Any:
        """What has to be done. On a busy machine it may not be answered in time: then it is repeated under the same id."""
        headers = {"Idempotency-Key": self.city.new_id()}
        for _ in range(10):
            answer = await self.ask(method, path, body, headers=headers)
            if answer.status != 503:
                break
        assert answer.status < 300, (method, path, answer.body)
        return answer.json

    async def upload(self, content: bytes, purpose: str = "chat", media_type: str = "image/png") -> str:
        """The id of a new upload. On a busy machine it is repeated, as in `must`."""
        headers = {"Content-Type": media_type, "Idempotency-Key": self.city.new_id()}
        for _ in range(10):
            answer = await self.ask(
                "POST", "/v1/uploads", params={"purpose": purpose}, content=content, headers=headers
            )
            if answer.status != 503:
                break
        assert answer.status == 201, answer.body
        return str(answer.json["id"])

    async def command(self, order_id: str, command: str, expected_version: int | None = None, **payload: Any) -> Any:
        body = {"command": command, "command_id": self.city.new_id(), "payload": payload}
        if expected_version is not None:
            body["expected_version"] = expected_version
        return await self.must("POST", f"/v1/orders/{order_id}/commands", body)

    def line(self, **data: Any) -> "Line":
        """A WebSocket of theirs, with data to connect with."""
        return Line(self.city.ws_url, self.token, data)


class Line:
    """A WebSocket that asks and waits for the reply with the same id. What else came is in `heard`."""

    def __init__(self, url: str, token: str, data: dict[str, Any] | None = None) -> None:
        self._url, self._token, self._data = url, token, data or {}
        self._numbers = itertools.count(2)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.heard: list[dict[str, Any]] = []
        self.socket: ClientConnection

    async def __aenter__(self) -> Self:
        self.socket = await connect(self._url, compression=None, max_size=None)
        self._reader = asyncio.create_task(self._read())
        reply = await self.ask({"connect": {"token": self._token, "data": self._data}}, 1)
        assert "connect" in reply, reply
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.socket.close()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def ask(self, command: dict[str, Any], number: int = 0) -> dict[str, Any]:
        """The reply, without its id."""
        number = number or next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps({"id": number, **command}))
        async with asyncio.timeout(10):
            reply = dict(await waiting)
        del reply["id"]
        return reply

    async def rpc(self, method: str, data: Any) -> dict[str, Any]:
        return await self.ask({"rpc": {"method": method, "data": data}})

    async def send(self, data: Any) -> None:
        """What has no reply; a ping behind it, whose answer says that it was read."""
        await self.socket.send(json.dumps({"send": {"data": data}}))
        await self.ask({"ping": {}})

    async def _read(self) -> None:
        try:
            async for frame in self.socket:
                for line in frame.splitlines():
                    item = json.loads(line)
                    waiting = self._waiting.pop(item.get("id", 0), None)
                    if not item:
                        await self.socket.send("{}")
                    elif waiting is not None and not waiting.done():
                        waiting.set_result(item)
                    else:
                        self.heard.append(item)
        finally:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError("the connection ended"))


class Doubter:
    """A third party that knows nobody who comes, whatever code they bring."""

    async def authorization_url(self, state: str, nonce: str, redirect_uri: str, verifier: str) -> str:
        return f"https://provider.example/authorize?state={state}"

    async def vouch(self, code: str, sign_in: SignIn, issuer: str | None) -> Vouched:
        raise Refusal(Code.UNAUTHENTICATED)

    async def close(self) -> None: ...


@dataclass
class Belongings:
    """What somebody has: ids by the name that routes and methods call them by."""

    owner: Person
    partner: Person
    rival: Person
    ids: dict[str, str]
    check_in_code: str = ""


class City:
    """As an async context manager it is open inside. `url` is that of a migrated SQLite database.

    With the URL of a Redis everything that belongs there is there; else it is in memory.
    """

    def __init__(self, url: str, redis_url: str = "", **settings: Any) -> None:
        self.platform = RestPlatform(url, sign_in_redirects=(REDIRECT,), **settings)
        self.platform.providers = {PROVIDER: Doubter()}
        self.redis: RedisServer | None = None
        if redis_url:
            self.redis = redis = RedisServer(redis_url)
            self.platform.otp = RedisOtp(redis, PHONE_NAMES)  # type: ignore[assignment]
            self.platform.tickets = RedisTickets(redis)  # type: ignore[assignment]
            self.platform.limiter = RedisRateLimiter(redis)  # type: ignore[assignment]
            self.platform.outbox = RedisOutbox(redis)  # type: ignore[assignment]
            self.platform.presence = RedisPresence(redis)
            self.platform.otp_budget = RedisOtpBudget(redis)
            self.platform.challenges = RedisChallenges(redis)
            self.platform.tries = RedisTries(redis)
            self.platform.sign_ins = RedisSignIns(redis, PHONE_NAMES)
        self._file = url.partition("///")[2]
        self._phones = itertools.count(13_800_000_001)
        self._gateway = GatewayServer(
            GatewaySettings(host="127.0.0.1", port=0, reuse_port=False, tick_s=0.1),
            self.platform.router,
            MemoryBroker(self.platform._bus),
            self.platform.reader,
            self.platform.reads,
            self.platform.tokens,
            self.platform.clock,
            self.platform.new_id,
            NoMetrics(),
            self.platform.presence,
            OpsActs(self.platform.audit, self.platform.sessions, NoMetrics(), self.platform.clock, second_factor=False),
        )
        self.of: dict[Role, Belongings] = {}
        self.stranger: Belongings
        self.overheard: list[str] = []

    @property
    def new_id(self) -> Any:
        return self.platform.new_id

    async def __aenter__(self) -> Self:
        await self.platform.start()
        self.app = self.platform.app()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://rest")
        port = await self._gateway.start()
        self.ws_url = f"ws://127.0.0.1:{port}/connection/websocket"
        self.ws_port = port
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._gateway.stop()
        await self.http.aclose()
        await self.platform.stop()
        if self.redis is not None:
            await self.redis.close()

    # --- people ------------------------------------------------------------------------------------------------------

    async def person(self, *roles: Role) -> Person:
        phone = f"+86{next(self._phones)}"
        user, auth = await self.platform.login(phone)
        made = Person(self, phone, user.id, auth)
        made.session_id = (await made.must("GET", "/v1/auth/sessions"))["items"][0]["id"]
        if Role.WORKER in roles:
            await made.must("PUT", "/v1/me/worker", WORKER)
        for role in set(roles) - {Role.WORKER, Role.CUSTOMER}:
            await self.platform.accounts.grant(user.id, role)
        return made

    async def settle(self) -> None:
        """One person of each role and their belongings, and a stranger's."""
        for role in ROLES:
            self.of[role] = await self.belongings(role)
        self.stranger = await self.belongings(Role.CUSTOMER)
        listener = MemoryBroker(self.platform._bus)
        for kind in ("order", "conversation"):
            stream = f"{kind}:{self.stranger.ids[f'{kind}_id']}"
            await listener.subscribe(event_subject(stream), self._overhear)

    def _overhear(self, message: Received) -> None:
        self.overheard.append(message.subject)

    async def belongings(self, role: Role) -> Belongings:
        """A hired worker's order with a confirmed visit, and a talk with a friend, of a new person of this role."""
        owner, partner = await self.person(role), await self.person(Role.WORKER)
        rival = await self.person(Role.WORKER)
        customer, worker = (partner, owner) if role is Role.WORKER else (owner, partner)
        order_id, quote_id, rival_quote = await self.quoted(customer, worker, rival)
        version = (await customer.must("GET", f"/v1/orders/{order_id}"))["version"]
        await customer.command(order_id, "accept_quote", version, quote_id=quote_id, rev=1)
        payment = {"id": self.new_id(), "milestone": 1, "rail": "sandbox"}
        await customer.must("POST", f"/v1/orders/{order_id}/payments", payment)
        visit_id, now_s = self.new_id(), self.platform.clock.now_ms() // 1000
        start, end = (_at(now_s + seconds) for seconds in (86_400, 90_000))
        await customer.command(order_id, "propose_slot", visit_id=visit_id, start=start, end=end)
        await worker.command(order_id, "confirm_slot", visit_id=visit_id)
        order = await customer.must("GET", f"/v1/orders/{order_id}")
        room = (await owner.must("POST", "/v1/conversations", {"member_ids": [partner.id]}))["id"]
        message_id, partners_message = self.new_id(), self.new_id()
        path = f"/v1/conversations/{room}/messages"
        upload_id = await owner.upload(picture("PNG"))
        secret = {"id": message_id, "text": f"a secret of {owner.id}", "attachments": [upload_id]}
        await owner.must("POST", path, secret)
        file_id = await owner.upload(PDF, "document", "application/pdf")
        handed_in = {"kind": "identity", "upload_id": file_id, "number": "310101199001011234"}
        document = await owner.must("POST", "/v1/me/worker/documents", handed_in)
        await partner.must("POST", path, {"id": partners_message, "text": f"a secret of {partner.id}"})
        await self.platform.login(owner.phone)
        sessions = (await owner.must("GET", "/v1/auth/sessions"))["items"]
        spare = next(each["id"] for each in sessions if not each["current"])
        key_id, api_key_id = await self.keys_of(owner)
        ids = {
            "order_id": order_id,
            "conversation_id": room,
            "room_id": order["conversation_id"],
            "message_id": message_id,
            "partners_message_id": partners_message,
            "session_id": spare,
            "key_id": key_id,
            "api_key_id": api_key_id,
            "user_id": partner.id,
            "worker_id": worker.id,
            "quote_id": quote_id,
            "rival_quote_id": rival_quote,
            "visit_id": visit_id,
            "payment_id": payment["id"],
            "upload_id": upload_id,
            "file_id": file_id,
            "document_id": document["id"],
        }
        return Belongings(owner, partner, rival, ids, order["visits"][0]["check_in_code"])

    async def keys_of(self, owner: Person) -> tuple[str, str]:
        """A device key and an API key of theirs, and a third party that may speak for them.

        Who is no worker has the API key from when they were one: nothing gives them another.
        """
        now_ms = self.platform.clock.now_ms()
        key_id = await Handset().register(self.http, owner.auth)
        made = await owner.ask("POST", "/v1/me/api-keys", {"name": "a program"})
        if made.status == 403:
            key = ApiKey(self.new_id(), owner.id, "a program", now_ms)
            await self.platform.api_keys.add(key, hashlib.sha256(key.id.encode()).digest(), 10)
            api_key_id = key.id
        else:
            assert made.status == 201, made.body
            api_key_id = made.json["id"]
        subject = Vouched("https://provider.example", owner.id)
        await self.platform.identities.link(PendingLink(PROVIDER, subject.digest), owner.id, now_ms)
        return key_id, api_key_id

    async def quoted(self, customer: Person, *workers: Person) -> list[str]:
        """An open order with a quote of each worker: its id, and those of the quotes."""
        order = await customer.must("POST", "/v1/orders", ORDER | {"publish": True})
        quotes = [self.new_id() for _ in workers]
        for worker, quote_id in zip(workers, quotes, strict=True):
            await worker.command(
                order["id"], "submit_quote", quote_id=quote_id, rev=1, milestones=LINES, currency="CNY"
            )
        return [order["id"], *quotes]

    async def raw(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
        """A request whose target arrives as it is written: no client tidies it up on the way."""
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "server": ("rest", 80),
        }
        said: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            said.append(message)

        await self.app(scope, receive, send)
        begun = {name.decode(): value.decode() for name, value in said[0]["headers"]}
        return Answer(said[0]["status"], b"".join(each.get("body", b"") for each in said[1:]), begun)

    # --- what an attack must not change --------------------------------------------------------------------------------

    def state(self) -> str:
        """A digest of every row of every table, but those that follow from others by and by."""
        return hashlib.sha256(self.rows().encode()).hexdigest()

    def rows_of(self, belongings: Belongings) -> list[str]:
        """The rows that hold something of theirs, but for the log of who tried what."""
        known = {*belongings.ids.values(), belongings.owner.id, belongings.rival.id}
        rows = (row for row in self.rows().splitlines() if not row.startswith("('audit"))
        return sorted(row for row in rows if any(each in row for each in known))

    def rows(self) -> str:
        """All of these rows, as text."""
        said: list[str] = []
        with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
            for (name,) in names:
                if not name.startswith(DERIVED):
                    said += [repr((name, row)) for row in database.execute(f'SELECT * FROM "{name}"')]
        return "\n".join(said)


def _at(seconds: int) -> str:
    return rfc3339(seconds * 1000)
