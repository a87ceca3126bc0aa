"""HTTP/1.1 on the gateway's port, for what is not a WebSocket: uvicorn's protocol, the only file that knows it.

What is added are bounds on a client's time and on the size of a head; uvicorn leaves both to the server in front of it.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.door import Place
from gateway.progress import taken
from gateway.settings import GatewaySettings

MAX_HEAD_BYTES: Final = 16_384
Upgrade = Callable[[Place], asyncio.Protocol]


class HttpConnection(HttpToolsProtocol):
    """One connection: any number of requests, one after the other, and at last maybe a WebSocket handshake.

    A request's head must be there `open_timeout_s` after its first byte, that of the first one after the connection was
    accepted, and so must its body, which the application waits for.
    """

    def __init__(self, config: Config, state: ServerState, settings: GatewaySettings, place: Place, upgrade: Upgrade):
        super().__init__(config, state, {})
        self._settings = settings
        self._place: Place | None = place
        self._until = place.until
        self._late: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._busy = False
        self.app_state["upgrade"] = lambda: upgrade(self._leave_to_another())

    def _leave_to_another(self) -> Place:
        assert self._place is not None
        place, self._place = self._place, None
        self._in_time()
        return place

    # --- asyncio -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.transport.set_write_buffer_limits(self._settings.write_limit_bytes)
        self.app_state["reset"] = self.transport.abort
        self.app_state["taken"] = partial(taken, self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        super().connection_lost(exc)
        if self._place is not None:
            self._place.leave()
            self._place = None

    def data_received(self, data: bytes) -> None:
        # Whatever the first bytes after a silence are, blank lines included: uvicorn takes its own timer off for them.
        if not self._busy and self._late is None:
            self._expect()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._late is not None and self._head_bytes > MAX_HEAD_BYTES:
            self.transport.abort()

    # --- the parser ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.app_state["until"] = self._until
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._busy = True
        self._in_time()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._busy = bool(self.pipeline)
        super().on_response_complete()

    # --- time ----------------------------------------------------------------------------------------------------

    def _expect(self) -> None:
        """A request has begun."""
        loop = self.loop
        self._until = self._until or loop.time() + self._settings.open_timeout_s
        self._late = loop.call_at(self._until, self.transport.abort)
        self._head_bytes = 0

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
            self._until = 0.0


class HttpFront:
    """All HTTP connections of a gateway, and the application behind them."""

    def __init__(self, application: Any, settings: GatewaySettings) -> None:
        self._settings = settings
        self._state = ServerState()
        self._config = Config(
            application,
            http=HttpConnection,
            ws=_upgraded,  # type: ignore[arg-type]
            interface="asgi3",
            lifespan="off",
            log_config=None,
            log_level="error",  # below that, hostile bytes write our logs
            access_log=False,  # URLs may hold tickets
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,
        )
        self._config.load()

    def connection(self, place: Place, upgrade: Upgrade) -> HttpConnection:
        """A protocol for a connection that stands at the door. `upgrade` makes the one that takes it over for a WebSocket."""
        return HttpConnection(self._config, self._state, self._settings, place, upgrade)

    async def close(self) -> None:
        """Let what is being answered end, for `close_timeout_s` at most, and cut off what is left."""
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=self._settings.close_timeout_s)
        for connection in list(self._state.connections):
            connection.transport.abort()


def _upgraded(config: Config, server_state: ServerState, app_state: dict[str, Any]) -> asyncio.Protocol:
    protocol: asyncio.Protocol = app_state["upgrade"]()
    return protocol
