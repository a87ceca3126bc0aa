"""The unmodified `centrifuge-python` client in Protobuf: what differs from JSON is the encoding alone. Data is JSON in bytes.

The JavaScript client's whole suite runs in both encodings; here is what the Python client does otherwise.
"""

import json
import uuid
from typing import Any

import pytest
from centrifuge import ReplyError, StreamPosition
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.contract.test_gateway_python_sdk import ALICE, BOB, CHAT, CONVERSATION, House, Open, open_house, until

__all__ = ["open_house"]


def data(publication: Any) -> Any:
    return json.loads(publication.data)


async def speaking(house: House, user: str = ALICE) -> Any:
    client, _ = await house.connected(user, use_protobuf=True)
    return client


async def test_events_come_with_their_offsets_beside_a_json_client(open_house: Open) -> None:
    house = await open_house()
    one, other = await speaking(house), (await house.connected(BOB))[0]
    _, seen = await house.subscribed(one)
    _, seen_in_json = await house.subscribed(other)
    await house.platform.post(CHAT, *({"type": "message.posted", "text": f"你好 {n}"} for n in range(50)))
    await until(lambda: len(seen.offsets) == len(seen_in_json.offsets) == 50)
    assert seen.offsets == seen_in_json.offsets == list(range(1, 51))
    texts = [data(ctx.pub)["text"] for ctx in seen.of("publication")]
    assert texts == [ctx.pub.data["text"] for ctx in seen_in_json.of("publication")]


async def test_hints_and_ephemeral_publications_carry_no_offset(open_house: Open) -> None:
    house = await open_house()
    client, own = await house.connected(use_protobuf=True)
    _, seen = await house.subscribed(client)
    await house.platform.hint(ALICE, {"type": "offer"})
    await house.platform.ephemeral(CHAT, {"type": "typing", "by": BOB, "on": True})
    await until(lambda: own.of("publication") and seen.of("publication"))
    assert data(own.of("publication")[0].pub) == {"type": "offer"}
    assert (data(seen.of("publication")[0].pub)["type"], seen.of("publication")[0].pub.offset) == ("typing", 0)


async def test_rpc_answers_and_refuses_with_the_catalogues_codes(open_house: Open) -> None:
    house = await open_house()
    client = await speaking(house)
    body = {"conversation_id": CONVERSATION, "id": str(uuid.uuid4()), "text": "hello"}
    first = data(await client.rpc("message.send", json.dumps(body).encode()))
    again = data(await client.rpc("message.send", json.dumps(body).encode()))
    assert first | {"replayed": True} == again
    foreign = json.dumps(body | {"conversation_id": str(uuid.uuid4())}).encode()
    for method, sent, code in (("message.send", foreign, 404), ("no.such", b"{}", 104), ("message.send", b"{}", 404)):
        with pytest.raises(ReplyError) as refused:
            await client.rpc(method, sent)
        assert refused.value.code == code


async def test_what_was_missed_comes_back_once_and_in_order(open_house: Open) -> None:
    house = await open_house()
    client = await speaking(house)
    sub, seen = await house.subscribed(client)
    await house.platform.post(CHAT, {"n": 0})
    await until(lambda: seen.offsets == [1])
    await client.disconnect()
    await house.platform.post(CHAT, *({"type": "message.posted", "text": f"{n:0100d}"} for n in range(5_000)))
    await client.connect()
    await until(lambda: len(seen.offsets) >= 5_001, 30)
    assert seen.offsets == list(range(1, 5_002))
    page = await sub.history(limit=2, since=StreamPosition(2, "e1"))
    assert ([pub.offset for pub in page.publications], page.offset) == ([3, 4], 5_001)


async def test_what_is_no_protobuf_ends_the_connection(open_house: Open) -> None:
    house = await open_house()
    url = f"ws://127.0.0.1:{house.port}/connection/websocket"
    async with connect(url, subprotocols=["centrifuge-protobuf"]) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "centrifuge-protobuf"
        await socket.send(b"\xff\xff\xff")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 3501
