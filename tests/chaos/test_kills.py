"""Processes are killed, again and again, while people talk: nothing that was acknowledged is lost, doubled or out of order."""

import asyncio

import pytest

from tests.chaos.conftest import Chaos, Houses
from tests.support.crowd import Crowd
from tests.support.oracle import ack_seconds, judge, read_log, silences, silences_after, spread


@pytest.mark.catalogue("R3", "kill -9 of a random host")
@pytest.mark.timeout(1800)
async def test_hosts_are_killed_under_load(chaos: Chaos, houses: Houses, store: str):
    kills, pause_s = chaos.repeats(short=2, full=120), chaos.seconds(short=3.0, full=5.0)
    rate, rooms = chaos.choose(short=100, full=500), chaos.choose(short=20, full=100)
    chaos.load(f"{rate} msg/s over {rooms} conversations")
    parts = await houses.build(store, hosts=2, gateways=2, supervised=True)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(rooms)

    async def kill() -> None:
        for number in range(kills):
            await asyncio.sleep(pause_s)
            victim = chaos.random.choice([host.name for host in parts.hosts if host.running])
            crowd.happened(f"kill {victim}")
            parts.kill(victim)
            chaos.tell(f"{number + 1} of {kills} kills, {len(crowd.evidence.sent)} messages")
        await asyncio.sleep(pause_s)

    await crowd.talk(rate, 1.0, kill)
    await crowd.settle()
    rows = await read_log(store)
    began_s, ended_s = crowd.began_s, crowd.ended_s
    after = silences_after(crowd.evidence, rows, "kill", began_s, ended_s, crowd.clock_ms)
    chaos.record(
        ack=spread(ack_seconds(crowd.evidence)),
        silence_per_stream=spread(list(silences(crowd.evidence, began_s, ended_s).values())),
        silence_per_stream_and_kill=spread(after),
        moved=len(after),
    )
    chaos.no_faults(judge(crowd.evidence, rows, crowd.commits()), crowd.evidence)
    assert not parts.unforeseen
    assert spread(after)["p99_s"] <= chaos.seconds(short=10.0, full=1.0)
