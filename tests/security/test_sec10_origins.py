"""SEC-10: a page of another site cannot open a socket with its visitor's browser, whatever its origin looks like."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.security.tally import Tally
from tests.support.fake_platform import CountingMetrics, FakePlatform
from tests.support.gateways import gateway_over

ALLOWED = ("https://app.example.com", "https://admin.example.com:8443")
SOCKET, SSE, STREAM, EMULATION = "/connection/websocket", "/connection/sse", "/connection/http_stream", "/emulation"

FOREIGN = [
    b"null", b"NULL", b"", b" ", b"*", b"https://*.example.com", b"https://evil.com", b"https://example.com",
    b"http://app.example.com", b"HTTPS://APP.EXAMPLE.COM", b"https://APP.example.com", b"https://app.example.com:443",
    b"https://app.example.com:8443", b"https://admin.example.com", b"https://admin.example.com:8444",
    b"https://app.example.com.", b"https://app.example.com/", b"https://app.example.com/path", b"https://app.example.com?x",
    b"https://app.example.com#x", b"https://app.example.com.evil.com", b"https://evilapp.example.com",
    b"https://evil-app.example.com", b"https://app.example.com@evil.com", b"https://evil.com/https://app.example.com",
    b"https://app-example.com", b"https://appXexample.com", b"https://app.example.co", b"https://app.example.comm",
    b"https://app.example.com%00.evil.com", b"https://app.example.com%2eevil.com", b"//app.example.com", b"app.example.com",
    b"ws://app.example.com", b"wss://app.example.com", b"file://", b"chrome-extension://abcdef",
    b"https://xn--pp-8ia.example.com", "https://аpp.example.com".encode(), b"https://127.0.0.1", b"http://localhost",
    b"https://app.example.com https://evil.com", b"https://evil.com https://app.example.com",
    b"https://app.example.com, https://evil.com", b"https://evil.com, https://app.example.com", b"https://[::1]",
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[tuple[int, CountingMetrics]]:
    metrics = CountingMetrics()
    server = gateway_over(FakePlatform(), metrics, origins=ALLOWED)
    yield await server.start(), metrics
    await server.stop()


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def answer(port: int, path: str, *origins: bytes) -> bytes:
    """The status line and headers of a handshake with these `Origin` lines."""
    get = path == SOCKET
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [
        f"{'GET' if get else 'POST'} {path} HTTP/1.1".encode(),
        b"Host: gateway",
        *(b"Origin: " + origin for origin in origins),
        *(
            [
                b"Upgrade: websocket",
                b"Connection: Upgrade",
                b"Sec-WebSocket-Version: 13",
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            ]
            if get
            else [b"Content-Type: application/json", b"Content-Length: 2"]
        ),
    ]
    writer.write(b"\r\n".join([*lines, b"", b"" if get else b"{}"]))
    try:
        return (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).lower()
    except asyncio.IncompleteReadError as error:
        return error.partial
    finally:
        writer.close()


@pytest.mark.parametrize("origin", FOREIGN, ids=repr)
async def test_a_foreign_origin_is_refused_before_the_upgrade_and_on_every_stream(
    gateway: tuple[int, CountingMetrics], tally: Tally, origin: bytes
) -> None:
    port, _ = gateway
    for path in (SOCKET, SSE, STREAM, EMULATION):
        tally.tried("SEC-10", "a foreign origin", path)
        said = await answer(port, path, origin)
        assert said.startswith((b"http/1.1 403 ", b"http/1.1 400 ")), (path, said)
        assert b"access-control-allow-origin" not in said


async def test_an_allowed_origin_beside_a_foreign_one_does_not_help(
    gateway: tuple[int, CountingMetrics], tally: Tally
) -> None:
    port, _ = gateway
    for origins in ((ALLOWED[0].encode(), b"https://evil.com"), (b"https://evil.com", ALLOWED[0].encode())):
        for path in (SOCKET, SSE, STREAM, EMULATION):
            tally.tried("SEC-10", "an allowed origin beside a foreign one", path)
            assert (await answer(port, path, *origins)).startswith((b"http/1.1 403 ", b"http/1.1 400 ")), path


async def test_allowed_origins_and_apps_which_send_none_are_let_in(gateway: tuple[int, CountingMetrics]) -> None:
    port, _ = gateway
    for origins in ((ALLOWED[0].encode(),), (ALLOWED[1].encode(),), ()):
        assert (await answer(port, SOCKET, *origins)).startswith(b"http/1.1 101 ")
