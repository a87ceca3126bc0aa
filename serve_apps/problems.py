"""Every error as a problem document (RFC 9457) from the one catalogue, whoever raised it."""

import asyncio
import re
import traceback
from math import ceil
from typing import Any, Final

import msgspec
import structlog
from litestar import Request
from litestar.exceptions import HTTPException, InternalServerException
from litestar.response.base import ASGIResponse

from domain.errors import STATUS, Code, FieldError, Refusal, Refused
from domain.ports import BrokerUnavailable, NoResponders, OutcomeUnknown, RequestTimeout, StoreUnavailable
from domain.redaction import redacted
from domain.sentences import in_language
from serve_apps.i18n import locale_of, title

OWN_LOCALE: Final = "renoveasy.locale"
"""Where a request's scope has the locale of the caller's account, once it is known who calls."""
PROBLEM_JSON: Final = "application/problem+json"
_log = structlog.get_logger(__name__)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{8,64}")
_UNREACHABLE = (
    StoreUnavailable,
    BrokerUnavailable,
    NoResponders,
    RequestTimeout,
    OutcomeUnknown,
    TimeoutError,
    asyncio.TimeoutError,
)
_BY_STATUS: Final = {
    401: Code.UNAUTHENTICATED,
    403: Code.FORBIDDEN,
    404: Code.NOT_FOUND,
    405: Code.METHOD_NOT_ALLOWED,
    413: Code.PAYLOAD_TOO_LARGE,
    415: Code.UNSUPPORTED_MEDIA_TYPE,
    429: Code.RATE_LIMITED,
    503: Code.UNAVAILABLE,
}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as RFC 9457 describes it. `code` is from the one catalogue, shared with the WebSocket.

    Conflicts carry `current` (what stands against the request) and, for orders, `allowed_commands`.
    """

    type: str
    title: str
    status: int
    code: Code
    detail: str
    request_id: str
    errors: tuple[FieldError, ...] = ()
    retry_after_s: float | None = None
    current: Any = None
    allowed_commands: tuple[str, ...] | None = None


def refused_by(error: Exception) -> Refused:
    """What the client is told of an exception: its own refusal, a catalogue code, or `internal` for what is a bug."""
    if isinstance(error, Refusal):
        return error.refused
    if isinstance(error, _UNREACHABLE):
        return Refused(Code.UNAVAILABLE, "a part of the platform does not answer; try again with the same id")
    if isinstance(error, HTTPException) and error.status_code != 500:
        code = _BY_STATUS.get(error.status_code, Code.INVALID if error.status_code < 500 else Code.UNAVAILABLE)
        if code is not Code.INVALID:
            return Refused(code)
        return Refused(code, "the request is malformed", (FieldError("", "malformed", error.detail[:200]),))
    if isinstance(error, InternalServerException) and "disconnected" in error.detail:
        return Refused(Code.INVALID, "the request ended early")
    return Refused(Code.INTERNAL)


def request_id_of(scope: Any) -> str:
    """The id of the request: the client's `X-Request-Id` where it is sane, else one made by `remember_request`."""
    known: str = scope.get("renoveasy.request_id", "")
    return known


def remember_request(scope: Any, fallback: str) -> str:
    """Give the request its id, for its answer and for every line that is logged on its way."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    identifier = given.decode("ascii") if _REQUEST_ID.fullmatch(given) else fallback
    scope["renoveasy.request_id"] = identifier
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=identifier)
    return identifier


def problem_of(refused: Refused, request_id: str, locale: str) -> Problem:
    """The document for a refusal. Phones, addresses and secrets that its texts repeat of the request are hidden."""
    code = Code.UNAVAILABLE if refused.code is Code.FENCED else refused.code
    retry_after_s = refused.retry_after_s
    if retry_after_s is None and STATUS[code] in (429, 503):
        retry_after_s = 1.0
    return Problem(
        type=f"urn:renoveasy:problem:{code}",
        title=title(code, locale),
        status=STATUS[code],
        code=code,
        detail=in_language(redacted(refused.detail), locale) or title(code, locale),
        request_id=request_id,
        errors=tuple(
            FieldError(redacted(item.field), item.code, in_language(redacted(item.message), locale))
            for item in refused.errors
        ),
        retry_after_s=retry_after_s,
        current=refused.current,
        allowed_commands=refused.allowed_commands,
    )


def problem_response(problem: Problem, extra: dict[str, str] | None = None) -> ASGIResponse:
    """The answer that carries a problem, with the headers its status asks for."""
    headers = dict(extra or {})
    if problem.status == 401:
        more = ', error="insufficient_user_authentication"' if problem.code is Code.STEP_UP_REQUIRED else ""  # RFC 9470
        headers["WWW-Authenticate"] = f'Bearer realm="renoveasy"{more}'
    if problem.status == 415:
        headers["Accept-Encoding"] = "identity"
    if problem.status in (429, 503):
        headers["Retry-After"] = str(max(1, ceil(problem.retry_after_s or 1)))
    body = msgspec.json.encode(problem)
    return ASGIResponse(body=body, status_code=problem.status, headers=headers, media_type=PROBLEM_JSON)


class _Answer:
    """Litestar asks the result of an exception handler for its ASGI form; a problem already has it."""

    __slots__ = ("_response",)

    def __init__(self, response: ASGIResponse) -> None:
        self._response = response

    def to_asgi_response(self, **_: Any) -> ASGIResponse:
        return self._response


def on_exception(request: Request[Any, Any, Any], error: Exception) -> Any:
    """The application's only exception handler."""
    refused = refused_by(error)
    if refused.code is Code.INTERNAL:
        lines = "".join(traceback.format_exception(error))  # text: a renderer might show local variables, phones too
        _log.error("a request failed", path=request.scope["path"], traceback=lines)
    accept = next((value for name, value in request.scope["headers"] if name == b"accept-language"), b"")
    locale = locale_of(accept.decode("latin-1"), str(request.scope.get(OWN_LOCALE, "")))
    problem = problem_of(refused, request_id_of(request.scope), locale)
    allow = (error.headers or {}).get("allow", "") if isinstance(error, HTTPException) else ""
    return _Answer(problem_response(problem, {"Content-Language": locale} | ({"Allow": allow} if allow else {})))
