"""Everybody comes back at once: the gateway is gone, all are some messages behind, and nobody waits a random moment.

What they have missed is served from what the streams' owners still know, so that the database, which is busiest then, is not
asked for it.
"""

import asyncio
from time import perf_counter
from types import TracebackType

import pytest

from tests.chaos.conftest import FULL_FORM, Chaos, Houses
from tests.support.crowd import Crowd, Walkie
from tests.support.oracle import judge, read_log, spread
from tests.support.parts import Part, Parts
from tests.support.visits import VISITS

COUNTED = {"PART_WIRING": "tests.support.visits:count"}
TAIL = 64
"""Events of a stream that its owner keeps."""
AT_ONCE = 30
"""Conversations in which something is said at the same time."""
PATIENCE_S = 20.0
"""For the handshake: all people here have one processor between them, which everybody of a real crowd has for themselves."""
METRICS_S = 1.5
"""By then a part's metrics have been handed over."""


class Gate:
    """In the place of the crowd's door: nobody gets through, then everybody at once."""

    def __init__(self) -> None:
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    async def __aenter__(self) -> None:
        await self._open.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


async def numbers(parts: list[Part], name: str) -> float:
    return sum([(await part.stats())["metrics"].get(name, 0.0) for part in parts])


async def say_while_nobody_listens(chaos: Chaos, crowd: Crowd, each: int) -> None:
    """So many messages in every conversation, by its writers, who speak to the hosts themselves, a few of them at a time."""
    rooms = iter(crowd.rooms)

    async def some() -> None:
        for stream, writers in rooms:
            voice = Walkie(crowd, writers[0].name, writers[0].user, crowd.router)
            for _ in range(each):
                voice.say(crowd.message(stream, voice))
            while not voice.settled:
                await asyncio.sleep(0.005)
            await voice.stop()
            chaos.tell(f"{len(crowd.evidence.sent)} messages said")

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def caught_up(chaos: Chaos, crowd: Crowd, limit_s: float) -> list[float]:
    """For each device the moment when it had been shown all of its conversation; those who were not in time are left out."""
    heads = {message.stream: 0 for message in crowd.evidence.sent.values()}
    for message in crowd.evidence.sent.values():
        heads[message.stream] = max(heads[message.stream], message.offset)
    until_s = perf_counter() + limit_s
    missing = list(crowd.devices)
    while missing and perf_counter() < until_s:
        await asyncio.sleep(0.02)
        missing = [
            device
            for device in missing
            if not (device.online and all(place.offset >= heads[name] for name, place in device.places.items()))
        ]
        chaos.tell(f"{len(missing)} of {len(crowd.devices)} are not back, {dict(crowd.evidence.errors)}")
    shown = crowd.evidence.shown
    return [
        shown[device.name, stream][-1].at_s
        for device in crowd.devices
        for stream, place in device.places.items()
        if place.offset >= heads[stream]
    ]


async def storm(chaos: Chaos, crowd: Crowd, parts: Parts, behind: int, limit_s: float) -> dict[str, float]:
    """Cut everybody off, let them miss so much, and let them back all at once: what that cost the database."""
    sessions = len(crowd.devices)
    crowd.handshake_s = PATIENCE_S
    gate = crowd.door = Gate()  # type: ignore[assignment]
    crowd.happened("kill all gateways")
    for gateway in parts.gateways:
        parts.kill(gateway.name)
    await parts.until("everybody is cut off", lambda: not any(device.online for device in crowd.devices))
    await say_while_nobody_listens(chaos, crowd, behind)
    await asyncio.gather(*(gateway.start() for gateway in parts.gateways))
    await asyncio.sleep(METRICS_S)
    before = {
        "loads": await numbers(parts.hosts, "activation_loads"),
        "host_visits": await numbers(parts.hosts, VISITS),
        "gateway_visits": await numbers(parts.gateways, VISITS),
    }
    crowd.happened("storm")
    began_s = perf_counter()
    gate.open()
    back = [at_s - began_s for at_s in await caught_up(chaos, crowd, limit_s)]
    await asyncio.sleep(METRICS_S)
    cost = {
        "pages": await numbers(parts.gateways, "gateway_recovery_pages"),
        "lookups": await numbers(parts.gateways, "session_lookups"),
        "loads": await numbers(parts.hosts, "activation_loads") - before["loads"],
        "gateway_visits": await numbers(parts.gateways, VISITS) - before["gateway_visits"],
        "host_visits": await numbers(parts.hosts, VISITS) - before["host_visits"],
    }
    chaos.record(
        sessions=sessions,
        behind=behind,
        back=len(back),
        caught_up=spread(back),
        per_session={name: round(count / sessions, 4) for name, count in cost.items()},
        errors=dict(crowd.evidence.errors),
    )
    return cost


@pytest.mark.catalogue("R11", "all sessions are cut and come back at once, 20 messages behind")
@pytest.mark.parametrize("gateways", [1, 2] if FULL_FORM else [1])
@pytest.mark.timeout(900)
async def test_who_all_come_back_at_once_have_everything_soon_and_the_log_is_not_read(
    chaos: Chaos, houses: Houses, tmp_store: str, gateways: int
):
    rooms = chaos.choose(short=100, full=2_500) * gateways
    chaos.load(f"{2 * rooms} sessions on {gateways} gateways")
    parts = await houses.build(tmp_store, hosts=2, gateways=gateways, environment=COUNTED)
    crowd: Crowd = await houses.enter(Crowd(parts, window=20))
    await crowd.furnish(rooms)

    cost = await storm(chaos, crowd, parts, 20, limit_s=60.0)

    await crowd.settle()
    chaos.no_faults(judge(crowd.evidence, await read_log(tmp_store), crowd.commits()), crowd.evidence)
    assert cost["pages"] == 0, "no page of the log is read for anybody"
    assert cost["loads"] == 0, "no conversation is loaded again"
    if chaos.full:
        assert chaos.row.figures["back"] == 2 * rooms
        assert chaos.row.figures["caught_up"]["max_s"] <= 10.0 * gateways
        assert cost["gateway_visits"] + cost["host_visits"] <= 0.01 * 2 * rooms
    assert cost["gateway_visits"] <= cost["lookups"], "the gateways ask the database who is there, and nothing else"


@pytest.mark.catalogue("R11-control", "the same, further behind than owners remember")
@pytest.mark.timeout(300)
async def test_who_is_further_behind_than_owners_remember_is_served_from_the_log(
    chaos: Chaos, houses: Houses, tmp_store: str
):
    rooms = chaos.choose(short=20, full=500)
    chaos.load(f"{2 * rooms} sessions on a gateway")
    parts = await houses.build(tmp_store, hosts=2, gateways=1, environment=COUNTED)
    crowd: Crowd = await houses.enter(Crowd(parts, window=20))
    await crowd.furnish(rooms)

    cost = await storm(chaos, crowd, parts, TAIL + 36, limit_s=60.0)

    await crowd.settle()
    chaos.no_faults(judge(crowd.evidence, await read_log(tmp_store), crowd.commits()), crowd.evidence)
    assert cost["pages"] >= rooms, "what nobody remembers is read, or the count counts nothing"
    assert cost["gateway_visits"] >= cost["pages"]
