"""Hosts and placement, put together."""

import uuid_utils

from actors.host import Host, HostSettings
from actors.kinds import kinds
from actors.membership import HostMember, PlacementService
from deploy.connections import Connections, secret
from deploy.settings import Settings
from storage.facts import SqlFacts
from storage.partition_log import SqlPartitionLog
from storage.read_models import SqlReadModels


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
            kinds(secret(settings, "check-in-pepper")),
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
        self._service = PlacementService(at.broker, at.clock, at.metrics, settings.hosts)
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
