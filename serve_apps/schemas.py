"""The shapes of REST bodies and answers; the OpenAPI document is made of them. Unknown fields are ignored."""

from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import chat, order_commands

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
Limit = Annotated[int, Meta(description="How many at most; beyond what an endpoint gives, it gives what it can.")]
Cursor = Annotated[str, Meta(min_length=1, max_length=512)]
Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]

T = TypeVar("T")


def clamped(limit: int, most: int) -> int:
    """The limit within 1 and `most`."""
    return max(1, min(limit, most))


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


# --- orders ------------------------------------------------------------------------------------------------------

CommandName = Annotated[str, Meta(pattern=r"\A[a-z_]{1,64}\Z")]
Ref = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._:-]{1,100}\Z")]


class CreateOrder(order_commands.Create, frozen=True):
    """A new order. `id` may be made by the client; with `publish` it is opened at once."""

    id: Uuid | None = None


class OrderQuery(Listing):
    """`role` is the caller's part in the orders; `worker` are those they have quoted for or are hired by."""

    role: Literal["customer", "worker"] = "customer"
    state: Annotated[str, Meta(pattern=r"\A[a-z_]{1,32}\Z")] | None = None


class TimerView(msgspec.Struct):
    """When the order does something by itself, or reminds the caller, unless something else happens before."""

    name: str
    due_at: Timestamp


class OrderView(msgspec.Struct):
    """An order, projected for who asks; what they may not know is left out. `version` is the stream's offset."""

    id: Uuid
    state: str
    display_status: str
    version: int
    customer_id: Uuid
    category: str
    title: str
    description: str
    site: dict[str, Any]
    quotes: list[dict[str, Any]]
    visits: list[dict[str, Any]]
    milestones: list[dict[str, Any]]
    funding: list[dict[str, Any]]
    disputes: list[dict[str, Any]]
    holds: list[str]
    allowed_commands: list[str]
    created_at: Timestamp
    updated_at: Timestamp
    worker_id: Uuid | UnsetType = UNSET
    conversation_id: Uuid | UnsetType = UNSET
    photos: list[str] = []
    changes: list[dict[str, Any]] = []
    timers: list[TimerView] = []
    budget: Money | UnsetType = UNSET
    contract: dict[str, Any] | UnsetType = UNSET
    ratings: dict[str, Any] | UnsetType = UNSET


class CreatedOrder(OrderView, kw_only=True):
    """The order that was made; `replayed` if this id had made it before."""

    replayed: bool


class Event(msgspec.Struct):
    """Publication data with its offset; what else there is depends on `type` (see /schema/asyncapi.json)."""

    offset: int
    type: str
    by: str
    at: Timestamp


class OrderCommand(msgspec.Struct):
    """A command for an order. Its repetition with the same `command_id` has no second effect."""

    command: CommandName
    command_id: Uuid | None = None
    expected_version: Offset | None = None
    payload: dict[str, Any] | None = None


class Commanded(msgspec.Struct):
    """The order as it is now, and the events of the command as they were the first time."""

    order: OrderView
    events: list[Event]
    replayed: bool


class TrackQuery(msgspec.Struct):
    visit_id: Uuid | None = None
    limit: Limit = 10_000


class TrackPoint(msgspec.Struct, omit_defaults=True):
    """A recorded position."""

    at: Timestamp
    lat: float
    lon: float
    accuracy_m: float
    speed_mps: float | None = None
    heading_deg: float | None = None
    visit_id: str = ""


class PayRequest(msgspec.Struct):
    """Pay a milestone. `id` names the payment and makes its repetition harmless."""

    milestone: Annotated[int, Meta(ge=1, le=1000)]
    rail: Annotated[str, Meta(pattern=r"\A[a-z0-9_-]{1,40}\Z")]
    id: Uuid | None = None


class Paid(msgspec.Struct, omit_defaults=True):
    """Where a payment stands; `action` is what the customer has to do for it, if anything."""

    payment_id: Uuid
    status: str
    replayed: bool
    action: dict[str, Any] | None = None


class PaymentNews(msgspec.Struct, frozen=True):
    """What a payment provider says about a payment."""

    order_id: Uuid
    payment_id: Uuid
    amount: Amount
    currency: Currency
    reason: Text = ""


class PaymentEvent(msgspec.Struct, frozen=True):
    """A webhook's body: `id` is the provider's, and makes its repetition harmless."""

    id: Ref
    type: Literal["payment.held", "payment.failed"]
    data: PaymentNews


class Received(msgspec.Struct):
    received: Literal[True]


# --- conversations -----------------------------------------------------------------------------------------------


class OpenConversation(msgspec.Struct):
    """Users to talk with; the caller is added."""

    member_ids: Annotated[list[Uuid], Meta(min_length=1, max_length=chat.MAX_MEMBERS)]
    id: Uuid | None = None


class ConversationView(msgspec.Struct):
    """A conversation as its members see it."""

    id: Uuid
    members: list[Uuid]
    offset: int
    read_offset: int
    order_id: Uuid | UnsetType = UNSET


class OpenedConversation(ConversationView, kw_only=True):
    """The conversation that was opened; `replayed` if this id had opened it before."""

    replayed: bool


class ConversationItem(ConversationView, kw_only=True):
    """A conversation in a list; `last_message` is the newest message as it was posted."""

    unread: int
    last_message: dict[str, Any] | None
    updated_at: Timestamp


class MessageQuery(msgspec.Struct):
    before: Offset | None = None
    after: Offset | None = None
    limit: Limit = 50


class MessageView(msgspec.Struct):
    """A message as it reads now; a deleted one stays without its content."""

    message_id: Uuid
    by: str
    at: Timestamp
    offset: int
    text: str | UnsetType = UNSET
    attachments: list[str] | UnsetType = UNSET
    reply_to: str | UnsetType = UNSET
    card: dict[str, Any] | UnsetType = UNSET
    edited_at: Timestamp | UnsetType = UNSET
    deleted: bool | UnsetType = UNSET
    deleted_at: Timestamp | UnsetType = UNSET
    reactions: dict[str, list[str]] | UnsetType = UNSET


class SendMessage(chat.Send, frozen=True):
    """A message; `id` names it, unless the header `Idempotency-Key` does."""

    id: Uuid | None = None


class Sent(msgspec.Struct):
    """Where the message stands in its conversation, now and in every repetition."""

    offset: int
    at: Timestamp
    replayed: bool


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
