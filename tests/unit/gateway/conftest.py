"""These tests run on both event loops: `uvloop`, as the platform does, and asyncio's own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.server import GatewayServer
from tests.support.fake_platform import CountingMetrics, FakePlatform
from tests.support.gateways import gateway_over


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


ALICE = "0190a0a0-0000-7000-8000-00000000000a"
CHAT = "conversation:0190a0a0-0000-7000-8000-0000000000c1"
PATH = "/connection/websocket"


class House:
    def __init__(self, platform: FakePlatform, server: GatewayServer, metrics: CountingMetrics, port: int) -> None:
        self.platform, self.server, self.metrics, self.port = platform, server, metrics, port

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}{PATH}"

    async def open(self, **options: Any) -> ClientConnection:
        return await connect(self.url, ping_interval=None, **options)

    async def connected(self, **options: Any) -> ClientConnection:
        client = await self.open(**options)
        await client.send(json.dumps({"id": 1, "connect": {"token": self.platform.token(ALICE, "sid")}}))
        assert "connect" in json.loads(await client.recv())
        return client

    async def closed_with(self, client: ClientConnection) -> int:
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(10):
                while True:
                    await client.recv()
        assert client.close_code is not None
        return client.close_code


Open = Callable[..., Any]


async def opened(**settings: Any) -> House:
    """A gateway on a port of its own; stop its `server`."""
    p = FakePlatform()
    p.create(CHAT, ALICE)
    metrics = CountingMetrics()
    server = gateway_over(p, metrics, **settings)
    return House(p, server, metrics, await server.start())


@pytest.fixture
async def open_house() -> AsyncIterator[Open]:
    houses: list[House] = []

    async def build(**settings: Any) -> House:
        houses.append(await opened(**settings))
        return houses[-1]

    yield build
    for house in houses:
        await house.server.stop()
