"""The whole platform on a Ray cluster: which actors there are, started together and stopped in order."""

from typing import Any, Final

import ray
from ray import serve

from deploy import ray_actors
from deploy.connections import keys_folder
from deploy.gateway_part import GatewayPart
from deploy.host_part import HostPart, PlacementPart
from deploy.rest_part import REST, rest_deployment
from deploy.settings import Settings
from storage.tokens import SigningKeys

START_LIMIT_S: Final = 60.0


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
    # HAProxy listens where the settings say; everything behind it stays inside the machine.
    serve.start(http_options={"host": "127.0.0.1", "port": settings.http_port}, proxy_location="HeadOnly")
    serve.run(rest_deployment(settings), name=REST, route_prefix="/")
    ray.get([actor.info.remote(START_LIMIT_S) for actor in actors.values()])
    return Cluster(actors)
