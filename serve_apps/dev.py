"""What exists in the environment `dev` only: reading what the sandbox senders would have sent."""

from typing import Any

import msgspec

from domain.times import rfc3339
from serve_apps.endpoint import Call, Endpoint, Rate, Rule, endpoint
from serve_apps.schemas.common import clamped
from serve_apps.schemas.health import OutboxItem, OutboxItems, OutboxQuery

_MOST = 1000


@endpoint("GET", "/dev/outbox", tag="dev", rule=Rule.DEV, rate=Rate.NONE)
async def outbox(call: Call, query: OutboxQuery) -> OutboxItems:
    """What would have been sent, newest first."""
    items = await call.services.outbox.items(_number(query.to), clamped(query.limit, _MOST))
    return OutboxItems([msgspec.convert(_item(item), OutboxItem) for item in items])


def _number(to: str | None) -> str | None:
    """A `+` that was not escaped arrives as a space."""
    return f"+{to[1:]}" if to is not None and to.startswith(" ") else to


def _item(item: dict[str, Any]) -> dict[str, Any]:
    at = item["at"]
    return item | {"at": rfc3339(at) if isinstance(at, int) else at}


ENDPOINTS: tuple[Endpoint, ...] = (outbox,)
