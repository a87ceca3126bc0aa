"""Every implementation of the storage ports, each seen by several processes' worth of instances."""

from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import pytest

from domain.ports import FactSource, PartitionLog, ReadModels, StreamReader
from storage.engine import Database
from storage.facts import SqlFacts
from storage.memory import MemoryFacts, MemoryPartitionLog, MemoryReadModels, MemoryStore, MemoryStreamReader
from storage.partition_log import SqlPartitionLog, SqlStreamReader
from storage.read_models import SqlReadModels
from tests.support.databases import migrated

_used = {"memory": 0, "sqlite": 0, "mariadb": 0}
"""How many times each database has given partitions to a test."""


class Store(Protocol):
    """One store; every call gives what another process would use."""

    def log(self) -> PartitionLog: ...
    def reader(self) -> StreamReader: ...
    def read_models(self) -> ReadModels: ...
    def facts(self) -> FactSource: ...


class InMemory:
    def __init__(self) -> None:
        self.store = MemoryStore()

    def log(self) -> PartitionLog:
        return MemoryPartitionLog(self.store)

    def reader(self) -> StreamReader:
        return MemoryStreamReader(self.store)

    def read_models(self) -> ReadModels:
        return MemoryReadModels(self.store)

    def facts(self) -> FactSource:
        return MemoryFacts(self.store)

    async def close(self) -> None:
        """Nothing is open."""


class InSql:
    def __init__(self, url: str) -> None:
        self.url = url
        self._databases: list[Database] = []
        self._logs: list[SqlPartitionLog] = []

    def database(self) -> Database:
        self._databases.append(Database(self.url))
        return self._databases[-1]

    def log(self) -> SqlPartitionLog:
        self._logs.append(SqlPartitionLog(self.database()))
        return self._logs[-1]

    def reader(self) -> StreamReader:
        return SqlStreamReader(self.database())

    def read_models(self) -> ReadModels:
        return SqlReadModels(self.database())

    def facts(self) -> FactSource:
        return SqlFacts(self.database())

    async def close(self) -> None:
        for log in self._logs:
            await log.close()
        for database in self._databases:
            await database.close()


@pytest.fixture(scope="session")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with migrated("sqlite", tmp_path_factory.mktemp("storage")) as url:
        yield url


@pytest.fixture(scope="session")
def mariadb_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with migrated("mariadb", tmp_path_factory.mktemp("storage")) as url:
        yield url


@pytest.fixture(params=["memory", "sqlite", "mariadb"])
def place(request: pytest.FixtureRequest) -> str | None:
    """The URL of a database, or None for memory."""
    return None if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(params=["sqlite", "mariadb"])
def sql_place(request: pytest.FixtureRequest) -> str:
    """The URL of a database."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
async def store(place: str | None) -> AsyncIterator[Store]:
    made = InMemory() if place is None else InSql(place)
    yield made
    await made.close()


@pytest.fixture
async def sql_store(sql_place: str) -> AsyncIterator[InSql]:
    made = InSql(sql_place)
    yield made
    await made.close()


@pytest.fixture
def partition(request: pytest.FixtureRequest) -> int:
    """A partition that no other test has used in the same database, and the next three of them."""
    chosen = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    places = {str(chosen[name]) for name in ("place", "sql_place") if name in chosen} or set(_used)
    turn = 1 + max(_used[place] for place in places)
    _used.update(dict.fromkeys(places, turn))
    assert turn < 255, "every partition has been used"
    return turn * 4


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer  # which takes long to import, for all who run another test here

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """AWS as moto serves it: the address of all its services."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return moto
