"""REST over the real runtime and the real store in one process: SQLite, a host, an in-memory broker."""

import time
from typing import Any

from actors.host import Host, HostSettings
from actors.kinds import kinds
from actors.router import BrokerRouter
from domain.ids import PARTITIONS
from domain.ports import NoMetrics
from storage.accounts import SqlAccounts
from storage.engine import Database
from storage.facts import SqlFacts
from storage.memory_broker import MemoryBroker, MemoryBus
from storage.partition_log import SqlPartitionLog, SqlStreamReader
from storage.read_models import SqlReadModels
from storage.sessions import SqlSessions
from storage.stream_records import SqlStreamRecords
from tests.support.rest_app import World


class MovableClock:
    """The machine's clock, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms

    def monotonic_s(self) -> float:
        return time.monotonic() + self.ahead_ms / 1000

    def advance_s(self, seconds: float) -> None:
        self.ahead_ms += int(seconds * 1000)


class RestPlatform(World):
    """`World` whose accounts, sessions, lists and streams are the real ones. Call `start` inside the event loop."""

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(clock=MovableClock(), **settings)
        self.database = Database(url)
        self.accounts = SqlAccounts(self.database, self.clock, self.new_id)  # type: ignore[assignment]
        self.sessions = SqlSessions(self.database)  # type: ignore[assignment]
        self.tokens._sessions = self.sessions
        self.log = SqlPartitionLog(self.database)
        self.reads = SqlReadModels(self.database)
        self.reader = SqlStreamReader(self.database)
        self.records = SqlStreamRecords(self.database)
        self._bus = MemoryBus()
        self.broker = MemoryBroker(self._bus)  # type: ignore[assignment]
        self.router = BrokerRouter(MemoryBroker(self._bus), self.clock, NoMetrics())
        self.host = Host(
            HostSettings(),
            self.log,
            SqlFacts(self.database),
            self.reads,
            MemoryBroker(self._bus),
            self.clock,
            NoMetrics(),
            kinds(b"pepper of the tests"),
        )

    async def start(self) -> "RestPlatform":
        await self.host.start()
        self.host.leased(self.clock.monotonic_s() + 10**9)
        await self.host.assign(range(PARTITIONS))
        return self

    async def stop(self) -> None:
        await self.host.stop()
        await self.log.close()
        await self.database.close()
