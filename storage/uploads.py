"""Uploads: rows in the database, contents in an object store, each sealed under a key of its own that its row holds.

The key is itself an encrypted field, bound to the upload: what can read the object store alone reads nothing, new data keys
rewrite rows and no contents, and who takes the key away has erased the content, copies and backups of the store included.
"""

import asyncio
import os
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.aggregate import Need, UploadFact, UploadNeed
from domain.errors import Code, Refusal
from domain.ids import is_uuid
from domain.ports import Entry, ObjectStore, StoreUnavailable
from domain.uploads import DOOMED_MS, UNUSED_MS, ContentDamaged, Upload
from storage import tables as t
from storage.crypto import CipherSource, FieldDamaged, Place, open_content, seal_content
from storage.engine import Database
from storage.reencryption import open_field
from storage.statements import Preparer, Step
from storage.transactions import in_transaction, reading

CONVERSATION: Final = "conversation:"
ORDER: Final = "order:"
_u: Final = t.upload.c
_there: Final = sa.and_(_u.ready, _u.key_sealed.is_not(None))


def key_place(upload_id: str) -> Place:
    return Place("upload", upload_id, "key")


class SqlUploads:
    """`domain.uploads.Uploads` on SQLite and MariaDB/MySQL, over any object store."""

    def __init__(self, database: Database, objects: ObjectStore, keys: CipherSource) -> None:
        self._db = database
        self._objects = objects
        self._keys = keys

    async def get(self, upload_id: str) -> Upload | None:
        row = await self._row(upload_id)
        return None if row is None else _upload(row)

    async def add(self, upload: Upload, content: bytes, quota_bytes: int) -> tuple[Upload, bool]:
        secret, cipher = os.urandom(32), await self._keys.newest()
        values = msgspec.structs.asdict(upload) | {
            "object": os.urandom(16).hex(),
            "key_sealed": cipher.seal(key_place(upload.id), secret.hex()),
            "ready": False,
            "due_at": upload.created_at + UNUSED_MS,
            "doomed_at": 0,
        }

        async def reserve(connection: AsyncConnection) -> Any:
            """The row is there before its content: whoever dies in between leaves word of it."""
            # One at a time of each owner: what they have is counted, and there is one upload of an id.
            await connection.execute(sa.select(t.user.c.id).where(t.user.c.id == upload.owner_id).with_for_update())
            this = _u.id == upload.id
            row = (await connection.execute(sa.select(t.upload).where(this))).one_or_none()
            if row is not None:
                same = (row.owner_id, row.purpose, row.digest) == (upload.owner_id, upload.purpose, upload.digest)
                if not same or row.key_sealed is None:
                    raise Refusal(Code.IDEMPOTENCY_MISMATCH, "this id was used for something else")
                if not row.ready:
                    again = sa.update(t.upload).where(this).values(doomed_at=0, due_at=values["due_at"])
                    await connection.execute(again)
                return row
            owned = sa.select(sa.func.coalesce(sa.func.sum(_u.size_bytes), 0)).where(_u.owner_id == upload.owner_id)
            held = int((await connection.execute(owned)).scalar_one())
            if held + upload.size_bytes > quota_bytes:
                raise Refusal(Code.CONFLICT, f"your uploads take {held} bytes, and {quota_bytes} is the most")
            await connection.execute(sa.insert(t.upload).values(values))
            return (await connection.execute(sa.select(t.upload).where(this))).one()

        row = await in_transaction(self._db, reserve)
        if row.ready:
            return _upload(row), True
        secret = await self._secret(row)
        await self._objects.put(row.object, await asyncio.to_thread(seal_content, secret, f"upload {row.id}", content))
        if not await self._change(sa.update(t.upload).where(_u.id == row.id, _u.key_sealed.is_not(None)), ready=True):
            raise StoreUnavailable("the upload was removed while it was being stored")
        return _upload(row), False

    async def content(self, upload_id: str) -> bytes | None:
        row = await self._row(upload_id)
        if row is None:
            return None
        secret, sealed = await self._secret(row), await self._objects.get(row.object)
        if sealed is None:
            if await self._row(upload_id) is None:
                return None
            raise ContentDamaged(f"the content of upload {upload_id} is missing")
        try:
            return await asyncio.to_thread(open_content, secret, f"upload {row.id}", sealed)
        except FieldDamaged as error:
            raise ContentDamaged(str(error)) from None

    async def streams(self, upload_id: str, user_id: str, limit: int) -> list[str]:
        use, member = t.upload_use.c, t.conversation_member.c
        this = sa.select(use.stream).where(use.upload_id == upload_id).distinct().order_by(use.stream).limit(limit)
        theirs = sa.and_(
            member.conversation_id == sa.func.substr(use.stream, len(CONVERSATION) + 1),
            member.user_id == user_id,
            member.left_offset.is_(None),
        )
        rooms = this.where(use.stream.startswith(CONVERSATION), sa.exists().where(theirs))
        async with reading(self._db) as connection:
            found = list(await connection.scalars(rooms))
            return found + list(await connection.scalars(this.where(use.stream.startswith(ORDER))))

    async def list_of(self, user_id: str, after: str, limit: int) -> list[Upload]:
        query = sa.select(t.upload).where(_u.owner_id == user_id, _u.id > after, _there).order_by(_u.id).limit(limit)
        async with reading(self._db) as connection:
            return [_upload(row) for row in await connection.execute(query)]

    # --- what nobody names -------------------------------------------------------------------------------------------

    async def sweep(self, now_ms: int, limit: int) -> int:
        query = sa.select(t.upload).where(_u.due_at <= now_ms).order_by(_u.due_at, _u.id).limit(limit)
        async with reading(self._db) as connection:
            rows = (await connection.execute(query)).all()
        for row in rows:
            if not await self._judge(row, now_ms):
                await self._remove(row)
        return len(rows)

    async def _judge(self, row: sa.Row[Any], now_ms: int) -> bool:
        """Whether it stays for now. What does not has no key any more: nobody can read it, whatever happens next."""
        if row.key_sealed is None:
            return False
        this = (_u.id == row.id, _u.due_at == row.due_at, _u.doomed_at == row.doomed_at)

        async def work(connection: AsyncConnection) -> bool:
            use = sa.select(t.upload_use.c.stream).where(t.upload_use.c.upload_id == row.id).limit(1)
            if (await connection.execute(use)).one_or_none() is not None:
                values: dict[str, Any] = {"due_at": None, "doomed_at": 0}
            elif not row.doomed_at:
                values = {"due_at": now_ms + DOOMED_MS, "doomed_at": now_ms}
            else:
                values = {"key_sealed": None}
            moved = (await connection.execute(sa.update(t.upload).where(*this).values(values))).rowcount
            return not moved or "key_sealed" not in values

        return await in_transaction(self._db, work)

    async def forget(self, user_id: str) -> None:
        theirs = sa.select(t.upload).where(_u.owner_id == user_id).order_by(_u.id).limit(100)
        while True:
            async with reading(self._db) as connection:
                rows = (await connection.execute(theirs)).all()
            if not rows:
                return
            for row in rows:
                await self._change(sa.update(t.upload).where(_u.id == row.id), key_sealed=None)
                await self._remove(row)

    async def _remove(self, row: sa.Row[Any]) -> None:
        """The content, then the row that knows where it is."""
        await self._objects.remove(row.object)

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(sa.delete(t.upload_use).where(t.upload_use.c.upload_id == row.id))
            await connection.execute(sa.delete(t.upload).where(_u.id == row.id))

        await in_transaction(self._db, work)

    # --- rows and keys -----------------------------------------------------------------------------------------------

    async def _row(self, upload_id: str) -> sa.Row[Any] | None:
        async with reading(self._db) as connection:
            return (await connection.execute(sa.select(t.upload).where(_u.id == upload_id, _there))).one_or_none()

    async def _secret(self, row: sa.Row[Any]) -> bytes:
        cipher = await self._keys.cipher()
        return bytes.fromhex(await open_field(key_place(row.id), row.key_sealed, cipher, self._keys))

    async def _change(self, statement: Any, **values: Any) -> bool:
        async def work(connection: AsyncConnection) -> bool:
            return bool((await connection.execute(statement.values(values))).rowcount)

        return await in_transaction(self._db, work)


