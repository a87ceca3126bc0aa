"""The shapes of REST bodies and answers; the OpenAPI document is made of them. Unknown fields are ignored."""

from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import chat, order_commands
from domain.search import MAX_QUERY
from domain.uploads import Purpose
from domain.verification import Kind as DocumentKind
from domain.verification import State as DocumentState

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


LinkToken = Annotated[str, Meta(min_length=1, max_length=128)]


class VerifyRequest(msgspec.Struct):
    """`link_token` is what a sign-in by a third party gave: its account is linked to this phone's."""

    phone: Phone
    code: OtpCode
    device: DeviceInfo
    link_token: LinkToken | None = None


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
    verified: bool | UnsetType = UNSET
    """Of a worker: whether operations vouch for who they are, and for every licence that their skills ask for."""
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


class SignInStart(msgspec.Struct):
    """`code_challenge` is the base64url of the SHA-256 of a verifier that the app keeps until it finishes."""

    redirect_uri: Annotated[str, Meta(min_length=1, max_length=512)]
    code_challenge: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{43}\Z")] | None = None


class SignInStarted(msgspec.Struct):
    authorization_url: str
    state: str
    expires_in_s: int


class SignInFinish(msgspec.Struct):
    """What came back at the redirect address, `iss` too if it was there, and the device that logs in."""

    state: Annotated[str, Meta(min_length=1, max_length=128)]
    code: Annotated[str, Meta(min_length=1, max_length=2048, pattern=r"\A[\x20-\x7e]+\Z")]
    device: DeviceInfo
    code_verifier: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._~-]{43,128}\Z")] | None = None
    iss: Annotated[str, Meta(max_length=2048)] | None = None


class SignedIn(msgspec.Struct, omit_defaults=True):
    """Either what logging in by a code answers, or `link_token` and for how long it is good (`expires_in_s`)."""

    expires_in_s: int
    link_token: str | UnsetType = UNSET
    access_token: str | UnsetType = UNSET
    token_type: Literal["Bearer"] | UnsetType = UNSET
    refresh_token: str | UnsetType = UNSET
    refresh_expires_in_s: int | UnsetType = UNSET
    user: Me | UnsetType = UNSET
    is_new: bool | UnsetType = UNSET

    @classmethod
    def of(cls, answer: LoggedIn) -> "SignedIn":
        return cls(**{name: getattr(answer, name) for name in LoggedIn.__struct_fields__})


class IdentityView(msgspec.Struct):
    """A third party that the caller can sign in by."""

    provider: str
    linked_at: Timestamp


class Identities(msgspec.Struct):
    items: list[IdentityView]


class Ticket(msgspec.Struct):
    """Good for one connection, as its `token`, within `expires_in_s`."""

    ticket: str
    expires_in_s: int


RefreshToken = Annotated[str, Meta(min_length=1, max_length=512)]


class RefreshRequest(msgspec.Struct):
    """`device` as at the login, where the client says it: another one has to step up."""

    refresh_token: RefreshToken
    device: DeviceInfo | UnsetType = UNSET


class StepUpRequest(msgspec.Struct):
    """A code that `POST /v1/auth/otp` has sent to the session's user, and the device as it is now."""

    refresh_token: RefreshToken
    code: OtpCode
    device: DeviceInfo | UnsetType = UNSET


class LogoutRequest(msgspec.Struct):
    all: bool = False


class PlaceView(msgspec.Struct, omit_defaults=True):
    """Roughly where: an ISO 3166 country and a city, as far as they are known."""

    country: str | UnsetType = UNSET
    city: str | UnsetType = UNSET


class SessionView(msgspec.Struct, omit_defaults=True):
    """A device session: `current` is the one that asks. `last_seen_place` is there if it is known."""

    id: Uuid
    device: DeviceInfo
    created_at: Timestamp
    last_seen_at: Timestamp
    current: bool
    last_seen_place: PlaceView | UnsetType = UNSET


class Sessions(msgspec.Struct):
    items: list[SessionView]


Coordinate = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{43}\Z")]
"""32 bytes in base64url."""


