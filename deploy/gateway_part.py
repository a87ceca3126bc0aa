"""A gateway, put together."""

import resource

import uuid_utils

from deploy.connections import AUDIT_KEY, Connections, forget_revoked, new_id, secret
from deploy.interpreter import calm
from deploy.settings import Settings
from gateway.ops_acts import OpsActs
from gateway.server import GatewayServer
from gateway.settings import GatewaySettings, budgeted, fitting
from storage.audit import SqlAudit
from storage.cache import RedisServer, RedisTickets
from storage.partition_log import SqlStreamReader
from storage.presence import RedisPresence
from storage.read_models import SqlReadModels
from storage.tickets import ConnectVerifier


class GatewayPart:
    """A gateway with its connections."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._connections = at = Connections(settings, "gateway", name)
        self.identity = f"{name}-{uuid_utils.uuid7().hex[-12:]}"
        self._verifier = at.verifier()
        self._audit = SqlAudit(at.database, secret(settings, AUDIT_KEY), at.clock, new_id)
        self._redis = RedisServer(settings.url_of("redis_url", "gateway"), settings.namespace)
        wanted = GatewaySettings(
            host=settings.bind,
            port=settings.ws_port,
            name=self.identity,
            origins=settings.origins,
            certificate=settings.ws_tls_certificate,
            certificate_key=settings.ws_tls_key,
        )
        self._secure = bool(settings.ws_tls_certificate)
        if settings.rate_limits_on:
            wanted = budgeted(wanted)
        self._server = GatewayServer(
            fitting(wanted, _descriptors()),
            at.router,
            at.broker,
            SqlStreamReader(at.database),
            SqlReadModels(at.database),
            ConnectVerifier(self._verifier, RedisTickets(self._redis), at.clock),
            at.clock,
            new_id,
            at.metrics,
            RedisPresence(self._redis),
            OpsActs(self._audit, at.sessions, at.metrics, at.clock, settings.ops_totp_on),
        )

    async def start(self) -> dict[str, int]:
        await self._connections.open()
        await forget_revoked(self._connections.broker, self._verifier)
        port = await self._server.start()
        calm()
        return {"wss" if self._secure else "websocket": port}

    async def stop(self, *, with_all: bool = False) -> None:
        """Ask every session to reconnect, each when its commands are answered, then stop.

        That takes its time, unless the whole platform stops: then nobody is spared by going elsewhere slowly.
        """
        await self._server.drain(over_s=0.0 if with_all else None)
        await self._server.stop()
        await self._audit.close()
        await self._redis.close()
        await self._connections.close()


def _descriptors() -> int:
    """How many descriptors this process may have: from now on as many as it is allowed to ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
