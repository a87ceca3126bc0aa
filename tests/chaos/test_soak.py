"""Hours of small misfortunes: nothing is lost, and nothing grows. And a gateway that sleeps for 45 seconds."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from time import perf_counter

import pytest

from tests.chaos.conftest import Chaos, Houses, MariaDatabase
from tests.chaos.test_kills import again_and_again, judged
from tests.support.crowd import Crowd
from tests.support.oracle import quantile
from tests.support.parts import Part, Parts
from tests.support.servers import Nats

SOAK_S = float(os.environ.get("RENOVEASY_CHAOS_SOAK_S", "600"))
"""How long the full form lasts; 7200 for the nightly one."""
SLOPE_LIMIT = 1.0
"""MiB an hour and a thousand sessions; judged where the run is an hour or longer, because a shorter one is all warm-up."""
GROWTH_LIMIT_BYTES = 64 << 20
SPARE_FDS = 16
"""Pooled connections to the database that are opened when they are first needed."""
SPARE_TASKS = 12


class Elders:
    """The host and the gateway that no fault touches: what they hold after a long day."""

    def __init__(self, parts: Parts) -> None:
        self._parts = [parts.parts["host-0"], parts.parts["gateway-0"]]
        self.samples: dict[str, list[tuple[float, int]]] = {part.name: [] for part in self._parts}
        self._baseline: dict[str, tuple[int, int]] = {}

    async def remember(self) -> None:
        """Without sessions and without load."""
        self._baseline = {part.name: await _held(part) for part in self._parts}

    async def watch(self, seconds: float, every_s: float) -> None:
        end_s = perf_counter() + seconds
        while perf_counter() < end_s:
            for part in self._parts:
                self.samples[part.name].append((perf_counter(), part.rss_bytes))
            await asyncio.sleep(every_s)

    async def back(self, limit_s: float) -> dict[str, tuple[int, int]]:
        """Descriptors and tasks beyond the baseline, once they have come down or `limit_s` is over."""
        deadline_s = perf_counter() + limit_s
        while True:
            now = {part.name: await _held(part) for part in self._parts}
            more = {
                name: (fds - self._baseline[name][0], tasks - self._baseline[name][1])
                for name, (fds, tasks) in now.items()
            }
            if (
                all(fds <= SPARE_FDS and tasks <= SPARE_TASKS for fds, tasks in more.values())
                or perf_counter() > deadline_s
            ):
                return more
            await asyncio.sleep(0.5)

    def growth_bytes(self) -> dict[str, int]:
        """From the end of the first third to the end."""
        return {name: samples[-1][1] - samples[len(samples) // 3][1] for name, samples in self.samples.items()}

    def slopes(self, sessions: int) -> dict[str, float]:
        """MiB an hour and a thousand sessions, by least squares over the last two thirds."""
        return {
            name: _slope(samples[len(samples) // 3 :]) * 3600 / 2**20 / (sessions / 1000)
            for name, samples in self.samples.items()
        }


async def _held(part: Part) -> tuple[int, int]:
    return part.fds, int((await part.stats())["tasks"])


def _slope(samples: list[tuple[float, int]]) -> float:
    """Bytes a second."""
    count = len(samples)
    mean_s, mean = sum(at for at, _ in samples) / count, sum(value for _, value in samples) / count
    spread = sum((at - mean_s) ** 2 for at, _ in samples)
    return sum((at - mean_s) * (value - mean) for at, value in samples) / spread if spread else 0.0


class Misfortunes:
    """One after the other, in random order; what sleeps is woken before the next one."""

    def __init__(self, chaos: Chaos, parts: Parts, nats: Nats, database: MariaDatabase) -> None:
        self._chaos = chaos
        self._parts = parts
        self._nats = nats
        self._database = database
        self._kinds: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("kill host-1", lambda: self._kill("host-1")),
            ("kill gateway-1", lambda: self._kill("gateway-1")),
            ("kill placement", lambda: self._kill("placement")),
            ("pause host-1", lambda: self._pause("host-1", 2.0)),
            ("pause gateway-1", lambda: self._pause("gateway-1", 6.0)),
            ("pause placement", lambda: self._pause("placement", 3.0)),
            ("replace host-1", lambda: self._replace("host-1")),
            ("replace gateway-1", lambda: self._replace("gateway-1")),
            ("restart NATS", lambda: asyncio.to_thread(self._nats.restart)),
            ("restart MariaDB", lambda: asyncio.to_thread(self._database.server.restart)),
        ]
        self._deck: list[tuple[str, Callable[[], Awaitable[None]]]] = []

    async def next(self) -> str:
        if not self._deck:
            self._deck = list(self._kinds)
            self._chaos.random.shuffle(self._deck)
        name, work = self._deck.pop()
        await work()
        return name

    async def _kill(self, name: str) -> None:
        if self._parts.parts[name].running:
            self._parts.kill(name)

    async def _pause(self, name: str, seconds: float) -> None:
        part = self._parts.parts[name]
        if part.running:
            self._parts.expect_end(name)
            part.pause()
            await asyncio.sleep(seconds)
            part.resume()

    async def _replace(self, name: str) -> None:
        if self._parts.parts[name].running:
            await self._parts.stop(name)


@pytest.mark.catalogue("R18", "a random misfortune every 30 s")
@pytest.mark.timeout(3 * 3600)
async def test_a_long_day(chaos: Chaos, houses: Houses, nats: Nats, mariadb: MariaDatabase):
    seconds, every_s = chaos.seconds(short=12.0, full=SOAK_S), chaos.seconds(short=3.0, full=30.0)
    rate, rooms = chaos.choose(short=60, full=300), chaos.choose(short=20, full=1_000)
    chaos.load(f"{rate} msg/s over {2 * rooms} sessions for {seconds:.0f} s")
    parts = await houses.build(mariadb.url, hosts=2, gateways=2, supervised=True)
    elders = Elders(parts)
    async with Crowd(parts) as visitors:
        await visitors.furnish(8)
        await visitors.talk(50, 1.0)
        await visitors.settle()
    await asyncio.sleep(1.0)
    await elders.remember()
    async with Crowd(parts, seed=2) as crowd:
        await crowd.furnish(rooms)
        misfortunes = Misfortunes(chaos, parts, nats, mariadb)

        async def day() -> None:
            end_s = perf_counter() + seconds
            while perf_counter() < end_s - every_s / 2:
                await asyncio.sleep(every_s)
                crowd.happened(await misfortunes.next())
                chaos.row.repeats += 1
                chaos.tell(
                    f"{end_s - perf_counter():.0f} s left, {crowd.unsettled} unsettled, {crowd.evidence.events[-1][1]}"
                )

        await asyncio.gather(crowd.talk(rate, seconds, day), elders.watch(seconds, chaos.seconds(short=0.5, full=5.0)))
        crowd.evidence.sent |= visitors.evidence.sent
        crowd.evidence.opened |= visitors.evidence.opened
        try:
            await judged(chaos, crowd, parts, "")
        finally:
            chaos.record(what_happened=len(crowd.evidence.events))
    more = await elders.back(limit_s=60.0)
    growth, slopes = elders.growth_bytes(), elders.slopes(2 * rooms)
    chaos.record(more_fds_and_tasks=more, growth_mib={n: round(b / 2**20, 1) for n, b in growth.items()})
    chaos.record(slope_mib_per_h_and_1000={name: round(slope, 2) for name, slope in slopes.items()})
    for name, (fds, tasks) in more.items():
        assert fds <= SPARE_FDS, name
        assert tasks <= SPARE_TASKS, name
    assert max(growth.values()) <= GROWTH_LIMIT_BYTES
    if seconds >= 3600:
        assert max(slopes.values()) <= SLOPE_LIMIT


@pytest.mark.catalogue("R10", "SIGSTOP of a gateway for 45 s, then SIGCONT")
@pytest.mark.timeout(3600)
async def test_a_gateway_that_slept(chaos: Chaos, houses: Houses, tmp_store: str):
    """It wakes with commands in its sockets that have long been sent again elsewhere, to sessions that have long gone."""
    times, sleep_s = chaos.repeats(short=1, full=20), chaos.seconds(short=5.0, full=45.0)
    rate, rooms = chaos.choose(short=80, full=500), chaos.choose(short=20, full=1_000)
    chaos.load(f"{rate} msg/s over {2 * rooms} sessions")
    parts = await houses.build(tmp_store, hosts=2, gateways=2)
    silence_s = chaos.seconds(short=2.0, full=35.0)
    crowd: Crowd = await houses.enter(Crowd(parts, silence_s=silence_s))
    await crowd.furnish(rooms)

    async def sleep() -> str:
        gateway = chaos.random.choice(parts.gateways)
        gateway.pause()
        await asyncio.sleep(sleep_s)
        gateway.resume()
        return gateway.name

    work = again_and_again(chaos, crowd, "woke", times, chaos.seconds(short=1.0, full=10.0), sleep)
    await crowd.talk(rate, 0.0, work)
    await judged(chaos, crowd, parts, "woke")
    assert crowd.evidence.resumed_s, "nobody was on the gateway that slept: the test proves nothing"
    assert quantile(crowd.evidence.resumed_s, 0.99) <= 3 * silence_s
    replayed = crowd.evidence.errors["answers that came too late"]
    chaos.record(late_answers=replayed)
