"""The Centrifuge client protocol, whatever it is encoded in: what clients ask, and what they are answered (`client.proto`)."""

import re
from typing import Annotated, Any

import msgspec

from gateway.publication import Publication

_Offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]

REJECT_UNRECOVERED = 2
"""Flag of a subscribe request: answer error 112 where recovery is impossible."""


class ConnectData(msgspec.Struct):
    """What of the data that a client connects with is understood.

    `handover`: told that the gateway drains, it connects anew before it lets go of this connection.
    `locale`: the language of details of errors, as a language tag; without it, that of the account.
    """

    handover: bool = False
    locale: str = ""


class ConnectRequest(msgspec.Struct):
    token: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def known(self) -> ConnectData:
        """What is understood of the data; the rest is the client's own affair."""
        try:
            return _connect_data(self.data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return ConnectData()


_connect_data = msgspec.json.Decoder(ConnectData).decode


class SubscribeRequest(msgspec.Struct):
    channel: str = ""
    recover: bool = False
    epoch: str = ""
    offset: _Offset = 0
    flag: int = 0
    join_leave: bool = False


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


_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = re.compile(rb"[^\[\]{}]+")


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
    node: str
    subs: dict[str, dict[str, str]]
    session: str = ""
    expires: bool = False
    pong: bool = False


class SubscribeResult(msgspec.Struct, omit_defaults=True):
    epoch: str
    offset: int = 0
    recoverable: bool = False
    positioned: bool = False
    was_recovering: bool = False
    recovered: bool = False
    publications: tuple[Publication, ...] = ()


class HistoryResult(msgspec.Struct):
    publications: tuple[Publication, ...]
    epoch: str
    offset: int


class RefreshResult(msgspec.Struct):
    client: str
    version: str
    expires: bool
    ttl: int


class ClientInfo(msgspec.Struct, omit_defaults=True):
    """Who is there: `client` names the connection. The infos are JSON."""

    user: str
    client: str
    conn_info: msgspec.Raw | None = None
    chan_info: msgspec.Raw | None = None


class PresenceResult(msgspec.Struct):
    """By client id."""

    presence: dict[str, ClientInfo]


class PresenceStatsResult(msgspec.Struct):
    num_clients: int
    num_users: int


class RpcResult(msgspec.Struct):
    """`data` is anything that JSON can say."""

    data: Any


class EmptyResult(msgspec.Struct):
    """Done, and nothing more to say."""


Result = (
    ConnectResult
    | SubscribeResult
    | HistoryResult
    | RefreshResult
    | PresenceResult
    | PresenceStatsResult
    | RpcResult
    | EmptyResult
)
