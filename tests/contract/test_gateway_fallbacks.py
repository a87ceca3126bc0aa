"""The official JavaScript client where WebSockets do not get through: the whole suite again, over streams."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest

from gateway.server import GatewayServer
from storage.memory_broker import MemoryBroker, MemoryBus
from tests.contract import test_gateway_js_sdk as over_websockets
from tests.contract.test_gateway_js_sdk import ALICE, BOB, CHAT, CLIENTS, Puppet, node
from tests.support.fake_platform import FakePlatform
from tests.support.gateways import gateway_over

__all__ = ["node"]

globals().update({name: test for name, test in vars(over_websockets).items() if name.startswith("test_")})


class Way(NamedTuple):
    """Over which transport, in which encoding, and whether commands come by a second gateway."""

    transport: str
    protobuf: bool
    by_another: bool


WAYS = {
    "sse": Way("sse", False, False),
    "http_stream": Way("http_stream", False, False),
    "http_stream_protobuf": Way("http_stream", True, False),
    "sse_by_another_gateway": Way("sse", False, True),
    "http_stream_by_another_gateway": Way("http_stream", False, True),
    "http_stream_protobuf_by_another_gateway": Way("http_stream", True, True),
}


class StreamPuppet(Puppet):
    """Over event streams tokens are tickets; a client of which the test expects nothing else gets a new one when it asks."""

    def __init__(self, way: Way, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sse = way.transport == "sse"
        self._mine: dict[str, str] = {}
        self._given = 0
        self._giving = asyncio.create_task(self._give())

    def do(self, what: str, client: str = ALICE, **arguments: Any) -> None:
        if self._sse and arguments.get("token"):
            if what == "open" and not arguments.get("asks_for_tokens"):
                self._mine[client] = arguments["token"]
                arguments["asks_for_tokens"] = True
            arguments["token"] = self.platform.ticket(arguments["token"])
        super().do(what, client, **arguments)

    async def _give(self) -> None:
        while True:
            asked = await self.until(lambda: self._asked()[self._given :], timeout_s=3600)
            self._given += len(asked)
            for item in asked:
                self.do("token", item["client"], token=self._mine[item["client"]])

    def _asked(self) -> list[dict[str, Any]]:
        return [item for item in self.seen if item.get("event") == "get_token" and item["client"] in self._mine]

    async def end(self) -> None:
        self._giving.cancel()
        await asyncio.gather(self._giving, return_exceptions=True)
        await super().end()


class House:
    def __init__(self, platform: FakePlatform, bus: MemoryBus) -> None:
        self.platform = platform
        self.bus = bus
        self.servers: list[GatewayServer] = []
        self.puppets: list[StreamPuppet] = []

    async def gateway(self, **settings: Any) -> tuple[GatewayServer, int]:
        options = {"name": f"gateway-{uuid.uuid4()}"} | settings
        server = gateway_over(self.platform, broker=MemoryBroker(self.bus), **options)
        self.servers.append(server)
        return server, await server.start()

    async def puppet(self, node: str, way: Way, port: int, emulation_port: int) -> StreamPuppet:
        process = await asyncio.create_subprocess_exec(
            node,
            str(CLIENTS / "client.mjs"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**20,
        )
        url = [{"transport": way.transport, "endpoint": f"http://127.0.0.1:{port}/connection/{way.transport}"}]
        puppet = StreamPuppet(way, process, self.platform, url, way.protobuf)
        puppet.emulation = f"http://127.0.0.1:{emulation_port}/emulation"
        self.puppets.append(puppet)
        await puppet.until(lambda: puppet.seen)
        return puppet


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@pytest.fixture
async def open_house(node: str, way: Way) -> AsyncIterator[Callable[..., Any]]:
    houses: list[House] = []

    async def build(**settings: Any) -> tuple[StreamPuppet, FakePlatform, GatewayServer]:
        bus = MemoryBus()
        platform = FakePlatform(MemoryBroker(bus))
        platform.create(CHAT, ALICE, BOB)
        house = House(platform, bus)
        houses.append(house)
        server, port = await house.gateway(**settings)
        emulation_port = (await house.gateway())[1] if way.by_another else port
        return await house.puppet(node, way, port, emulation_port), platform, server

    yield build
    for house in houses:
        for puppet in house.puppets:
            await puppet.end()
        for server in house.servers:
            await server.stop()


Open = Callable[..., Any]


async def test_a_stream_that_is_cut_comes_back_and_misses_nothing(open_house: Open) -> None:
    puppet, platform, server = await open_house()
    await puppet.connected()
    await puppet.subscribed()
    await platform.post(CHAT, {"n": 0})
    await puppet.until(lambda: puppet.offsets() == [1])
    for times in range(1, 4):
        for connection in list(server._http._state.connections):
            connection.transport.abort()
        await platform.post(CHAT, {"n": times})
        await puppet.until(lambda times=times: len(puppet.offsets()) == times + 1)
    assert puppet.offsets() == [1, 2, 3, 4]
    assert not puppet.of("disconnected")
    assert all(answer["recovered"] for answer in puppet.of("subscribed")[1:])


async def test_a_refresh_is_posted_and_takes_either_kind_of_token(open_house: Open) -> None:
    puppet, platform, _ = await open_house(expiry_grace_s=0.5)
    token = platform.token(ALICE, "sid-a", 1.2)
    puppet.do(
        "open",
        url=puppet._url,
        protobuf=puppet._protobuf,
        emulation=puppet.emulation,
        token=token,
        asks_for_tokens=True,
    )
    puppet.do("connect")
    await puppet.until(lambda: puppet.of("connected"))
    for times, ticket in ((1, False), (2, True), (3, False)):
        await puppet.until(lambda times=times: len(puppet.of("get_token")) == times)
        fresh = platform.token(ALICE, "sid-a", 1.2)
        # Past the puppet, which would make a ticket of every token over an event stream.
        Puppet.do(puppet, "token", token=platform.ticket(fresh) if ticket else fresh)
    await puppet.until(lambda: len(puppet.of("get_token")) == 4)
    assert len(puppet.of("connected")) == 1
    assert not puppet.of("error")


async def test_a_gateway_that_is_gone_is_noticed_at_the_next_command(open_house: Open, way: Way) -> None:
    """The stream still looks alive, as behind a proxy; the gateway that is asked knows that its node is not there."""
    if not way.by_another:
        pytest.skip("there is no other gateway to be asked")
    puppet, _, server = await open_house()
    await puppet.connected()
    await server._emulation.stop()
    call = asyncio.create_task(puppet.call("rpc", "sync", {}))
    await puppet.until(lambda: puppet.of("connecting")[1:])
    assert "error" in await call
    assert not puppet.of("disconnected")


async def test_a_ticket_of_somebody_else_does_not_prolong_a_session(open_house: Open) -> None:
    puppet, platform, _ = await open_house(expiry_grace_s=0.5)
    await puppet.connect(token=platform.token(ALICE, "sid-a", 1.2), asks_for_tokens=True)
    await puppet.until(lambda: puppet.of("get_token"))
    puppet.do("token", token=platform.ticket(platform.token(BOB, "sid-b")))
    (end,) = await puppet.until(lambda: puppet.of("disconnected"))
    assert end["code"] == 3500
