"""Which host owns which partition: rendezvous hashing over the live hosts, and who is alive."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from domain.ids import PARTITIONS

HEARTBEAT_S: Final = 0.25
MISSED: Final = 3
"""A host is taken for dead after this many heartbeats have not come."""

HEARTBEAT_SUBJECT: Final = "placement.heartbeat"
TABLE_SUBJECT: Final = "placement.table"


def probe_subject(incarnation: str) -> str:
    """Where a host listens only to show that its connection stands: no responders means that it is gone."""
    return f"host.{incarnation}.probe"


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """A host is alive: its stable name, the incarnation that lives, its process, and how many partitions it owns."""

    name: str
    incarnation: str
    pid: int
    owned: int
    version: int
    """The version of the table that the host has carried out."""


class Table(msgspec.Struct, frozen=True, array_like=True):
    """Who should own what. `owners` maps a host's incarnation to its partitions; later versions win."""

    version: int
    owners: dict[str, tuple[int, ...]]


def weight(host: str, partition: int) -> int:
    """How much a partition wants to be on a host (rendezvous hashing, Thaler and Ravishankar 1998)."""
    return int.from_bytes(hashlib.blake2b(f"{host}/{partition}".encode(), digest_size=8).digest(), "big")


def assign(hosts: Iterable[str], partitions: Iterable[int] = range(PARTITIONS)) -> dict[str, tuple[int, ...]]:
    """Each partition to the live host that it wants most.

    When a host goes, only its partitions move; when it comes back, the same ones return.
    """
    names = sorted(hosts)
    owners: dict[str, list[int]] = {name: [] for name in names}
    if names:
        for partition in partitions:
            owners[max(names, key=lambda name: weight(name, partition))].append(partition)
    return {name: tuple(owned) for name, owned in owners.items()}


class Seen(msgspec.Struct):
    """What placement knows of a host."""

    heartbeat: Heartbeat
    at_s: float


class Placement:
    """Who is alive and who owns what, as a pure state machine: time and news in, tables out.

    It may die at any time and be replaced by an empty one: the fence in the log protects the data, not this table. A new
    one first listens, until it has heard the `expected` hosts (0: unknown) or all that live must have been heard: so
    nothing moves because placement was replaced.
    """

    def __init__(self, version: int, expected: int = 0) -> None:
        self._version = version
        self._expected = expected
        self._replaced: dict[str, str] = {}
        self._hosts: dict[str, Seen] = {}
        self._table = Table(0, {})
        self._listen_until_s = float("-inf")

    @property
    def table(self) -> Table:
        return self._table

    def hosts(self) -> Mapping[str, Heartbeat]:
        """The live hosts by name."""
        return {name: seen.heartbeat for name, seen in self._hosts.items()}

    def heard(self, heartbeat: Heartbeat, now_s: float) -> bool:
        """Take in a heartbeat; True if the table changed. A new incarnation of a name replaces the old one."""
        if not self._hosts and not self._table.version:
            self._listen_until_s = now_s + HEARTBEAT_S * MISSED
        if self._replaced.get(heartbeat.name) == heartbeat.incarnation:
            return False
        self._version = max(self._version, heartbeat.version)
        before = self._hosts.get(heartbeat.name)
        if before is not None and before.heartbeat.incarnation != heartbeat.incarnation:
            self._replaced[heartbeat.name] = before.heartbeat.incarnation
        self._hosts[heartbeat.name] = Seen(heartbeat, now_s)
        if before is None or before.heartbeat.incarnation != heartbeat.incarnation:
            if 0 < self._expected <= len(self._hosts):
                self._listen_until_s = now_s
            return now_s >= self._listen_until_s and self._recompute()
        return False

    def died(self, incarnation: str, *, for_good: bool = False) -> bool:
        """A host is gone; True if the table changed. `for_good`: its process is, so nothing of it may be heard again.

        The last host is kept, as in `tick`.
        """
        names = [name for name, seen in self._hosts.items() if seen.heartbeat.incarnation == incarnation]
        for name in names if for_good else ():
            self._replaced[name] = incarnation
        if not names or len(self._hosts) == 1:
            return False
        del self._hosts[names[0]]
        return bool(self._table.version) and self._recompute()

    def tick(self, now_s: float) -> bool:
        """Drop the hosts whose heartbeats stopped; True if the table changed.

        The last host is kept: with nobody to take over, its partitions are better off where they are.
        """
        dropped = False
        for name in [n for n, seen in self._hosts.items() if now_s - seen.at_s > HEARTBEAT_S * MISSED]:
            if len(self._hosts) > 1:
                del self._hosts[name]
                dropped = True
        listened = not self._table.version and bool(self._hosts) and now_s >= self._listen_until_s
        return (dropped or listened) and self._recompute()

    def _recompute(self) -> bool:
        owners = {
            self._hosts[name].heartbeat.incarnation: partitions for name, partitions in assign(self._hosts).items()
        }
        if owners == self._table.owners:
            return False
        self._version += 1
        self._table = Table(self._version, owners)
        return True
