"""The REST application: every endpoint of the platform in one table, on Litestar."""

from typing import Any, Final

from litestar import Litestar
from litestar.config.cors import CORSConfig

from serve_apps import (
    admin,
    api_keys,
    auth,
    blocks,
    chat,
    dev,
    device_keys,
    health,
    me,
    mutes,
    oidc,
    orders,
    payments,
    presence,
    privacy,
    search,
    totp,
    uploads,
    verification,
    workers,
)
from serve_apps.documents import document_endpoints
from serve_apps.endpoint import Endpoint, finish, route_of
from serve_apps.problems import on_exception, remember_request
from serve_apps.services import RestSettings, Services, check_settings

_ROWS: Final[tuple[Endpoint, ...]] = (
    *auth.ENDPOINTS,
    *device_keys.ENDPOINTS,
    *totp.ENDPOINTS,
    *oidc.ENDPOINTS,
    *me.ENDPOINTS,
    *api_keys.ENDPOINTS,
    *privacy.ENDPOINTS,
    *uploads.ENDPOINTS,
    *verification.ENDPOINTS,
    *workers.ENDPOINTS,
    *orders.ENDPOINTS,
    *payments.ENDPOINTS,
    *chat.ENDPOINTS,
    *search.ENDPOINTS,
    *mutes.ENDPOINTS,
    *presence.ENDPOINTS,
    *blocks.ENDPOINTS,
    *admin.ENDPOINTS,
    *health.ENDPOINTS,
    *dev.ENDPOINTS,
)
ROUTES: Final[tuple[Endpoint, ...]] = (*_ROWS, *document_endpoints(_ROWS))
"""Every route there is, with its rule and its rate class."""


class RestApp(Litestar):
    """Litestar that knows a request's id before anything else happens, so that every answer carries it.

    HEAD is answered as GET would be, without the content (RFC 9110, section 9.3.2).
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            remember_request(scope, self.state["new_id"]())
            if scope["method"] == "HEAD":
                scope, send = {**scope, "method": "GET"}, _without_content(send)
        await super().__call__(scope, receive, send)


def _without_content(send: Any) -> Any:
    async def send_head(message: Any) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head


def build_app(services: Services, settings: RestSettings) -> Litestar:
    """The application over these ports. Raises ValueError for settings nobody should run with."""
    check_settings(settings)
    cors = CORSConfig(allow_origins=list(settings.cors_origins)) if settings.cors_origins else None
    app = RestApp(
        route_handlers=[route_of(row, services, settings) for row in ROUTES],
        exception_handlers={Exception: on_exception},
        before_send=[finish(services, settings)],
        request_max_body_size=settings.max_body_bytes,
        cors_config=cors,
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    app.state["new_id"] = services.new_id
    return app
