"""Orders, their commands, tracks and payments."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import order_commands
from serve_apps.schemas.common import Amount, Currency, Limit, Listing, Money, Offset, Text, Timestamp, Uuid

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
