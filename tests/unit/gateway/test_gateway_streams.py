"""Where WebSockets do not get through: what a client gets on a stream, and what becomes of its commands."""

import asyncio
import json
import time

import pytest
from websockets.asyncio.client import connect

from domain.ports import Identity, StoreUnavailable
from storage.memory_broker import MemoryBroker
from tests.support.streams import (
    ALICE,
    BOB,
    CHAT,
    JSON,
    Client,
    Open,
    open_house,
    raw,
    send,
    slow_reader,
    sse_url,
)

__all__ = ["open_house"]

# --- streams ---


@pytest.mark.parametrize(
    ("path", "kind"), [("/connection/sse", "text/event-stream"), ("/connection/http_stream", "application/x-ndjson")]
)
async def test_a_stream_is_kept_by_nobody_on_the_way(open_house: Open, path: str, kind: str) -> None:
    house = await open_house()
    client = await house.connected(path=path)
    headers = client.response.headers
    assert headers["content-type"].partition(";")[0] == kind
    assert "no-store" in headers["cache-control"]
    assert headers["x-accel-buffering"] == "no"


async def test_a_key_cannot_be_guessed_and_is_not_what_others_see(open_house: Open) -> None:
    house = await open_house()
    first = await house.stream()
    told = (await first.hear())["connect"]
    other = await house.connected()
    assert len(told["session"]) == 32
    assert len({told["session"], told["client"], other.session}) == 3


async def test_a_websocket_has_no_key(open_house: Open) -> None:
    house = await open_house()
    async with connect(house.url("/connection/websocket").replace("http", "ws")) as client:
        token = house.platform.token(ALICE, "sid-a")
        await client.send(json.dumps({"id": 1, "connect": {"token": token}}))
        assert not json.loads(await client.recv())["connect"].get("session")


async def test_commands_are_taken_in_the_order_in_which_they_came(open_house: Open) -> None:
    house = await open_house()
    client = await house.connected()
    for number in range(2, 22):
        assert (
            await house.post(client, send(number, str(number)), send(100 + number, f"{number}b"))
        ).status_code == 204
    events = [json.loads(data)["text"] for data in house.platform.streams[CHAT].events]
    assert events == [text for number in range(2, 22) for text in (str(number), f"{number}b")]


async def test_who_does_not_answer_pings_is_told_and_whoever_does_stays(open_house: Open) -> None:
    house = await open_house(ping_interval_s=0.1, pong_timeout_s=0.4)
    silent, alive = await house.connected(), await house.connected(BOB)
    ending = asyncio.create_task(silent.end())
    for _ in range(10):
        assert (await house.post(alive, {})).status_code == 204
        await asyncio.sleep(0.1)
    assert (await ending)["code"] == 3012
    await house.post(alive, {"id": 7, "ping": {}})
    assert (await alive.hear())["id"] == 7


async def test_a_client_that_went_away_is_forgotten(open_house: Open) -> None:
    house = await open_house()
    client = await house.connected()
    assert len(house.servers[0]._board.peers) == 1
    await client.response.aclose()
    async with asyncio.timeout(5):
        while house.servers[0]._board.peers:
            await asyncio.sleep(0.01)
    assert not house.servers[0]._emulation._inlets
    assert (await house.post(client, send(2))).status_code == 204
    assert not house.platform.streams[CHAT].events


async def test_streams_count_as_sessions(open_house: Open) -> None:
    house = await open_house(max_sessions=2)
    await house.connected()
    await house.connected(BOB)
    response = await house.http.post(house.url("/connection/http_stream"), content=b"{}", headers=JSON)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_streams_and_requests_stand_in_the_same_door(open_house: Open) -> None:
    house = await open_house(max_connections=3)
    await house.connected()
    await house.connected()
    assert await raw(house.ports[0], b"POST /emulation HTTP/1.1\r\nconnection: close\r\n\r\n") != b""
    idle = await asyncio.open_connection("127.0.0.1", house.ports[0])
    await asyncio.sleep(0.05)
    assert await raw(house.ports[0], b"POST /emulation HTTP/1.1\r\n\r\n") == b""
    idle[1].close()


# --- a slow reader ---


async def test_a_slow_reader_costs_a_bounded_amount_and_has_everything_in_the_end(open_house: Open) -> None:
    house = await open_house(outbound_bytes=65_536, page_bytes=16_384, write_limit_bytes=8_192)
    reader, writer = await slow_reader(house)
    for n in range(200):
        await house.platform.post(CHAT, *({"n": 100 * n + m, "text": "y" * 500} for m in range(100)))
    await asyncio.sleep(0.3)
    (peer,) = house.servers[0]._board.peers
    assert peer._out.size <= 65_536
    assert peer._transport._size <= 2 * 65_536
    seen, heard = -1, b""
    async with asyncio.timeout(60):
        while seen < 19_999:
            heard += await reader.read(65_536)
            *lines, heard = heard.split(b"\n")
            for line in lines:
                if line.startswith(b'{"push"') and b'"n":' in line:
                    number = json.loads(line)["push"]["pub"]["data"]["n"]
                    assert number == seen + 1
                    seen = number
                elif line.startswith(b'{"push"'):
                    assert b'"channel":"user:' in line
    writer.close()


