"""Who is there, as the unmodified official clients see it: two gateways, a real Valkey and a real NATS."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from centrifuge import Client, ReplyError

from gateway.presence import PresenceSettings
from storage.broker import NatsBroker
from storage.cache import RedisServer
from storage.presence import RedisPresence
from tests.contract.test_gateway_js_sdk import CLIENTS, Puppet, node
from tests.contract.test_gateway_python_sdk import ALICE, BOB, CHAT, JOB, Recorder, until
from tests.support.fake_platform import FakePlatform
from tests.support.gateways import gateway_over
from tests.support.servers import Nats, Valkey

__all__ = ["node"]
EVE = "0190a0a0-0000-7000-8000-00000000000e"
SOON = PresenceSettings(flush_s=0.05, hold_s=0.4, retry_s=0.1)


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture(scope="module")
def nats() -> Iterator[Nats]:
    with Nats() as server:
        yield server


class Gateway:
    """A gateway with connections of its own, as if it were a process."""

    def __init__(self, platform: FakePlatform, nats: Nats, valkey: Valkey, namespace: str, name: str) -> None:
        self.platform = platform
        self.broker = NatsBroker(nats.url, namespace, name)
        self.redis = RedisServer(valkey.url, namespace)
        self.server = gateway_over(
            platform, broker=self.broker, presence_store=RedisPresence(self.redis), name=name, presence=SOON
        )
        self.url = ""
        self.stopped = False

    async def start(self) -> "Gateway":
        await self.broker.start()
        port = await self.server.start()
        self.url = f"ws://127.0.0.1:{port}/connection/websocket"
        return self

    async def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            await self.server.stop()
            await self.redis.close()
            await self.broker.close()


class City:
    """Two gateways, and the clients that a test opens on them."""

    def __init__(self, a: Gateway, b: Gateway) -> None:
        self.a, self.b = a, b
        self.platform = a.platform
        self.clients: list[Client] = []

    async def client(self, gateway: Gateway, user: str, device: str) -> Client:
        client = Client(
            gateway.url,
            token=self.platform.token(user, device),
            min_reconnect_delay=0.01,
            max_reconnect_delay=0.05,
        )
        self.clients.append(client)
        await client.connect()
        await client.ready(5)
        return client

    async def on(self, gateway: Gateway, user: str, device: str, channel: str = CHAT) -> tuple[Any, Recorder]:
        """A client's subscription that asks who comes and goes, and what it hears."""
        client = await self.client(gateway, user, device)
        seen = Recorder()
        sub = client.new_subscription(channel, events=seen, join_leave=True)
        await sub.subscribe()
        await sub.ready(5)
        return sub, seen


@pytest.fixture
async def city(valkey: Valkey, nats: Nats) -> AsyncIterator[City]:
    platform, namespace = FakePlatform(), uuid.uuid4().hex
    platform.create(CHAT, ALICE, BOB)
    platform.create(JOB, ALICE)
    a, b = [await Gateway(platform, nats, valkey, namespace, name).start() for name in "ab"]
    made = City(a, b)
    yield made
    for client in made.clients:
        await client.disconnect()
    for gateway in (a, b):
        await gateway.stop()


def told(seen: Recorder) -> list[tuple[str, str]]:
    """Who came and went, by what a subscription heard: the user and the device."""
    return [(event, ctx.info.conn_info["device"]) for event, ctx in seen.events if event in ("join", "leave")]


async def devices(sub: Any) -> set[tuple[str, str]]:
    return {(info.user, info.conn_info["device"]) for info in (await sub.presence()).clients.values()}


