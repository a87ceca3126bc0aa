"""Every encrypted field under the newest data key, and none in plain: a job that may be stopped, repeated and run by several."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from storage.crypto import HEADER_BYTES, CipherSource, FieldCipher, FieldDamaged, Place, UnknownKey, header_of
from storage.engine import Database
from storage.tables import setting, totp_secret, upload, user, worker_document
from storage.transactions import in_transaction, reading

PLAIN: Final = "plain_phones"
"""The setting that stands for as long as phones in plain, or their traces, may be in the database's files."""
PHONE: Final = ("user", "phone")
SEALED: Final = (upload.c.key_sealed, worker_document.c.number_sealed)
"""Encrypted columns that have only ever been so, each of a table whose rows have an `id`: `x_sealed` is the field `x`."""


class ReencryptionSettings(msgspec.Struct, frozen=True):
    """`batch` rows go in one transaction; `pause_s` lets others write between two of them."""

    batch: int = 200
    pause_s: float = 0.01


class Reencrypted(msgspec.Struct):
    """How far the job is: rows to do when it began, rows rewritten, and rows left alone because they cannot be read."""

    total: int
    done: int = 0
    damaged: list[str] = msgspec.field(default_factory=list)

    @property
    def phones_are_whole(self) -> bool:
        """Whether every phone could be read, so that none hangs on a former key any more."""
        return not any(place.startswith(".".join(PHONE) + " ") for place in self.damaged)


Report = Callable[[Reencrypted], None]
Former = Callable[[bytes], str]


def no_former(_: bytes) -> str:
    """No earlier version has sealed anything."""
    raise ValueError("not sealed by an earlier version")


def totp_place(user_id: str) -> Place:
    return Place("totp_secret", user_id, "sealed")


def phone_place(user_id: str) -> Place:
    return Place(PHONE[0], user_id, PHONE[1])


async def has_plain(database: Database) -> bool:
    """Whether phones have been stored in plain here and are not all gone yet."""
    async with reading(database) as connection:
        return await connection.scalar(sa.select(setting.c.key).where(setting.c.key == PLAIN)) is not None


async def open_field(place: Place, sealed: bytes, cipher: FieldCipher, source: CipherSource) -> str:
    """As `FieldCipher.open`, with whatever data key it is under.

    Raises:
        FieldDamaged: this is not what was sealed here.
        StoreUnavailable: its data key is not to be had.
    """
    try:
        return cipher.open(place, sealed)
    except UnknownKey as unknown:  # made by another process since
        return (await source.knowing(unknown.number)).open(place, sealed)


async def open_totp(user_id: str, sealed: bytes, cipher: FieldCipher, source: CipherSource, former: Former) -> str:
    """The secret of a user's second factor, whichever version has sealed it. Raises as `open_field`."""
    try:
        return former(sealed)  # it knows its own by 8 bytes of a hash
    except ValueError:
        return await open_field(totp_place(user_id), sealed, cipher, source)


async def reencrypt(
    database: Database,
    source: CipherSource,
    report: Report,
    settings: ReencryptionSettings | None = None,
    former: Former = no_former,
) -> Reencrypted:
    """Bring every encrypted field under the newest data key. Safe while the platform runs: a row that changed meanwhile is
    left alone.

    A run that was cut off has lost nothing: the next one takes what is left. Rows that cannot be read are named and kept.
    `former` opens what an earlier version sealed under a key of its own; ValueError for everything else.

    Raises:
        StoreUnavailable: the database went away, or a data key is not to be had.
    """
    limits = settings or ReencryptionSettings()
    cipher = await source.newest()
    fields: tuple[_Field, ...] = (_Phones(), _SecondFactors(former), *map(_Sealed, SEALED))
    progress = Reencrypted(0)
    async with reading(database) as connection:
        for field in fields:
            counted = sa.select(sa.func.count()).select_from(field.left(cipher).subquery())
            progress.total += await connection.scalar(counted) or 0
    report(progress)
    for field in fields:
        await _all_of(field, database, cipher, source, progress, report, limits)
    return progress


async def has_former_totp(database: Database) -> bool:
    """Whether there may be secrets of second factors that an earlier version has sealed."""
    one = sa.func.substr(totp_secret.c.sealed, 1, 3) != header_of(0)[:3]  # no data key has so high a number
    async with reading(database) as connection:
        return await connection.scalar(sa.select(totp_secret.c.user_id).where(one).limit(1)) is not None


async def scrub(database: Database) -> None:
    """Rewrite what held phones in plain, so that the freed parts of its files do not hold them any more. Does it once.

    SQLite: the whole file (VACUUM) and its log. MariaDB/MySQL: the table; its redo log and binary logs go their own way.
    Where somebody still reads SQLite's old log, or a row is still in plain, it is left for the next time.
    """
    async with reading(database) as connection:
        if await connection.scalar(sa.select(user.c.id).where(user.c.phone.is_not(None)).limit(1)) is not None:
            return
    async with database.turn(), reading(database) as connection:  # in autocommit: neither may stand in a transaction
        if database.is_sqlite:
            await connection.exec_driver_sql("VACUUM")
            (busy, *_) = (await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).one()
            if busy:
                return
        else:
            await connection.exec_driver_sql("ALTER TABLE `user` FORCE")

    async def forget(connection: AsyncConnection) -> None:
        await connection.execute(sa.delete(setting).where(setting.c.key == PLAIN))

    await in_transaction(database, forget)


