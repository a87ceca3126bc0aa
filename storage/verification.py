"""Documents of workers, and until when operations vouch for a worker, which follows from them."""

from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.acts import Act
from domain.errors import Code, Refusal, invalid
from domain.ports import Page
from domain.verification import DOCUMENTS_MOST, Review, State, WorkerDocument, standing, tail_of
from storage import tables as t
from storage.audit import SqlAudit, write_down
from storage.crypto import CipherSource, Place
from storage.engine import Database
from storage.read_models import Mark, decode_cursor, encode_cursor
from storage.reencryption import open_field
from storage.transactions import in_transaction, reading

_d: Final = t.worker_document.c


def number_place(document_id: str) -> Place:
    return Place("worker_document", document_id, "number")


def stream_of(document_id: str) -> str:
    """What names a document's upload, as streams name those of messages."""
    return f"worker_document:{document_id}"


class SqlWorkerDocuments:
    """`domain.verification.WorkerDocuments`. `FieldDamaged` where a number was changed behind our back."""

    def __init__(self, database: Database, keys: CipherSource, audit: SqlAudit) -> None:
        self._db = database
        self._keys = keys
        self._audit = audit

    async def add(self, document: WorkerDocument, number: str) -> tuple[WorkerDocument, bool]:
        cipher = await self._keys.newest()
        values = {name: getattr(document, name) for name in _COLUMNS} | {
            "number_sealed": cipher.seal(number_place(document.id), number) if number else None
        }
        use = {"upload_id": document.upload_id, "stream": stream_of(document.id), "message_id": ""}

        async def work(connection: AsyncConnection) -> Any:
            await _lock(connection, document.worker_id)
            known = (await connection.execute(sa.select(t.worker_document).where(_d.id == document.id))).one_or_none()
            if known is not None:
                return known
            count = sa.select(sa.func.count()).select_from(t.worker_document).where(_d.worker_id == document.worker_id)
            held = (await connection.execute(count)).scalar_one()
            if held >= DOCUMENTS_MOST:
                raise Refusal(Code.CONFLICT, f"you have handed in {held} documents, and {DOCUMENTS_MOST} is the most")
            await _require_own(connection, document)
            await connection.execute(sa.insert(t.worker_document).values(values))
            await connection.execute(sa.insert(t.upload_use).values(use))
            return None

        try:
            known = await in_transaction(self._db, work)
        except IntegrityError:
            raise invalid("upload_id", "taken", "this upload is in another document already") from None
        if known is None:
            return msgspec.structs.replace(document, number_tail=tail_of(number)), False
        stands, given = await self._document(known), msgspec.structs.replace(document, number_tail=tail_of(number))
        same = all(getattr(stands, name) == getattr(given, name) for name in _GIVEN)
        if not same or (known.reviewed_at is None and known.expires_at != document.expires_at):
            raise Refusal(Code.IDEMPOTENCY_MISMATCH, "this id was used for something else")
        return stands, True

    async def list_of(self, worker_id: str) -> list[WorkerDocument]:
        query = sa.select(t.worker_document).where(_d.worker_id == worker_id)
        async with reading(self._db) as connection:
            rows = (await connection.execute(query.order_by(_d.created_at.desc(), _d.id.desc()))).all()
        return [await self._document(row) for row in rows]

    async def find(self, state: State, cursor: str | None, limit: int) -> Page:
        query = sa.select(t.worker_document).where(_d.state == state)
        if cursor is not None:
            mark = decode_cursor(cursor)
            query = query.where(sa.or_(_d.created_at > mark.at, sa.and_(_d.created_at == mark.at, _d.id > mark.id)))
        async with reading(self._db) as connection:
            rows = (await connection.execute(query.order_by(_d.created_at, _d.id).limit(limit + 1))).all()
        items = [await self._document(row) for row in rows[:limit]]
        more = len(rows) > limit
        return Page(items, encode_cursor(Mark(items[-1].created_at, items[-1].id)) if more else None)

    async def review(self, document_id: str, review: Review, act: Act) -> WorkerDocument:
        this = _d.id == document_id
        state: State = "approved" if review.approved else "rejected"

        async def work(connection: AsyncConnection) -> Any:
            worker_id = await connection.scalar(sa.select(_d.worker_id).where(this))
            if worker_id is None:
                raise Refusal(Code.NOT_FOUND)
            if worker_id == review.by:
                raise Refusal(Code.FORBIDDEN, "nobody judges their own documents")
            await _lock(connection, worker_id)
            row = (await connection.execute(sa.select(t.worker_document).where(this).with_for_update())).one_or_none()
            if row is None:
                raise Refusal(Code.NOT_FOUND)
            expires_at = review.expires_at if review.approved else row.expires_at
            values = {"state": state, "reason": review.reason, "expires_at": expires_at}
            if row.state != "pending":
                if all(getattr(row, name) == value for name, value in values.items()) and row.reviewed_by == review.by:
                    return row
                raise Refusal(Code.CONFLICT, f"the document is {row.state}", current={"state": row.state})
            values |= {"reviewed_at": review.at, "reviewed_by": review.by}
            await connection.execute(sa.update(t.worker_document).where(this).values(values))
            await _vouch(connection, worker_id)
            row = (await connection.execute(sa.select(t.worker_document).where(this))).one()
            await write_down(self._audit, connection, act)
            return row

        return await self._document(await in_transaction(self._db, work))

    async def _document(self, row: sa.Row[Any]) -> WorkerDocument:
        return WorkerDocument(**{name: getattr(row, name) for name in _COLUMNS}, number_tail=await self._tail(row))

    async def _tail(self, row: sa.Row[Any]) -> str:
        if row.number_sealed is None:
            return ""
        cipher = await self._keys.cipher()
        return tail_of(await open_field(number_place(row.id), row.number_sealed, cipher, self._keys))


_COLUMNS: Final = tuple(name for name in WorkerDocument.__struct_fields__ if name != "number_tail")
_GIVEN: Final = ("worker_id", "kind", "skill", "upload_id", "number_tail")
"""What the same document sent again has in common with how it stands."""


async def _lock(connection: AsyncConnection, worker_id: str) -> None:
    """One at a time of each worker changes something."""
    await connection.execute(sa.select(t.user.c.id).where(t.user.c.id == worker_id).with_for_update())


async def _require_own(connection: AsyncConnection, document: WorkerDocument) -> None:
    u = t.upload.c
    query = sa.select(u.owner_id, u.purpose, u.ready, u.key_sealed, u.doomed_at).where(u.id == document.upload_id)
    found = (await connection.execute(query.with_for_update())).one_or_none()
    theirs = found is not None and (found.owner_id, found.purpose) == (document.worker_id, "document")
    if found is None or not theirs or not found.ready or found.key_sealed is None or found.doomed_at:
        raise invalid("upload_id", "unknown", "you have no upload of this id for the purpose document")


async def _vouch(connection: AsyncConnection, worker_id: str) -> None:
    """Write beside the worker what follows from their documents: rules and lists read it with the account."""
    approved = sa.select(_d.kind, _d.skill, _d.expires_at).where(_d.worker_id == worker_id, _d.state == "approved")
    identity_until, licences = standing(tuple(row) for row in await connection.execute(approved))
    values = {"identity_until": identity_until, "licences": msgspec.json.encode(licences).decode()}
    await connection.execute(sa.update(t.user).where(t.user.c.id == worker_id).values(values))
