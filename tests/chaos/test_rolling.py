"""Everything is replaced, one process after the other, while people talk: a deploy that nobody notices."""

import asyncio

import pytest

from tests.chaos.conftest import Chaos, Houses, in_short_on
from tests.support.crowd import Crowd
from tests.support.movers import Mover
from tests.support.oracle import ack_seconds, judge, quantile, read_log, silences, spread
from tests.support.parts import Parts


async def replace(parts: Parts, crowd: Crowd, name: str) -> None:
    """SIGTERM; when it has ended in order, a fresh one takes its place."""
    crowd.happened(f"replace {name}")
    code = await parts.stop(name)
    assert code == 0, f"{name} did not end in order ({code}):\n{parts.parts[name].output}"
    await parts.parts[name].start()
    await parts.settled()
    await crowd.all_online()


@in_short_on("mariadb")
@pytest.mark.catalogue("R17", "rolling restart of all hosts and gateways by SIGTERM")
@pytest.mark.timeout(3600)
async def test_a_rolling_restart_is_not_noticed(chaos: Chaos, houses: Houses, store: str):
    rounds = chaos.repeats(short=1, full=10)
    rate, rooms = chaos.choose(short=100, full=1000), chaos.choose(short=20, full=2_500)
    chaos.load(f"{rate} msg/s over {2 * rooms} sessions")
    parts = await houses.build(store, hosts=2, gateways=2)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(rooms)

    async def roll() -> None:
        for number in range(rounds):
            for part in [*parts.hosts, *parts.gateways, *parts.of("placement")]:
                await asyncio.sleep(chaos.seconds(short=0.5, full=3.0))
                await replace(parts, crowd, part.name)
                chaos.tell(f"round {number + 1} of {rounds}, {part.name}, {len(crowd.evidence.sent)} messages")
        await asyncio.sleep(1.0)

    await crowd.talk(rate, 0.0, roll)
    await crowd.settle()
    rows = await read_log(store)
    answers = {
        name: count for name, count in crowd.evidence.errors.items() if not name.startswith("connection lost: 4001")
    }
    chaos.record(
        ack=spread(ack_seconds(crowd.evidence)),
        silence_per_stream=spread(list(silences(crowd.evidence, crowd.began_s, crowd.ended_s).values())),
        resumed=spread(crowd.evidence.resumed_s),
        errors=answers,
    )
    chaos.no_faults(judge(crowd.evidence, rows, crowd.commits()), crowd.evidence)
    refused = [message for message in crowd.evidence.sent.values() if message.refused]
    assert not refused, "no send may fail in the end"
    assert quantile(ack_seconds(crowd.evidence), 0.99) <= chaos.seconds(short=5.0, full=1.0)


@pytest.mark.catalogue("R17h", "rolling restart of all gateways, whose clients hand over")
@pytest.mark.timeout(900)
async def test_who_hands_over_is_never_without_a_connection(chaos: Chaos, houses: Houses, tmp_store: str):
    rate, rooms = chaos.choose(short=40, full=300), chaos.choose(short=30, full=2_500)
    chaos.load(f"{rate} msg/s over {2 * rooms} sessions")
    parts = await houses.build(tmp_store, hosts=2, gateways=2)
    crowd: Crowd = await houses.enter(Crowd(parts))
    await crowd.furnish(rooms, device=Mover)

    async def roll() -> None:
        for gateway in parts.gateways:
            await asyncio.sleep(chaos.seconds(short=0.5, full=3.0))
            await replace(parts, crowd, gateway.name)
            chaos.tell(f"{gateway.name} is replaced, {len(crowd.evidence.sent)} messages")
        await asyncio.sleep(0.5)

    await crowd.talk(rate, 0.0, roll)
    await crowd.settle()
    gaps_s = [gap for device in crowd.devices if isinstance(device, Mover) for gap in device.gaps_s]
    chaos.record(
        moved=len(gaps_s),
        without_a_gap=sum(not gap for gap in gaps_s),
        gap=spread(gaps_s),
        ack=spread(ack_seconds(crowd.evidence)),
        errors=dict(crowd.evidence.errors),
    )
    chaos.no_faults(judge(crowd.evidence, await read_log(tmp_store), crowd.commits()), crowd.evidence)
    assert not [message for message in crowd.evidence.sent.values() if message.refused], "no send may fail in the end"
    assert len(gaps_s) >= 2 * rooms, "everybody has moved once, or twice"
    assert sum(not gap for gap in gaps_s) > len(gaps_s) / 2, "they stand on the next gateway before they leave"
    if chaos.full:
        assert quantile(gaps_s, 0.99) <= 1.0
