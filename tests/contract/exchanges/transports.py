"""The same over plain HTTP, and in Protobuf."""

import itertools
import re
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import httpx
from centrifuge.protocol import client_pb2
from google.protobuf.text_format import MessageToString
from websockets.asyncio.client import connect

from tests.contract.exchanges.stage import Exchange, Stage, exchange
from tests.support.transcripts import Feed, compact

_WAITING_S = 60.0


async def open_feed(stage: Stage, stack: AsyncExitStack, path: str, **options: Any) -> Feed:
    """A response that goes on, and what comes on it."""
    sse = path.startswith("/connection/sse")
    http = await stack.enter_async_context(httpx.AsyncClient(base_url=stage.urls["http"], timeout=_WAITING_S))
    response = await stack.enter_async_context(http.stream("GET" if "json" not in options else "POST", path, **options))
    assert response.status_code == 200, await response.aread()
    feed = Feed(stage.sheet, "")
    stage.sheet.line("", "←", f"200 {response.headers['content-type']}")

    def data(line: str) -> str | None:
        if not sse:
            return line or None
        return line.removeprefix("data: ") if line.startswith("data: ") else None

    return feed.listen(response.aiter_lines(), data)


def _said(item: dict[str, Any]) -> str | None:
    kind: str | None = item.get("push", {}).get("pub", {}).get("data", {}).get("type")
    return kind


async def post(stage: Stage, told: dict[str, Any], *commands: dict[str, Any]) -> None:
    """Commands for a stream, as they are posted."""
    body = {"session": told["session"], "node": told["node"], "data": "\n".join(map(compact, commands))}
    stage.sheet.line("", "→", f"POST /emulation {stage.names(compact(body))}")
    async with httpx.AsyncClient(base_url=stage.urls["http"], timeout=_WAITING_S) as http:
        answer = await http.post("/emulation", json=body)
    stage.sheet.line("", "←", f"{answer.status_code} {answer.text}".strip())


@exchange("`http_stream` and `/emulation`")
async def http_stream(stage: Stage) -> None:
    """The answer to `connect` has `session` and `node`, which everything else is posted with. Afterwards the user logs out: a
    `disconnect` push, and the response ends."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    first = {"id": 1, "connect": {"token": anna.token}}
    stage.sheet.line("", "→", f"POST /connection/http_stream {stage.names(compact(first))}")
    async with AsyncExitStack() as stack:
        feed = await open_feed(stage, stack, "/connection/http_stream", json=first)
        told = (await feed.hears())[0]["connect"]
        await post(stage, told, {"id": 2, "subscribe": {"channel": f"conversation:{chat}"}})
        await feed.hears()
        message = {"conversation_id": chat, "id": stage.new("message"), "text": "Through the wall"}
        await post(stage, told, {"id": 3, "rpc": {"method": "message.send", "data": message}})
        await feed.hears(2)
        stage.note("The answer to a ping, to a gateway that is not there, and with a `session` that is none:")
        await post(stage, told, {})
        await post(stage, told | {"node": "gateway-9"}, {})
        await post(stage, told | {"session": "guessed"}, {})
        stage.note("She logs out elsewhere:")
        await stage.rest("POST", "/v1/auth/logout", anna, json={})
        while _said(ended := (await feed.take())[0]) == "session.revoked":
            pass
        stage.sheet.item("", ended)
        await feed.ends()
        await feed.hang_up()


@exchange("`sse`, with a ticket")
async def sse(stage: Stage) -> None:
    """A URL holds a ticket and never an access token. The client's further commands go to `/emulation`, as above. A ticket is
    good for one `connect`."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    ticket = (await stage.asks_rest(anna, "POST", "/v1/auth/ticket"))["ticket"]
    path = "/connection/sse?cf_connect="
    first = {"id": 1, "connect": {"token": ticket}}
    async with AsyncExitStack() as stack:
        for again in (False, True):
            stage.note("The value of `cf_connect` is percent-encoded in the URL." if not again else "The ticket again:")
            stage.sheet.line("", "→", f"GET {path}{stage.names(compact(first))}")
            feed = await open_feed(stage, stack, path + quote(compact(first)))
            (told,) = await feed.hears()
            if not again:
                await post(stage, told["connect"], {"id": 2, "subscribe": {"channel": f"conversation:{chat}"}})
                await feed.hears()
            await feed.hang_up()
        stage.note("With an access token:")
        stage.sheet.line("", "→", f"GET {path}{stage.names(compact({'id': 1, 'connect': {'token': anna.token}}))}")
        async with httpx.AsyncClient(base_url=stage.urls["http"], timeout=_WAITING_S) as http:
            refused = await http.get(path + quote(compact({"id": 1, "connect": {"token": anna.token}})))
        stage.sheet.line("", "←", f"{refused.status_code} {refused.text}".strip())


_TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_MORNING = b"2026-01-31T09:30:00.000Z"


class Bytes:
    """Frames with ids and times of the same length in place of the real ones, in hex and as the official SDK reads them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._numbers = itertools.count(1)
        self._others: dict[bytes, bytes] = {}

    def number(self, identifier: str) -> None:
        self._others[identifier.encode()] = b"0197a0a0-0000-7000-8000-%012d" % next(self._numbers)

    def show(self, arrow: str, frame: bytes, kind: Any) -> None:
        frame = _TIME.sub(_MORNING, frame)
        for real, shown in self._others.items():
            frame = frame.replace(real, shown)
        self._stage.sheet.line("", arrow, frame.hex())
        for item in items_in(frame, kind):
            text = MessageToString(item, as_one_line=True, as_utf8=True)
            self._stage.sheet.line("", " ", text or "(an empty message)")


def items_in(frame: bytes, kind: Any) -> list[Any]:
    """The messages of a frame, each with its length (a varint) in front."""
    items, at = [], 0
    while at < len(frame):
        size = shift = 0
        while True:
            byte = frame[at]
            at, size, shift = at + 1, size | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        items.append(kind.FromString(frame[at : at + size]))
        at += size
    return items


def framed(*commands: Any) -> bytes:
    out = b""
    for command in commands:
        body = command.SerializeToString()
        assert len(body) < 16_384
        size = len(body)
        out += (bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])) + body
    return out


@exchange("Protobuf")
async def protobuf(stage: Stage) -> None:
    """The subprotocol `centrifuge-protobuf`, binary frames, the messages of Centrifuge's `client.proto`, each with its length in
    front as a varint; an empty message, the byte `00`, is a ping or a pong. `data` is JSON in bytes. Each frame is shown in hex,
    and below it as its messages read in Protobuf's text format. Ids and times are others of the same length. `connect`, which
    has a token in it, was answered before."""
    anna, ben = await stage.people("anna", "ben")
    chat, message = await stage.chat(anna, ben), stage.new("message")
    shown = Bytes(stage)
    for identifier in (anna.id, ben.id, chat, message, anna.device):
        shown.number(identifier)
    command = client_pb2.Command
    async with connect(stage.urls["first"], subprotocols=["centrifuge-protobuf"]) as socket:  # type: ignore[list-item]

        async def hears(count: int) -> list[bytes]:
            """So many messages, each as a frame of its own, hints and pings left out; replies first."""
            heard: list[bytes] = []
            while len(heard) < count:
                frame = await socket.recv()
                assert isinstance(frame, bytes)
                items = items_in(frame, client_pb2.Reply)
                heard += [framed(item) for item in items if item.ByteSize() and b".activity" not in item.push.pub.data]
            return sorted(heard, key=lambda each: items_in(each, client_pb2.Reply)[0].id == 0)

        await socket.send(framed(command(id=1, connect={"token": anna.token})))
        await hears(1)
        data = {"conversation_id": chat, "id": message, "text": "你好"}
        asked = (
            (command(id=2, subscribe={"channel": f"conversation:{chat}"}), 1),
            (command(id=3, rpc={"method": "message.send", "data": compact(data).encode()}), 2),
            (command(id=4, rpc={"method": "message.shout", "data": b"{}"}), 1),
            (command(id=5, unsubscribe={"channel": f"conversation:{chat}"}), 1),
        )
        for said, count in asked:
            shown.show("→", framed(said), command)
            await socket.send(framed(said))
            for frame in await hears(count):
                shown.show("←", frame, client_pb2.Reply)
        stage.note("A ping, as it comes every 25 s, and the pong:")
        shown.show("←", b"\x00", client_pb2.Reply)
        shown.show("→", b"\x00", command)


EXCHANGES: list[Exchange] = [http_stream, sse, protobuf]
