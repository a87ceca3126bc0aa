"""What one client does, or leaves behind, holds nobody else up."""

import asyncio
import gc
import json
import logging
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest

from gateway.connection import Connection
from tests.unit.gateway.conftest import CHAT, House, Open

COMMANDS = 1_000
PER_TURN = 300
"""Two turns of the one: the loop may begin one before and one after those who wait."""


@pytest.fixture
def uncollected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.CRITICAL, "websockets")  # records that pytest keeps name their connections
    gc.collect()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


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
    await asyncio.sleep(0.1)


@pytest.mark.usefixtures("uncollected")
async def test_connections_that_have_ended_are_freed_without_the_garbage_collector(open_house: Open) -> None:
    """It would stop everybody: 280 ms for twenty seconds of an attacker's connections, before this was so."""
    house = await open_house(linger_s=0.05)
    for channel in (CHAT, f"conversation:{uuid.uuid4()}"):
        for _ in range(10):
            await subscribed(house, channel)
    for _ in range(10):
        client = await house.connected()
        await client.send("nonsense")
        await house.closed_with(client)
        (await house.connected()).transport.close()
    del client
    await gone(house)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    kinds = Counter(f"{type(left).__module__}.{type(left).__qualname__}" for left in gc.garbage)
    ours = {kind: number for kind, number in kinds.items() if kind.startswith(("gateway.", "websockets.server"))}
    assert ours == {}


async def test_what_nobody_may_see_does_not_linger_and_what_was_seen_does(open_house: Open) -> None:
    house = await open_house(linger_s=60)
    await subscribed(house, CHAT)
    for _ in range(20):
        await subscribed(house, f"conversation:{uuid.uuid4()}")
    await gone(house)
    assert [channel.name for channel in house.server._board.hub.channels] == [CHAT]


async def test_a_flood_is_looked_at_in_turns(open_house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    house = await open_house()
    turn, at = 0, Counter[int]()
    received = Connection.received

    def counted(connection: Connection, frame: bytes) -> None:
        at[turn] += 1
        received(connection, frame)

    async def turning() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    monkeypatch.setattr(Connection, "received", counted)
    client = await house.connected()
    ticking = asyncio.create_task(turning())
    for number in range(2, COMMANDS + 2):
        client.protocol.send_text(
            json.dumps({"id": number, "rpc": {"method": "nothing", "data": {"a": "b" * 50}}}).encode()
        )
    client.transport.write(b"".join(client.protocol.data_to_send()))
    async with asyncio.timeout(10):
        while at.total() < COMMANDS:
            await asyncio.sleep(0.001)
    ticking.cancel()
    assert max(at.values()) <= PER_TURN
    await client.close()
