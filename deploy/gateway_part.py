"""A gateway, put together."""

import resource

import uuid_utils

from deploy.collector import calm
from deploy.connections import Connections, forget_revoked, new_id
from deploy.settings import Settings
from gateway.server import GatewayServer
from gateway.settings import GatewaySettings, fitting
from storage.partition_log import SqlStreamReader
from storage.read_models import SqlReadModels


class GatewayPart:
    """A gateway with its connections."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._connections = at = Connections(settings, name)
        self.identity = f"{name}-{uuid_utils.uuid7().hex[-12:]}"
        self._verifier = at.verifier()
        wanted = GatewaySettings(host=settings.bind, port=settings.ws_port, name=name, origins=settings.origins)
        self._server = GatewayServer(
            fitting(wanted, _descriptors()),
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
        await forget_revoked(self._connections.broker, self._verifier)
        port = await self._server.start()
        calm()
        return {"websocket": port}

    async def stop(self, *, with_all: bool = False) -> None:
        """Ask every session to reconnect, each when its commands are answered, then stop.

        That takes its time, unless the whole platform stops: then nobody is spared by going elsewhere slowly.
        """
        await self._server.drain(over_s=0.0 if with_all else None)
        await self._server.stop()
        await self._connections.close()


def _descriptors() -> int:
    """How many descriptors this process may have: from now on as many as it is allowed to ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
