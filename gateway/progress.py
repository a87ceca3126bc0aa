"""How far a client has come with what was sent to it: whether one who does not answer is slow, or gone."""

import asyncio
import socket
import struct
from typing import Final, NamedTuple

_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)
_SIZE: Final = 148
_FIELDS: Final = struct.Struct("=24xI92xQ16xI")
"""tcpi_unacked, tcpi_bytes_acked and tcpi_notsent_bytes of Linux's `struct tcp_info` (linux/tcp.h)."""


class Taken(NamedTuple):
    """What the client's system has acknowledged since the connection began, and whether more waits for it."""

    bytes: int
    waiting: bool


NOTHING: Final = Taken(0, False)
"""What is said of a client where nobody can know."""


def taken(transport: asyncio.WriteTransport) -> Taken:
    """What the system says of the transport's connection; `NOTHING` where it does not say, or the connection is gone."""
    connection = transport.get_extra_info("socket")
    if connection is None or _TCP_INFO is None or transport.is_closing():
        return NOTHING
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)
    except OSError:
        return NOTHING
    if len(info) < _SIZE:
        return NOTHING
    unacknowledged, acknowledged_bytes, unsent_bytes = _FIELDS.unpack(info)
    return Taken(acknowledged_bytes, bool(unacknowledged or unsent_bytes or transport.get_write_buffer_size()))
