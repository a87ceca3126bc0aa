"""TLS on both roads: 1.3 and nothing below, no plain text, no connection lost to a renewal, and no slot for who dawdles.

The gateway is the product's own server; before REST stands HAProxy's real program with the configuration that Serve writes.
"""

import asyncio
import contextlib
import socket
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from deploy.certificates import RestCertificate
from deploy.settings import Settings, from_environment
from gateway.certificates import Certificate
from gateway.server import GatewayServer
from tests.security.tally import Tally
from tests.support.certificates import Authority, Files
from tests.support.fake_platform import FakePlatform
from tests.support.front import Upstream, front_of
from tests.support.gateways import gateway_over

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /emulation HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
"""A request after which the gateway keeps the connection; it means nothing."""
PATIENCE_S = 1.0
"""Of the gateway in these tests; HAProxy's is 10 s."""


def gateway_of(files: Files, **settings: Any) -> GatewayServer:
    wanted: dict[str, Any] = {
        "certificate": str(files.certificate),
        "certificate_key": str(files.key),
        "certificate_look_s": 0.05,
        "open_timeout_s": PATIENCE_S,
    }
    return gateway_over(FakePlatform(), **wanted | settings)


@asynccontextmanager
async def running(server: GatewayServer) -> AsyncIterator[int]:
    port = await server.start()
    try:
        yield port
    finally:
        await server.stop()


def settings_of(folder: Path, files: Files) -> Settings:
    environment = {f"RENOVEASY_{key.upper()}": value for key, value in files.settings("http").items()}
    return from_environment(environment | {"RENOVEASY_DATA_DIR": str(folder)})


