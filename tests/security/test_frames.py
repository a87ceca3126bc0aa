"""SEC-13, SEC-17: no frame, however wrong or large, does more than end the connection that it came on, with the right code.

What the gateway's own suites show is not repeated: slow and half-open connections, floods of pings, endless fragments,
inflated frames, requests that two servers read in two ways.
"""

import asyncio
import gc
import json
import random
import struct
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

import psutil
import pytest
import pytest_asyncio

from domain.access import Role
from domain.wire import RPC_METHODS
from tests.security.city import City, Line
from tests.security.tally import Tally
from tests.security.wires import BINARY, CLOSE, CONT, PING, PONG, TEXT, RawSocket, frame

MOST_RSS_BYTES: Final = 16 * 1_048_576
MOST_CPU_S: Final = 0.05
"""Of the whole process, the attacker included, for one case."""
LIMIT: Final = 65_536


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def honest(city: City) -> AsyncIterator[Line]:
    """Somebody who is connected all the while, and is asked after every attack whether they still are."""
    async with city.of[Role.CUSTOMER].owner.line() as line:
        yield line


async def alive(honest: Line) -> None:
    async with asyncio.timeout(5):
        assert await honest.ask({"ping": {}}) == {"ping": {}}


def rpc(data: bytes, number: bytes = b"2") -> bytes:
    return b'{"id":' + number + b',"rpc":{"method":"sync","data":' + data + b"}}"


async def attacked(city: City, honest: Line, data: bytes, *, connected: bool = True) -> tuple[int, float]:
    """The code that ends the connection on which these bytes came, and the CPU time that they cost."""
    token = city.of[Role.CUSTOMER].owner.token if connected else ""
    async with RawSocket(city.ws_port, token) as socket:
        began_s = time.process_time()
        await socket.send(data)
        code = await socket.closed_with()
        spent_s = time.process_time() - began_s
    await alive(honest)
    return code, spent_s


# --- SEC-13: too large, too deep, too many ---------------------------------------------------------------------------

KEYS: Final = b"{" + b",".join(b'"%d":1' % number for number in range(6_000)) + b"}"
TOO_MUCH: Final[dict[str, tuple[bytes, int]]] = {
    "a frame one byte too large": (frame(b" " * (LIMIT + 1)), 1009),
    "a frame that says it is 2**62 bytes": (frame(b"x" * 100, announced=2**62), 1009),
    "fragments that are too large together": (
        frame(b" " * 40_000, fin=False) + frame(b" " * 40_000, CONT),
        1009,
    ),
    "10**5 keys": (frame(b"{" + b",".join(b'"%d":1' % number for number in range(100_000)) + b"}"), 1009),
    "100 deep": (frame(rpc(b"[" * 100 + b"]" * 100)), 3501),
    "objects 100 deep": (frame(rpc(b'{"a":' * 100 + b"1" + b"}" * 100)), 3501),
    "30,000 deep": (frame(rpc(b"[" * 30_000 + b"]" * 30_000)), 3501),
    "an id of 400 digits": (frame(rpc(b"{}", b"9" * 400)), 3501),
    "an id of 60,000 digits": (frame(rpc(b"{}", b"9" * 60_000)), 3501),
    "an offset beyond 64 bits": (
        frame(b'{"id":2,"subscribe":{"channel":"order:x","recover":true,"offset":%b}}' % (b"9" * 30)),
        3501,
    ),
    "NaN": (frame(rpc(b"NaN")), 3501),
    "Infinity": (frame(rpc(b"-Infinity")), 3501),
    "a number that is none": (frame(rpc(b"0x10")), 3501),
    "a lone surrogate in the name of a method": (frame(b'{"id":2,"rpc":{"method":"\\ud800","data":{}}}'), 3501),
    "a lone surrogate in data": (frame(rpc(b'{"a":"\\ud800"}')), 3501),
    "a key that is a lone surrogate": (frame(rpc(b'{"\\udfff":1}')), 3501),
    "a surrogate in UTF-8": (frame(rpc(b'"\xed\xa0\x80"')), 1007),
    "bytes that are no UTF-8": (frame(rpc(b'"\xc0\xaf"')), 1007),
    "half a character": (frame(rpc(b'"\xe4\xb8')), 1007),
    "half an object": (frame(b'{"id":2,"rpc":{'), 3501),
    "two objects without a line between": (frame(b'{"id":2,"ping":{}}{"id":3,"ping":{}}x'), 3501),
    "an array of commands": (frame(b'[{"id":2,"ping":{}}]'), 3501),
    "NUL": (frame(b"\x00" * 100), 3501),
    "a byte order mark": (frame(b'\xef\xbb\xbf{"id":2,"ping":{}}'), 3501),
}


