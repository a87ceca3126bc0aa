"""A connection to MariaDB/MySQL whose every wait has an end, and which never leaves a transaction behind.

asyncmy bounds each read, but not the handshake as a whole, nor the closing of a connection whose server does not read; and
a server learns from nothing that a client is gone whose packets are lost: its transaction, locks included, stays open. So
every connection holds a user lock that names it, and the connections of a process share a list of those that ended in the
middle of something: the next one ends them. A connection's number would not do, because a restarted server counts anew.
"""

import asyncio
import contextlib
import socket
import uuid
from typing import TYPE_CHECKING, Any, Final

from asyncmy.errors import Error, OperationalError

if TYPE_CHECKING:
    Connection = Any  # asyncmy's stub leaves out what is overridden here
else:
    from asyncmy.connection import Connection

ASYNCMY: Final = "0.2.18"
"""The version whose private seams are used here; a test compares it with the one that is installed."""

_QUIT: Final = b"\x01\x00\x00\x00\x01"
_CONNECTION_ERROR: Final = 2003
_LOST_AT_MOST: Final = 64


class Abandoned:
    """Connections of this process that ended while the server may have been at work for them; the last 64 of them."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str) -> None:
        self._names[name] = None
        if len(self._names) > _LOST_AT_MOST:
            del self._names[next(iter(self._names))]

    async def end(self, connection: Connection) -> None:
        """Have the server end them, over a connection that works; those that are gone already are fine."""
        while self._names:
            name = next(iter(self._names))
            async with connection.cursor() as cursor:
                await cursor.execute("SELECT IS_USED_LOCK(%s)", (name,))
                (number,) = await cursor.fetchone()
                if number is not None:
                    with contextlib.suppress(Error):
                        await cursor.execute(f"KILL {int(number)}")
            self._names.pop(name, None)


class BoundedConnection(Connection):  # type: ignore[misc]
    """asyncmy's connection; connecting takes `connect_timeout` seconds in all, closing waits for nobody.

    A network that delivers nothing for `unacknowledged_s` breaks it, even while it is idle.
    """

    def __init__(
        self, *, abandoned: Abandoned, unacknowledged_s: float, session: str, connect_timeout: float, **options: Any
    ) -> None:
        """`session` is a list of assignments for SET."""
        self._name = f"renoveasy.{uuid.uuid4().hex}"
        named = f"SET {session}, @renoveasy = GET_LOCK('{self._name}', 0)"
        super().__init__(connect_timeout=connect_timeout, init_command=named, **options)
        self._abandoned = abandoned
        self._unacknowledged_s = unacknowledged_s
        self._limit_s = connect_timeout

    @classmethod
    async def opened(cls, **options: Any) -> "BoundedConnection":
        """A connection that is ready for statements.

        Raises:
            OperationalError: not within `connect_timeout`, or the server did not speak as servers do.
        """
        made = cls(**options)
        try:
            async with asyncio.timeout(made._limit_s):
                await made.connect()
                if made._abandoned:
                    await made._abandoned.end(made)
                    await made.rollback()
        except TimeoutError as error:
            made.close()
            raise OperationalError(_CONNECTION_ERROR, f"no handshake within {made._limit_s:g} s") from error
        except (Error, OSError):
            made.close()
            raise
        except Exception as error:
            # A server that is going down says things in the middle of a handshake that the driver cannot read.
            made.close()
            raise OperationalError(_CONNECTION_ERROR, f"the handshake failed: {error!r}") from error
        except BaseException:
            made.close()
            raise
        return made

    async def ensure_closed(self) -> None:
        """Say goodbye if the server hears it; never wait for that."""
        transport = self._transport
        if self._connected and transport is not None and not transport.is_closing():
            transport.write(_QUIT)
            if transport.get_write_buffer_size():
                transport.abort()
        self.close()

    @property
    def broken(self) -> bool:
        """Whether the connection is known to be of no use, without asking the server."""
        return bool(self._stream_broken)

    def _set_keep_alive(self) -> None:
        super()._set_keep_alive()
        milliseconds = round(self._unacknowledged_s * 1000)
        for option, value in (
            ("TCP_USER_TIMEOUT", milliseconds),
            ("TCP_KEEPIDLE", max(1, milliseconds // 1000)),
            ("TCP_KEEPINTVL", 1),
            ("TCP_KEEPCNT", 3),
        ):
            if hasattr(socket, option):
                self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    async def _fill_buffer(self, need: int) -> None:
        try:
            await super()._fill_buffer(need)
        except BaseException:
            if not self._proto.eof:
                self._abandoned.add(self._name)
            raise
