"""The client's side of the wire: what it says, and the shapes of what it hears (JSON; see `gateway/protocol.py`)."""

from typing import Any, Final

import msgspec

from domain.errors import RETRYABLE, Code, FieldError, Refused
from gateway import codes
from gateway.protocol import REJECT_UNRECOVERED

PONG: Final = b"{}"
MAX_FRAME_BYTES: Final = 65_536
"""A gateway closes a connection on which a larger frame comes."""
MAX_DEPTH: Final = 32
"""A gateway takes a frame that is nested deeper for abuse, and ends the client for good."""


class Position(msgspec.Struct, frozen=True):
    """A place in a stream: everything up to `offset` is known. (`""`, 0) is the beginning of any stream."""

    epoch: str = ""
    offset: int = 0


BEGINNING: Final = Position()


class Write(msgspec.Struct, frozen=True):
    """Something to be done once: an rpc method, its data in JSON with the write's own id in it, and its stream.

    Receipts have no id of their own: theirs is `<method> <stream>`, and `watermark` is above 0.
    """

    id: str
    stream: str
    method: str
    data: bytes
    watermark: int = 0


class Pub(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")
    offset: int = 0


class Connected(msgspec.Struct):
    client: str = ""
    expires: bool = False
    ttl: int = 0
    ping: int = 0
    pong: bool = False
    node: str = ""
    subs: dict[str, msgspec.Raw] = {}


class Subscribed(msgspec.Struct):
    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    publications: list[Pub] = []


class Refreshed(msgspec.Struct):
    expires: bool = False
    ttl: int = 0


class RpcResult(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")


class Detail(msgspec.Struct):
    """What REST would say beside the code."""

    detail: str = ""
    errors: tuple[FieldError, ...] = ()
    current: Any = None
    allowed_commands: tuple[str, ...] | None = None
    retry_after_s: float | None = None


class Error(msgspec.Struct):
    code: int
    message: str = ""
    temporary: bool = False
    data: Detail | None = None

    @property
    def retryable(self) -> bool:
        """Whether the same may be asked again: nothing was decided."""
        return self.temporary or self.message in RETRYABLE

    @property
    def retry_after_s(self) -> float:
        """What the platform asks for; 0 where it asks for nothing."""
        return (self.data.retry_after_s if self.data else None) or 0.0

    def refused(self) -> Refused:
        """The refusal, with its code of the catalogue; the protocol's own errors are mapped to the nearest one."""
        detail = self.data or Detail()
        code = Code(self.message) if self.message in _KNOWN else _PROTOCOL_ERRORS.get(self.code, Code.INTERNAL)
        text = detail.detail or ("" if self.message in _KNOWN else f"{self.code} {self.message}")
        return Refused(
            code, text, detail.errors, detail.current, detail.allowed_commands, detail.retry_after_s
        )  # fmt: skip


_KNOWN: Final = frozenset(code.value for code in Code)
_PROTOCOL_ERRORS: Final = {
    codes.UNAUTHORIZED.code: Code.UNAUTHENTICATED,
    codes.PERMISSION_DENIED.code: Code.NOT_FOUND,
    codes.METHOD_NOT_FOUND.code: Code.METHOD_NOT_ALLOWED,
    codes.LIMIT_EXCEEDED.code: Code.RATE_LIMITED,
    codes.BAD_REQUEST.code: Code.INVALID,
    codes.NOT_AVAILABLE.code: Code.METHOD_NOT_ALLOWED,
    codes.TOKEN_EXPIRED.code: Code.TOKEN_EXPIRED,
    codes.UNRECOVERABLE_POSITION.code: Code.CONFLICT,
}


class Ended(msgspec.Struct):
    code: int = 0
    reason: str = ""


class Push(msgspec.Struct):
    channel: str = ""
    pub: Pub | None = None
    unsubscribe: Ended | None = None


class Hint(msgspec.Struct):
    """What every hint on `user:<id>` may carry, as far as the client itself acts on it."""

    type: str = ""
    conversation_id: str = ""
    order_id: str = ""
    within_s: float = 0.0

    @property
    def stream(self) -> str:
        """The channel of the stream in which something has happened; empty if the hint is about something else."""
        match self.type:
            case "conversation.activity":
                return f"conversation:{self.conversation_id}"
            case "order.activity":
                return f"order:{self.order_id}"
        return ""


_NOTHING: Final = msgspec.Raw(b"")


class Frame(msgspec.Struct):
    """One line of the server's: a reply if it has an `id`, a push, or, with nothing in it, a ping."""

    id: int = 0
    error: Error | None = None
    connect: Connected | None = None
    subscribe: Subscribed | None = None
    refresh: Refreshed | None = None
    rpc: RpcResult | None = None
    history: msgspec.Raw = _NOTHING
    presence: msgspec.Raw = _NOTHING
    presence_stats: msgspec.Raw = _NOTHING
    push: Push | None = None

    @property
    def is_ping(self) -> bool:
        return self.id == 0 and self.push is None

    def result(self) -> bytes:
        """The JSON of a question's answer."""
        if self.rpc is not None:
            return bytes(self.rpc.data)
        return bytes(self.history) or bytes(self.presence) or bytes(self.presence_stats) or b"null"


class Garbled(Exception):
    """A frame that is not the protocol."""


_decode = msgspec.json.Decoder(Frame).decode_lines
_decode_hint = msgspec.json.Decoder(Hint).decode
encode = msgspec.json.encode


def decode_frame(frame: bytes) -> list[Frame]:
    """The lines of a frame, in order.

    Raises:
        Garbled: nothing of it may be used.
    """
    try:
        return _decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Garbled(str(error)) from error


def decode_hint(data: bytes) -> Hint:
    """The hint; an empty one for what cannot be read."""
    try:
        return _decode_hint(data)
    except msgspec.MsgspecError:
        return Hint()


def command(number: int, name: str, body: object) -> bytes:
    """A command with a reply."""
    return b'{"id":%d,"%s":%s}' % (number, name.encode(), encode(body))


def send(data: object) -> bytes:
    """A command without one."""
    return b'{"send":{"data":%s}}' % encode(data)


def rpc(method: str, data: bytes) -> dict[str, Any]:
    return {"method": method, "data": msgspec.Raw(data)}


def subscribe(channel: str, position: Position | None) -> dict[str, Any]:
    """From `position` on, or from now on if there is none; what cannot be recovered is to be refused."""
    body: dict[str, Any] = {"channel": channel}
    if position is not None:
        body |= {"recover": True, "epoch": position.epoch, "offset": position.offset, "flag": REJECT_UNRECOVERED}
    return body
