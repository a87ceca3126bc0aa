"""Slow and silent clients on real sockets: what the system says of them, and who is kept."""

import asyncio
import socket

import pytest

from gateway.progress import NOTHING, taken
from tests.support.streams import CHAT, Open, open_house, slow_reader

__all__ = ["open_house"]

BUFFER_BYTES = 4_096
TEXT = "x" * 8_000


async def connected_pair() -> tuple[asyncio.Server, asyncio.StreamWriter, socket.socket]:
    """A server's side of a connection, and a client that reads by hand and has little room."""
    arrived: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: arrived.put_nowait(writer), "127.0.0.1", 0)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, server.sockets[0].getsockname())
    return server, await arrived.get(), client


async def test_what_a_client_has_taken_and_whether_more_waits() -> None:
    server, writer, client = await connected_pair()
    loop = asyncio.get_running_loop()
    assert taken(writer.transport) == (0, False)
    writer.write(b"x" * 1_000_000)
    await asyncio.sleep(0.1)
    first = taken(writer.transport)
    assert first.waiting
    assert taken(writer.transport) == first, "nobody reads"
    left = 1_000_000
    while left > 500_000:
        left -= len(await loop.sock_recv(client, 65_536))
    await asyncio.sleep(0.05)
    second = taken(writer.transport)
    assert second.waiting
    assert 500_000 < second.bytes < 1_000_000
    while left:
        left -= len(await loop.sock_recv(client, 65_536))
    await asyncio.sleep(0.1)
    assert taken(writer.transport) == (1_000_000, False)
    writer.transport.abort()
    client.close()
    await asyncio.sleep(0.01)
    assert taken(writer.transport) == NOTHING
    server.close()


@pytest.mark.parametrize(("sip_bytes", "stays"), [(4_096, True), (0, False)])
async def test_who_reads_slowly_is_kept_and_who_reads_nothing_is_not(
    open_house: Open, sip_bytes: int, stays: bool
) -> None:
    """Neither of them answers a ping: for the one it is still on its way, behind two megabytes."""
    house = await open_house(ping_interval_s=0.3, pong_timeout_s=0.7)
    reader, writer = await slow_reader(house)
    for _ in range(6):
        await house.platform.post(CHAT, *({"text": TEXT} for _ in range(50)))
    peers = house.servers[0]._board.peers
    for _ in range(100):
        if not peers:
            break
        if sip_bytes:
            await reader.read(sip_bytes)
        await asyncio.sleep(0.02)
    assert bool(peers) is stays
    writer.transport.abort()
