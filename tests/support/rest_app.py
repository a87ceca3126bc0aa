"""The REST application over everything in memory: one process, no server, a clock that the test moves."""

import base64
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from domain.acts import Act, of_session
from domain.aggregate import WorkerProfile
from domain.audit import Recorded, Wanted
from domain.commands import Command, Query, Signal
from domain.errors import Code, Refusal
from domain.identities import LinkedIdentity, PendingLink, SignIn
from domain.ids import uuid7
from domain.orders import ORDERS
from domain.otp import OtpBudgets, Refused, Taken
from domain.ports import Device, DeviceSession, Identity, Judge, NoMetrics, Page, StreamRecord, User
from serve_apps.intake import Intake
from serve_apps.integrations.sandbox import SandboxSms
from serve_apps.rest import build_app
from serve_apps.services import RestSettings, Services
from storage.memory_presence import MemoryPresence
from tests.support.memory_blocks import MemoryBlocks, MemoryMutes
from tests.support.memory_devices import (
    MemoryApiKeys,
    MemoryChallenges,
    MemoryDeviceKeys,
    MemoryPlaces,
    MemoryTotpSecrets,
    MemoryTries,
)
from tests.support.memory_uploads import MemoryUploads, MemoryWorkerDocuments

START_MS = 1_800_000_000_000


class ManualClock:
    def __init__(self, now_ms: int = START_MS) -> None:
        self.at_ms = now_ms

    def now_ms(self) -> int:
        return self.at_ms

    def monotonic_s(self) -> float:
        return self.at_ms / 1000

    def advance_s(self, seconds: float) -> None:
        self.at_ms += int(seconds * 1000)


class CountedEntropy:
    """Different bytes every time, the same in every run."""

    def __init__(self) -> None:
        self._counter = itertools.count()

    def __call__(self, size: int) -> bytes:
        return hashlib.shake_128(str(next(self._counter)).encode()).digest(size)


class MemoryAccounts:
    def __init__(self, clock: ManualClock, new_id: Any) -> None:
        self.users: dict[str, User] = {}
        self._clock, self._new_id = clock, new_id

    async def find_or_create(self, phone: str, locale: str) -> tuple[User, bool]:
        for user in self.users.values():
            if user.phone == phone:
                return user, False
        user = User(self._new_id(), phone, "", locale, ("customer",), self._clock.now_ms())
        self.users[user.id] = user
        return user, True

    async def locale_of(self, phone: str) -> str | None:
        return next((user.locale for user in self.users.values() if user.phone == phone), None)

    async def get(self, user_ids: Sequence[str]) -> dict[str, User]:
        return {user_id: self.users[user_id] for user_id in user_ids if user_id in self.users}

    async def update(self, user_id: str, *, name: str | None, locale: str | None, avatar: str | None) -> User:
        given = {"name": name, "locale": locale, "avatar": avatar}
        changed = {key: value for key, value in given.items() if value is not None}
        self.users[user_id] = msgspec.structs.replace(self.users[user_id], **changed)
        return self.users[user_id]

    async def become_worker(self, user_id: str, profile: WorkerProfile) -> User:
        user = self.users[user_id]
        roles = tuple(dict.fromkeys((*user.roles, "worker")))
        self.users[user_id] = msgspec.structs.replace(user, worker=profile, roles=roles)
        return self.users[user_id]

    async def grant(self, user_id: str, role: str, act: Act | None = None) -> User:
        user = self.users[user_id]
        self.users[user_id] = msgspec.structs.replace(user, roles=(*user.roles, role))
        return self.users[user_id]


class MemoryAudit:
    """Remembers every act; `error` is what it raises instead."""

    def __init__(self, clock: ManualClock) -> None:
        self.acts: list[Act] = []
        self.error: Exception | None = None
        self._clock = clock

    async def write(self, act: Act) -> None:
        if self.error is not None:
            raise self.error
        self.acts.append(act)

    async def find(self, wanted: Wanted, cursor: str | None, limit: int) -> Page:
        found = [
            Recorded(number, f"01890000-0000-7000-8000-{number:012x}", self._clock.now_ms(), act)
            for number, act in enumerate(self.acts, 1)
            if wanted.act in (None, act.act) and wanted.actor in (None, act.actor)
        ][::-1]
        start = int(cursor or 0)
        more = len(found) > start + limit
        return Page(found[start : start + limit], str(start + limit) if more else None)


