"""The AsyncAPI 3 document of the WebSocket: channels, publications, and rpc methods, made of the domain's structs."""

from collections.abc import Iterable
from typing import Any, Final, get_args

import msgspec

from domain import access, chat, order_events, wire
from serve_apps.openapi import VERSION, WHO_MAY, portable
from serve_apps.schemas.common import Timestamp, Uuid

_REF: Final = "#/components/schemas/{name}"


class Position(msgspec.Struct, tag="position", omit_defaults=True):
    """Where the worker is, as the viewer may know. Ephemeral: no offset, at most one a second."""

    at: Timestamp
    visit_id: Uuid
    lat: float
    lon: float
    accuracy_m: float
    heading_deg: float | None = None
    speed_mps: float | None = None
    eta_s: float | None = None
    eta_p90_s: float | None = None


class OrderActivity(msgspec.Struct, tag="order.activity"):
    """A hint: an order of the user's has moved to `offset`."""

    order_id: Uuid
    offset: int
    event: str
    state: str


class SessionRevoked(msgspec.Struct, tag="session.revoked"):
    """A hint: one of the user's device sessions was ended; if it is this one, its socket closes next."""

    session_id: Uuid


class ServiceDegraded(msgspec.Struct, tag="service.degraded"):
    """A hint: a part of the platform is away; live events may be late, and writes may have to be sent again."""


class ServiceRestored(msgspec.Struct, tag="service.restored"):
    """A hint: that is over. Missed events follow by themselves; missed hints do not, so call `sync`."""


class ServiceDraining(msgspec.Struct, tag="service.draining"):
    """A hint to who connected with `data: {"handover": true}`: build the next connection, then let go of this one.

    After `within_s` seconds this one is closed with 4001.
    """

    within_s: float


class SessionLagging(msgspec.Struct, tag="session.lagging"):
    """A hint: this connection does not read as fast as it is sent to. What it misses follows, in order, as it reads on."""


class SessionCaughtUp(msgspec.Struct, tag="session.caught_up"):
    """A hint: the connection has everything again."""


_CONVERSATION: Final = (*get_args(chat.ChatEvent), chat.Typing)
_ORDER: Final = (*get_args(order_events.AnyEvent), Position)
_USER: Final = (
    chat.ConversationActivity,
    OrderActivity,
    SessionRevoked,
    SessionLagging,
    SessionCaughtUp,
    ServiceDegraded,
    ServiceRestored,
    ServiceDraining,
)
_SENT: Final = tuple(wire.SEND_TYPES.values())
_CHANNELS: Final = (
    ("conversation", "conversation:{conversation_id}", _CONVERSATION, "A conversation's stream, for its members."),
    ("order", "order:{order_id}", _ORDER, "An order's stream, for the customer, the hired worker and operations."),
    ("user", "user:{user_id}", _USER, "Hints for one user, subscribed by the server at connect; not recoverable."),
)


def _tag(shape: Any) -> str:
    return str(shape.__struct_config__.tag)


def asyncapi() -> dict[str, Any]:
    """The document."""
    published = (*_CONVERSATION, *_ORDER, *_USER, *_SENT)
    shapes = list(dict.fromkeys([*published, *(shape for pair in wire.RPC_METHODS.values() for shape in pair)]))
    refs, components = msgspec.json.schema_components(shapes, ref_template=_REF)
    by_shape = dict(zip(shapes, refs, strict=True))
    _make_public(components)
    components = _used(components, refs)
    channels = {
        name: {
            "address": address,
            "description": text,
            "parameters": {f"{name}_id": {"description": "A canonical lower-case UUID."}},
            "messages": {_tag(shape): {"$ref": f"#/components/messages/{_tag(shape)}"} for shape in published},
        }
        for name, address, published, text in _CHANNELS
    }
    channels["rpc"] = {
        "address": "rpc",
        "description": "Commands of the protocol named `rpc`, one method each, and `send`, which has no answer.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _rpc_messages()},
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "RenovEasy, live",
            "version": VERSION,
            "description": "Centrifuge client protocol over WebSocket, newline-separated JSON. `connect` carries the "
            "access token. Publications of `conversation:` and `order:` have the stream's offset; subscribe with "
            "`recover`, `epoch` and `offset` to get everything missed. Protocol errors carry the catalogue's code.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "gateway": {"host": "localhost:8080", "pathname": "/connection/websocket", "protocol": "ws"},
        },
        "channels": channels,
        "operations": _operations(),
        "components": {"schemas": portable(components), "messages": dict(_messages(by_shape))},
    }


def _make_public(components: dict[str, Any]) -> None:
    """Take out of events what their publications leave out."""
    names = {shape.__name__ for union in (order_events.AnyEvent, chat.ChatEvent) for shape in get_args(union)}
    for name, schema in components.items():
        if name.rpartition(".")[2] in names or name.rpartition("_")[2] in names:
            schema.get("properties", {}).pop("private", None)
            schema.get("properties", {}).pop("hash", None)


def _used(components: dict[str, Any], roots: Any) -> dict[str, Any]:
    """The components that the roots lead to."""
    found: dict[str, Any] = {}
    waiting = list(_names(roots))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = components[name]
            waiting.extend(_names(components[name]))
    return dict(sorted(found.items()))


def _names(node: Any) -> Iterable[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].rpartition("/")[2]
        for value in node.values():
            yield from _names(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _names(value)


def _rpc_messages() -> list[str]:
    sent = [f"send.{_tag(shape)}" for shape in _SENT]
    return [f"{method}.{side}" for method in wire.RPC_METHODS for side in ("data", "result")] + sent


def _messages(by_shape: dict[Any, Any]) -> Iterable[tuple[str, Any]]:
    for _, _, shapes, _ in _CHANNELS:
        for shape in shapes:
            yield _tag(shape), {"name": _tag(shape), "payload": by_shape[shape]}
    for shape in _SENT:
        yield f"send.{_tag(shape)}", {"name": _tag(shape), "payload": by_shape[shape]}
    for method, (data, result) in wire.RPC_METHODS.items():
        yield f"{method}.data", {"name": f"{method}.data", "payload": by_shape[data]}
        yield f"{method}.result", {"name": f"{method}.result", "payload": by_shape[result]}


def _operations() -> dict[str, Any]:
    operations: dict[str, Any] = {}
    for name, _, shapes, _ in _CHANNELS:
        operations[f"receive.{name}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{_tag(shape)}"} for shape in shapes],
            **_access(access.CHANNELS[name]),
        }
    rpc = "#/channels/rpc"
    for method in wire.RPC_METHODS:
        operations[method] = {
            "action": "receive",
            "channel": {"$ref": rpc},
            "messages": [{"$ref": f"{rpc}/messages/{method}.data"}],
            "reply": {"channel": {"$ref": rpc}, "messages": [{"$ref": f"{rpc}/messages/{method}.result"}]},
            **_access(access.RPC[method]),
        }
    for shape in _SENT:
        operations[f"send.{_tag(shape)}"] = {
            "action": "receive",
            "channel": {"$ref": rpc},
            "messages": [{"$ref": f"{rpc}/messages/send.{_tag(shape)}"}],
            **_access(access.SEND[_tag(shape)]),
        }
    return operations


def _access(given: access.Access) -> dict[str, Any]:
    return {"description": f"Who may: {WHO_MAY[given.rule]}", "x-rule": given.rule, "x-rate": given.rate}
