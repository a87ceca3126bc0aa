"""Both encodings say the same, and the Protobuf one is that of the official SDKs."""

import base64
import contextlib
from typing import Any

import msgspec
import pytest
from centrifuge.codecs import _ProtobufCodec as Sdk
from centrifuge.protocol import client_pb2 as official
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from gateway import codes
from gateway.codec import JSON, Codec
from gateway.protobuf import _CLASSES, PROTOBUF
from gateway.protocol import (
    ClientInfo,
    ConnectResult,
    EmptyResult,
    HistoryResult,
    MalformedFrame,
    PresenceResult,
    PresenceStatsResult,
    RefreshResult,
    Result,
    RpcResult,
    SubscribeResult,
)
from gateway.publication import Address, Event, Publication

CHAT = "conversation:0190a0a0-0000-7000-8000-0000000000c1"
DEPTH = 32

COMMANDS: list[dict[str, Any]] = [
    {},
    {"id": 1, "connect": {"token": "t"}},
    {
        "id": 2,
        "subscribe": {"channel": CHAT, "recover": True, "epoch": "e", "offset": 41, "flag": 2, "join_leave": True},
    },
    {"id": 3, "unsubscribe": {"channel": CHAT}},
    {"id": 4, "history": {"channel": CHAT, "limit": -1, "since": {"offset": 7, "epoch": "e"}, "reverse": True}},
    {"id": 5, "history": {"channel": CHAT}},
    {"id": 6, "presence": {"channel": CHAT}},
    {"id": 7, "presence_stats": {"channel": CHAT}},
    {"id": 8, "ping": {}},
    {"id": 9, "rpc": {"method": "sync", "data": {"text": "héllo 你好", "n": [1, {"a": None}]}}},
    {"id": 10, "rpc": {"method": "sync"}},
    {"send": {"data": {"type": "typing", "on": True}}},
    {"id": 11, "refresh": {"token": "t2"}},
    {"id": 12, "publish": {"channel": CHAT}},
    {"id": 13, "sub_refresh": {"channel": CHAT}},
]


def as_sdk(*commands: dict[str, Any]) -> bytes:
    """What the official Python SDK writes for these commands."""

    def with_bytes(command: dict[str, Any]) -> dict[str, Any]:
        body = msgspec.json.decode(msgspec.json.encode(command))
        for kind in ("rpc", "send"):
            if "data" in body.get(kind, {}):
                body[kind]["data"] = base64.b64encode(msgspec.json.encode(body[kind]["data"])).decode()
        return body

    return Sdk.encode_commands([with_bytes(command) for command in commands])


def decoded(codec: Codec, item: bytes) -> dict[str, Any]:
    """A reply or push as the SDKs see it, data as JSON."""
    if codec is JSON:
        return msgspec.json.decode(item)
    (reply,) = Sdk.decode_replies(item)
    return _with_json(reply)