class EcJwk(msgspec.Struct, forbid_unknown_fields=True):
    """A P-256 public key (RFC 7518, section 6.2). A private one, or anything else beside these, is refused."""

    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: Coordinate
    y: Coordinate


class DeviceKeyPut(msgspec.Struct):
    """A P-256 public key: a JWK, or SubjectPublicKeyInfo in base64."""

    public_key: EcJwk | str
    name: Line


class DeviceKeyView(msgspec.Struct):
    id: Uuid
    name: str
    created_at: Timestamp
    last_used_at: Timestamp | None


class DeviceKeys(msgspec.Struct):
    items: list[DeviceKeyView]


class ChallengeRequest(msgspec.Struct):
    key_id: Uuid


class Challenge(msgspec.Struct):
    """To be signed within `expires_in_s`, once."""

    challenge: str
    expires_in_s: int


class DeviceLogin(msgspec.Struct):
    """`signature` is `r || s` or DER, in base64url."""

    key_id: Uuid
    challenge: str
    signature: str
    device: DeviceInfo


class TotpEnrolled(msgspec.Struct):
    """What an authenticator app reads, as a QR code for instance. It holds the secret."""

    otpauth_uri: str


class TotpVerify(msgspec.Struct):
    code: OtpCode


class TotpVerified(msgspec.Struct):
    """For how long this session counts as verified."""

    until: Timestamp


class ApiKeyPut(msgspec.Struct):
    name: Line


class ApiKeyMade(msgspec.Struct):
    """`key` is what `Authorization: Bearer` takes. It is never shown again."""

    id: Uuid
    key: str


class ApiKeyView(msgspec.Struct):
    """`last_used_at` to some five minutes."""

    id: Uuid
    name: str
    created_at: Timestamp
    last_used_at: Timestamp | None


class ApiKeys(msgspec.Struct):
    items: list[ApiKeyView]


# --- people ------------------------------------------------------------------------------------------------------


class MePatch(msgspec.Struct):
    """What is left out stays as it is."""

    name: Line | UnsetType = UNSET
    locale: Locale | UnsetType = UNSET
    avatar: Line | UnsetType = UNSET


class Erasing(msgspec.Struct):
    """The account is nobody's any more; what was written is being erased since."""

    requested_at: Timestamp


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
    verified: bool
    """Whether operations vouch for who they are, and for every licence that their skills ask for."""
    avatar: str | UnsetType = UNSET


# --- uploads and documents ---------------------------------------------------------------------------------------


class UploadQuery(msgspec.Struct):
    """`id` is made by the client; the header `Idempotency-Key` serves too."""

    purpose: Purpose
    id: Uuid | None = None


class UploadView(msgspec.Struct):
    """An upload; `bytes` is the size of what is kept."""

    id: Uuid
    purpose: Purpose
    content_type: str
    bytes: int
    created_at: Timestamp
    replayed: bool


DocumentNumber = Annotated[str, Meta(pattern=r"\A[0-9A-Za-z][0-9A-Za-z ./-]{3,39}\Z")]
Skill = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[^\x00-\x1f\x7f]+\Z")]


class WorkerDocumentPost(msgspec.Struct):
    """`upload_id` is an upload for the purpose `document`; `skill` is what a licence is for; `expires_at` as it says itself."""

    kind: DocumentKind
    upload_id: Uuid
    id: Uuid | None = None
    skill: Skill | None = None
    number: DocumentNumber | None = None
    expires_at: Timestamp | None = None


class WorkerDocumentView(msgspec.Struct, omit_defaults=True):
    """A document and what was said of it. `number_tail` is the end of its number, which nobody is shown more of."""

    id: Uuid
    kind: DocumentKind
    upload_id: Uuid
    state: Literal["pending", "approved", "rejected", "expired"]
    created_at: Timestamp
    skill: str | UnsetType = UNSET
    number_tail: str | UnsetType = UNSET
    expires_at: Timestamp | UnsetType = UNSET
    reviewed_at: Timestamp | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    replayed: bool | UnsetType = UNSET


