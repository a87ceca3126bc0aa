"""Clocks jump by an hour, one process at a time and forth and back: order, deadlines and sessions do not go by them.

What does go by the wall clock is what people are shown (`at`) and tokens: those are good for a minute too long or too short
at most, by the clock of whoever checks them.
"""

import asyncio
import re
from pathlib import Path

import pytest
import uuid_utils

from benchmarks.load.sockets import ChatSocket, SocketFailed
from storage.engine import migrate
from tests.chaos.conftest import Chaos, Houses, needs_mariadb
from tests.support.clocks import HOUR_S, Clocks, MariaDbWithClock, why_no_clocks
from tests.support.crowd import Crowd, log_in
from tests.support.oracle import ack_seconds, judge, quantile, read_log, silences, spread
from tests.support.parts import Parts
from tests.support.servers import Nats

LEEWAY_S = 60
"""By how much a token's life may be misjudged."""
ROOMS = 20
JUMPED = ("host-0", "host-1", "gateway-0", "placement")


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    if reason := why_no_clocks():
        pytest.skip(f"no clocks that can be set: {reason}")
    return Clocks(tmp_path)


async def judged(chaos: Chaos, crowd: Crowd, url: str) -> None:
    """Nothing was lost, doubled, out of order or held up."""
    await crowd.settle()
    rows = await read_log(url)
    acks = ack_seconds(crowd.evidence)
    silent = list(silences(crowd.evidence, crowd.began_s, crowd.ended_s).values())
    chaos.record(ack=spread(acks), silence_per_stream=spread(silent), errors=dict(crowd.evidence.errors.most_common(5)))
    chaos.no_faults(judge(crowd.evidence, rows, crowd.commits()), crowd.evidence)
    assert all(device.connections == 1 for device in crowd.devices), "a session lost its connection"
    assert quantile(acks, 0.99) < 2.0
    assert max(silent) < 5.0


@pytest.mark.catalogue("R12", "clock jumps of an hour, of one process after the other and of all at once")
@pytest.mark.timeout(900)
async def test_nothing_waits_or_moves_because_a_clock_has_jumped(
    chaos: Chaos, houses: Houses, tmp_store: str, clocks: Clocks
):
    rounds = chaos.repeats(short=1, full=10)
    rate, pause_s = chaos.choose(short=50, full=200), chaos.seconds(short=1.0, full=4.0)
    chaos.load(f"{rate} msg/s over {2 * ROOMS} sessions")
    environments = {name: clocks.environment(name) for name in JUMPED}
    parts: Parts = await houses.build(tmp_store, hosts=2, gateways=1, environments=environments)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(ROOMS)
    jumps = [((name,), hours) for name in JUMPED for hours in (1, -1)] + [(JUMPED, 1), (JUMPED, -1), (JUMPED, 0)]
    if not chaos.full:
        # Forth on one side and back on the other: two hours between any two processes that speak to each other.
        jumps = [(("host-0", "placement"), 1), (("gateway-0", "host-1"), -1), (("host-0",), -1), (("gateway-0",), 1)]

    async def jump() -> None:
        for number in range(rounds):
            for names, hours in chaos.random.sample(jumps, len(jumps)):
                for name in names:
                    clocks.set(name, hours * HOUR_S)
                crowd.happened(f"{', '.join(names)} by {hours:+d} h")
                await asyncio.sleep(pause_s)
            chaos.tell(f"{number + 1} of {rounds} rounds, {crowd.unsettled} unsettled")

    await crowd.talk(rate, 0.0, jump)
    await judged(chaos, crowd, tmp_store)
    times = [row.at_ms for row in await read_log(tmp_store) if row.stream is not None]
    assert max(times) - min(times) > 2 * HOUR_S * 1000 * 0.9, "no clock has jumped: the test shows nothing"
    assert not parts.unforeseen


