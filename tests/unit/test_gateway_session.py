"""The session without a socket: bytes in, effects out."""

import uuid
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.commands import Command, Query, Signal
from domain.errors import STATUS, Code, Refused
from domain.ports import Identity
from gateway import codes, protocol
from gateway.progress import NOTHING, Taken
from gateway.recovery import Cursor
from gateway.session import Ask, Attach, Close, Detach, History, Session, Sync, Verify
from gateway.settings import GatewaySettings

USER = "0190a0a0-0000-7000-8000-00000000000a"
CHAT = "0190a0a0-0000-7000-8000-0000000000c1"
OTHER = "0190a0a0-0000-7000-8000-0000000000c2"
WRITE = "0190a0a0-0000-7000-8000-0000000000f1"
NOW_MS = 1_700_000_000_000


def frame(*commands: dict[str, Any]) -> bytes:
    return b"\n".join(msgspec.json.encode(command) for command in commands)


def replies(effects: list[Any]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(effect) for effect in effects if isinstance(effect, bytes)]


def opened(client_id: str = "client-1", **settings: Any) -> Session:
    session = Session(GatewaySettings(**settings), client_id, 0.0)
    (verify,) = session.receive(frame({"id": 1, "connect": {"token": "t"}}), 0.0)
    session.verified(verify, Identity(USER, "sid", NOW_MS + 900_000), 0.0, NOW_MS)
    assert session.open
    return session


def rpc(command_id: int, conversation_id: str = CHAT, **more: Any) -> dict[str, Any]:
    data = {"conversation_id": conversation_id, "id": WRITE, "text": "x", **more}
    return {"id": command_id, "rpc": {"method": "message.send", "data": data}}


def cursor(channel: str) -> Cursor:
    return Cursor(None, channel, USER, 0, 0)  # type: ignore[arg-type]


def test_connect_is_answered_with_everything_a_client_needs() -> None:
    session = Session(GatewaySettings(version="v1", name="gw-1"), "client-1", 0.0)
    (verify,) = session.receive(frame({"id": 1, "connect": {"token": "secret", "data": {"device_id": "d"}}}), 0.0)
    assert verify == Verify(1, "token", "secret", "connect")
    (reply,) = replies(session.verified(verify, Identity(USER, "sid", NOW_MS + 900_500), 0.0, NOW_MS))
    assert reply == {
        "id": 1,
        "connect": {
            "client": "client-1",
            "version": "v1",
            "node": "gw-1",
            "expires": True,
            "ttl": 900,
            "ping": 25,
            "pong": True,
            "subs": {f"user:{USER}": {}},
        },
    }


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"hello",
        b"[]",
        b"null",
        b'{"id":1',
        b'{"id":-1,"rpc":{}}',
        b'{"id":4294967296,"rpc":{}}',
        b'{"id":"1","rpc":{}}',
        b'{"id":1,"rpc":[]}',
        b'{"id":1,"rpc":{"method":5}}',
        b'{"id":1,"subscribe":{"channel":"x","offset":-1}}',
        b'{"id":1,"subscribe":{"channel":"x","offset":1e400}}',
        b'{"id":1,"rpc":{"method":"sync","data":NaN}}',
        b'{"id":1,"rpc":{"method":"a","data":"\xff\xfe"}}',
        b'{"rpc":{"method":"sync"}}',
        b'{"id":0,"subscribe":{"channel":"x"}}',
        b'{"id":2,"connect":{}}',
        b'{"id":1,"rpc":{"method":"sync","data":' + b"[" * 40 + b"]" * 40 + b"}}",
        b'{"id":1,"rpc":{"method":"sync","data":' + b"[" * 30_000 + b"]" * 30_000 + b"}}",
    ],
)
def test_what_is_not_the_protocol_ends_the_session(garbage: bytes) -> None:
    session = opened()
    effects = session.receive(garbage, 1.0)
    if garbage == b"":
        assert effects == []
        return
    assert effects == [Close(codes.BAD_FRAME)]
    assert session.closed
    assert session.receive(frame(rpc(2)), 1.0) == []


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise(garbage: bytes) -> None:
    opened().receive(garbage, 1.0)
    Session(GatewaySettings(), "c", 0.0).receive(garbage, 1.0)


