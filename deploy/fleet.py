"""Hosts and gateways as Ray actors: what `renoveasy up` begins with, and what is added later."""

from typing import Any

from deploy import ray_actors
from deploy.gateway_part import GatewayPart
from deploy.host_part import HostPart
from deploy.settings import Settings


def start_part(settings: Settings, role: str, number: int) -> Any:
    """The handle of the host or gateway of that number; it may not work yet."""
    name = f"{role}-{number}"
    if role == "host":
        return ray_actors.start(ray_actors.Host, settings, name, HostPart)
    return ray_actors.start(ray_actors.Gateway, settings, name, GatewayPart)
