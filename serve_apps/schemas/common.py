"""Shapes and types that bodies and answers of several kinds share."""

from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta

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


class Point(msgspec.Struct, frozen=True):
    """WGS84 degrees."""

    lat: Latitude
    lon: Longitude


class Money(msgspec.Struct, frozen=True):
    """Integer minor units of an ISO 4217 currency."""

    amount: Amount
    currency: Currency
