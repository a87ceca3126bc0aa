"""Orders: making, reading and commanding them."""

from contextlib import nullcontext
from typing import Any

import msgspec

from domain.access import admits
from domain.aggregate import Account, AccountNeed, Facts
from domain.commands import Accepted, Actor
from domain.devices import QUOTE_COMMANDS
from domain.errors import Code, Refusal, invalid
from domain.order_table import OPS_COMMANDS, client_name
from domain.orders import OrderRules
from domain.ports import Position, User
from domain.times import rfc3339
from serve_apps.audited import OpsAct
from serve_apps.chat import new_stream_id
from serve_apps.endpoint import Body, Call, Endpoint, Rule, endpoint
from serve_apps.schemas.common import After, Items, Stream, clamped
from serve_apps.schemas.orders import (
    Commanded,
    CreatedOrder,
    CreateOrder,
    Event,
    OrderCommand,
    OrderQuery,
    OrderView,
    TrackPoint,
    TrackQuery,
)
from serve_apps.streams import accepted_events, attach, event_page, page_of, with_replayed

_LIST_MOST = 100
_TRACK_MOST = 10_000


@endpoint("POST", "/v1/orders", tag="orders", rule=Rule.USER, status=201, keyed=True)
async def create_order(call: Call, body: CreateOrder) -> Body[CreatedOrder]:
    """Make an order in state `draft`, or with `publish` in state `open`."""
    key = call.write_id(body.id)
    order_id = body.id or new_stream_id(call, "order", key)
    payload = msgspec.structs.asdict(body)
    del payload["id"]
    accepted = await call.command("order", order_id, "create", key or order_id, payload)
    return Body(with_replayed(await _seen(call, order_id, accepted), accepted))


async def _seen(call: Call, order_id: str, accepted: Accepted) -> bytes:
    return accepted.view if accepted.view is not None else (await call.view("order", order_id)).body


@endpoint("GET", "/v1/orders", tag="orders", rule=Rule.OWNER, api_keys=True)
async def list_orders(call: Call, query: OrderQuery) -> Body[Items[OrderView]]:
    """The caller's orders in a role, latest activity first."""
    user = await call.user()
    limit = clamped(query.limit, _LIST_MOST)
    page = await call.services.read_models.orders(user.id, query.role, query.state, query.cursor, limit)
    views = (projected(call.services.orders, body, call.actor, user) for body in page.items)
    return Body(page_of((msgspec.Raw(view) for view in views if view is not None), page.next_cursor))


def projected(rules: OrderRules, snapshot: bytes, actor: Actor, user: User) -> bytes | None:
    """The stored order as this user may see it."""
    account = Account(user.id, user.roles, user.worker)
    return rules.view(rules.decode_state(snapshot), actor, Facts({AccountNeed(user.id): account}))


@endpoint("GET", "/v1/orders/{order_id}", tag="orders", rule=Rule.MEMBER, stream="order", api_keys=True)
async def get_order(call: Call, order_id: str) -> Body[OrderView]:
    """An order as the caller may see it, with the commands they may give now."""
    return Body((await call.view("order", order_id)).body)


@endpoint(
    "POST",
    "/v1/orders/{order_id}/commands",
    tag="orders",
    rule=Rule.MEMBER,
    stream="order",
    keyed=True,
    api_keys=True,
)
async def command_order(call: Call, body: OrderCommand, order_id: str) -> Body[Commanded]:
    """Give an order a command, as `order.command` on the WebSocket. By an API key: only to quote, and to take a quote back.

    What operators command asks for their second factor, as all that they do.
    """
    if call.api_key is not None and body.command not in QUOTE_COMMANDS:
        raise Refusal(Code.FORBIDDEN, "API keys may not give this command")
    command_id = call.write_id(body.command_id)
    if command_id is None:
        await call.view("order", order_id)
        raise invalid("command_id", "required", "give the command an id, or send the header Idempotency-Key")
    by_ops = body.command in OPS_COMMANDS and admits(Rule.OPS, (await call.user()).roles)
    if by_ops:
        await call.second_factor()
    async with OpsAct(call, f"order.{body.command}", f"order:{order_id}") if by_ops else nullcontext():
        accepted = await call.command(
            "order", order_id, client_name(body.command), command_id, body.payload or {}, body.expected_version
        )
    answer: dict[str, Any] = {
        "order": msgspec.Raw(await _seen(call, order_id, accepted)),
        "events": accepted_events(accepted),
        "replayed": accepted.replayed,
    }
    return Body(msgspec.json.encode(answer))


@endpoint("GET", "/v1/orders/{order_id}/events", tag="orders", rule=Rule.MEMBER, stream="order", api_keys=True)
async def order_events(call: Call, query: After, order_id: str) -> Body[Stream[Event]]:
    """The order's stream: every event after an offset, for the customer, the hired worker and operations."""
    return Body(await event_page(call, "order", order_id, query))


@endpoint("GET", "/v1/orders/{order_id}/track", tag="orders", rule=Rule.MEMBER, stream="order")
async def order_track(call: Call, query: TrackQuery, order_id: str) -> Items[TrackPoint]:
    """Recorded positions of the worker's trips, oldest first; of one visit, if it is named."""
    await attach(call, "order", order_id)
    limit = clamped(query.limit, _TRACK_MOST)
    positions = await call.services.read_models.positions(order_id, query.visit_id, limit)
    return Items([track_point(position) for position in positions])


def track_point(position: Position) -> TrackPoint:
    fields = msgspec.structs.asdict(position)
    fields["at"] = rfc3339(position.at)
    return TrackPoint(**fields)


ENDPOINTS: tuple[Endpoint, ...] = (create_order, list_orders, get_order, command_order, order_events, order_track)
