"""Processes are killed, again and again, while people talk: nothing that was acknowledged is lost, doubled or out of order."""

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest

from tests.chaos.conftest import Chaos, Houses, in_short_on
from tests.support.crowd import Crowd
from tests.support.oracle import (
    TAKEOVER,
    Row,
    ack_seconds,
    judge,
    quantile,
    read_log,
    silences,
    silences_after,
    spread,
)
from tests.support.parts import Parts

RESUMED_S = 10.0
"""Within this, 99 of 100 sessions of a killed gateway are to be back."""


def again_and_again(
    chaos: Chaos, crowd: Crowd, what: str, times: int, pause_s: float, hurt: Callable[[], Awaitable[str]]
) -> Callable[[], Awaitable[None]]:
    """Hurt the platform so many times, a pause before each and one after the last."""

    async def work() -> None:
        for number in range(times):
            await asyncio.sleep(pause_s)
            crowd.happened(f"{what} {await hurt()}")
            chaos.tell(
                f"{number + 1} of {times} times, {len(crowd.evidence.sent)} messages, {crowd.unsettled} unsettled"
            )
        await asyncio.sleep(pause_s)

    return work


async def judged(chaos: Chaos, crowd: Crowd, parts: Parts, what: str) -> float:
    """Write down the figures and what was broken; the 99th percentile of a moved stream's time without an acknowledged write."""
    await crowd.settle()
    rows = await read_log(parts.database_url)
    began_s, ended_s = crowd.began_s, crowd.ended_s
    after = silences_after(crowd.evidence, rows, what, began_s, ended_s, crowd.clock_ms)
    chaos.record(
        ack=spread(ack_seconds(crowd.evidence)),
        silence_per_stream=spread(list(silences(crowd.evidence, began_s, ended_s).values())),
        silence_per_moved_stream=spread(after),
        moved=len(after),
        resumed=spread(crowd.evidence.resumed_s),
        errors=sum(crowd.evidence.errors.values()),
    )
    chaos.no_faults(judge(crowd.evidence, rows, crowd.commits()), crowd.evidence)
    assert not parts.unforeseen
    return quantile(after, 0.99)


@pytest.mark.catalogue("R3", "kill -9 of a random host")
@pytest.mark.timeout(1800)
async def test_hosts_are_killed_under_load(chaos: Chaos, houses: Houses, store: str):
    kills, pause_s = chaos.repeats(short=2, full=120), chaos.seconds(short=2.5, full=5.0)
    rate, rooms = chaos.choose(short=100, full=500), chaos.choose(short=20, full=100)
    chaos.load(f"{rate} msg/s over {rooms} conversations")
    parts = await houses.build(store, hosts=2, gateways=2, supervised=True)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(rooms)

    async def kill() -> str:
        victim = chaos.random.choice([host.name for host in parts.hosts if host.running])
        parts.kill(victim)
        return victim

    await crowd.talk(rate, 0.0, again_and_again(chaos, crowd, "kill", kills, pause_s, kill))
    silent_s = await judged(chaos, crowd, parts, "kill")
    assert silent_s <= chaos.seconds(short=10.0, full=1.0)


@in_short_on("mariadb")
@pytest.mark.catalogue("R3p", "SIGSTOP of a random host for 3 s, then SIGCONT")
@pytest.mark.timeout(1800)
async def test_hosts_are_paused_under_load(chaos: Chaos, houses: Houses, store: str):
    """Nobody is ended, nothing is reset: the host is as good as dead until it wakes, with requests in its pockets."""
    pauses, pause_s = chaos.repeats(short=1, full=30), chaos.seconds(short=2.0, full=8.0)
    rate, rooms = chaos.choose(short=100, full=500), chaos.choose(short=20, full=100)
    chaos.load(f"{rate} msg/s over {rooms} conversations")
    parts = await houses.build(store, hosts=2, gateways=2, supervised=True)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(rooms)
    sleepers: set[asyncio.Task[None]] = set()

    async def wake(name: str) -> None:
        await asyncio.sleep(3.0)
        parts.parts[name].resume()

    async def pause() -> str:
        victim = chaos.random.choice(parts.hosts)
        parts.expect_end(victim.name)
        victim.pause()
        task = asyncio.create_task(wake(victim.name))
        sleepers.add(task)
        task.add_done_callback(sleepers.discard)
        return victim.name

    await crowd.talk(rate, 0.0, again_and_again(chaos, crowd, "pause", pauses, pause_s, pause))
    silent_s = await judged(chaos, crowd, parts, "pause")
    assert silent_s <= 10.0


