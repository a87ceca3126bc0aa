"""Getting around the rate limits (SEC-9): nothing that a request says of its origin is believed but what our proxy appends."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import httpx
import pytest
import uvicorn

from tests.security.tally import Tally
from tests.support.hostile import everywhere
from tests.support.otp_world import OtpWorld, otp_world
from tests.support.proxies import Haproxy
from tests.support.servers import Valkey

SOCKET = "10.9.9.9"
"""Whom the socket shows: the caller, or the proxy."""
OTHER = "10.9.9.10"
LIMIT = 5
ROUTES = {
    "otp": ("POST", "/v1/auth/otp", {"phone": "+1"}, 422),
    "verify": ("POST", "/v1/auth/otp/verify", {}, 422),
    "me": ("GET", "/v1/me", None, 401),
}
"""Requests that are refused for what they ask, but only if they are not refused for their number first."""


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@asynccontextmanager
async def limited(valkey: Valkey, hops: int, **limits: int) -> AsyncIterator[OtpWorld]:
    """Five an hour on what logs in, five a minute on all else."""
    given = {"auth_per_ip_hour": LIMIT, "requests_per_ip_minute": 1_000} | limits
    async with otp_world(valkey, trusted_hops=hops, **given) as world:
        yield world


def limits_of(route: str) -> dict[str, int]:
    return {"requests_per_ip_minute": LIMIT} if route == "me" else {}


async def send(world: OtpWorld, route: str, headers: list[tuple[str, str]], socket: str = SOCKET) -> httpx.Response:
    method, path, body, _ = ROUTES[route]
    transport = httpx.ASGITransport(world.served, client=(socket, 5_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://rest") as http:
        return await http.request(method, path, json=body, headers=headers)


def refused_for_their_number(answer: httpx.Response) -> bool:
    if answer.status_code != 429:
        return False
    assert answer.json()["code"] == "rate_limited"
    assert answer.headers["content-type"] == "application/problem+json"
    assert 0 < answer.json()["retry_after_s"] <= int(answer.headers["retry-after"]) <= 3_600
    return True


async def admitted(world: OtpWorld, route: str, headers_of: Callable[[int], list[tuple[str, str]]]) -> int:
    """How many of three times the limit were let in, each with other headers."""
    answers = [await send(world, route, headers_of(n)) for n in range(3 * LIMIT)]
    expected = ROUTES[route][3]
    assert {answer.status_code for answer in answers} <= {expected, 429}
    return [refused_for_their_number(answer) for answer in answers].count(False)


# --- what a request says of its origin ---

CLAIMS = [
    "X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Client-IP", "Client-IP", "True-Client-IP", "CF-Connecting-IP",
    "Fastly-Client-IP", "X-Cluster-Client-IP", "X-Originating-IP", "X-Remote-IP", "X-Remote-Addr", "X-Forwarded",
    "Forwarded-For", "X-Forwarded-Host", "X-ProxyUser-IP", "X-Azure-ClientIP", "Via",
]  # fmt: skip


def said(header: str, n: int) -> tuple[str, str]:
    address = f"203.0.113.{n}"
    return header, f'for="{address}";proto=https' if header == "Forwarded" else address


@pytest.mark.parametrize(("header", "route"), everywhere(CLAIMS, ROUTES))
async def test_without_a_trusted_proxy_no_header_makes_another_caller(
    valkey: Valkey, tally: Tally, header: str, route: str
) -> None:
    tally.tried("SEC-9", f"the header {header}", " ".join(ROUTES[route][:2]))
    async with limited(valkey, 0, **limits_of(route)) as world:
        assert await admitted(world, route, lambda n: [said(header, n)]) == LIMIT
        assert not refused_for_their_number(await send(world, route, [], socket=OTHER))


@pytest.mark.parametrize(("header", "route"), everywhere(CLAIMS[1:], ROUTES))
async def test_behind_a_trusted_proxy_only_its_own_header_counts(
    valkey: Valkey, tally: Tally, header: str, route: str
) -> None:
    tally.tried("SEC-9", f"the header {header} beside the proxy's", " ".join(ROUTES[route][:2]))
    async with limited(valkey, 1, **limits_of(route)) as world:
        real = ("X-Forwarded-For", "198.51.100.7")
        assert await admitted(world, route, lambda n: [said(header, n), real]) == LIMIT


CHAINS: dict[str, Callable[[int], list[str]]] = {
    "one-before": lambda n: [f"203.0.113.{n}, 198.51.100.7"],
    "without-a-space": lambda n: [f"203.0.113.{n},198.51.100.7"],
    "tabs": lambda n: [f"203.0.113.{n}\t,\t198.51.100.7\t"],
    "many-before": lambda n: [", ".join(f"203.0.{k}.{n}" for k in range(250)) + ", 198.51.100.7"],
    "empty-entries": lambda n: [f"203.0.113.{n}, , ,198.51.100.7"],
    "nothing-before": lambda n: [f"{',' * n} 198.51.100.7"],
    "a-line-of-its-own-before": lambda n: [f"203.0.113.{n}", "198.51.100.7"],
    "three-lines": lambda n: [f"203.0.113.{n}", f"2001:db8:{n}::1", "198.51.100.7"],
    "ipv6-before": lambda n: [f"2001:db8:{n}::1, 198.51.100.7"],
    "no-address-before": lambda n: [f"unknown-{n}, 198.51.100.7"],
    "quotes-before": lambda n: [f'"203.0.113.{n}, 198.51.100.7'],
    "semicolon-before": lambda n: [f"203.0.113.{n}; 1.1.1.1, 198.51.100.7"],
    "loopback-before": lambda n: [f"127.0.0.{n}, 198.51.100.7"],
    "long-before": lambda n: [f"{'9' * 4_000}{n}, 198.51.100.7"],
}


@pytest.mark.parametrize(("chain", "route"), everywhere(CHAINS, ROUTES))
async def test_whatever_stands_before_the_proxys_entry_is_not_believed(
    valkey: Valkey, tally: Tally, chain: str, route: str
) -> None:
    tally.tried("SEC-9", "a chain of addresses", " ".join(ROUTES[route][:2]))
    async with limited(valkey, 1, **limits_of(route)) as world:

        def headers_of(n: int) -> list[tuple[str, str]]:
            return [("X-Forwarded-For", line) for line in CHAINS[chain](n)]

        assert await admitted(world, route, headers_of) == LIMIT
        other = [("X-Forwarded-For", "198.51.100.7, 198.51.100.8")]
        assert not refused_for_their_number(await send(world, route, other))


async def test_of_two_trusted_proxies_the_outer_ones_entry_counts(valkey: Valkey) -> None:
    async with limited(valkey, 2) as world:
        count = await admitted(
            world, "otp", lambda n: [("X-Forwarded-For", f"203.0.113.{n}, 198.51.100.7, 192.0.2.{n}")]
        )
        assert count == LIMIT


@pytest.mark.parametrize(
    "entry", ["", "unknown", "_hidden", "198.51.100.7:5000", "[2001:db8::1]:80", "0x7f.1", "3325256711", "1.2.3.4.5"]
)
async def test_who_cannot_be_told_shares_one_limit(valkey: Valkey, entry: str) -> None:
    async with limited(valkey, 1) as world:
        assert await admitted(world, "otp", lambda n: [("X-Forwarded-For", f"203.0.113.{n}, {entry}")]) == LIMIT


# --- many addresses of one caller ---

NETWORK = IPv6Network("2001:db8:1:2::/64")
ROTATIONS: dict[str, Callable[[int], str]] = {
    "within-a-64": lambda n: str(NETWORK[n * 7_919**4]),
    "counting-up": lambda n: str(NETWORK[n]),
    "written-in-full": lambda n: NETWORK[n].exploded,
    "in-capitals": lambda n: str(NETWORK[n + 10]).upper() if n % 2 else str(NETWORK[n + 10]),
    "zones": lambda n: f"fe80::1%{n}",
    "mapped-ipv4": lambda n: ["::ffff:198.51.100.7", "198.51.100.7", "::FFFF:c633:6407"][n % 3],
    "6to4-of-one-ipv4": lambda n: str(IPv6Address((0x2002 << 112) | int(IPv4Address("198.51.100.7")) << 80 | n << 64)),
    "teredo-of-one-ipv4": lambda n: str(
        IPv6Address(0x20010000 << 96 | n << 64 | n << 32 | (int(IPv4Address("198.51.100.7")) ^ 0xFFFFFFFF))
    ),
}


@pytest.mark.parametrize(("rotation", "route"), everywhere(ROTATIONS, ROUTES))
async def test_many_addresses_of_one_caller_share_one_limit(
    valkey: Valkey, tally: Tally, rotation: str, route: str
) -> None:
    tally.tried("SEC-9", "many addresses of one caller", " ".join(ROUTES[route][:2]))
    async with limited(valkey, 1, **limits_of(route)) as world:
        assert await admitted(world, route, lambda n: [("X-Forwarded-For", ROTATIONS[rotation](n))]) == LIMIT


@pytest.mark.parametrize("route", ROUTES)
async def test_all_the_64s_of_one_customer_share_a_wider_limit(valkey: Valkey, route: str) -> None:
    async with limited(valkey, 1, wide_network_times=2, **limits_of(route)) as world:
        assert await admitted(world, route, lambda n: [("X-Forwarded-For", f"2001:db8:1:{n}::1")]) == 2 * LIMIT
        neighbour = [("X-Forwarded-For", "2001:db8:2::1")]
        assert not refused_for_their_number(await send(world, route, neighbour))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("::ffff:198.51.100.7", "::ffff:198.51.100.8"),
        ("2001:db8:1:2::1", "2001:db8:1:3::1"),
        ("198.51.100.7", "198.51.100.8"),
        ("2002:c633:6407::1", "2002:c633:6408::1"),
    ],
    ids=["mapped-ipv4", "64s", "ipv4", "6to4"],
)
async def test_two_callers_do_not_share_a_limit(valkey: Valkey, one: str, other: str) -> None:
    async with limited(valkey, 1) as world:
        assert await admitted(world, "otp", lambda n: [("X-Forwarded-For", one)]) == LIMIT
        assert await admitted(world, "otp", lambda n: [("X-Forwarded-For", other)]) == LIMIT


async def test_the_limit_is_exact_for_a_hundred_at_once(valkey: Valkey) -> None:
    async with limited(valkey, 1) as world:
        real = [("X-Forwarded-For", "198.51.100.7")]
        answers = await asyncio.gather(*(send(world, "otp", real) for _ in range(100)))
        assert Counter(answer.status_code for answer in answers) == {422: LIMIT, 429: 100 - LIMIT}
        assert sum(refused_for_their_number(answer) for answer in answers) == 100 - LIMIT


async def test_attempts_to_log_in_count_together_whichever_route_they_take(valkey: Valkey) -> None:
    async with limited(valkey, 1) as world:
        real = [("X-Forwarded-For", "198.51.100.7")]
        answers = [await send(world, ("otp", "verify")[n % 2], real) for n in range(3 * LIMIT)]
        assert [refused_for_their_number(answer) for answer in answers].count(False) == LIMIT


# --- other spellings of a route ---

SPELLINGS = {
    "query": ("POST", "/v1/auth/otp?x=1"),
    "slash-behind": ("POST", "/v1/auth/otp/"),
    "two-slashes": ("POST", "//v1/auth/otp"),
    "two-slashes-inside": ("POST", "/v1//auth/otp"),
    "dots": ("POST", "/v1/auth/../auth/otp"),
    "dot": ("POST", "/v1/./auth/otp"),
    "capitals": ("POST", "/V1/Auth/Otp"),
    "percent-encoded-letter": ("POST", "/v1/auth/%6Ftp"),
    "percent-encoded-slash": ("POST", "/v1/auth%2Fotp"),
    "path-parameter": ("POST", "/v1/auth/otp;x=1"),
    "nul": ("POST", "/v1/auth/otp%00"),
    "method-put": ("PUT", "/v1/auth/otp"),
    "method-patch": ("PATCH", "/v1/auth/otp"),
    "method-get": ("GET", "/v1/auth/otp?phone=%2B8613800000001"),
    "method-head": ("HEAD", "/v1/auth/otp?phone=%2B8613800000001"),
    "method-options": ("OPTIONS", "/v1/auth/otp"),
    "method-small-letters": ("post", "/v1/auth/otp"),
    "method-override": ("GET", "/v1/auth/otp?_method=POST"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_other_spelling_of_a_route_is_served_beyond_the_limit(valkey: Valkey, spelling: str) -> None:
    async with limited(valkey, 1) as world:
        address = "198.51.100.7"
        for n in range(LIMIT):
            await world.ask(f"+86138{n}0000001", address)
        method, path = SPELLINGS[spelling]
        headers = {"X-Forwarded-For": address, "X-HTTP-Method-Override": "POST"}
        answer = await world.http.request(method, path, json={"phone": "+8613900000001"}, headers=headers)
        assert answer.status_code in {204, 404, 405, 429}
        assert len(world.sms.sent) == LIMIT


# --- through the real proxy ---


@asynccontextmanager
async def behind_haproxy(valkey: Valkey) -> AsyncIterator[int]:
    """The port of an HAProxy, with the platform's own lines, before the application on a real HTTP server."""
    async with limited(valkey, 1) as world:
        config = uvicorn.Config(world.served, "127.0.0.1", 0, log_level="critical", lifespan="off", access_log=False)
        config.timeout_graceful_shutdown = 2
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        proxy = Haproxy(port)
        try:
            await asyncio.to_thread(proxy.start)
            yield proxy.port
        finally:
            await asyncio.to_thread(proxy.close)
            server.should_exit = True
            await serving


