"""The shapes of REST bodies and answers; the OpenAPI document is made of them. Unknown fields are ignored."""

from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

Uuid = Annotated[
    str,
    Meta(
        pattern=r"\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z",
        extra_json_schema={"format": "uuid"},
    ),
]
"""A canonical lower-case UUID."""
Line = Annotated[str, Meta(min_length=1, max_length=120, pattern=r"\A[^\x00-\x1f\x7f]+\Z")]
"""One line of text without control characters."""
Phone = Annotated[str, Meta(pattern=r"\A\+[1-9][0-9]{6,14}\Z")]
"""A phone number in E.164, such as +8613800000000."""
OtpCode = Annotated[str, Meta(pattern=r"\A[0-9]{6}\Z")]
Text = Annotated[str, Meta(max_length=2000, pattern=r"\A[^\x00]*\Z")]
Locale = Annotated[str, Meta(pattern=r"\A[a-z]{2,3}(-[A-Za-z0-9]{2,8})?\Z")]
Currency = Annotated[str, Meta(pattern=r"\A[A-Z]{3}\Z")]
Amount = Annotated[int, Meta(ge=0, le=10**13)]
Latitude = Annotated[float, Meta(ge=-90, le=90)]
Longitude = Annotated[float, Meta(ge=-180, le=180)]
Offset = Annotated[int, Meta(ge=0, le=2**53)]
Limit = Annotated[int, Meta(ge=1)]
Cursor = Annotated[str, Meta(min_length=1, max_length=512)]
Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]

T = TypeVar("T")


class Items(msgspec.Struct, Generic[T]):
    """A page of a list."""

    items: list[T]
    next_cursor: str | None = None


class Stream(msgspec.Struct, Generic[T]):
    """A page by offset: `next_cursor` is what `after` (or `before`) takes next, null at the end."""

    items: list[T]
    next_cursor: int | None = None


class Listing(msgspec.Struct):
    cursor: Cursor | None = None
    limit: Limit = 50


class After(msgspec.Struct):
    after: Offset = 0
    limit: Limit = 100


# --- auth --------------------------------------------------------------------------------------------------------


class OtpRequest(msgspec.Struct):
    phone: Phone


class OtpSent(msgspec.Struct):
    expires_in_s: int
    resend_in_s: int


class DeviceInfo(msgspec.Struct):
    """The device that logs in: an id it keeps, a name for people, and its platform."""

    id: Line
    name: Line = "unnamed"
    platform: Line = "unknown"


class VerifyRequest(msgspec.Struct):
    phone: Phone
    code: OtpCode
    device: DeviceInfo


class Point(msgspec.Struct, frozen=True):
    """WGS84 degrees."""

    lat: Latitude
    lon: Longitude


class Money(msgspec.Struct, frozen=True):
    """Integer minor units of an ISO 4217 currency."""

    amount: Amount
    currency: Currency


class WorkerView(msgspec.Struct):
    """What the caller offers as a worker."""

    skills: list[str]
    base: Point
    radius_m: float
    hourly_rate: Money
    bio: str


class Rating(msgspec.Struct):
    """The mean of all stars given, null before the first."""

    mean: float | None
    count: int


class Me(msgspec.Struct, omit_defaults=True):
    """The caller. The phone number is masked."""

    id: Uuid
    phone: str
    name: str
    locale: str
    roles: list[str]
    created_at: Timestamp
    avatar: str | UnsetType = UNSET
    worker: WorkerView | UnsetType = UNSET
    rating: Rating | UnsetType = UNSET


class TokenPair(msgspec.Struct):
    """A new pair: the refresh token it came from is spent."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in_s: int
    refresh_token: str
    refresh_expires_in_s: int


class LoggedIn(TokenPair):
    user: Me
    is_new: bool


class RefreshRequest(msgspec.Struct):
    refresh_token: Annotated[str, Meta(min_length=1, max_length=512)]


class LogoutRequest(msgspec.Struct):
    all: bool = False


class SessionView(msgspec.Struct):
    """A device session: `current` is the one that asks."""

    id: Uuid
    device: DeviceInfo
    created_at: Timestamp
    last_seen_at: Timestamp
    current: bool


class Sessions(msgspec.Struct):
    items: list[SessionView]


# --- people ------------------------------------------------------------------------------------------------------


class MePatch(msgspec.Struct):
    """What is left out stays as it is."""

    name: Line | UnsetType = UNSET
    locale: Locale | UnsetType = UNSET
    avatar: Line | UnsetType = UNSET


class WorkerPut(msgspec.Struct):
    """A worker's offer. `hourly_rate` may be a bare number of minor units, then in CNY."""

    skills: Annotated[list[Line], Meta(min_length=1, max_length=50)]
    base: Point
    radius_m: Annotated[float, Meta(gt=0, le=500_000)]
    hourly_rate: Money | Amount
    bio: Text = ""


class WorkerPublic(msgspec.Struct, omit_defaults=True):
    """A worker as anybody sees them: never the phone, never the exact base."""

    id: Uuid
    name: str
    skills: list[str]
    radius_m: float
    hourly_rate: Money
    bio: str
    rating: Rating
    avatar: str | UnsetType = UNSET


# --- health and development --------------------------------------------------------------------------------------


class Alive(msgspec.Struct):
    status: Literal["ok"]


class Ready(msgspec.Struct):
    status: Literal["ready"]
    checks: dict[str, Literal["ok"]]


class OutboxQuery(msgspec.Struct):
    to: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    limit: Limit = 100


class OutboxItem(msgspec.Struct, omit_defaults=True):
    to: str
    kind: str
    text: str
    at: str
    code: str | None = None


class OutboxItems(msgspec.Struct):
    items: list[OutboxItem]


class Jwks(msgspec.Struct):
    """A JWK set (RFC 7517)."""

    keys: list[dict[str, Any]]
