"""`simulate(seed)`: a whole cluster in virtual time, struck by what the seed draws, and judged."""

import asyncio
import functools
import gc
import hashlib
import logging
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from domain.aggregate import Account, WorkerProfile
from domain.orders import OrderRules
from tests.simulation import checks
from tests.simulation.chaos import Chaos
from tests.simulation.ledger import Ledger, Write
from tests.simulation.planted import PLANTED
from tests.simulation.profiles import Profile, draw
from tests.simulation.rules import RemindingChat
from tests.simulation.stories import Job, Talk
from tests.support.simulated_client import Device
from tests.support.simulated_loop import VirtualLoop, sealed
from tests.support.simulated_parts import Cluster, GatewayPart, HostPart, PlacementPart, RestPart, Wiring

KEPT: Final = 300
"""Lines of the trace that a report shows."""
QUIET_S: Final = 6.0
"""After everything has caught up: for what comes late, and for alarms that are about to ring."""
LIMIT_S: Final = 400.0
"""Virtual seconds after which a simulation hangs."""


class Report(msgspec.Struct):
    """How a simulation went. `trace` is the SHA-256 of every line of its trace and of the log in the end."""

    seed: int
    profile: str
    planted: str
    violations: list[str]
    trace: str
    virtual_s: float
    cpu_s: float
    callbacks: int
    faults: dict[str, int]
    counts: dict[str, int]
    last: list[str]

    @property
    def ok(self) -> bool:
        return not self.violations

    @property
    def replay(self) -> str:
        planted = f" --planted {self.planted}" if self.planted else ""
        profile = f" --profile {self.profile}" if self.profile != "swarm" else ""
        return f"python -m tests.simulation {self.seed}{profile}{planted}"


class Trace:
    """Everything that happens, in order: hashed, and its end kept."""

    def __init__(self, keep: int) -> None:
        self.loop: Any = None
        self.lines: deque[str] = deque(maxlen=keep or None)
        self._hash = hashlib.sha256()

    def __call__(self, who: str, what: str) -> None:
        line = f"{self.loop.time():11.6f} {who}: {what}"
        self._hash.update(line.encode())
        self.lines.append(line)

    def digest(self, *more: bytes) -> str:
        for piece in more:
            self._hash.update(piece)
        return self._hash.hexdigest()


class Listener(logging.Handler):
    """What the platform logs: warnings go into the trace, errors are things that should not have happened."""

    def __init__(self, trace: Trace, errors: list[str], excused: Callable[[logging.LogRecord], bool]) -> None:
        super().__init__(logging.WARNING)
        self._trace = trace
        self._errors = errors
        self._excused = excused

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self._trace("log", f"{record.levelname} {text}")
        if record.levelno >= logging.ERROR and not self._excused(record):
            if record.exc_info and record.exc_info[1] is not None:
                text = f"{text}: {''.join(traceback.format_exception(record.exc_info[1]))}"
            self._errors.append(text)


