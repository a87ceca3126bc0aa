"""What one client does, or leaves behind, holds nobody else up."""

import asyncio
import gc
import json
import subprocess
import sys
import time
import uuid
from collections import Counter

import pytest

from gateway.connection import Connection
from gateway.server import WebSocketTransport
from tests.unit.gateway.conftest import CHAT, PATH, House, Open, opened

COMMANDS = 1_000
FLOODING = 4
PER_TURN = 300
"""Of all of them together. Two shares: the loop may begin one before and one after what is counted as a turn."""


OURS = {
    "gateway.connection.Connection",
    "gateway.hub.HubChannel",
    "gateway.server.WebSocketTransport",
    "gateway.session.Session",
    "websockets.server.ServerProtocol",
}


async def subscribed(house: House, channel: str) -> None:
    """Somebody connects, asks for the channel, and leaves."""
    client = await house.connected()
    await client.send(json.dumps({"id": 2, "subscribe": {"channel": channel}}))
    assert json.loads(await client.recv())["id"] == 2
    await client.close()


async def gone(house: House) -> None:
    async with asyncio.timeout(5):
        while house.server._board.peers:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)


async def leavings() -> int:
    """What connections of several kinds leave of ours, none of it looked for by the collector."""
    house = await opened(linger_s=0.05)
    for channel in (CHAT, f"conversation:{uuid.uuid4()}"):
        for _ in range(10):
            await subscribed(house, channel)
    for _ in range(10):
        client = await house.connected()
        await client.send("nonsense")
        await house.closed_with(client)
        (await house.connected()).transport.close()
    await gone(house)
    kept = Counter(f"{type(thing).__module__}.{type(thing).__name__}" for thing in gc.get_objects())
    await house.server.stop()
    return sum(kept[name] for name in OURS)


@pytest.mark.parametrize("run", ["asyncio.run", "uvloop.run"])
def test_connections_that_have_ended_are_freed_without_the_garbage_collector(run: str) -> None:
    """It would stop everybody: 280 ms for twenty seconds of an attacker's connections, before this was so.

    In a process of its own, where no test runner keeps what it has seen.
    """
    script = f"""
import asyncio, gc, uvloop
from tests.unit.gateway.test_gateway_crowding import leavings
gc.disable()
print({run}(leavings()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"


async def test_what_nobody_may_see_does_not_linger_and_what_was_seen_does(open_house: Open) -> None:
    house = await open_house(linger_s=60)
    await subscribed(house, CHAT)
    for _ in range(20):
        await subscribed(house, f"conversation:{uuid.uuid4()}")
    await gone(house)
    assert [channel.name for channel in house.server._board.hub.channels] == [CHAT]


class Flood:
    """Commands that come all at once, and in which turns of the event loop they are looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, busy_s: float = 0.0) -> None:
        """`busy_s`: how long something else takes in each turn."""
        self.turn, self.at, self.poured_s, self.looked_s = 0, Counter[int](), 0.0, 0.0
        self._busy_s = busy_s
        received = Connection.received

        def counted(connection: Connection, frame: bytes) -> None:
            self.at[self.turn] += 1
            received(connection, frame)

        monkeypatch.setattr(Connection, "received", counted)

    async def pour(self, house: House, clients: int) -> None:
        """Return when everything has been looked at."""
        flooding = [await house.connected() for _ in range(clients)]
        ticking = asyncio.create_task(self._turn())
        self.at.clear()
        for client in flooding:
            for number in range(2, COMMANDS + 2):
                command = {"id": number, "rpc": {"method": "nothing", "data": {"a": "b" * 50}}}
                client.protocol.send_text(json.dumps(command).encode())
            client.transport.write(b"".join(client.protocol.data_to_send()))
        self.poured_s = time.perf_counter()
        async with asyncio.timeout(10):
            while self.at.total() < COMMANDS * clients:
                await asyncio.sleep(0.001)
        self.looked_s = time.perf_counter()
        ticking.cancel()
        for client in flooding:
            client.transport.abort()  # a goodbye would wait behind all the answers that nobody reads
            await client.wait_closed()

    async def _turn(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.turn += 1
            if self._busy_s:
                time.sleep(self._busy_s)


async def test_a_flood_is_looked_at_in_turns(open_house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    flood = Flood(monkeypatch)
    await flood.pour(await open_house(), FLOODING)
    assert max(flood.at.values()) <= PER_TURN


async def test_a_flood_is_put_off_while_there_is_much_else_to_do(
    open_house: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets a fifth of the time: a quarter of what everything else takes."""
    flood = Flood(monkeypatch, busy_s=0.001)
    took_s = 0.0
    take_turn = WebSocketTransport.take_turn

    def timed(socket: WebSocketTransport) -> None:
        nonlocal took_s
        began_s = time.perf_counter()
        take_turn(socket)
        took_s += time.perf_counter() - began_s

    monkeypatch.setattr(WebSocketTransport, "take_turn", timed)
    house = await open_house()
    await flood.pour(house, 1)
    assert 0 < took_s < 0.4 * (flood.looked_s - flood.poured_s)


async def test_half_a_request_for_a_websocket_is_none_of_the_librarys(open_house: Open) -> None:
    """It would hold 16 KiB for each of those who send their headers a byte at a time."""
    house = await open_house()
    head = (
        f"GET {PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(head.encode())
    await asyncio.sleep(0.1)
    assert house.server._door.inside == 1
    assert not [thing for thing in gc.get_objects() if type(thing) is WebSocketTransport]
    writer.write(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 101")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\n\n", b"NONSENSE\r\n", b"GET /" + b"a" * 20_000])
async def test_what_can_never_be_a_request_is_refused_without_waiting_for_more(open_house: Open, said: bytes) -> None:
    house = await open_house(open_timeout_s=30)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(said)
    async with asyncio.timeout(5):
        assert not (await reader.read()).startswith(b"HTTP/1.1 101")
    writer.close()
    await writer.wait_closed()