def _with_json(value: Any) -> Any:
    """Protobuf's JSON mapping, undone: base64 for bytes, text for 64 bit integers."""
    if isinstance(value, dict):
        return {
            key: msgspec.json.decode(base64.b64decode(item))
            if key in ("data", "conn_info", "chan_info")
            else int(item)
            if key == "offset"
            else _with_json(item)
            for key, item in value.items()
        }
    return [_with_json(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: "-".join(command))
def test_both_encodings_read_the_same_command(command: dict[str, Any]) -> None:
    (in_json,) = JSON.decode(msgspec.json.encode(command), DEPTH)
    (in_protobuf,) = PROTOBUF.decode(as_sdk(command), DEPTH)
    assert in_json == in_protobuf


def test_a_frame_holds_many_commands_in_order() -> None:
    assert [command.id for command in PROTOBUF.decode(as_sdk(*COMMANDS), DEPTH)] == [
        command.get("id", 0) for command in COMMANDS
    ]


EVENTS = tuple(Event(Address(CHAT), b'{"n":%d}' % n, n) for n in (42, 43))
RESULTS: list[tuple[str, Result]] = [
    ("connect", ConnectResult("client", "v1", 900, 25, "gw", {"user:u": {}}, "key", True, True)),
    ("subscribe", SubscribeResult("e", 41, True, True, True, True, EVENTS)),
    ("unsubscribe", EmptyResult()),
    ("history", HistoryResult((Publication(Address(CHAT), b'{"type":"message.posted"}', 3),), "e", 9)),
    ("refresh", RefreshResult("client", "v1", True, 900)),
    ("presence", PresenceResult({"c1": ClientInfo("u", "c1", msgspec.Raw(b'{"device":"d"}'))})),
    ("presence_stats", PresenceStatsResult(3, 2)),
    ("rpc", RpcResult({"offset": 3, "nested": {"a": [1]}})),
]  # fmt: skip


@pytest.mark.parametrize(("name", "result"), RESULTS, ids=[name for name, _ in RESULTS])
def test_both_encodings_answer_the_same(name: str, result: Result) -> None:
    assert decoded(PROTOBUF, PROTOBUF.reply(7, name, result)) == decoded(JSON, JSON.reply(7, name, result))


def test_both_encodings_push_the_same() -> None:
    info = ClientInfo("u", "c1", msgspec.Raw(b'{"device":"d"}'))
    event = Event(Address(CHAT), b'{"type":"message.posted","text":"x"}', 5)
    pushes = [
        lambda codec: codec.push(event),
        lambda codec: codec.push(Publication(Address("user:u"), b'{"type":"typing"}')),
        lambda codec: codec.unsubscribed(CHAT, codes.MEMBERSHIP_LOST),
        lambda codec: codec.joined(CHAT, info),
        lambda codec: codec.left(CHAT, info),
        lambda codec: codec.disconnected(codes.DRAINING),
        lambda codec: codec.error(3, codes.INTERNAL),
    ]
    for push in pushes:
        assert decoded(PROTOBUF, push(PROTOBUF)) == decoded(JSON, push(JSON))


def test_every_field_has_the_number_and_type_of_the_public_protocol() -> None:
    for name, ours in _CLASSES.items():
        theirs = getattr(official, name).DESCRIPTOR.fields_by_name
        for field in ours.DESCRIPTOR.fields:
            assert (field.number, field.type) == (theirs[field.name].number, theirs[field.name].type), (
                name,
                field.name,
            )


def test_what_the_public_protocol_has_beside_that_is_passed_over() -> None:
    command = {"id": 1, "connect": {"token": "t", "name": "js", "version": "5", "headers": {"a": "b"}, "flag": 1}}
    message = ParseDict(command, official.Command()).SerializeToString()
    (read,) = PROTOBUF.decode(bytes([len(message)]) + message, DEPTH)
    assert read.connect is not None
    assert read.connect.token == "t"


def test_one_publication_is_encoded_once_per_encoding() -> None:
    event = Event(Address(CHAT), b'{"n":1}', 1)
    assert PROTOBUF.push(event) is PROTOBUF.push(event)
    assert JSON.push(event) is JSON.push(event)


def test_line_ends_in_data_do_not_end_the_line() -> None:
    event = Event(Address(CHAT), b'{\n"n":\r\n1}', 1)
    assert b"\n" not in event.json
    assert msgspec.json.decode(event.data) == {"n": 1}
    assert msgspec.json.decode(event.item) == {"data": {"n": 1}, "offset": 1}


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x05\x08",
        b"\xff" * 12,
        b"\x02\x08",
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        as_sdk({"id": 1, "rpc": {"method": "sync", "data": eval("[" * 40 + "]" * 40)}}),
        b"\x0a\x08\x01j\x06\n\x04\xff\xfe\xfd\xfc",
        b"\x09\x08\x01j\x05\n\x03{a}",
    ],
    ids=[
        "nothing",
        "cut off",
        "endless length",
        "longer than it is",
        "longer than anything",
        "too deep",
        "not UTF-8",
        "not JSON",
    ],
)
def test_what_is_not_the_protocol_is_refused_whole(frame: bytes) -> None:
    with pytest.raises(MalformedFrame):
        PROTOBUF.decode(frame, DEPTH)


def test_an_offset_beyond_what_json_may_say_is_refused() -> None:
    with pytest.raises(MalformedFrame):
        PROTOBUF.decode(as_sdk({"id": 1, "subscribe": {"channel": CHAT, "offset": 2**63}}), DEPTH)


@given(st.binary(max_size=200))
def test_any_bytes_are_commands_or_malformed(frame: bytes) -> None:
    for codec in (JSON, PROTOBUF):
        with contextlib.suppress(MalformedFrame):
            codec.decode(frame, DEPTH)
