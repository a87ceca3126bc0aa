"""Many seeds on several cores: progress while it runs, and what it found and covered."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

import msgspec

from tests.simulation.run import Report, simulate

PIECE = 10
"""Seeds that a worker is given at a time."""


class Sweep(msgspec.Struct):
    """The sum of many reports. Times in seconds; `cpu_s` is what all workers together spent on simulating."""

    seeds: int = 0
    failed: list[Report] = []
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    real_s: float = 0.0
    faults: Counter[str] = msgspec.field(default_factory=Counter)
    counts: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, report: Report) -> None:
        self.seeds += 1
        self.virtual_s += report.virtual_s
        self.cpu_s += report.cpu_s
        self.faults.update(report.faults)
        self.counts.update(report.counts)
        if not report.ok:
            self.failed.append(report)

    @property
    def speed(self) -> float:
        """Virtual seconds per second of one core."""
        return self.virtual_s / self.cpu_s if self.cpu_s else 0.0


def _piece(seeds: list[int], profile: str, planted: str) -> list[Report]:
    reports = []
    for seed in seeds:
        report = simulate(seed, profile, planted)
        if report.ok:
            report.last = []
        reports.append(report)
    return reports


def sweep(
    seeds: Iterable[int],
    jobs: int,
    profile: str = "swarm",
    planted: str = "",
    progress: Callable[[Sweep], None] = lambda so_far: None,
    most_failed: int = 5,
) -> Sweep:
    """Run all seeds on `jobs` processes; stop early when so many have failed."""
    began_s = time.perf_counter()
    so_far = Sweep()
    waiting = list(seeds)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = set()
        while (waiting and len(so_far.failed) < most_failed) or running:
            while waiting and len(running) < 2 * jobs and len(so_far.failed) < most_failed:
                piece, waiting = waiting[:PIECE], waiting[PIECE:]
                running.add(pool.submit(_piece, piece, profile, planted))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for reports in done:
                for report in reports.result():
                    so_far.add(report)
            so_far.real_s = time.perf_counter() - began_s
            progress(so_far)
    so_far.failed.sort(key=lambda report: report.seed)
    return so_far


def summary(found: Sweep, kinds: Iterable[str]) -> str:
    """What a sweep did, in words; `kinds` are the faults that there are."""
    lines = [
        f"{found.seeds} seeds in {found.real_s:.1f} s: {found.seeds / max(0.001, found.real_s):.1f} seeds/s, "
        f"{found.virtual_s / 3600:.1f} virtual hours, {found.speed:.0f} × real time on one core",
        f"{found.counts['acked']} writes acknowledged, {found.counts['rows']} rows, {found.counts['shown']} events shown, "
        f"{sum(count for name, count in found.counts.items() if name.startswith('read '))} reads judged",
        f"{sum(found.faults.values())} faults:",
    ]
    lines += [f"  {count:7d} {kind}" for kind, count in sorted(found.faults.items(), key=lambda item: -item[1])]
    never = sorted(set(kinds) - found.faults.keys())
    lines.append(f"kinds of chaos that never struck: {', '.join(never) or 'none'}")
    lines.append(f"{len(found.failed)} failed")
    return "\n".join(lines)


def told(report: Report, lines: int = 60) -> str:
    """A failed run as people need it: what broke, how to see it again, and how it ended."""
    head = [f"seed {report.seed} ({report.profile}{', ' + report.planted if report.planted else ''}) broke a promise:"]
    head += [f"  {violation}" for violation in report.violations[:5]]
    return "\n".join([*head, f"replay: {report.replay}", "the end of its trace:", *report.last[-lines:]])
