"""The whole platform on a Ray cluster: which actors there are, started together and stopped in order."""

from typing import Final

import ray
from ray import serve

from deploy import ray_actors
from deploy.connections import keys_folder
from deploy.fleet import start_part
from deploy.host_part import PlacementPart
from deploy.rest_part import REST, rest_deployment
from deploy.settings import Settings
from storage.tokens import SigningKeys

START_LIMIT_S: Final = 60.0
STOP_LIMIT_S: Final = 5.0


class Cluster:
    """The running actors and the Serve application."""

    def stop(self) -> None:
        """In an orderly way: REST, then gateways, hosts, placement; those too that were added since the start."""
        serve.shutdown()
        for names in (ray_actors.names("gateway"), ray_actors.names("host"), ["placement"]):
            stopping = [ray.get_actor(name).stop.remote() for name in names]
            ray.wait(stopping, num_returns=len(stopping), timeout=STOP_LIMIT_S)


def start_cluster(settings: Settings) -> Cluster:
    """Start every part on the Ray cluster that this process is connected to; returns when all of them work.

    Raises:
        RuntimeError: a part did not start in time, and why.
    """
    SigningKeys.open(keys_folder(settings))
    actors = [ray_actors.start(ray_actors.Placement, settings, "placement", PlacementPart)]
    actors += [start_part(settings, "host", number) for number in range(settings.hosts)]
    actors += [start_part(settings, "gateway", number) for number in range(settings.gateways)]
    # HAProxy listens where the settings say; everything behind it stays inside the machine.
    serve.start(http_options={"host": "127.0.0.1", "port": settings.http_port}, proxy_location="HeadOnly")
    serve.run(rest_deployment(settings), name=REST, route_prefix="/")
    ray.get([actor.info.remote(START_LIMIT_S) for actor in actors])
    return Cluster()
