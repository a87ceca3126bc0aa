"""What a seed stands for: how big the cluster is, how bad its network and its database are, and which faults strike it.

A seed switches each kind of fault on or off and draws how often it strikes: many different mixtures find more than one mixture
of everything (swarm testing, Groce et al. 2012). A profile with a name fixes what a seed would draw.
"""

import random
from typing import Any, Final

import msgspec

from actors.host import HostSettings
from gateway.settings import GatewaySettings
from tests.support.simulated_broker import LinkQuality
from tests.support.simulated_network import WireQuality
from tests.support.simulated_store import StoreFaults

FAULTS: Final = (
    "crash host", "crash host at an await", "pause host", "drain host", "add host", "jump clock", "cut host",
    "partition host", "host without store", "doubt",
    "crash gateway", "crash gateway at an await", "pause gateway", "drain gateway", "cut gateway", "partition gateway",
    "crash placement", "crash placement at an await", "pause placement", "second placement", "cut placement",
    "partition placement",
    "restart broker", "broker hangs", "store down", "store hangs", "crash rest", "cut rest",
    "cut client", "half open client", "crash client", "pause client", "slow client",
)  # fmt: skip
"""Everything that the chaos can do by itself; the store and the links have rates of their own."""


class Profile(msgspec.Struct, kw_only=True):
    """The parameters of one simulation. Times in virtual seconds; `faults` gives the weight of each kind."""

    name: str
    stormy_s: float = 30.0
    settle_s: float = 60.0
    hosts: int = 2
    gateways: int = 2
    placements: int = 1
    users: int = 3
    devices: int = 4
    rooms: int = 3
    orders: int = 1
    partitions: int = 6
    pace_s: float = 1.5
    faults: dict[str, float] = {}
    every_s: float = 1.5
    """The mean time between two faults."""
    links: LinkQuality = msgspec.field(default_factory=LinkQuality)
    store: StoreFaults = msgspec.field(default_factory=StoreFaults)
    wires: WireQuality = msgspec.field(default_factory=WireQuality)
    host: HostSettings = msgspec.field(default_factory=HostSettings)
    gateway: GatewaySettings = msgspec.field(default_factory=GatewaySettings)
    shuffled: bool = True
    ends_hosts: bool = True
    skew_ms: int = 0


def draw(seed: int, name: str = "swarm") -> Profile:
    """The profile of a seed."""
    chance = random.Random(f"{seed}/profile")
    profile = _swarm(chance)
    profile.name = name
    if name != "swarm":
        NAMED[name](profile)
    return profile


def _often(chance: random.Random, share: float, most: float) -> float:
    """0, or a rate of up to `most`."""
    return chance.random() * most if chance.random() < share else 0.0


def _swarm(chance: random.Random) -> Profile:
    drawn = chance.random
    faults = {kind: 0.2 + drawn() for kind in FAULTS if drawn() < 0.4}
    users = chance.choice((2, 3, 3))
    room = chance.choice(((1, 30_000), (3, 8), (20_000, 30_000)))
    return Profile(
        name="swarm",
        stormy_s=chance.uniform(15.0, 35.0),
        hosts=chance.choice((1, 2, 2, 2, 3)),
        gateways=chance.choice((1, 2)),
        placements=chance.choice((1, 1, 1, 2)),
        users=users,
        devices=users + chance.choice((0, 1, 2)),
        rooms=chance.choice((1, 2, 3)),
        orders=chance.choice((0, 1, 2, 4)),
        partitions=chance.choice((1, 2, 4, 8)),
        pace_s=chance.choice((0.5, 1.5, 3.0)),
        faults=faults,
        every_s=chance.choice((0.5, 1.5, 4.0)),
        links=LinkQuality(
            jitter_s=chance.choice((0.0005, 0.002, 0.01)),
            spikes=_often(chance, 0.4, 0.05),
            reordering=drawn() < 0.5,
            pending=chance.choice((100, 20_000, 20_000)),
        ),
        store=StoreFaults(
            sync_s=chance.choice((0.001, 0.005, 0.05)),
            slow=_often(chance, 0.4, 0.1),
            slow_s=chance.choice((0.1, 1.0, 3.0)),
            refused=_often(chance, 0.3, 0.1),
            never=_often(chance, 0.3, 0.1),
            torn=_often(chance, 0.3, 0.1),
            zombie=_often(chance, 0.3, 0.1),
            reads=_often(chance, 0.3, 0.1),
            lag=_often(chance, 0.3, 0.5),
            pieces=_often(chance, 0.3, 1.0),
            locking=drawn() < 0.4,
        ),
        wires=WireQuality(jitter_s=chance.choice((0.005, 0.05)), spikes=_often(chance, 0.3, 0.05)),
        host=HostSettings(
            flush_commands=chance.choice((1, 4, 256)),
            idle_s=chance.choice((1.5, 10.0, 300.0)),
            activations=room[0],
            activations_ever=room[1],
            buffer_commands=chance.choice((6, 4_096, 4_096)),
            reserve_s=chance.choice((2.0, 30.0)),
            retry_s=chance.choice((0.1, 0.5)),
        ),
        gateway=GatewaySettings(
            ping_interval_s=chance.choice((3.0, 25.0)),
            pong_timeout_s=2.0,
            outbound_bytes=chance.choice((8_192, 65_536)),
            outbound_frames=chance.choice((32, 4_096)),
            tail_events=chance.choice((2, 10, 100)),
            page_events=chance.choice((2, 10, 1_000)),
            page_bytes=chance.choice((1_024, 262_144)),
            linger_s=chance.choice((1.0, 30.0)),
            drain_s=1.0,
            audit_s=chance.choice((0, 0, 5, 30)),
        ),
        shuffled=drawn() < 0.8,
        ends_hosts=drawn() < 0.5,
        skew_ms=chance.choice((0, 0, 500, 5_000)),
    )


def _only(*kinds: str) -> Any:
    def change(profile: Profile) -> None:
        profile.faults = dict.fromkeys(kinds, 1.0)

    return change


def _calm(profile: Profile) -> None:
    """Nothing goes wrong: for profiling, and for bugs that need no fault at all."""
    profile.faults = {}
    profile.links = LinkQuality()
    profile.store = StoreFaults()
    profile.wires = WireQuality()


NAMED: Final[dict[str, Any]] = {
    "calm": _calm,
    "crashes": _only("crash host", "crash host at an await", "crash gateway", "crash placement", "crash client"),
    "pauses": _only("pause host", "pause gateway", "pause placement", "store hangs"),
    "network": _only(
        "cut host",
        "partition host",
        "cut gateway",
        "partition gateway",
        "restart broker",
        "cut client",
        "partition placement",
    ),
    "handoffs": _only("drain host", "add host", "drain gateway"),
}