class MemorySessions:
    def __init__(self, device_keys: MemoryDeviceKeys | None = None, audit: MemoryAudit | None = None) -> None:
        self._device_keys = device_keys or MemoryDeviceKeys()
        self.audit = audit
        self.sessions: dict[str, DeviceSession] = {}
        self.tokens: dict[bytes, list[Any]] = {}  # hash -> [session id, expires at, spent at, sealed successor]

    async def _write(self, act: Act | None) -> None:
        if act is not None and self.audit is not None:
            await self.audit.write(act)

    async def open(self, session: DeviceSession, refresh_hash: bytes, expires_at: int, act: Act | None = None) -> None:
        if session.device_key_id is not None and session.device_key_id not in self._device_keys.keys:
            raise Refusal(Code.UNAUTHENTICATED)
        await self._write(act)
        self.sessions[session.id] = session
        self.tokens[refresh_hash] = [session.id, expires_at, None, None]

    async def of_refresh(self, refresh_hash: bytes) -> DeviceSession | None:
        row = self.tokens.get(refresh_hash)
        return None if row is None else self.sessions[row[0]]

    async def rotate(
        self,
        spent_hash: bytes,
        new_hash: bytes,
        new_token_sealed: bytes,
        now_ms: int,
        expires_at: int,
        grace_ms: int,
        judge: Judge | None = None,
        reused: Act | None = None,
    ) -> tuple[DeviceSession, bytes | None]:
        row = self.tokens.get(spent_hash)
        if row is None or row[1] <= now_ms:
            raise Refusal(Code.UNAUTHENTICATED)
        session = self.sessions[row[0]]
        if session.revoked_at is not None:
            raise Refusal(Code.SESSION_REVOKED)
        if row[2] is not None:
            if now_ms - row[2] <= grace_ms:
                if judge is not None:
                    judge(session)
                return session, row[3]
            await self.revoke([session.id], now_ms, of_session(reused, session.user_id, session.id))
            raise Refusal(Code.SESSION_REVOKED, current=session.id)
        session = msgspec.structs.replace(session if judge is None else judge(session), last_seen_at=now_ms)
        self.sessions[session.id] = session
        row[2], row[3] = now_ms, new_token_sealed
        self.tokens[new_hash] = [session.id, expires_at, None, None]
        return session, None

    async def get(self, session_id: str) -> DeviceSession | None:
        return self.sessions.get(session_id)

    async def list_of(self, user_id: str) -> list[DeviceSession]:
        return [item for item in self.sessions.values() if item.user_id == user_id]

    async def revoke(self, session_ids: Sequence[str], now_ms: int, act: Act | None = None) -> None:
        await self._write(act)
        for session_id in session_ids:
            if session_id in self.sessions:
                old = self.sessions[session_id]
                self.sessions[session_id] = msgspec.structs.replace(old, revoked_at=now_ms)


class MemoryTokens:
    """Access tokens that are readable JSON: issuer and verifier in one."""

    def __init__(self, clock: ManualClock, sessions: MemorySessions, entropy: CountedEntropy) -> None:
        self._clock, self._sessions, self._entropy = clock, sessions, entropy
        self._alive: dict[str, DeviceSession | None] = {}

    def access(self, user_id: str, session_id: str, now_ms: int, ttl_s: int) -> str:
        text = json.dumps([user_id, session_id, now_ms + ttl_s * 1000, "signature"])
        return base64.urlsafe_b64encode(text.encode()).decode()

    def ticket(self, user_id: str, session_id: str, ticket_id: str, now_ms: int, ttl_s: int) -> str:
        text = json.dumps([user_id, session_id, ticket_id, now_ms + ttl_s * 1000, "signature"])
        return "ticket." + base64.urlsafe_b64encode(text.encode()).decode()

    def refresh(self) -> str:
        return self._entropy(32).hex()

    def hash(self, refresh_token: str) -> bytes:
        return hashlib.sha256(refresh_token.encode()).digest()

    def seal(self, text: str) -> bytes:
        return text.encode()[::-1]

    def unseal(self, sealed: bytes) -> str:
        return sealed[::-1].decode()

    def jwks(self) -> dict[str, Any]:
        return {"keys": [{"kty": "RSA", "kid": "test", "use": "sig", "alg": "RS256", "n": "AQAB", "e": "AQAB"}]}

    def forget(self, session_id: str) -> None:
        """Like the real one, it remembers a session until it is told to ask again."""
        self._alive.pop(session_id, None)

    async def verify(self, token: str) -> Identity:
        try:
            user_id, session_id, expires_at, _ = json.loads(base64.urlsafe_b64decode(token))
        except ValueError:
            raise Refusal(Code.UNAUTHENTICATED) from None
        if expires_at <= self._clock.now_ms():
            raise Refusal(Code.TOKEN_EXPIRED)
        if session_id not in self._alive:
            self._alive[session_id] = await self._sessions.get(session_id)
        session = self._alive[session_id]
        if session is None or session.revoked_at is not None:
            raise Refusal(Code.SESSION_REVOKED)
        return Identity(user_id, session_id, expires_at, session.locale)

    async def check_session(self, session_id: str) -> None:
        session = await self._sessions.get(session_id)
        if session is None or session.revoked_at is not None:
            raise Refusal(Code.SESSION_REVOKED)


