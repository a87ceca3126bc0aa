"""A gateway that hears only part of what is published, and is told nothing of it: deliveries are dropped in its broker."""

import functools
import os
import random

from gateway.settings import GatewaySettings
from storage.broker import NatsBroker

LOST = 0.2
"""This share of all deliveries of events is lost."""


class LossyBroker(NatsBroker):
    """`NatsBroker` without what a seeded generator takes away."""

    def _deliver(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        chance = _chance()
        if subject.startswith((b"ev.conversation.", b"ev.order.")) and chance.random() < LOST:
            return
        super()._deliver(sid, subject, reply, data, headers)


@functools.cache
def _chance() -> random.Random:
    return random.Random(1)


def plant(role: str) -> None:
    """Heads are compared every `LOSSY_AUDIT_S` seconds; 0 is never."""
    if role == "gateway":
        import deploy.connections

        audit_s = float(os.environ["LOSSY_AUDIT_S"])
        deploy.connections.NatsBroker = LossyBroker  # type: ignore[misc]
        deploy.gateway_part.GatewaySettings = functools.partial(GatewaySettings, audit_s=audit_s)  # type: ignore[misc, assignment]
