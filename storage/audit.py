"""The audit log in the database: a chain of rows, each sealed with a key that the database does not have.

A row's digest covers its content and the seal of the row before; a seal is made from a digest by the key, and only the last
one is stored, in the head. Whoever can write to the database and has no key can change no row, take none out, put none in,
and cannot cut off the end either: that would take a seal that is stored nowhere any more. Writers take turns at the head's
row, whose lock they hold until their transaction ends.

Acts that are old enough are removed from the front: the base says up to which, with the digest of the last one, from which
the key makes the seal that the first row that is left covers. Its proof is an HMAC too: nobody else can move it on.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.acts import ACTOR_MOST, DETAILS_MOST_BYTES, OBJECT_MOST, OK, Act, Deed
from domain.audit import Mark, Recorded, Verdict, Wanted
from domain.errors import invalid
from domain.ports import Clock, Page, StoreUnavailable
from domain.times import DAY_MS
from storage import read_models
from storage.engine import Database
from storage.statements import run
from storage.tables import audit, audit_base, audit_head
from storage.transactions import in_transaction, reading

WAITING_MOST: Final = 1_000
"""Acts that may wait for their turn to be written, in one process."""
GROUP_MOST: Final = 100
"""Acts in one transaction."""
PAGE: Final = 500
"""Rows that a walk along the chain reads at a time."""

SWEEP_S: Final = 3_600.0
"""Between two looks for acts that are too old."""
SWEPT_MOST: Final = 1_000
"""Acts that are removed in one transaction."""
_RESTARTS: Final = 10

NOTHING: Final = bytes(32)
"""The seal before the first row."""
_ONLY: Final = 1
_log = logging.getLogger(__name__)
_a: Final = audit.c
_h: Final = audit_head.c
_b: Final = audit_base.c


class SqlAudit:
    """`domain.audit.AuditLog` on SQLite and MariaDB/MySQL. `key` seals the chain: 32 bytes that are not in the database."""

    def __init__(self, database: Database, key: bytes, clock: Clock, new_id: Callable[[], str]) -> None:
        self._database = database
        self._key = key
        self._key_name = hmac.digest(key, b"name", sha256).hex()[:16]
        self._clock = clock
        self._new_id = new_id
        self._waiting: list[tuple[Act, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def write(self, act: Act) -> None:
        if len(self._waiting) >= WAITING_MOST:
            raise StoreUnavailable(f"{WAITING_MOST} acts wait to be written to the audit log")
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((act, written))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all(), name="audit")
        await written

    async def _write_all(self) -> None:
        """Acts that come while a group is being written make the next one."""
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:GROUP_MOST], self._waiting[GROUP_MOST:]
                error = await self._attempt([act for act, _ in group])
                for _, written in group:
                    if written.done():  # who waited has gone
                        continue
                    if error is None:
                        written.set_result(None)
                    else:
                        written.set_exception(error)
        finally:
            self._writer = None

    async def _attempt(self, acts: Sequence[Act]) -> Exception | None:
        try:
            await in_transaction(self._database, lambda connection: self.append(connection, acts))
        except Exception as error:
            return error
        return None

    async def append(self, connection: AsyncConnection, acts: Sequence[Act]) -> None:
        """Write the acts in the caller's transaction, as its last statements: others wait for the head from here on.

        Raises:
            StoreUnavailable: the chain's head is not where its rows end: somebody has tampered with it. Or the chain is
                sealed with another key: a row of this process would look like a forgery.
        """
        # A row that is touched is locked, and so is one that two would make at once: they go one after the other.
        await run(connection, self._database.sql.upsert(audit_head, _touched), [(_ONLY, 0, NOTHING, self._key_name)])
        head = (await connection.execute(sa.select(_h.n, _h.seal, _h.sealed_by))).one()
        if head.sealed_by != self._key_name:
            raise StoreUnavailable("the audit log is sealed with the key of another data folder")
        number, seal = head.n, bytes(head.seal)
        rows = []
        for act in acts:
            number += 1
            row = _row(number, self._new_id(), self._clock.now_ms(), act)
            row["digest"] = _digest(self._key, seal, row)
            seal = _seal(self._key, row["digest"])
            rows.append(row)
        try:
            await connection.execute(sa.insert(audit), rows)
        except IntegrityError as error:
            raise StoreUnavailable("the audit log goes on beyond its head; see `renoveasy audit verify`") from error
        await connection.execute(sa.update(audit_head).where(_h.one == _ONLY).values(n=number, seal=seal))

    async def find(self, wanted: Wanted, cursor: str | None, limit: int) -> Page:
        query = sa.select(audit)
        if wanted.actor is not None:
            query = query.where(_a.actor == wanted.actor)
        if wanted.act is not None:
            query = query.where(_a.act == wanted.act)
        if wanted.since_ms is not None:
            query = query.where(_a.at >= wanted.since_ms)
        if wanted.until_ms is not None:
            query = query.where(_a.at < wanted.until_ms)
        if cursor is not None:
            at, number = _place(cursor)
            query = query.where(sa.or_(_a.at < at, sa.and_(_a.at == at, _a.n < number)))
        async with reading(self._database) as connection:
            rows = (await connection.execute(query.order_by(_a.at.desc(), _a.n.desc()).limit(limit + 1))).all()
        items = [_recorded(row) for row in rows[:limit]]
        if len(rows) <= limit:
            return Page(items, None)
        return Page(items, read_models.encode_cursor(read_models.Mark(items[-1].at, str(items[-1].number))))

    async def verify(self, known: Mark | None = None) -> Verdict:
        """Walk along the whole chain; `known` is where it stood earlier, kept elsewhere: it must lie on the way.

        Acts may go on being written meanwhile. Without the mark, an old copy of the whole log in the place of the present
        one would not be noticed.
        """
        for _ in range(_RESTARTS):
            base = await self._base()
            if base is None:
                return Verdict(
                    Mark(0, b""), "where it begins was changed: that is not what was removed by the platform"
                )
            verdict = await self._walk(base, known)
            if not verdict.wrong or await self._base() == base:
                return verdict
            # Old acts were removed meanwhile, perhaps those that it was about to look at.
        raise StoreUnavailable("acts are removed from the audit log all the time")

    async def _base(self) -> Mark | None:
        """The last act that was removed; None where that is not what the platform has written."""
        async with reading(self._database) as connection:
            return await self._read_base(connection)

    async def _read_base(self, connection: AsyncConnection) -> Mark | None:
        row = (await connection.execute(sa.select(_b.n, _b.digest, _b.proof))).one_or_none()
        if row is None:
            return Mark(0, b"")
        base = Mark(row.n, bytes(row.digest))
        return base if hmac.compare_digest(bytes(row.proof), _proof(self._key, base)) else None

    async def _walk(self, base: Mark, known: Mark | None) -> Verdict:
        async with reading(self._database) as connection:
            most = (await connection.execute(sa.select(sa.func.max(_a.n)))).scalar_one() or 0
            head = (await connection.execute(sa.select(_h.n, _h.seal))).one_or_none()
        end, stored = (head.n, bytes(head.seal)) if head is not None else (0, NOTHING)
        at, seal = base, _seal_after(self._key, base)
        found = known is None or known.number < base.number or known.number == 0 or known == base
        async for row in self._rows(base.number, end):
            if row["n"] != at.number + 1:
                return Verdict(at, f"row {at.number + 1} is gone")
            if not hmac.compare_digest(row["digest"], _digest(self._key, seal, row)):
                return Verdict(at, f"row {row['n']} is not what was written, or a row before it")
            at, seal = Mark(row["n"], row["digest"]), _seal(self._key, row["digest"])
            found = found or at == known
        if at.number != end or most > end:
            return Verdict(at, f"the head stands at {end}, the rows end at {max(at.number, most)}")
        if not hmac.compare_digest(seal, stored):
            return Verdict(at, f"rows after {end} were cut off: the seal is not that of row {end}")
        if not found:
            return Verdict(at, f"row {known.number if known else 0} is not the one that was there at the last look")
        return Verdict(at)

    async def sweep(self, before_ms: int, most: int = SWEPT_MOST) -> int:
        """Remove the oldest acts, as far as all of them are from before that time; how many. The last act of all stays.

        What is left is as verifiable as before, and that acts were removed is an act of its own, in the same transaction.

        Raises:
            StoreUnavailable: among them is one that is not what was written; nothing is removed.
        """

        async def work(connection: AsyncConnection) -> int:
            touch = self._database.sql.upsert(audit_head, _touched)
            await run(connection, touch, [(_ONLY, 0, NOTHING, self._key_name)])
            end = (await connection.execute(sa.select(_h.n))).scalar_one()
            base = await self._read_base(connection)
            if base is None:
                raise StoreUnavailable("where the audit log begins was changed; see `renoveasy audit verify`")
            query = sa.select(audit).where(_a.n > base.number, _a.n < end).order_by(_a.n).limit(most)
            at, seal = base, _seal_after(self._key, base)
            for row in map(_plain, (await connection.execute(query)).mappings()):
                if row["at"] >= before_ms:
                    break
                if row["n"] != at.number + 1 or not hmac.compare_digest(row["digest"], _digest(self._key, seal, row)):
                    raise StoreUnavailable("an old act was changed or is gone; see `renoveasy audit verify`")
                at, seal = Mark(row["n"], row["digest"]), _seal(self._key, row["digest"])
            gone = at.number - base.number
            if gone:
                new = (_ONLY, at.number, at.digest, _proof(self._key, at))
                await run(connection, self._database.sql.upsert(audit_base, _moved_on), [new])
                await connection.execute(sa.delete(audit).where(_a.n <= at.number))
                details = {"rows": str(gone), "mark": str(at)}
                await self.append(connection, [Act(Deed.AUDIT_SWEPT, OK, object="audit", details=details)])
            return gone

        return await in_transaction(self._database, work)

    async def sweep_for_ever(self, keep_ms: int, pause_s: float = SWEEP_S) -> None:
        """Remove acts that are older than `keep_ms`, a day's at once. What goes wrong is logged, and tried again."""
        while True:
            try:
                await self.sweep_old(keep_ms)
            except StoreUnavailable as error:
                _log.warning("old acts stay in the audit log: %s", error)
            except Exception:
                _log.exception("old acts stay in the audit log")
            await asyncio.sleep(pause_s)

    async def sweep_old(self, keep_ms: int) -> int:
        """Remove what is older than `keep_ms`, if the oldest is so by a day: not an act for each act. How many."""
        now_ms, swept = self._clock.now_ms(), 0
        async with reading(self._database) as connection:
            oldest = await connection.scalar(sa.select(_a.at).order_by(_a.n).limit(1))
        if oldest is None or oldest >= now_ms - keep_ms - DAY_MS:
            return 0
        while True:
            gone = await self.sweep(now_ms - keep_ms)
            swept += gone
            if gone < SWEPT_MOST:
                return swept

    async def _rows(self, after: int, end: int) -> AsyncIterator[dict[str, Any]]:
        """Every row behind `after` up to `end`, in order."""
        while True:
            query = sa.select(audit).where(_a.n > after, _a.n <= end).order_by(_a.n).limit(PAGE)
            async with reading(self._database) as connection:
                rows = (await connection.execute(query)).mappings().all()
            for row in rows:
                yield _plain(row)
            if len(rows) < PAGE:
                return
            after = rows[-1]["n"]

    async def close(self) -> None:
        """What waits is written."""
        if self._writer is not None:
            await self._writer