@dataclass
class Road:
    """A port that speaks TLS; `renew` has it use what its files hold now, as the running platform would."""

    name: str
    port: int
    authority: Authority
    files: Files
    renew: Callable[[], Awaitable[None]]

    async def works(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The connection carries a request and its answer, and stays."""
        assert (await asked(reader, writer)).startswith(b"HTTP/1.1 415" if self.name == "gateway" else b"HTTP/1.1 200")

    async def opened(self, context: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = context or self.authority.context()
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname="localhost")

    async def served(self) -> bytes:
        """The certificate that a new connection gets, in DER."""
        _, writer = await self.opened()
        der = writer.get_extra_info("ssl_object").getpeercert(True)
        await ended(writer)
        return bytes(der)


async def ended(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes = POST) -> bytes:
    """The status line of an answer; its body is read too."""
    writer.write(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
    await reader.readexactly(int(length.partition(b":")[2]))
    return head.partition(b"\r\n")[0]


async def until(true: Callable[[], Awaitable[bool]], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not await true():
            await asyncio.sleep(0.05)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway_road(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Road]:
    authority = Authority(tmp_path_factory.mktemp("gateway"))
    files = authority.issue()

    async def renew() -> None:
        """It looks by itself."""

    async with running(gateway_of(files)) as port:
        yield Road("gateway", port, authority, files, renew)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rest_road(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Road]:
    folder = tmp_path_factory.mktemp("rest")
    authority = Authority(folder)
    files = authority.issue()
    copy: list[RestCertificate] = []

    def prepared(at: Path) -> dict[str, str]:
        copy.append(RestCertificate(settings_of(folder, files), at))
        copy[0].install()
        return {"certificate": str(copy[0].path)}

    async def renew() -> None:
        await asyncio.to_thread(copy[0].refresh)

    async with Upstream().running() as upstream, front_of(upstream.port, prepared) as front:
        yield Road("REST", front.port, authority, files, renew)


@pytest.fixture(params=["gateway", "rest"])
def road(request: pytest.FixtureRequest) -> Road:
    found: Road = request.getfixturevalue(f"{request.param}_road")
    return found


# --- what is spoken ------------------------------------------------------------------------------------------------


async def test_tls_1_3_is_spoken_with_http_1_1_inside(road: Road) -> None:
    reader, writer = await road.opened(road.authority.context(alpn=("h2", "http/1.1")))
    tls = writer.get_extra_info("ssl_object")
    assert (tls.version(), tls.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
    await road.works(reader, writer)
    await road.works(reader, writer)
    await ended(writer)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_1", "TLSv1"])
async def test_lower_versions_are_refused(road: Road, version: str, tally: Tally) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = road.authority.context(ssl.TLSVersion[version])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await road.opened(context)
    tally.tried("SEC-26", f"{version} on TLS", road.name)


PLAIN = {
    "a request": GET,
    "an upgrade": b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "HTTP/2 without TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "noise": b"\x16\x03\x01" + b"\xff" * 300,
    "a PROXY line": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n" + GET,
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN.keys())
async def test_what_is_no_handshake_is_refused_without_an_answer(road: Road, data: bytes, tally: Tally) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", road.port)
    writer.write(data)
    heard = b""
    with contextlib.suppress(ConnectionError):
        heard = await asyncio.wait_for(reader.read(), 30)
    assert b"HTTP/" not in heard
    assert heard == b"" or heard[0] == 0x15  # an alert of TLS
    tally.tried("SEC-26", "no TLS on the port of TLS", f"{road.name}, {data[:12]!r}")
    await ended(writer)


async def test_a_websocket_goes_through(gateway_road: Road) -> None:
    context = gateway_road.authority.context()
    url = f"wss://localhost:{gateway_road.port}/connection/websocket"
    async with connect(url, ssl=context, host="127.0.0.1", proxy=None) as socket:
        await socket.send('{"id":1,"connect":{"token":"nobody"}}')
        with pytest.raises(ConnectionClosedError, match="invalid token"):
            await socket.recv()


# --- renewal -------------------------------------------------------------------------------------------------------


async def test_a_renewed_certificate_is_used_while_connections_stand(road: Road) -> None:
    before = await road.served()
    reader, writer = await road.opened()
    await road.works(reader, writer)
    for _ in range(3):
        road.authority.issue()
        await road.renew()

        async def other(former: bytes = before) -> bool:
            return await road.served() != former

        await until(other)
        before = await road.served()
        await road.works(reader, writer)  # over the connection of the first one
    await ended(writer)


async def test_files_that_cannot_be_used_leave_the_old_certificate(
    road: Road, caplog: pytest.LogCaptureFixture
) -> None:
    before = await road.served()
    expired = road.authority.issue("expired", since_days=-9, days=-1)
    other = road.authority.issue("other")
    good = {path: path.read_bytes() for path in road.files}
    for why, certificate, key in [
        ("is not the key of", other.certificate.read_bytes(), good[road.files.key]),
        ("has expired", expired.certificate.read_bytes(), expired.key.read_bytes()),
        ("no certificate", b"", good[road.files.key]),
        ("no private key", good[road.files.certificate], b"garbage"),
        ("cannot be read", None, good[road.files.key]),
    ]:
        caplog.clear()
        road.files.certificate.unlink(missing_ok=True)
        if certificate is not None:
            road.files.certificate.write_bytes(certificate)
        road.files.key.write_bytes(key)

        async def told(why: str = why) -> bool:
            await road.renew()
            return why in caplog.text

        await until(told)
        assert "stays as it is" in caplog.text
        assert b"PRIVATE" not in caplog.text.encode()
        assert await road.served() == before
    for path, content in good.items():
        path.write_bytes(content)
    await road.renew()
    renewed = road.authority.issue()
    await road.renew()

    async def renewed_is_served() -> bool:
        return await road.served() == ssl.PEM_cert_to_DER_cert(renewed.certificate.read_text().split("\n\n")[0])

    await until(renewed_is_served)


async def test_haproxy_has_a_copy_that_only_we_can_read(rest_road: Road, tmp_path: Path) -> None:
    copy = RestCertificate(settings_of(tmp_path, rest_road.files), tmp_path)
    copy.install()
    assert copy.path.stat().st_mode & 0o777 == 0o600


# --- who dawdles ---------------------------------------------------------------------------------------------------


def hello() -> bytes:
    """The first flight of a client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


SLOW = {"nothing": b"", "a byte": b"\x16", "half a hello": hello()[:100], "a hello and no more": hello()}


async def test_handshakes_that_do_not_go_on_are_cut_off(road: Road, tally: Tally) -> None:
    """Both have a limit of their own; this bound is for HAProxy's ten seconds on a busy machine."""

    async def dawdle(said: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", road.port)
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 25)
        await ended(writer)

    await asyncio.gather(*(dawdle(said) for said in SLOW.values()))
    for name in SLOW:
        tally.tried("SEC-15", "a slow TLS handshake", f"{road.name}, {name}")


async def test_handshakes_have_a_place_in_the_door_and_give_it_back(tmp_path: Path) -> None:
    """They hold a descriptor each: without a place they would be beyond the limit that keeps some for the rest."""
    authority = Authority(tmp_path)
    server = gateway_of(authority.issue(), max_connections=8, open_timeout_s=3)
    async with running(server) as port:
        road = Road("gateway", port, authority, authority.issue(), lambda: asyncio.sleep(0))
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]

        async def full() -> bool:
            return server._door.inside == 8

        await until(full)
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await road.opened()

        async def empty() -> bool:
            return server._door.inside == 0

        await until(empty)
        reader, writer = await road.opened()
        await road.works(reader, writer)
        await ended(writer)
        for _, each in slow:
            await ended(each)
        await until(empty)


