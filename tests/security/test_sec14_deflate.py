"""SEC-14: compressed frames are refused where compression is off; where it is on, the limit is that of what they inflate to."""

import asyncio
import json
import uuid
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, Final

import psutil
import pytest

from tests.security.tally import Tally
from tests.security.wires import BINARY, CONT, PING, RawSocket, frame
from tests.support.fake_platform import FakePlatform
from tests.support.gateways import gateway_over

LIMIT: Final = 65_536
RSV1: Final = 0b100
OFFERS: Final = (
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; server_max_window_bits=8; client_max_window_bits=8",
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    "permessage-deflate, permessage-deflate; client_max_window_bits",
    "PerMessage-Deflate",
    "x-webkit-deflate-frame",
    "deflate-frame, permessage-bzip2, permessage-zstd",
    "bbf-usp-protocol",
)
MOST_RSS_BYTES: Final = 32 * 1_048_576


@asynccontextmanager
async def gateway(compression: bool) -> AsyncIterator[int]:
    server = gateway_over(FakePlatform(), compression=compression)
    port = await server.start()
    try:
        yield port
    finally:
        await server.stop()


def deflated(data: bytes, level: int = 9) -> bytes:
    """A message as RFC 7692 has it: without the four bytes that every flush ends with."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def offering(port: int, offer: str = OFFERS[1]) -> RawSocket:
    return RawSocket(port, headers=f"Sec-WebSocket-Extensions: {offer}\r\n")


TOKEN: Final = f"{uuid.UUID(int=1)}/{uuid.UUID(int=2)}/99999999999999"
"""As the fake platform takes it."""
HELLO: Final = json.dumps({"id": 1, "connect": {"token": TOKEN}}).encode()


def said(payload: bytes) -> Any:
    """The answer in a frame, which may be compressed in its turn."""
    plain = payload if payload[:1] == b"{" else zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")
    return json.loads(plain)


@pytest.mark.parametrize("offer", OFFERS)
async def test_no_offer_of_compression_is_taken_up_unless_it_is_switched_on(tally: Tally, offer: str) -> None:
    async with gateway(compression=False) as port, offering(port, offer) as socket:
        tally.tried("SEC-14", "an offer of compression", "the handshake")
        assert b"extensions" not in socket.answer.lower(), socket.answer
        await socket.send(frame(deflated(HELLO), reserved=RSV1))
        assert await socket.closed_with() == 1002


COMPRESSED: Final[dict[str, bytes]] = {
    "a text": frame(deflated(HELLO), reserved=RSV1),
    "a binary": frame(deflated(HELLO), BINARY, reserved=RSV1),
    "a bomb": frame(deflated(b" " * (64 << 20)), reserved=RSV1),
    "the first of two fragments": frame(deflated(HELLO)[:5], reserved=RSV1, fin=False),
    "a continuation": frame(HELLO[:5], fin=False) + frame(deflated(HELLO), CONT, reserved=RSV1),
    "a ping": frame(b"x", PING, reserved=RSV1),
    "nothing": frame(b"", reserved=RSV1),
}


@pytest.mark.parametrize("what", COMPRESSED)
async def test_a_compressed_frame_that_nobody_agreed_on_is_a_protocol_error(tally: Tally, what: str) -> None:
    async with gateway(compression=False) as port, RawSocket(port) as socket:
        await socket.send(COMPRESSED[what])
        tally.tried("SEC-14", "a compressed frame without an agreement", what)
        assert await socket.closed_with() == 1002


@pytest.mark.parametrize("what", ["a continuation", "a ping"])
async def test_nor_does_an_agreement_allow_it_where_the_rfc_does_not(tally: Tally, what: str) -> None:
    async with gateway(compression=True) as port, offering(port) as socket:
        assert b"permessage-deflate" in socket.answer
        await socket.send(COMPRESSED[what])
        tally.tried("SEC-14", "a compressed frame where the RFC allows none", what)
        assert await socket.closed_with() == 1002


def padded(size: int) -> bytes:
    """A command of exactly so many bytes, which is answered."""
    return HELLO + b" " * (size - len(HELLO))


@pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "plain"])
@pytest.mark.parametrize("cuts", [1, 2, 3])
@pytest.mark.parametrize("over", [-2, -1, 0, 1, 2])
async def test_the_limit_is_exact_for_what_a_message_inflates_to(
    tally: Tally, over: int, cuts: int, compressed: bool
) -> None:
    """Neither cut short (websockets 1715) nor let through by a byte or two, in one frame or in several."""
    data = padded(LIMIT + over)
    sent, bits = (deflated(data), RSV1) if compressed else (data, 0)
    edges = [len(sent) * at // cuts for at in range(cuts + 1)]
    parts = [sent[a:b] for a, b in pairwise(edges)]
    async with gateway(compression=True) as port, offering(port) as socket:
        for at, part in enumerate(parts):
            last = at == cuts - 1
            await socket.send(frame(part, CONT if at else 1, reserved=0 if at else bits, fin=last))
        if over > 0:
            tally.tried(
                "SEC-14", "a byte or two beyond the limit", f"{'compressed' if compressed else 'plain'}, {cuts}"
            )
            assert await socket.closed_with() == 1009
        else:
            assert "connect" in said((await socket.read())[1])


BOMBS: Final[dict[str, bytes]] = {
    "blanks 1:1000": deflated(b" " * (16 << 20)),
    "brackets": deflated(b"[" * (16 << 20)),
    "a whole command and then blanks": deflated(padded(16 << 20)),
    "just beyond the limit, many times": deflated(b"".join(padded(LIMIT) for _ in range(64))),
    "stored blocks": deflated(b" " * (1 << 20), 0),
}


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("what", BOMBS)
async def test_a_bomb_is_not_inflated_beyond_the_limit(tally: Tally, what: str, pieces: int) -> None:
    process, bomb = psutil.Process(), BOMBS[what]
    async with gateway(compression=True) as port:
        before = process.memory_info().rss
        for _ in range(10):
            async with offering(port) as socket:
                size = len(bomb) // pieces + 1
                parts = [bomb[at : at + size] for at in range(0, len(bomb), size)]
                for at, part in enumerate(parts):
                    last = at == len(parts) - 1
                    await socket.send(frame(part, CONT if at else 1, reserved=0 if at else RSV1, fin=last))
                tally.tried("SEC-14", f"a bomb: {what}", f"in {pieces} frames")
                assert await socket.closed_with() == 1009
        grown = process.memory_info().rss - before
    assert grown <= MOST_RSS_BYTES


@pytest.mark.parametrize("what", ["noise", "a block of the reserved type", "a distance too far back"])
async def test_what_does_not_inflate_ends_its_own_connection(tally: Tally, what: str) -> None:
    data = {
        "noise": b"\xff" * 100,
        "a block of the reserved type": b"\x07\x00",
        "a distance too far back": b"\x4b\x04\x82",
    }
    async with gateway(compression=True) as port, offering(port) as socket:
        await socket.send(frame(data[what], reserved=RSV1))
        tally.tried("SEC-14", "what does not inflate", what)
        assert await socket.closed_with() in {1002, 1007, 3501}
        await asyncio.sleep(0)
