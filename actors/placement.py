"""Which host owns which partition: rendezvous hashing over the live hosts, and who is alive."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from domain.ids import PARTITIONS

HEARTBEAT_S: Final = 0.25
MISSED: Final = 3
"""A host is taken for dead after this many heartbeats have not come, unless it has lately been slow."""
SLOW_S: Final = 2.0
"""The longest silence that is waited for. Who comes back from a longer one has hung, and was not slow."""
MARGIN: Final = 1.5
"""A host's heartbeats are waited for this many times as long as they have lately taken."""
SLOW_FOR_S: Final = 60.0
"""For how long it is remembered how slow a host has been."""

FORGET_S: Final = 30.0
"""For how long a host that was given up is remembered, and its writing connection stands in the table."""

HEARTBEAT_SUBJECT: Final = "placement.heartbeat"
TABLE_SUBJECT: Final = "placement.table"


def handover_subject(incarnation: str) -> str:
    """Where a host is told, in planned handoffs, that partitions are free for it: a request, answered when it has them."""
    return f"host.{incarnation}.handover"


def probe_subject(incarnation: str) -> str:
    """Where a host listens only to show that its connection stands: no responders means that it is gone."""
    return f"host.{incarnation}.probe"


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """A host is alive: its stable name, the incarnation that lives, and how many partitions it owns."""

    name: str
    incarnation: str
    process: str
    """Tells the host's process from every other one, in words of whoever can end it; empty where nobody can."""
    owned: int
    version: int
    """The version of the newest table that the host has heard."""
    writer: int = 0
    """The database's number of the connection that writes; 0 where there is none."""
    leaving: bool = False
    """The host wants to hand over everything it owns, and go."""
    activations: int = 0
    mailbox: int = 0
    """The length of its longest mailbox."""


class Table(msgspec.Struct, frozen=True, array_like=True):
    """Who should own what; later versions win.

    `owners` maps a host's incarnation to its partitions. `giving` maps a live incarnation to partitions which it is to
    hand over to the owner named here: that one waits for it. `ended` are the writing connections of hosts that were given
    up without a handover: whoever takes partitions ends them first, in case their host is only paused.
    """

    version: int
    owners: dict[str, tuple[int, ...]]
    giving: dict[str, tuple[int, ...]] = {}
    ended: tuple[int, ...] = ()


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


REPLACED: Final = 1_000
"""Incarnations that are remembered to be gone for good."""


class Handover(msgspec.Struct, frozen=True, array_like=True):
    """From the old owner to the new one: by the table of this version, these partitions are free now."""

    version: int
    partitions: tuple[int, ...]


class Seen(msgspec.Struct):
    """What placement knows of a host: its last heartbeat and when that came, and how slow it has been until when."""

    heartbeat: Heartbeat
    at_s: float
    slow_s: float = 0.0
    slow_until_s: float = float("-inf")

    @property
    def patience_s(self) -> float:
        """How long its next heartbeat is waited for.

        A busy machine is late with everything. To take partitions from a host that is only late costs it and the others more
        than they have, which makes them later still; so a detector that was nearly wrong, or was, waits longer (Chandra
        and Toueg 1996, section 3: such a detector is wrong only finitely often).
        """
        return max(HEARTBEAT_S * MISSED, min(SLOW_S, MARGIN * self.slow_s))

    def again(self, heartbeat: Heartbeat, now_s: float) -> "Seen":
        """The same host, heard once more."""
        silent_s, slow_s, until_s = now_s - self.at_s, self.slow_s, self.slow_until_s
        if now_s > until_s:
            slow_s = 0.0
        if slow_s <= silent_s <= SLOW_S:
            slow_s, until_s = silent_s, now_s + SLOW_FOR_S
        return Seen(heartbeat, now_s, slow_s, until_s)


