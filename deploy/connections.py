"""What every process of the platform needs, opened in one order and closed in the other."""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uuid_utils

from actors.batcher import Batcher
from actors.router import BrokerRouter
from deploy.settings import Settings
from deploy.telemetry import RayMetrics, configure_logging
from domain.channels import REVOKED_SUBJECT
from domain.ports import DeviceSession, Metrics, NoMetrics, Received
from storage.broker import NatsBroker
from storage.engine import Database
from storage.sessions import SqlSessions
from storage.tokens import JwtVerifier, SigningKeys

AUDIT_KEY: Final = "audit-key"
"""The secret that seals the audit log: a file in the keys folder."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


def new_id() -> str:
    """A UUIDv7 of now."""
    return str(uuid_utils.uuid7())


class Connections:
    """What every process of the platform needs: logs, metrics, the database and the broker."""

    def __init__(self, settings: Settings, role: str, process: str) -> None:
        configure_logging(process, settings.logs_dir, settings.log_level)
        self.settings = settings
        self.clock = SystemClock()
        self.metrics = RayMetrics(process)
        self.database = Database(settings.database_url)
        self.broker = NatsBroker(settings.url_of("nats_url", role), settings.namespace, process, role)
        self.sessions = SessionBatches(self.database, self.metrics)
        self.router = BrokerRouter(self.broker, self.clock, self.metrics)

    async def open(self) -> None:
        await self.database.check()
        await self.broker.start()

    async def close(self) -> None:
        await self.sessions.close()
        await self.broker.close()
        await self.database.close()
        self.metrics.close()

    def verifier(self) -> JwtVerifier:
        return JwtVerifier(SigningKeys.open(keys_folder(self.settings)), self.sessions, self.clock)


class SessionBatches:
    """`ports.SessionSource`: thousands who come back at once cost the database a few look-ups (`session_lookups`)."""

    def __init__(self, database: Database, metrics: Metrics | None = None) -> None:
        self._sessions = SqlSessions(database)
        self._metrics = metrics or NoMetrics()
        self._batches: Batcher[str, DeviceSession] = Batcher(self._look_up)

    async def get(self, session_id: str) -> DeviceSession | None:
        # Several may wait for the same one: who stops waiting must not stop the others.
        return await asyncio.shield(self._batches.get(session_id))

    async def _look_up(self, session_ids: Sequence[str]) -> dict[str, DeviceSession]:
        self._metrics.count("session_lookups")
        return await self._sessions.get_many(session_ids)

    async def close(self) -> None:
        await self._batches.close()


def keys_folder(settings: Settings) -> Path:
    return settings.data_dir / "keys"


def secret(settings: Settings, name: str) -> bytes:
    """32 random bytes that all processes share, made at first use with mode 0600."""
    path = keys_folder(settings) / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        if not path.exists():
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(os.urandom(32))
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
            _sync_folder(path.parent)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
    return path.read_bytes()


def _sync_folder(folder: Path) -> None:
    """What has been made in the folder is there after a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def forget_revoked(broker: NatsBroker, verifier: JwtVerifier) -> None:
    """A revoked session is refused from the moment it is announced, not when the verifier next asks the database."""

    def told(received: Received) -> None:
        verifier.forget(received.data.decode(errors="replace"))

    await broker.subscribe(REVOKED_SUBJECT, told)
