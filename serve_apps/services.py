"""What the REST application needs: the ports it speaks to, and its settings."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from domain.audit import AuditLog
from domain.devices import ApiKeys, ChallengeStore, DeviceKeys, TotpSecrets, TryCounter
from domain.erasure import Erasures
from domain.identities import NO_PROVIDERS, Identities, IdentityProvider, SignInStore
from domain.orders import ORDERS, OrderRules
from domain.otp import DEFAULT_BUDGETS, OtpBudget, OtpBudgets
from domain.places import GeoLocator, NoPlaces
from domain.ports import (
    Accounts,
    Blocks,
    Broker,
    Clock,
    MessageSearch,
    Metrics,
    Mutes,
    NoMetrics,
    OtpStore,
    Outbox,
    PresenceStore,
    RateLimiter,
    ReadModels,
    Router,
    Sessions,
    StreamReader,
    StreamRecords,
    TicketStore,
    TokenIssuer,
    TokenVerifier,
)
from domain.uploads import Uploads
from domain.verification import WorkerDocuments
from serve_apps.intake import Intake


class SmsSender(Protocol):
    """Hands a text to a phone network."""

    async def send(self, phone: str, text: str, code: str | None) -> None:
        """Return when the vendor has taken the message. StoreUnavailable: it has not, nothing was sent."""
        ...


Check = Callable[[], Awaitable[object]]
"""Asks one dependency whether it answers; raises where it does not."""


@dataclass(frozen=True, slots=True)
class Services:
    """The ports. `entropy` gives that many unpredictable bytes; `new_id` a UUIDv7 of now.

    `checks` are what `/health/ready` asks, by name (`database`, `broker`, `redis`).
    """

    router: Router
    accounts: Accounts
    sessions: Sessions
    verifier: TokenVerifier
    tokens: TokenIssuer
    read_models: ReadModels
    search: MessageSearch
    blocks: Blocks
    mutes: Mutes
    presence: PresenceStore
    reader: StreamReader
    records: StreamRecords
    otp: OtpStore
    otp_budget: OtpBudget
    identities: Identities
    sign_ins: SignInStore
    erasures: Erasures
    uploads: Uploads
    worker_documents: WorkerDocuments
    tickets: TicketStore
    limiter: RateLimiter
    device_keys: DeviceKeys
    challenges: ChallengeStore
    totp: TotpSecrets
    tries: TryCounter
    api_keys: ApiKeys
    outbox: Outbox
    audit: AuditLog
    sms: SmsSender
    broker: Broker
    clock: Clock
    new_id: Callable[[], str]
    entropy: Callable[[int], bytes]
    orders: OrderRules = ORDERS
    """The rules that lists of orders are shown by: those of the hosts."""
    places: GeoLocator = field(default_factory=NoPlaces)
    providers: Mapping[str, IdentityProvider] = field(default_factory=lambda: NO_PROVIDERS)
    """The third parties that one can sign in by, under the names that clients use."""
    intake: Intake = field(default_factory=Intake)
    checks: Mapping[str, Check] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=NoMetrics)


@dataclass(frozen=True, slots=True)
class RestSettings:
    """How the REST application behaves. Every duration is in seconds, every count is per window.

    `rate_limits` off lifts every request rate; the tries of a one-time code are never lifted. `trusted_hops` is the
    number of proxies in front that append to `X-Forwarded-For`; 0 believes the socket alone. `cors_origins` empty
    answers no browser of another origin. `sandbox_payments` offers the rail `sandbox`, which takes no real money.
    `audience` is that of access tokens, which device keys sign with their challenges. `ops_totp` asks operators for a second
    factor; after `totp_tries` wrong codes in a row there is a pause.
    """

    otp_pepper: bytes
    webhook_secret: bytes
    env: str = "dev"
    rate_limits: bool = False
    access_ttl_s: int = 900
    refresh_ttl_s: int = 30 * 86_400
    refresh_grace_s: int = 30
    otp_ttl_s: int = 300
    otp_tries: int = 5
    otp_budgets: OtpBudgets = DEFAULT_BUDGETS
    sign_in_redirects: tuple[str, ...] = ()
    """Where a third party may send people back to, each exactly as a client must write it."""
    sign_in_ttl_s: int = 600
    recent_login_s: int = 600
    """How long after logging in a session may erase its account."""
    link_ttl_s: int = 600
    """How long who signed in by a third party for the first time has to prove a phone number."""
    auth_per_ip_hour: int = 5
    audience: str = "renoveasy-api"
    challenge_ttl_s: int = 120
    ops_totp: bool = False
    totp_tries: int = 5
    totp_pause_s: int = 900
    api_key_per_hour: int = 1_000
    requests_per_ip_minute: int = 100
    wide_network_times: int = 20
    """An IPv6 /48 may do so many times what one address, or a /64, may do."""
    trusted_hops: int = 0
    echo_request_id: bool = True
    """Answer with `X-Request-Id`; off where the server in front of the application does it."""
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 256 * 1024
    """Of JSON; an upload has its own limit."""
    upload_bytes: int = 10 << 20
    upload_pixels: int = 25_000_000
    """More than this is not decoded: it takes some eight bytes of memory a pixel."""
    upload_quota_bytes: int = 1 << 30
    """What all uploads of one user may take."""
    uploads_per_user_hour: int = 60
    upload_timeout_s: float = 60.0
    body_timeout_s: float = 20.0
    """From the request's head to the end of its body."""
    ask_timeout_s: float = 5.0
    inspect_timeout_s: float = 1.5
    """How long operators wait for a stream's host before they are shown the database's part alone."""
    ready_timeout_s: float = 1.0
    webhook_tolerance_s: int = 300
    sandbox_payments: bool = True

    @property
    def dev(self) -> bool:
        return self.env == "dev"


_SECRET_FLOOR: Final = 16
_ENVIRONMENT: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def check_settings(settings: RestSettings) -> None:
    """Raises ValueError, naming the key, for settings nobody should run with."""
    for key in ("otp_pepper", "webhook_secret"):
        if len(getattr(settings, key)) < _SECRET_FLOOR:
            raise ValueError(f"{key} must have at least {_SECRET_FLOOR} bytes")
    if not _ENVIRONMENT.fullmatch(settings.env):
        raise ValueError(f"env {settings.env!r} must be a short lower-case word such as dev or production")
    if "*" in settings.cors_origins:
        raise ValueError("cors_origins must name origins; * would let every site call with a user's token")
