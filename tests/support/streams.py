"""Gateways on one bus, and clients that hear them on streams."""

import asyncio
import json
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gateway.server import GatewayServer
from storage.memory_broker import MemoryBroker, MemoryBus
from tests.support.fake_platform import CountingMetrics, FakePlatform
from tests.support.gateways import gateway_over

ALICE = "0190a0a0-0000-7000-8000-00000000000a"
BOB = "0190a0a0-0000-7000-8000-00000000000b"
CHAT = "conversation:0190a0a0-0000-7000-8000-0000000000c1"
JSON = {"content-type": "application/json"}
PAGE = "https://app.example"


class Client:
    """A stream, and what was heard on it."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.session = self.node = ""
        self._lines = response.aiter_lines()

    async def hear(self) -> dict[str, Any]:
        """The next item, pings left out."""
        async with asyncio.timeout(5):
            async for line in self._lines:
                item: dict[str, Any] = json.loads(line.removeprefix("data: ") or "{}")
                if item:
                    return item
        raise EOFError

    async def end(self) -> dict[str, Any]:
        """Why the server ended the stream; nothing comes behind that."""
        while "disconnect" not in (item := await self.hear()).get("push", {}):
            pass
        with pytest.raises(EOFError):
            await self.hear()
        why: dict[str, Any] = item["push"]["disconnect"]
        return why


class House:
    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.platform = FakePlatform(MemoryBroker(bus))
        self.platform.create(CHAT, ALICE, BOB)
        self.metrics = CountingMetrics()
        self.servers: list[GatewayServer] = []
        self.ports: list[int] = []
        self.http = httpx.AsyncClient(timeout=5)
        self._streams: list[Any] = []
        self._clients: list[Client] = []

    async def gateway(self, **settings: Any) -> int:
        options = {"origins": (PAGE,), "name": f"gateway-{len(self.servers)}"} | settings
        server = gateway_over(self.platform, self.metrics, broker=MemoryBroker(self.bus), **options)
        self.servers.append(server)
        self.ports.append(await server.start())
        return self.ports[-1]

    def url(self, path: str, gateway: int = 0) -> str:
        return f"http://127.0.0.1:{self.ports[gateway]}{path}"

    async def stream(self, user: str = ALICE, path: str = "/connection/http_stream", **headers: str) -> Client:
        """An open stream, before anything is heard on it."""
        connect = json.dumps({"id": 1, "connect": {"token": self.platform.token(user, f"sid-{user[-1]}")}})
        opening = self.http.stream("POST", self.url(path), content=connect, headers=JSON | headers)
        response = await opening.__aenter__()
        self._streams.append(opening)
        assert response.status_code == 200
        self._clients.append(Client(response))
        return self._clients[-1]

    async def connected(self, user: str = ALICE, path: str = "/connection/http_stream") -> Client:
        client = await self.stream(user, path)
        told = (await client.hear())["connect"]
        client.session, client.node = told["session"], told["node"]
        return client

    async def post(self, client: Client, *commands: dict[str, Any], gateway: int = 0, **other: str) -> httpx.Response:
        data = "\n".join(json.dumps(command) for command in commands)
        body = {"session": client.session, "node": client.node, "data": data} | other
        return await self.http.post(self.url("/emulation", gateway), json=body)

    async def close(self) -> None:
        for opening in self._streams:
            await opening.__aexit__(None, None, None)
        await self.http.aclose()
        for server in self.servers:
            await server.stop()


Open = Callable[..., Any]


@pytest.fixture
async def open_house() -> AsyncIterator[Open]:
    houses: list[House] = []

    async def build(**settings: Any) -> House:
        house = House(MemoryBus())
        houses.append(house)
        await house.gateway(**settings)
        return house

    yield build
    for house in houses:
        await house.close()


def send(number: int, text: str = "x") -> dict[str, Any]:
    data = {"conversation_id": CHAT[13:], "id": str(uuid.uuid4()), "text": text}
    return {"id": number, "rpc": {"method": "message.send", "data": data}}


async def raw(port: int, data: bytes, timeout_s: float = 5) -> bytes:
    """Everything that is answered until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(timeout_s):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def sse_url(house: House, *commands: dict[str, Any]) -> str:
    return house.url("/connection/sse?cf_connect=" + quote("\n".join(json.dumps(command) for command in commands)))


async def slow_reader(house: House) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A subscribed client that has read nothing so far, and for whom the kernel keeps little."""
    knocking = socket.socket()
    knocking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    knocking.connect(("127.0.0.1", house.ports[0]))
    reader, writer = await asyncio.open_connection(sock=knocking, limit=4_096)
    frames = [
        {"id": 1, "connect": {"token": house.platform.token(ALICE, "sid-a")}},
        {"id": 2, "subscribe": {"channel": CHAT}},
    ]
    body = "\n".join(json.dumps(frame) for frame in frames).encode()
    head = "POST /connection/http_stream HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await asyncio.sleep(0.2)
    return reader, writer
