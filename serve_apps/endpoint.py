"""One endpoint: a typed function, its rule, its rate class, and how a request becomes its arguments.

The order of the checks is fixed: existence of the route, rate, identity, ids in the path, then parameters. Where the
endpoint is about a stream, bad parameters are told only to who may know of the stream.
"""

import asyncio
import hashlib
import inspect
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, Final, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

import msgspec
from litestar import Request
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse

from domain.access import GUARDED, absent_in_s, admits
from domain.access import Rate as Rate  # what every row of the table needs comes from here
from domain.access import Rule as Rule
from domain.channels import Kind
from domain.commands import Accepted, Actor, Command, Query, Viewed
from domain.devices import API_KEY_PREFIX, ApiKey, require_second_factor
from domain.errors import Code, Refusal, from_validation, invalid
from domain.identities import PROVIDER_NAME
from domain.ids import is_uuid
from domain.places import network_of
from domain.ports import Identity, StoreUnavailable, User
from serve_apps.audited import OpsAct
from serve_apps.i18n import locale_of
from serve_apps.problems import OWN_LOCALE, request_id_of
from serve_apps.services import RestSettings, Services

JSON: Final = "application/json"
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Body(Generic[T]):
    """An answer that is JSON already, of the shape T; or another media type, such as a page."""

    content: bytes
    media_type: str = JSON
    headers: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A row of the route table."""

    method: Method
    path: str
    name: str
    summary: str
    tag: str
    rule: Rule
    rate: Rate
    status: int
    stream: Kind | None
    body: Any
    query: Any
    answer: Any
    run: Callable[..., Awaitable[Any]]
    media_type: str = JSON
    keyed: bool = False
    """Takes the header `Idempotency-Key`."""
    details: str = ""
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parts of the path that are not ids, each with the words that it may be; all others do not exist."""
    names: tuple[str, ...] = ()
    """Parts of the path that are short lower-case words."""
    html: bool = False
    """Answers with a page as well, to who asks for `text/html`."""
    first_factor: bool = False
    """Of the rule `ops`, but without the second factor: what gives it."""
    api_keys: bool = False
    """Takes a worker's API key in place of an access token. What is not declared so refuses one."""
    raw: bool = False
    """Its body is bytes of other types than JSON, and it reads them itself."""
    conflicts: bool = False
    """May contradict how things stand, though it is no write to a stream."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The variable parts of the path."""
        return tuple(re.findall(r"{(\w+)}", self.path))

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if part not in self.words and part not in self.names)

    def exists(self, parts: Mapping[str, str]) -> bool:
        """Whether there can be anything at all under these parts of the path."""
        return all(self._can_be(name, value) for name, value in parts.items())

    def _can_be(self, name: str, value: str) -> bool:
        if name in self.names:
            return re.fullmatch(PROVIDER_NAME, value) is not None
        return value in self.words[name] if name in self.words else is_uuid(value)


Function = TypeVar("Function", bound=Callable[..., Awaitable[Any]])


def endpoint(
    method: Method,
    path: str,
    *,
    tag: str,
    rule: Rule,
    rate: Rate = Rate.GENERAL,
    status: int = 200,
    stream: Kind | None = None,
    media_type: str = JSON,
    keyed: bool = False,
    words: Mapping[str, tuple[str, ...]] | None = None,
    names: tuple[str, ...] = (),
    html: bool = False,
    first_factor: bool = False,
    api_keys: bool = False,
    raw: bool = False,
    conflicts: bool = False,
) -> Callable[[Function], Endpoint]:
    """Make an endpoint of a function `(call, [body], [query], ids...)`; its annotations are the documented shapes.

    The docstring's first line is the summary.
    """

    def wrap(function: Function) -> Endpoint:
        hints = get_type_hints(function)
        answer = hints.get("return")
        if get_origin(answer) is Body:
            answer = get_args(answer)[0]
        summary, _, details = (inspect.getdoc(function) or "").partition("\n")
        return Endpoint(
            method=method,
            path=path,
            name=function.__name__,
            summary=summary,
            tag=tag,
            rule=rule,
            rate=rate,
            status=status,
            stream=stream,
            body=hints.get("body"),
            query=hints.get("query"),
            answer=None if answer is type(None) else answer,
            run=function,
            media_type=media_type,
            keyed=keyed,
            details=details.strip(),
            words=words or {},
            names=names,
            html=html,
            first_factor=first_factor,
            api_keys=api_keys,
            raw=raw,
            conflicts=conflicts,
        )

    return wrap