class MemoryOtp:
    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.codes: dict[str, list[Any]] = {}

    async def put(self, phone: str, code_hash: bytes, ttl_s: int) -> None:
        self.codes[phone] = [code_hash, self._clock.now_ms() + ttl_s * 1000, 0]

    async def check(self, phone: str, code_hash: bytes, tries: int) -> bool:
        row = self.codes.get(phone)
        if row is None or row[1] <= self._clock.now_ms() or row[2] >= tries:
            return False
        row[2] += 1
        if row[0] != code_hash:
            return False
        del self.codes[phone]
        return True


class MemoryOtpBudget:
    """The limits of a phone, of its prefix and of all; no breaker."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.sent: list[tuple[int, str, str]] = []

    async def take(self, phone_key: str, prefix: str, budgets: OtpBudgets) -> Taken:
        now_ms = self._clock.now_ms()
        phone = [at for at, key, _ in self.sent if key == phone_key]
        same = [at for at, _, other in self.sent if other == prefix]
        every = [at for at, _, _ in self.sent]
        refused = None
        for name, times, most, window_s in (
            ("phone_gap", phone, 1, budgets.phone_gap_s),
            ("phone_hour", phone, budgets.phone_hour, 3_600),
            ("phone_day", phone, budgets.phone_day, 86_400),
            ("prefix_hour", same, budgets.prefix_hour, 3_600),
            ("prefix_day", same, budgets.prefix_day, 86_400),
            ("global_hour", every, budgets.global_hour, 3_600),
            ("global_day", every, budgets.global_day, 86_400),
        ):
            recent = [at for at in times if at > now_ms - window_s * 1000]
            wait_s = (recent[-most] - now_ms) / 1000 + window_s if len(recent) >= most else 0.0
            if wait_s > (refused.wait_s if refused else 0.0):
                refused = Refused(name, wait_s)  # type: ignore[arg-type]
        if refused is None:
            self.sent.append((now_ms, phone_key, prefix))
        return Taken(refused, False, 0)

    async def used(self, prefix: str, budgets: OtpBudgets) -> None: ...


class MemoryTickets:
    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.issued: dict[str, int] = {}

    async def issue(self, ticket_id: str, ttl_s: int) -> None:
        self.issued[ticket_id] = self._clock.now_ms() + ttl_s * 1000

    async def spend(self, ticket_id: str) -> bool:
        return self.issued.pop(ticket_id, 0) > self._clock.now_ms()


class MemorySignIns:
    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.begun: dict[str, tuple[SignIn, int]] = {}
        self.links: dict[str, list[Any]] = {}  # token -> [link, expires at, phone]

    async def begin(self, state: str, sign_in: SignIn, ttl_s: int) -> None:
        self.begun[state] = sign_in, self._clock.now_ms() + ttl_s * 1000

    async def take(self, state: str) -> SignIn | None:
        sign_in, until = self.begun.pop(state, (None, 0))
        return sign_in if until > self._clock.now_ms() else None

    async def offer(self, token: str, link: PendingLink, ttl_s: int) -> None:
        self.links[token] = [link, self._clock.now_ms() + ttl_s * 1000, None]

    async def claim(self, token: str, phone: str) -> bool:
        row = self.links.get(token)
        if row is None or row[1] <= self._clock.now_ms():
            return False
        row[2] = row[2] or phone
        return bool(row[2] == phone)

    async def redeem(self, token: str, phone: str) -> PendingLink | None:
        row = self.links.get(token)
        if row is None or row[1] <= self._clock.now_ms() or row[2] != phone:
            return None
        link: PendingLink = self.links.pop(token)[0]
        return link


class MemoryIdentities:
    def __init__(self) -> None:
        self.rows: dict[bytes, tuple[str, LinkedIdentity]] = {}

    async def find(self, digest: bytes) -> str | None:
        return self.rows[digest][0] if digest in self.rows else None

    async def link(self, link: PendingLink, user_id: str, now_ms: int) -> None:
        holder = await self.find(link.digest)
        if holder == user_id:
            return
        if holder is not None or link.provider in {item.provider for item in await self.list_of(user_id)}:
            raise Refusal(Code.CONFLICT)
        self.rows[link.digest] = user_id, LinkedIdentity(link.provider, now_ms)

    async def list_of(self, user_id: str) -> list[LinkedIdentity]:
        return [item for holder, item in self.rows.values() if holder == user_id]

    async def unlink(self, user_id: str, provider: str) -> bool:
        gone = [key for key, (holder, item) in self.rows.items() if (holder, item.provider) == (user_id, provider)]
        for key in gone:
            del self.rows[key]
        return bool(gone)


class NothingToErase:
    """Erasures of people about whom nothing is stored but their account and sessions."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.begun: list[str] = []

    async def begin(self, user_id: str, now_ms: int) -> list[str]:
        self.begun.append(user_id)
        sessions = [item.id for item in await self._world.sessions.list_of(user_id)]
        for session_id in sessions:
            del self._world.sessions.sessions[session_id]
        return sessions


