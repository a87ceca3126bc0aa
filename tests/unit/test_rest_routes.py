"""The route table: every route says who may call it and what counts it, and the documents say the same."""

import re

import httpx
import jsonschema
import pytest
from openapi_spec_validator import validate

from domain.access import GUARDED as GUARDING
from domain.wire import RPC_METHODS
from serve_apps.endpoint import Endpoint, Rate, Rule
from serve_apps.rest import ROUTES
from tests.support.rest_app import World

SPECIFIED = {
    "POST /v1/auth/otp",
    "POST /v1/auth/otp/verify",
    "POST /v1/auth/refresh",
    "POST /v1/auth/step-up",
    "POST /v1/auth/oidc/{}/start",
    "POST /v1/auth/oidc/{}/finish",
    "GET /v1/auth/identities",
    "DELETE /v1/auth/identities/{}",
    "POST /v1/auth/ticket",
    "POST /v1/auth/device-keys",
    "GET /v1/auth/device-keys",
    "GET /v1/auth/device-keys/{}",
    "DELETE /v1/auth/device-keys/{}",
    "POST /v1/auth/device-login/challenge",
    "POST /v1/auth/device-login",
    "POST /v1/auth/totp/enrol",
    "POST /v1/auth/totp/verify",
    "POST /v1/me/api-keys",
    "GET /v1/me/api-keys",
    "DELETE /v1/me/api-keys/{}",
    "POST /v1/auth/logout",
    "GET /v1/auth/sessions",
    "DELETE /v1/auth/sessions/{}",
    "GET /.well-known/jwks.json",
    "GET /v1/me",
    "PATCH /v1/me",
    "DELETE /v1/me",
    "POST /v1/me/export",
    "PUT /v1/me/worker",
    "GET /v1/workers/{}",
    "POST /v1/uploads",
    "GET /v1/uploads/{}",
    "POST /v1/me/worker/documents",
    "GET /v1/me/worker/documents",
    "GET /v1/admin/worker-documents",
    "POST /v1/admin/worker-documents/{}/review",
    "POST /v1/orders",
    "GET /v1/orders",
    "GET /v1/orders/{}",
    "POST /v1/orders/{}/commands",
    "GET /v1/orders/{}/events",
    "GET /v1/orders/{}/track",
    "POST /v1/orders/{}/payments",
    "POST /v1/webhooks/payments/sandbox",
    "GET /v1/conversations",
    "POST /v1/conversations",
    "GET /v1/conversations/{}",
    "POST /v1/conversations/{}/members",
    "DELETE /v1/conversations/{}/members/{}",
    "GET /v1/conversations/{}/messages/{}/history",
    "GET /v1/conversations/{}/messages",
    "POST /v1/conversations/{}/messages",
    "GET /v1/conversations/{}/events",
    "GET /v1/conversations/{}/messages/search",
    "PUT /v1/conversations/{}/mute",
    "DELETE /v1/conversations/{}/mute",
    "GET /v1/conversations/{}/presence",
    "GET /v1/blocks",
    "PUT /v1/blocks/{}",
    "DELETE /v1/blocks/{}",
    "GET /v1/admin/streams/{}/{}",
    "GET /v1/admin/audit",
    "GET /admin",
    "GET /health/live",
    "GET /health/ready",
    "GET /dev/outbox",
    "GET /schema",
    "GET /schema/openapi.json",
    "GET /schema/asyncapi.json",
}


def _title(row: Endpoint) -> str:
    return f"{row.method} {re.sub(r'{[^}]*}', '{}', row.path)}"


def client(world: World) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(world.app()), base_url="http://rest")


def test_the_table_is_what_the_protocol_promises() -> None:
    assert {_title(row) for row in ROUTES} == SPECIFIED


@pytest.mark.parametrize("row", ROUTES, ids=_title)
def test_every_route_declares_a_rule_a_rate_class_and_what_it_is_for(row: Endpoint) -> None:
    assert isinstance(row.rule, Rule)
    assert isinstance(row.rate, Rate)
    assert row.summary.endswith(".")
    assert (row.answer is None) == (row.status == 204)


