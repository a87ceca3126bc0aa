"""A WebSocket that asks and waits, and comes back by itself: for tests that want an answer rather than a load."""

import asyncio
import itertools
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from domain.errors import Code, Refusal

ANSWER_S = 5.0
RETRY_S = 0.1
LIMIT_S = 60.0


class RpcSocket:
    """One device. `rpc` sends again, with the same id inside `data`, until there is an answer that no retry can change."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        self._numbers = itertools.count(2)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._socket: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._online = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._stay_connected())
        async with asyncio.timeout(LIMIT_S):
            await self._online.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def rpc(self, method: str, data: dict[str, Any]) -> dict[str, Any]:
        """The result of a method.

        Raises:
            Refusal: the platform refuses, and would again.
            TimeoutError: there was no answer within `LIMIT_S`.
        """
        async with asyncio.timeout(LIMIT_S):
            while True:
                reply = await self._ask({"rpc": {"method": method, "data": data}})
                if reply is not None and "rpc" in reply:
                    return dict(reply["rpc"]["data"])
                if reply is not None and not reply["error"].get("temporary"):
                    raise Refusal(Code(reply["error"]["message"]))
                await asyncio.sleep(RETRY_S)

    async def _ask(self, command: dict[str, Any]) -> dict[str, Any] | None:
        """The reply; None where none came or the connection was lost."""
        await self._online.wait()
        socket, number = self._socket, next(self._numbers)
        if socket is None:
            return None
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await socket.send(msgspec.json.encode({"id": number, **command}).decode())
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except (ConnectionClosed, ConnectionError, TimeoutError):
            return None
        finally:
            self._waiting.pop(number, None)

    async def _stay_connected(self) -> None:
        while True:
            with suppress(OSError, InvalidHandshake, ConnectionClosed, TimeoutError):
                async with connect(self._url, compression=None, open_timeout=5, max_size=None) as socket:
                    await self._serve(socket)
            self._online.clear()
            self._socket = None
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ConnectionError("the connection was lost"))
            await asyncio.sleep(RETRY_S)

    async def _serve(self, socket: ClientConnection) -> None:
        await socket.send(msgspec.json.encode({"id": 1, "connect": {"token": self._token}}).decode())
        async for frame in socket:
            for line in frame.splitlines():
                reply = msgspec.json.decode(line)
                if not reply:
                    await socket.send("{}")
                elif reply.get("id") == 1:
                    self._socket = socket
                    self._online.set()
                elif (answer := self._waiting.get(reply.get("id", 0))) is not None and not answer.done():
                    answer.set_result(reply)
