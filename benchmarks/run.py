"""`renoveasy bench`: rounds, each with a new platform on an empty database, pinned to one processor, measured from another."""

import asyncio
import os
import resource
import signal
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import uvloop

from benchmarks import machine, report, target
from benchmarks.load.http import HttpFailed
from benchmarks.load.sockets import SocketFailed
from benchmarks.machine import Meter
from benchmarks.mariadb import MariaDb, MariaDbFailed
from benchmarks.people import Person, logged_in
from benchmarks.scenarios import floors
from benchmarks.scenarios.chat import Chat
from benchmarks.scenarios.flush import flush_step
from benchmarks.scenarios.idle import idle
from benchmarks.scenarios.rest import KINDS, Rest
from benchmarks.summary import Round
from benchmarks.target import Target, TargetFailed
from deploy.settings import Settings

SCENARIOS: Final = ("flush", "idle", "chat", "rest")
AT_REST_S: Final = 2.0
_HOPELESS_MS: Final = 1_000.0
"""Beyond this p99 no higher rate is tried."""
T = TypeVar("T")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured, for how long, on what."""

    scenarios: tuple[str, ...]
    rounds: int
    rates: tuple[float, ...]
    chat_s: float
    pairs: int
    sessions: int
    hold_s: float
    connections: int
    rest_s: float
    flush_s: float
    floors_s: float
    database: str
    database_url: str
    """For the flush only: a database that runs already, and may be filled with nonsense."""
    profile: str
    platform: dict[str, str]
    """Settings of the platform, by name without the prefix."""
    url: str
    ws_url: str
    server_cpus: tuple[int, ...]
    generator_cpus: tuple[int, ...]
    folder: str
    results: str

    @property
    def pinned(self) -> bool:
        return bool(self.server_cpus and self.generator_cpus)


def bench(plan: Plan, settings: Settings) -> int:
    """Measure, show, and keep the results. 0: done; 1: it failed, and the text says why. What was measured is kept."""
    progress = report.Progress()
    began = datetime.now(UTC).isoformat(timespec="seconds")
    folder = Path(plan.folder)
    folder.mkdir(parents=True, exist_ok=True)
    card = machine.card(folder)
    _greet(progress, plan, card)
    _raise_file_limit()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: with nothing left behind
    rounds: list[Round] = []
    code = 0
    try:
        for number in range(1, plan.rounds + 1):
            _round(plan, settings, number, rounds, progress)
    except (TargetFailed, MariaDbFailed, HttpFailed, SocketFailed, OSError) as error:
        progress.say(f"error: {error}")
        code = 1
    except KeyboardInterrupt:
        progress.say("stopped")
        code = 130
    progress.tables(rounds)
    shown = {name: value for name, value in msgspec.to_builtins(plan).items() if name not in ("folder", "results")}
    for path in report.save(Path(plan.results), began, card, shown, rounds):
        progress.say(f"kept in {path}")
    return code


def _greet(progress: report.Progress, plan: Plan, card: dict[str, Any]) -> None:
    progress.say(
        f"{card['cpu']}, {card['cores']} cores, {card['memory_gib']} GiB, Linux {card['kernel']}, Python {card['python']}"
    )
    progress.say(f"load average {', '.join(map(str, card['load_average']))}; data on {card['filesystem']}")
    if not card["durable_filesystem"]:
        progress.say(
            f"warning: {card['filesystem']} does not sync to a disk: durable figures are not durable (--folder)"
        )
    if card["load_average"][0] > 1.0:
        progress.say("warning: the machine is busy with other things; figures marked noisy are not worth keeping")
    if not plan.pinned or plan.url:
        progress.say("warning: servers and load generator share processors: not comparable")


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _round(plan: Plan, settings: Settings, number: int, rounds: list[Round], progress: report.Progress) -> None:
    """One round; it is entered in `rounds` at once, so that what was measured before an error is kept."""
    found = Round(number)
    rounds.append(found)
    name = f"round {number} of {plan.rounds}"
    folder = Path(plan.folder)
    if plan.floors_s:
        progress.begin(f"{name}: floors")
        servers = set(plan.server_cpus) or os.sched_getaffinity(0)
        found.floors = _on_generator(plan, lambda: floors.floors(folder, servers, plan.floors_s))
    if "flush" in plan.scenarios:
        _flush(plan, found, name, progress)
    if set(plan.scenarios) == {"flush"}:
        return
    with ExitStack() as stack:
        if plan.url:
            at = target.running(plan.url, plan.ws_url, settings)
        else:
            progress.begin(f"{name}: starting a platform ({plan.database})")
            at = stack.enter_context(
                target.started(target.Wanted(folder=folder, database=plan.database, settings=plan.platform))
            )
            progress.say(f"{name}: the platform is ready after {at.started_s:g} s")
        found.started_s = at.started_s
        if plan.pinned and at.own:  # somebody else's processes stay as they are
            at.pin(set(plan.server_cpus))
            found.pinned = True
        _on_generator(plan, lambda: _measure(plan, at, found, name, progress))
        if at.own:
            progress.begin(f"{name}: stopping")


def _flush(plan: Plan, found: Round, name: str, progress: report.Progress) -> None:
    """The store alone: without a platform around it."""
    title = f"{name}: flushes"
    progress.begin(f"{title} to {plan.database}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="renoveasy-bench-", dir=plan.folder)))
        url, server, kind = plan.database_url, None, plan.database
        if url:
            kind = url.partition(":")[0]
        elif plan.database == "mariadb":
            database = stack.enter_context(MariaDb(folder / "mariadb", target.free_ports(1)[0]))
            url, server = database.url, database.pid
            if plan.pinned:
                machine.pin([server], set(plan.server_cpus))
        else:
            url = f"sqlite+aiosqlite:///{folder / 'bench.db'}"
        profile = Path(plan.profile) if plan.profile else None
        found.flush = _on_generator(plan, lambda: flush_step(url, kind, server, plan.flush_s, profile))
    step = found.flush
    server_cpu = "" if step.server_cpu_ms is None else f" and {step.server_cpu_ms:.3f}"
    progress.say(f"{title}: {step.events_per_s:,.0f} events a second, {step.client_cpu_ms:.3f}{server_cpu} CPU-ms each")


def _on_generator(plan: Plan, work: Callable[[], Awaitable[T]]) -> T:
    async def run() -> T:
        return await work()

    with machine.running_on(set(plan.generator_cpus) or os.sched_getaffinity(0)):
        return uvloop.run(run())


async def _measure(plan: Plan, at: Target, found: Round, name: str, progress: report.Progress) -> None:
    people = await _people(plan, at, name, progress)
    if at.settings is not None:
        meter = Meter(at.roles)
        await asyncio.sleep(AT_REST_S)
        usage = meter.stop()
        found.at_rest = {role: round(cpu_s / usage.wall_s, 3) for role, cpu_s in (usage.servers or {}).items()}
    if "idle" in plan.scenarios:
        progress.begin(f"{name}: B3, {plan.sessions:,} idle sessions")
        found.idle = await idle(at, people[: plan.sessions], plan.hold_s, progress.tell)
        progress.say(f"{name}: B3, {found.idle.gateway_kib_per_session} KiB a session")
    if "chat" in plan.scenarios:
        await _chat(plan, at, found, people, name, progress)
    if "rest" in plan.scenarios:
        await _rest(plan, at, found, people, name, progress)


async def _people(plan: Plan, at: Target, name: str, progress: report.Progress) -> list[Person]:
    counts = {"idle": plan.sessions, "chat": 2 * plan.pairs, "rest": plan.connections}
    count = max(counts[scenario] for scenario in plan.scenarios if scenario in counts)
    progress.begin(f"{name}: {count:,} users log in")
    return await logged_in(at, count)


async def _chat(
    plan: Plan, at: Target, found: Round, people: list[Person], name: str, progress: report.Progress
) -> None:
    progress.begin(f"{name}: B1, {plan.pairs:,} pairs connect")
    pairs = list(zip(people[: plan.pairs], people[plan.pairs : 2 * plan.pairs], strict=True))
    found.chat = []
    async with Chat(at, pairs) as chat:
        for rate in plan.rates:
            title = f"{name}: B1, {rate:,.0f} msg/s"
            progress.begin(title)
            step = await chat.step(rate, plan.chat_s, progress.tell)
            found.chat.append(step)
            p50, p99 = (step.delivery.p50_ms, step.delivery.p99_ms) if step.delivery else (float("nan"), float("nan"))
            faults = f" ({'; '.join(step.faults)})" if step.faults else ""
            progress.say(f"{title}: delivered after p50 {p50:.1f} ms, p99 {p99:.1f} ms{faults}")
            if step.overloaded or not step.delivery or step.delivery.p99_ms > _HOPELESS_MS:
                break
        found.held = chat.held()
        if found.held is not None:
            progress.say(f"{name}: B1, {report.holding(found.held)}")


async def _rest(
    plan: Plan, at: Target, found: Round, people: list[Person], name: str, progress: report.Progress
) -> None:
    progress.begin(f"{name}: B6, orders and conversations are made")
    rest = Rest(at, people[: plan.connections])
    await rest.prepare()
    found.rest = []
    for kind in KINDS:
        title = f"{name}: B6, {kind.replace('_', ' ')}"
        progress.begin(title)
        step = await rest.step(kind, plan.rest_s, progress.tell)
        found.rest.append(step)
        faults = f" ({'; '.join(step.faults)})" if step.faults else ""
        progress.say(f"{title}: {step.per_s:,.0f} a second{faults}")