class _Phones:
    """`user.phone`: plain where an earlier version left it so; found by a blind index, which goes with it."""

    place = staticmethod(phone_place)

    def left(self, cipher: FieldCipher) -> sa.Select[Any]:
        sealed = sa.and_(user.c.phone_sealed.is_not(None), _begins(user.c.phone_sealed) != header_of(cipher.newest))
        plain = sa.and_(user.c.phone_sealed.is_(None), user.c.phone.is_not(None))  # an erased account has neither
        columns = (user.c.id.label("row"), user.c.phone_sealed.label("sealed"), user.c.phone.label("plain"))
        return sa.select(*columns).where(sa.or_(sealed, plain))

    async def read(self, row: sa.Row[Any], cipher: FieldCipher, source: CipherSource) -> str:
        return row.plain if row.sealed is None else await open_field(phone_place(row.row), row.sealed, cipher, source)

    def values(self, text: str, cipher: FieldCipher) -> dict[str, Any]:
        return {"found_by": cipher.blind_index(*PHONE, text)}

    def store(self) -> sa.Update:
        plain: sa.BindParameter[Any] = sa.bindparam("plain")
        was: sa.BindParameter[Any] = sa.bindparam("was")
        same = sa.or_(user.c.phone_sealed == was, sa.and_(user.c.phone_sealed.is_(None), user.c.phone == plain))
        this = sa.update(user).where(user.c.id == sa.bindparam("this")).where(same)
        return this.values(phone=None, phone_sealed=sa.bindparam("sealed"), phone_index=sa.bindparam("found_by"))


class _SecondFactors:
    """`totp_secret.sealed`: under a key that came from a signing key where an earlier version left it so."""

    place = staticmethod(totp_place)

    def __init__(self, former: Former) -> None:
        self._former = former

    def left(self, cipher: FieldCipher) -> sa.Select[Any]:
        c = totp_secret.c
        columns = (c.user_id.label("row"), c.sealed.label("sealed"), sa.null().label("plain"))
        return sa.select(*columns).where(_begins(c.sealed) != header_of(cipher.newest))

    async def read(self, row: sa.Row[Any], cipher: FieldCipher, source: CipherSource) -> str:
        return await open_totp(row.row, row.sealed, cipher, source, self._former)

    def values(self, text: str, cipher: FieldCipher) -> dict[str, Any]:
        return {}

    def store(self) -> sa.Update:
        c = totp_secret.c
        this = sa.update(totp_secret).where(c.user_id == sa.bindparam("this"), c.sealed == sa.bindparam("was"))
        return this.values(sealed=sa.bindparam("sealed"))


class _Sealed:
    """A column of `SEALED`. A field that is empty, as when an upload's key was taken away, stays so."""

    def __init__(self, column: sa.Column[Any]) -> None:
        self._column = column

    def place(self, row: str) -> Place:
        return Place(self._column.table.name, row, self._column.name.removesuffix("_sealed"))

    def left(self, cipher: FieldCipher) -> sa.Select[Any]:
        columns = (self._column.table.c.id.label("row"), self._column.label("sealed"), sa.null().label("plain"))
        old = _begins(self._column) != header_of(cipher.newest)
        return sa.select(*columns).where(self._column.is_not(None), old)

    async def read(self, row: sa.Row[Any], cipher: FieldCipher, source: CipherSource) -> str:
        return await open_field(self.place(row.row), row.sealed, cipher, source)

    def values(self, text: str, cipher: FieldCipher) -> dict[str, Any]:
        return {}

    def store(self) -> sa.Update:
        table = self._column.table
        this = sa.update(table).where(table.c.id == sa.bindparam("this"), self._column == sa.bindparam("was"))
        return this.values({self._column.name: sa.bindparam("sealed")})


_Field = _Phones | _SecondFactors | _Sealed


async def _all_of(
    field: _Field,
    database: Database,
    cipher: FieldCipher,
    source: CipherSource,
    progress: Reencrypted,
    report: Report,
    limits: ReencryptionSettings,
) -> None:
    left, after = field.left(cipher), ""
    key = left.selected_columns.row
    while True:
        async with reading(database) as connection:
            some = left.where(key > after).order_by(key).limit(limits.batch)
            rows = list(await connection.execute(some))
        if not rows:
            return
        after = rows[-1].row
        changes = [await _change(field, row, cipher, source, progress) for row in rows]
        progress.done += await _store(database, field, [change for change in changes if change is not None])
        report(progress)
        await asyncio.sleep(limits.pause_s)


async def _change(
    field: _Field,
    row: sa.Row[Any],
    cipher: FieldCipher,
    source: CipherSource,
    progress: Reencrypted,
) -> dict[str, Any] | None:
    place = field.place(row.row)
    try:
        text = await field.read(row, cipher, source)
    except FieldDamaged:
        progress.damaged.append(str(place))
        return None
    change = {"this": row.row, "was": row.sealed, "sealed": cipher.seal(place, text)} | field.values(text, cipher)
    return change | ({"plain": row.plain} if isinstance(field, _Phones) else {})


async def _store(database: Database, field: _Field, changes: list[dict[str, Any]]) -> int:
    # Only what still is what was read: an erased or changed row must not come back.
    async def store(connection: AsyncConnection) -> None:
        await connection.execute(field.store(), changes)

    if changes:
        await in_transaction(database, store)
    return len(changes)


def _begins(sealed: sa.Column[Any]) -> sa.ColumnElement[bytes]:
    return sa.func.substr(sealed, 1, HEADER_BYTES)
