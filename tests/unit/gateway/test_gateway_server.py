"""The gateway's real socket, and clients that do not play by the rules."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.unit.gateway.conftest import CHAT, PATH, Open


async def http(port: int, path: str, **headers: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        *(f"{name}: {value}" for name, value in headers.items()),
        "",
        "",
    ]
    writer.write("\r\n".join(lines).encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(" ")[1]), answer


async def test_load_balancers_are_answered(open_house: Open) -> None:
    house = await open_house()
    assert (await http(house.port, "/health/live"))[0] == 200
    assert (await http(house.port, "/health/live?x=1"))[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/connection", "/connection/websocket/", "//connection/websocket", "/connection/%77ebsocket"]
)
async def test_there_is_one_path(open_house: Open, path: str) -> None:
    house = await open_house()
    with pytest.raises(InvalidStatus) as caught:
        await connect(f"ws://127.0.0.1:{house.port}{path}")
    assert caught.value.response.status_code == 404


async def test_plain_http_is_asked_to_upgrade(open_house: Open) -> None:
    house = await open_house()
    assert (await http(house.port, PATH))[0] in (400, 426)


@pytest.mark.parametrize("query", ["token=abc", "access_token=abc", "cf_token=abc", "a=1&TOKEN=", "%74oken=x"])
async def test_a_token_in_the_url_is_refused(open_house: Open, query: str) -> None:
    house = await open_house()
    with pytest.raises(InvalidStatus) as caught:
        await connect(f"{house.url}?{query}")
    assert caught.value.response.status_code == 400
    assert b"abc" not in (caught.value.response.body or b"")


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://evil.example",
        "https://app.example.evil.example",
        "https://evilapp.example",
        "http://app.example",
        "https://app.example:8443",
        "https://app.example/",
        "https://xn--app-example",
        "",
    ],
)
async def test_a_foreign_origin_is_refused_before_the_upgrade(open_house: Open, origin: str) -> None:
    house = await open_house(origins=("https://app.example",))
    status, _ = await http(house.port, PATH, Origin=origin, Upgrade="websocket", Connection="Upgrade")
    assert status == 403


async def test_an_allowed_origin_and_none_at_all_are_let_in(open_house: Open) -> None:
    house = await open_house(origins=("https://app.example",))
    for options in ({"origin": "https://app.example"}, {}):
        client = await house.connected(**options)
        await client.close()


async def test_by_default_no_origin_is_allowed(open_house: Open) -> None:
    house = await open_house()
    with pytest.raises(InvalidStatus) as caught:
        await connect(house.url, origin="http://localhost")  # type: ignore[arg-type]
    assert caught.value.response.status_code == 403


async def test_a_full_gateway_says_so_and_takes_the_next_when_one_has_left(open_house: Open) -> None:
    house = await open_house(max_sessions=2)
    first, second = await house.open(), await house.open()
    with pytest.raises(InvalidStatus) as caught:
        await house.open()
    assert caught.value.response.status_code == 503
    await first.close()
    third = await house.connected()
    await third.close()
    await second.close()


async def test_who_opens_a_socket_and_says_nothing_is_closed(open_house: Open) -> None:
    house = await open_house(connect_timeout_s=0.1)
    assert await house.closed_with(await house.open()) == 3502


async def test_who_opens_a_connection_and_never_asks_for_the_upgrade_is_cut_off(open_house: Open) -> None:
    house = await open_house(open_timeout_s=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_who_never_answers_a_ping_is_closed(open_house: Open) -> None:
    house = await open_house(ping_interval_s=0.1, pong_timeout_s=0.1)
    client = await house.connected()
    assert await client.recv() == "{}"
    assert await house.closed_with(client) == 3012


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("garbage", 3501),
        (b"\x00\x01\x02", 3501),
        ('{"id":7,"connect":{"token":"again"}}', 3501),
        ("x" * 65_537, 1009),
        (["{", '"id":3,', '"rpc":{}', "]"], 3501),
    ],
)
async def test_what_is_not_the_protocol_closes_the_socket_with_its_code(
    open_house: Open, message: Any, code: int
) -> None:
    house = await open_house()
    client = await house.connected()
    await client.send(message)
    assert await house.closed_with(client) == code


async def test_text_that_is_no_utf8_closes_with_1007(open_house: Open) -> None:
    house = await open_house()
    client = await house.connected()
    await client.send(b'{"id":2,"rpc":{"method":"\xff"}}', text=True)
    assert await house.closed_with(client) == 1007


async def test_commands_may_come_in_fragments_and_several_in_a_frame(open_house: Open) -> None:
    house = await open_house()
    client = await house.connected()
    await client.send(['{"id":2,', '"ping"', ":{}}\n", '{"id":3,"ping":{}}\n'])
    answers = [json.loads(line) for line in str(await client.recv()).split("\n")]
    assert answers == [{"id": 2, "ping": {}}, {"id": 3, "ping": {}}]
    await client.close()


async def test_a_frame_of_endless_fragments_is_refused(open_house: Open) -> None:
    house = await open_house()
    client = await house.connected()

    async def crumbs() -> AsyncIterator[str]:
        while True:
            yield " "
            await asyncio.sleep(0)

    with pytest.raises(ConnectionClosed):
        await client.send(crumbs())
    assert await house.closed_with(client) == 3501


async def test_permessage_deflate_is_off_unless_asked_for(open_house: Open) -> None:
    for compression, expected in ((False, None), (True, "permessage-deflate")):
        house = await open_house(compression=compression)
        client = await house.connected()
        offered = client.response.headers.get("Sec-WebSocket-Extensions") if client.response else ""
        assert (offered or "").split(";")[0] == (expected or "")
        await client.close()


async def test_an_inflated_frame_counts_at_its_full_size(open_house: Open) -> None:
    house = await open_house(compression=True)
    client = await house.connected()
    await client.send("x" * 10_000_000)
    assert await house.closed_with(client) == 1009


async def test_a_client_that_does_not_read_its_socket_is_cut_off_and_delays_nobody(open_house: Open) -> None:
    house = await open_house(ping_interval_s=0.5, pong_timeout_s=0.5, outbound_bytes=200_000)
    subscribe = json.dumps({"id": 2, "subscribe": {"channel": CHAT}})
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    stuck.setblocking(False)
    await asyncio.get_running_loop().sock_connect(stuck, ("127.0.0.1", house.port))
    slow = await house.connected(sock=stuck, max_queue=1)
    await slow.send(subscribe)
    await slow.recv()
    slow.transport.pause_reading()
    quick = await house.connected()
    await quick.send(subscribe)
    await quick.recv()
    slowest, offsets = 0.0, []
    loop = asyncio.get_running_loop()
    for n in range(300):
        started = loop.time()
        await house.platform.post(CHAT, {"type": "message.posted", "text": "x" * 20_000, "n": n})
        while not offsets or offsets[-1] <= n:
            for line in str(await quick.recv()).split("\n"):
                message = json.loads(line)
                if not message:
                    await quick.send("{}")
                else:
                    offsets.append(message["push"]["pub"]["offset"])
        slowest = max(slowest, loop.time() - started)
    assert offsets == list(range(1, 301))
    assert slowest < 0.5
    async with asyncio.timeout(10):
        while house.metrics.counts["gateway_disconnects_3012"] + house.metrics.counts["gateway_disconnects_3008"] < 1:
            await quick.send("{}")
            await asyncio.sleep(0.05)
    slow.transport.abort()
    await quick.close()


async def test_a_flood_of_pings_whose_pongs_are_not_read_is_not_answered_without_a_bound(open_house: Open) -> None:
    house = await open_house()
    attacker = socket.socket()
    attacker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    attacker.setblocking(False)
    await asyncio.get_running_loop().sock_connect(attacker, ("127.0.0.1", house.port))
    client = await house.connected(sock=attacker, max_queue=1)
    client.transport.pause_reading()
    assert house.server._server is not None
    (victim,) = house.server._server.connections
    pings = (b"\x89\xfd\0\0\0\0" + b"x" * 125) * 1_000
    piled_up = 0

    async def flood() -> None:
        nonlocal piled_up
        client.transport.write(pings)
        await asyncio.sleep(0.005)
        piled_up = max(piled_up, victim.transport.get_write_buffer_size())

    async with asyncio.timeout(30):
        while not victim.paused:
            await flood()
    for _ in range(60):
        await flood()
    assert 0 < piled_up < 1_000_000
    client.transport.abort()
    await asyncio.sleep(0.01)


async def test_who_begins_to_close_but_keeps_the_connection_is_cut_off(open_house: Open) -> None:
    house = await open_house(close_timeout_s=0.1)
    client = await house.connected()
    client.transport.pause_reading()
    client.transport.write(b"\x88\x82\0\0\0\0\x03\xe8")
    async with asyncio.timeout(5):
        while house.metrics.gauges.get("gateway_connections") != 0:
            await asyncio.sleep(0.01)
    client.transport.abort()
    await asyncio.sleep(0.01)


async def test_two_gateways_share_a_port(open_house: Open) -> None:
    first = await open_house()
    second = await open_house(port=first.port)
    assert first.port == second.port


async def test_counts_are_written_out(open_house: Open) -> None:
    house = await open_house()
    client = await house.connected()
    await client.send(json.dumps({"id": 2, "subscribe": {"channel": CHAT}}))
    await client.recv()
    await asyncio.sleep(0.1)
    gauges = house.metrics.gauges
    names = ("gateway_connections", "gateway_sessions", "gateway_channels", "gateway_subscriptions")
    assert [gauges[name] for name in names] == [1, 1, 1, 1]
    assert house.metrics.counts["gateway_frames_in"] == 2
    assert house.metrics.counts["gateway_frames_out"] == 2
    await client.close()
    await asyncio.sleep(0.1)
    assert [gauges[name] for name in names[:2]] == [0, 0]
    assert house.metrics.counts["gateway_disconnects_lost"] == 1


async def test_stopping_leaves_no_task_and_no_subscription_behind(open_house: Open) -> None:
    before = asyncio.all_tasks()
    house = await open_house()
    client = await house.connected()
    await client.send(json.dumps({"id": 2, "subscribe": {"channel": CHAT}}))
    await client.recv()
    await house.server.stop()
    assert await house.closed_with(client) == 3001
    assert not any(house.platform.broker.handlers.values())
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}
