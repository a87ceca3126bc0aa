"""A host with room for few commands that wait for a commit, so that a test need not send thousands to fill it."""

import functools

import deploy.host_part
from actors.host import HostSettings

ROOM = 200


def plant(role: str) -> None:
    if role == "host":
        deploy.host_part.HostSettings = functools.partial(HostSettings, buffer_commands=ROOM)  # type: ignore[misc, assignment]
