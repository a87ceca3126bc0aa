"""The load generator: its clock, its two clients' framing, and that it notices lost, doubled and disordered messages."""

import asyncio
import json
import re
import time

import pytest

from benchmarks.figures import Schedule, Usage
from benchmarks.load.http import HttpConnection, HttpFailed, body_length, request_bytes
from benchmarks.load.ticker import Ticker
from benchmarks.scenarios.chat import ChatStep, Talk, judged


class TestRequests:
    def test_a_request_carries_its_token_and_the_length_of_its_body(self):
        request = request_bytes("POST", "/v1/orders", "127.0.0.1:8000", "abc", b'{"a":1}')
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.splitlines() == [
            b"POST /v1/orders HTTP/1.1", b"Host: 127.0.0.1:8000", b"Accept: application/json", b"Authorization: Bearer abc",
            b"Content-Type: application/json", b"Content-Length: 7",
        ]  # fmt: skip
        assert body == b'{"a":1}'

    def test_the_length_of_an_answer_is_found_whatever_its_case(self):
        assert body_length(b"HTTP/1.1 200 OK\r\nserver: x\r\nCONTENT-length: 12\r\nX: 3") == 12
        assert body_length(b"HTTP/1.1 204 No Content\r\nServer: x") == 0

    def test_an_answer_without_a_length_is_refused_rather_than_guessed(self):
        with pytest.raises(HttpFailed, match="without Content-Length"):
            body_length(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked")

    async def test_answers_come_whole_however_they_are_cut(self):
        async def serve(reader, writer):
            for body in (b'{"n":1}', b'{"n":2}'):
                await reader.readuntil(b"\r\n\r\n")
                for byte in b"HTTP/1.1 201 Created\r\nContent-Length: 7\r\n\r\n" + body:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            connection = await HttpConnection.open(*server.sockets[0].getsockname())
            ask = request_bytes("GET", "/", "here")
            assert [await connection.request(ask), await connection.request(ask)] == [
                (201, b'{"n":1}'),
                (201, b'{"n":2}'),
            ]
            with pytest.raises(HttpFailed, match="closed the connection"):
                await asyncio.wait_for(connection.request(ask), 5)
            connection.close()


class TestTicker:
    async def test_ticks_at_its_rate_and_never_before_the_interval(self):
        ticks = []
        ticker = Ticker(0.005, lambda: ticks.append(time.perf_counter()))
        await asyncio.sleep(0.2)
        ticker.stop()
        await asyncio.sleep(0.02)
        assert 5 <= len(ticks) <= 40
        assert all(tick - ticker.began_s >= number * 0.005 for number, tick in enumerate(ticks, 1))


class Wire:
    """Where a talk's frames go."""

    def __init__(self):
        self.frames = []

    def send(self, frame):
        self.frames.append(json.loads(frame))


def talk(total=6, pairs=2):
    wires = [Wire() for _ in range(pairs)]
    prefix = '"rpc":{"method":"message.send","data":{"conversation_id":"c%d",'
    made = Talk([(wire, (prefix % n).encode()) for n, wire in enumerate(wires)], Schedule(total, 1.0), 3)
    made.began_s = time.perf_counter() - 1.0  # all are due
    made.send_due()
    return made, [frame for wire in wires for frame in wire.frames]


def answer(frame, made, *, error=""):
    body = {"error": {"code": 503, "message": error}} if error else {"rpc": {"data": {"offset": 1}}}
    made.replied(
        frame["id"], json.dumps({"id": frame["id"], **body}, separators=(",", ":")).encode(), time.perf_counter()
    )


def deliver(frame, made):
    data = {"type": "message.posted", "text": frame["rpc"]["data"]["text"]}
    push = {"push": {"channel": "conversation:x", "pub": {"data": data, "offset": 2}}}
    made.pushed(json.dumps(push, separators=(",", ":")).encode(), time.perf_counter())


def judge(made) -> ChatStep:
    return judged(made, Usage(2.0, 0.1, 0.6, 0.0, {"host": 0.5}), 6.0, 1.0)


class TestTalk:
    async def test_sends_each_message_once_with_200_bytes_and_an_id_of_its_own(self):
        made, frames = talk()
        assert made.sent == len(frames) == 6
        texts = [frame["rpc"]["data"]["text"] for frame in frames]
        assert {len(text) for text in texts} == {200}
        assert len(set(texts)) == len({frame["rpc"]["data"]["id"] for frame in frames}) == 6
        assert all(re.fullmatch(r"[0-9a-f-]{14}7[0-9a-f-]{21}", frame["rpc"]["data"]["id"]) for frame in frames)

    async def test_is_over_when_all_that_was_acknowledged_has_come(self):
        made, frames = talk()
        for frame in frames:
            assert not made.over.is_set()
            answer(frame, made)
            deliver(frame, made)
        assert made.over.is_set()
        step = judge(made)
        assert (step.acknowledged, step.delivered, step.lost, step.doubled, step.disordered) == (6, 6, 0, 0, 0)
        assert step.faults == []

    async def test_a_lost_a_doubled_and_a_disordered_message_each_spoil_the_step(self):
        made, frames = talk(pairs=1)
        for frame in frames:
            answer(frame, made)
        for number in (1, 0, 2, 2, 3, 4):
            deliver(frames[number], made)
        step = judge(made)
        assert (step.lost, step.doubled, step.disordered, step.sustained) == (1, 1, 1, False)
        assert step.faults == ["1 acknowledged but not delivered in time", "1 delivered twice", "1 out of order"]

    async def test_a_refused_and_an_unanswered_message_are_counted(self):
        made, frames = talk()
        for frame in frames[:4]:
            answer(frame, made)
            deliver(frame, made)
        answer(frames[4], made, error="busy")
        step = judge(made)
        assert (step.refused, step.sustained) == ({"busy": 1}, False)
        assert step.faults == ["1 without an answer", "1 refused"]

    async def test_what_belongs_to_an_earlier_step_is_not_counted(self):
        made, frames = talk()
        older, _ = talk()
        earlier = {**frames[0], "id": frames[0]["id"] - 10_000_000}
        answer(earlier, made)
        made.pushed(b'{"push":{"channel":"conversation:x","pub":{"data":{"text":"0002:00000000:"}}}}', 0.0)
        made.pushed(b'{"push":{"channel":"user:x","pub":{"data":{"text":"0003:00000000:"}}}}', 0.0)
        assert (made.acknowledged, made.delivered, older.delivered) == (0, 0, 0)

    async def test_a_backlog_of_more_than_two_seconds_ends_the_step(self):
        made = Talk([(Wire(), b'"rpc":{"method":"message.send","data":{')], Schedule(300, 4.0), 1)
        made.began_s = time.perf_counter() - 1.9
        made.send_due()
        made.send_due()
        assert made.overloaded is False
        made.began_s -= 0.2
        made.send_due()
        sent = made.sent
        made.send_due()
        assert (made.overloaded, made.sent) == (True, sent)
        assert judge(made).sustained is False