class WorkerDocumentForOps(WorkerDocumentView, kw_only=True, omit_defaults=True):
    """The same for operations."""

    worker_id: Uuid
    reviewed_by: Uuid | UnsetType = UNSET


class WorkerDocumentsQuery(Listing):
    state: DocumentState = "pending"


class ReviewDocument(msgspec.Struct):
    """`expires_at` is until when an approved document is good; `reason` is told to the worker of a rejected one."""

    decision: Literal["approve", "reject"]
    reason: Annotated[str, Meta(max_length=500, pattern=r"\A[^\x00]*\Z")] = ""
    expires_at: Timestamp | None = None


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


class DeviceWatermark(msgspec.Struct):
    """How far one session of a member is."""

    device: str
    read_offset: int
    delivered_offset: int


class Watermark(msgspec.Struct):
    """How far a member is, which is as far as the furthest of their devices; the last eight of these."""

    user_id: Uuid
    read_offset: int
    delivered_offset: int
    devices: list[DeviceWatermark]


class ConversationStanding(ConversationView, kw_only=True):
    """A conversation and how far everybody is in it."""

    joined_offset: int
    delivered_offset: int
    watermarks: list[Watermark]


class ConversationDetails(ConversationStanding, kw_only=True):
    """A conversation, how far everybody is in it, and how many messages of other people the caller has not read."""

    unread: int


class OpenedConversation(ConversationStanding, kw_only=True):
    """The conversation that was opened; `replayed` if this id had opened it before."""

    replayed: bool


class ConversationItem(ConversationView, kw_only=True):
    """A conversation in a list; `last_message` is the newest message as it was posted."""

    unread: int
    last_message: dict[str, Any] | None
    updated_at: Timestamp
    muted: bool
    muted_until: Timestamp | UnsetType = UNSET


class MessageQuery(msgspec.Struct):
    before: Offset | None = None
    after: Offset | None = None
    limit: Limit = 50


class MessageView(msgspec.Struct):
    """A message as it reads now; a deleted one stays without its content.

    `masked`: the kinds of contact details that an order hides yet; the author is shown the text as it was written.
    """

    message_id: Uuid
    by: str
    at: Timestamp
    offset: int
    text: str | UnsetType = UNSET
    attachments: list[str] | UnsetType = UNSET
    reply_to: str | UnsetType = UNSET
    card: dict[str, Any] | UnsetType = UNSET
    masked: list[str] | UnsetType = UNSET
    edited_at: Timestamp | UnsetType = UNSET
    deleted: bool | UnsetType = UNSET
    deleted_at: Timestamp | UnsetType = UNSET
    reactions: dict[str, list[str]] | UnsetType = UNSET


class MessageVersionView(msgspec.Struct):
    """What a message said from `at` on, and the offset of the event that said it."""

    at: Timestamp
    offset: int
    text: str | UnsetType = UNSET


class MessageHistory(msgspec.Struct):
    """Every text of a message, oldest first; none once it is deleted."""

    items: list[MessageVersionView]


class AddMember(msgspec.Struct):
    """Who is to become a member; `id` names this write, unless the header `Idempotency-Key` does."""

    user_id: Uuid
    id: Uuid | None = None


class SendMessage(chat.Send, frozen=True):
    """A message; `id` names it, unless the header `Idempotency-Key` does."""

    id: Uuid | None = None


class Sent(msgspec.Struct):
    """Where the message, or the change, stands in its conversation, now and in every repetition."""

    offset: int
    at: Timestamp
    replayed: bool


class SearchQuery(msgspec.Struct):
    q: Annotated[str, Meta(min_length=1, max_length=MAX_QUERY, description="What the messages say.")]
    cursor: Cursor | None = None
    limit: Limit = 20


class MuteRequest(msgspec.Struct):
    """`until` is left out for ever."""

    until: Timestamp | None = None


class MuteView(msgspec.Struct):
    """Without `muted_until` it is for ever."""

    muted: Literal[True]
    muted_until: Timestamp | UnsetType = UNSET


