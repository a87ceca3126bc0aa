"""The tables of `docs/protocol.md` that follow from the code: what clients may say and who, what they are told, every code."""

import ast
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from domain import access
from domain.wire import RPC_METHODS, SEND_TYPES
from gateway import codes, protocol
from serve_apps import asyncapi
from serve_apps.rest import ROUTES

_COMMANDS: dict[str, tuple[Any, tuple[str, ...], Any]] = {
    "connect": (protocol.ConnectRequest, ("token",), protocol.ConnectResult),
    "refresh": (protocol.RefreshRequest, ("token",), protocol.RefreshResult),
    "subscribe": (protocol.SubscribeRequest, ("channel",), protocol.SubscribeResult),
    "unsubscribe": (protocol.ChannelRequest, ("channel",), protocol.EmptyResult),
    "history": (protocol.HistoryRequest, ("channel",), protocol.HistoryResult),
    "presence": (protocol.ChannelRequest, ("channel",), protocol.PresenceResult),
    "presence_stats": (protocol.ChannelRequest, ("channel",), protocol.PresenceStatsResult),
    "rpc": (protocol.RpcRequest, ("method", "data"), protocol.RpcResult),
    "ping": (protocol.EmptyResult, (), protocol.EmptyResult),
    "send": (protocol.SendRequest, ("data",), None),
}
"""Command, what must be there of its request, and its result. Not here: `publish` and `sub_refresh`, which are refused."""
_NESTED = {
    "data of ConnectRequest": "{device_id?, handover?, locale?}",
    "since of HistoryRequest": "{offset, epoch}",
    "publications of SubscribeResult": "[publication]",
    "publications of HistoryResult": "[publication]",
    "presence of PresenceResult": "{client: info}",
}
"""What a type does not say."""


def shape(struct: Any, required: Iterable[str] = (), leaving_out: Iterable[str] = ()) -> str:
    """The fields of a struct as the page writes them: `{id, text?, items: [{offset}]}`."""
    shown: list[str] = []
    for field in msgspec.structs.fields(struct):
        if field.name in leaving_out:
            continue
        must = field.required or field.name in required
        nested = _NESTED.get(f"{field.name} of {struct.__name__}") or _nested(field.type)
        shown.append(f"{field.name}{'' if must else '?'}{nested and f': {nested}'}")
    return "{" + ", ".join(shown) + "}"


def _nested(kind: Any) -> str:
    inner = [each for each in get_args(kind) if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    if not inner:
        return ""
    return f"[{shape(inner[0])}]" if get_origin(kind) is tuple else shape(inner[0])


def _said(struct: Any) -> str:
    return " ".join((struct.__doc__ or "").split())


def _always(name: str, result: Any) -> tuple[str, ...]:
    """What is in a result at all times, though the struct has a default for it."""
    return ("expires", "pong") if name == "connect" else ()


def table_of_commands() -> str:
    """The protocol's commands."""
    rows = [
        f"| `{name}` | `{shape(request, required)}` | {f'`{shape(result, _always(name, result))}`' if result else '(none)'} |"
        for name, (request, required, result) in _COMMANDS.items()
    ]
    return "\n".join(["| command | holds | its reply holds |\n|---|---|---|", *rows])


def table_of_methods() -> str:
    """What `rpc` and `send` carry."""
    rows = [
        f"| `{name}` | `{shape(data)}` | `{shape(result)}` | {access.RPC[name].rule} | {_said(data)} |"
        for name, (data, result) in RPC_METHODS.items()
    ]
    sent = [
        f"| `{name}` | `{shape(data)}` | {access.SEND[name].rule} | {_said(data)} |"
        for name, data in SEND_TYPES.items()
    ]
    parts = ["| `rpc` method | `data` | `data` of the reply | who may | |\n|---|---|---|---|---|", *rows]
    return "\n".join([*parts, "\n| `send` | beside `type`, its `data` holds | who may | |\n|---|---|---|---|", *sent])


def table_of_routes() -> str:
    """Every route of REST, who may call it, and which limits count it."""
    rows = [f"| `{row.method} {row.path}` | {row.rule} | {row.rate} | {row.summary} |" for row in ROUTES]
    return "\n".join(["| route | who may | rate | |\n|---|---|---|---|", *rows])


def table_of_hints() -> str:
    """What comes on `user:<id>`."""
    rows = [f"| `{each.__struct_config__.tag}` | `{shape(each)}` | {_said(each)} |" for each in asyncapi._USER]
    return "\n".join(["| on `user:<id>` | beside `type` | |\n|---|---|---|", *rows])


def _meanings() -> dict[str, str]:
    """What stands below each code in `gateway/codes.py`, by its name there."""
    found: dict[str, str] = {}
    for code, text in itertools.pairwise(ast.parse(Path(codes.__file__).read_text()).body):
        if isinstance(code, ast.AnnAssign) and isinstance(code.target, ast.Name) and isinstance(text, ast.Expr):
            assert isinstance(text.value, ast.Constant)
            found[code.target.id] = " ".join(str(text.value.value).split())
    return found


def _yes(true: object) -> str:
    return "yes" if true else "no"


def table_of_codes() -> str:
    """All codes of `gateway/codes.py`, and what a client does with each, as its docstrings say it."""
    said = _meanings()
    errors, closes, ends = [], [], []
    for name, value in vars(codes).items():
        if isinstance(value, codes.ErrorCode):
            errors.append(f"| {value.code} | `{value.message}` | {_yes(value.temporary)} | {said[name]} |")
        elif isinstance(value, codes.Disconnect):
            closes.append(f"| {value.code} | `{value.reason}` | {_yes(value.reconnect)} | {said[name]} |")
        elif isinstance(value, codes.Unsubscribe):
            ends.append(f"| {value.code} | `{value.reason}` | {_yes(value.code >= 2500)} | {said[name]} |")
    what = "what it means, and what the client should do |\n|---|---|---|---|"
    parts = [
        f"| error | `message` | `temporary` | {what}",
        *errors,
        f"\n| close | reason | come back | {what}",
        *closes,
    ]
    return "\n".join([*parts, f"\n| `unsubscribe` push | reason | subscribe again | {what}", *ends])


TABLES = {
    "commands": table_of_commands,
    "methods": table_of_methods,
    "routes": table_of_routes,
    "hints": table_of_hints,
    "codes": table_of_codes,
}


def block(name: str) -> str:
    """A table between the marks that it has on the page."""
    return f"{begin(name)}\n\n{TABLES[name]()}\n\n{end(name)}"


def begin(name: str) -> str:
    return f"<!-- {name}: written by tests/contract/test_transcripts.py -->"


def end(name: str) -> str:
    return f"<!-- end of {name} -->"