async def eventually(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_both_gateways_name_everybody_who_is_on_a_channel(city: City) -> None:
    alices, _ = await city.on(city.a, ALICE, "phone")
    bobs, _ = await city.on(city.b, BOB, "tablet")

    async def both() -> bool:
        return await devices(alices) == await devices(bobs) == {(ALICE, "phone"), (BOB, "tablet")}

    await eventually(both)
    named = (await alices.presence()).clients
    assert all(info.client == client for client, info in named.items())
    stats = await bobs.presence_stats()
    assert (stats.num_clients, stats.num_users) == (2, 2)


async def test_a_second_device_counts_as_a_client_and_not_as_a_user(city: City) -> None:
    alices, _ = await city.on(city.a, ALICE, "phone")
    await city.on(city.a, ALICE, "tablet")
    stats = await alices.presence_stats()
    assert (stats.num_clients, stats.num_users) == (2, 1)


async def test_who_comes_and_goes_is_told_to_those_who_asked_on_either_gateway(city: City) -> None:
    _, here = await city.on(city.a, ALICE, "phone")
    await until(lambda: told(here) == [("join", "phone")])
    deaf = await city.client(city.a, ALICE, "old")
    silent = Recorder()
    quiet = deaf.new_subscription(CHAT, events=silent)
    await quiet.subscribe()
    await quiet.ready(5)
    bobs, _ = await city.on(city.b, BOB, "tablet")
    await until(lambda: ("join", "tablet") in told(here))
    joined = next(ctx.info for event, ctx in here.events if event == "join" and ctx.info.user == BOB)
    assert joined.client in (await bobs.presence()).clients
    gone_s = time.monotonic()
    await bobs.unsubscribe()
    await until(lambda: ("leave", "tablet") in told(here))
    assert time.monotonic() - gone_s >= SOON.hold_s
    assert here.events[-1][1].info == joined
    assert told(silent) == []


async def test_who_reconnects_by_the_other_gateway_has_come_before_they_went(city: City) -> None:
    _, seen = await city.on(city.a, ALICE, "phone")
    bobs, _ = await city.on(city.a, BOB, "tablet")
    await until(lambda: len(told(seen)) == 2)
    await bobs._client.disconnect()
    await city.on(city.b, BOB, "tablet")
    await until(lambda: len(told(seen)) == 4)
    assert told(seen)[2:] == [("join", "tablet"), ("leave", "tablet")]
    (_, came), (_, went) = seen.events[-2:]
    assert came.info.client != went.info.client


async def test_presence_is_for_those_who_are_on_the_channel_and_for_ones_own(city: City) -> None:
    client = await city.client(city.a, ALICE, "phone")
    await city.client(city.b, ALICE, "tablet")
    for channel in (CHAT, JOB, f"user:{BOB}", "nonsense", ""):
        for call in (client.presence, client.presence_stats):
            with pytest.raises(ReplyError, match="permission denied") as caught:
                await call(channel)
            assert caught.value.code == 103

    async def both_are_there() -> bool:
        own = (await client.presence(f"user:{ALICE}")).clients.values()
        return {info.conn_info["device"] for info in own} == {"phone", "tablet"}

    await eventually(both_are_there)


async def test_a_user_is_online_on_each_device_and_afterwards_was_last_seen(city: City) -> None:
    alice = await city.client(city.a, ALICE, "phone")
    bobs = [await city.client(city.b, BOB, device) for device in ("tablet", "watch")]

    async def bob() -> Any:
        return (await alice.rpc("presence.get", {"user_ids": [BOB]})).data["users"][0]

    async def on_two_devices() -> bool:
        return [device["device"] for device in (await bob())["devices"]] == ["tablet", "watch"]

    await eventually(on_two_devices)
    assert set(await bob()) == {"user_id", "online", "devices"}
    for client in bobs:
        await client.disconnect()

    async def offline() -> bool:
        return not (await bob())["online"]

    await eventually(offline)
    away = await bob()
    assert (away["user_id"], away["devices"]) == (BOB, [])
    assert away["last_seen_at"].endswith("Z")


async def test_whom_one_shares_no_conversation_with_looks_like_nobody(city: City) -> None:
    eve, alice = await city.client(city.a, EVE, "phone"), await city.client(city.a, ALICE, "phone")
    nobody = str(uuid.uuid4())
    users = (await eve.rpc("presence.get", {"user_ids": [ALICE, nobody, EVE]})).data["users"]
    assert users[:2] == [{"user_id": each, "online": False, "devices": []} for each in (ALICE, nobody)]
    assert (users[2]["user_id"], users[2]["online"]) == (EVE, True)
    assert (await alice.rpc("presence.get", {"user_ids": []})).data == {"users": []}


@pytest.mark.parametrize(
    "data",
    [{}, {"user_ids": "x"}, {"user_ids": ["x"]}, {"user_ids": [1]}, [], None, {"user_ids": [ALICE] * 101}],
)
async def test_a_question_that_has_no_meaning_is_invalid(city: City, data: Any) -> None:
    client = await city.client(city.a, ALICE, "phone")
    with pytest.raises(ReplyError) as caught:
        await client.rpc("presence.get", data)
    assert (caught.value.code, caught.value.message) == (422, "invalid")


async def test_a_gateway_that_stops_takes_its_clients_with_it(city: City) -> None:
    alices, seen = await city.on(city.a, ALICE, "phone")
    await city.on(city.b, BOB, "tablet")
    await until(lambda: ("join", "tablet") in told(seen))
    await city.b.stop()
    assert await devices(alices) == {(ALICE, "phone")}
    await until(lambda: ("leave", "tablet") in told(seen))
    users = (await alices._client.rpc("presence.get", {"user_ids": [BOB]})).data["users"]
    assert "last_seen_at" in users[0]


async def test_while_redis_is_away_presence_is_unavailable_and_chat_goes_on(city: City, valkey: Valkey) -> None:
    alices, seen = await city.on(city.a, ALICE, "phone")
    bobs, _ = await city.on(city.b, BOB, "tablet")
    valkey.kill()
    try:
        for call in (alices.presence, alices.presence_stats):
            with pytest.raises(ReplyError) as caught:
                await call()
            assert (caught.value.code, caught.value.message, caught.value.temporary) == (503, "unavailable", True)
        offset = await city.platform.post(CHAT, {"type": "message.posted", "text": "still here"}, publish=False)
        sent = {"conversation_id": CHAT.partition(":")[2], "id": str(uuid.uuid4()), "text": "and here"}
        assert (await bobs._client.rpc("message.send", sent)).data["offset"] == offset + 1
        await city.on(city.b, ALICE, "tablet")
        await until(lambda: ("join", "tablet") in told(seen))
    finally:
        valkey.start()

    async def all_are_there() -> bool:
        try:
            return await devices(bobs) == {(ALICE, "phone"), (BOB, "tablet"), (ALICE, "tablet")}
        except ReplyError:
            return False

    await eventually(all_are_there, 20)


@pytest.mark.parametrize("protobuf", [False, True], ids=["json", "protobuf"])
async def test_the_javascript_client_sees_the_same(city: City, node: str, protobuf: bool) -> None:
    process = await asyncio.create_subprocess_exec(
        node, str(CLIENTS / "client.mjs"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    puppet = Puppet(process, city.platform, city.a.url, protobuf)
    try:
        await puppet.until(lambda: puppet.seen)
        await puppet.connected(ALICE, token=city.platform.token(ALICE, "phone"))
        await puppet.subscribed(client=ALICE, join_leave=True)
        bob = {"url": city.b.url, "token": city.platform.token(BOB, "tablet"), "protobuf": protobuf}
        puppet.do("open", BOB, **bob)
        puppet.do("connect", BOB)
        await puppet.until(lambda: puppet.of("connected", BOB))
        await puppet.subscribed(client=BOB)
        (joined,) = await puppet.until(lambda: [e for e in puppet.of("join") if e["info"]["user"] == BOB])
        assert joined["info"]["conn_info"] == {"device": "tablet"}

        async def both_are_there() -> bool:
            there = (await puppet.call("presence", CHAT))["result"]
            return {(info["user"], info["conn_info"]["device"]) for info in there} == {
                (ALICE, "phone"),
                (BOB, "tablet"),
            }

        await eventually(both_are_there)

        async def both_are_counted() -> bool:
            counted = (await puppet.call("presenceStats", CHAT, client=BOB))["result"]
            return counted == {"numClients": 2, "numUsers": 2}

        await eventually(both_are_counted)  # Bob's gateway hears of Alice in its own time
        assert puppet.of("join", BOB) == []
        puppet.do("disconnect", BOB)
        (left,) = await puppet.until(lambda: puppet.of("leave"))
        assert left["info"] == joined["info"]
    finally:
        await puppet.end()