class Call:
    """One request on its way through an endpoint: who calls, from where, and the ports."""

    __slots__ = ("api_key", "headers", "identity", "ip", "request", "services", "settings")

    def __init__(self, request: Request[Any, Any, Any], services: Services, settings: RestSettings) -> None:
        self.request = request
        self.services = services
        self.settings = settings
        self.identity: Identity | None = None
        self.api_key: ApiKey | None = None
        self.headers = _headers(request.scope["headers"])
        self.ip = client_ip(
            request.scope.get("client"), self.headers.get(b"x-forwarded-for", b""), settings.trusted_hops
        )

    @property
    def caller(self) -> Identity:
        """Who calls; only behind a rule that asks for a token."""
        if self.identity is None:
            raise Refusal(Code.UNAUTHENTICATED)
        return self.identity

    @property
    def actor(self) -> Actor:
        caller = self.caller
        return Actor("user", caller.user_id, caller.session_id)

    @property
    def wants_page(self) -> bool:
        """Whether the caller would rather have a page than JSON."""
        accept = self.headers.get(b"accept", b"").lower()
        return _quality(accept, b"text/html") > _quality(accept, b"application/json")

    @property
    def locale(self) -> str:
        own = "" if self.identity is None else self.identity.locale
        return locale_of(self.headers.get(b"accept-language", b"").decode("latin-1"), own)

    def now_ms(self) -> int:
        return self.services.clock.now_ms()

    async def user(self) -> User:
        """The caller's account as it is now. Refusal `unauthenticated` for an account that is gone."""
        user_id = self.caller.user_id
        user = (await self.services.accounts.get([user_id])).get(user_id)
        if user is None:
            raise Refusal(Code.UNAUTHENTICATED)
        return user

    async def second_factor(self) -> None:
        """Refusal `step_up_required` where operators must verify their sessions, and the caller has not lately."""
        if self.settings.ops_totp:
            require_second_factor(await self.services.sessions.get(self.caller.session_id), self.now_ms())

    def write_id(self, given: str | None, field: str = "id") -> str | None:
        """The client-made id of this write: the one in the body, else `Idempotency-Key`, else None."""
        raw = self.headers.get(b"idempotency-key")
        if raw is None:
            return given
        key = raw.decode("latin-1")
        if not is_uuid(key):
            raise invalid("Idempotency-Key", "invalid", "must be a canonical lower-case UUID")
        return given if given is not None else key

    async def command(
        self, kind: Kind, stream_id: str, name: str, command_id: str, payload: Any, expected_version: int | None = None
    ) -> Accepted:
        """Ask the stream to change, as the caller."""
        return await self.command_as(self.actor, kind, stream_id, name, command_id, payload, expected_version)

    async def command_as(
        self,
        actor: Actor,
        kind: Kind,
        stream_id: str,
        name: str,
        command_id: str,
        payload: Any,
        expected_version: int | None = None,
    ) -> Accepted:
        timeout_s = self.settings.ask_timeout_s
        command = Command(kind, stream_id, name, actor, command_id, _encode(payload), expected_version)
        answer = await self.services.router.ask(command, timeout_s)
        if not isinstance(answer, Accepted):
            raise TypeError(f"a command was answered by {type(answer).__name__}")
        return answer

    async def query(self, kind: Kind, stream_id: str, name: Literal["attach", "view"]) -> Any:
        """`Attached` or `Viewed`; Refusal `not_found` where the caller may not know of the stream."""
        timeout_s = self.settings.ask_timeout_s
        query = Query(kind, stream_id, name, self.actor)
        return await self.services.router.ask(query, timeout_s)

    async def view(self, kind: Kind, stream_id: str) -> Viewed:
        answer = await self.query(kind, stream_id, "view")
        if not isinstance(answer, Viewed):
            raise TypeError(f"a view was answered by {type(answer).__name__}")
        return answer


