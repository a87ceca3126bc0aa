"""The store's disk is full, broken, or hangs: nobody is told of a write that is not stored, and nothing has to be mended after.

Writers hear `unavailable` and send again with the same id; whoever reads from live conversations notices nothing; when the disk
works again, so does everything else, in the same processes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.chaos.conftest import Chaos, needs_mariadb
from tests.support.disks import Disk, why_no_disks
from tests.support.oracle import Evidence, judge, read_log
from tests.support.power_loss import lose_power, revive, sound
from tests.support.stacks import STORES, MariaDbOn, Readers, Stack, StoreName, Writers, store_on, sync

MEGABYTES: dict[StoreName, int] = {"sqlite": 64, "mariadb": 192}
CONVERSATIONS = 32
EACH_PER_S = 5.0
WRITERS_WAIT_S = 2.0
METRICS_S = 1.1
"""After this long what a host has counted is in its metrics."""
BACK_S = 10.0
"""Writes are acknowledged again this long after the disk works again."""
SPINNING = 0.5
"""Of a core. Some 320 writes wait; a loop without a pause takes all of it."""


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> StoreName:
    if reason := why_no_disks():
        pytest.skip(f"no disks that can be filled and broken: {reason}")
    if request.param == "mariadb":
        needs_mariadb()
    return request.param


class Life:
    """People who write and read on a stack, and what they notice while its disk fails them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.evidence = Evidence()
        self.writers = Writers(stack.router, self.evidence, EACH_PER_S)
        self.writers.timeout_s = WRITERS_WAIT_S
        self.readers = Readers(stack.router, self.evidence)
        self._host = psutil.Process(stack.parts.hosts[0].pid)
        self._before = 0.0
        self.whole = 0
        """Outages in which the host stood on its lease and on what it had loaded all the time."""

    @property
    def acked(self) -> int:
        return sum(1 for sent in self.evidence.sent.values() if sent.acked)

    async def until(self, what: str, true: Callable[[], object], limit_s: float) -> float:
        """How long it took to come true, in seconds."""
        began_s = time.perf_counter()
        while not true():
            assert time.perf_counter() - began_s < limit_s, (
                f"not in {limit_s} s: {what}; refusals {dict(self.evidence.errors)}\n{self.stack.parts.hosts[0].output}"
                f"\n--- the store\n{self.stack.store.log}"
            )
            await asyncio.sleep(0.01)
        return time.perf_counter() - began_s

    async def _upheavals(self) -> float:
        """How often the host had to ask the log what it owns, or to load anew what it had: a log that is away answers neither.

        Because this machine let it stand still for longer than its lease lasts, or because the disk failed in the middle of a
        commit that happened all the same.
        """
        await asyncio.sleep(METRICS_S)
        counted = (await self.stack.parts.hosts[0].stats())["metrics"]
        return float(counted.get("lease_gaps", 0) + counted.get("takeovers", 0))

    def outages(self, times: int) -> Iterator[int]:
        """Numbers of outages to come, until so many were whole; three more at most."""
        for number in range(times + 3):
            if self.whole < times:
                yield number
        assert self.whole >= times, "the host had to ask the log each time"

    async def write_for_a_while(self) -> None:
        """Two messages or so in each conversation."""
        self._before = await self._upheavals()
        enough = self.acked + 2 * CONVERSATIONS
        await self.until("enough acknowledged writes", lambda: self.acked >= enough, BACK_S)
        self.evidence.errors.clear()

    async def back(self) -> float:
        """How long it takes until a write is acknowledged that was not before."""
        before = self.acked
        return await self.until("an acknowledged write", lambda: self.acked > before, BACK_S)

    def cpu_s(self) -> float:
        """Processor seconds of the host so far."""
        times = self._host.cpu_times()
        return float(times.user + times.system)

    async def outage(self, chaos: Chaos, seconds: float) -> None:
        """Nobody reads worse for so long, writers hear the one word there is for it, and the host does not spin."""
        await self.until("a refused write", lambda: self.evidence.errors, 3 * WRITERS_WAIT_S)
        began_s, cpu_s = time.perf_counter(), self.cpu_s()
        await asyncio.sleep(seconds)
        now_s = time.perf_counter()
        refused, asked = self.readers.refused(began_s, now_s), self.readers.asked(began_s, now_s)
        chaos.record(
            reads_meanwhile=asked,
            reads_refused=len(refused),
            writes_refused=dict(self.evidence.errors),
            host_cpu=round((self.cpu_s() - cpu_s) / seconds, 2),
        )
        assert set(self.evidence.errors) <= {"unavailable", "busy"}
        if (refused or not asked) and await self._upheavals() > self._before:
            return
        self.whole += 1
        assert asked
        assert not refused, f"{len(refused)} of {asked} reads of live conversations were refused: {set(refused)}"
        assert self.cpu_s() - cpu_s < SPINNING * seconds

    async def judged(self, chaos: Chaos) -> None:
        await self.writers.settle()
        await self.writers.write_everywhere()
        rows = await read_log(self.stack.store.url)
        faults = judge(self.evidence, rows, members=False) + await sound(self.stack.store.url, rows)
        chaos.no_faults(faults, self.evidence)


@asynccontextmanager
async def life_on(disk: Disk, kind: StoreName) -> AsyncIterator[Life]:
    async with Stack(disk, store_on(disk, kind)) as stack:
        life = Life(stack)
        await life.writers.open(CONVERSATIONS)
        sync(disk)
        async with life.readers:
            yield life


