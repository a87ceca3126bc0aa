"""SEC-31: of many requests at once, of which a fifth is cancelled at random points, none is answered with somebody else's rows.

On MariaDB, whose driver once handed a cancelled query's rows to the next one. The storage layer in processes of their own,
and REST. The full form asks a million times, a hundred thousand of them over REST.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.connections import SystemClock, new_id
from domain.ports import Device, DeviceSession
from storage.accounts import SqlAccounts
from storage.engine import Database
from storage.mysql_connection import BoundedConnection
from storage.sessions import SqlSessions
from storage.tokens import JwtIssuer, SigningKeys
from tests.security.leaks import Seen, drive, drive_rest
from tests.security.tally import Tally
from tests.support.databases import migrated
from tests.support.hostile import FULL
from tests.support.keys import ring_of
from tests.support.parts import Parts
from tests.support.servers import Nats, Valkey, mariadb_installed

PROCESSES: Final = 4 if FULL else 1
REQUESTS: Final = 225_000 if FULL else 1_500
"""Of each process."""
OVER_REST: Final = 100_000 if FULL else 1_000
PEOPLE: Final = 20

pytestmark = pytest.mark.skipif(
    not mariadb_installed(), reason="needs MariaDB's server: apt-get install mariadb-server"
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """A server of the test's own: each test has other keys, and a database belongs to one key ring."""
    with migrated("mariadb", tmp_path) as url:
        yield url


def checked(seen: dict[str, Any], wanted: int) -> None:
    assert seen["foreign"] == []
    assert seen["asked"] >= wanted
    assert seen["rows"] >= seen["answered"] > 0
    assert seen["cancelled"] > wanted / 20, "or else nothing of it was tried"
    assert seen["answered"] + seen["cancelled"] + seen["unavailable"] == seen["asked"]


@pytest.mark.timeout(7200)
async def test_the_storage_layer_gives_nobody_the_rows_of_a_cancelled_request(database: str, tally: Tally) -> None:
    programs = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.security.leaks", database, str(REQUESTS), str(seed)),
            stdout=asyncio.subprocess.PIPE,
        )
        for seed in range(PROCESSES)
    ]
    for program in programs:
        said, _ = await program.communicate()
        assert program.returncode == 0
        seen = json.loads(said)
        print(f"\n{seen}", flush=True)
        checked(seen, REQUESTS)
        tally.tried("SEC-31", "requests cancelled at random points", "the storage layer", seen["asked"])


@pytest.mark.timeout(7200)
async def test_rest_gives_nobody_the_rows_of_a_request_that_was_given_up(database: str, tally: Tally) -> None:
    with Nats() as nats, Valkey() as valkey:
        parts = Parts(database, nats.url, valkey.url, hosts=1, gateways=0, rest=True)
        async with parts as running:
            people = await owners(running)
            seen = await drive_rest(running.http_port, people, OVER_REST, 31)
    print(f"\nREST: {vars(seen)}", flush=True)
    checked(vars(seen), OVER_REST)
    tally.tried("SEC-31", "requests given up at random points", "REST", seen.asked)


async def owners(parts: Parts) -> list[tuple[str, str]]:
    """People whose account and device session say whose they are, and their access tokens."""
    store, now_ms = Database(parts.database_url), SystemClock().now_ms()
    accounts = SqlAccounts(store, SystemClock(), new_id, ring_of(store, parts.folder))
    sessions, issuer = SqlSessions(store), JwtIssuer(SigningKeys.open(parts.folder / "keys"))
    made = []
    for number in range(PEOPLE):
        user, _ = await accounts.find_or_create(f"+86138{number:08d}", "en")
        await accounts.update(user.id, name=f"owner {user.id}", locale=None, avatar=None)
        session = DeviceSession(new_id(), user.id, Device("d", f"owner {user.id}", "test"), now_ms, now_ms)
        await sessions.open(session, issuer.hash(issuer.refresh()), now_ms + 10**9)
        made.append((user.id, issuer.access(user.id, session.id, now_ms, 86_400)))
    await store.close()
    return made


class Careless(BoundedConnection):
    """The bug that this looks for: a connection of which a cancelled query's answer is still to come is used again."""

    def _close_on_cancel(self) -> None: ...

    async def _fill_buffer(self, need: int) -> None:
        await super(BoundedConnection, self)._fill_buffer(need)


async def test_the_search_finds_rows_that_come_to_the_wrong_one(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control: with the bug planted, and SQLAlchemy's own care taken away, what is looked for is there."""
    monkeypatch.setattr("storage.engine.BoundedConnection", Careless)
    monkeypatch.setattr("sqlalchemy.util.is_exit_exception", lambda error: False)
    monkeypatch.setattr("sqlalchemy.engine.base.util.is_exit_exception", lambda error: False)
    seen: Seen = await drive(database, 600, 1)
    assert seen.foreign