def test_braces_in_strings_are_not_depth() -> None:
    session = opened()
    (ask,) = session.receive(frame(rpc(2, text="[{" * 500 + '\\"')), 1.0)
    assert isinstance(ask, Ask)


def test_connect_comes_first_and_only_once() -> None:
    assert Session(GatewaySettings(), "c", 0.0).receive(frame(rpc(1)), 0.0) == [Close(codes.BAD_FRAME)]
    assert opened().receive(frame({"id": 9, "connect": {"token": "t"}}), 1.0) == [Close(codes.BAD_FRAME)]


def test_commands_right_behind_connect_wait_for_its_answer() -> None:
    session = Session(GatewaySettings(), "c", 0.0)
    subscribe = {"id": 2, "subscribe": {"channel": f"conversation:{CHAT}"}}
    (verify,) = session.receive(frame({"id": 1, "connect": {"token": "t"}}, subscribe), 0.0)
    reply, attach = session.verified(verify, Identity(USER, "sid", NOW_MS + 900_000), 0.0, NOW_MS)
    assert isinstance(reply, bytes)
    assert isinstance(attach, Attach)


def test_a_refused_token_lets_nothing_behind_it_through() -> None:
    session = Session(GatewaySettings(), "c", 0.0)
    (verify,) = session.receive(frame({"id": 1, "connect": {"token": "t"}}, rpc(2)), 0.0)
    effects = session.failed(verify, codes.TOKEN_EXPIRED)
    assert replies(effects) == [{"id": 1, "error": {"code": 109, "message": "token expired"}}]
    assert len(effects) == 1


def test_who_does_not_connect_in_time_is_closed() -> None:
    session = Session(GatewaySettings(connect_timeout_s=10), "c", 5.0)
    assert session.deadline_s == 15.0
    assert session.tick(14.9) == []
    assert session.tick(15.0) == [Close(codes.STALE)]


def test_pings_go_out_and_a_missing_pong_ends_the_session() -> None:
    session = opened(ping_interval_s=25, pong_timeout_s=10)
    first_s = session.deadline_s
    assert session.tick(first_s - 0.1) == []
    assert session.tick(first_s) == [b"{}"]
    session.receive(b"{}", first_s + 1)
    assert session.tick(first_s + 10) == []
    assert session.deadline_s == first_s + 25
    assert session.tick(first_s + 24.9) == []
    assert session.tick(first_s + 25) == [b"{}"]
    assert session.deadline_s == first_s + 35
    assert session.tick(first_s + 35) == [Close(codes.NO_PONG)]


def test_those_who_come_together_are_not_pinged_together() -> None:
    firsts_s = [opened(ping_interval_s=25, client_id=str(uuid.uuid4())).deadline_s for _ in range(1_000)]
    assert min(firsts_s) >= 12.5
    assert max(firsts_s) <= 20
    in_a_second = Counter(int(first_s) for first_s in firsts_s)
    assert max(in_a_second.values()) < 200


def test_a_ping_behind_much_that_the_client_takes_may_wait_for_its_answer() -> None:
    session = opened(ping_interval_s=25, pong_timeout_s=10)
    assert session.tick(25.0, Taken(5_000, True)) == [b"{}"]
    assert session.tick(35.0, Taken(6_000, True)) == []
    assert session.deadline_s == 45.0
    assert session.tick(45.0, Taken(6_001, True)) == []
    assert session.tick(50.0, Taken(7_000, True)) == [b"{}"], "time goes on"
    assert session.tick(55.0, Taken(7_000, True)) == []
    assert session.tick(65.0, Taken(7_000, True)) == [Close(codes.NO_PONG)]


@pytest.mark.parametrize(
    ("later", "why"), [(Taken(5_000, True), "it takes nothing"), (Taken(9_000, False), "it has it all")]
)
def test_a_client_that_could_answer_and_does_not_is_gone(later: Taken, why: str) -> None:
    session = opened(ping_interval_s=25, pong_timeout_s=10)
    session.tick(25.0, Taken(5_000, True))
    assert session.tick(35.0, later) == [Close(codes.NO_PONG)], why


