"""Users in the database."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.acts import Act
from domain.aggregate import WorkerProfile
from domain.errors import Code, Refusal
from domain.ports import Clock, StoreUnavailable, User
from storage.audit import SqlAudit, write_down
from storage.crypto import CipherSource, FieldCipher, FieldDamaged
from storage.engine import Database
from storage.facts import licences_of
from storage.key_ring import index_mark_of
from storage.reencryption import PHONE, open_field, phone_place
from storage.tables import user
from storage.transactions import in_transaction, reading

_BATCH: Final = 500
_ATTEMPTS: Final = 4


class _IndexKeyChanged(Exception):
    """A phone's index was made by a key that is not the present one any more: nothing was stored."""


class SqlAccounts:
    """`ports.Accounts`. A new user is a customer without a name. Every method may raise `StoreUnavailable`.

    Phones are stored encrypted and found by their blind index. `FieldDamaged` where one was changed behind our back.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        new_id: Callable[[], str],
        keys: CipherSource,
        audit: SqlAudit | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._new_id = new_id
        self._keys = keys
        self._audit = audit

    async def find_or_create(self, phone: str, locale: str) -> tuple[User, bool]:
        cipher = await self._keys.cipher()
        for _ in range(_ATTEMPTS):
            found = await self._find(phone, cipher)
            if found is not None:
                return found, False
            looked_by, cipher = cipher.index_mark, await self._keys.newest()
            if cipher.index_mark != looked_by:
                continue  # look again by the new index key
            new = User(self._new_id(), phone, "", locale, ("customer",), self._clock.now_ms())
            try:
                await self._insert(new, cipher)
            except _IndexKeyChanged:
                cipher = await self._keys.reloaded()
                continue
            except IntegrityError:
                # Somebody else with the same phone was faster: the unique key decides who the user is.
                winner = await self._find(phone, cipher)
                if winner is None:
                    raise
                return winner, False
            return new, True
        raise StoreUnavailable("the keys of the blind indexes change all the time")

    async def _insert(self, new: User, cipher: FieldCipher) -> None:
        row = _row(new, cipher)

        async def insert(connection: AsyncConnection) -> None:
            if await index_mark_of(connection) != cipher.index_mark:
                raise _IndexKeyChanged
            await connection.execute(sa.insert(user).values(row))

        await in_transaction(self._database, insert)

    async def locale_of(self, phone: str) -> str | None:
        indexes = (await self._keys.cipher()).blind_indexes(*PHONE, phone)
        # One statement either way, and nothing is decrypted: who asks by a number must not see if it has an account.
        theirs = sa.or_(user.c.phone_index.in_(indexes), user.c.phone == phone)
        async with reading(self._database) as connection:
            return await connection.scalar(sa.select(user.c.locale).where(theirs).limit(1))

    async def get(self, user_ids: Sequence[str]) -> dict[str, User]:
        users: dict[str, User] = {}
        if not user_ids:
            return users
        async with reading(self._database) as connection:
            for some in _batches(sorted(set(user_ids))):
                rows = (await connection.execute(sa.select(user).where(user.c.id.in_(some)))).all()
                users.update([(row.id, await self._user(row)) for row in rows])
        return users

    async def update(self, user_id: str, *, name: str | None, locale: str | None, avatar: str | None) -> User:
        """Set what is not None. Refusal `not_found` for an unknown user."""
        given = {"name": name, "locale": locale, "avatar": avatar}
        return await self._change(user_id, lambda _: {key: value for key, value in given.items() if value is not None})

    async def become_worker(self, user_id: str, profile: WorkerProfile) -> User:
        """Refusal `not_found` for an unknown user."""
        columns = {
            "worker": msgspec.json.encode(profile).decode(),
            "base_lat": profile.base_lat,
            "base_lon": profile.base_lon,
            "radius_m": profile.radius_m,
            "hourly_rate": profile.hourly_rate,
        }
        return await self._change(user_id, lambda known: columns | {"roles": _with_role(known, "worker")})

    async def grant(self, user_id: str, role: str, act: Act | None = None) -> User:
        """Refusal `not_found` for an unknown user. `act` is written down in the same transaction."""
        return await self._change(user_id, lambda known: {"roles": _with_role(known, role)}, act)

    async def find(self, phone: str) -> User | None:
        """The user of a phone, if there is one."""
        return await self._find(phone, await self._keys.cipher())

    async def _find(self, phone: str, cipher: FieldCipher) -> User | None:
        by_index = sa.select(user).where(user.c.phone_index.in_(cipher.blind_indexes(*PHONE, phone)))
        async with reading(self._database) as connection:
            row = (await connection.execute(by_index)).one_or_none()
            if row is None:  # one of an earlier version that has not been moved yet
                row = (await connection.execute(sa.select(user).where(user.c.phone == phone))).one_or_none()
        if row is None:
            return None
        found = await self._user(row)
        if found.phone != phone:
            # Whoever can write to the database could else put their own index beside somebody else's account.
            raise FieldDamaged(f"the index of {phone_place(found.id)} is another number's")
        return found

    async def _change(self, user_id: str, columns: Callable[[User], dict[str, Any]], act: Act | None = None) -> User:
        """Read the user, change some columns, and read them again, while nobody else can change them."""
        this = user.c.id == user_id
        await self._keys.cipher()  # it may have to be made, which takes a transaction of its own

        async def change(connection: AsyncConnection) -> User:
            row = (await connection.execute(sa.select(user).where(this).with_for_update())).one_or_none()
            if row is None:
                raise Refusal(Code.NOT_FOUND)
            values = columns(await self._user(row)) | {"updated_at": self._clock.now_ms()}
            await connection.execute(sa.update(user).where(this).values(values))
            changed = await self._user((await connection.execute(sa.select(user).where(this))).one())
            await write_down(self._audit, connection, act)
            return changed

        return await in_transaction(self._database, change)

    async def _user(self, row: sa.Row[Any]) -> User:
        if row.phone_sealed is None:
            return _user(row, row.phone or "")  # erased: nobody's
        cipher = await self._keys.cipher()
        return _user(row, await open_field(phone_place(row.id), row.phone_sealed, cipher, self._keys))


def _with_role(known: User, role: str) -> str:
    roles = known.roles if role in known.roles else (*known.roles, role)
    return msgspec.json.encode(roles).decode()


def _row(new: User, cipher: FieldCipher) -> dict[str, Any]:
    return {
        "id": new.id,
        "phone_sealed": cipher.seal(phone_place(new.id), new.phone),
        "phone_index": cipher.blind_index(*PHONE, new.phone),
        "name": new.name,
        "locale": new.locale,
        "roles": msgspec.json.encode(new.roles).decode(),
        "rating_sum": 0,
        "rating_count": 0,
        "created_at": new.created_at,
        "updated_at": new.created_at,
    }


def _user(row: sa.Row[Any], phone: str) -> User:
    return User(
        id=row.id,
        phone=phone,
        name=row.name,
        locale=row.locale,
        roles=msgspec.json.decode(row.roles, type=tuple[str, ...]),
        created_at=row.created_at,
        avatar=row.avatar,
        worker=None if row.worker is None else msgspec.json.decode(row.worker, type=WorkerProfile),
        rating_sum=row.rating_sum,
        rating_count=row.rating_count,
        identity_until=row.identity_until,
        licences=licences_of(row.licences),
    )


def _batches(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[at : at + _BATCH] for at in range(0, len(ids), _BATCH)]