class MemoryLimiter:
    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.hits: dict[str, list[int]] = {}

    async def hit(self, key: str, limit: int, window_s: int) -> float | None:
        now_ms = self._clock.now_ms()
        recent = [at for at in self.hits.get(key, []) if at > now_ms - window_s * 1000]
        if len(recent) >= limit:
            return (recent[0] + window_s * 1000 - now_ms) / 1000
        self.hits[key] = [*recent, now_ms]
        return None


class MemoryOutbox:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    async def add(self, to: str, kind: str, text: str, code: str | None, at: int) -> None:
        self.rows.insert(0, {"to": to, "kind": kind, "text": text, "code": code, "at": at})

    async def items(self, to: str | None, limit: int) -> list[dict[str, Any]]:
        return [row for row in self.rows if to is None or row["to"] == to][:limit]


class RecordingBroker:
    """Remembers what was published; nobody listens."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []

    async def publish(self, subject: str, data: bytes) -> None:
        self.published.append((subject, data))


class ScriptedRouter:
    """Answers with what the test has put in `answers` (a value, an exception or a function of the request)."""

    def __init__(self) -> None:
        self.asked: list[Command | Query] = []
        self.answers: list[Any] = []

    async def ask(self, request: Command | Query, timeout_s: float = 5.0) -> Any:
        self.asked.append(request)
        if not self.answers:
            raise Refusal(Code.NOT_FOUND)
        answer = self.answers.pop(0)
        answer = answer(request) if callable(answer) and not isinstance(answer, type) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def signal(self, signal: Signal) -> None: ...


class EmptyReads:
    """Lists with nothing in them."""

    async def conversations(self, user_id: str, cursor: str | None, limit: int) -> Page:
        return Page([], None)

    async def messages(self, conversation_id: str, *, before: Any, after: Any, limit: int) -> tuple[list[Any], None]:
        return [], None

    async def orders(self, user_id: str, role: str, state: str | None, cursor: str | None, limit: int) -> Page:
        return Page([], None)

    async def order_heads(self, user_id: str) -> list[tuple[str, int, str]]:
        return []

    async def positions(self, order_id: str, visit_id: str | None, limit: int) -> list[Any]:
        return []

    async def read(self, stream: str, after: int, limit: int, max_bytes: int = 0) -> list[tuple[int, bytes]]:
        return []


class NothingFound:
    """A search that finds nothing."""

    async def find(self, conversation_id: str, wanted: Any, cursor: str | None, limit: int) -> Page:
        return Page([], None)


class MemoryRecords:
    """What a test says the database has; of everything else, nothing."""

    def __init__(self) -> None:
        self.stored: dict[str, StreamRecord] = {}

    async def record(self, stream: str) -> StreamRecord:
        return self.stored.get(stream, StreamRecord(0, None, 0, 0, 0, None))


class World:
    """All the memory parts, and the application over them."""

    def __init__(self, clock: Any = None, **settings: Any) -> None:
        self.clock = clock or ManualClock()
        self.entropy = CountedEntropy()
        self.accounts = MemoryAccounts(self.clock, self.new_id)
        self.device_keys: Any = MemoryDeviceKeys()
        self.audit: Any = MemoryAudit(self.clock)
        self.sessions = MemorySessions(self.device_keys, self.audit)
        self.challenges: Any = MemoryChallenges(self.clock)
        self.totp: Any = MemoryTotpSecrets(self.sessions)
        self.tries: Any = MemoryTries(self.clock)
        self.api_keys: Any = MemoryApiKeys()
        self.places: Any = MemoryPlaces()
        self.tokens = MemoryTokens(self.clock, self.sessions, self.entropy)
        self.otp: Any = MemoryOtp(self.clock)
        self.otp_budget: Any = MemoryOtpBudget(self.clock)
        self.tickets = MemoryTickets(self.clock)
        self.identities: Any = MemoryIdentities()
        self.sign_ins: Any = MemorySignIns(self.clock)
        self.providers: dict[str, Any] = {}
        self.erasures: Any = NothingToErase(self)
        self.uploads: Any = MemoryUploads()
        self.worker_documents: Any = MemoryWorkerDocuments()
        self.intake = Intake()
        self.limiter: Any = MemoryLimiter(self.clock)
        self.outbox = MemoryOutbox()
        self.broker = RecordingBroker()
        self.router: Any = ScriptedRouter()
        self.reads: Any = EmptyReads()
        self.reader: Any = self.reads
        self.search: Any = NothingFound()
        self.blocks: Any = MemoryBlocks()
        self.mutes: Any = MemoryMutes()
        self.presence: Any = MemoryPresence(self.clock.now_ms)
        self.records: Any = MemoryRecords()
        self.orders = ORDERS
        self.checks: dict[str, Any] = {}
        self.sms: Any = None
        """None: what is sent lands in `outbox`."""
        self.verifier: Any = None
        """None: `tokens` verifies as well."""
        self.metrics: Any = NoMetrics()
        self.settings = RestSettings(otp_pepper=b"p" * 32, webhook_secret=b"w" * 32, **settings)

    def new_id(self) -> str:
        return uuid7(self.clock.now_ms(), self.entropy(10))

    def services(self) -> Services:
        return Services(
            router=self.router,
            accounts=self.accounts,
            sessions=self.sessions,
            verifier=self.verifier or self.tokens,
            tokens=self.tokens,
            read_models=self.reads,
            search=self.search,
            blocks=self.blocks,
            mutes=self.mutes,
            presence=self.presence,
            reader=self.reader,
            records=self.records,
            orders=self.orders,
            otp=self.otp,
            otp_budget=self.otp_budget,
            identities=self.identities,
            sign_ins=self.sign_ins,
            providers=self.providers,
            erasures=self.erasures,
            uploads=self.uploads,
            worker_documents=self.worker_documents,
            intake=self.intake,
            tickets=self.tickets,
            limiter=self.limiter,
            device_keys=self.device_keys,
            challenges=self.challenges,
            totp=self.totp,
            tries=self.tries,
            api_keys=self.api_keys,
            places=self.places,
            outbox=self.outbox,
            audit=self.audit,
            sms=self.sms or SandboxSms(self.outbox, self.clock),
            broker=self.broker,  # type: ignore[arg-type]
            clock=self.clock,
            new_id=self.new_id,
            entropy=self.entropy,
            checks=self.checks,
            metrics=self.metrics,
        )

    def app(self) -> Any:
        return build_app(self.services(), self.settings)

    async def login(self, phone: str) -> tuple[User, dict[str, str]]:
        """A user with a live session, and the header that speaks for them."""
        user, _ = await self.accounts.find_or_create(phone, "en")
        now_ms = self.clock.now_ms()
        session = DeviceSession(self.new_id(), user.id, Device("d", "d", "d"), now_ms, now_ms, confirmed_at=now_ms)
        await self.sessions.open(session, self.entropy(32), self.clock.now_ms() + 10**10)
        token = self.tokens.access(user.id, session.id, self.clock.now_ms(), 900)
        return user, {"Authorization": f"Bearer {token}"}