@pytest.mark.catalogue("R12", "clock jumps of an hour of the database's server")
@pytest.mark.timeout(300)
async def test_the_databases_clock_is_nobodys(chaos: Chaos, nats: Nats, clocks: Clocks):
    needs_mariadb()
    rounds = chaos.repeats(short=1, full=10)
    rate, pause_s = chaos.choose(short=50, full=200), chaos.seconds(short=1.0, full=4.0)
    chaos.load(f"{rate} msg/s over {2 * ROOMS} sessions")
    with MariaDbWithClock(clocks, "mariadb") as server:
        url = server.url("renoveasy")
        await migrate(url, "chaos")
        async with Parts(url, nats.url, hosts=2, gateways=1) as parts, Crowd(parts) as crowd:
            await crowd.furnish(ROOMS)

            async def jump() -> None:
                for number in range(rounds):
                    for hours in (1, -1):
                        before = int(server.execute("SELECT UNIX_TIMESTAMP()"))
                        clocks.set("mariadb", hours * HOUR_S)
                        crowd.happened(f"mariadb by {hours:+d} h")
                        await asyncio.sleep(pause_s)
                        moved_s = int(server.execute("SELECT UNIX_TIMESTAMP()")) - before
                        assert abs(moved_s) > 0.9 * HOUR_S, "the server's clock has not jumped"
                    chaos.tell(f"{number + 1} of {rounds} rounds, {crowd.unsettled} unsettled")

            await crowd.talk(rate, 0.0, jump)
            await judged(chaos, crowd, url)


@pytest.mark.catalogue("R12", "placement comes back an hour earlier, and a host dies")
@pytest.mark.timeout(300)
async def test_a_placement_from_an_hour_ago_is_listened_to(
    chaos: Chaos, houses: Houses, tmp_store: str, clocks: Clocks
):
    """Tables have versions, and later ones win: a new placement must not count from what its clock says."""
    chaos.load(f"50 msg/s over {2 * ROOMS} sessions")
    environments = {"placement": clocks.environment("placement")}
    parts: Parts = await houses.build(tmp_store, hosts=2, gateways=1, environments=environments)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(ROOMS)

    async def go_back() -> None:
        await asyncio.sleep(0.5)
        parts.kill("placement")
        clocks.set("placement", -HOUR_S)
        await parts.parts["placement"].start()
        crowd.happened("placement by -1 h")
        await asyncio.sleep(1.0)
        parts.kill("host-1")
        crowd.happened("kill host-1")
        await parts.settled(1)
        await asyncio.sleep(0.5)

    await crowd.talk(50, 0.0, go_back)
    await judged(chaos, crowd, tmp_store)


@pytest.mark.catalogue("R12", "tokens and sessions of a gateway whose clock jumps")
@pytest.mark.timeout(300)
async def test_sessions_outlive_a_jump_and_tokens_are_good_for_a_minute_too_long_at_most(
    chaos: Chaos, houses: Houses, tmp_store: str, clocks: Clocks
):
    parts: Parts = await houses.build(
        tmp_store, hosts=1, gateways=1, environments={"gateway-0": clocks.environment("gateway-0")}
    )
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(2)
    long_s, short_s = 1_800, 60
    [good] = await log_in(parts, [new_id()], long_s)
    [expiring] = await log_in(parts, [new_id()], short_s)
    assert await connecting(parts, good) == ""
    told = {}
    for ahead_s in (HOUR_S, -HOUR_S, short_s - 10, short_s + LEEWAY_S, 0):
        clocks.set("gateway-0", ahead_s)
        told[ahead_s] = [await connecting(parts, token) for token in (good, expiring)]
        await crowd.talk(20, 0.3)
    chaos.record(told={f"{ahead_s:+d} s": [_code(answer) for answer in answers] for ahead_s, answers in told.items()})
    assert told[0] == told[short_s - 10] == ["", ""]
    assert "109" in told[HOUR_S][0], "an expired token is to be told so: its client comes back with a new one"
    assert told[short_s + LEEWAY_S][0] == ""
    assert "109" in told[short_s + LEEWAY_S][1]
    assert all(told[-HOUR_S]), "a token from the future was let in"
    await crowd.settle()
    assert all(device.connections == 1 for device in crowd.devices), "a session ended because a clock jumped"
    chaos.no_faults(judge(crowd.evidence, await read_log(tmp_store), crowd.commits()), crowd.evidence)


async def connecting(parts: Parts, token: str) -> str:
    """Empty when a new session was let in; else what it was told."""
    try:
        socket = await ChatSocket.open(parts.websocket, token)
    except SocketFailed as error:
        return str(error)
    socket.close()
    return ""


def _code(told: str) -> str:
    """The number in what a client was told; empty where it was let in."""
    found = re.search(r"(?:'code': |lost: )(\d+)", told)
    return found[1] if found else told


def new_id() -> str:
    return str(uuid_utils.uuid7())