@pytest.mark.parametrize("what", TOO_MUCH)
async def test_what_is_too_much_or_no_json_ends_its_own_connection(
    city: City, honest: Line, tally: Tally, what: str
) -> None:
    data, wanted = TOO_MUCH[what]
    code, spent_s = await attacked(city, honest, data)
    tally.tried("SEC-13", what, "a frame")
    assert code == wanted
    assert spent_s <= MOST_CPU_S


@pytest.mark.parametrize("what", TOO_MUCH)
async def test_nothing_of_that_is_looked_at_any_longer_before_connect(
    city: City, honest: Line, tally: Tally, what: str
) -> None:
    data, wanted = TOO_MUCH[what]
    code, spent_s = await attacked(city, honest, data, connected=False)
    tally.tried("SEC-13", what, "the first frame")
    assert code == wanted
    assert spent_s <= MOST_CPU_S


async def test_a_frame_of_the_largest_size_is_read_and_one_byte_more_is_not(city: City, tally: Tally) -> None:
    async with RawSocket(city.ws_port, city.of[Role.CUSTOMER].owner.token) as socket:
        inner = rpc(b"{}")
        await socket.send(frame(inner + b" " * (LIMIT - len(inner))))
        assert b'"conversations"' in (await socket.read())[1]
        await socket.send(frame(inner + b" " * (LIMIT + 1 - len(inner))))
        tally.tried("SEC-13", "a frame one byte too large", "a frame")
        assert await socket.closed_with() == 1009


ODD: Final[dict[str, bytes]] = {
    "thousands of keys": KEYS,
    "a huge integer": b'{"a":' + b"9" * 5_000 + b"}",
    "a huge exponent": b'{"a":1e400}',
    "the same key twice": b'{"user_ids":[],"user_ids":[]}',
    "NUL in a key": b'{"\\u0000":1}',
    "a key of 60,000 characters": b'{"' + b"k" * 60_000 + b'":1}',
    "no object": b'"text"',
    "an array": b"[[]]",
    "null": b"null",
}
"""Data that is JSON, within the limits, and strange. What a method does with it is its own affair, but it answers."""


@pytest.mark.parametrize("what", ODD)
async def test_strange_json_is_answered_and_the_connection_goes_on(
    city: City, honest: Line, tally: Tally, what: str
) -> None:
    data = ODD[what]
    token = city.of[Role.CUSTOMER].owner.token
    async with RawSocket(city.ws_port, token) as socket:
        for number, method in enumerate(RPC_METHODS, 2):
            await socket.send(frame(b'{"id":%d,"rpc":{"method":"%b","data":%b}}' % (number, method.encode(), data)))
            opcode, payload = await socket.read()
            tally.tried("SEC-13", what, f"rpc {method}")
            reply = json.loads(payload)
            assert (opcode, reply["id"]) == (TEXT, number), (method, payload)
            assert reply.get("error", {}).get("code", 0) in (0, 404, 422), (method, reply)
    await alive(honest)


async def test_the_same_key_twice_means_the_same_to_everybody(city: City, tally: Tally) -> None:
    """The last one counts, for who checks access and for who writes: nobody is told one stream and writes another."""
    mine, stranger = city.of[Role.CUSTOMER], city.stranger
    before = city.state()
    own, foreign = mine.ids["conversation_id"], stranger.ids["conversation_id"]
    async with RawSocket(city.ws_port, mine.owner.token) as socket:
        said = b'{"conversation_id":"%b","conversation_id":"%b","id":"%b","text":"x"}' % (
            own.encode(),
            foreign.encode(),
            city.new_id().encode(),
        )
        await socket.send(frame(b'{"id":2,"rpc":{"method":"message.send","data":%b}}' % said))
        reply = json.loads((await socket.read())[1])
        tally.tried("SEC-13", "the same key twice", "rpc message.send")
        assert reply["error"]["code"] == 404
    assert city.state() == before


