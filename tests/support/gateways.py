"""A gateway over the fake platform."""

import uuid
from typing import Any

from domain.ports import Broker, Clock, PresenceStore, TokenVerifier
from gateway.server import GatewayServer
from gateway.settings import GatewaySettings
from tests.support.fake_platform import CountingMetrics, FakePlatform, SystemClock


def gateway_over(
    platform: FakePlatform,
    metrics: CountingMetrics | None = None,
    *,
    broker: Broker | None = None,
    verifier: TokenVerifier | None = None,
    clock: Clock | None = None,
    presence_store: PresenceStore | None = None,
    **settings: Any,
) -> GatewayServer:
    """A gateway, not started yet, that will listen on a free port of the loopback and be quick about its deadlines.

    Whatever is not given is the platform's own.
    """
    p: Any = platform
    options: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "tick_s": 0.02, "close_timeout_s": 0.5}
    return GatewayServer(
        GatewaySettings(**options | settings),
        p,
        broker or p.broker,
        p,
        p,
        verifier or p,
        clock or SystemClock(),
        lambda: str(uuid.uuid4()),
        metrics or CountingMetrics(),
        presence_store,
    )
