"""The unmodified npm `centrifuge` client, under Node, against a gateway on a real socket."""

import asyncio
import contextlib
import json
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.server import GatewayServer
from tests.support.fake_platform import FakePlatform
from tests.support.gateways import gateway_over

CLIENTS = Path(__file__).parents[1] / "gateway_clients"
ALICE = "0190a0a0-0000-7000-8000-00000000000a"
BOB = "0190a0a0-0000-7000-8000-00000000000b"
CONVERSATION = "0190a0a0-0000-7000-8000-0000000000c1"
CHAT = f"conversation:{CONVERSATION}"


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with the pinned clients installed beside the puppet."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("Node is not installed")
    if not all((CLIENTS / "node_modules" / name).exists() for name in ("centrifuge", "eventsource", "ws")):
        npm = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(npm, cwd=CLIENTS, check=True, capture_output=True, timeout=100)
    return found


class Puppet:
    """A Node process with any number of clients; `seen` is what they told, in order."""

    emulation = ""
    """Where clients without a WebSocket post their commands."""

    def __init__(self, process: asyncio.subprocess.Process, platform: FakePlatform, url: Any, protobuf: bool) -> None:
        self.platform = platform
        self.seen: list[dict[str, Any]] = []
        self._process = process
        self._url = url
        self._protobuf = protobuf
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            async with self._news:
                self.seen.append(json.loads(line))
                self._news.notify_all()

    def do(self, what: str, client: str = ALICE, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, "client": client, **arguments}).encode() + b"\n")

    def of(self, event: str, client: str = ALICE, **fields: Any) -> list[dict[str, Any]]:
        wanted = {"event": event, "client": client, **fields}
        return [item for item in self.seen if all(item.get(key) == value for key, value in wanted.items())]

    async def until(self, condition: Callable[[], Any], timeout_s: float = 10) -> Any:
        async with asyncio.timeout(timeout_s), self._news:
            await self._news.wait_for(condition)
        return condition()

    async def connect(self, client: str = ALICE, **options: Any) -> None:
        options.setdefault("token", self.platform.token(client, f"sid-{client[-1]}"))
        self.do("open", client, url=self._url, protobuf=self._protobuf, emulation=self.emulation, **options)
        self.do("connect", client)

    async def connected(self, client: str = ALICE, **options: Any) -> None:
        await self.connect(client, **options)
        await self.until(lambda: self.of("connected", client))

    async def subscribed(self, channel: str = CHAT, client: str = ALICE, **options: Any) -> dict[str, Any]:
        self.do("subscribe", client, channel=channel, **options)
        answers = await self.until(lambda: self.of("subscribed", client, channel=channel))
        answer: dict[str, Any] = answers[-1]
        return answer

    async def call(self, method: str, *arguments: Any, client: str = ALICE) -> dict[str, Any]:
        tag = str(uuid.uuid4())
        self.do("call", client, call=method, args=arguments, tag=tag)
        (answer,) = await self.until(lambda: self.of("result", client, tag=tag))
        return {key: answer[key] for key in ("result", "error") if key in answer}

    def offsets(self, client: str = ALICE) -> list[int]:
        return [item["offset"] for item in self.of("publication", client)]

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 5)
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self._reader


class House:
    def __init__(self, puppet: Puppet, platform: FakePlatform, server: GatewayServer) -> None:
        self.puppet, self.platform, self.server = puppet, platform, server