@pytest.mark.parametrize(
    ("later", "ends"),
    [(Taken(5_000, True), True), (Taken(5_001, True), False), (Taken(5_000, False), False), (NOTHING, False)],
)
def test_answering_pings_is_worth_nothing_from_who_has_not_taken_them(later: Taken, ends: bool) -> None:
    session = opened(ping_interval_s=25, pong_timeout_s=10)
    session.tick(25.0, Taken(5_000, True))
    session.receive(b"{}", 26.0)
    assert session.tick(34.9, later) == []
    assert session.tick(35.0, later) == ([Close(codes.SLOW)] if ends else [])
    if not ends:
        assert session.deadline_s == 50.0
        assert session.tick(50.0, later) == [b"{}"]


def test_the_session_ends_with_its_token_and_lives_on_with_a_new_one() -> None:
    session = opened(expiry_grace_s=25, ping_interval_s=10_000)
    assert session.tick(924.9) == []
    (verify,) = session.receive(frame({"id": 2, "refresh": {"token": "new"}}), 924.9)
    effects = session.verified(verify, Identity(USER, "sid", NOW_MS + 1_800_000), 924.9, NOW_MS + 924_900)
    assert replies(effects)[0]["refresh"]["ttl"] == 875
    assert session.tick(925.0) == []
    assert session.tick(1_825.0) == [Close(codes.EXPIRED)]


@pytest.mark.parametrize("identity", [(OTHER, "sid"), (USER, "other sid")])
def test_a_token_of_another_session_does_not_refresh_this_one(identity: tuple[str, str]) -> None:
    session = opened()
    (verify,) = session.receive(frame({"id": 2, "refresh": {"token": "new"}}), 1.0)
    assert session.verified(verify, Identity(*identity, NOW_MS + 900_000), 1.0, NOW_MS) == [Close(codes.INVALID_TOKEN)]


def test_commands_about_one_stream_never_overlap_and_keep_their_order() -> None:
    session = opened()
    effects = session.receive(frame(rpc(2), rpc(3), rpc(4, OTHER), rpc(5)), 1.0)
    assert [ask.command_id for ask in effects] == [2, 4]
    after = session.answered(effects[0], "rpc", protocol.RpcResult("first"))
    assert replies(after) == [{"id": 2, "rpc": {"data": "first"}}]
    assert [ask.command_id for ask in after[1:]] == [3]
    last = session.failed(after[1], codes.INTERNAL)
    assert [ask.command_id for ask in last[1:]] == [5]
    assert session.in_flight == 2


def test_work_is_bounded_and_goes_on_when_there_is_room() -> None:
    session = opened(max_in_flight=2)
    streams = [f"0190a0a0-0000-7000-8000-{n:012x}" for n in range(6)]
    effects = session.receive(frame(*(rpc(n + 2, stream) for n, stream in enumerate(streams))), 1.0)
    assert [ask.command_id for ask in effects] == [2, 3]
    assert session.saturated
    seen = []
    while effects:
        work = effects.pop(0)
        if isinstance(work, Ask):
            seen.append(work.command_id)
            effects += session.answered(work, "rpc", protocol.RpcResult("done"))
    assert seen == [2, 3, 4, 5, 6, 7]
    assert not session.saturated
    assert session.in_flight == 0


def test_a_refresh_is_not_stuck_behind_other_work() -> None:
    session = opened(max_in_flight=1)
    session.receive(frame(rpc(2), rpc(3, OTHER)), 1.0)
    effects = session.receive(frame({"id": 4, "refresh": {"token": "new"}}), 1.0)
    assert [type(effect) for effect in effects] == [Verify]


