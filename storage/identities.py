"""Which subjects of third parties are linked to which accounts."""

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.errors import Code, Refusal
from domain.identities import LinkedIdentity, PendingLink
from storage.engine import Database
from storage.tables import linked_identity
from storage.transactions import in_transaction, reading

_i = linked_identity.c


class SqlIdentities:
    """`domain.identities.Identities` on SQLite and MariaDB/MySQL."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def find(self, digest: bytes) -> str | None:
        async with reading(self._db) as connection:
            return await connection.scalar(sa.select(_i.user_id).where(_i.digest == digest))

    async def link(self, link: PendingLink, user_id: str, now_ms: int) -> None:
        row = {"digest": link.digest, "user_id": user_id, "provider": link.provider, "linked_at": now_ms}

        async def insert(connection: AsyncConnection) -> None:
            await connection.execute(sa.insert(linked_identity).values(row))

        try:
            await in_transaction(self._db, insert)
        except IntegrityError:
            # The unique keys decide, whoever came at the same time.
            holder = await self.find(link.digest)
            if holder == user_id:
                return
            detail = (
                "another account of this provider is linked already" if holder is None else "linked to another account"
            )
            raise Refusal(Code.CONFLICT, detail) from None

    async def list_of(self, user_id: str) -> list[LinkedIdentity]:
        query = sa.select(_i.provider, _i.linked_at).where(_i.user_id == user_id).order_by(_i.linked_at, _i.provider)
        async with reading(self._db) as connection:
            return [LinkedIdentity(row.provider, row.linked_at) for row in await connection.execute(query)]

    async def unlink(self, user_id: str, provider: str) -> bool:
        gone = sa.delete(linked_identity).where(_i.user_id == user_id, _i.provider == provider)

        async def work(connection: AsyncConnection) -> bool:
            return bool((await connection.execute(gone)).rowcount)

        return await in_transaction(self._db, work)
