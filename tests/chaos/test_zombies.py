"""A host is stopped in the middle of its work, another one takes over and writes, and the first one wakes up.

It does not know that time has passed. Whatever it does then, nothing of it is committed: that is read in the log, where the
rows after a takeover row are compared with what every host has written down of its own commits.
"""

import asyncio
from time import perf_counter

import pytest

from actors.placement import assign
from domain.channels import stream_partition
from tests.chaos import locks
from tests.chaos.conftest import Chaos, Houses, MariaDatabase, in_short_on
from tests.support.crowd import Crowd
from tests.support.oracle import TAKEOVER, Row, ack_seconds, judge, read_log, silences_after, spread, unclaimed
from tests.support.parts import Part, Parts

RATE = 200
ROOMS = 20
QUIET_ROOMS = 16
WINDOW = 8
"""Several messages under way per sender, so that the paused host has work in its hands and requests in its pockets."""
UNDISTURBED = {"RENOVEASY_END_PAUSED_HOSTS": "off"}


class Night:
    """Repeats of: pause the owner, wait for the takeover, let the new owner write, wake the old one, and let it try."""

    def __init__(self, chaos: Chaos, parts: Parts, crowd: Crowd) -> None:
        self.chaos = chaos
        self.parts = parts
        self.crowd = crowd
        self.taken_s: list[float] = []
        self.ended = 0

    async def run(self, repeats: int, *, inside: bool) -> None:
        for number in range(repeats):
            sleeper = self.parts.hosts[number % 2]
            await asyncio.sleep(0.3)
            self.parts.expect_end(sleeper.name)
            if inside:
                await locks.pause(sleeper, self.parts.database_url, chance=self.chaos.random)
            else:
                await self._caught(sleeper, f"the last words of night {number}")
            self.crowd.happened(f"pause {sleeper.name}")
            paused_s, starts = perf_counter(), sleeper.starts
            await self.parts.settled(1)
            self.taken_s.append(perf_counter() - paused_s)
            await self._written_since(perf_counter())
            if sleeper.running and sleeper.starts == starts:
                self.crowd.happened(f"wake {sleeper.name}")
                sleeper.resume()
            else:
                self.ended += 1
            await self.parts.settled(2)
            self.chaos.tell(f"{number + 1} of {repeats} nights, {len(self.crowd.evidence.sent)} messages")

    async def _caught(self, sleeper: Part, words: str) -> None:
        """The owner stops about to commit what nobody will send again, in a conversation where nobody else writes: only the
        fence stands between it and the log."""
        sleeper.set_trap(words)
        owned = assign([host.name for host in self.parts.hosts])[sleeper.name]
        room = next(name for name, writers in self.crowd.rooms if not writers and stream_partition(name) in owned)
        await self.crowd.say_once(room, words)
        await sleeper.trapped()

    def clashes(self) -> int:
        """Commits that found their partitions taken by somebody else."""
        return sum(bool(line["fenced"]) for host in self.parts.hosts for line in host.commits())

    async def counted(self, name: str) -> float:
        """The sum of a counter over the hosts that live now; they hand theirs over once a second."""
        await asyncio.sleep(1.2)
        return sum([(await host.stats())["metrics"].get(name, 0.0) for host in self.parts.hosts])

    async def _written_since(self, since_s: float) -> None:
        """Every conversation has had a write acknowledged since then: the new owner is at work everywhere."""
        async with asyncio.timeout(30):
            while True:
                written = {m.stream for m in self.crowd.evidence.sent.values() if m.acked and m.acked_s > since_s}
                if len(written) == ROOMS:
                    return
                await asyncio.sleep(0.02)


def usurped(rows: list[Row]) -> int:
    """How many takeover rows took a partition from another living incarnation."""
    count = 0
    owners: dict[int, str] = {}
    for row in rows:
        if row.type == TAKEOVER:
            count += owners.get(row.partition, row.actor) != row.actor
            owners[row.partition] = row.actor
    return count


async def nights(
    chaos: Chaos, houses: Houses, url: str, repeats: int, *, inside: bool = False, ending: bool = False
) -> Night:
    """Run them under load, and judge everything."""
    chaos.load(f"{RATE} msg/s over {ROOMS} conversations, {WINDOW} under way per sender, by NATS")
    environment = {} if ending else UNDISTURBED
    parts = await houses.build(url, hosts=2, gateways=0, environment=environment, supervised=ending)
    crowd: Crowd = await houses.enter(Crowd(parts, window=WINDOW))
    await crowd.furnish(ROOMS, sockets=False)
    await crowd.furnish(QUIET_ROOMS, sockets=False, writers=0)
    night = Night(chaos, parts, crowd)
    await crowd.talk(RATE, 0.0, lambda: night.run(repeats, inside=inside))
    await crowd.settle()
    rows = await read_log(url)
    after = silences_after(crowd.evidence, rows, "pause", crowd.began_s, crowd.ended_s, crowd.clock_ms)
    chaos.record(
        taken_over=spread(night.taken_s),
        silence_per_moved_stream=spread(after),
        ack=spread(ack_seconds(crowd.evidence)),
        fenced_partitions=await night.counted("fenced_partitions"),
        flushes_failed=await night.counted("flushes_failed"),
        clashes=night.clashes(),
        takeovers=usurped(rows),
        ended=night.ended,
        unclaimed=unclaimed(rows, crowd.commits()),
    )
    chaos.no_faults(judge(crowd.evidence, rows, crowd.commits()), crowd.evidence)
    return night


@pytest.mark.catalogue("ZOMBIE", "SIGSTOP the owner about to commit, take over, write, SIGCONT")
@pytest.mark.timeout(1800)
async def test_an_owner_that_slept_commits_nothing(chaos: Chaos, houses: Houses, store: str):
    repeats = chaos.repeats(short=3, full=100)
    await nights(chaos, houses, store, repeats)
    assert chaos.row.figures["clashes"] >= repeats, (
        "an owner that woke has not tried to commit: the night proves nothing"
    )
    assert chaos.row.figures["unclaimed"] == 0, "it is known of every row who wrote it"


@pytest.mark.catalogue("ZOMBIE-in", "SIGSTOP the owner inside of a transaction, end its connection, write, SIGCONT")
@pytest.mark.timeout(1800)
async def test_an_owner_that_slept_inside_a_transaction_commits_nothing(
    chaos: Chaos, houses: Houses, mariadb: MariaDatabase
):
    """It holds the locks of the rows that the new owner needs, until its connection is ended on the server."""
    await nights(chaos, houses, mariadb.url, chaos.repeats(short=2, full=100), inside=True)
    found = chaos.row.figures
    assert found["flushes_failed"] + found["clashes"], "no owner woke up in a transaction that had been ended"


@in_short_on("sqlite")
@pytest.mark.catalogue("ZOMBIE-end", "SIGSTOP the owner inside of a transaction; it is ended, and started again")
@pytest.mark.timeout(1800)
async def test_an_owner_that_sleeps_is_ended(chaos: Chaos, houses: Houses, store: str):
    """As the platform is shipped. On SQLite nobody else could write while the owner sleeps with the write lock."""
    repeats = chaos.repeats(short=2, full=100)
    night = await nights(chaos, houses, store, repeats, inside=True, ending=True)
    assert night.ended == repeats