def _encode(payload: Any) -> bytes:
    try:
        return msgspec.json.encode(payload)
    except (OverflowError, RecursionError, ValueError) as error:
        raise invalid("payload", "invalid", "holds a number or a nesting out of range") from error


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Repeated headers joined as RFC 9110 says: two `Authorization` lines are then no token of any kind."""
    headers: dict[bytes, bytes] = {}
    for name, value in raw:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def _quality(accept: bytes, media_type: bytes) -> float:
    """How much a media type that is named in `Accept` is wanted (RFC 9110, section 12.5.1); 0 where it is not named."""
    for item in accept.split(b","):
        name, _, parameters = item.partition(b";")
        if name.strip() == media_type:
            match = re.search(rb"(?:^|;)\s*q=([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", parameters)
            return float(match[1]) if match else 1.0
    return 0.0


def client_ip(client: Any, forwarded: bytes, trusted_hops: int) -> str:
    """The caller's address, an IPv6 one as its /64: the entry that the outermost trusted proxy appended.

    Nothing else that a request says of its origin is believed.
    """
    address = str(client[0]) if client else ""
    if trusted_hops:
        chain = [item.strip().decode("latin-1") for item in forwarded.split(b",")]
        if len(chain) >= trusted_hops and chain[-trusted_hops]:
            address = chain[-trusted_hops]
    return network_of(address)


def wider_network(ip: str) -> str | None:
    """The /48 around an IPv6 /64, which one customer may have whole; None for all else."""
    return str(ip_network(ip).supernet(new_prefix=48)) if ip.endswith("/64") else None


_BEARER = re.compile(rb"(?i:bearer) +([A-Za-z0-9._~+/=-]{1,4096})")


async def _identify(call: Call, row: Endpoint) -> Identity:
    match = _BEARER.fullmatch(call.headers.get(b"authorization", b""))
    if match is None:
        raise Refusal(Code.UNAUTHENTICATED, "send an access token in the header Authorization")
    token = match[1].decode("ascii")
    if token.startswith(API_KEY_PREFIX):
        return await _identify_key(call, row, token)
    return await call.services.verifier.verify(token)


async def _identify_key(call: Call, row: Endpoint, token: str) -> Identity:
    """Whom an API key speaks for, where the endpoint takes one. Its id stands in for a session's, which it has none of."""
    services, settings = call.services, call.settings
    key = await services.api_keys.find(hashlib.sha256(token.encode()).digest(), call.now_ms())
    user = None if key is None else (await services.accounts.get([key.user_id])).get(key.user_id)
    if key is None or user is None or "worker" not in user.roles:
        raise Refusal(Code.UNAUTHENTICATED)
    if settings.rate_limits:
        try:
            wait_s = await services.limiter.hit(f"key:{key.id}", settings.api_key_per_hour, 3600)
        except StoreUnavailable:
            wait_s = None
        if wait_s is not None:
            raise Refusal(Code.RATE_LIMITED, "too many requests by this API key", retry_after_s=wait_s)
    if not row.api_keys:
        raise Refusal(Code.FORBIDDEN, "API keys may not do this")
    call.api_key = key
    return Identity(user.id, key.id, call.now_ms() + settings.access_ttl_s * 1000, user.locale)


async def _check_operator(call: Call, row: Endpoint) -> None:
    if not admits(row.rule, (await call.user()).roles):
        raise Refusal(Code.FORBIDDEN, "for operations only")
    if not row.first_factor:
        await call.second_factor()


async def _count(call: Call, rate: Rate) -> None:
    settings, limiter = call.settings, call.services.limiter
    if rate is Rate.NONE or not settings.rate_limits:
        return
    limits = [("ip", settings.requests_per_ip_minute, 60)]
    if rate is Rate.AUTH:
        limits.append(("auth", settings.auth_per_ip_hour, 3600))
    networks = [(call.ip, 1)]
    if wider := wider_network(call.ip):
        networks.append((wider, settings.wide_network_times))
    for name, most, window_s in limits:
        for network, times in networks:
            try:
                wait_s = await limiter.hit(f"{name}:{network}", most * times, window_s)
            except StoreUnavailable:
                if rate is Rate.AUTH:
                    raise
                return
            if wait_s is not None:
                raise Refusal(Code.RATE_LIMITED, "too many requests from this address", retry_after_s=wait_s)


async def _count_upload(call: Call) -> None:
    if not call.settings.rate_limits:
        return
    try:
        wait_s = await call.services.limiter.hit(
            f"upload:{call.caller.user_id}", call.settings.uploads_per_user_hour, 3600
        )
    except StoreUnavailable:
        return
    if wait_s is not None:
        raise Refusal(Code.RATE_LIMITED, "too many uploads, try again later", retry_after_s=wait_s)


def _parse_query(raw: bytes, shape: Any) -> Any:
    try:
        pairs = parse_qsl(raw.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=64)
    except ValueError as error:
        raise invalid("", "malformed", "too many query parameters") from error
    values = dict(pairs)
    if len(values) != len(pairs):
        raise invalid("", "invalid", "a query parameter is given twice")
    try:
        return msgspec.convert(values, shape, strict=False)
    except msgspec.ValidationError as error:
        raise from_validation(error) from error


