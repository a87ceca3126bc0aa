"""The descriptions of the platform for programs and for people, at `/schema`."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec

from serve_apps import page
from serve_apps.asyncapi import asyncapi
from serve_apps.endpoint import Body, Call, Endpoint, Rate, Rule, endpoint
from serve_apps.openapi import openapi

_CACHED = {"Cache-Control": "public, max-age=300"}


def document_endpoints(rows: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """Endpoints that describe these endpoints, and themselves. A document is made once, when it is first asked for."""

    @cache
    def described() -> dict[str, Any]:
        return openapi((*rows, *own))

    encoded = _encoded_once(described)
    live = _encoded_once(asyncapi)

    @endpoint("GET", "/schema/openapi.json", tag="schema", rule=Rule.PUBLIC, rate=Rate.NONE)
    async def openapi_document(call: Call) -> Body[dict[str, Any]]:
        """This API as OpenAPI 3.1."""
        return Body(encoded(), headers=_CACHED)

    @endpoint("GET", "/schema/asyncapi.json", tag="schema", rule=Rule.PUBLIC, rate=Rate.NONE)
    async def asyncapi_document(call: Call) -> Body[dict[str, Any]]:
        """The WebSocket as AsyncAPI 3."""
        return Body(live(), headers=_CACHED)

    @endpoint("GET", "/schema", tag="schema", rule=Rule.PUBLIC, rate=Rate.NONE, media_type="text/html")
    async def schema_page(call: Call) -> Body[str]:
        """This API as a page."""
        html = page.page(described())
        return Body(html, "text/html; charset=utf-8", _CACHED | {"Content-Security-Policy": page.CSP})

    own = (openapi_document, asyncapi_document, schema_page)
    return own


def _encoded_once(document: Callable[[], dict[str, Any]]) -> Callable[[], bytes]:
    return cache(lambda: msgspec.json.encode(document()))
