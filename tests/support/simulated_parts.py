"""The platform's parts as simulated processes: the real host, placement, gateway and router, over simulated ports.

`Wiring` puts them together; a planted bug is a subclass that puts one thing together wrongly.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec

import actors.placement
from actors.host import Host, HostSettings
from actors.kinds import Kinds
from actors.membership import HostMember, PlacementService
from actors.router import BrokerRouter
from domain.commands import Answer, Command, Delivery, Publication, Query
from domain.errors import Code, Refusal
from domain.ids import PARTITIONS, uuid7
from domain.ports import BrokerUnavailable, Identity, NoMetrics, StoreUnavailable
from gateway.codes import SHUTDOWN
from gateway.connection import Connection
from gateway.server import GatewayServer
from gateway.settings import GatewaySettings
from gateway.switchboard import Switchboard
from tests.support.simulated_broker import LinkQuality, SimulatedBroker, SimulatedServer
from tests.support.simulated_loop import VirtualLoop
from tests.support.simulated_network import Wire, WireQuality
from tests.support.simulated_store import SimulatedDatabase, StoreFaults

EPOCH_MS = 1_767_225_600_000
"""When every simulation begins, by its database."""
NO_METRICS = NoMetrics()
_STREAMS = ("ev.conversation.", "ev.order.")
_decode_delivery = msgspec.msgpack.Decoder(Delivery).decode
_encode = msgspec.msgpack.encode


class SimulatedClock:
    """A process's clocks: the wall clock may be wrong and jump, the monotonic one starts anywhere."""

    def __init__(self, loop: VirtualLoop, chance: random.Random, skew_ms: int) -> None:
        self._loop = loop
        self._since_s = chance.uniform(0.0, 100_000.0)
        self.skew_ms = skew_ms

    def now_ms(self) -> int:
        return EPOCH_MS + self.skew_ms + int(self._loop.time() * 1000)

    def monotonic_s(self) -> float:
        return self._since_s + self._loop.time()