async def status_of(port: int, *lines: str, source: str = "127.0.0.1") -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    body = '{"phone": "+1"}'
    fixed = ("Host: rest", "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close")
    writer.write("\r\n".join(["POST /v1/auth/otp HTTP/1.1", *fixed, *lines, "", body]).encode("latin-1"))
    answer = (await asyncio.wait_for(reader.read(), 10)).decode("latin-1")
    writer.close()
    await writer.wait_closed()
    return int(answer.split(" ")[1]), answer


LINES: dict[str, Callable[[int], list[str]]] = {
    "nothing-said": lambda n: [],
    "usual": lambda n: [f"X-Forwarded-For: 203.0.113.{n}"],
    "small-letters": lambda n: [f"x-forwarded-for: 203.0.113.{n}"],
    "capitals": lambda n: [f"X-FORWARDED-FOR: 203.0.113.{n}"],
    "mixed-letters": lambda n: [f"x-FoRwArDeD-fOr: 203.0.113.{n}"],
    "two-lines": lambda n: [f"X-Forwarded-For: 203.0.113.{n}", f"X-Forwarded-For: 203.0.114.{n}"],
    "two-lines-of-other-letters": lambda n: [f"X-Forwarded-For: 203.0.113.{n}", f"x-forwarded-FOR: 203.0.114.{n}"],
    "twenty-lines": lambda n: [f"X-Forwarded-For: 203.0.113.{n}"] * 20,
    "empty": lambda n: ["X-Forwarded-For:"],
    "comma-behind": lambda n: [f"X-Forwarded-For: 203.0.113.{n},"],
    "commas-alone": lambda n: [f"X-Forwarded-For: {',' * n}"],
    "tab": lambda n: [f"X-Forwarded-For:\t203.0.113.{n}\t"],
    "underscores": lambda n: [f"X_Forwarded_For: 203.0.113.{n}"],
    "format-of-the-proxy": lambda n: [f"X-Forwarded-For: %[src] %{{+Q}}o {n}"],
    "quote": lambda n: [f'X-Forwarded-For: "203.0.113.{n}'],
    "backslash-behind": lambda n: [f"X-Forwarded-For: 203.0.113.{n}\\"],
    "12-kb": lambda n: [f"X-Forwarded-For: {n}, " + "9" * 12_000],
    "named-in-connection": lambda n: [f"X-Forwarded-For: 203.0.113.{n}", "Connection: X-Forwarded-For"],
    "forwarded": lambda n: [f"Forwarded: for=203.0.113.{n}"],
    "real-ip": lambda n: [f"X-Real-IP: 203.0.113.{n}"],
    "proxy-protocol-in-a-header": lambda n: [f"PROXY: TCP4 203.0.113.{n} 127.0.0.1 1 2"],
}


@pytest.mark.parametrize("case", LINES)
async def test_through_the_proxy_a_caller_is_who_the_socket_shows(valkey: Valkey, case: str) -> None:
    async with behind_haproxy(valkey) as port:
        answers = [await status_of(port, *LINES[case](n)) for n in range(2 * LIMIT)]
        statuses = [status for status, _ in answers]
        assert statuses == [422] * LIMIT + [429] * LIMIT
        assert all("\r\nretry-after: " in text.lower() for status, text in answers if status == 429)
        assert (await status_of(port, *LINES[case](1), source="127.0.0.2"))[0] == 422