@pytest.mark.parametrize("count", [200, 10_000])
async def test_more_headers_than_anybody_sends_are_not_read(city: City, honest: Line, tally: Tally, count: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", city.ws_port)
    head = b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    with suppress(OSError):
        writer.write(head + b"".join(b"X-%d: y\r\n" % number for number in range(count)) + b"\r\n")
        await writer.drain()
    answer = b""
    with suppress(OSError):
        async with asyncio.timeout(5):
            answer = await reader.read(12)
    tally.tried("SEC-13", "too many headers", "the handshake")
    assert answer == b"" or answer[9:10] == b"4", answer
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    await alive(honest)


@pytest.mark.parametrize("part", ["path", "header"])
async def test_a_head_of_64_kb_is_not_read(city: City, honest: Line, tally: Tally, part: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", city.ws_port)
    stuffing = b"a" * 65_536
    path, header = (b"/" + stuffing, b"y") if part == "path" else (b"/connection/websocket", stuffing)
    with suppress(OSError):
        writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nX-Long: " + header + b"\r\n\r\n")
        await writer.drain()
    answer = b""
    with suppress(OSError):
        async with asyncio.timeout(5):
            answer = await reader.read(12)
    tally.tried("SEC-13", f"a long {part}", "the handshake")
    assert answer == b"" or answer[9:10] == b"4", answer
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    await alive(honest)


# --- SEC-17: what RFC 6455 forbids -----------------------------------------------------------------------------------

OWN: Final = b'{"id":2,"ping":{}}'
FORBIDDEN: Final[dict[str, tuple[bytes, set[int]]]] = {
    "an unmasked frame": (frame(OWN, masked=False), {1002}),
    **{f"reserved bits {bits:03b}": (frame(OWN, reserved=bits), {1002}) for bits in range(1, 8)},
    **{f"reserved opcode {code:#x}": (frame(OWN, code), {1002}) for code in (*range(3, 8), *range(0xB, 0x10))},
    "a continuation of nothing": (frame(OWN, CONT), {1002}),
    "a new message within a message": (frame(OWN[:5], fin=False) + frame(OWN), {1002}),
    "a ping in fragments": (frame(b"x", PING, fin=False), {1002}),
    "a ping of 126 bytes": (frame(b"x" * 126, PING), {1002}),
    "a close of 126 bytes": (frame(struct.pack("!H", 1000) + b"x" * 124, CLOSE), {1002}),
    "a close of one byte": (frame(b"\x03", CLOSE), {1002}),
    "a close whose reason is no UTF-8": (frame(struct.pack("!H", 1000) + b"\xff\xfe", CLOSE), {1002, 1007}),
    **{
        f"a close with {code}": (frame(struct.pack("!H", code), CLOSE), {1002})
        for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65_535)
    },
    "text that is no UTF-8, in fragments": (frame(b'"\xe4', fin=False) + frame(b"\xff", CONT), {1007}),
    "a length of 2**63": (frame(b"x", announced=2**63, width=8), {1002, 1009}),
    "binary that is no command": (frame(b"\x00\x01\x02", BINARY), {3501}),
    "nothing but ones": (b"\xff" * 200, {1002, 1009}),
    "a second handshake": (b"GET /connection/websocket HTTP/1.1\r\n\r\n", {1002}),
}


MANY: Final = ("reserved bits", "reserved opcode", "a close with")
"""Each of these is one case, with however many numbers it is tried."""


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "before connect"])
@pytest.mark.parametrize("what", FORBIDDEN)
async def test_what_the_rfc_forbids_closes_with_the_code_that_it_names(
    city: City, honest: Line, tally: Tally, what: str, connected: bool
) -> None:
    data, wanted = FORBIDDEN[what]
    code, spent_s = await attacked(city, honest, data, connected=connected)
    kind = next((kind for kind in MANY if what.startswith(kind)), what)
    tally.tried("SEC-17", kind, "a frame" if connected else "the first frame")
    assert code in wanted
    assert spent_s <= MOST_CPU_S


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_a_close_that_is_allowed_is_answered(city: City, honest: Line, code: int) -> None:
    found, _ = await attacked(city, honest, frame(struct.pack("!H", code) + "再见".encode(), CLOSE))
    assert found == code