@pytest.fixture(params=["json", "protobuf"])
async def open_house(node: str, request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    houses: list[House] = []

    async def build(**settings: Any) -> tuple[Puppet, FakePlatform, GatewayServer]:
        p = FakePlatform()
        p.create(CHAT, ALICE, BOB)
        server = gateway_over(p, **settings)
        port = await server.start()
        process = await asyncio.create_subprocess_exec(
            node,
            str(CLIENTS / "client.mjs"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**20,
        )
        puppet = Puppet(process, p, f"ws://127.0.0.1:{port}/connection/websocket", request.param == "protobuf")
        houses.append(House(puppet, p, server))
        await puppet.until(lambda: puppet.seen)
        return puppet, p, server

    yield build
    for house in houses:
        await house.puppet.end()
        await house.server.stop()


Open = Callable[..., Any]


async def test_it_connects_and_hears_its_hints(open_house: Open) -> None:
    puppet, platform, _ = await open_house()
    await puppet.connected()
    await puppet.until(lambda: puppet.of("server_subscribed", channel=f"user:{ALICE}"))
    await platform.hint(ALICE, {"type": "offer"})
    (hint,) = await puppet.until(lambda: puppet.of("hint"))
    assert (hint["data"], hint.get("offset")) == ({"type": "offer"}, None)


async def test_a_bad_token_ends_it_for_good(open_house: Open) -> None:
    puppet, _, _ = await open_house()
    await puppet.connect(token="rubbish")
    (end,) = await puppet.until(lambda: puppet.of("disconnected"))
    assert (end["code"], end["reason"]) == (3500, "invalid token")


async def test_it_replaces_an_expired_token_and_refreshes_before_the_end(open_house: Open) -> None:
    puppet, platform, _ = await open_house(expiry_grace_s=0.5)
    await puppet.connect(token=platform.token(ALICE, "sid-a", -5), asks_for_tokens=True)
    for times in (1, 2, 3):
        await puppet.until(lambda times=times: len(puppet.of("get_token")) == times)
        puppet.do("token", token=platform.token(ALICE, "sid-a", 1.2))
    await asyncio.sleep(1)
    assert puppet.of("error")[0]["error"]["code"] == 109
    assert len(puppet.of("connected")) == 1
    assert not puppet.of("disconnected")


async def test_a_connection_that_is_not_refreshed_in_time_expires_and_comes_back(open_house: Open) -> None:
    puppet, platform, _ = await open_house(expiry_grace_s=0.1)
    await puppet.connected(token=platform.token(ALICE, "sid-a", 1.1), asks_for_tokens=True)
    await puppet.until(lambda: puppet.of("get_token"))
    await puppet.until(lambda: puppet.of("connecting", code=3005))
    await puppet.until(lambda: len(puppet.of("get_token")) == 2)
    puppet.do("token", token=platform.token(ALICE, "sid-a"))
    await puppet.until(lambda: len(puppet.of("connected")) == 2)


async def test_it_subscribes_hears_events_and_is_told_what_it_may_not(open_house: Open) -> None:
    puppet, platform, _ = await open_house()
    await platform.post(CHAT, {"type": "message.posted"})
    await puppet.connect()
    answer = await puppet.subscribed()
    assert (answer["positioned"], answer["recoverable"], answer["recovered"]) == (True, True, False)
    assert answer["position"] == {"offset": 1, "epoch": "e1"}
    await platform.post(CHAT, {"type": "message.posted", "text": "你好"})
    await platform.ephemeral(CHAT, {"type": "typing", "by": BOB, "on": True})
    first, second = await puppet.until(lambda: puppet.of("publication")[1:] and puppet.of("publication"))
    assert (first["offset"], first["data"]["text"]) == (2, "你好")
    assert (second.get("offset"), second["data"]["type"]) == (None, "typing")
    puppet.do("subscribe", channel=f"conversation:{uuid.uuid4()}")
    (end,) = await puppet.until(lambda: puppet.of("unsubscribed"))
    assert (end["code"], end["reason"]) == (103, "permission denied")


async def test_rpc_send_and_history_work(open_house: Open) -> None:
    puppet, platform, _ = await open_house()
    await puppet.connected()
    data = {"conversation_id": CONVERSATION, "id": str(uuid.uuid4()), "text": "hello"}
    first = await puppet.call("rpc", "message.send", data)
    again = await puppet.call("rpc", "message.send", data)
    assert first["result"]["data"] | {"replayed": True} == again["result"]["data"]
    refused = await puppet.call("rpc", "message.send", data | {"conversation_id": str(uuid.uuid4())})
    assert refused["error"] == {"code": 404, "message": "not_found", "temporary": False}
    assert (await puppet.call("rpc", "no.such", {}))["error"]["code"] == 104
    await puppet.call("send", {"type": "typing", "conversation_id": CONVERSATION, "on": True})
    await puppet.call("send", {"type": "nonsense"})
    await puppet.subscribed()
    await platform.post(CHAT, *({"n": n} for n in range(5)))
    page = (await puppet.call("history", CHAT, {"limit": 2, "since": {"offset": 2, "epoch": "e1"}}))["result"]
    assert (page["publications"], page["offset"], page["epoch"]) == ([3, 4], 6, "e1")
    newest = (await puppet.call("history", CHAT, {"limit": 3, "reverse": True}))["result"]
    assert newest["publications"] == [6, 5, 4]
    (signal,) = platform.signals
    assert (signal.stream, signal.name, signal.payload) == (CHAT, "typing", b'{"on":true}')
    assert (await puppet.call("presence", CHAT))["error"]["code"] == 108
    assert (await puppet.call("publish", CHAT, {}))["error"]["code"] == 103


async def test_ten_thousand_missed_events_come_back_once_and_in_order(open_house: Open) -> None:
    puppet, platform, _ = await open_house()
    await puppet.connected()
    await puppet.subscribed()
    await platform.post(CHAT, {"n": 0})
    await puppet.until(lambda: puppet.offsets() == [1])
    puppet.do("disconnect")
    await puppet.until(lambda: puppet.of("disconnected"))
    await platform.post(CHAT, *({"type": "message.posted", "text": f"{n:0100d}"} for n in range(10_000)))
    puppet.do("connect")
    for n in range(100):
        await platform.post(CHAT, {"type": "message.posted", "text": f"new {n}"})
        await asyncio.sleep(0.001)
    await puppet.until(lambda: len(puppet.offsets()) >= 10_101, 30)
    await asyncio.sleep(0.1)
    assert puppet.offsets() == list(range(1, 10_102))
    answer = puppet.of("subscribed")[1]
    assert (answer["recovered"], answer["was_recovering"], answer["position"]["offset"]) == (True, True, 1)


async def test_it_recovers_from_a_position_of_its_own(open_house: Open) -> None:
    puppet, platform, _ = await open_house()
    await platform.post(CHAT, *({"n": n} for n in range(5)))
    await puppet.connected()
    answer = await puppet.subscribed(since={"offset": 3, "epoch": "e1"})
    assert (answer["recovered"], answer["position"]["offset"]) == (True, 3)
    await puppet.until(lambda: puppet.offsets() == [4, 5])
    await puppet.connected(BOB)
    answer = await puppet.subscribed(client=BOB, since={"offset": 3, "epoch": "wrong"})
    assert (answer["recovered"], answer["was_recovering"], answer["position"]["offset"]) == (False, True, 5)


async def test_who_left_is_unsubscribed(open_house: Open) -> None:
    puppet, platform, _ = await open_house()
    await puppet.connected(BOB)
    await puppet.subscribed(client=BOB)
    await platform.leave(CHAT, BOB)
    await platform.post(CHAT, {"type": "message.posted", "text": "about Bob"})
    (end,) = await puppet.until(lambda: puppet.of("unsubscribed", BOB))
    assert end["code"] == 103
    assert puppet.of("subscribing", BOB)[-1]["code"] == 2510
    assert puppet.offsets(BOB) == [1]


async def test_unsubscribing_ends_it(open_house: Open) -> None:
    puppet, platform, _ = await open_house()
    await puppet.connected()
    await puppet.subscribed()
    puppet.do("unsubscribe", channel=CHAT)
    await puppet.until(lambda: puppet.of("unsubscribed"))
    await asyncio.sleep(0.05)
    await platform.post(CHAT, {"n": 1})
    await asyncio.sleep(0.05)
    assert puppet.offsets() == []


async def test_disconnect_codes_say_whether_to_come_back(open_house: Open) -> None:
    puppet, platform, server = await open_house(drain_s=0.05)
    await puppet.connected()
    await puppet.connected(BOB)
    await platform.revoke("sid-a")
    (end,) = await puppet.until(lambda: puppet.of("disconnected"), 2)
    assert (end["code"], end["reason"]) == (4500, "session_revoked")
    await server.drain()
    (away,) = await puppet.until(lambda: puppet.of("connecting", BOB, code=4001))
    assert away["reason"] == "draining"
    assert not puppet.of("disconnected", BOB)


async def test_pings_keep_it(open_house: Open) -> None:
    puppet, _, _ = await open_house(ping_interval_s=0.2, pong_timeout_s=0.15)
    await puppet.connected()
    await asyncio.sleep(0.8)
    assert len(puppet.of("connected")) == 1
    assert len(puppet.of("connecting")) == 1
