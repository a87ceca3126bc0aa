"""Who gets what: the parts of the platform, put together from settings."""

import os
import time
from pathlib import Path
from typing import Any, Final

import ray
import uuid_utils
from ray import serve

from actors.host import Host, HostSettings
from actors.membership import HostMember, PlacementService
from actors.router import BrokerRouter
from deploy import ray_actors, registry
from deploy.settings import Settings
from deploy.telemetry import RayMetrics, configure_logging
from domain.channels import REVOKED_SUBJECT
from domain.ports import Received
from gateway.server import GatewayServer
from gateway.settings import GatewaySettings
from serve_apps.integrations.sandbox import SandboxSms
from serve_apps.rest import build_app
from serve_apps.services import RestSettings, Services
from storage.accounts import SqlAccounts
from storage.broker import NatsBroker
from storage.cache import RedisOtp, RedisOutbox, RedisRateLimiter, RedisServer
from storage.engine import Database
from storage.facts import SqlFacts
from storage.partition_log import SqlPartitionLog, SqlStreamReader
from storage.read_models import SqlReadModels
from storage.sessions import SqlSessions
from storage.tokens import JwtIssuer, JwtVerifier, SigningKeys

START_LIMIT_S: Final = 60.0
REST: Final = "rest"


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


def new_id() -> str:
    """A UUIDv7 of now."""
    return str(uuid_utils.uuid7())


class Connections:
    """What every process of the platform needs: logs, metrics, the database and the broker."""

    def __init__(self, settings: Settings, process: str) -> None:
        configure_logging(process, settings.logs_dir, settings.log_level)
        self.settings = settings
        self.clock = SystemClock()
        self.metrics = RayMetrics(process)
        self.database = Database(settings.database_url)
        self.broker = NatsBroker(settings.nats_url, settings.namespace, process)
        self.router = BrokerRouter(self.broker, self.clock, self.metrics)

    async def open(self) -> None:
        await self.database.check()
        await self.broker.start()

    async def close(self) -> None:
        await self.broker.close()
        await self.database.close()
        self.metrics.close()

    def verifier(self, sessions: SqlSessions) -> JwtVerifier:
        return JwtVerifier(SigningKeys.open(keys_folder(self.settings)), sessions, self.clock)


def keys_folder(settings: Settings) -> Path:
    return settings.data_dir / "keys"


# --- hosts and placement -----------------------------------------------------------------------------------------


class HostPart:
    """A host with its connections."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._connections = at = Connections(settings, name)
        self.identity = f"{name}-{uuid_utils.uuid7().hex[-12:]}"
        self._log = SqlPartitionLog(at.database)
        self._host = Host(
            HostSettings(name=name, incarnation=self.identity),
            self._log,
            SqlFacts(at.database),
            SqlReadModels(at.database),
            at.broker,
            at.clock,
            at.metrics,
        )
        self._member = HostMember(self._host, at.broker, at.clock, at.metrics)

    async def start(self) -> dict[str, int]:
        await self._connections.open()
        await self._host.start()
        await self._member.start()
        return {}

    async def stop(self) -> None:
        await self._member.stop()
        await self._host.stop()
        await self._connections.close()


class PlacementPart:
    """Placement with its connection to the broker."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._connections = at = Connections(settings, name)
        self._service = PlacementService(at.broker, at.clock, at.metrics)
        self.identity = name

    def died(self, identity: str) -> None:
        self._service.died(identity)

    async def start(self) -> dict[str, int]:
        await self._connections.open()
        await self._service.start()
        return {}

    async def stop(self) -> None:
        await self._service.stop()
        await self._connections.close()


# --- gateways ----------------------------------------------------------------------------------------------------