class Placement:
    """Who is alive and who owns what, as a pure state machine: time and news in, tables out.

    It may die at any time and be replaced by an empty one: the fence in the log protects the data, not this table. A new
    one first listens, until it has heard the `expected` hosts (0: unknown) or all that live must have been heard: so
    nothing moves because placement was replaced.
    """

    def __init__(self, version: int, expected: int = 0) -> None:
        self._version = version
        self._expected = expected
        self._replaced: OrderedDict[str, None] = OrderedDict()
        self._hosts: dict[str, Seen] = {}
        self._silent: dict[str, Seen] = {}
        self._ended: list[tuple[int, float]] = []
        self._now_s = float("-inf")
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
        self._now_s = now_s
        if not self._hosts and not self._table.version:
            self._listen_until_s = now_s + HEARTBEAT_S * MISSED
        if heartbeat.incarnation in self._replaced:
            return False
        self._version = max(self._version, heartbeat.version)
        before = self._hosts.get(heartbeat.name)
        if before is not None and before.heartbeat.incarnation != heartbeat.incarnation:
            self._replace(before.heartbeat.incarnation)
            self._give_up(before.heartbeat)
        known = before or self._silent.get(heartbeat.name)
        self._silent.pop(heartbeat.name, None)
        same = known is not None and known.heartbeat.incarnation == heartbeat.incarnation
        self._hosts[heartbeat.name] = known.again(heartbeat, now_s) if known and same else Seen(heartbeat, now_s)
        if before is None or before.heartbeat.incarnation != heartbeat.incarnation:
            if 0 < self._expected <= len(self._hosts):
                self._listen_until_s = now_s
        elif before.heartbeat.leaving == heartbeat.leaving:
            return False
        return now_s >= self._listen_until_s and self._recompute()

    def excuse(self, until_s: float) -> None:
        """We could not hear anybody for a while: nobody has been silent until then."""
        for seen in (*self._hosts.values(), *self._silent.values()):
            seen.at_s = max(seen.at_s, until_s)

    def silent(self, now_s: float) -> list[tuple[Heartbeat, float]]:
        """Hosts that were given up because their heartbeats stopped, and for how many seconds; for half a minute each."""
        for name in [name for name, seen in self._silent.items() if now_s - seen.at_s > FORGET_S]:
            del self._silent[name]
        return [(seen.heartbeat, now_s - seen.at_s) for seen in self._silent.values()]

    def _replace(self, incarnation: str) -> None:
        """Nothing of this life is to be heard again."""
        self._replaced[incarnation] = None
        if len(self._replaced) > REPLACED:
            self._replaced.popitem(last=False)

    def forget_silent(self, name: str) -> None:
        """The process of this host has been ended."""
        self._silent.pop(name, None)

    def _give_up(self, heartbeat: Heartbeat) -> None:
        if heartbeat.writer and not heartbeat.leaving:
            self._ended.append((heartbeat.writer, self._now_s))

    def died(self, incarnation: str, *, for_good: bool = False) -> bool:
        """A host is gone; True if the table changed. `for_good`: its process is, so nothing of it may be heard again.

        The last host is kept, as in `tick`.
        """
        names = [name for name, seen in self._hosts.items() if seen.heartbeat.incarnation == incarnation]
        if names and for_good:
            self._replace(incarnation)
        if not names or len(self._hosts) == 1:
            return False
        self._give_up(self._hosts.pop(names[0]).heartbeat)
        return bool(self._table.version) and self._recompute()

    def tick(self, now_s: float) -> bool:
        """Drop the hosts whose heartbeats stopped; True if the table changed.

        The last host is kept: with nobody to take over, its partitions are better off where they are.
        """
        self._now_s = now_s
        dropped = False
        for name in [n for n, seen in self._hosts.items() if now_s - seen.at_s > seen.patience_s]:
            if len(self._hosts) > 1:
                self._silent[name] = self._hosts.pop(name)
                self._give_up(self._silent[name].heartbeat)
                dropped = True
        listened = not self._table.version and bool(self._hosts) and now_s >= self._listen_until_s
        return (dropped or listened) and self._recompute()

    def _recompute(self) -> bool:
        staying = [name for name, seen in self._hosts.items() if not seen.heartbeat.leaving]
        if not staying and self._table.version:
            return False  # everybody leaves: nobody can take over from anybody
        owners = {
            self._hosts[name].heartbeat.incarnation: partitions
            for name, partitions in assign(staying or self._hosts).items()
        }
        if owners == self._table.owners:
            return False
        # Not for ever: a database that was restarted gives the same numbers to others.
        self._ended = [(writer, at_s) for writer, at_s in self._ended if self._now_s - at_s < FORGET_S]
        self._version += 1
        self._table = Table(self._version, owners, self._giving(owners), tuple(writer for writer, _ in self._ended))
        return True

    def _giving(self, owners: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """What the live hosts are to hand over: what they own by the last table and not by this one.

        What was to be handed over by that one may be with either of the two still: both are named, who has it gives it.
        """
        alive = {seen.heartbeat.incarnation for seen in self._hosts.values()}
        now = {partition: owner for owner, owned in owners.items() for partition in owned}
        was = {partition: owner for owner, owned in self._table.owners.items() for partition in owned}
        givers = {(p, giver) for giver, given in self._table.giving.items() for p in given if was.get(p) in alive}
        givers |= {(p, owner) for p, owner in was.items() if now.get(p) != owner}
        giving: dict[str, list[int]] = {}
        for partition, giver in sorted(givers):
            if giver in alive and now.get(partition) not in (None, giver):
                giving.setdefault(giver, []).append(partition)
        return {giver: tuple(given) for giver, given in giving.items()}
