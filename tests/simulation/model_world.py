"""Where people live in virtual time: the simulated cluster, devices on simulated sockets, and what may go wrong."""

import asyncio
import functools
import gc
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final

import msgspec

from actors.host import HostSettings
from domain.aggregate import Account
from domain.chat import ChatRules
from domain.commands import Actor, Command
from domain.errors import Refusal
from domain.orders import OrderRules
from gateway.client import Client
from gateway.client_dial import ConnectionEnded
from gateway.client_feed import Folding
from gateway.client_settings import ClientSettings, Pace
from gateway.client_store import MemoryOutbox
from gateway.client_views import FOLDS
from gateway.settings import GatewaySettings
from tests.support.model_people import Device, Entry
from tests.support.model_rooms import Role
from tests.support.simulated_broker import LinkQuality
from tests.support.simulated_loop import Process, VirtualLoop, sealed
from tests.support.simulated_network import GONE, Wire, WireQuality
from tests.support.simulated_parts import Cluster, GatewayPart, HostPart, PlacementPart, Wiring
from tests.support.simulated_rest import SimulatedRest
from tests.support.simulated_store import StoreFaults

SEED: Final = "model"
_LOOSE: Final = (HostSettings(), GatewaySettings(drain_s=1.0))
_TIGHT: Final = (
    HostSettings(idle_s=1.5, activations=1, activations_ever=30_000, flush_commands=1),
    GatewaySettings(
        outbound_bytes=8_192,
        outbound_frames=8,
        tail_events=2,
        page_events=2,
        page_bytes=1_024,
        linger_s=1.0,
        drain_s=1.0,
    ),
)
"""Settings with which everything that is small at other times is large: pages, tails, what hosts forget."""


class Rules(ChatRules):
    """The real rules, with snapshots early enough to matter."""

    snapshot_every = 7  # type: ignore[misc]


@functools.cache
def _settle_down() -> None:
    """What is there before the first world is never garbage: collecting after each one is then quick."""
    gc.collect()
    gc.freeze()


class Planted:
    """How things are put together; a planted bug changes one of them."""

    wiring: type[Wiring] = Wiring
    rules: type[ChatRules] = Rules
    folds: Mapping[str, Folding] = FOLDS
    outbox: type[MemoryOutbox] = MemoryOutbox

    def reads(self, real: Any) -> Any:
        return real


