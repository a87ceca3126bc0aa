"""What a client keeps on its device: writes without a final answer, and places in streams.

SQLite holds it, which every Python has: a torn write, a power loss between two writes, the clearing away of what is settled
and a place and its view that must change together are its business. A file of lines of our own would need all of that again.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from gateway.client_wire import Position, Write

T = TypeVar("T")


class Place(msgspec.Struct, frozen=True):
    """Where a stream was left: the position, and the view of everything up to it as its `version` encodes it."""

    position: Position
    version: int = 0
    view: bytes | None = None


class Kept(msgspec.Struct):
    """What an earlier process left: whose it is (empty: nobody's yet), the writes in their order, and the places."""

    owner: str = ""
    writes: list[Write] = []
    places: dict[str, Place] = {}


class Batch(msgspec.Struct):
    """Changes that become durable together. A place that is None is forgotten."""

    owner: str = ""
    saved: list[Write] = []
    settled: list[Write] = []
    places: dict[str, Place | None] = {}

    def __bool__(self) -> bool:
        return bool(self.owner or self.saved or self.settled or self.places)


class OutboxBroken(Exception):
    """The outbox cannot be read or written, or another process has it; the text says which."""


class OutboxFile(Protocol):
    """Where a client keeps things. One client has it at a time, and calls one method at a time."""

    async def open(self) -> Kept:
        """Everything that was committed; raises OutboxBroken."""

    async def commit(self, batch: Batch) -> None:
        """All of the batch, durable when this returns, or nothing and OutboxBroken.

        A write whose id is there already replaces it if its watermark is higher, and is ignored else; a settled one goes
        unless a higher watermark has come meanwhile.
        """

    async def close(self) -> None: ...


class MemoryOutbox:
    """For tests, and for clients that need not survive: keeps its promise as long as the object lives."""

    def __init__(self) -> None:
        self.kept = Kept()

    async def open(self) -> Kept:
        return msgspec.structs.replace(
            self.kept, writes=list(self.kept.writes), places=dict(self.kept.places)
        )  # fmt: skip

    async def commit(self, batch: Batch) -> None:
        kept = self.kept
        kept.owner = batch.owner or kept.owner
        writes = {write.id: write for write in kept.writes}
        for write in batch.saved:
            if write.id not in writes or write.watermark > writes[write.id].watermark:
                writes[write.id] = write
        for write in batch.settled:
            if write.id in writes and writes[write.id].watermark <= write.watermark:
                del writes[write.id]
        kept.writes = list(writes.values())
        for channel, place in batch.places.items():
            if place is None:
                kept.places.pop(channel, None)
            else:
                kept.places[channel] = place

    async def close(self) -> None: ...


_VERSION: Final = 1
_TABLES: Final = (
    "CREATE TABLE owner (one INTEGER PRIMARY KEY CHECK (one = 1), user_id TEXT NOT NULL)",
    "CREATE TABLE waiting (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, stream TEXT NOT NULL,"
    " method TEXT NOT NULL, data BLOB NOT NULL, watermark INTEGER NOT NULL)",
    "CREATE TABLE place (channel TEXT PRIMARY KEY, epoch TEXT NOT NULL, offset INTEGER NOT NULL,"
    " version INTEGER NOT NULL, view BLOB)",
    f"PRAGMA user_version = {_VERSION}",
)
_SAVE: Final = (
    "INSERT INTO waiting (id, stream, method, data, watermark) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
    " SET data = excluded.data, watermark = excluded.watermark WHERE excluded.watermark > waiting.watermark"
)


class SqliteOutbox:
    """A file that survives the process and, with `synchronous=FULL`, the power. Its statements run in a thread of its own."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "outbox")
        self._db: sqlite3.Connection | None = None

    async def open(self) -> Kept:
        return await self._run(self._open)

    async def commit(self, batch: Batch) -> None:
        await self._run(lambda: self._commit(batch))

    async def close(self) -> None:
        await self._run(self._close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise OutboxBroken(f"{self._path}: {error}") from error

    def _open(self) -> Kept:
        db = self._db = sqlite3.connect(self._path, timeout=1.0, isolation_level=None, check_same_thread=False)
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
            db.execute(f"PRAGMA {pragma}")
        with _Transaction(db):
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _TABLES:
                    db.execute(statement)
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"written by another release (version {version}, not {_VERSION})")
        owner = db.execute("SELECT user_id FROM owner").fetchone()
        writes = db.execute("SELECT id, stream, method, data, watermark FROM waiting ORDER BY seq").fetchall()
        places = db.execute("SELECT channel, epoch, offset, version, view FROM place").fetchall()
        return Kept(
            owner[0] if owner else "",
            [Write(*row) for row in writes],
            {
                channel: Place(Position(epoch, offset), version, view)
                for channel, epoch, offset, version, view in places
            },
        )

    def _commit(self, batch: Batch) -> None:
        db = self._db
        if db is None:
            raise sqlite3.ProgrammingError("the outbox is closed")
        with _Transaction(db):
            if batch.owner:
                db.execute("INSERT OR REPLACE INTO owner VALUES (1, ?)", (batch.owner,))
            db.executemany(_SAVE, [msgspec.structs.astuple(write) for write in batch.saved])
            db.executemany(
                "DELETE FROM waiting WHERE id = ? AND watermark <= ?",
                [(write.id, write.watermark) for write in batch.settled],
            )
            for channel, place in batch.places.items():
                if place is None:
                    db.execute("DELETE FROM place WHERE channel = ?", (channel,))
                else:
                    at = place.position
                    row = (channel, at.epoch, at.offset, place.version, place.view)
                    db.execute("INSERT OR REPLACE INTO place VALUES (?, ?, ?, ?, ?)", row)

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


class _Transaction:
    """Everything or nothing; takes the file's lock at once."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:
            self._db.execute("ROLLBACK")
