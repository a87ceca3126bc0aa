"""REST over the real runtime and the real store in one process: SQLite, a host, an in-memory broker."""

import time
from typing import Any

from actors.host import Host, HostSettings
from actors.kinds import kinds
from actors.router import BrokerRouter
from domain.ids import PARTITIONS
from domain.ports import NoMetrics
from storage.accounts import SqlAccounts
from storage.audit import SqlAudit
from storage.blocks import SqlBlocks
from storage.engine import Database
from storage.erasures import SqlErasures
from storage.facts import SqlFacts
from storage.identities import SqlIdentities
from storage.memory_broker import MemoryBroker, MemoryBus
from storage.mutes import SqlMutes
from storage.partition_log import SqlPartitionLog, SqlStreamReader
from storage.read_models import SqlReadModels
from storage.search import SqlMessageSearch
from storage.sessions import SqlSessions
from storage.stream_records import SqlStreamRecords
from storage.uploads import SqlUploads
from storage.user_keys import SqlApiKeys, SqlDeviceKeys, SqlTotpSecrets
from storage.verification import SqlWorkerDocuments
from tests.support.keys import FixedKeys
from tests.support.memory_uploads import MemoryObjects
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
        self.audit: Any = SqlAudit(self.database, b"audit key of the tests".ljust(32), self.clock, self.new_id)
        self.accounts = SqlAccounts(self.database, self.clock, self.new_id, FixedKeys(), self.audit)  # type: ignore[assignment]
        self.sessions = SqlSessions(self.database, self.audit)  # type: ignore[assignment]
        self.tokens._sessions = self.sessions
        self.device_keys = SqlDeviceKeys(self.database)
        self.totp = SqlTotpSecrets(self.database, FixedKeys())
        self.api_keys = SqlApiKeys(self.database)
        self.log = SqlPartitionLog(self.database)
        self.reads = SqlReadModels(self.database)
        self.reader = SqlStreamReader(self.database)
        self.search = SqlMessageSearch(self.database)
        self.blocks = SqlBlocks(self.database)
        self.mutes = SqlMutes(self.database)
        self.records = SqlStreamRecords(self.database)
        self.identities = SqlIdentities(self.database)
        self.erasures = SqlErasures(self.database)
        self.objects = MemoryObjects()
        self.uploads = SqlUploads(self.database, self.objects, FixedKeys())
        self.worker_documents = SqlWorkerDocuments(self.database, FixedKeys(), self.audit)
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