class Simulation:
    """One run."""

    def __init__(self, seed: int, profile: Profile, wiring: Wiring, keep: int) -> None:
        self.seed = f"{seed}/{profile.name}"
        self.profile = profile
        self.trace = Trace(keep)
        self.loop = VirtualLoop(self.seed if profile.shuffled else None)
        self.trace.loop = self.loop
        self.faults: Counter[str] = Counter()
        self.errors: list[str] = []
        self.calm = False
        self.over = False
        self.cluster = Cluster(
            self.loop,
            self.seed,
            {"conversation": RemindingChat(), "order": OrderRules(pepper=b"pepper")},
            wiring,
            self.trace,
            self._count,
            partitions=profile.partitions,
            links=profile.links,
            store=profile.store,
            wires=profile.wires,
            host_settings=profile.host,
            gateway_settings=profile.gateway,
            expected_hosts=profile.hosts,
            ends_hosts=profile.ends_hosts,
            skew_ms=profile.skew_ms,
        )
        self.ledger = Ledger(self.loop, self.cluster.database, self.trace, self._stop)
        self.ledger.refusable = self._refusable
        self.people = self.loop.process("people")
        self.devices: list[Device] = []
        self.jobs: list[Job] = []

    def _count(self, fault: str) -> None:
        self.faults[fault] += 1

    def _stop(self) -> None:
        self.loop.stop()

    def excused(self, record: logging.LogRecord) -> bool:
        """A host that has lost a partition and does not know it may hold streams from before and after: no turn fits them."""
        if record.msg != "the partition %d is taken anew" or not isinstance(record.args, tuple):
            return False
        database, number = self.cluster.database, record.args[0]
        takeovers = [at for at, row in enumerate(database.store.logs.get(number, []), 1) if row is None]
        author = database.authors[number, takeovers[-1]] if takeovers else ""
        self._count("turn of a stale owner")
        return not author.endswith(f"/{self.loop.current.name}")

    # --- the scenario --------------------------------------------------------------------------------------------------

    async def scenario(self) -> None:
        cluster, profile = self.cluster, self.profile
        for number in range(profile.placements):
            cluster.boot(PlacementPart, f"placement-{number}")
        for number in range(profile.hosts):
            cluster.boot(HostPart, f"host-{number}")
        for number in range(profile.gateways):
            cluster.boot(GatewayPart, f"gateway-{number}")
        cluster.boot(RestPart, "rest-0")
        self._populate()
        await asyncio.sleep(2.0)
        for device in self.devices:
            device.boot()
        await self._open_rooms()
        chaos = Chaos(cluster, self.devices, profile, self.seed)
        watching = asyncio.create_task(self._watch())
        for job in self.jobs:
            self.people.spawn(job.run())
        await chaos.storm()
        self.calm = True
        for job in self.jobs:
            job.calm = True
        chaos.mend()
        await self._settle()
        await chaos.finished()
        await asyncio.sleep(QUIET_S)
        await self._settle()
        watching.cancel()
        for _ in range(20):
            if not any(checks.at_rest(cluster)):
                break
            await asyncio.sleep(0.1)  # an alarm may ring just now
        self._judge()
        if not self.ledger.violations:
            await self._end()
        self.over = True

    def _populate(self) -> None:
        """Users with their devices; the first is a customer, the others are workers as well."""
        cluster, profile = self.cluster, self.profile
        talk = Talk(cluster, self.ledger, profile.pace_s, lambda: self.calm)
        clock = cluster.clock()
        users = [cluster.new_id(clock) for _ in range(profile.users)]
        worker = WorkerProfile(("plumbing",), 31.24, 121.48, 20_000, 10_000, "CNY")
        for number, user in enumerate(users):
            roles = ("customer", "worker") if number else ("customer",)
            cluster.database.store.accounts[user] = Account(user, roles, worker if number else None)
        for number in range(profile.devices):
            user = users[number % len(users)]
            device = Device(cluster, self.ledger, user, f"device-{number}", self.seed, number % profile.partitions)
            device.live = talk.live
            device.may_follow = self._may_follow
            self.devices.append(device)
        workers = self.devices[1 : len(users)]
        for number in range(profile.orders):
            self.jobs.append(Job(cluster, self.ledger, self.devices[0], workers, number, self.seed))

    def _may_follow(self, device: Device, channel: str, since_s: float) -> bool:
        """Whether the device's user has been a member all the time since then."""
        entries = self.cluster.database.store.streams.get(channel, [])
        before = self.cluster.database.end_at(channel, since_s)
        return all(device.user in checks.members_of(channel, entries[:end]) for end in range(before, len(entries) + 1))

    def _refusable(self, write: Write, code: str, before: int | None) -> bool:
        database = self.cluster.database
        device = next(device for device in self.devices if device.name == write.device)
        since = database.end_at(write.stream, write.first_sent_s)
        entries = database.store.streams.get(write.stream, [])
        if before is not None:
            since, entries = min(since, before - 1), entries[: before - 1]
        return checks.refusable(device.command(write), code, entries, since, database.store.accounts)

    async def _open_rooms(self) -> None:
        """Conversations by REST, as apps do it: with the conversation's id as the write's."""
        cluster, profile = self.cluster, self.profile
        users = list(dict.fromkeys(device.user for device in self.devices))
        opened: list[Write] = []
        for number in range(profile.rooms):
            opener = self.devices[number % len(self.devices)]
            made = cluster.new_id(opener.clock)
            others = [user for user in users if user != opener.user][: 1 + number % 2]
            opened.append(opener.write(f"conversation:{made}", "open", {"member_ids": [opener.user, *others]}, made))
        while not all(write.over for write in opened):
            await asyncio.sleep(0.1)

    async def _watch(self) -> None:
        """Look at the limits now and then."""
        while True:
            await asyncio.sleep(0.5)
            self._all(checks.bounds(self.cluster))

    async def _settle(self) -> None:
        """Wait until everybody has seen everything; not for ever. Hints may have been lost: people pull to refresh."""
        for device in self.devices:
            device.process.call(0.0, device.sync)
        await asyncio.sleep(1.0)
        until_s = self.loop.time() + self.profile.settle_s
        while not all(device.settled for device in self.devices):
            if self.loop.time() > until_s:
                for device in self.devices:
                    if not device.settled:
                        self.ledger.broken("everything ends", self._unsettled(device))
                return
            await asyncio.sleep(0.2)

    def _unsettled(self, device: Device) -> str:
        end = self.cluster.database.store.end
        waiting = {stream: queue[0].id for stream, queue in device.disk.outbox.items() if queue}
        behind = {
            name: f"{device.disk.positions.get(name, ('', 0))[1]} of {end(name)}"
            for name in device.disk.channels
            if device.disk.positions.get(name, ("", 0))[1] != end(name) or name not in device.subscribed
        }
        return f"{device.name} (connected: {device.connected}) still waits for {waiting} and is at {behind}"

    def _all(self, found: Iterator[str]) -> None:
        for text in found:
            invariant, _, what = text.partition(": ")
            self.ledger.broken(invariant, what)

    def _judge(self) -> None:
        store, database = self.cluster.database.store, self.cluster.database
        self._all(checks.log_of(database))
        self._all(checks.writes(self.ledger, store))
        self._all(checks.erased(store))
        self._all(checks.shown(self.ledger, self.devices, store))
        self._all(checks.reminders(database, self.loop.time()))
        self._all(checks.snapshots(store))
        self._all(checks.claims(store))
        self._all(checks.bounds(self.cluster))
        self._all(checks.at_rest(self.cluster))

    async def _end(self) -> None:
        """Stop everything in an orderly way; nothing may be left running."""
        for device in self.devices:
            device.close()
        self.people.crash()
        await asyncio.sleep(0.5)
        await self.cluster.stop()
        await asyncio.sleep(1.0)
        for part in self.cluster.parts.values():
            for task in part.process.tasks():
                self.ledger.broken("nothing is left", f"{part.incarnation} has stopped, and {task.get_coro()!r} runs")

    # --- around it -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises nothing that the simulation is about: that is a violation."""
        self.loop.later(self.loop.root, LIMIT_S, self.ledger.broken, "everything ends", f"not within {LIMIT_S:g} s")
        try:
            self.loop.run_until_complete(self.scenario())
        except RuntimeError as error:
            if not self.ledger.violations:  # else: stopped at the first violation
                self.ledger.broken("no error", repr(error))
        except Exception as error:
            self.ledger.broken("no error", "".join(traceback.format_exception(error)))
        for text in self.errors + self.loop.errors:
            self.ledger.violations.append(f"no error: {text}")

    def close(self) -> None:
        self.cluster.close()
        self.loop.dispose()

    def report(self, seed: int, planted: str, cpu_s: float) -> Report:
        store = self.cluster.database.store
        end = f"{self.loop.callbacks} {self.loop.time():.9f}".encode()
        return Report(
            seed,
            self.profile.name,
            planted,
            self.ledger.violations,
            self.trace.digest(checks.fingerprint(store), end),
            self.loop.time(),
            cpu_s,
            self.loop.callbacks,
            dict(sorted(self.faults.items())),
            {"rows": sum(map(len, store.logs.values())), **dict(sorted(self.ledger.counts.items()))},
            list(self.trace.lines),
        )


@contextmanager
def _listening(simulation: Simulation) -> Iterator[None]:
    """Within, whatever is logged goes to the trace, and errors are noted."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers[:] = [Listener(simulation.trace, simulation.errors, simulation.excused)]
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def simulate(seed: int, profile: str = "swarm", planted: str = "", keep: int = KEPT) -> Report:
    """Run one seed. The same arguments give the same report in every process, times aside.

    `planted` names a bug of `planted.PLANTED`; `keep` is how many lines of the trace are kept, 0 for all.
    """
    _settle_down()
    wiring = PLANTED[planted]() if planted else Wiring()
    simulation = Simulation(seed, draw(seed, profile), wiring, keep)
    began_s = time.process_time()
    with _listening(simulation), sealed():
        simulation.run()
        report = simulation.report(seed, planted, time.process_time() - began_s)
        simulation.close()
    del simulation
    gc.collect()
    return report


@functools.cache
def _settle_down() -> None:
    """What is there before the first simulation is never garbage: collecting after each one is then quick."""
    gc.collect()
    gc.freeze()