def _upload(row: sa.Row[Any]) -> Upload:
    return Upload(
        row.id, row.owner_id, row.purpose, row.content_type, row.size_bytes, bytes(row.digest), row.created_at
    )


async def facts(connection: AsyncConnection, needs: Sequence[UploadNeed]) -> dict[Need, Any]:
    """Those that may be named."""
    if not needs:
        return {}
    ids = sorted({need.upload_id for need in needs})
    query = sa.select(_u.id, _u.owner_id, _u.purpose).where(_u.id.in_(ids), _there, _u.doomed_at == 0)
    return {UploadNeed(row.id): UploadFact(row.owner_id, row.purpose) for row in await connection.execute(query)}


# --- what the events of streams name -------------------------------------------------------------------------------


class _Private(msgspec.Struct):
    evidence: tuple[str, ...] = ()


class _Naming(msgspec.Struct):
    """As much of an event as names uploads."""

    message_id: str = ""
    attachments: tuple[str, ...] = ()
    photos: tuple[str, ...] = ()
    private: _Private | None = None


_decoder: Final = msgspec.json.Decoder(_Naming)
_MARKS: Final = (b'"attachments":', b'"photos":', b'"evidence":')


def named(entries: Iterable[Entry]) -> list[tuple[str, str, str]]:
    """(upload id, stream, message id) of every upload that these events name; most name none, and are not decoded."""
    uses: dict[tuple[str, str, str], None] = {}
    for entry in entries:
        if any(mark in entry.body for mark in _MARKS):
            for upload_id in of_event(entry.body):
                uses[upload_id, entry.stream, _decoder.decode(entry.body).message_id] = None
    return sorted(uses)


