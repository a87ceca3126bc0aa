"""B3, idle sessions: what one authenticated session that says nothing costs in memory.

Proportional set size (PSS) before and after, on a platform that has held no sessions yet: freed memory that is used again
would flatter the result. A few sessions come first, because the first ones pay for what all share.
"""

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Final

import msgspec

from benchmarks.figures import Usage
from benchmarks.load.sockets import Sockets
from benchmarks.machine import Meter, pss_bytes
from benchmarks.people import Person
from benchmarks.target import Target

FIRST: Final = 20
SETTLE_S: Final = 2.0
"""How long memory settles before it is read."""
PING_S: Final = 25.0
"""Every session is pinged once in this time; idle CPU says nothing about less."""


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """One round. Memory is in KiB a session, beyond that of the platform without sessions."""

    sessions: int
    connected_per_s: float
    gateway_kib_per_session: float
    all_kib_per_session: float
    gateway_mib: float
    """All gateways, with the sessions."""
    all_mib: float
    pings: int
    idle_cpu: float | None
    """Cores that all servers used while nobody said anything; None where that was watched for less than `PING_S`."""
    usage: Usage
    faults: list[str]


async def idle(target: Target, people: Sequence[Person], hold_s: float, tell: Callable[[str], None]) -> Idle:
    """Connect everybody, say nothing for `hold_s`, and read the memory. Raises SocketFailed."""
    async with Sockets(target.ws_url) as sockets:
        tokens = [person.token for person in people]
        await sockets.add(tokens[:FIRST])
        await asyncio.sleep(SETTLE_S)
        before = _memory(target)
        began_s = perf_counter()
        for at in range(FIRST, len(tokens), 250):
            await sockets.add(tokens[at : at + 250])
            tell(f"{len(sockets.open):,} of {len(tokens):,} sessions")
        took_s = perf_counter() - began_s
        await asyncio.sleep(SETTLE_S)
        meter = Meter(target.roles)
        await asyncio.sleep(hold_s)
        usage = meter.stop()
        after = _memory(target)
        pings = sum(socket.pings for socket in sockets.open)
    added = len(tokens) - FIRST
    watched = hold_s >= PING_S and usage.servers_cpu_s is not None
    return Idle(
        sessions=len(tokens),
        connected_per_s=round(added / took_s, 1),
        gateway_kib_per_session=round((after["gateway"] - before["gateway"]) / added / 1024, 2),
        all_kib_per_session=round((sum(after.values()) - sum(before.values())) / added / 1024, 2),
        gateway_mib=round(after["gateway"] / 2**20, 1),
        all_mib=round(sum(after.values()) / 2**20, 1),
        pings=pings,
        idle_cpu=round((usage.servers_cpu_s or 0.0) / usage.wall_s, 4) if watched else None,
        usage=usage,
        faults=usage.faults(),
    )


def _memory(target: Target) -> dict[str, int]:
    roles = target.roles()
    assert roles is not None, "only for a platform whose processes are known"
    return pss_bytes(roles)