async def test_who_reads_nothing_at_all_is_cut_off_when_it_should_go(open_house: Open) -> None:
    house = await open_house(outbound_bytes=65_536, write_limit_bytes=8_192, close_timeout_s=0.3)
    _, writer = await slow_reader(house)
    for _ in range(100):
        await house.platform.post(CHAT, *({"text": "y" * 500} for _ in range(100)))
    await asyncio.sleep(0.2)
    assert house.servers[0]._door.inside == 1
    await house.platform.revoke("sid-a")
    async with asyncio.timeout(3):
        while house.servers[0]._door.inside:
            await asyncio.sleep(0.02)
    writer.close()


async def test_a_client_that_asks_too_much_at_once_is_held_back_and_loses_nothing_that_was_taken(
    open_house: Open,
) -> None:
    house = await open_house(max_in_flight=2)
    house.platform.delay_s = 0.3
    client = await house.connected()
    numbers = iter(range(2, 10_000))
    taken: list[int] = []
    refused = 0
    big = "z" * 9_000
    for _ in range(40):
        number = next(numbers)
        status = (await house.post(client, send(number, big))).status_code
        assert status in (204, 429)
        if status == 204:
            taken.append(number)
        else:
            refused += 1
    assert refused
    assert len(taken) >= 8
    house.platform.delay_s = 0
    answered: list[int] = []
    while len(answered) < len(taken):
        item = await client.hear()
        if "rpc" in item:
            answered.append(item["id"])
    assert answered == taken


# --- commands for somebody else's stream ---


@pytest.mark.parametrize("session", ["", "x", "0" * 32])
async def test_an_unknown_session_is_told_nothing_and_changes_nothing(open_house: Open, session: str) -> None:
    house = await open_house()
    client = await house.connected()
    response = await house.post(client, send(2), session=session)
    assert (response.status_code, response.content) == (204, b"")
    assert not house.platform.streams[CHAT].events


async def test_the_public_name_of_a_connection_opens_nothing(open_house: Open) -> None:
    house = await open_house()
    client = await house.stream()
    told = (await client.hear())["connect"]
    client.session, client.node = told["client"], told["node"]
    assert (await house.post(client, send(2))).status_code == 204
    assert not house.platform.streams[CHAT].events


async def test_commands_reach_a_stream_through_any_gateway(open_house: Open) -> None:
    house = await open_house()
    await house.gateway()
    client = await house.connected()
    for number in range(2, 12):
        assert (await house.post(client, send(number, str(number)), gateway=number % 2)).status_code == 204
    assert [json.loads(data)["text"] for data in house.platform.streams[CHAT].events] == [str(n) for n in range(2, 12)]


@pytest.mark.parametrize(
    "node", ["gateway-9", "", "*", ">", "gateway.0", "gateway-0 x", "x" * 200, "cmd.1", "a\r\nPUB x"]
)
async def test_a_node_that_is_not_there_is_404_whatever_its_name(open_house: Open, node: str) -> None:
    house = await open_house()
    client = await house.connected()
    assert (await house.post(client, send(2), node=node)).status_code == 404
    assert not house.platform.streams[CHAT].events


async def test_a_gateway_that_was_restarted_is_another_node(open_house: Open) -> None:
    house = await open_house()
    await house.gateway(name="gateway-0-first")
    first = house.servers[1]
    await house.gateway(name="gateway-0-second")
    await first.stop()
    client = await house.connected()
    assert (await house.post(client, send(2), node="gateway-0-first")).status_code == 404
    assert (await house.post(client, send(2), node="gateway-0-second")).status_code == 204


async def test_while_the_broker_is_away_own_streams_work_and_others_are_told_to_come_back(open_house: Open) -> None:
    house = await open_house()
    await house.gateway()
    client = await house.connected()
    house.bus.go_down()
    assert (await house.post(client, {"id": 2, "ping": {}})).status_code == 204
    refused = await house.post(client, {"id": 3, "ping": {}}, gateway=1)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    house.bus.come_back()


async def test_a_gateway_that_hangs_holds_nobody_up_for_ever(open_house: Open) -> None:
    house = await open_house()
    client = await house.connected()
    deaf = MemoryBroker(house.bus)
    await deaf.subscribe("gw.deaf", lambda message: None)
    started = time.monotonic()
    assert (await house.post(client, send(2), node="deaf")).status_code == 503
    assert time.monotonic() - started < 4


