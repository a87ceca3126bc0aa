"""Whole platforms, real processes, official clients. The platforms are shared: starting one costs more than most tests."""

import asyncio
import secrets
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from deploy.ledger import Ledger
from deploy.person import Addresses, Person
from deploy.story import phone_number
from tests.support.platform import Platform
from tests.support.servers import MariaDb, Nats, Valkey, mariadb_installed

CLIENTS = Path(__file__).parents[1] / "gateway_clients"

People = Callable[..., Awaitable[Person]]


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    """A platform on the embedded defaults that no test kills."""
    with Platform(hosts="2", gateways="2") as running:
        yield running


@pytest.fixture(scope="module")
def mariadb_platform() -> Iterator[Platform]:
    """A platform on given servers: MariaDB, NATS and Valkey, none of which it has started."""
    if not mariadb_installed():
        pytest.skip("MariaDB is not installed: apt-get install mariadb-server")
    with (
        MariaDb() as database,
        Nats() as nats,
        Valkey() as valkey,
        Platform(database_url=database.url("renoveasy"), nats_url=nats.url, redis_url=valkey.url) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def mortal_platform() -> Iterator[Platform]:
    """A platform whose processes may be killed; it is running again when a test is over."""
    with Platform(hosts="2", gateways="2") as running:
        yield running


@pytest.fixture
def addresses(platform: Platform) -> Addresses:
    return addresses_of(platform)


def addresses_of(platform: Platform) -> Addresses:
    return Addresses(platform.rest, platform.websocket)


@pytest.fixture
def seed() -> int:
    """Makes people whom nobody has met before."""
    return secrets.randbits(24)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(timeout=8.0, limits=limits, trust_env=False) as client:
        yield client


@pytest.fixture
async def people(http: httpx.AsyncClient) -> AsyncIterator[People]:
    """Makes logged-in and connected people; the same `number` again is the same user on another device."""
    joined: list[Person] = []
    seed = secrets.randbits(24)
    at_the_door = asyncio.Lock()

    async def join(at: Addresses, ledger: Ledger, number: int = 0, patience_s: float = 10.0) -> Person:
        phone = phone_number(seed + number, 0)
        person = Person(http, at, phone, f"Person {number}", ledger, patience_s)
        joined.append(person)
        async with at_the_door:  # a phone has one code at a time
            await person.log_in()
        await person.connect()
        return person

    yield join
    await asyncio.gather(*(person.leave() for person in joined))


async def conversation_of(*members: Person) -> str:
    """A new conversation, opened by the first of its members."""
    body = {"member_ids": [member.id for member in members[1:]]}
    return str((await members[0].rest("POST", "/v1/conversations", body))["id"])


async def until(what: str, true: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Look again and again until it is true; fails with `what` when it does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with the pinned official JavaScript client installed."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("Node is not installed: apt-get install nodejs npm")
    if not (CLIENTS / "node_modules" / "centrifuge").exists():
        npm = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(npm, cwd=CLIENTS, check=True, capture_output=True, timeout=100)
    return found