def test_litestar_has_no_route_beside_the_table() -> None:
    """A handler added to the application by another way would have neither rule nor rate class."""
    app = World().app()
    served = {
        (method, re.sub(r":str", "", route.path), handler.opt.get("operation"))
        for route in app.routes
        for method, (handler, _) in route.route_handler_map.items()
        if method != "OPTIONS"
    }
    assert served == {(row.method, row.path, row.name) for row in ROUTES}
    for route in app.routes:
        for method, (handler, _) in route.route_handler_map.items():
            assert method == "OPTIONS" or {"rule", "rate"} <= set(handler.opt)


GUARDED = [row for row in ROUTES if row.rule in GUARDING]


@pytest.mark.parametrize("row", GUARDED, ids=_title)
async def test_without_a_token_a_guarded_route_answers_401_before_it_looks_at_anything_else(row: Endpoint) -> None:
    async with client(World()) as http:
        path = re.sub(r"{[^}]*}", "no-id", row.path)
        response = await http.request(row.method, path, content=b"{broken")
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
    assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("row", [row for row in GUARDED if row.ids], ids=_title)
async def test_an_id_that_is_no_canonical_uuid_does_not_exist(row: Endpoint) -> None:
    world = World()
    user, auth = await world.login("+8613800000001")
    await world.accounts.grant(user.id, "ops")
    upper = "0190A000-0000-7000-8000-000000000001"
    async with client(world) as http:
        for bad in ("1", "x" * 300, upper, "0190a00000007000800000000000" + "0001", "%00", "*", ">"):
            path = re.sub(r"{(\w+)}", lambda part, bad=bad: row.words.get(part[1], (bad,))[0], row.path)
            response = await http.request(row.method, path, headers=auth, json={})
            assert (response.status_code, response.json()["code"]) == (404, "not_found"), bad


async def test_the_openapi_document_is_valid_and_holds_every_route_with_its_problems() -> None:
    async with client(World()) as http:
        document = (await http.get("/schema/openapi.json")).json()
    validate(document)
    assert document["openapi"].startswith("3.1")
    documented = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert documented == {(row.method, row.path) for row in ROUTES}
    for row in ROUTES:
        operation = document["paths"][row.path][row.method.lower()]
        assert "422" in operation["responses"]
        assert bool(operation["security"]) == (row in GUARDED)


@pytest.mark.parametrize("path", ["/health/live", "/schema/openapi.json", "/v1/me", "/nowhere"])
async def test_head_is_answered_as_get_without_the_content(path: str) -> None:
    async with client(World()) as http:
        get, head = await http.get(path), await http.head(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    ignored = {"x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in ignored} == {
        k: v for k, v in get.headers.items() if k not in ignored
    }


async def test_head_of_what_can_only_be_posted_is_405() -> None:
    async with client(World()) as http:
        assert (await http.head("/v1/auth/otp")).status_code == 405


async def test_the_asyncapi_document_names_every_channel_method_and_publication_and_nothing_private() -> None:
    async with client(World()) as http:
        document = (await http.get("/schema/asyncapi.json")).json()
    assert document["asyncapi"] == "3.0.0"
    assert {"conversation", "order", "user"} <= set(document["channels"])
    assert set(RPC_METHODS) <= set(document["operations"])
    assert "order.awarded" in document["channels"]["order"]["messages"]
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert not {"private", "hash"} & set(schema.get("properties", {})), name
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', str(document).replace("'", '"')))
    assert references <= set(schemas)


async def test_the_page_shows_every_path_and_needs_nothing_from_elsewhere() -> None:
    async with client(World()) as http:
        response = await http.get("/schema")
    assert response.headers["content-type"].startswith("text/html")
    assert not re.findall(r"""(?:src|href)=['"]?https?:""", response.text)
    assert "<script" not in response.text
    for row in ROUTES:
        assert row.path in response.text
