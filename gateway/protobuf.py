"""The protocol in Protobuf: messages with their length in front. The data inside is JSON all the same."""

from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, proto
from google.protobuf.message import DecodeError, Message

from gateway.codec import Codec
from gateway.codes import Disconnect, ErrorCode, Unsubscribe
from gateway.protocol import (
    ChannelRequest,
    ClientInfo,
    Command,
    ConnectRequest,
    HistoryRequest,
    MalformedFrame,
    RefreshRequest,
    Result,
    RpcRequest,
    SendRequest,
    StreamPosition,
    SubscribeRequest,
    check_depth,
)
from gateway.publication import Publication

_PACKAGE: Final = "centrifugal.centrifuge.protocol"
_SCHEMA: Final = """
Error: code uint32 1, message string 2, temporary bool 3
Command: id uint32 1, connect ConnectRequest 4, subscribe SubscribeRequest 5, unsubscribe UnsubscribeRequest 6
Command: publish PublishRequest 7, presence PresenceRequest 8, presence_stats PresenceStatsRequest 9
Command: history HistoryRequest 10, ping PingRequest 11, send SendRequest 12, rpc RPCRequest 13
Command: refresh RefreshRequest 14, sub_refresh SubRefreshRequest 15
Reply: id uint32 1, error Error 2, push Push 4, connect ConnectResult 5, subscribe SubscribeResult 6
Reply: unsubscribe UnsubscribeResult 7, presence PresenceResult 9, presence_stats PresenceStatsResult 10
Reply: history HistoryResult 11, ping PingResult 12, rpc RPCResult 13, refresh RefreshResult 14
Push: channel string 2, pub Publication 4, join Join 5, leave Leave 6, unsubscribe Unsubscribe 7, disconnect Disconnect 11
ClientInfo: user string 1, client string 2, conn_info bytes 3, chan_info bytes 4
Publication: data bytes 4, offset uint64 6
Join: info ClientInfo 1
Leave: info ClientInfo 1
Unsubscribe: code uint32 2, reason string 3
Disconnect: code uint32 1, reason string 2, reconnect bool 3
ConnectRequest: token string 1, data bytes 2
ConnectResult: client string 1, version string 2, expires bool 3, ttl uint32 4, subs SubscribeResult{} 6, ping uint32 7
ConnectResult: pong bool 8, session string 9, node string 10
RefreshRequest: token string 1
RefreshResult: client string 1, version string 2, expires bool 3, ttl uint32 4
SubscribeRequest: channel string 1, recover bool 3, epoch string 6, offset uint64 7, join_leave bool 11, flag int64 14
SubscribeResult: recoverable bool 3, epoch string 6, publications Publication[] 7, recovered bool 8, offset uint64 9
SubscribeResult: positioned bool 10, was_recovering bool 12
SubRefreshRequest: channel string 1
UnsubscribeRequest: channel string 1
UnsubscribeResult:
PublishRequest: channel string 1
PresenceRequest: channel string 1
PresenceResult: presence ClientInfo{} 1
PresenceStatsRequest: channel string 1
PresenceStatsResult: num_clients uint32 1, num_users uint32 2
StreamPosition: offset uint64 1, epoch string 2
HistoryRequest: channel string 1, limit int32 7, since StreamPosition 8, reverse bool 9
HistoryResult: publications Publication[] 1, epoch string 2, offset uint64 3
PingRequest:
PingResult:
RPCRequest: data bytes 1, method string 2
RPCResult: data bytes 1
SendRequest: data bytes 1
EmulationRequest: node string 1, session string 2, data bytes 3
"""
"""What of `client.proto` is spoken here: message, then field, type and number; `[]` is repeated, `{}` a map from strings."""

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES: Final = {
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}
_MOST_OFFSET: Final = 2**63 - 1


def _described() -> dict[str, Any]:
    """The classes of all messages, by name."""
    file = descriptor_pb2.FileDescriptorProto(name="renoveasy/client.proto", package=_PACKAGE, syntax="proto3")
    messages: dict[str, Any] = {}
    for line in _SCHEMA.strip().splitlines():
        name, _, fields = line.partition(":")
        if name not in messages:
            messages[name] = file.message_type.add(name=name)
        for field in filter(None, fields.strip().split(", ")):
            _add_field(messages[name], *field.split())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {name: pool.FindMessageTypeByName(f"{_PACKAGE}.{name}") for name in messages}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


def _add_field(message: Any, name: str, kind: str, number: str) -> None:
    base = kind.rstrip("[]{}")
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind != base:
        field.label = _Field.LABEL_REPEATED
    if kind.endswith("{}"):
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", "string", "1")
        _add_field(entry, "value", base, "2")
        base = f"{message.name}.{entry.name}"
    if base in _TYPES:
        field.type = _TYPES[base]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{base}"


_CLASSES: Final = _described()
_Command: Final = _CLASSES["Command"]
_Reply: Final = _CLASSES["Reply"]


def _json(data: bytes) -> msgspec.Raw:
    """Data that a client sent; nothing at all stands for null, as where JSON leaves the field out."""
    return msgspec.Raw(data or b"null")


def _offset(value: int) -> int:
    if value > _MOST_OFFSET:
        raise MalformedFrame("offset out of range")
    return value


def _channel(request: Any) -> ChannelRequest:
    return ChannelRequest(request.channel)


