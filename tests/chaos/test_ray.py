"""The same on the real thing: Ray's own actors are killed, stopped and replaced, and Ray brings them back."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import perf_counter

import pytest

from deploy import registry, runtime
from deploy.settings import Settings
from tests.chaos.conftest import Chaos
from tests.support.crowd import Crowd
from tests.support.oracle import ack_seconds, judge, quantile, read_log, silences, silences_after, spread
from tests.support.platform import Platform

BACK_S = 60.0
"""A busy machine needs this long to start a process of Ray's at worst."""


class Cluster:
    """A platform on Ray, as a crowd stands on it and as a test hurts it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    @property
    def settings(self) -> Settings:
        found = runtime.read(self.platform.data_dir)
        assert found is not None
        return found.settings

    @property
    def nats_url(self) -> str:
        return self.settings.url_of("nats_url", "rest")

    @property
    def database_url(self) -> str:
        return self.settings.database_url

    @property
    def folder(self) -> Path:
        return self.platform.data_dir

    @property
    def websocket(self) -> str:
        return self.platform.websocket

    def pids(self, *roles: str) -> dict[str, int]:
        """The processes that do these roles' work now, by name."""
        return {each["name"]: each["pid"] for each in registry.processes(self.settings) if each["role"] in roles}

    async def back(self, name: str, former: int) -> None:
        """Return when another process does the work of `name`."""
        role = name.partition("-")[0]
        async with asyncio.timeout(BACK_S):
            while self.pids(role).get(name, former) == former:
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One platform for all of these tests: a start costs as much as all of them."""
    with Platform(hosts="2", gateways="2") as platform:
        yield Cluster(platform)


@pytest.fixture
async def crowd(cluster: Cluster, chaos: Chaos) -> AsyncIterator[Crowd]:
    rooms = chaos.choose(short=15, full=100)
    cluster.platform.check()
    async with Crowd(cluster) as people:
        await people.furnish(rooms)
        yield people
    cluster.platform.check()


async def judged(chaos: Chaos, crowd: Crowd, cluster: Cluster, what: str) -> float:
    """Write down the figures and what was broken; the 99th percentile of a moved stream's time without an acknowledged write."""
    await crowd.settle()
    own = crowd.evidence.opened.keys()
    rows = [row for row in await read_log(cluster.database_url) if row.stream is None or row.stream in own]
    began_s, ended_s = crowd.began_s, crowd.ended_s
    after = silences_after(crowd.evidence, rows, what, began_s, ended_s, crowd.clock_ms)
    chaos.record(
        ack=spread(ack_seconds(crowd.evidence)),
        silence_per_stream=spread(list(silences(crowd.evidence, began_s, ended_s).values())),
        silence_per_moved_stream=spread(after),
        resumed=spread(crowd.evidence.resumed_s),
    )
    chaos.no_faults(judge(crowd.evidence, rows, whole=False), crowd.evidence)
    assert not [message.id for message in crowd.evidence.sent.values() if message.refused]
    return quantile(after, 0.99)


@pytest.mark.catalogue("R3-ray", "kill -9 of a random host actor's process; Ray starts it again")
@pytest.mark.timeout(1800)
async def test_host_actors_are_killed(chaos: Chaos, cluster: Cluster, crowd: Crowd):
    kills, rate = chaos.repeats(short=1, full=30), chaos.choose(short=60, full=500)
    chaos.load(f"{rate} msg/s over {len(crowd.rooms)} conversations")
    back_s = []

    async def hurt() -> None:
        for number in range(kills):
            await asyncio.sleep(1.0)
            name, pid = chaos.random.choice(sorted(cluster.pids("host").items()))
            crowd.happened(f"kill {name}")
            os.kill(pid, signal.SIGKILL)
            killed_s = perf_counter()
            await cluster.back(name, pid)
            back_s.append(perf_counter() - killed_s)
            chaos.tell(f"{number + 1} of {kills}, {name} back after {back_s[-1]:.1f} s")
        await asyncio.sleep(1.0)

    await crowd.talk(rate, 0.0, hurt)
    silent_s = await judged(chaos, crowd, cluster, "kill")
    chaos.record(back=spread(back_s))
    assert silent_s <= chaos.seconds(short=10.0, full=1.0)


