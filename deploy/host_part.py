"""Hosts and placement, put together."""

import logging

import uuid_utils

from actors.host import Host, HostSettings
from actors.kinds import kinds
from actors.membership import HostMember, PlacementService
from deploy.connections import Connections, secret
from deploy.ending import Ender, this_node, this_process, this_start
from deploy.interpreter import calm
from deploy.settings import Settings
from storage.facts import SqlFacts
from storage.partition_log import SqlPartitionLog
from storage.read_models import SqlReadModels

log = logging.getLogger(__name__)


class HostPart:
    """A host with its connections."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._connections = at = Connections(settings, "host", name)
        self.identity = f"{name}-{uuid_utils.uuid7().hex[-12:]}"
        self._log = SqlPartitionLog(at.database)
        self._host = Host(
            HostSettings(
                name=name,
                incarnation=self.identity,
                process=this_process(),
                activations=settings.host_activations,
                activations_bytes=settings.host_activations_bytes,
                activations_ever=settings.host_activations * 3 // 2,
            ),
            self._log,
            SqlFacts(at.database),
            SqlReadModels(at.database),
            at.broker,
            at.clock,
            at.metrics,
            kinds(secret(settings, "check-in-pepper"), settings.policy),
        )
        self._member = HostMember(self._host, at.broker, at.clock, at.metrics)

    async def start(self) -> dict[str, int]:
        await self._connections.open()
        await self._host.start()
        await self._member.start()
        calm()
        return {}

    async def stop(self, *, with_all: bool = False) -> None:
        """Hand every partition over to the other hosts, then stop; `with_all`: they stop as well."""
        if not with_all and not await self._member.leave():
            log.info("%s goes without handing over everything: there was nobody, or no time", self.identity)
        await self._member.stop()
        await self._host.stop()
        await self._log.close()
        await self._connections.close()


class PlacementPart:
    """Placement with its connection to the broker."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._connections = at = Connections(settings, "placement", name)
        end = Ender(this_node(), this_start()).end if settings.end_paused_hosts == "on" else None
        self._service = PlacementService(at.broker, at.clock, at.metrics, settings.hosts, end)
        self.identity = f"{name}-{uuid_utils.uuid7().hex[-12:]}"

    def died(self, identity: str) -> None:
        self._service.died(identity)

    async def start(self) -> dict[str, int]:
        await self._connections.open()
        await self._service.start()
        return {}

    async def stop(self, *, with_all: bool = False) -> None:
        await self._service.stop()
        await self._connections.close()
