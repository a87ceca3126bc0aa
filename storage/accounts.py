"""Users in the database."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.aggregate import WorkerProfile
from domain.errors import Code, Refusal
from domain.ports import Clock, User
from storage.engine import Database
from storage.tables import user
from storage.transactions import in_transaction, reading

_BATCH: Final = 500


class SqlAccounts:
    """`ports.Accounts`. A new user is a customer without a name. Every method may raise `StoreUnavailable`."""

    def __init__(self, database: Database, clock: Clock, new_id: Callable[[], str]) -> None:
        self._database = database
        self._clock = clock
        self._new_id = new_id

    async def find_or_create(self, phone: str, locale: str) -> tuple[User, bool]:
        found = await self._find(phone)
        if found is not None:
            return found, False
        new = User(self._new_id(), phone, "", locale, ("customer",), self._clock.now_ms())

        async def insert(connection: AsyncConnection) -> None:
            await connection.execute(sa.insert(user).values(_row(new)))

        try:
            await in_transaction(self._database, insert)
        except IntegrityError:
            # Somebody else with the same phone was faster: the unique key decides who the user is.
            winner = await self._find(phone)
            if winner is None:
                raise
            return winner, False
        return new, True

    async def get(self, user_ids: Sequence[str]) -> dict[str, User]:
        users: dict[str, User] = {}
        if not user_ids:
            return users
        async with reading(self._database) as connection:
            for some in _batches(sorted(set(user_ids))):
                rows = await connection.execute(sa.select(user).where(user.c.id.in_(some)))
                users.update((row.id, _user(row)) for row in rows)
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

    async def grant(self, user_id: str, role: str) -> User:
        """Refusal `not_found` for an unknown user."""
        return await self._change(user_id, lambda known: {"roles": _with_role(known, role)})

    async def _find(self, phone: str) -> User | None:
        async with reading(self._database) as connection:
            row = (await connection.execute(sa.select(user).where(user.c.phone == phone))).one_or_none()
            return None if row is None else _user(row)

    async def _change(self, user_id: str, columns: Callable[[User], dict[str, Any]]) -> User:
        """Read the user, change some columns, and read them again, while nobody else can change them."""
        this = user.c.id == user_id

        async def change(connection: AsyncConnection) -> User:
            row = (await connection.execute(sa.select(user).where(this).with_for_update())).one_or_none()
            if row is None:
                raise Refusal(Code.NOT_FOUND)
            values = columns(_user(row)) | {"updated_at": self._clock.now_ms()}
            await connection.execute(sa.update(user).where(this).values(values))
            return _user((await connection.execute(sa.select(user).where(this))).one())

        return await in_transaction(self._database, change)


def _with_role(known: User, role: str) -> str:
    roles = known.roles if role in known.roles else (*known.roles, role)
    return msgspec.json.encode(roles).decode()


def _row(new: User) -> dict[str, Any]:
    return {
        "id": new.id,
        "phone": new.phone,
        "name": new.name,
        "locale": new.locale,
        "roles": msgspec.json.encode(new.roles).decode(),
        "rating_sum": 0,
        "rating_count": 0,
        "created_at": new.created_at,
        "updated_at": new.created_at,
    }


def _user(row: sa.Row[Any]) -> User:
    return User(
        id=row.id,
        phone=row.phone,
        name=row.name,
        locale=row.locale,
        roles=msgspec.json.decode(row.roles, type=tuple[str, ...]),
        created_at=row.created_at,
        avatar=row.avatar,
        worker=None if row.worker is None else msgspec.json.decode(row.worker, type=WorkerProfile),
        rating_sum=row.rating_sum,
        rating_count=row.rating_count,
    )


def _batches(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[at : at + _BATCH] for at in range(0, len(ids), _BATCH)]
