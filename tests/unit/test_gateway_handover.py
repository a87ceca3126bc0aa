"""A draining gateway and the clients that build their next connection before they let go of this one."""

import asyncio
from typing import Any

from gateway.connection import Connection
from gateway.drain import Exodus
from tests.support.fake_platform import FakePlatform
from tests.unit.test_gateway_recovery import CHAT, USER, FakeTransport, Rig, say, until


async def connected(rig: Rig, handover: bool) -> tuple[Any, FakeTransport]:
    transport = FakeTransport()
    connection = Connection(rig.board, transport)
    data = {"device_id": "d", "handover": handover}
    say(connection, {"id": 1, "connect": {"token": rig.platform.token(USER, "sid"), "data": data}})
    await until(lambda: transport.replies)
    return connection, transport


def told(transport: FakeTransport) -> list[dict[str, Any]]:
    pushes = [reply["push"] for reply in transport.replies if "push" in reply]
    return [push["pub"]["data"] for push in pushes if push["channel"] == f"user:{USER}"]


async def test_who_hands_over_is_told_first_and_closed_after_its_time_everybody_else_at_once() -> None:
    async with Rig(handover_s=0.3) as rig:
        _, patient = await connected(rig, True)
        _, other = await connected(rig, False)
        drain = asyncio.create_task(Exodus(rig.board, None).run())
        await until(lambda: other.closed and told(patient))
        assert (other.closed, told(other)) == (4001, [])
        assert told(patient) == [{"type": "service.draining", "within_s": 0.3}]
        assert patient.closed is None
        await drain
        assert patient.closed == 4001


async def test_a_drain_is_over_as_soon_as_all_have_gone_by_themselves() -> None:
    async with Rig(handover_s=60) as rig:
        connection, transport = await connected(rig, True)
        drain = asyncio.create_task(Exodus(rig.board, None).run())
        await until(lambda: told(transport))
        connection.lost()
        await asyncio.wait_for(drain, 2)


async def test_until_it_is_closed_a_told_client_is_served_as_ever() -> None:
    platform = FakePlatform()
    platform.create(CHAT, USER)
    async with Rig(platform, handover_s=0.2) as rig:
        connection, transport = await connected(rig, True)
        say(connection, {"id": 2, "subscribe": {"channel": CHAT}})
        await until(lambda: any(reply.get("id") == 2 for reply in transport.replies))
        drain = asyncio.create_task(Exodus(rig.board, None).run())
        await until(lambda: told(transport))
        await platform.post(CHAT, {"type": "message.posted"})
        say(connection, {"id": 3, "ping": {}})
        await until(lambda: transport.offsets == [1] and any(reply.get("id") == 3 for reply in transport.replies))
        await drain
        assert transport.closed == 4001


async def test_when_everything_stops_nobody_is_waited_for() -> None:
    async with Rig(handover_s=60) as rig:
        _, transport = await connected(rig, True)
        await asyncio.wait_for(Exodus(rig.board, 0.0).run(), 2)
        assert (transport.closed, told(transport)) == (4001, [])
