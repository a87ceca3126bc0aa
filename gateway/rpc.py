"""What rpc and `send` mean: data in, a request to a stream's activation out; its answer in, the result out.

Only the envelope is read here: which stream, which id. The rest goes to the activation as it came, which checks access
before it looks at parameters, so that a stranger learns nothing from an error.
"""

from typing import Any

import msgspec

from domain.access import SEND, on_the_wire
from domain.channels import parse_channel
from domain.commands import Accepted, Actor, Answer, Command, Query, Signal, Status
from domain.errors import Code, Refusal, from_validation, invalid
from domain.ids import is_uuid
from domain.order_table import client_name
from domain.times import rfc3339
from domain.wire import PresenceRequest, ReceiptSet, WriteStatus, Written

_WRITES = {
    "message.send": "send",
    "message.edit": "edit",
    "message.delete": "delete",
    "message.react": "react",
    "member.add": "member.add",
    "member.remove": "member.remove",
    "conversation.leave": "leave",
}
"""Method → the conversation's command."""
_RECEIPTS = frozenset({"receipt.read", "receipt.delivered"})

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode


class OrderEnvelope(msgspec.Struct):
    command: str
    command_id: str
    order_id: str
    expected_version: int | None = None
    payload: msgspec.Raw = msgspec.Raw(b"{}")


class StatusEnvelope(msgspec.Struct):
    stream: str
    id: str


_decode_order = msgspec.json.Decoder(OrderEnvelope).decode
_decode_status = msgspec.json.Decoder(StatusEnvelope).decode
_decode_presence = msgspec.json.Decoder(PresenceRequest).decode
_MOST_USERS = 100


def plan(method: str, data: bytes, actor: Actor) -> Command | Query | None:
    """The request that a method asks for; None for a method there is not.

    Raises:
        Refusal: `invalid` for an envelope that cannot be read, `not_found` for a stream that cannot exist.
    """
    try:
        if method in _WRITES:
            return _write(_WRITES[method], _fields(data), actor)
        if method in _RECEIPTS:
            fields = _fields(data)
            return Command("conversation", _stream_id(fields, "conversation_id"), method, actor, "", _encode(fields))
        if method == "order.command":
            return _order(_decode_order(data), actor)
        if method == "write.status":
            return _status(_decode_status(data), actor)
    except msgspec.MsgspecError as error:
        raise _refusal(error) from error
    except (RecursionError, UnicodeDecodeError) as error:
        raise invalid("", "malformed", "not a JSON object") from error
    return None


def _write(name: str, fields: dict[str, msgspec.Raw], actor: Actor) -> Command:
    conversation_id = _stream_id(fields, "conversation_id")
    command_id = _text(fields.get("id"))
    if not is_uuid(command_id):
        raise invalid("id", "uuid", "a canonical lower-case UUID made by the client")
    return Command("conversation", conversation_id, name, actor, command_id, _encode(fields))


def _order(envelope: OrderEnvelope, actor: Actor) -> Command:
    if not is_uuid(envelope.order_id):
        raise Refusal(Code.NOT_FOUND)
    if not is_uuid(envelope.command_id):
        raise invalid("command_id", "uuid", "a canonical lower-case UUID made by the client")
    payload = bytes(envelope.payload)
    return Command(
        "order",
        envelope.order_id,
        client_name(envelope.command),
        actor,
        envelope.command_id,
        b"{}" if payload == b"null" else payload,
        envelope.expected_version,
    )


def _status(envelope: StatusEnvelope, actor: Actor) -> Query:
    channel = parse_channel(envelope.stream)
    if channel is None or channel.kind == "user":
        raise Refusal(Code.NOT_FOUND)
    if not is_uuid(envelope.id):
        raise invalid("id", "uuid", "a canonical lower-case UUID")
    return Query(channel.kind, channel.id, "status", actor, envelope.id)


def users_asked(data: bytes) -> tuple[str, ...]:
    """The users whose presence `presence.get` asks for.

    Raises:
        Refusal: `invalid` for anything but a list of at most 100 ids.
    """
    try:
        user_ids = _decode_presence(data).user_ids
    except msgspec.MsgspecError as error:
        raise _refusal(error) from error
    except (RecursionError, UnicodeDecodeError) as error:
        raise invalid("", "malformed", "not a JSON object") from error
    if len(user_ids) > _MOST_USERS:
        raise invalid("user_ids", "too_many", f"at most {_MOST_USERS} users at once")
    for position, user_id in enumerate(user_ids):
        if not is_uuid(user_id):
            raise invalid(f"user_ids[{position}]", "uuid", "a canonical lower-case UUID")
    return user_ids


def signal(data: bytes, actor: Actor) -> Signal | None:
    """The ephemeral item that a `send` carries; None for what has no meaning, which is dropped."""
    try:
        fields = _fields(data)
        kind = _text(fields.pop("type", None))
        if not on_the_wire(SEND.get(kind)):
            return None
        if kind == "typing":
            return Signal("conversation", _stream_id(fields, "conversation_id"), "typing", actor, _encode(fields))
        if kind == "fix":
            return Signal("order", _stream_id(fields, "order_id"), "fix", actor, _encode(fields))
    except (msgspec.MsgspecError, Refusal, RecursionError, UnicodeDecodeError):
        return None
    return None


def result(method: str, answer: Answer) -> Any:
    """What the client gets for an answer, ready to be encoded."""
    match answer:
        case Accepted() if method in _RECEIPTS:
            return ReceiptSet()
        case Accepted() if method == "order.command":
            events = [msgspec.Raw(_with_offset(item.offset, item.data)) for item in answer.events]
            order = msgspec.Raw(answer.view) if answer.view is not None else None
            return {"order": order, "events": events, "replayed": answer.replayed}
        case Accepted():
            return Written(answer.offset, rfc3339(answer.at), answer.replayed)
        case Status():
            return WriteStatus(answer.known, answer.offset if answer.known else None)
        case _:
            raise TypeError(f"{type(answer).__name__} does not answer {method}")


def _with_offset(offset: int, data: bytes) -> bytes:
    """The publication data with its offset in front."""
    return b'{"offset":%d%s%s' % (offset, b"" if data == b"{}" else b",", data[1:])


def _stream_id(fields: dict[str, msgspec.Raw], name: str) -> str:
    """Take the stream's id out of the fields; one that is no id exists for nobody."""
    identifier = _text(fields.pop(name, None))
    if not is_uuid(identifier):
        raise Refusal(Code.NOT_FOUND)
    return identifier


def _text(raw: msgspec.Raw | None) -> str:
    """The string that raw JSON holds; empty for anything else."""
    if raw is None:
        return ""
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.ValidationError:
        return ""


def _refusal(error: msgspec.MsgspecError) -> Refusal:
    if isinstance(error, msgspec.DecodeError):
        return from_validation(error)
    return invalid("", "malformed", str(error))
