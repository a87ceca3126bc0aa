"""What the REST application needs: the ports it speaks to, and its settings."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from domain.orders import ORDERS, OrderRules
from domain.ports import (
    Accounts,
    Broker,
    Clock,
    Metrics,
    NoMetrics,
    OtpStore,
    Outbox,
    RateLimiter,
    ReadModels,
    Router,
    Sessions,
    StreamReader,
    StreamRecords,
    TokenIssuer,
    TokenVerifier,
)


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
    reader: StreamReader
    records: StreamRecords
    otp: OtpStore
    limiter: RateLimiter
    outbox: Outbox
    sms: SmsSender
    broker: Broker
    clock: Clock
    new_id: Callable[[], str]
    entropy: Callable[[int], bytes]
    orders: OrderRules = ORDERS
    """The rules that lists of orders are shown by: those of the hosts."""
    checks: Mapping[str, Check] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=NoMetrics)


@dataclass(frozen=True, slots=True)
class RestSettings:
    """How the REST application behaves. Every duration is in seconds, every count is per window.

    `rate_limits` off lifts every request rate; the tries of a one-time code are never lifted. `trusted_hops` is the
    number of proxies in front that append to `X-Forwarded-For`; 0 believes the socket alone. `cors_origins` empty
    answers no browser of another origin. `sandbox_payments` offers the rail `sandbox`, which takes no real money.
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
    otp_resend_s: int = 60
    otp_per_phone_hour: int = 3
    auth_per_ip_hour: int = 5
    requests_per_ip_minute: int = 100
    trusted_hops: int = 0
    echo_request_id: bool = True
    """Answer with `X-Request-Id`; off where the server in front of the application does it."""
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 256 * 1024
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
