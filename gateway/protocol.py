"""The Centrifuge client protocol in JSON: commands in, replies and pushes out (`client.proto` names the fields).

A frame holds one or more JSON objects, one a line. An empty object is a ping from the server, a pong from the client.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from gateway.codes import ErrorCode, Unsubscribe

PING = b"{}"
_Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]

REJECT_UNRECOVERED = 2
"""Flag of a subscribe request: answer error 112 where recovery is impossible."""


class ConnectRequest(msgspec.Struct):
    token: str = ""


class SubscribeRequest(msgspec.Struct):
    channel: str = ""
    recover: bool = False
    epoch: str = ""
    offset: _Offset = 0
    flag: int = 0


class ChannelRequest(msgspec.Struct):
    channel: str = ""


class StreamPosition(msgspec.Struct):
    offset: _Offset = 0
    epoch: str = ""


class HistoryRequest(msgspec.Struct):
    channel: str = ""
    limit: int = 0
    since: StreamPosition | None = None
    reverse: bool = False


class SendRequest(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")


class RpcRequest(msgspec.Struct):
    method: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


class RefreshRequest(msgspec.Struct):
    token: str = ""


class Command(msgspec.Struct):
    """What a client says. The first request that is present counts; `id` is 0 for what has no reply."""

    id: _Id = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: ChannelRequest | None = None
    publish: ChannelRequest | None = None
    presence: ChannelRequest | None = None
    presence_stats: ChannelRequest | None = None
    history: HistoryRequest | None = None
    ping: dict[str, Any] | None = None
    send: SendRequest | None = None
    rpc: RpcRequest | None = None
    refresh: RefreshRequest | None = None
    sub_refresh: ChannelRequest | None = None


class MalformedFrame(Exception):
    """The frame is not the protocol: not UTF-8, not JSON, not of the right shape, or nested too deep."""


_decoder = msgspec.json.Decoder(Command)
_encode = msgspec.json.encode
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = re.compile(rb"[^\[\]{}]+")


def decode_commands(frame: bytes, max_depth: int) -> list[Command]:
    """The commands of a frame, in order.

    Raises:
        MalformedFrame: nothing of it may be used.
    """
    check_depth(frame, max_depth)
    try:
        if not frame.isascii():
            frame.decode()
        return _decoder.decode_lines(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedFrame(type(error).__name__) from error


def check_depth(frame: bytes, max_depth: int) -> None:
    """Refuse what is nested deeper than `max_depth`; braces within strings do not count.

    Counting all openers settles nearly every frame; the others are reduced to their brackets first.
    """
    if frame.count(b"{") + frame.count(b"[") <= max_depth:
        return
    depth = 0
    for bracket in _NO_BRACKETS.sub(b"", _STRINGS.sub(b"", frame)):
        if bracket in b"{[":
            depth += 1
            if depth > max_depth:
                raise MalformedFrame("nested too deep")
        else:
            depth -= 1


class ConnectResult(msgspec.Struct, omit_defaults=True):
    client: str
    version: str
    ttl: int
    ping: int
    session: str
    node: str
    subs: dict[str, dict[str, str]]
    expires: bool = False
    pong: bool = False


class SubscribeResult(msgspec.Struct, omit_defaults=True):
    epoch: str
    offset: int = 0
    recoverable: bool = False
    positioned: bool = False
    was_recovering: bool = False
    recovered: bool = False
    publications: tuple[msgspec.Raw, ...] = ()


class HistoryResult(msgspec.Struct):
    publications: tuple[msgspec.Raw, ...]
    epoch: str
    offset: int


class RefreshResult(msgspec.Struct):
    client: str
    version: str
    expires: bool
    ttl: int


def reply(command_id: int, name: str, result: object) -> bytes:
    """The positive answer to a command; `result` is a struct, a dict, or raw JSON."""
    return b'{"id":%d,"%s":%s}' % (command_id, name.encode(), _encode(result))


def error_reply(command_id: int, error: ErrorCode, detail: object = None) -> bytes:
    """The negative answer. `detail` goes beside the protocol's own three fields, under `data`."""
    body: dict[str, object] = {"code": error.code, "message": error.message}
    if error.temporary:
        body["temporary"] = True
    if detail is not None:
        body["data"] = detail
    return b'{"id":%d,"error":%s}' % (command_id, _encode(body))


def publication(data: bytes, offset: int) -> bytes:
    """One publication; `offset` 0 stands for none. Raw line ends would end the protocol's line, and are taken out."""
    if b"\n" in data or b"\r" in data:
        data = msgspec.json.format(data, indent=-1)
    return b'{"data":%s,"offset":%d}' % (data, offset) if offset else b'{"data":%s}' % data


def push_prefix(channel: str) -> bytes:
    return b'{"push":{"channel":%s,"pub":' % _encode(channel)


def push(prefix: bytes, pub: bytes) -> bytes:
    """A publication as it is pushed; made once per event and gateway, sent to every session as it is."""
    return b"%s%s}}" % (prefix, pub)


def unsubscribe_push(channel: str, why: Unsubscribe) -> bytes:
    body = {"code": why.code, "reason": why.reason}
    return b'{"push":{"channel":%s,"unsubscribe":%s}}' % (_encode(channel), _encode(body))


def raws(publications: Sequence[bytes]) -> tuple[msgspec.Raw, ...]:
    return tuple(msgspec.Raw(pub) for pub in publications)