class GatewayPart:
    """A gateway with its connections."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._connections = at = Connections(settings, name)
        self.identity = f"{name}-{uuid_utils.uuid7().hex[-12:]}"
        self._verifier = at.verifier(SqlSessions(at.database))
        self._server = GatewayServer(
            GatewaySettings(host=settings.bind, port=settings.ws_port, name=name),
            at.router,
            at.broker,
            SqlStreamReader(at.database),
            SqlReadModels(at.database),
            self._verifier,
            at.clock,
            new_id,
            at.metrics,
        )

    async def start(self) -> dict[str, int]:
        await self._connections.open()
        await _forget_revoked(self._connections.broker, self._verifier)
        return {"websocket": await self._server.start()}

    async def stop(self) -> None:
        await self._server.drain()
        await self._server.stop()
        await self._connections.close()


async def _forget_revoked(broker: NatsBroker, verifier: JwtVerifier) -> None:
    """A revoked session is refused from the moment it is announced, not when the verifier next asks the database."""

    def told(received: Received) -> None:
        verifier.forget(received.data.decode(errors="replace"))

    await broker.subscribe(REVOKED_SUBJECT, told)


# --- REST --------------------------------------------------------------------------------------------------------


def rest_application(settings: Settings) -> Any:
    """The Litestar application of one replica, with its connections; they are opened when it starts."""
    name = f"{REST}-{os.getpid()}"
    at = Connections(settings, name)
    keys = SigningKeys.open(keys_folder(settings))
    sessions = SqlSessions(at.database)
    verifier = JwtVerifier(keys, sessions, at.clock)
    redis = RedisServer(settings.redis_url, settings.namespace)
    outbox = RedisOutbox(redis)
    services = Services(
        router=at.router,
        accounts=SqlAccounts(at.database, at.clock, new_id),
        sessions=sessions,
        verifier=verifier,
        tokens=JwtIssuer(keys),
        read_models=SqlReadModels(at.database),
        reader=SqlStreamReader(at.database),
        otp=RedisOtp(redis),
        limiter=RedisRateLimiter(redis),
        outbox=outbox,
        sms=SandboxSms(outbox, at.clock),
        broker=at.broker,
        clock=at.clock,
        new_id=new_id,
        entropy=os.urandom,
        checks={"database": at.database.check, "broker": at.broker.confirm, "redis": redis.ping},
        metrics=at.metrics,
    )
    rest = RestSettings(
        otp_pepper=secret(settings, "otp-pepper"),
        webhook_secret=secret(settings, "webhook-secret"),
        env=settings.env,
        rate_limits=settings.rate_limits_on,
        trusted_hops=1,
    )

    async def open_all() -> None:
        await at.open()
        await _forget_revoked(at.broker, verifier)
        registry.enter(settings, REST, name, os.getpid(), {})

    async def close_all() -> None:
        registry.leave(settings, REST, name)
        await redis.close()
        await at.close()

    app = build_app(services, rest)
    app.on_startup.append(open_all)
    app.on_shutdown.append(close_all)
    return app


def rest_deployment(settings: Settings) -> serve.Application:
    """The Serve application. It gets a builder and not an app: an app does not pickle."""

    def build() -> Any:
        return rest_application(settings)

    @serve.deployment(
        name=REST,
        num_replicas=settings.rest_replicas,
        max_ongoing_requests=512,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=5,
    )
    @serve.ingress(build)
    class Rest:
        pass

    return Rest.bind()  # type: ignore[attr-defined, no-any-return]


def secret(settings: Settings, name: str) -> bytes:
    """32 random bytes that all processes share, made at first use with mode 0600."""
    path = keys_folder(settings) / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        if not path.exists():
            draft.touch(mode=0o600)
            draft.write_bytes(os.urandom(32))
            os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
    return path.read_bytes()


# --- the whole ---------------------------------------------------------------------------------------------------


class Cluster:
    """The running actors and the Serve application."""

    def __init__(self, actors: dict[str, Any]) -> None:
        self._actors = actors

    def stop(self) -> None:
        """In an orderly way: REST, then gateways, hosts, placement."""
        serve.shutdown()
        order = ("gateway", "host", "placement")
        for role in order:
            handles = [handle for name, handle in self._actors.items() if name.startswith(role)]
            ray.wait([handle.stop.remote() for handle in handles], num_returns=len(handles), timeout=5.0)


def start_cluster(settings: Settings) -> Cluster:
    """Start every part on the Ray cluster that this process is connected to; returns when all of them work.

    Raises:
        RuntimeError: a part did not start in time, and why.
    """
    SigningKeys.open(keys_folder(settings))
    actors = {"placement": ray_actors.start(ray_actors.Placement, settings, "placement", PlacementPart)}
    for number in range(settings.hosts):
        name = f"host-{number}"
        actors[name] = ray_actors.start(ray_actors.Host, settings, name, HostPart)
    for number in range(settings.gateways):
        name = f"gateway-{number}"
        actors[name] = ray_actors.start(ray_actors.Gateway, settings, name, GatewayPart)
    serve.start(http_options={"host": settings.bind, "port": settings.http_port}, proxy_location="HeadOnly")
    serve.run(rest_deployment(settings), name=REST, route_prefix="/")
    ray.get([actor.info.remote(START_LIMIT_S) for actor in actors.values()])
    return Cluster(actors)
