"""Health, and what only development has."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serve_apps.schemas.common import Limit


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
