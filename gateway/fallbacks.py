"""The protocol for networks that break WebSockets, as Centrifuge has it: an ASGI application.

`/connection/sse` and `/connection/http_stream` begin with the client's `connect` and answer with a stream that does not end;
the client's further commands are posted to `/emulation`. A `GET` can carry `connect` only in its URL, and URLs are written
down by everybody on the way: there a token must be a ticket.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from domain.places import network_of
from domain.tickets import is_ticket
from gateway.codec import JSON, Codec
from gateway.connection import Connection
from gateway.emulation import Emulation, Outcome
from gateway.progress import Taken
from gateway.protobuf import PROTOBUF, decode_emulation
from gateway.protocol import MalformedFrame
from gateway.stream import Receive, Send, Stream, event, line, plain
from gateway.switchboard import Switchboard

SSE_PATH: Final = "/connection/sse"
STREAM_PATH: Final = "/connection/http_stream"
EMULATION_PATH: Final = "/emulation"
_METHODS: Final = {SSE_PATH: ("GET", "POST"), STREAM_PATH: ("POST",), EMULATION_PATH: ("POST",)}
_CODECS: Final[dict[bytes, Codec]] = {b"application/json": JSON, b"application/octet-stream": PROTOBUF}
_MAX_FIELDS: Final = 16
_MAX_HEAD_BYTES: Final = 16_384
_DISCARDED_BYTES: Final = 1_048_576
"""So much of a body that is too large is read before it is refused: a client that still sends does not hear a refusal."""
_NEVER_STORED: Final = (
    (b"cache-control", b"private, no-cache, no-store, must-revalidate, max-age=0"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
)
_OUTCOMES: Final = {
    Outcome.TAKEN: HTTPStatus.NO_CONTENT,
    Outcome.GONE: HTTPStatus.NO_CONTENT,
    Outcome.BUSY: HTTPStatus.TOO_MANY_REQUESTS,
    Outcome.NOWHERE: HTTPStatus.NOT_FOUND,
    Outcome.UNKNOWN: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""A stream that is gone ends for its client too, who needs no second sign; and nobody learns which keys exist."""

Scope = dict[str, Any]


class _RefusedError(Exception):
    """The answer to a request that cannot be served. `close`: more of it would come, and is not wanted.

    Closing while the client still sends turns the answer into a reset, so that is left to where there is no other way.
    """

    def __init__(self, status: HTTPStatus, text: str, *headers: tuple[bytes, bytes], close: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = (*headers, (b"connection", b"close")) if close else headers


class _GoneError(Exception):
    """The client went away in the middle of its request."""


class _Request(NamedTuple):
    """What is looked at of a request."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    until: float
    """When its body must be there, by the event loop's clock."""
    reset: Callable[[], None]
    taken: Callable[[], Taken]
    ip: str

    def header(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key == name), b"")

    @property
    def origin(self) -> bytes:
        return self.header(b"origin")


class Posted(msgspec.Struct):
    """What `/emulation` is told. `data` is a frame: commands, one a line."""

    session: str
    node: str
    data: str


_decode_posted = msgspec.json.Decoder(Posted).decode


