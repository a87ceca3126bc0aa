"""A WebSocket of which every bit is the test's own (RFC 6455): no library keeps it from being wrong."""

import asyncio
import json
import os
import struct
from contextlib import suppress
from types import TracebackType
from typing import Self

TEXT, BINARY, CONT, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA
GONE = 0
"""Stands for a TCP connection that ended without a close frame."""


def frame(
    payload: bytes = b"",
    opcode: int = TEXT,
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    announced: int | None = None,
    width: int = 0,
) -> bytes:
    """A frame. `reserved` are the three bits; `announced` is the length that it says, in `width` bytes if that is given."""
    size = len(payload) if announced is None else announced
    width = width or (1 if size < 126 else 2 if size < 65_536 else 8)
    mask_bit = 0x80 if masked else 0
    length = {
        1: lambda: bytes([mask_bit | size]),
        2: lambda: bytes([mask_bit | 126]) + struct.pack("!H", size),
        8: lambda: bytes([mask_bit | 127]) + struct.pack("!Q", size),
    }[width]()
    head = bytes([(0x80 if fin else 0) | reserved << 4 | opcode]) + length
    if not masked:
        return head + payload
    key = os.urandom(4)
    repeated = (key * (len(payload) // 4 + 1))[: len(payload)]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return head + key + mixed.to_bytes(len(payload), "big")


class RawSocket:
    """A connection to the gateway, after the upgrade; with a token also after `connect`."""

    def __init__(
        self,
        port: int,
        token: str = "",
        path: str = "/connection/websocket",
        subprotocol: str = "",
        headers: str = "",
    ) -> None:
        self._port, self._token, self._path, self._subprotocol = port, token, path, subprotocol
        self._headers = headers
        self.answer = b""
        """The head with which the upgrade was answered."""

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await self._begin()
        except BaseException:
            self.writer.close()
            raise
        return self

    async def _begin(self) -> None:
        offered = f"Sec-WebSocket-Protocol: {self._subprotocol}\r\n" if self._subprotocol else ""
        self.writer.write(
            f"GET {self._path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{offered}{self._headers}"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.answer = await self.reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in self.answer, self.answer
        if self._token:
            self.writer.write(frame(json.dumps({"id": 1, "connect": {"token": self._token}}).encode()))
            opcode, payload = await self.read()
            assert (opcode, b'"connect"' in payload) == (TEXT, True), payload

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        """As many bytes as the other side takes."""
        with suppress(OSError):
            self.writer.write(data)
            await self.writer.drain()

    async def read(self) -> tuple[int, bytes]:
        """The next frame of the server's.

        Raises:
            EOFError, OSError: there is none; the connection has ended.
        """
        head = await self.reader.readexactly(2)
        size = head[1] & 0x7F
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(await self.reader.readexactly(width), "big")
        return head[0] & 0x0F, await self.reader.readexactly(size)

    async def closed_with(self, within_s: float = 10.0) -> int:
        """The close code that the server ends the connection with, after whatever it says before."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    opcode, payload = await self.read()
                    if opcode == CLOSE:
                        return int.from_bytes(payload[:2], "big")
        except (EOFError, OSError):
            return GONE
