"""What every answer carries, which pages may read it, and how large and how slow a request may be."""

import asyncio
import gzip
import re
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn

from serve_apps.endpoint import Endpoint
from serve_apps.rest import ROUTES
from serve_apps.services import RestSettings, check_settings
from tests.support.front import Front, front_of, haproxy_script
from tests.support.rest_app import World
from tests.support.servers import free_port

LIMIT = 256 * 1024
PAGE = "https://app.example.com"
HEADERS = {name.lower(): value for name, value in haproxy_script().SECURITY_HEADERS.items()}


def client(world: World) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(world.app(), raise_app_exceptions=False), base_url="http://rest"
    )


def path_of(row: Endpoint, identifier: str) -> str:
    return re.sub(r"{(\w+)}", lambda part: row.words.get(part[1], (identifier,))[0], row.path)


def title(row: Endpoint) -> str:
    return f"{row.method} {row.path}"


# --- headers --------------------------------------------------------------------------------------------------------


def checked(response: httpx.Response) -> None:
    """Every answer: no sniffing, no framing, no referrer, a policy without anything foreign, an id."""
    headers = response.headers
    for name in ("x-content-type-options", "x-frame-options", "referrer-policy", "cross-origin-resource-policy"):
        assert headers.get_list(name) == [HEADERS[name]]
    assert "max-age=31536000" in headers["strict-transport-security"]
    assert "cache-control" in headers
    (policy,) = headers.get_list("content-security-policy")
    assert policy.startswith("default-src 'none';")
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy
    assert "*" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    assert headers["x-request-id"]
    assert "server" not in headers


@pytest.mark.parametrize("row", ROUTES, ids=title)
async def test_every_answer_of_every_route_has_the_security_headers(row: Endpoint) -> None:
    world = World()
    user, auth = await world.login("+8613800000001")
    await world.accounts.grant(user.id, "ops")
    path = path_of(row, world.new_id())
    async with client(world) as http:
        for headers in ({}, auth, auth | {"accept": "text/html"}, auth | {"content-encoding": "gzip"}):
            checked(await http.request(row.method, path, headers=headers))
            checked(await http.request(row.method, path, headers=headers, content=b"{broken"))
        checked(await http.request("PROPFIND", path, headers=auth))
        checked(await http.request(row.method, path + "/nowhere", headers=auth))


async def test_a_bug_has_them_too() -> None:
    world = World()
    _, auth = await world.login("+8613800000001")
    world.router.answers = [RuntimeError("a bug")]
    async with client(world) as http:
        response = await http.get(f"/v1/orders/{world.new_id()}", headers=auth)
    assert response.status_code == 500
    assert "a bug" not in response.text
    checked(response)


@pytest.mark.parametrize("given", ["short", "x" * 65, "with blank", "a\tb", "ü" * 9, "<script>alert(1)</script>", ""])
async def test_a_request_id_that_could_be_anything_else_is_not_repeated(given: str) -> None:
    async with client(World()) as http:
        response = await http.get("/v1/me", headers=[(b"x-request-id", given.encode())])
    assert response.headers["x-request-id"] != given
    assert response.json()["request_id"] == response.headers["x-request-id"]


# --- other origins ---------------------------------------------------------------------------------------------------

FOREIGN = [
    "null", "https://evil.com", "http://app.example.com", "https://app.example.com.evil.com", "https://app.example.com:444",
    "https://evilapp.example.com", "https://app.example.com/", "*", "https://APP.example.com", "https://app.example.com@x",
]  # fmt: skip
PREFLIGHT = {"access-control-request-method": "PATCH", "access-control-request-headers": "authorization"}


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("origins", [(), (PAGE,)], ids=["none allowed", "one allowed"])
async def test_a_page_of_another_origin_is_not_told_that_it_may_read(origin: str, origins: tuple[str, ...]) -> None:
    async with client(World(cors_origins=origins)) as http:
        for method, headers in (("OPTIONS", PREFLIGHT), ("GET", {}), ("POST", {})):
            response = await http.request(method, "/v1/me", headers={"origin": origin, **headers})
            assert "access-control-allow-origin" not in response.headers, (method, response.headers)


async def test_a_page_that_is_allowed_may_read_and_never_with_cookies() -> None:
    async with client(World(cors_origins=(PAGE,))) as http:
        preflight = await http.options("/v1/me", headers={"origin": PAGE, **PREFLIGHT})
        answer = await http.get("/v1/me", headers={"origin": PAGE})
    for response in (preflight, answer):
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in response.headers
        assert "origin" in response.headers["vary"].lower()
        assert "set-cookie" not in response.headers


def test_all_origins_are_no_setting_that_can_be_started_with() -> None:
    for origins in (("*",), (PAGE, "*")):
        with pytest.raises(ValueError, match="cors_origins"):
            check_settings(RestSettings(otp_pepper=b"p" * 32, webhook_secret=b"w" * 32, cors_origins=origins))


# --- bodies ----------------------------------------------------------------------------------------------------------

ENCODINGS = [
    "gzip",
    "deflate",
    "br",
    "zstd",
    "compress",
    "x-gzip",
    "gzip, gzip",
    "identity, gzip",
    "GZIP",
    "*",
    "unknown",
]
WITH_BODY = [row for row in ROUTES if row.method in ("POST", "PUT", "PATCH")]