class BlockView(msgspec.Struct):
    """A user whom the caller has blocked, and when."""

    user_id: Uuid
    at: Timestamp


# --- the audit log -----------------------------------------------------------------------------------------------

Word = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[!-~]+\Z")]


class AuditQuery(Listing):
    actor: Word | None = None
    act: Word | None = None
    since: Annotated[str, Meta(max_length=40)] | None = msgspec.field(name="from", default=None)
    until: Annotated[str, Meta(max_length=40)] | None = msgspec.field(name="to", default=None)


class AuditedAct(msgspec.Struct):
    """An act. `actor` is a user's id, `cli:<account>`, or empty; `outcome` is `ok`, a code, or `allowed`.

    `allowed` stands on an operator's act, which is written down before it happens; if it then failed, the next act says how.
    """

    number: int
    id: Uuid
    at: Timestamp
    act: str
    outcome: str
    actor: str
    session: str
    ip: str
    object: str
    details: dict[str, str]


# --- taking along ------------------------------------------------------------------------------------------------


class ExportedSession(SessionView, kw_only=True, omit_defaults=True):
    """A device session with all that is known of where it was last used; ended ones too.

    `last_seen_at_ip` is an address, or an IPv6 one as its /64; `last_seen_near` is right to some 10 km.
    """

    last_seen_at_ip: str | UnsetType = UNSET
    user_agent: str | UnsetType = UNSET
    last_seen_near: Point | UnsetType = UNSET
    confirmed_at: Timestamp | UnsetType = UNSET
    second_factor_at: Timestamp | UnsetType = UNSET
    device_key_id: Uuid | UnsetType = UNSET
    ended_at: Timestamp | UnsetType = UNSET


class ExportedFactor(msgspec.Struct, omit_defaults=True):
    """That there is a second factor; never its secret."""

    created_at: Timestamp
    confirmed_at: Timestamp | UnsetType = UNSET


class ExportedAccount(msgspec.Struct, omit_defaults=True):
    """The account, with its phone number in full, and how its owner gets in; of keys their names and times."""

    me: Me
    phone: str
    sessions: list[ExportedSession]
    identities: list[IdentityView]
    device_keys: list[DeviceKeyView] = []
    api_keys: list[ApiKeyView] = []
    second_factor: ExportedFactor | UnsetType = UNSET
    documents: list[WorkerDocumentView] = []


class ExportedConversation(msgspec.Struct, omit_defaults=True):
    """A conversation that the caller is or was in, and how far they are. `muted_until` is null for ever."""

    conversation_id: Uuid
    joined_offset: int
    read_offset: int
    delivered_offset: int
    left_offset: int | UnsetType = UNSET
    muted_until: Timestamp | UnsetType | None = UNSET


class ExportedTrack(msgspec.Struct):
    """Recorded positions of the caller's trips for an order."""

    order_id: Uuid
    positions: list[TrackPoint]


class ExportedMessage(msgspec.Struct, omit_defaults=True):
    """A message that the caller wrote, and everything that it has said, oldest first."""

    conversation_id: Uuid
    message_id: Uuid
    offset: int
    at: Timestamp
    texts: list[str]
    attachments: list[str] = []
    reply_to: str | UnsetType = UNSET


class ExportRequest(msgspec.Struct):
    """Nothing for the first page, then `next_cursor` of the one before."""

    cursor: Cursor | None = None


class ExportedUpload(msgspec.Struct):
    """Something that the caller has uploaded; what it holds is at `path`."""

    id: Uuid
    purpose: Purpose
    content_type: str
    bytes: int
    created_at: Timestamp
    path: str


class Export(msgspec.Struct, omit_defaults=True):
    """A page of what is stored about the caller. All pages together are the document; the last one has no `next_cursor`."""

    account: ExportedAccount | UnsetType = UNSET
    messages: list[ExportedMessage] = []
    conversations: list[ExportedConversation] = []
    orders: list[OrderView] = []
    tracks: list[ExportedTrack] = []
    blocks: list[BlockView] = []
    uploads: list[ExportedUpload] = []
    next_cursor: str | UnsetType = UNSET


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
