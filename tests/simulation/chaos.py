"""What strikes the cluster: one fault after the other, drawn by the seed, until it is calm; then everything is mended."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from tests.simulation.profiles import Profile
from tests.support.simulated_client import Device
from tests.support.simulated_parts import Cluster, HostPart, Part, PlacementPart

HOUR_MS: Final = 3_600_000


class Chaos:
    """The hand that breaks things. It never breaks the last of what the checks need: the log."""

    def __init__(self, cluster: Cluster, devices: list[Device], profile: Profile, seed: str) -> None:
        self._cluster = cluster
        self._devices = devices
        self._profile = profile
        self._chance = random.Random(f"{seed}/chaos")
        self._extra = 0
        self._leaving: set[asyncio.Task[None]] = set()
        self._over = False

    async def storm(self) -> None:
        """Strike for as long as the profile says."""
        profile, chance, loop = self._profile, self._chance, self._cluster.loop
        end_s = loop.time() + profile.stormy_s
        kinds, weights = list(profile.faults), list(profile.faults.values())
        while loop.time() < end_s:
            await asyncio.sleep(min(end_s - loop.time(), chance.expovariate(1 / profile.every_s)))
            if kinds and loop.time() < end_s:
                kind = chance.choices(kinds, weights)[0]
                if self._strike(kind):
                    self._cluster.count(kind)

    def _strike(self, kind: str) -> bool:
        """Do it; False where there is nothing to do it to."""
        verb, _, whom = kind.partition(" ")
        role, _, how = whom.partition(" ")
        acts: dict[str, Callable[[], bool]] = {
            "doubt": self._doubt,
            "jump clock": self._jump,
            "add host": self._add_host,
            "second placement": self._second_placement,
            "restart broker": self._restart_broker,
            "broker hangs": self._broker_hangs,
            "store down": self._store_down,
            "store hangs": self._store_hangs,
            "host without store": self._without_store,
            "half open client": lambda: self._client("half"),
        }
        if kind in acts:
            return acts[kind]()
        if role == "client":
            return self._client(verb)
        part = self._victim(role)
        if part is None:
            return False
        self._trace(f"{kind}: {part.incarnation}")
        return bool(getattr(self, f"_{verb}")(part, how))

    def _trace(self, what: str) -> None:
        self._cluster.trace("CHAOS", what)

    def _victim(self, role: str) -> Any:
        found = self._cluster.of(role)
        return self._chance.choice(found) if found else None

    # --- processes -----------------------------------------------------------------------------------------------------

    def _crash(self, part: Part, how: str) -> bool:
        chance = self._chance
        noticed_s = chance.choice((0.0, 0.005, 0.005, 3.0))
        restart_s = chance.uniform(0.3, 4.0)

        def crash() -> None:
            self._cluster.crash(part, noticed_s, restart_s)

        if how:
            part.process.light(chance.randint(1, 200), crash)
        else:
            crash()
        return True

    def _pause(self, part: Part, how: str) -> bool:
        chance = self._chance
        for_s = chance.choice((0.05, 0.4, 0.9, 2.0, 6.0)) * chance.uniform(0.5, 1.5)

        def pause() -> None:
            self._trace(f"{part.incarnation} stops for {for_s:.2f} s")
            part.process.pause()
            self._cluster.loop.later(self._cluster.loop.root, for_s, part.process.resume)

        part.process.light(chance.randint(1, 100), pause)
        return True

    def _drain(self, part: Any, how: str) -> bool:
        if part.leaving:
            return False
        restart_s = self._chance.uniform(0.1, 3.0)
        if part.name.startswith("extra"):
            restart_s = None
        task = asyncio.create_task(self._cluster.leave(part, restart_s))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return True

    def _add_host(self) -> bool:
        if len(self._cluster.of("host", running=False)) >= 4:
            return False
        self._extra += 1
        self._cluster.boot(HostPart, f"extra-{self._extra}")
        return True

    def _second_placement(self) -> bool:
        if len(self._cluster.of("placement", running=False)) >= 2:
            return False
        self._extra += 1
        part = self._cluster.boot(PlacementPart, f"placement-{self._extra + 10}")
        self._cluster.loop.later(self._cluster.loop.root, self._chance.uniform(1.0, 8.0), self._cluster.crash, part)
        return True

    def _doubt(self) -> bool:
        host = self._victim("host")
        if host is None or not host.host.partitions:
            return False
        numbers = sorted(host.host.partitions)
        some = set(self._chance.sample(numbers, self._chance.randint(1, len(numbers))))
        host.process.call(0.0, self._chance.choice((host.host.doubt, host.host.suspect)), some)
        return True

    def _jump(self) -> bool:
        part = self._victim(self._chance.choice(("host", "gateway", "placement")))
        if part is None:
            return False
        step = self._chance.choice((50, 2_000, 2_000, HOUR_MS)) * self._chance.choice((-1, 1))
        part.clock.skew_ms += step
        self._trace(f"the clock of {part.incarnation} jumps by {step} ms")
        return True

    # --- the network -----------------------------------------------------------------------------------------------------

    def _cut(self, part: Part, how: str) -> bool:
        chance = self._chance
        late_s = (0.0, 0.01, 0.3, 2.0)
        self._cluster.server.reset(part.broker, chance.choice(late_s), chance.choice(late_s))
        return True

    def _partition(self, part: Part, how: str) -> bool:
        chance = self._chance
        ways = chance.choice(((True, True), (True, False), (False, True)))
        for_s = chance.choice((0.3, 1.0, 3.0, 9.0)) * chance.uniform(0.5, 1.5)
        self._trace(f"{part.incarnation} is cut off for {for_s:.2f} s, up {ways[0]}, down {ways[1]}")
        self._cluster.server.hold(part.broker, for_s, up=ways[0], down=ways[1], patience_s=chance.uniform(2.0, 6.0))
        return True

    def _restart_broker(self) -> bool:
        self._cluster.server.restart(self._chance.choice((0.001, 0.1, 1.0, 4.0)))
        return True

    def _broker_hangs(self) -> bool:
        self._cluster.server.hang(self._chance.choice((0.2, 1.5, 6.0)))
        return True

    # --- the store -------------------------------------------------------------------------------------------------------

    def _store_down(self) -> bool:
        self._cluster.database.go_down(self._chance.choice((0.05, 0.5, 3.0)))
        return True

    def _store_hangs(self) -> bool:
        self._cluster.database.hang(self._chance.choice((0.2, 1.0, 8.0)))
        return True

    def _without_store(self) -> bool:
        part = self._victim(self._chance.choice(("host", "host", "gateway")))
        if part is None:
            return False
        self._cluster.database.cut_off(part.process, self._chance.choice((0.3, 1.0, 4.0)))
        return True

    # --- clients ---------------------------------------------------------------------------------------------------------

    def _client(self, verb: str) -> bool:
        chance, loop = self._chance, self._cluster.loop
        device = chance.choice(self._devices)
        if not device.process.alive or device.process.paused:
            return False
        match verb:
            case "cut" if device.wire is not None:
                device.wire.cut(chance.choice((0.0, 0.01, 1.0)), chance.choice((0.0, 0.01, 1.0)))
            case "half" if device.wire is not None:
                device.wire.cut(chance.choice((0.01, 1.0)), None)
            case "crash":
                device.crash(chance.random() < 0.7)
                loop.later(loop.root, chance.uniform(0.1, 5.0), device.restart)
            case "pause":
                device.process.pause()
                loop.later(loop.root, chance.uniform(0.5, 8.0), device.process.resume)
            case "slow" if device.wire is not None:
                wire = device.wire
                device.process.call(0.0, wire.read, False)
                device.process.call(chance.uniform(0.5, 6.0), wire.read, True)
            case _:
                return False
        return True

    # --- the end ---------------------------------------------------------------------------------------------------------

    def mend(self) -> None:
        """Everything is well from here on: all that is dead comes back, all that is stopped goes on."""
        cluster, loop = self._cluster, self._cluster.loop
        cluster.trace("CHAOS", "is over")
        cluster.server.quality.spikes = 0.0
        cluster.server.quality.pending = 20_000
        cluster.wires.spikes = 0.0
        cluster.database.heal()
        cluster.server._go_on()
        for part in list(cluster.parts.values()):
            part.process.fuse, part.process.burnt = 0, None
            part.process.resume()
            part.broker.held_up_until_s = part.broker.held_down_until_s = 0.0
            part.clock.skew_ms = 0
        cluster.skew_ms = 0
        for device in self._devices:
            device.process.resume()
            device.clock.skew_ms = 0
            if not device.process.alive:
                loop.later(loop.root, 5.1, lambda device=device: None if device.process.alive else device.restart())
            if device.wire is not None:
                device.process.call(0.0, device.wire.read, True)

    async def finished(self) -> None:
        """Planned departures that were under way are over."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=40.0)
