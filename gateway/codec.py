"""How the protocol is written on the wire: `Codec`, and JSON, which is one. Protobuf is the other, in its own file.

Frames from clients hold one or more commands, frames to clients one or more items: replies and pushes.
"""

from typing import Any, Final, Protocol

import msgspec

from gateway.codes import Disconnect, ErrorCode, Unsubscribe
from gateway.protocol import ClientInfo, Command, MalformedFrame, Result, check_depth
from gateway.publication import Publication


class Codec(Protocol):
    """One encoding. Functions without state; every `bytes` but `separator` is an item, or a frame of them."""

    @property
    def name(self) -> str:
        """That of the WebSocket subprotocol."""
        ...

    @property
    def binary(self) -> bool:
        """Whether frames are binary."""
        ...

    @property
    def separator(self) -> bytes:
        """What stands between the items of a frame."""
        ...

    @property
    def ping(self) -> bytes:
        """A ping from the server, which is also a pong from the client."""
        ...

    def decode(self, frame: bytes, max_depth: int) -> list[Command]:
        """The commands of a frame, in order.

        Raises:
            MalformedFrame: nothing of it may be used.
        """
        ...

    def reply(self, command_id: int, name: str, result: Result) -> bytes:
        """The positive answer to a command of this name."""
        ...

    def error(self, command_id: int, error: ErrorCode, detail: object = None) -> bytes:
        """The negative answer. `detail` goes beside the protocol's own three fields where the encoding has room for it."""
        ...

    def push(self, publication: Publication) -> bytes:
        """A publication: the same object for every session that gets it."""
        ...

    def unsubscribed(self, channel: str, why: Unsubscribe) -> bytes:
        """The server has ended a subscription."""
        ...

    def joined(self, channel: str, info: ClientInfo) -> bytes: ...
    def left(self, channel: str, info: ClientInfo) -> bytes: ...
    def disconnected(self, why: Disconnect) -> bytes:
        """The server ends the connection; for transports that have no close codes."""
        ...


def _in_a_list(item: Any) -> msgspec.Raw:
    if isinstance(item, Publication):
        return msgspec.Raw(item.item)
    raise NotImplementedError(type(item).__name__)


_decoder = msgspec.json.Decoder(Command)
_encode = msgspec.json.Encoder(enc_hook=_in_a_list).encode


class JsonCodec:
    """One JSON object a line. An empty object is a ping or a pong."""

    name: Final = "centrifuge-json"
    binary: Final = False
    separator: Final = b"\n"
    ping: Final = b"{}"

    def decode(self, frame: bytes, max_depth: int) -> list[Command]:
        check_depth(frame, max_depth)
        try:
            if not frame.isascii():
                frame.decode()
            return _decoder.decode_lines(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedFrame(type(error).__name__) from error

    def reply(self, command_id: int, name: str, result: Result) -> bytes:
        return b'{"id":%d,"%s":%s}' % (command_id, name.encode(), _encode(result))

    def error(self, command_id: int, error: ErrorCode, detail: object = None) -> bytes:
        body: dict[str, object] = {"code": error.code, "message": error.message}
        if error.temporary:
            body["temporary"] = True
        if detail is not None:
            body["data"] = detail
        return b'{"id":%d,"error":%s}' % (command_id, _encode(body))

    def push(self, publication: Publication) -> bytes:
        return publication.json

    def unsubscribed(self, channel: str, why: Unsubscribe) -> bytes:
        return _push({"channel": channel, "unsubscribe": {"code": why.code, "reason": why.reason}})

    def joined(self, channel: str, info: ClientInfo) -> bytes:
        return _push({"channel": channel, "join": {"info": info}})

    def left(self, channel: str, info: ClientInfo) -> bytes:
        return _push({"channel": channel, "leave": {"info": info}})

    def disconnected(self, why: Disconnect) -> bytes:
        return _push({"disconnect": {"code": why.code, "reason": why.reason, "reconnect": why.reconnect}})


def _push(body: dict[str, object]) -> bytes:
    return b'{"push":%s}' % _encode(body)


JSON: Final[Codec] = JsonCodec()
