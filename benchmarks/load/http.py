"""HTTP/1.1 over kept-alive connections, as little code per request as Python allows: general clients would be the bottleneck."""

import asyncio
import json
from types import TracebackType
from typing import Any, Final, Self, cast

REQUEST_LIMIT_S: Final = 30.0


class HttpFailed(Exception):
    """The connection was lost, or what came is not an answer this client understands."""


def request_bytes(method: str, path: str, host: str, token: str = "", body: bytes = b"") -> bytes:
    """A whole request, ready to be sent again and again."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Accept: application/json"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


class HttpConnection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[tuple[int, bytes]] | None = None
        self._buffer = b""
        self._error: Exception | None = None

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(HttpFailed(f"the server closed the connection ({error or 'orderly'})"))

    def _fail(self, error: Exception) -> None:
        self._error = error
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        head = buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        try:
            end = head + 4 + body_length(buffer[:head])
        except HttpFailed as error:
            self._fail(error)
            return
        if len(buffer) < end:
            return
        self._buffer = buffer[end:]
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result((int(buffer[9:12]), buffer[head + 4 : end]))

    def request(self, request: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        """The status and the body of the answer; HttpFailed is raised where none comes."""
        assert self._transport is not None
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        if self._error is not None:
            waiter.set_exception(self._error)
        else:
            self._transport.write(request)
        return waiter

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def body_length(head: bytes) -> int:
    """The length of the body that follows a response's head.

    Raises:
        HttpFailed: the head does not say (`Transfer-Encoding: chunked`).
    """
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at >= 0:
        return int(lower[at + 17 :].split(b"\r\n", 1)[0])
    if head[9:12] in (b"204", b"304"):
        return 0
    raise HttpFailed(f"an answer without Content-Length: {head[:200]!r}")


class HttpPool:
    """A few connections for preparing things; a request waits for a free one."""

    def __init__(self, host: str, port: int, size: int = 16) -> None:
        self.host = f"{host}:{port}"
        self._address = (host, port)
        self._size = size
        self._free: asyncio.LifoQueue[HttpConnection] = asyncio.LifoQueue()
        self._all: list[HttpConnection] = []

    async def __aenter__(self) -> Self:
        for _ in range(self._size):
            connection = await HttpConnection.open(*self._address)
            self._all.append(connection)
            self._free.put_nowait(connection)
        return self

    async def __aexit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        for connection in self._all:
            connection.close()

    async def ask(self, method: str, path: str, token: str = "", body: dict[str, Any] | None = None) -> Any:
        """The JSON of a positive answer.

        Raises:
            HttpFailed: the answer is another one, or none came within `REQUEST_LIMIT_S`.
        """
        request = request_bytes(method, path, self.host, token, b"" if body is None else json.dumps(body).encode())
        connection = await self._free.get()
        try:
            async with asyncio.timeout(REQUEST_LIMIT_S):
                status, answer = await connection.request(request)
        except TimeoutError:
            raise HttpFailed(f"{method} {path}: no answer in {REQUEST_LIMIT_S:g} s") from None
        finally:
            self._free.put_nowait(connection)
        if not 200 <= status < 300:
            raise HttpFailed(f"{method} {path}: {status} {answer[:300]!r}")
        return json.loads(answer) if answer else None