async def test_only_so_many_requests_wait_for_other_gateways(open_house: Open) -> None:
    house = await open_house()
    client = await house.connected()
    deaf = MemoryBroker(house.bus)
    await deaf.subscribe("gw.deaf", lambda message: None)
    emulation = house.servers[0]._emulation
    waiting = [asyncio.create_task(emulation.deliver("deaf", "x", b"{}")) for _ in range(256)]
    await asyncio.sleep(0)
    assert (await house.post(client, send(2), node="deaf")).status_code == 429
    assert (await house.post(client, {"id": 3, "ping": {}})).status_code == 204
    assert {outcome.name for outcome in await asyncio.gather(*waiting)} == {"UNKNOWN"}


async def test_while_nobody_can_tell_a_used_ticket_from_a_fresh_one_clients_are_told_to_try_again(
    open_house: Open,
) -> None:
    house = await open_house()

    async def away(token: str) -> Identity:
        raise StoreUnavailable("Redis is away")

    house.platform.verify = away  # type: ignore[method-assign]
    client = await house.stream()
    assert (await client.hear())["error"] == {"code": 100, "message": "internal server error", "temporary": True}


async def test_a_device_that_was_logged_out_while_nothing_was_heard_is_found_out_however_it_came_in(
    open_house: Open,
) -> None:
    house = await open_house()
    ticket = house.platform.ticket(house.platform.token(ALICE, "sid-a"))
    async with house.http.stream("GET", sse_url(house, {"id": 1, "connect": {"token": ticket}})) as response:
        client = Client(response)
        await client.hear()
        house.bus.go_down()
        house.platform.revoked.add("sid-a")
        house.bus.come_back()
        assert (await client.end())["code"] == 4500


# --- a proxy's connection ---


async def test_a_connection_that_was_used_for_requests_can_become_a_websocket(open_house: Open) -> None:
    """A reverse proxy sends whatever comes next over a connection that it kept."""
    house = await open_house()
    reader, writer = await asyncio.open_connection("127.0.0.1", house.ports[0])
    body = b"POST /emulation HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    writer.write(body)
    await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"\n")
    writer.write(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1] == b"200"
    await reader.readuntil(b"live\n")
    writer.write(
        b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1] == b"101"
    assert house.servers[0]._door.inside == 1
    assert not house.servers[0]._http._state.connections
    # A text frame of a client that says `x`, which is not the protocol: so it is told 3501.
    writer.write(b"\x81\x81\x00\x00\x00\x00x")
    frame = await reader.read(4)
    assert frame[0] == 0x88
    assert int.from_bytes(frame[2:4], "big") == 3501
    writer.close()
    async with asyncio.timeout(5):
        while house.servers[0]._door.inside:
            await asyncio.sleep(0.01)


# --- going away ---


async def test_a_gateway_that_is_replaced_answers_what_it_was_asked_and_sends_its_streams_elsewhere(
    open_house: Open,
) -> None:
    house = await open_house()
    client = await house.connected()
    house.platform.delay_s = 0.3
    await house.post(client, send(2))
    draining = asyncio.create_task(house.servers[0].drain())
    await asyncio.sleep(0.05)
    refused = await house.http.post(house.url("/connection/http_stream"), content=b"{}", headers=JSON)
    assert refused.status_code == 503
    assert (await client.hear())["id"] == 2
    assert await client.end() == {"code": 4001, "reason": "draining", "reconnect": True}
    await draining


async def test_a_gateway_that_stops_says_so_and_leaves_nothing_behind(open_house: Open) -> None:
    house = await open_house()
    client = await house.connected()
    idle = await asyncio.open_connection("127.0.0.1", house.ports[0])
    idle[1].write(b"POST /emulation HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    await idle[0].readuntil(b"\r\n\r\n")
    ending = asyncio.create_task(client.end())
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await house.servers[0].stop()
    assert time.monotonic() - started < 2
    assert (await ending)["code"] == 3001
    assert house.servers[0]._door.inside == 0
    idle[1].close()


async def test_a_gateway_that_stops_does_not_wait_for_those_who_never_said_what_they_want(open_house: Open) -> None:
    house = await open_house()
    undecided = []
    for beginning in (b"", b"GET /conn", b"GET /connection/websocket HTTP/1.1\r\n", b"POST /emulation HTTP/1.1\r\n"):
        undecided.append(await asyncio.open_connection("127.0.0.1", house.ports[0]))
        undecided[-1][1].write(beginning)
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await house.servers[0].stop()
    assert time.monotonic() - started < 1
    assert house.servers[0]._door.inside == 0
    for _, writer in undecided:
        writer.close()
