"""The arithmetic: percentiles, the open loop's schedule, rounds, and what makes a figure void. Nothing here does I/O."""

import math
from collections.abc import Sequence
from typing import Final

import msgspec

BUSY_LIMIT: Final = 0.70
"""A load generator busier than this measures itself: the run is void."""
OTHERS_LIMIT: Final = 0.10
"""Cores that programs of others may use beside a run before it is called noisy."""
P99_LIMIT_MS: Final = 50.0
"""A rate is sustained while the delivery's p99 stays within this."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the values, given in order, that at least `share` of all do not exceed (nearest rank).

    Always a value that was really measured. Raises ValueError without values or for a share outside of (0, 1].
    """
    if not ordered or not 0.0 < share <= 1.0:
        raise ValueError(f"no percentile {share} of {len(ordered)} values")
    # Without rounding 0.07 * 100 would be 7.000000000000001, and its rank the 8th.
    return ordered[math.ceil(round(share * len(ordered), 9)) - 1]


class Latency(msgspec.Struct, frozen=True):
    """What `count` measured times look like, in milliseconds."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


def latency(samples_s: Sequence[float]) -> Latency | None:
    """The latency of samples in seconds; None where there are none."""
    if not samples_s:
        return None
    ordered = sorted(samples_s)
    found = (round(percentile(ordered, share) * 1000, 4) for share in (0.5, 0.95, 0.99, 0.999, 1.0))
    return Latency(len(ordered), *found)


class Schedule(msgspec.Struct, frozen=True):
    """An open loop: item `n` is due `n / rate` seconds after the start, whatever became of those before it.

    Latency counts from that moment, so a server that stalls is charged for all that it made wait.
    """

    rate: float
    seconds: float

    @property
    def total(self) -> int:
        """How many items there are."""
        return math.floor(self.rate * self.seconds + 1e-9)

    def at_s(self, number: int) -> float:
        """When an item is due, in seconds after the start."""
        return number / self.rate

    def due(self, elapsed_s: float) -> int:
        """How many items are due by then."""
        if elapsed_s < 0:
            return 0
        return min(self.total, math.floor(elapsed_s * self.rate + 1e-9) + 1)


class Usage(msgspec.Struct, frozen=True):
    """Who used the processors while something was measured: CPU-seconds, over `wall_s` seconds.

    `servers` is by role, None where the servers' processes are not known. `machine` is everything that ran, `stolen` what the
    hypervisor took.
    """

    wall_s: float
    generator_cpu_s: float
    machine_cpu_s: float
    stolen_cpu_s: float
    servers: dict[str, float] | None = None

    @property
    def servers_cpu_s(self) -> float | None:
        return None if self.servers is None else sum(self.servers.values())

    @property
    def generator_busy(self) -> float:
        """The share of one core that the load generator used."""
        return self.generator_cpu_s / self.wall_s

    @property
    def others(self) -> float | None:
        """Cores that neither the servers nor the generator used, on average."""
        if self.servers_cpu_s is None:
            return None
        return max(0.0, self.machine_cpu_s - self.servers_cpu_s - self.generator_cpu_s) / self.wall_s

    def faults(self) -> list[str]:
        """Why these figures should not be believed, or not fully; empty where they may be."""
        found = []
        if self.generator_busy > BUSY_LIMIT:
            found.append(f"void: the generator was {self.generator_busy:.0%} busy")
        if self.others is not None and self.others > OTHERS_LIMIT:
            found.append(f"noisy: others used {self.others:.2f} cores")
        if self.stolen_cpu_s / self.wall_s > OTHERS_LIMIT:
            found.append(f"noisy: the hypervisor took {self.stolen_cpu_s / self.wall_s:.2f} cores")
        return found

    @property
    def void(self) -> bool:
        return self.generator_busy > BUSY_LIMIT


def per_thousand(cpu_s: float | None, count: int) -> float | None:
    """CPU-seconds per 1,000 of `count`; None where either is missing."""
    return None if cpu_s is None or count <= 0 else cpu_s / count * 1000


class Spread(msgspec.Struct, frozen=True):
    """The same figure in several rounds."""

    median: float
    min: float
    max: float
    rounds: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """The median (the lower middle one of an even number), least and greatest of what was measured; None for nothing."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    return Spread(percentile(ordered, 0.5), ordered[0], ordered[-1], len(ordered))


def highest_sustained(steps: Sequence[tuple[float, bool]]) -> float:
    """The highest of the (rate, sustained) that held; 0 when none did.

    A lower one that did not hold does not count against it: noise can spoil a rate, but cannot make one hold.
    """
    return max((rate for rate, sustained in steps if sustained), default=0.0)
