"""A gateway that is being replaced: nobody is reset, nobody's answer is lost, everybody is sent elsewhere."""

import asyncio
import json
import socket
import uuid
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.unit.gateway.conftest import CHAT, PATH, Open

UPGRADE = (
    f"GET {PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()


def knock(port: int) -> socket.socket:
    """A connection that the kernel has taken; the server's event loop has not run meanwhile."""
    knocking = socket.create_connection(("127.0.0.1", port), timeout=5)
    knocking.sendall(UPGRADE)
    knocking.setblocking(False)
    return knocking


async def answer_to(knocking: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    heard = b""
    with knocking:
        async with asyncio.timeout(5):
            while b"\r\n\r\n" not in heard and (data := await loop.sock_recv(knocking, 4096)):
                heard += data
    return heard


def message(number: int, command_id: str) -> str:
    data = {"conversation_id": CHAT[13:], "id": command_id, "text": "x"}
    return json.dumps({"id": number, "rpc": {"method": "message.send", "data": data}})


async def everything_until_closed(client: ClientConnection) -> list[dict[str, Any]]:
    heard: list[dict[str, Any]] = []
    with pytest.raises(ConnectionClosed):
        async with asyncio.timeout(10):
            while True:
                heard += [json.loads(line) for line in str(await client.recv()).split("\n")]
    return heard


async def test_who_was_let_in_by_the_kernel_alone_is_told_to_try_again_not_reset(open_house: Open) -> None:
    house = await open_house()
    outside = [knock(house.port) for _ in range(50)]
    draining = asyncio.create_task(house.server.drain())
    answers = await asyncio.gather(*(answer_to(knocking) for knocking in outside))
    assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 503 Service Unavailable"}
    await draining
    with pytest.raises(ConnectionRefusedError):
        knock(house.port)


async def test_a_draining_gateway_leaves_the_port_to_the_other_one(open_house: Open) -> None:
    first = await open_house()
    second = await open_house(port=first.port)
    await first.server.drain()
    for _ in range(20):
        client = await second.connected()
        await client.close()


async def test_commands_under_way_are_answered_before_their_client_is_sent_elsewhere(open_house: Open) -> None:
    house = await open_house()
    clients = [await house.connected() for _ in range(10)]
    house.platform.delay_s = 0.3
    for client in clients:
        for number in range(3):
            await client.send(message(number + 2, str(uuid.uuid4())))
    await asyncio.sleep(0.1)
    draining = asyncio.create_task(house.server.drain())
    for heard in await asyncio.gather(*map(everything_until_closed, clients)):
        assert {reply["id"] for reply in heard if "rpc" in reply} == {2, 3, 4}
    assert {client.close_code for client in clients} == {4001}
    await draining


async def test_whoever_was_busy_is_sent_when_it_is_answered_and_not_when_everybody_is_gone(open_house: Open) -> None:
    house = await open_house()
    clients = [await house.connected() for _ in range(5)]
    house.platform.delay_s = 0.1
    for client in clients:
        await client.send(message(2, str(uuid.uuid4())))
    await asyncio.sleep(0.05)
    draining = asyncio.create_task(house.server.drain(over_s=60.0))
    for heard in await asyncio.gather(*map(everything_until_closed, clients)):
        assert [reply["id"] for reply in heard if "rpc" in reply] == [2]
    assert not draining.done()
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)


async def test_a_client_that_never_stops_asking_gets_every_answer_to_what_was_read(open_house: Open) -> None:
    house = await open_house(ask_timeout_s=3)
    house.platform.delay_s = 0.02
    client = await house.connected()
    sent = 0

    async def talk() -> None:
        nonlocal sent
        while True:
            await client.send(message(sent + 2, str(uuid.uuid4())))
            sent += 1
            await asyncio.sleep(0.005)

    talking = asyncio.create_task(talk())
    await asyncio.sleep(0.2)
    began_s = asyncio.get_running_loop().time()
    draining = asyncio.create_task(house.server.drain())
    heard = await everything_until_closed(client)
    took_s = asyncio.get_running_loop().time() - began_s
    talking.cancel()
    await asyncio.gather(talking, return_exceptions=True)
    await draining
    assert client.close_code == 4001
    assert took_s < 2
    done = len(house.platform.streams[CHAT].done)
    assert len([reply for reply in heard if "rpc" in reply]) == done


async def test_surplus_connections_are_cut_at_once_and_there_is_room_again_when_one_has_gone(open_house: Open) -> None:
    house = await open_house(max_connections=3)
    clients = [await house.connected() for _ in range(2)]
    idle = socket.create_connection(("127.0.0.1", house.port))
    await asyncio.sleep(0.05)
    for _ in range(20):
        with pytest.raises(ConnectionResetError):
            if await answer_to(knock(house.port)) == b"":
                raise ConnectionResetError
    assert house.server._door.inside == 3
    idle.close()
    await asyncio.sleep(0.05)
    clients.append(await house.connected())
    for client in clients:
        await client.close()
    await asyncio.sleep(0.05)
    assert house.server._door.inside == 0
    await asyncio.sleep(0.05)
    assert house.metrics.counts["gateway_turned_away"] == 20