async def write_down(audit: SqlAudit | None, connection: AsyncConnection, act: Act | None) -> None:
    """Write an act, if there is one, as the last statement of the transaction that does it."""
    if act is None:
        return
    if audit is None:
        raise TypeError("an act is to be written down, and there is no audit log")
    await audit.append(connection, [act])


def _plain(row: sa.RowMapping) -> dict[str, Any]:
    """Bytes are bytes and times are numbers, as they were when they were sealed."""
    return {key: bytes(value) if isinstance(value, bytes | memoryview) else value for key, value in row.items()}


def _moved_on(new: Any, _old: Any) -> list[tuple[str, Any]]:
    return [("digest", new.digest), ("proof", new.proof), ("n", new.n)]


def _touched(_new: Any, old: Any) -> list[tuple[str, Any]]:
    return [("n", old.n)]


def _row(number: int, identifier: str, at: int, act: Act) -> dict[str, Any]:
    details = msgspec.json.encode(act.details, order="deterministic")
    return {
        "n": number,
        "id": identifier,
        "at": at,
        "actor": _ascii(act.actor, ACTOR_MOST),
        "session": _ascii(act.session, ACTOR_MOST),
        "ip": _ascii(act.ip, ACTOR_MOST),
        "act": _ascii(act.act, ACTOR_MOST),
        "object": _ascii(act.object, OBJECT_MOST),
        "outcome": _ascii(act.outcome, ACTOR_MOST),
        "details": details if len(details) <= DETAILS_MOST_BYTES else b'{"cut":"true"}',
    }


