"""A device on a bad line: it takes what comes at so many bytes a second, through a socket that holds little."""

import asyncio
import socket
from time import perf_counter
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from tests.support.crowd import Crowd, Place

SIP_S: Final = 0.25
"""It reads so often, a little each time."""
_RECEIVE_BUFFER_BYTES: Final = 4_096
_RETRY_S: Final = 0.05


class SlowReader:
    """Follows streams and says nothing. `bytes_per_s` may be changed at any time; None: as fast as it can.

    What it is shown goes into the crowd's evidence. When its connection ends it comes back with its places.
    """

    def __init__(self, crowd: Crowd, name: str, user: str, token: str) -> None:
        self.crowd = crowd
        self.name = name
        self.user = user
        self.token = token
        self.bytes_per_s: int | None = None
        self.places: dict[str, Place] = {}
        self.told: list[str] = []
        """What its own channel said, by type."""
        self.states: list[dict[str, Any]] = []
        """What came without an offset."""
        self.ends: list[str] = []
        """Why its connections ended."""
        self.taken_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._socket: socket.socket
        self._protocol: ClientProtocol
        self._asked: dict[int, str] = {}
        self._number = 0
        self._following: set[str] = set()

    def start(self) -> None:
        self._task = asyncio.create_task(self._stay_connected())

    async def stop(self) -> None:
        """Leave, and remember where it stands."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._following.clear()

    async def online(self, limit_s: float = 30.0) -> None:
        """Return when it follows everything. Raises TimeoutError."""
        async with asyncio.timeout(limit_s):
            while len(self._following) < len(self.places):
                await asyncio.sleep(0.02)

    # --- the connection ------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        while True:
            try:
                with socket.socket() as self._socket:
                    await self._connect()
                    await self._read()
            except OSError as error:
                self.ends.append(repr(error))
            self._following.clear()
            await asyncio.sleep(_RETRY_S)

    async def _connect(self) -> None:
        url = urlsplit(self.crowd.ground.websocket)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        await asyncio.get_running_loop().sock_connect(self._socket, (url.hostname, url.port))
        self._protocol = ClientProtocol(parse_uri(self.crowd.ground.websocket), max_size=None)
        self._protocol.send_request(self._protocol.connect())
        await self._flush()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            most = 65_536 if self.bytes_per_s is None else max(1, int(self.bytes_per_s * SIP_S))
            if self.bytes_per_s is not None:
                await asyncio.sleep(SIP_S)
            data = await loop.sock_recv(self._socket, most)
            if not data:
                close = self._protocol.close_rcvd
                self.ends.append(f"{close.code} {close.reason}" if close is not None else "cut")
                return
            self.taken_bytes += len(data)
            self._protocol.receive_data(data)
            now_s = perf_counter()
            for event in self._protocol.events_received():
                if isinstance(event, Frame):
                    if event.opcode is Opcode.TEXT:
                        self._frame(bytes(event.data), now_s)
                else:  # the handshake is over
                    self._asked.clear()
                    self._ask("connect", {"token": self.token, "data": {"device_id": self.name}})
            await self._flush()

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    def _ask(self, name: str, request: dict[str, Any]) -> int:
        self._number += 1
        self._protocol.send_text(msgspec.json.encode({"id": self._number, name: request}))
        return self._number

    # --- what comes ----------------------------------------------------------------------------------------------

    def _frame(self, frame: bytes, now_s: float) -> None:
        for line in frame.splitlines():
            found = msgspec.json.decode(line)
            if not found:
                self._protocol.send_text(b"{}")
            elif "push" in found:
                self._pushed(found["push"], now_s)
            elif "connect" in found:
                for stream in self.places:
                    self._follow(stream)
            elif "subscribe" in found:
                self._placed(self._asked.pop(found["id"]), found["subscribe"], now_s)
            else:
                self.ends.append(f"answered {line[:200]!r}")

    def _follow(self, stream: str) -> None:
        place = self.places[stream]
        request: dict[str, Any] = {"channel": stream}
        if place.epoch:
            request |= {"recover": True, "epoch": place.epoch, "offset": place.offset}
        self._asked[self._ask("subscribe", request)] = stream

    def _placed(self, stream: str, answer: dict[str, Any], now_s: float) -> None:
        place = self.places[stream]
        if not place.epoch:
            place.epoch, place.offset = answer["epoch"], answer.get("offset", 0)
            self.crowd.evidence.began[self.name, stream] = place.offset
            self.crowd.evidence.shown.setdefault((self.name, stream), [])
        for publication in answer.get("publications", ()):
            self._show(stream, publication, now_s)
        self._following.add(stream)

    def _pushed(self, push: dict[str, Any], now_s: float) -> None:
        publication = push.get("pub")
        if publication is None:
            self.told.append(f"unsubscribed from {push.get('channel')}" if "unsubscribe" in push else str(push))
        elif push["channel"] not in self.places:
            self.told.append(publication["data"]["type"])
        else:
            self._show(push["channel"], publication, now_s)

    def _show(self, stream: str, publication: dict[str, Any], now_s: float) -> None:
        data, offset = publication["data"], publication.get("offset", 0)
        if not offset:
            self.states.append(data)
            return
        self.crowd.evidence.show(self.name, stream, offset, data["type"], data, now_s)
        self.places[stream].offset = offset