async def _read_body(call: Call, decoder: "msgspec.json.Decoder[Any]") -> Any:
    try:
        async with asyncio.timeout(call.settings.body_timeout_s):
            raw = await call.request.body()
    except TimeoutError as error:
        raise Refusal(Code.UNAVAILABLE, "the request did not arrive in time; try again with the same id") from error
    kind = call.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if raw and kind and kind != b"application/json":
        raise Refusal(Code.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
    try:
        if not raw.isascii():
            raw.decode()  # the decoder skips fields that it does not know without a look at their bytes
        return decoder.decode(raw or b"{}")
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    except (ValueError, RecursionError) as error:
        raise invalid("", "malformed", f"the body is not JSON: {error}"[:200]) from error


def route_of(row: Endpoint, services: Services, settings: RestSettings) -> HTTPRouteHandler:
    """The Litestar handler of an endpoint."""
    decoder = msgspec.json.Decoder(row.body) if row.body is not None else None
    encoder = msgspec.json.Encoder()
    stream_id_name = row.ids[0] if row.stream and row.ids else ""
    histogram = f"http_seconds_{row.name}"

    async def arguments(call: Call) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if decoder is not None:
            values["body"] = await _read_body(call, decoder)
        if row.query is not None:
            values["query"] = _parse_query(call.request.scope["query_string"], row.query)
        return values

    async def answered(call: Call, ids: dict[str, Any]) -> Any:
        try:
            values = await arguments(call)
        except Refusal:
            if stream_id_name and row.stream:
                await call.query(row.stream, ids[stream_id_name], "view" if row.stream == "order" else "attach")
            raise
        if row.rule is Rule.OPS:
            async with OpsAct(call, row.name, ":".join(ids[part] for part in row.parts)):
                return await row.run(call, **values, **ids)
        return await row.run(call, **values, **ids)

    async def handle(request: Request[Any, Any, Any]) -> ASGIResponse:
        started = time.perf_counter()
        call = Call(request, services, settings)
        if row.rule is Rule.DEV and not settings.dev:
            raise NotFoundException
        await _count(call, row.rate)
        if row.rule in GUARDED:
            call.identity = await _identify(call, row)
            request.scope[OWN_LOCALE] = call.identity.locale  # type: ignore[typeddict-unknown-key]
        if row.rate is Rate.UPLOAD:
            await _count_upload(call)
        if call.headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise Refusal(Code.UNSUPPORTED_MEDIA_TYPE, "bodies are taken as they are, without Content-Encoding")
        if row.rule is Rule.OPS:
            await _check_operator(call, row)
        ids = request.scope["path_params"]
        if not row.exists(ids):
            raise Refusal(Code.NOT_FOUND)
        asked = time.perf_counter()
        try:
            answer = await answered(call, ids)
        except Refusal as refusal:
            if refusal.code is Code.NOT_FOUND and ids:
                await asyncio.sleep(absent_in_s(asked, time.perf_counter()))
            raise
        services.metrics.observe(histogram, time.perf_counter() - started)
        if isinstance(answer, Body):
            return ASGIResponse(
                body=answer.content, status_code=row.status, media_type=answer.media_type, headers=answer.headers
            )
        body = b"" if row.status == 204 else encoder.encode(answer)
        return ASGIResponse(body=body, status_code=row.status, media_type=JSON)

    handler = HTTPRouteHandler(
        path=re.sub(r"{(\w+)}", r"{\1:str}", row.path),
        http_method=row.method,
        status_code=200,  # what Litestar checks annotations against; the answer carries its own
        name=row.name,
        media_type=row.media_type,
        request_max_body_size=settings.upload_bytes if row.raw else settings.max_body_bytes,
        opt={"rule": row.rule, "rate": row.rate, "operation": row.name},
        include_in_schema=False,
    )
    return handler(handle)


_DEFAULT_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains"),
    (b"cache-control", b"no-store"),
)


def finish(services: Services, settings: RestSettings) -> Callable[[Any, Any], Awaitable[None]]:
    """A hook that gives every answer its request id and security headers, and counts it by operation and status.

    Metrics: `http_requests_<operation>_<status>`, and `http_seconds_<operation>` for what was answered without a problem.
    """

    async def before_send(message: Any, scope: Any) -> None:
        if message["type"] != "http.response.start":
            return
        headers = list(message.get("headers", ()))
        given = {name for name, _ in headers}
        headers.extend(item for item in _DEFAULT_HEADERS if item[0] not in given)
        if settings.echo_request_id:
            headers.append((b"x-request-id", request_id_of(scope).encode("ascii")))
        message["headers"] = headers
        handler = scope.get("route_handler")
        operation = handler.opt.get("operation", "other") if handler is not None else "other"
        services.metrics.count(f"http_requests_{operation}_{message['status']}")

    return before_send