@pytest.mark.parametrize("row", WITH_BODY, ids=title)
async def test_a_compressed_body_is_refused_before_anything_is_inflated(row: Endpoint) -> None:
    """A megabyte of blanks is a thousand bytes: whoever inflates first has lost."""
    world = World()
    _, auth = await world.login("+8613800000001")
    bomb = gzip.compress(b" " * (1 << 20))
    async with client(world) as http:
        for encoding in ENCODINGS:
            headers = auth | {"content-encoding": encoding, "content-type": "application/json"}
            response = await http.request(row.method, path_of(row, world.new_id()), headers=headers, content=bomb)
            assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type"), encoding
            assert response.headers["accept-encoding"] == "identity"
        response = await http.request(
            row.method, path_of(row, world.new_id()), headers=auth | {"content-encoding": "identity"}, content=b"{}"
        )
        assert response.status_code != 415


@pytest.mark.parametrize("over", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
async def test_the_limit_of_a_body_is_exact(over: int, chunked: bool) -> None:
    body = b"{" + b" " * (LIMIT + over - 2) + b"}"

    async def parts() -> Any:
        for at in range(0, len(body), 50_000):
            yield body[at : at + 50_000]

    async with client(World()) as http:
        response = await http.post("/v1/auth/otp", content=parts() if chunked else body)
    assert response.status_code == (413 if over > 0 else 422)


async def test_data_that_is_compressed_without_saying_so_is_no_json() -> None:
    async with client(World()) as http:
        for bomb in (gzip.compress(b"{}"), zlib.compress(b"{}")):
            assert (await http.post("/v1/auth/otp", content=bomb)).status_code == 422


# --- through HAProxy, with a real server behind it -------------------------------------------------------------------


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    app = World(body_timeout_s=1.0).app()

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/-/healthz":
            scope = scope | {"path": "/health/live", "raw_path": b"/health/live"}
        await app(scope, receive, send)

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(asgi, port=port, log_config=None, lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    async with front_of(port) as front:
        yield front
    server.should_exit = True
    await task


HEAD = b"POST /v1/auth/otp HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def status(front: Front, data: bytes, wait_s: float = 5.0, end: bool = False) -> list[str]:
    return [
        line.split(" ")[1]
        for line in (await front.say(data, wait_s=wait_s, end=end)).decode("latin-1").split("\r\n")
        if line.startswith("HTTP/1.1 ")
    ]


async def test_lengths_that_lie_and_chunks_are_bounded_through_the_proxy_as_well(front: Front) -> None:
    large = b"{" + b" " * (LIMIT + 1) + b"}"
    chunk = b"%x\r\n%s\r\n" % (len(large), large)
    assert await status(front, HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(large), large)) == ["413"]
    assert await status(front, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n") == ["413"]
    # Less than was said, and then the end: nothing that could be taken for a whole body.
    assert "200" not in await status(front, HEAD + b"Content-Length: 100\r\n\r\n{}", end=True)
    # More than was said: the rest is the beginning of another request, and none.
    first, *rest = await status(front, HEAD + b'Content-Length: 2\r\n\r\n{}{"phone": "+8613800000001"}\r\n\r\n')
    assert first == "422"
    assert set(rest) <= {"400"}


async def test_a_body_that_trickles_in_beyond_the_proxys_buffer_is_given_up_by_the_application(front: Front) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(HEAD + b"Content-Length: 100000\r\n\r\n" + b" " * 40_000)

    async def trickle() -> None:
        for _ in range(100):
            writer.write(b" ")
            await asyncio.sleep(0.1)

    task = asyncio.create_task(trickle())
    began = asyncio.get_running_loop().time()
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 8)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert asyncio.get_running_loop().time() - began < 5
    task.cancel()
    writer.close()


async def test_many_who_never_finish_their_request_hold_nobody_up_and_are_gone_after_ten_seconds(front: Front) -> None:
    async def slow(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 15)
        writer.close()
        return answer

    attackers = [asyncio.create_task(slow(b"GET /v1/me HTTP/1.1\r\nHost: x\r\nX")) for _ in range(50)]
    attackers += [asyncio.create_task(slow(HEAD + b"Content-Length: 50\r\n\r\n{")) for _ in range(50)]
    await asyncio.sleep(1)
    took = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.port}") as http:
        for _ in range(50):
            began = asyncio.get_running_loop().time()
            assert (await http.get("/health/live")).status_code == 200
            took.append(asyncio.get_running_loop().time() - began)
    assert sorted(took)[-2] < 0.5
    answers = await asyncio.gather(*attackers)
    assert {answer[:13] for answer in answers} <= {b"HTTP/1.1 408 ", b""}
    assert sum(answer.startswith(b"HTTP/1.1 408") for answer in answers) >= 50


async def test_answers_of_the_application_have_each_header_once_behind_the_proxy(front: Front) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.port}") as http:
        page = await http.get("/schema")
        problem = await http.get("/v1/me")
    for response in (page, problem):
        checked(response)
        for name in HEADERS:
            assert len(response.headers.get_list(name)) == 1, name
    assert "style-src 'unsafe-inline'" in page.headers["content-security-policy"]