class Fallbacks:
    """The application. What is asked of it beside the three paths is answered as the WebSocket's own port does.

    The server below puts into a request's `state`: `until`, when its body must be there, `reset`, which cuts the
    connection off, and `taken`, which says how far the client has come with what was sent to it.
    """

    def __init__(
        self,
        board: Switchboard,
        emulation: Emulation,
        new_key: Callable[[], str] = lambda: secrets.token_urlsafe(24),
    ) -> None:
        """`new_key` gives a word that nobody can guess."""
        self._board = board
        self._settings = board.settings
        self._emulation = emulation
        self._new_key = new_key
        self.draining = False
        """Streams are refused from now on; commands for those that are still here are taken."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        request = _Request(
            scope["method"],
            scope["path"],
            scope["query_string"],
            scope["headers"],
            state["until"],
            state["reset"],
            state["taken"],
            network_of(str((scope.get("client") or ("",))[0])),
        )
        try:
            await self._serve(scope, request, receive, send)
        except _RefusedError as refused:
            await _respond(send, refused.status, refused.text, [*self._cors(request), *refused.headers])
        except _GoneError:
            return

    async def _serve(self, scope: Scope, request: _Request, receive: Receive, send: Send) -> None:
        if request.path == "/health/live" and request.method in ("GET", "HEAD"):
            return await _respond(send, HTTPStatus.OK, "live\n", [])
        self._check(request)
        if request.method == "OPTIONS":
            return await self._preflight(request, send)
        if request.path == EMULATION_PATH:
            return await self._emulate(request, receive, send)
        return await self._open(scope, request, receive, send)

    # --- who may ask ---------------------------------------------------------------------------------------------

    def _check(self, request: _Request) -> None:
        """The same rules as for WebSockets: right path, no foreign Origin, no token in the URL."""
        if request.path == "/connection/websocket":
            raise _RefusedError(HTTPStatus.UPGRADE_REQUIRED, "a WebSocket is wanted here\n", (b"upgrade", b"websocket"))
        methods = _METHODS.get(request.path)
        if methods is None:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "not found\n")
        if sum(len(name) + len(value) for name, value in request.headers) + len(request.query) > _MAX_HEAD_BYTES:
            raise _RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers too large\n")
        allowed = {origin.encode() for origin in self._settings.origins}
        if any(value not in allowed for name, value in request.headers if name == b"origin"):
            raise _RefusedError(HTTPStatus.FORBIDDEN, "origin not allowed\n")
        if request.method not in (*methods, "OPTIONS"):
            allow = ", ".join((*methods, "OPTIONS")).encode()
            raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed\n", (b"allow", allow))
        if any("token" in name.lower() for name, _ in _fields(request.query)):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "a token belongs into the connect command\n")

    def _cors(self, request: _Request) -> list[tuple[bytes, bytes]]:
        origin = request.origin
        if not origin:
            return []
        vary = (b"vary", b"origin")
        known = origin in {known.encode() for known in self._settings.origins}
        return [(b"access-control-allow-origin", origin), vary] if known else [vary]

    async def _preflight(self, request: _Request, send: Send) -> None:
        methods = ", ".join(_METHODS[request.path]).encode()
        headers = [
            *self._cors(request),
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", b"content-type"),
            (b"access-control-max-age", b"7200"),
        ]
        await _respond(send, HTTPStatus.NO_CONTENT, "", headers)

    # --- streams -------------------------------------------------------------------------------------------------

    async def _open(self, scope: Scope, request: _Request, receive: Receive, send: Send) -> None:
        if self.draining or len(self._board.peers) >= self._settings.max_sessions:
            raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "no room\n", (b"retry-after", b"1"))
        sse = request.path == SSE_PATH
        if request.method == "GET":
            codec, frame = JSON, _connect_in_url(request.query, self._settings.max_depth)
        else:
            codec = JSON if sse else _codec(request)
            if sse:
                _codec(request, JSON)
            frame = await self._body(request, receive, self._settings.max_frame_bytes)
        if sse:
            wrap, kind = event, b"text/event-stream; charset=utf-8"
        elif codec.binary:
            wrap, kind = plain, b"application/octet-stream"
        else:
            wrap, kind = line, b"application/x-ndjson"
        headers = [(b"content-type", kind), *_NEVER_STORED, *self._cors(request)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # A stream may last for days: what its request said costs kilobytes, and may hold a ticket.
        scope["headers"].clear()
        scope["query_string"] = b""
        await self._stream(
            Stream(self._settings, codec, wrap, request.reset, request.taken, request.ip), codec, frame, receive, send
        )

    async def _stream(self, stream: Stream, codec: Codec, frame: bytes, receive: Receive, send: Send) -> None:
        key = self._new_key()
        stream.connection = Connection(self._board, stream, codec, key)
        self._emulation.open(key, stream)
        self._board.counts["gateway_streams"] += 1
        try:
            stream.received(frame)
            await stream.run(receive, send)
        finally:
            self._emulation.close(key)

    # --- commands ------------------------------------------------------------------------------------------------

    async def _emulate(self, request: _Request, receive: Receive, send: Send) -> None:
        codec = _codec(request)
        # A frame within a JSON string has a backslash before each of its quotes.
        body = await self._body(request, receive, 2 * self._settings.max_frame_bytes)
        try:
            if codec is JSON:
                posted = _decode_posted(body)
                node, key, frame = posted.node, posted.session, posted.data.encode()
            else:
                node, key, frame = decode_emulation(body)
        except (msgspec.MsgspecError, MalformedFrame, UnicodeError, RecursionError) as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "session, node and data are wanted\n") from error
        if len(frame) > self._settings.max_frame_bytes:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too large\n")
        self._board.counts["gateway_emulated"] += 1
        status = _OUTCOMES[await self._emulation.deliver(node, key, frame)]
        headers = self._cors(request)
        if status is not HTTPStatus.NO_CONTENT and status is not HTTPStatus.NOT_FOUND:
            headers.append((b"retry-after", b"1"))
        await _respond(send, status, "" if status is HTTPStatus.NO_CONTENT else f"{status.phrase}\n", headers)

    async def _body(self, request: _Request, receive: Receive, limit: int) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout_at(request.until):
                while more and size <= _DISCARDED_BYTES:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    if size <= limit:
                        parts.append(part)
        except TimeoutError:
            raise _RefusedError(HTTPStatus.REQUEST_TIMEOUT, "too slow\n", close=True) from None
        if size > limit:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too large\n", close=more)
        return b"".join(parts)


def _fields(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "not a query\n") from error


def _codec(request: _Request, only: Codec | None = None) -> Codec:
    codec = _CODECS.get(request.header(b"content-type").partition(b";")[0].strip().lower())
    if codec is None or (only is not None and codec is not only):
        known = " or ".join(name.decode() for name, value in _CODECS.items() if only is None or value is only)
        raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must be {known}\n")
    return codec


def _connect_in_url(query: bytes, max_depth: int) -> bytes:
    """The frame in the URL, whose tokens are tickets."""
    frames = [value.encode() for name, value in _fields(query) if name == "cf_connect"]
    if len(frames) != 1:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "cf_connect is wanted once\n")
    try:
        commands = JSON.decode(frames[0], max_depth)
    except MalformedFrame as error:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "cf_connect must hold a command\n") from error
    if not commands:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "cf_connect must hold a command\n")
    tokens = [said.token for command in commands for said in (command.connect, command.refresh) if said is not None]
    if any(token and not is_ticket(token) for token in tokens):
        refusal = "an access token has no place in a URL: get a ticket from /v1/auth/ticket\n"
        raise _RefusedError(HTTPStatus.BAD_REQUEST, refusal)
    return frames[0]


async def _respond(send: Send, status: HTTPStatus, text: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
    body = text.encode()
    head = [*headers, (b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
    if status is not HTTPStatus.NO_CONTENT:
        head += [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": int(status), "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})
