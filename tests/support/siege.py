"""Clients that take their time (slowloris): they hold a connection as long as they are let, with as little as possible."""

import asyncio
import functools
import json
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tests.security.wires import RawSocket, frame

DRIP_S: Final = 1.0
_UPGRADE: Final = b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@dataclass
class Siege:
    """Attackers of one form. `lasted_s` has how long each that is gone was let; `refused` never got in at all."""

    lasted_s: list[float] = field(default_factory=list)
    refused: int = 0
    inside: int = 0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def begin(self, attackers: list[Callable[[], Awaitable[None]]], at_once: int = 200) -> None:
        """Returns when all that get in are in, or after a while."""
        turn = asyncio.Semaphore(at_once)

        async def one(attack: Callable[[], Awaitable[None]]) -> None:
            async with turn:
                self.inside += 1
                await asyncio.sleep(0)
            began_s = time.monotonic()
            try:
                await attack()
            except (OSError, EOFError, AssertionError):
                self.refused += 1
            else:
                self.lasted_s.append(time.monotonic() - began_s)

        self._tasks = [asyncio.create_task(one(attack)) for attack in attackers]
        await asyncio.sleep(min(3.0, 0.2 + len(attackers) / 1000))

    async def gone(self, within_s: float) -> None:
        """Return when nobody is there any more. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _until_cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drip: bytes = b"") -> None:
    """Send a little every second until the other side ends it."""
    ended = asyncio.ensure_future(reader.read(-1))
    try:
        while not (await asyncio.wait([ended], timeout=DRIP_S))[0]:
            if drip:
                writer.write(drip)
        with suppress(OSError):
            ended.result()
    finally:
        ended.cancel()
        writer.close()


def dripping(port: int, begin: bytes, drip: bytes) -> Callable[[], Awaitable[None]]:
    """Who sends the beginning of a request, and then crumbs; without a drip who is silent."""

    async def attack() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if begin:
            writer.write(begin)
        await _until_cut(reader, writer, drip)

    return attack


def slow_headers(port: int) -> Callable[[], Awaitable[None]]:
    return dripping(port, _UPGRADE, b"X-a: b\r\n")


def slow_body(port: int, path: str) -> Callable[[], Awaitable[None]]:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10000\r\n\r\n"
    return dripping(port, head.encode() + b"{", b" ")


def silent(port: int) -> Callable[[], Awaitable[None]]:
    return dripping(port, b"", b"")


def half_open(port: int) -> Callable[[], Awaitable[None]]:
    """Upgraded, and never says who it is."""

    async def attack() -> None:
        async with RawSocket(port) as socket_:
            await _until_cut(socket_.reader, socket_.writer)

    return attack


def never_pong(port: int, token: str) -> Callable[[], Awaitable[None]]:
    """Connected, reads everything, and answers no ping."""

    async def attack() -> None:
        async with RawSocket(port, token) as socket_:
            await _until_cut(socket_.reader, socket_.writer)

    return attack


@functools.lru_cache(maxsize=1_000)
def _questions(token: str) -> bytes:
    """`connect`, and commands that are refused at once, so that it is the answers that weigh, and not what they took.

    Made once: who measures the gateway in the same process must not wait for the attackers' arithmetic.
    """
    commands = [{"id": 1, "connect": {"token": token}}]
    commands += [{"id": n, "rpc": {"method": "nothing", "data": {}}} for n in range(2, 150)]
    return b"".join(frame(json.dumps(each).encode()) for each in commands)


def slow_read(port: int, token: str) -> Callable[[], Awaitable[None]]:
    """Connected with a tiny window, asks for a lot, and reads nothing of it."""

    async def attack() -> None:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, 512)
        plain.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(plain, ("127.0.0.1", port))
            key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            await loop.sock_sendall(plain, _UPGRADE + key)
            heard = b""
            while b"\r\n\r\n" not in heard:
                came = await loop.sock_recv(plain, 512)
                if not came:
                    raise EOFError("not let in")
                heard += came
            await loop.sock_sendall(plain, _questions(token))
            while True:
                await asyncio.sleep(DRIP_S)
                # What is known of a cut without reading: that nothing can be sent any more.
                await loop.sock_sendall(plain, frame(b"{}"))
        except (ConnectionError, BrokenPipeError):
            return
        finally:
            plain.close()

    return attack


def slow_download(port: int, path: str) -> Callable[[], Awaitable[None]]:
    """Asks for something large by HTTP with a tiny window, and reads nothing of it."""

    async def attack() -> None:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        plain.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(plain, ("127.0.0.1", port))
            await loop.sock_sendall(plain, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            while _established(plain):
                await asyncio.sleep(DRIP_S)
        except (ConnectionError, BrokenPipeError):
            return
        finally:
            plain.close()

    return attack


def _established(plain: socket.socket) -> bool:
    """Whether the connection stands (TCP_ESTABLISHED), by the system's word: to look by reading would be to read."""
    return plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1