class Part:
    """One process with a connection to the broker. Subclasses say what runs in it."""

    role = "part"
    broker_class = SimulatedBroker

    def __init__(self, cluster: "Cluster", name: str) -> None:
        self.cluster = cluster
        self.name = name
        cluster.incarnations[name] = cluster.incarnations.get(name, 0) + 1
        self.incarnation = f"{name}.{cluster.incarnations[name]}"
        self.process = cluster.loop.process(self.incarnation)
        self.process.keeps.append(self)
        self.clock = cluster.clock()
        self.broker = self.broker_class(cluster.server, self.process, self.incarnation)
        self.ready = False
        self.leaving = False
        self.failed: str = ""

    def boot(self) -> None:
        self.cluster.trace(self.incarnation, "boots")
        self.process.spawn(self._boot())

    async def _boot(self) -> None:
        """A part that cannot start dies; whoever supervises it starts another one."""
        try:
            await self.broker.start()
            await self.start()
            self.ready = True
        except (BrokerUnavailable, StoreUnavailable) as error:
            self.failed = repr(error)
            self.cluster.loop.later(self.cluster.loop.root, 0.0, self.cluster.crash, self, 0.0, 1.0)

    async def start(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    @property
    def running(self) -> bool:
        return self.process.alive and not self.process.paused and self.ready


class TaggingBroker(SimulatedBroker):
    """Writes into every ephemeral item under which takeover position its host spoke, for the checks to see."""

    async def publish(self, subject: str, data: bytes) -> None:
        if subject.startswith(_STREAMS):
            delivery = _decode_delivery(data)
            if any(not item.offset for item in delivery.items):
                tag = b',"owner":%d}' % delivery.owner
                items = tuple(item if item.offset else Publication(0, item.data[:-1] + tag) for item in delivery.items)
                data = _encode(msgspec.structs.replace(delivery, items=items))
        await super().publish(subject, data)


class HostPart(Part):
    role = "host"
    broker_class = TaggingBroker

    def __init__(self, cluster: "Cluster", name: str) -> None:
        super().__init__(cluster, name)
        self.log = cluster.wiring.log(cluster, self, f"{name}/{self.incarnation}")
        self.host = cluster.wiring.host(cluster, self)
        self.member = cluster.wiring.member(cluster, self)

    async def start(self) -> None:
        await self.host.start()
        await self.member.start()

    async def leave(self) -> None:
        """A planned end: hand over, then stop."""
        self.leaving = True
        await self.member.leave()
        await self.stop()

    async def stop(self) -> None:
        await self.member.stop()
        await self.host.stop()
        await self.broker.close()


class PlacementPart(Part):
    role = "placement"

    def __init__(self, cluster: "Cluster", name: str) -> None:
        super().__init__(cluster, name)
        self.service = PlacementService(
            self.broker, self.clock, NO_METRICS, cluster.expected_hosts, cluster.end if cluster.ends_hosts else None
        )

    async def start(self) -> None:
        await self.service.start()

    async def stop(self) -> None:
        await self.service.stop()
        await self.broker.close()


class GatewayPart(Part):
    role = "gateway"

    def __init__(self, cluster: "Cluster", name: str) -> None:
        super().__init__(cluster, name)
        self.router = BrokerRouter(self.broker, self.clock, NO_METRICS)
        self.server = cluster.wiring.gateway(cluster, self)
        self.wires: list[Wire] = []
        self.accepting = False

    @property
    def board(self) -> Switchboard:
        return self.server._board

    async def start(self) -> None:
        await self.board.start()
        self.accepting = True

    def accept(self, wire: Wire) -> Connection | None:
        if not self.accepting:
            return None
        self.wires = [known for known in self.wires if not known.broken]
        self.wires.append(wire)
        return self.cluster.wiring.connection(self.board, wire)

    async def leave(self) -> None:
        """A planned end: nobody new, everybody sent elsewhere, then stop."""
        self.leaving = True
        self.accepting = False
        await self.server.drain()
        await self.stop()

    async def stop(self) -> None:
        self.accepting = False
        for peer in list(self.board.peers):
            peer.disconnect(SHUTDOWN)
        await self.board.stop()
        await self.broker.close()


class RestPart(Part):
    """The way by which what is not said over a WebSocket reaches the hosts: REST and the payment webhook."""

    role = "rest"

    def __init__(self, cluster: "Cluster", name: str) -> None:
        super().__init__(cluster, name)
        self.router = BrokerRouter(self.broker, self.clock, NO_METRICS)

    async def start(self) -> None:
        """The router needs nothing."""

    async def stop(self) -> None:
        await self.broker.close()

    async def ask(self, request: Command | Query, timeout_s: float = 5.0) -> Answer | Refusal:
        try:
            return await self.router.ask(request, timeout_s)
        except Refusal as refusal:
            return refusal
        except BrokerUnavailable:
            return Refusal(Code.UNAVAILABLE)


class Verifier:
    """Tokens of the simulation: `user/session`, good for ever."""

    async def verify(self, token: str) -> Identity:
        await asyncio.sleep(0)
        user_id, _, session_id = token.partition("/")
        if not session_id:
            raise Refusal(Code.UNAUTHENTICATED)
        return Identity(user_id, session_id, 2**52)

    async def check_session(self, session_id: str) -> None:
        """All of them live for ever."""
        await asyncio.sleep(0)

    def forget(self, session_id: str) -> None:
        """Nothing is remembered."""


class NumberedConnection(Connection):
    """A connection whose hash does not depend on its address: sets of them are walked in the same order in every run."""

    __slots__ = ("_number",)

    def __init__(self, board: Switchboard, wire: Wire) -> None:
        self._number = wire.number
        super().__init__(board, wire)

    def __hash__(self) -> int:
        return self._number


class Wiring:
    """How parts are put together."""

    def kinds(self, cluster: "Cluster") -> Kinds:
        return cluster.kinds

    def log(self, cluster: "Cluster", part: Part, owner: str) -> Any:
        return cluster.database.log(part.process, owner)

    def reader(self, cluster: "Cluster", part: Part) -> Any:
        return cluster.database.reader(part.process)

    def host(self, cluster: "Cluster", part: HostPart) -> Host:
        database, process = cluster.database, part.process
        settings = msgspec.structs.replace(
            cluster.host_settings, name=part.name, incarnation=part.incarnation, process=part.incarnation
        )
        return Host(
            settings,
            part.log,
            database.facts(process),
            database.read_models(process),
            part.broker,
            part.clock,
            NO_METRICS,
            self.kinds(cluster),
        )

    def member(self, cluster: "Cluster", part: HostPart) -> HostMember:
        return HostMember(part.host, part.broker, part.clock, NO_METRICS)

    def gateway(self, cluster: "Cluster", part: GatewayPart) -> GatewayServer:
        ports: tuple[Any, ...] = (
            msgspec.structs.replace(cluster.gateway_settings, name=part.incarnation),
            part.router,
            part.broker,
            self.reader(cluster, part),
            cluster.database.read_models(part.process),
            Verifier(),
            part.clock,
            lambda: cluster.new_id(part.clock),
            NO_METRICS,
        )
        server = GatewayServer(*ports)
        server._board = Switchboard(*ports, random.Random(f"{part.incarnation} {cluster.chance.random()}").random)
        return server

    def connection(self, board: Switchboard, wire: Wire) -> Connection:
        return NumberedConnection(board, wire)


class Cluster:
    """All processes of one platform, and the machines they run on: what boots, crashes, pauses and ends them."""

    def __init__(
        self,
        loop: VirtualLoop,
        seed: str,
        kinds: Kinds,
        wiring: Wiring,
        trace: Callable[[str, str], None],
        count_fault: Callable[[str], None],
        *,
        partitions: int,
        links: LinkQuality,
        store: StoreFaults,
        wires: WireQuality,
        host_settings: HostSettings,
        gateway_settings: GatewaySettings,
        expected_hosts: int,
        ends_hosts: bool,
        skew_ms: int,
    ) -> None:
        self.loop = loop
        self.kinds = kinds
        self.wiring = wiring
        self.trace = trace
        self.count = count_fault
        self.partitions = range(partitions)
        self.host_settings = host_settings
        self.gateway_settings = gateway_settings
        self.expected_hosts = expected_hosts
        self.ends_hosts = ends_hosts
        self.wires = wires
        self.incarnations: dict[str, int] = {}
        self.parts: dict[str, Part] = {}
        self.dead: list[Part] = []
        self.chance = random.Random(f"{seed}/cluster")
        self._ids = random.Random(f"{seed}/ids")
        self._wire_chance = random.Random(f"{seed}/wires")
        self.skew_ms = skew_ms
        self._wires = 0
        self.server = SimulatedServer(
            loop, loop.process("nats"), random.Random(f"{seed}/links"), links, trace, count_fault
        )
        self.database = SimulatedDatabase(
            loop, loop.process("database"), random.Random(f"{seed}/store"), store, trace, count_fault
        )
        # Few partitions are as good as many and a hundred times as fast to take.
        actors.placement.assign.__defaults__ = (self.partitions,)

    def close(self) -> None:
        actors.placement.assign.__defaults__ = (range(PARTITIONS),)

    # --- small things ------------------------------------------------------------------------------------------------

    def clock(self) -> SimulatedClock:
        skew_ms = int(self.chance.uniform(-1.0, 1.0) * self.skew_ms)
        return SimulatedClock(self.loop, self.chance, skew_ms)

    def new_id(self, clock: SimulatedClock, partition: int | None = None) -> str:
        """A UUIDv7 by that clock, in one of the simulation's partitions."""
        number = self._ids.choice(self.partitions) if partition is None else partition
        entropy = self._ids.getrandbits(80) & ~(PARTITIONS - 1) | number
        return uuid7(max(0, clock.now_ms()), entropy.to_bytes(10, "big"))

    def random_id(self) -> str:
        """A UUIDv4."""
        value = self._ids.getrandbits(128) & ~(0xF << 76) & ~(0x3 << 62) | 0x4 << 76 | 0x2 << 62
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def of(self, role: str, *, running: bool = True) -> list[Any]:
        """The parts of a role that live, by name."""
        found = [part for name, part in sorted(self.parts.items()) if part.role == role]
        return [part for part in found if part.running] if running else found

    def connect(self, gateway: GatewayPart, client: Any) -> Wire:
        self._wires += 1
        return Wire(self.loop, self._wire_chance, self.wires, gateway, client, self._wires)

    # --- life and death ------------------------------------------------------------------------------------------------

    def boot(self, kind: Callable[["Cluster", str], Part], name: str) -> Part:
        part = self.parts[name] = kind(self, name)
        part.boot()
        return part

    def crash(self, part: Part, noticed_s: float = 0.0, restart_s: float | None = None) -> None:
        """The process is gone. Its connections end when others notice; it comes back after `restart_s`."""
        if not part.process.alive:
            return
        self.trace(part.incarnation, "is dead")
        part.process.crash()
        self.dead.append(part)
        self.server.gone(part.broker, noticed_s)
        self.database.gone(part.process)
        if isinstance(part, GatewayPart):
            for wire in part.wires:
                wire.cut(noticed_s + self.chance.random() * 0.05, None)
        if isinstance(part, HostPart):
            # Ray tells placement of a process's death, sooner or later.
            for placement in self.of("placement"):
                self.loop.later(placement.process, 0.2 + noticed_s, placement.service.died, part.incarnation)
        if self.parts.get(part.name) is part:
            del self.parts[part.name]
            if restart_s is not None:
                self.loop.later(self.loop.root, restart_s, self._restart, part)

    def _restart(self, part: Part) -> None:
        if part.name not in self.parts:
            self.boot(type(part), part.name)

    async def leave(self, part: Any, restart_s: float | None) -> None:
        """A planned end of a host or gateway; called from outside of it."""
        done: asyncio.Future[None] = self.loop.create_future()

        async def go() -> None:
            try:
                await part.leave()
            finally:
                self.loop.later(self.loop.root, 0.0, _set, done)

        part.process.spawn(go())
        await asyncio.wait([done], timeout=30.0)
        if part.process.alive:
            self.trace(part.incarnation, "has left")
        self.crash(part, 0.0, restart_s)

    async def end(self, process: str, silent_s: float) -> bool:
        """What placement asks for: SIGKILL for a host that has been silent for some time."""
        await asyncio.sleep(0.05)
        if silent_s < 2.0:
            return False
        for part in list(self.parts.values()):
            if part.incarnation == process:
                self.count("host ended by placement")
                self.loop.later(self.loop.root, 0.0, self.crash, part, 0.0, 1.0)
        return True

    async def stop(self) -> None:
        """An orderly end of everything that lives."""
        for role in ("gateway", "rest", "host", "placement"):
            ending: list[asyncio.Future[None]] = []
            for part in self.of(role, running=False):
                done: asyncio.Future[None] = self.loop.create_future()
                ending.append(done)

                async def go(part: Part = part, done: "asyncio.Future[None]" = done) -> None:
                    try:
                        await part.stop()
                    finally:
                        self.loop.later(self.loop.root, 0.0, _set, done)

                part.process.spawn(go())
            if ending:
                await asyncio.wait(ending, timeout=60.0)


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
