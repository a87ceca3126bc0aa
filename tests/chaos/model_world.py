"""Where people live among real processes: the platform's own client on WebSockets, REST over HTTP, kill -9."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx
import msgspec
import sqlalchemy as sa

from actors.router import BrokerRouter
from deploy.connections import SystemClock
from domain.commands import Actor, Command
from domain.errors import RETRYABLE, Refusal
from domain.ports import Device as LoginDevice
from domain.ports import DeviceSession, NoMetrics
from gateway import client_dial
from gateway.client import Client, new_id
from gateway.client_dial import ConnectionEnded, Wire
from gateway.client_settings import ClientSettings, Pace
from gateway.client_store import MemoryOutbox
from gateway.client_views import FOLDS
from storage import tables as t
from storage.accounts import SqlAccounts
from storage.broker import NatsBroker
from storage.engine import Database
from storage.sessions import SqlSessions
from storage.tokens import JwtIssuer, SigningKeys
from tests.support.keys import ring_of
from tests.support.model_people import Device, Entry
from tests.support.model_rooms import Role
from tests.support.parts import Parts

LIFE_S: Final = 6 * 3600


class Ground:
    """A platform of parts that is used by one example after the other, and the ways into it. `run` lets its time pass."""

    def __init__(self, url: str, nats_url: str) -> None:
        self.parts = Parts(url, nats_url, hosts=2, gateways=2, rest=True, supervised=True, restart_after_s=0.3)
        self.url = url
        self._runner = asyncio.Runner()
        self.phones = itertools.count(13_900_000_000)

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    def __enter__(self) -> "Ground":
        self.run(self._start())
        return self

    async def _start(self) -> None:
        await self.parts.__aenter__()
        clock = SystemClock()
        self.clock = clock
        self.database = Database(self.url)
        self.accounts = SqlAccounts(self.database, clock, new_id, ring_of(self.database, self.parts.folder))
        self.sessions = SqlSessions(self.database)
        self.issuer = JwtIssuer(await asyncio.to_thread(SigningKeys.open, self.parts.folder / "keys"))
        self.broker = await NatsBroker(self.parts.nats_url, "", "people").start()
        self.router = BrokerRouter(self.broker, clock, NoMetrics())
        self.http = httpx.AsyncClient(base_url=self.parts.rest, timeout=10.0)

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self._runner.close()

    async def _stop(self) -> None:
        await self.http.aclose()
        await self.broker.close()
        await self.database.close()
        await self.parts.__aexit__(None, None, None)

    async def session(self, user: str) -> tuple[str, str]:
        """A login: (session id, access token)."""
        now_ms, identifier = self.clock.now_ms(), new_id()
        session = DeviceSession(identifier, user, LoginDevice("model", "model", "python"), now_ms, now_ms)
        await self.sessions.open(session, self.issuer.hash(self.issuer.refresh()), now_ms + LIFE_S * 1000)
        return identifier, self.issuer.access(user, identifier, now_ms, LIFE_S)


class RealWorld:
    """One example's people. Closing it ends their apps; the platform stays."""

    patience_s = 40.0
    longest_wait_s = 0.5
    folds = FOLDS
    outbox = MemoryOutbox

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._began_s = ground.clock.monotonic_s()
        self._tokens: dict[str, str] = {}
        self._fresh: dict[str, str] = {}
        self._devices: list[Device] = []
        self._wires: dict[str, list[Any]] = {}
        self._ending: set[asyncio.Task[int]] = set()

    def run(self, work: Any) -> Any:
        return self._ground.run(work)

    def close(self) -> None:
        self.run(self._close())

    async def _close(self) -> None:
        await self.mended()
        for device in self._devices:
            if device.client is not None:
                await device.stop()

    # --- what the judge asks for ---------------------------------------------------------------------------------

    def now_s(self) -> float:
        return self._ground.clock.monotonic_s() - self._began_s

    def new_id(self) -> str:
        return new_id()

    async def new_user(self) -> str:
        ground = self._ground
        user, _ = await ground.accounts.find_or_create(f"+86{next(ground.phones)}", "en")
        _, self._fresh[user.id] = await ground.session(user.id)
        return user.id

    async def device(self, user: str, name: str) -> Device:
        session, token = await self._ground.session(user)
        self._tokens[session] = token
        device = Device(self, user, name, session)
        self._devices.append(device)
        return device

    def client(self, device: Device) -> Client:
        async def dial(url: str) -> Wire:
            if not device.reachable:
                raise ConnectionEnded(0, "no network")
            wire = await client_dial.dial(url)
            self._wires.setdefault(device.name, []).append(wire)
            return wire

        async def token() -> str:
            return self._tokens[device.session]

        return Client(
            self._ground.parts.websocket,
            token=token,
            outbox=device.outbox,
            settings=ClientSettings(pace=Pace(first_s=0.05, longest_s=1.0), restored_jitter_s=1.0, drain_jitter_s=0.5),
            folds=self.folds,
            hinted=device.hint,
            dial=dial,
        )

    async def inside(self, device: Device, work: Callable[[], Awaitable[Any]]) -> Any:
        return await work()

    async def rest(self, user: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self._fresh[user]}"}
        answer = await self._ground.http.request(method, path, json=body, headers=headers)
        return answer.status_code, msgspec.json.decode(answer.content) if answer.content else None

    async def system(self, room: str, name: str, payload: Any, identifier: str) -> None:
        command = Command(
            "conversation", room, name, Actor("system", "system"), identifier, msgspec.json.encode(payload)
        )
        while True:
            try:
                await self._ground.router.ask(command, 5.0)
                return
            except Refusal as refusal:
                if refusal.code not in RETRYABLE:
                    raise
                await asyncio.sleep(0.1)

    async def log(self, room: str, after: int) -> list[Entry]:
        c = t.partition_log.c
        query = sa.select(c.offset, c.type, c.command_id, c.body).order_by(c.offset)
        query = query.where(c.stream == f"conversation:{room}", c.offset > after)
        async with self._ground.database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [Entry(offset, kind, command_id, msgspec.json.decode(body)) for offset, kind, command_id, body in rows]

    def errors(self) -> list[str]:
        """Parts that nobody here has ended."""
        return self._ground.parts.unforeseen

    # --- faults --------------------------------------------------------------------------------------------------

    async def unplug(self, device: Device, noticed: bool) -> None:
        for wire in self._wires.pop(device.name, []):
            wire._socket.transport.abort()

    async def crash(self, device: Device) -> None:
        """As far as one process can do it: nothing of the app runs any more, and nothing is put in order."""
        client = device.client
        if client is None:
            return
        client._open = False
        if client._timer is not None:
            client._timer.cancel()
        doomed = [*client._tasks, client._keeper._task, device.task]
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        await self.unplug(device, True)
        device.gone()

    async def kill(self, role: Role, number: int, back_s: float) -> None:
        parts = [part for part in self._ground.parts.of(role) if part.running]
        if parts:
            self._ground.parts.kill(parts[number % len(parts)].name)

    async def drain(self, role: Role, number: int, back_s: float) -> None:
        """SIGTERM; the end goes on while other things happen."""
        parts = [part for part in self._ground.parts.of(role) if part.running]
        if parts:
            task = asyncio.create_task(self._ground.parts.stop(parts[number % len(parts)].name))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def broker_away(self, for_s: float) -> None:
        """Other tests of real processes are about it."""

    async def store_away(self, for_s: float) -> None:
        """SQLite is never away."""

    async def mended(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)
