"""How a client reaches a gateway: over a WebSocket of the `websockets` library, which no other file of the client knows."""

import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

_MAX_FRAME_BYTES: Final = 8 * 1024 * 1024
"""What a gateway sends at once is far smaller."""
_FRAMES_AHEAD: Final = 4
"""So many frames are read before somebody wants them; then TCP holds the server back."""


class ConnectionEnded(Exception):
    """The connection is over, or did not come about. `code` is the server's, or 0 where it said none."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Wire(Protocol):
    """An open connection. `receive` and `send` may be under way at once, each once; cancelling them loses nothing."""

    async def receive(self) -> bytes:
        """The next frame; raises ConnectionEnded."""

    async def send(self, frame: bytes) -> None:
        """Returns when there is room for more; raises ConnectionEnded."""

    async def close(self) -> None:
        """End it. May be called more than once, and never fails."""


Dial = Callable[[str], Awaitable[Wire]]
"""Opens a connection to a URL; raises ConnectionEnded. May be cancelled."""


class _WebSocket:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def receive(self) -> bytes:
        try:
            return await self._socket.recv(decode=False)
        except ConnectionClosed as error:
            raise _ended(error) from error

    async def send(self, frame: bytes) -> None:
        try:
            await self._socket.send(frame, text=True)
        except ConnectionClosed as error:
            raise _ended(error) from error

    async def close(self) -> None:
        await self._socket.close()


async def dial(url: str, trusting: ssl.SSLContext | None = None) -> Wire:
    """A WebSocket without compression, and without a proxy. None: `wss://` trusts whom the system trusts."""
    options: dict[str, Any] = {} if trusting is None else {"ssl": trusting}
    try:
        socket = await connect(
            url,
            compression=None,
            ping_interval=None,
            proxy=None,
            max_size=_MAX_FRAME_BYTES,
            max_queue=_FRAMES_AHEAD,
            close_timeout=1.0,
            **options,
        )
    except (OSError, InvalidHandshake) as error:  # TimeoutError is an OSError
        raise ConnectionEnded(0, str(error) or type(error).__name__) from error
    return _WebSocket(socket)


def _ended(error: ConnectionClosed) -> ConnectionEnded:
    return ConnectionEnded(error.rcvd.code, error.rcvd.reason) if error.rcvd is not None else ConnectionEnded(0, "cut")