def test_subscribing_twice_or_too_often_is_refused() -> None:
    session = opened(max_subscriptions=1)
    subscribe = {"id": 2, "subscribe": {"channel": f"conversation:{CHAT}"}}
    attach, _ = [*session.receive(frame(subscribe, subscribe | {"id": 3}), 1.0), None]
    result = protocol.SubscribeResult(epoch="e", offset=4, recoverable=True, positioned=True)
    effects = session.attached(attach, cursor(f"conversation:{CHAT}"), result)
    first, second = replies(effects)
    assert first == {"id": 2, "subscribe": {"epoch": "e", "offset": 4, "recoverable": True, "positioned": True}}
    assert second["error"]["code"] == 105
    (reply,) = replies(session.receive(frame({"id": 4, "subscribe": {"channel": f"order:{OTHER}"}}), 1.0))
    assert reply["error"]["code"] == 106
    (detach,) = session.receive(frame({"id": 5, "unsubscribe": {"channel": f"conversation:{CHAT}"}}), 1.0)
    assert isinstance(detach, Detach)
    session.detached(detach)
    assert isinstance(session.receive(frame(subscribe | {"id": 6}), 1.0)[0], Attach)


def test_subscriptions_under_way_count_against_the_limit() -> None:
    session = opened(max_subscriptions=2)
    asked = [{"id": n + 2, "subscribe": {"channel": f"order:0190a0a0-0000-7000-8000-{n:012x}"}} for n in range(3)]
    effects = session.receive(frame(*asked), 1.0)
    assert [isinstance(effect, Attach) for effect in effects] == [True, True, False]
    session.failed(effects[0], codes.PERMISSION_DENIED)
    assert isinstance(session.receive(frame(asked[2]), 1.0)[0], Attach)


def test_an_unsubscribe_behind_a_subscribe_takes_effect_after_it() -> None:
    session = opened()
    name = f"conversation:{CHAT}"
    (attach,) = session.receive(
        frame({"id": 2, "subscribe": {"channel": name}}, {"id": 3, "unsubscribe": {"channel": name}}), 1.0
    )
    effects = session.attached(attach, cursor(name), protocol.SubscribeResult(epoch="e"))
    assert isinstance(effects[1], Detach)


@pytest.mark.parametrize(
    "name", ["", "x", "order:", f"ORDER:{CHAT}", f"order:{CHAT.upper()}", "order:*", f"user:{OTHER}"]
)
def test_a_channel_without_meaning_answers_like_a_foreign_one(name: str) -> None:
    (reply,) = replies(opened().receive(frame({"id": 2, "subscribe": {"channel": name}}), 1.0))
    assert reply == {"id": 2, "error": {"code": 103, "message": "permission denied"}}


def test_ones_own_hints_are_subscribed_already() -> None:
    (reply,) = replies(opened().receive(frame({"id": 2, "subscribe": {"channel": f"user:{USER}"}}), 1.0))
    assert reply["error"]["code"] == 105


def test_each_rpc_becomes_the_request_it_stands_for() -> None:
    session = opened()

    def asked(method: str, data: dict[str, Any]) -> Command | Query:
        (work,) = session.receive(frame({"id": 2, "rpc": {"method": method, "data": data}}), 1.0)
        session.answered(work, "rpc", protocol.RpcResult("done"))
        assert isinstance(work, Ask)
        return work.request

    actor = session.actor
    base = {"conversation_id": CHAT, "id": WRITE}
    for method, name in (("send", "send"), ("edit", "edit"), ("delete", "delete"), ("react", "react")):
        expected = Command("conversation", CHAT, name, actor, WRITE, b'{"id":"%s","extra":[1]}' % WRITE.encode())
        assert asked(f"message.{method}", base | {"extra": [1]}) == expected
    for method in ("receipt.read", "receipt.delivered"):
        expected = Command("conversation", CHAT, method, actor, "", b'{"offset":3}')
        assert asked(method, {"conversation_id": CHAT, "offset": 3}) == expected
    order = {"order_id": CHAT, "command": "cancel", "command_id": WRITE}
    assert asked("order.command", order) == Command("order", CHAT, "cancel", actor, WRITE, b"{}")
    full = order | {"expected_version": 4, "payload": {"reason": "x"}}
    assert asked("order.command", full) == Command("order", CHAT, "cancel", actor, WRITE, b'{"reason":"x"}', 4)
    assert asked("order.command", order | {"payload": None}).payload == b"{}"  # type: ignore[union-attr]
    expected_query = Query("order", CHAT, "status", actor, WRITE)
    assert asked("write.status", {"stream": f"order:{CHAT}", "id": WRITE}) == expected_query
    assert session.receive(frame({"id": 3, "rpc": {"method": "sync", "data": {}}}), 1.0) == [Sync(3, "sync")]