@pytest.mark.catalogue("R2", "kill -9 of a gateway")
@pytest.mark.timeout(3600)
async def test_gateways_are_killed_under_load(chaos: Chaos, houses: Houses, tmp_store: str):
    kills, pause_s = chaos.repeats(short=2, full=50), chaos.seconds(short=2.0, full=20.0)
    rate, rooms = chaos.choose(short=100, full=1000), chaos.choose(short=30, full=2_500)
    chaos.load(f"{rate} msg/s over {2 * rooms} sessions")
    parts = await houses.build(tmp_store, hosts=2, gateways=2, supervised=True)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(rooms)

    async def kill() -> str:
        victim = chaos.random.choice([gateway.name for gateway in parts.gateways if gateway.running])
        parts.kill(victim)
        return victim

    await crowd.talk(rate, 0.0, again_and_again(chaos, crowd, "kill", kills, pause_s, kill))
    await judged(chaos, crowd, parts, "kill")
    resumed_s = quantile(crowd.evidence.resumed_s, 0.99)
    assert not math.isnan(resumed_s)
    assert resumed_s <= RESUMED_S


def taken(rows: list[Row]) -> int:
    """How often a partition was taken."""
    return sum(row.type == TAKEOVER for row in rows)


@pytest.mark.catalogue("R3q", "kill -9 of placement, then of a host while there is none")
@pytest.mark.timeout(600)
async def test_placement_is_killed_under_load(chaos: Chaos, houses: Houses, tmp_store: str):
    """Without placement nothing moves and everything works; a host that dies meanwhile is replaced when it is back."""
    times = chaos.repeats(short=2, full=20)
    chaos.load("50 msg/s over 20 conversations")
    parts = await houses.build(tmp_store, hosts=2, gateways=1, supervised=True, restart_after_s=0.5)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(20)

    async def hurt() -> None:
        for number in range(times):
            await asyncio.sleep(1.0)
            before = taken(await read_log(tmp_store))
            crowd.happened("kill placement")
            parts.kill("placement")
            if number % 2 == 0:
                await asyncio.sleep(1.0)
                await parts.settled(2)
                assert taken(await read_log(tmp_store)) == before, "nothing moves because placement is replaced"
            else:
                victim = chaos.random.choice([host.name for host in parts.hosts if host.running])
                crowd.happened(f"kill {victim}")
                parts.kill(victim)
            await parts.settled(2)
            chaos.tell(f"{number + 1} of {times} times")
        await asyncio.sleep(1.0)

    await crowd.talk(50, 0.0, hurt)
    await judged(chaos, crowd, parts, "kill")


@pytest.mark.catalogue("R3-control", "hosts acknowledge before they commit, and are killed")
@pytest.mark.timeout(120)
async def test_the_judge_finds_hosts_that_acknowledge_before_they_commit(chaos: Chaos, houses: Houses, tmp_store: str):
    chaos.load("100 msg/s over 10 conversations")
    planted = {"PART_WIRING": "tests.support.early_acks:plant"}
    parts = await houses.build(tmp_store, hosts=2, gateways=1, environment=planted, supervised=True)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(10)

    async def kill() -> None:
        await asyncio.sleep(1.0)
        parts.kill("host-0")
        await asyncio.sleep(1.0)

    await crowd.talk(100, 0.0, kill)
    await crowd.settle(limit_s=5.0)
    faults = judge(crowd.evidence, await read_log(tmp_store), crowd.commits())
    lost = [fault for fault in faults if fault.promise == "L" and "is not stored" in fault.how]
    chaos.record(found={promise: sum(f.promise == promise for f in faults) for promise in "LDOPUW"})
    assert lost, "messages were acknowledged and not committed, and nobody noticed"