@pytest.mark.catalogue("R2-ray", "kill -9 of gateway and placement actors' processes; Ray starts them again")
@pytest.mark.timeout(1800)
async def test_gateway_and_placement_actors_are_killed(chaos: Chaos, cluster: Cluster, crowd: Crowd):
    rounds, rate = chaos.repeats(short=1, full=15), chaos.choose(short=60, full=500)
    chaos.load(f"{rate} msg/s over {len(crowd.devices)} sessions")

    async def hurt() -> None:
        for number in range(rounds):
            for name in chaos.choose(short=("gateway-0", "placement"), full=("gateway-0", "placement", "gateway-1")):
                await asyncio.sleep(1.0)
                pid = cluster.pids("gateway", "placement")[name]
                crowd.happened(f"kill {name}")
                os.kill(pid, signal.SIGKILL)
                await cluster.back(name, pid)
            chaos.tell(f"{number + 1} of {rounds}")

    await crowd.talk(rate, 0.0, hurt)
    await judged(chaos, crowd, cluster, "kill")
    assert quantile(crowd.evidence.resumed_s, 0.99) <= 10.0


@pytest.mark.catalogue("ZOMBIE-ray", "SIGSTOP of a host actor's process: it is ended and started again")
@pytest.mark.timeout(600)
async def test_a_host_actor_that_hangs_is_ended(chaos: Chaos, cluster: Cluster, crowd: Crowd):
    times, rate = chaos.repeats(short=1, full=15), chaos.choose(short=60, full=500)
    chaos.load(f"{rate} msg/s over {len(crowd.rooms)} conversations")

    async def hurt() -> None:
        for number in range(times):
            await asyncio.sleep(1.0)
            name, pid = chaos.random.choice(sorted(cluster.pids("host").items()))
            crowd.happened(f"pause {name}")
            os.kill(pid, signal.SIGSTOP)
            await cluster.back(name, pid)
            chaos.tell(f"{number + 1} of {times}")
        await asyncio.sleep(1.0)

    await crowd.talk(rate, 0.0, hurt)
    silent_s = await judged(chaos, crowd, cluster, "pause")
    assert silent_s <= chaos.seconds(short=15.0, full=2.5)


@pytest.mark.catalogue("R17-ray", "hosts and gateways replaced by `renoveasy drain`")
@pytest.mark.timeout(1800)
async def test_a_rolling_restart_by_command(chaos: Chaos, cluster: Cluster, crowd: Crowd):
    rounds, rate = chaos.repeats(short=1, full=5), chaos.choose(short=60, full=500)
    chaos.load(f"{rate} msg/s over {len(crowd.devices)} sessions")
    names = chaos.choose(short=["host-0", "gateway-0"], full=["--rolling"])
    before = cluster.pids("host", "gateway")

    async def hurt() -> None:
        for number in range(rounds):
            crowd.happened("drain")
            done = await asyncio.to_thread(cluster.platform.renoveasy, "drain", *names, limit_s=240.0)
            assert done.returncode == 0, done.stdout + done.stderr
            chaos.tell(f"{number + 1} of {rounds}: {done.stdout.splitlines()[-1]}")

    await crowd.talk(rate, 0.0, hurt)
    await judged(chaos, crowd, cluster, "drain")
    after = cluster.pids("host", "gateway")
    assert after.keys() == before.keys()
    replaced = before.keys() if names == ["--rolling"] else names
    assert [name for name in replaced if after[name] == before[name]] == []
    assert quantile(ack_seconds(crowd.evidence), 0.99) <= chaos.seconds(short=5.0, full=1.0)