def test_what_is_sent_without_reply_becomes_a_signal_or_nothing() -> None:
    session = opened()

    def sent(data: Any) -> list[Any]:
        return session.receive(frame({"send": {"data": data}}), 1.0)

    typing = {"type": "typing", "conversation_id": CHAT, "on": True}
    assert sent(typing) == [Signal("conversation", CHAT, "typing", session.actor, b'{"on":true}')]
    fix = {"type": "fix", "order_id": CHAT, "fixes": []}
    assert sent(fix) == [Signal("order", CHAT, "fix", session.actor, b'{"fixes":[]}')]
    for nonsense in (
        None,
        5,
        [],
        {},
        {"type": "x"},
        {"type": "typing"},
        {"type": 5},
        typing | {"conversation_id": ">"},
    ):
        assert sent(nonsense) == []
    assert session.open


def test_history_is_for_followers() -> None:
    session = opened()
    history = {"id": 2, "history": {"channel": f"order:{CHAT}", "limit": 5}}
    (reply,) = replies(session.receive(frame(history), 1.0))
    assert reply["error"]["code"] == 103
    session.subscriptions[f"order:{CHAT}"] = cursor(f"order:{CHAT}")
    assert isinstance(session.receive(frame(history), 1.0)[0], History)


def test_an_error_tells_what_disagrees_beside_its_code() -> None:
    session = opened()
    (ask,) = session.receive(frame(rpc(2)), 1.0)
    refused = Refused(Code.VERSION_CONFLICT, "stale", current=7, allowed_commands=("cancel",))
    (reply,) = replies(session.failed(ask, codes.catalogue_error(refused.code), refused))
    assert reply["error"] == {
        "code": 409,
        "message": "version_conflict",
        "data": {"detail": "stale", "current": 7, "allowed_commands": ["cancel"]},
    }


def test_a_budget_slows_a_client_down_and_ends_one_that_does_not_listen() -> None:
    session = opened(commands_per_s=1)
    answers = replies(session.receive(frame(*({"id": n + 2, "ping": {}} for n in range(6))), 0.0))
    assert [("ping" in answer, answer.get("error", {}).get("code")) for answer in answers] == [
        (True, None),
        (True, None),
        (True, None),
        (True, None),
        (False, 111),
        (False, 111),
    ]
    assert "ping" in replies(session.receive(frame({"id": 9, "ping": {}}), 1.0))[0]
    effects: list[Any] = []
    for n in range(100):
        effects = session.receive(frame({"id": n + 10, "ping": {}}), 1.0)
        if session.closed:
            break
    assert effects == [Close(codes.PROTOCOL_ABUSE)]


def test_nothing_happens_after_the_end() -> None:
    session = opened()
    (ask,) = session.receive(frame(rpc(2)), 1.0)
    assert session.close(codes.DRAINING) == [Close(codes.DRAINING)]
    assert session.close(codes.SLOW) == []
    assert session.answered(ask, "rpc", protocol.RpcResult("late")) == []
    assert session.tick(1_000.0) == []
    assert session.in_flight == 0


def test_every_catalogue_code_has_a_number_that_is_not_the_protocols() -> None:
    for code in Code:
        error = codes.catalogue_error(code)
        assert 400 <= error.code < 600
        assert error.code == STATUS[Code(error.message)]
        assert error.message != Code.FENCED


def test_disconnect_codes_are_in_the_range_that_says_what_to_do() -> None:
    every = {name: value for name, value in vars(codes).items() if isinstance(value, codes.Disconnect)}
    terminal = {name for name, value in every.items() if not value.reconnect}
    assert terminal == {"INVALID_TOKEN", "BAD_FRAME", "STALE", "CONNECTION_LIMIT", "SESSION_REVOKED", "PROTOCOL_ABUSE"}
    assert (codes.DRAINING.code, codes.SESSION_REVOKED.code, codes.PROTOCOL_ABUSE.code) == (4001, 4500, 4501)