class DeviceWire:
    """A simulated socket as the client wants it (`gateway.client_dial.Wire`)."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.wire: Wire | None = None
        self._frames: asyncio.Queue[bytes | ConnectionEnded] = asyncio.Queue()

    def received(self, wire: Wire, frame: bytes) -> None:
        self._frames.put_nowait(frame)

    def closed(self, wire: Wire, code: int, reason: str) -> None:
        self._frames.put_nowait(ConnectionEnded(0 if code == GONE else code, reason))

    async def receive(self) -> bytes:
        found = await self._frames.get()
        if isinstance(found, ConnectionEnded):
            raise found
        return found

    async def send(self, frame: bytes) -> None:
        assert self.wire is not None
        self.wire.send(frame)

    async def close(self) -> None:
        assert self.wire is not None
        self.wire.hang_up()


class SimulatedWorld:
    """A cluster that is well until something is done to it. To be closed; nothing of it is left then."""

    patience_s = 90.0
    longest_wait_s = 40.0

    def __init__(self, planted: Planted, *, tight: bool = False) -> None:
        _settle_down()
        self._stack = ExitStack()
        self._stack.enter_context(sealed())
        self.planted = planted
        self.folds, self.outbox = planted.folds, planted.outbox
        self.loop = VirtualLoop(SEED)
        self.chance = random.Random(SEED)
        self.log_lines: list[str] = []
        self._errors: list[str] = []
        self._listen()
        host, gateway = _TIGHT if tight else _LOOSE
        self.cluster = Cluster(
            self.loop,
            SEED,
            {"conversation": planted.rules(), "order": OrderRules(pepper=b"pepper")},
            planted.wiring(),
            lambda who, what: None,
            lambda fault: None,
            partitions=4,
            links=LinkQuality(),
            store=StoreFaults(),
            wires=WireQuality(least_s=0.005, jitter_s=0.02),
            host_settings=host,
            gateway_settings=gateway,
            expected_hosts=2,
            ends_hosts=True,
            skew_ms=0,
        )
        self._stack.callback(self.cluster.close)
        self.clock = self.cluster.clock()
        self._processes: dict[str, Process] = {}
        self._wires: dict[str, list[Wire]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self.run(self._boot())

    def _listen(self) -> None:
        """Errors that the platform logs are things that should not have happened."""
        errors = self._errors

        class Listener(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                errors.append(self.format(record))

        root = logging.getLogger()
        level, handlers = root.level, root.handlers[:]
        root.handlers[:] = [Listener(logging.ERROR)]
        root.setLevel(logging.ERROR)

        def restore() -> None:
            root.handlers[:] = handlers
            root.setLevel(level)

        self._stack.callback(restore)

    async def _boot(self) -> None:
        self.cluster.boot(PlacementPart, "placement-0")
        for number in range(2):
            self.cluster.boot(HostPart, f"host-{number}")
            self.cluster.boot(GatewayPart, f"gateway-{number}")
        rest = self.cluster.boot(SimulatedRest, "rest-0")
        assert isinstance(rest, SimulatedRest)
        self.api = rest
        rest.reads = self.planted.reads(rest.reads)
        await asyncio.sleep(1.0)

    def run(self, work: Any) -> Any:
        """Let virtual time pass until that is done."""
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.loop.dispose()
        self._stack.close()
        gc.collect()

    # --- what the judge asks for ---------------------------------------------------------------------------------

    def now_s(self) -> float:
        return self.loop.time()

    def new_id(self) -> str:
        return self.cluster.new_id(self.clock)

    async def new_user(self) -> str:
        user = self.new_id()
        self.cluster.database.store.accounts[user] = Account(user, ("customer",), None)
        return user

    async def device(self, user: str, name: str) -> Device:
        return Device(self, user, name, self.new_id())

    def client(self, device: Device) -> Client:
        async def dial(url: str) -> DeviceWire:
            gateways = [part for part in self.cluster.of("gateway") if part.accepting]
            if not gateways or not device.reachable:
                raise ConnectionEnded(0, "nobody is there")
            end = DeviceWire(self._processes[device.name])
            end.wire = self.cluster.connect(self.chance.choice(gateways), end)
            self._wires.setdefault(device.name, []).append(end.wire)
            return end

        async def token() -> str:
            return f"{device.user}/{device.session}"

        settings = ClientSettings(pace=Pace(first_s=0.1, longest_s=2.0))
        return Client(
            "simulated:",
            token=token,
            outbox=device.outbox,
            settings=settings,
            folds=self.folds,
            hinted=device.hint,
            dial=dial,
            new_id=self.new_id,
            chance=random.Random(f"{device.name} {device.life}").random,
        )

    async def inside(self, device: Device, work: Callable[[], Awaitable[Any]]) -> Any:
        async def go() -> Any:
            return await work()

        if device.name not in self._processes:
            self._processes[device.name] = self.loop.process(device.name)
        return await self._processes[device.name].spawn(go())

    async def rest(self, user: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        answer: tuple[int, Any] = await self.api.process.spawn(self.api.call(f"{user}/fresh", method, path, body))
        return answer

    async def system(self, room: str, name: str, payload: Any, identifier: str) -> None:
        """A command of the platform itself; until it is taken."""
        command = Command(
            "conversation", room, name, Actor("system", "system"), identifier, msgspec.json.encode(payload)
        )
        while isinstance(answer := await self.api.process.spawn(self.api.ask(command)), Refusal):
            assert answer.retryable, answer
            await asyncio.sleep(0.1)

    async def log(self, room: str, after: int) -> list[Entry]:
        entries = self.cluster.database.store.streams.get(f"conversation:{room}", [])[after:]
        return [Entry(e.offset, e.type, e.command_id, msgspec.json.decode(e.body)) for e in entries]

    def errors(self) -> list[str]:
        # A task of a process that was killed is forgotten where it stands: that is no error of anybody.
        return self._errors + [error for error in self.loop.errors if "Task was destroyed" not in error]

    # --- faults --------------------------------------------------------------------------------------------------

    async def unplug(self, device: Device, noticed: bool) -> None:
        """The device has no network; the gateway hears of it at once, or never."""
        for wire in self._wires.pop(device.name, []):
            wire.cut(0.0, 0.0 if noticed else None)

    async def crash(self, device: Device) -> None:
        """The app is killed; its outbox stays as it was."""
        process = self._processes.pop(device.name, None)
        if process is not None:
            process.crash()
        await self.unplug(device, True)
        device.gone()

    async def kill(self, role: Role, number: int, back_s: float) -> None:
        parts = self.cluster.of(role, running=False)
        if parts:
            self.cluster.crash(parts[number % len(parts)], 0.0, back_s)

    async def drain(self, role: Role, number: int, back_s: float) -> None:
        """A planned end; it goes on while other things happen."""
        parts = [part for part in self.cluster.of(role) if not part.leaving]
        if parts:
            task = asyncio.create_task(self.cluster.leave(parts[number % len(parts)], back_s))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
            await asyncio.sleep(0.001)  # it has begun before anything else happens to the part

    async def broker_away(self, for_s: float) -> None:
        self.cluster.server.restart(for_s)

    async def store_away(self, for_s: float) -> None:
        self.cluster.database.go_down(for_s)

    async def mended(self) -> None:
        """Planned ends are over, and everything that was ended is back."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=40.0)
