"""A gateway runs out of descriptors: who is connected notices nothing, who comes is told or cut off, and room is used again.

Strangers who only knock must not get what the gateway needs for its sessions: its ways to the database and to NATS.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import psutil
import pytest

from storage.engine import migrate
from tests.chaos.conftest import Chaos, Houses, needs_mariadb
from tests.support.crowd import Crowd, Device
from tests.support.oracle import ack_seconds, judge, quantile, read_log, spread
from tests.support.parts import Part, Parts
from tests.support.servers import MariaDb, Nats

DESCRIPTORS = 200
ROOMS = 20
RATE = 50
KNOCKERS = 20
UPGRADE = (
    b"GET /connection/websocket HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
LET_IN, NO_ROOM, CUT = "101", "503", "cut"


class Strangers:
    """People who connect and say no more than they must, and stay for as long as they are let."""

    def __init__(self, port: int, *, upgrade: bool) -> None:
        self.outcomes: Counter[str] = Counter()
        self._port = port
        self._upgrade = upgrade
        self._inside: list[asyncio.StreamWriter] = []

    async def knock(self) -> str:
        """What became of one attempt; who is let in stays."""
        outcome = "no answer"
        with suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                outcome = await self._knock()
        self.outcomes[outcome] += 1
        return outcome

    async def _knock(self) -> str:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._inside.append(writer)
            if not self._upgrade:
                return "connected"  # the kernel says so, whatever becomes of it
            writer.write(UPGRADE)
            line = await reader.readline()
        except OSError:
            return CUT
        return line.split()[1].decode() if line else CUT

    async def ramp(self, connections: int) -> None:
        for _ in range(connections // KNOCKERS):
            await asyncio.gather(*(self.knock() for _ in range(KNOCKERS)))

    @asynccontextmanager
    async def siege(self) -> AsyncIterator[None]:
        """Somebody knocks at every moment: what is free is taken at once."""

        async def again_and_again() -> None:
            while True:
                await self.knock()
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(again_and_again()) for _ in range(KNOCKERS // 2)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """All leave at once."""
        for writer in self._inside:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self._inside), return_exceptions=True)
        self._inside.clear()


async def let_in_again(port: int) -> float:
    """How long it takes until a stranger is let in."""
    began_s = time.perf_counter()
    async with Strangers(port, upgrade=True) as strangers, asyncio.timeout(10.0):
        while await strangers.knock() != LET_IN:
            await asyncio.sleep(0.02)
    return time.perf_counter() - began_s


def cpu_s(part: Part) -> float:
    times = psutil.Process(part.pid).cpu_times()
    return float(times.user + times.system)


async def history(device: Device) -> str:
    """Empty when the device was given a page of its conversation, read from the store; else what it was told."""
    assert device._socket is not None
    stream = next(iter(device.places))
    try:
        await device._socket.call("history", {"channel": stream, "limit": 10})
    except Exception as error:
        return repr(error)
    return ""


async def all_can_read(crowd: Crowd, limit_s: float) -> float:
    """How long it takes until every device is given history when it asks for it."""
    began_s = time.perf_counter()
    while True:
        refused = [told for told in await asyncio.gather(*map(history, crowd.devices)) if told]
        if not refused:
            return time.perf_counter() - began_s
        assert time.perf_counter() - began_s < limit_s, f"{len(refused)} sessions cannot read: {refused[0]}"
        await asyncio.sleep(0.2)


@pytest.mark.catalogue("R14", "more connections than a gateway has descriptors")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("upgrade", [True, False], ids=["websockets", "tcp"])
async def test_who_is_connected_does_not_notice_that_there_is_no_room(
    chaos: Chaos, houses: Houses, tmp_store: str, upgrade: bool
):
    times = chaos.repeats(short=1, full=3)
    chaos.load(f"{RATE} msg/s over {2 * ROOMS} sessions, {DESCRIPTORS} descriptors, {2 * DESCRIPTORS} strangers")
    limit = {"gateway-0": ["prlimit", f"--nofile={DESCRIPTORS}"]}
    parts = await houses.build(tmp_store, hosts=1, gateways=1, wraps=limit)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(ROOMS)
    [gateway] = parts.gateways
    outcomes: Counter[str] = Counter()
    shares: list[float] = []
    rooms_s: list[float] = []

    async def crowding() -> None:
        for _ in range(times):
            await asyncio.sleep(0.5)
            async with Strangers(parts.ws_port, upgrade=upgrade) as strangers:
                await strangers.ramp(2 * DESCRIPTORS)
                async with strangers.siege():
                    began_s, used_s = time.perf_counter(), cpu_s(gateway)
                    await asyncio.sleep(chaos.seconds(short=2.0, full=10.0))
                    shares.append((cpu_s(gateway) - used_s) / (time.perf_counter() - began_s))
                assert not any(await asyncio.gather(*map(history, crowd.devices)))
            if upgrade:
                assert strangers.outcomes[LET_IN] < DESCRIPTORS
            outcomes.update(strangers.outcomes)
            rooms_s.append(await let_in_again(parts.ws_port))

    await crowd.talk(RATE, 0.0, crowding)
    await crowd.settle()
    faults = judge(crowd.evidence, await read_log(tmp_store), crowd.commits())
    acks = ack_seconds(crowd.evidence)
    chaos.record(
        knocks=dict(outcomes), gateway_cpu=round(max(shares), 2), room_again_s=round(max(rooms_s), 2), ack=spread(acks)
    )
    chaos.no_faults(faults, crowd.evidence)
    assert all(device.connections == 1 for device in crowd.devices), "a session lost its connection"
    assert max(shares) < 0.8, "the gateway spins"
    assert quantile(acks, 0.99) < 2.0
    if upgrade:
        assert set(outcomes) <= {LET_IN, NO_ROOM, CUT}
        assert outcomes[NO_ROOM], "nobody was told that there is no room"


@pytest.mark.catalogue("R14", "no descriptor is free when the gateway loses its database connections and NATS restarts")
@pytest.mark.timeout(300)
async def test_strangers_do_not_get_the_descriptors_that_a_gateway_needs(chaos: Chaos, nats: Nats):
    needs_mariadb()
    chaos.load(f"{RATE} msg/s over {2 * ROOMS} sessions, {DESCRIPTORS} descriptors, strangers at every moment")
    with MariaDb() as server:
        url = server.url("renoveasy")
        await migrate(url, "chaos")
        limit = {"gateway-0": ["prlimit", f"--nofile={DESCRIPTORS}"]}
        async with Parts(url, nats.url, hosts=1, gateways=1, wraps=limit) as parts, Crowd(parts) as crowd:
            await crowd.furnish(ROOMS)

            async def besieged() -> None:
                async with Strangers(parts.ws_port, upgrade=True) as strangers:
                    await strangers.ramp(2 * DESCRIPTORS)
                    async with strangers.siege():
                        await asyncio.sleep(0.5)
                        end_connections(server)
                        reads_s = await all_can_read(crowd, 3.0)
                        await asyncio.to_thread(nats.restart)
                        writes_s = await acknowledged(crowd, RATE, 15.0)
                        chaos.record(reads_back_s=round(reads_s, 2), writes_back_s=round(writes_s, 2))

            await crowd.talk(RATE, 0.0, besieged)
            await crowd.settle()
            faults = judge(crowd.evidence, await read_log(url), crowd.commits())
            chaos.no_faults(faults, crowd.evidence)


async def acknowledged(crowd: Crowd, messages: int, limit_s: float) -> float:
    """How long it takes until so many more messages are acknowledged."""
    began_s, before = time.perf_counter(), sum(message.acked for message in crowd.evidence.sent.values())
    while sum(message.acked for message in crowd.evidence.sent.values()) < before + messages:
        assert time.perf_counter() - began_s < limit_s, f"no {messages} writes are acknowledged in {limit_s} s"
        await asyncio.sleep(0.05)
    return time.perf_counter() - began_s


def end_connections(server: MariaDb) -> None:
    listed = f"SELECT id FROM information_schema.processlist WHERE user = '{server.user}'"
    for number in server.execute(listed).split():
        with suppress(RuntimeError):  # gone by itself
            server.execute(f"KILL {number}")