def pids(stack: Stack) -> list[int]:
    return [part.pid for part in stack.parts.parts.values() if part.running]


@pytest.mark.catalogue("R13", "the store's disk fills up, and is freed")
@pytest.mark.timeout(900)
async def test_a_full_disk_takes_no_writes_and_needs_no_repair(chaos: Chaos, kind: StoreName, tmp_path: Path):
    times = chaos.repeats(short=1, full=10)
    chaos.load(f"{CONVERSATIONS * EACH_PER_S:g} msg/s, 30 reads/s of live conversations, by NATS to one host")
    backs: list[float] = []
    ended = 0
    with Disk(MEGABYTES[kind]) as disk:
        async with life_on(disk, kind) as life:
            processes = pids(life.stack)
            async with life.writers:
                for number in life.outages(times):
                    await life.write_for_a_while()
                    disk.fill()
                    await life.outage(chaos, chaos.seconds(short=2.0, full=10.0))
                    image = await lose_power(life.stack, life.evidence, tmp_path / "full.image", running=False)
                    disk.free()
                    # MariaDB 10.11 now and then aborts when InnoDB finds no room; its supervisor starts it again.
                    ended += await asyncio.to_thread(life.stack.store.start_again)
                    backs.append(await life.back())
                    chaos.tell(f"{kind}: {number + 1} of {times} times, back after {backs[-1]:.2f} s")
            await life.judged(chaos)
            assert pids(life.stack) == processes, "something died"
    # What was acknowledged on the full disk was stored as well as ever.
    verdict = await revive(kind, image, first=Disk.free)
    assert not verdict.faults, "\n".join(map(str, verdict.faults[:10]))
    chaos.record(back_s=round(max(backs), 2), store_ended=ended, acked_before_image=verdict.acked, lost=verdict.lost)


@pytest.mark.catalogue("R13", "the store's disk hangs in every write and sync, and goes on")
@pytest.mark.timeout(300)
async def test_a_disk_that_hangs_holds_up_writers_alone(chaos: Chaos, kind: StoreName):
    times = chaos.repeats(short=1, full=5)
    chaos.load(f"{CONVERSATIONS * EACH_PER_S:g} msg/s, 30 reads/s of live conversations, by NATS to one host")
    backs: list[float] = []
    with Disk(2 * MEGABYTES[kind]) as beneath, Disk(MEGABYTES[kind], on=beneath) as disk:
        async with life_on(disk, kind) as life:
            processes = pids(life.stack)
            async with life.writers:
                for number in life.outages(times):
                    await life.write_for_a_while()
                    with beneath.frozen():
                        await asyncio.sleep(0.1)  # for what is on its way back
                        acked = life.acked
                        await life.outage(chaos, chaos.seconds(short=3.0, full=12.0))
                        assert life.acked == acked, "a write was acknowledged that no disk had taken"
                    backs.append(await life.back())
                    chaos.tell(f"{kind}: {number + 1} of {times} times, back after {backs[-1]:.2f} s")
            await life.judged(chaos)
            assert pids(life.stack) == processes, "something died"
    chaos.record(back_s=round(max(backs), 2))


@pytest.mark.catalogue("R13", "the store's disk breaks, is mounted again, and what had files there is restarted")
@pytest.mark.timeout(600)
async def test_a_broken_disk_takes_no_writes_until_it_is_mounted_again(chaos: Chaos, kind: StoreName):
    """EIO: the device is gone. EROFS: the kernel has found the file system damaged and lets nobody write.

    Only what had files open there is restarted: MariaDB, or the host that has SQLite in it.
    """
    chaos.load(f"{CONVERSATIONS * EACH_PER_S:g} msg/s, 30 reads/s of live conversations, by NATS to one host")
    ways = chaos.choose(short=["EIO"] if kind == "sqlite" else ["EROFS"], full=["EIO", "EROFS"] * 5)
    chaos.repeats(short=1, full=len(ways))
    backs = [await _broken(chaos, kind, how) for how in ways]
    chaos.record(how=sorted(set(ways)), back_s=round(max(backs), 2))


async def _broken(chaos: Chaos, kind: StoreName, how: str) -> float:
    with Disk(MEGABYTES[kind]) as disk:
        async with life_on(disk, kind) as life:
            async with life.writers:
                for _ in life.outages(1):
                    await life.write_for_a_while()
                    if how == "EROFS":
                        disk.turn_read_only()
                    else:
                        disk.die()
                    await asyncio.sleep(0.1)  # for what is on its way back
                    acked = life.acked
                    await life.outage(chaos, chaos.seconds(short=2.0, full=10.0))
                    assert life.acked == acked, "a write was acknowledged that no disk had taken"
                    await restart_on_mended(disk, life.stack)
                    back_s = await life.back()
            await life.judged(chaos)
    return back_s


async def restart_on_mended(disk: Disk, stack: Stack) -> None:
    if isinstance(stack.store, MariaDbOn):
        host = stack.parts.hosts[0].pid
        stack.store.server.kill()
        disk.mount_again()
        await asyncio.to_thread(stack.store.server.start)
        assert stack.parts.hosts[0].pid == host
        return
    parts = list(stack.parts.parts.values())
    for part in parts:
        part.kill()
    disk.mount_again()
    await asyncio.gather(*(part.start() for part in parts))