def of_event(body: bytes) -> tuple[str, ...]:
    """The uploads that an event names: ids, and what clients of earlier versions wrote in their place is left out."""
    event = _decoder.decode(body)
    evidence = event.private.evidence if event.private is not None else ()
    return tuple(each for each in (*event.attachments, *event.photos, *evidence) if is_uuid(each))


def rows(sql: Preparer, entries: Iterable[Entry]) -> list[Step]:
    """The rows of one flush."""
    return [(sql.upsert(t.upload_use, _use_upsert), named(entries))]


def let_go(sql: Preparer, uses: Sequence[tuple[str, str, str]], at_ms: int) -> list[Step]:
    """Statements for the transaction that deletes what named these: they are looked at again, and go if nobody else names
    them."""
    remove, look = sql.prepare(_remove_use), sql.prepare(_look_again)
    return [
        (remove, [remove.row({"named": u, "of_stream": s, "of_message": m}) for u, s, m in uses]),
        (look, [look.row({"named": u, "due": at_ms}) for u, _, _ in uses]),
    ]


def _use_upsert(new: Any, old: Any) -> list[tuple[str, Any]]:
    return [("message_id", old.message_id)]


def _remove_use(width: int) -> Any:
    c = t.upload_use.c
    known = (c.upload_id == sa.bindparam("named"), c.stream == sa.bindparam("of_stream"))
    return sa.delete(t.upload_use).where(*known, c.message_id == sa.bindparam("of_message"))


def _look_again(width: int) -> Any:
    return sa.update(t.upload).where(_u.id == sa.bindparam("named")).values(due_at=sa.bindparam("due"))