async def test_an_answer_that_takes_its_time_reaches_a_client_who_waits(tmp_path: Path) -> None:
    """HAProxy's ten seconds are for handshakes and readers, not for what a replica is working on."""
    authority = Authority(tmp_path)
    files = authority.issue()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(0 if b"/-/healthz" in head else 12)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    def prepared(at: Path) -> dict[str, str]:
        copy = RestCertificate(settings_of(tmp_path, files), at)
        copy.install()
        return {"certificate": str(copy.path)}

    upstream = await asyncio.start_server(late, "127.0.0.1", 0)
    async with upstream, front_of(upstream.sockets[0].getsockname()[1], prepared) as front:
        road = Road("REST", front.port, authority, files, lambda: asyncio.sleep(0))
        reader, writer = await road.opened()
        writer.write(GET)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 40)
        assert head.startswith(b"HTTP/1.1 200"), head
        await ended(writer)


# --- elsewhere -----------------------------------------------------------------------------------------------------


async def test_who_waits_outside_a_draining_gateway_is_answered_in_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.issue()
    server = gateway_of(files)
    async with running(server) as port:
        # Taken by the kernel alone: the gateway's event loop does not run until it drains.
        outside = socket.create_connection(("127.0.0.1", port), timeout=5)
        draining = asyncio.create_task(server.drain())
        reader, writer = await asyncio.open_connection(
            sock=outside, ssl=authority.context(), server_hostname="localhost"
        )
        assert (await asked(reader, writer, GET)).startswith(b"HTTP/1.1 503")
        await ended(writer)
        await draining


async def test_on_the_event_loop_of_ray_it_is_the_same(tmp_path: Path) -> None:
    """Ray's workers run uvloop, which has a TLS of its own."""
    authority = Authority(tmp_path)
    files = authority.issue()

    async def main() -> None:
        async with running(gateway_of(files, open_timeout_s=5)) as port:
            road = Road("gateway", port, authority, files, lambda: asyncio.sleep(0))
            before = await road.served()
            reader, writer = await road.opened()
            await road.works(reader, writer)
            authority.issue()

            async def renewed() -> bool:
                return await road.served() != before

            await until(renewed)
            await road.works(reader, writer)
            await ended(writer)
            slow_reader, slow = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(slow_reader.read(), 25)
            await ended(slow)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await road.opened(authority.context(ssl.TLSVersion.TLSv1_2))

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    await asyncio.to_thread(run)


async def test_a_link_to_another_file_is_a_renewal(tmp_path: Path) -> None:
    """As certbot and Kubernetes do it."""
    authority = Authority(tmp_path)
    first, second = authority.issue("first"), authority.issue("second")
    at = Files(tmp_path / "live.pem", tmp_path / "live.key")
    for path, target in zip(at, first, strict=True):
        path.symlink_to(target)
    certificate = Certificate(str(at.certificate), str(at.key), time.time)
    before = certificate.context
    assert not certificate.refresh()
    for path, target in zip(at, second, strict=True):
        path.unlink()
        path.symlink_to(target)
    assert certificate.refresh()
    assert certificate.context is not before
