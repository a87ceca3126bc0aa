"""Calls to third parties, with a bound on everything: how long, how much, how many at once.

A third party that is slow or down costs its own callers a clear answer, and nobody else anything.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import structlog

from domain.errors import Code, Refusal

_log = structlog.get_logger(__name__)


class ExchangeLimits(msgspec.Struct, frozen=True):
    """`turn_s` is for everything that one caller asks of the third party; of more than `turns` at once the rest is refused."""

    turn_s: float = 6.0
    max_bytes: int = 256 * 1024
    turns: int = 16


class Exchange:
    """HTTP to one third party: no redirects, no proxies from the environment, no cookies, no compressed answers.

    Nothing is connected before the first use.
    """

    def __init__(self, name: str, limits: ExchangeLimits | None = None) -> None:
        self._name = name
        self._limits = limits or ExchangeLimits()
        self._turns = 0
        self._http: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """All that one caller asks. Refusal `unavailable` when it takes too long, or too many are at it already."""
        if self._turns >= self._limits.turns:
            raise self.unavailable("too many are waiting for it")
        self._turns += 1
        try:
            async with asyncio.timeout(self._limits.turn_s):
                yield
        except TimeoutError:
            raise self.unavailable(f"no answer in {self._limits.turn_s:g} s") from None
        finally:
            self._turns -= 1

    async def fetch(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, content: str | None = None
    ) -> httpx.Response:
        """The answer, whatever its status below 500. Refusal `unavailable`: there is none that can be used."""
        if self._http is None:
            limits = httpx.Limits(max_connections=self._limits.turns, max_keepalive_connections=4)
            self._http = httpx.AsyncClient(
                timeout=self._limits.turn_s, limits=limits, trust_env=False, follow_redirects=False
            )
        asked = {"accept-encoding": "identity", "accept": "application/json"} | dict(headers or {})
        try:
            async with self._http.stream(method, url, headers=asked, content=content) as answer:
                if answer.status_code >= 500 or 300 <= answer.status_code < 400 or "content-encoding" in answer.headers:
                    raise self.unavailable(f"it answered {answer.status_code}")
                body = bytearray()
                async for piece in answer.aiter_raw():
                    body += piece
                    if len(body) > self._limits.max_bytes:
                        raise self.unavailable(f"it answered more than {self._limits.max_bytes} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.unavailable(type(error).__name__) from None
        finally:
            self._http.cookies.clear()
        return httpx.Response(answer.status_code, content=bytes(body), request=httpx.Request(method, "https://hidden"))

    def unavailable(self, why: str) -> Refusal:
        """The refusal for a third party that does not do its part; why is logged, and told to no client."""
        _log.warning("a sign-in provider cannot be used", provider=self._name, why=why)
        return Refusal(Code.UNAVAILABLE, "the sign-in provider does not answer; try again later", retry_after_s=5.0)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()


def json_object(answer: httpx.Response) -> dict[str, Any] | None:
    """What a body says if it is a JSON object."""
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