async def test_control_frames_between_fragments_are_answered_and_the_message_is_whole(city: City) -> None:
    async with RawSocket(city.ws_port, city.of[Role.CUSTOMER].owner.token) as socket:
        await socket.send(frame(OWN[:6], fin=False) + frame(b"between", PING) + frame(OWN[6:], CONT))
        assert await socket.read() == (PONG, b"between")
        assert json.loads((await socket.read())[1]) == {"id": 2, "ping": {}}


OURS: Final = frozenset({1011, 3004})
"""Closes that say that something here failed."""


def mutated(rng: random.Random, honest_frames: list[bytes]) -> bytes:
    """Some honest frames one after the other, of which a few bytes are others, missing or double."""
    data = bytearray(b"".join(rng.choice(honest_frames) for _ in range(rng.randint(1, 4))))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:
                del data[at : at + rng.randint(1, 20)]
            case 3:
                data[at:at] = rng.randbytes(rng.randint(1, 20))
            case _:
                data[at:at] = data[at : at + rng.randint(1, 40)]
        if not data:
            data += b"\x81"
    return bytes(data)


@pytest.mark.timeout(3600)
async def test_no_mutation_of_honest_frames_does_more_than_end_its_connection(
    city: City, honest: Line, tally: Tally, full: bool
) -> None:
    """As many connections as it takes: whatever comes back is JSON, or a close with a code that the protocol's page has."""
    rounds, rng = 100_000 if full else 1_000, random.Random(6455)
    mine = city.of[Role.CUSTOMER]
    said: list[dict[str, Any]] = [
        {"id": 2, "ping": {}},
        {"id": 3, "rpc": {"method": "sync", "data": {}}},
        {"id": 4, "subscribe": {"channel": f"conversation:{mine.ids['conversation_id']}", "recover": True}},
        {"id": 5, "history": {"channel": f"conversation:{mine.ids['conversation_id']}", "limit": 2}},
        {"id": 6, "presence": {"channel": f"user:{mine.owner.id}"}},
    ]
    frames = [frame(json.dumps(each).encode()) for each in said]
    frames += [frame(b"x", PING), frame(json.dumps(said[0]).encode()[:9], fin=False), frame(b'"ping":{}}', CONT)]
    for number in range(rounds):
        async with RawSocket(city.ws_port, mine.owner.token if number % 2 else "") as socket:
            await socket.send(mutated(rng, frames))
            # Behind it a close of our own: whoever still takes the bytes for the beginning of a frame is left waiting for it.
            await socket.send(frame(struct.pack("!H", 1000), CLOSE))
            socket.writer.write_eof()
            code = await socket.closed_with(5)
            assert code not in OURS, code
        if number % 100 == 0:
            await alive(honest)
    tally.tried("SEC-17", "mutated frames", "a connection", rounds)
    await alive(honest)


async def test_a_hundred_of_the_largest_attacks_leave_nothing_behind(city: City, honest: Line, tally: Tally) -> None:
    """Memory: after a first round that warms up, the process is not larger by more than the catalogue allows."""
    worst = [data for data, _ in TOO_MUCH.values() if len(data) > 10_000]
    process = psutil.Process()

    async def volley() -> None:
        await asyncio.gather(*(attacked(city, honest, data) for data in worst for _ in range(3)))
        gc.collect()

    await volley()
    before = process.memory_info().rss
    for _ in range(5):
        await volley()
        tally.tried("SEC-13", "many of the largest at once", "a frame", 3 * len(worst))
    assert process.memory_info().rss - before <= MOST_RSS_BYTES