def _ascii(text: str, most: int) -> str:
    return text.encode("ascii", "replace").decode()[:most]


_SEALED: Final = ("n", "id", "at", "actor", "session", "ip", "act", "object", "outcome", "details")


def _digest(key: bytes, seal: bytes, row: dict[str, Any]) -> bytes:
    content = msgspec.json.encode([row[name] for name in _SEALED])
    return hmac.digest(key, b"row\n" + seal + content, sha256)


def _seal_after(key: bytes, base: Mark) -> bytes:
    """The seal that the row after the base covers."""
    return _seal(key, base.digest) if base.number else NOTHING


def _proof(key: bytes, base: Mark) -> bytes:
    return hmac.digest(key, f"base\n{base}".encode(), sha256)


def _seal(key: bytes, digest: bytes) -> bytes:
    return hmac.digest(key, b"seal\n" + digest, sha256)


def _recorded(row: sa.Row[Any]) -> Recorded:
    details = msgspec.json.decode(row.details, type=dict[str, str])
    act = Act(row.act, row.outcome, row.actor, row.session, row.ip, row.object, details)
    return Recorded(row.n, row.id, row.at, act)


def _place(cursor: str) -> tuple[int, int]:
    mark = read_models.decode_cursor(cursor)
    if not mark.id.isdecimal() or len(mark.id) > 18:
        raise invalid("cursor", "invalid", "this is not a cursor of this list")
    return mark.at, int(mark.id)
