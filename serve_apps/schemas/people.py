"""People, as they themselves and as others see them."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serve_apps.schemas.common import Amount, Line, Locale, Money, Point, Text, Timestamp, Uuid


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
