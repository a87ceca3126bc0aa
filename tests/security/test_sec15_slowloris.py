"""SEC-15: who takes their time holds nobody up, holds little, and is gone in time.

Six forms at the gateway and four at HAProxy. In the full form 2,000 of each against real processes, with figures; in the short
form a few, with a gateway that waits a twentieth of the time.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest
import uvicorn

from storage.accounts import SqlAccounts
from storage.engine import Database
from tests.security.leaks import SystemClock, new_id
from tests.security.tally import Tally
from tests.security.wires import RawSocket
from tests.support.crowd import log_in
from tests.support.databases import migrated
from tests.support.fake_platform import FakePlatform
from tests.support.front import front_of
from tests.support.gateways import gateway_over
from tests.support.hostile import FULL
from tests.support.keys import ring_of
from tests.support.parts import Parts
from tests.support.rest_app import World
from tests.support.servers import Nats, Valkey, free_port
from tests.support.siege import (
    Siege,
    half_open,
    never_pong,
    silent,
    slow_body,
    slow_download,
    slow_headers,
    slow_read,
)

ATTACKERS: Final = 2_000
FEW: Final = 12
PER_USER: Final = 19
"""A gateway keeps twenty connections of one user."""
GONE_S: Final = 15.0
SILENT_GONE_S: Final = 40.0
"""For those who are connected and answer no ping: 25 s until it is sent, 10 s for the answer."""
HONEST_P99_S: Final = 0.2
MOST_BYTES: Final = 16 * 1024
TOKEN: Final = f"{uuid.UUID(int=1)}/{uuid.UUID(int=2)}/99999999999999"
"""As the fake platform takes it."""
Form = Callable[[int, str], Callable[[], Awaitable[None]]]
AT_THE_GATEWAY: Final[dict[str, tuple[Form, float]]] = {
    "slow headers": (lambda port, _: slow_headers(port), GONE_S),
    "slow body": (lambda port, _: slow_body(port, "/connection/http_stream"), GONE_S),
    "slow handshake": (lambda port, _: silent(port), GONE_S),
    "half open": (lambda port, _: half_open(port), GONE_S),
    "slow read": (slow_read, SILENT_GONE_S),
    "never pong": (never_pong, SILENT_GONE_S),
}
"""Form → its attacker, and how long it is let at most."""
AT_HAPROXY: Final[dict[str, Form]] = {
    "slow headers": lambda port, _: slow_headers(port),
    "slow body": lambda port, _: slow_body(port, "/v1/auth/otp"),
    "slow handshake": lambda port, _: silent(port),
    "slow read": lambda port, _: slow_download(port, "/large"),
}


async def connected(port: int, token: str) -> float:
    """How long an honest client waits from TCP to the reply of `connect`."""
    began_s = time.perf_counter()
    async with RawSocket(port, token):
        return time.perf_counter() - began_s


def p99(took_s: list[float]) -> float:
    return sorted(took_s)[int(len(took_s) * 0.99)]


# --- the short form: a gateway in this process -----------------------------------------------------------------------


@asynccontextmanager
async def hasty_gateway() -> AsyncIterator[int]:
    server = gateway_over(
        FakePlatform(),
        tick_s=0.05,
        open_timeout_s=0.7,
        connect_timeout_s=0.7,
        ping_interval_s=1.0,
        pong_timeout_s=0.7,
        close_timeout_s=0.3,
        max_user_connections=0,
    )
    port = await server.start()
    try:
        yield port
    finally:
        await server.stop()


@pytest.mark.parametrize("form", AT_THE_GATEWAY)
async def test_who_takes_their_time_at_the_gateway_is_gone_and_holds_nobody_up(tally: Tally, form: str) -> None:
    attacker, _ = AT_THE_GATEWAY[form]
    async with hasty_gateway() as port:
        siege = Siege()
        await siege.begin([attacker(port, TOKEN) for _ in range(FEW)])
        for _ in range(5):
            await connected(port, TOKEN)
        tally.tried("SEC-15", form, "the gateway", FEW)
        try:
            await siege.gone(30)
        finally:
            await siege.stop()
    assert len(siege.lasted_s) == FEW, siege.refused
    # Each was really let in and then cut: somebody who is turned away at the door says nothing of this.
    assert min(siege.lasted_s) > 0.3


# --- the full form ---------------------------------------------------------------------------------------------------


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[str, Nats, Valkey]]:
    with migrated("sqlite", tmp_path) as database, Nats() as nats, Valkey() as valkey:
        yield database, nats, valkey


async def tokens_of(parts: Parts, users: int) -> list[str]:
    database = Database(parts.database_url)
    accounts = SqlAccounts(database, SystemClock(), new_id, ring_of(database, parts.folder))
    people = [(await accounts.find_or_create(f"+86138{n:08d}", "en"))[0].id for n in range(users)]
    await database.close()
    return await log_in(parts, people)  # type: ignore[arg-type]


@pytest.mark.skipif(not FULL, reason="2,000 sockets of each form and real processes: RENOVEASY_CHAOS=full")
@pytest.mark.timeout(1800)
async def test_two_thousand_of_each_form_at_a_real_gateway(servers: tuple[str, Nats, Valkey], tally: Tally) -> None:
    database, nats, valkey = servers
    port = free_port()
    environments = {"gateway-0": {"RENOVEASY_WS_PORT": str(port)}}
    said: dict[str, dict[str, Any]] = {}
    parts = Parts(database, nats.url, valkey.url, hosts=1, gateways=1, environments=environments)
    async with parts as running:
        honest, *tokens = await tokens_of(running, ATTACKERS // PER_USER + 2)
        gateway = running.parts["gateway-0"]
        # A first crowd, so that what a process keeps for good is not laid at the attackers' door.
        await asyncio.gather(*(connected(port, honest) for _ in range(15)))
        for form, (attacker, limit_s) in AT_THE_GATEWAY.items():
            before = gateway.rss_bytes
            siege = Siege()
            await siege.begin([attacker(port, tokens[n // PER_USER]) for n in range(ATTACKERS)])
            took_s: list[float] = []
            held, began_s = 0, time.monotonic()
            while time.monotonic() - began_s < 6:
                took_s.append(await connected(port, honest))
                held = max(held, gateway.rss_bytes - before)
                await asyncio.sleep(0.05)
            tally.tried("SEC-15", form, "the gateway", ATTACKERS)
            try:
                await siege.gone(limit_s * 3)
            finally:
                await siege.stop()
            said[form] = {
                "honest_p99_ms": round(p99(took_s) * 1000, 1),
                "honest": len(took_s),
                "gone_after_s": round(max(siege.lasted_s, default=0), 1),
                "let_in": len(siege.lasted_s),
                "turned_away": siege.refused,
                "bytes_each": held // ATTACKERS,
            }
            print(f"\n{form}: {json.dumps(said[form])}", flush=True)
    for form, figures in said.items():
        assert figures["let_in"] + figures["turned_away"] == ATTACKERS
        assert figures["gone_after_s"] <= AT_THE_GATEWAY[form][1] + 1, form
        assert figures["honest_p99_ms"] <= HONEST_P99_S * 1000, form
        assert figures["bytes_each"] <= MOST_BYTES, form


@pytest.mark.skipif(not FULL, reason="2,000 sockets of each form: RENOVEASY_CHAOS=full")
@pytest.mark.timeout(1800)
async def test_two_thousand_of_each_form_at_haproxy(tally: Tally) -> None:
    app = World().app()

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/large":  # and it costs nothing to make: what is measured is who reads it
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": bytes(64_000)})
            return
        if scope.get("path") == "/-/healthz":
            scope = scope | {"path": "/health/live", "raw_path": b"/health/live"}
        await app(scope, receive, send)

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(asgi, port=port, log_config=None, lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    said: dict[str, dict[str, Any]] = {}
    async with front_of(port) as front:
        proxy = psutil.Process(front.process.pid)
        for form, attacker in AT_HAPROXY.items():
            before, descriptors = proxy.memory_info().rss, proxy.num_fds()
            siege = Siege()
            await siege.begin([attacker(front.port, "") for _ in range(ATTACKERS)])
            took_s: list[float] = []
            held, began_s = 0, time.monotonic()
            while time.monotonic() - began_s < 6:
                # A connection of its own each time; without the certificates, which take longer to load than all the rest.
                async with httpx.AsyncClient(trust_env=False, verify=False) as http:
                    at_s = time.perf_counter()
                    assert (await http.get(f"http://127.0.0.1:{front.port}/health/live")).status_code == 200
                    took_s.append(time.perf_counter() - at_s)
                held = max(held, proxy.memory_info().rss - before)
                await asyncio.sleep(0.05)
            tally.tried("SEC-15", form, "HAProxy", ATTACKERS)
            try:
                # By HAProxy's own descriptors: who reads nothing is not told that the other side has left.
                while proxy.num_fds() > descriptors + 10 and time.monotonic() - began_s < 120:
                    await asyncio.sleep(0.2)
                gone_after_s = time.monotonic() - began_s
            finally:
                await siege.stop()
            said[form] = {
                "honest_p99_ms": round(p99(took_s) * 1000, 1),
                "gone_after_s": round(gone_after_s, 1),
                "let_in": ATTACKERS - siege.refused,
                "turned_away": siege.refused,
                "bytes_each": held // ATTACKERS,
            }
            print(f"\nHAProxy, {form}: {json.dumps(said[form])}", flush=True)
    server.should_exit = True
    await task
    for form, figures in said.items():
        assert figures["honest_p99_ms"] <= HONEST_P99_S * 1000, form
        assert figures["gone_after_s"] <= GONE_S + 1, form