def _subscribe(request: Any) -> SubscribeRequest:
    return SubscribeRequest(
        request.channel, request.recover, request.epoch, _offset(request.offset), request.flag, request.join_leave
    )


def _history(request: Any) -> HistoryRequest:
    since = StreamPosition(_offset(request.since.offset), request.since.epoch) if request.HasField("since") else None
    return HistoryRequest(request.channel, request.limit, since, request.reverse)


_READ: Final[dict[str, Callable[[Any], Any]]] = {
    "connect": lambda request: ConnectRequest(request.token, _json(request.data)),
    "subscribe": _subscribe,
    "unsubscribe": _channel,
    "publish": _channel,
    "presence": _channel,
    "presence_stats": _channel,
    "history": _history,
    "ping": lambda _: {},
    "send": lambda request: SendRequest(_json(request.data)),
    "rpc": lambda request: RpcRequest(request.method, _json(request.data)),
    "refresh": lambda request: RefreshRequest(request.token),
    "sub_refresh": _channel,
}


def _command(message: Any, max_depth: int) -> Command:
    command = Command(message.id)
    for field, value in message.ListFields():
        if field.name in _READ:
            setattr(command, field.name, _READ[field.name](value))
    for request in (command.rpc, command.send):
        if request is not None:
            _check_data(bytes(request.data), max_depth)
    return command


def _check_data(data: bytes, max_depth: int) -> None:
    """What JSON frames have proved by being read: that the data in them is JSON, and not too deep."""
    check_depth(data, max_depth)
    try:
        data.decode()
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedFrame(type(error).__name__) from error


def _framed(message: Message) -> bytes:
    out = BytesIO()
    proto.serialize_length_prefixed(message, out)
    return out.getvalue()


def _fill(message: Any, struct: Any) -> None:
    """Copy a result into its message; what the message has no field for stays away."""
    message.SetInParent()
    fields = message.DESCRIPTOR.fields_by_name
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if value is None or name not in fields:
            continue
        if fields[name].type == _Field.TYPE_BYTES:
            setattr(message, name, bytes(value) if isinstance(value, msgspec.Raw) else msgspec.json.encode(value))
        elif isinstance(value, tuple):
            for publication in value:
                _publish(getattr(message, name).add(), publication)
        elif isinstance(value, dict):
            for key, item in value.items():
                entry = getattr(message, name)[key]
                if isinstance(item, msgspec.Struct):
                    _fill(entry, item)
        else:
            setattr(message, name, value)


def _publish(message: Any, publication: Publication) -> None:
    message.data = publication.data
    message.offset = publication.offset


def _pushed(publication: Publication) -> bytes:
    message = _Reply()
    message.push.channel = publication.address.name
    _publish(message.push.pub, publication)
    return _framed(message)


class ProtobufCodec:
    """One message after the other, each with its length in front. An empty message is a ping or a pong."""

    name: Final = "centrifuge-protobuf"
    binary: Final = True
    separator: Final = b""
    ping: Final = b"\x00"

    def decode(self, frame: bytes, max_depth: int) -> list[Command]:
        commands: list[Command] = []
        stream = BytesIO(frame)
        try:
            while (message := proto.parse_length_prefixed(_Command, stream)) is not None:
                commands.append(_command(message, max_depth))
        except (DecodeError, ValueError, OverflowError) as error:
            raise MalformedFrame(type(error).__name__) from error
        if not commands:
            raise MalformedFrame("an empty frame")
        return commands

    def reply(self, command_id: int, name: str, result: Result) -> bytes:
        message = _Reply(id=command_id)
        _fill(getattr(message, name), result)
        return _framed(message)

    def error(self, command_id: int, error: ErrorCode, detail: object = None) -> bytes:
        """The protocol's own three fields: its error message has no room for details, which REST has."""
        message = _Reply(id=command_id)
        message.error.code, message.error.message, message.error.temporary = error
        return _framed(message)

    def push(self, publication: Publication) -> bytes:
        return publication.protobuf(_pushed)

    def unsubscribed(self, channel: str, why: Unsubscribe) -> bytes:
        message = _Reply()
        message.push.channel = channel
        message.push.unsubscribe.code, message.push.unsubscribe.reason = why
        return _framed(message)

    def joined(self, channel: str, info: ClientInfo) -> bytes:
        return _presence_push("join", channel, info)

    def left(self, channel: str, info: ClientInfo) -> bytes:
        return _presence_push("leave", channel, info)

    def disconnected(self, why: Disconnect) -> bytes:
        message = _Reply()
        ended = message.push.disconnect
        ended.code, ended.reason, ended.reconnect = why.code, why.reason, why.reconnect
        return _framed(message)


def _presence_push(kind: str, channel: str, info: ClientInfo) -> bytes:
    message = _Reply()
    message.push.channel = channel
    _fill(getattr(message.push, kind).info, info)
    return _framed(message)


PROTOBUF: Final[Codec] = ProtobufCodec()


def decode_emulation(body: bytes) -> tuple[str, str, bytes]:
    """What is posted for a stream that another gateway may hold: node, session and frame.

    Raises:
        MalformedFrame: it is something else.
    """
    try:
        request = _CLASSES["EmulationRequest"].FromString(body)
    except DecodeError as error:
        raise MalformedFrame(type(error).__name__) from error
    return request.node, request.session, request.data
