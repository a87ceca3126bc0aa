"""What a user has beside sessions, in the database: device keys, API keys, the secret of a second factor."""

import hmac
from hashlib import sha256
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.devices import ApiKey, DeviceKey, TotpSecret
from domain.errors import Code, Refusal
from storage import tables as t
from storage.crypto import CipherSource, FieldDamaged
from storage.engine import Database
from storage.reencryption import Former, no_former, open_totp, totp_place
from storage.transactions import in_transaction, reading

_USE_NOTED_MS: Final = 300_000
_LISTED: Final = 100


class SqlDeviceKeys:
    """`domain.devices.DeviceKeys`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add(self, key: DeviceKey, most: int) -> DeviceKey:
        hashed = sha256(key.public_key).digest()
        same = (t.device_key.c.user_id == key.user_id) & (t.device_key.c.hash == hashed)

        async def insert(connection: AsyncConnection) -> DeviceKey:
            await _lock_user(connection, key.user_id)
            known = (await connection.execute(sa.select(t.device_key).where(same))).one_or_none()
            if known is not None:
                return _device_key(known)
            await _require_room(connection, t.device_key, key.user_id, most)
            values = {
                "id": key.id,
                "user_id": key.user_id,
                "hash": hashed,
                "name": key.name,
                "public_key": key.public_key,
                "created_at": key.created_at,
            }
            await connection.execute(sa.insert(t.device_key).values(values))
            return key

        return await in_transaction(self._db, insert)

    async def get(self, key_id: str) -> DeviceKey | None:
        async with reading(self._db) as connection:
            row = (await connection.execute(sa.select(t.device_key).where(t.device_key.c.id == key_id))).one_or_none()
            return None if row is None else _device_key(row)

    async def list_of(self, user_id: str) -> list[DeviceKey]:
        async with reading(self._db) as connection:
            return [_device_key(row) for row in await connection.execute(_of(t.device_key, user_id))]

    async def remove(self, user_id: str, key_id: str | None) -> bool:
        return await _remove(self._db, t.device_key, user_id, key_id)


class SqlApiKeys:
    """`domain.devices.ApiKeys`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add(self, key: ApiKey, hashed: bytes, most: int) -> None:
        async def insert(connection: AsyncConnection) -> None:
            await _lock_user(connection, key.user_id)
            # Repeated after a commit whose outcome is not known, it is there already.
            if (await connection.execute(sa.select(t.api_key.c.id).where(t.api_key.c.id == key.id))).one_or_none():
                return
            await _require_room(connection, t.api_key, key.user_id, most)
            values = {
                "id": key.id,
                "user_id": key.user_id,
                "hash": hashed,
                "name": key.name,
                "created_at": key.created_at,
            }
            await connection.execute(sa.insert(t.api_key).values(values))

        await in_transaction(self._db, insert)

    async def find(self, hashed: bytes, now_ms: int) -> ApiKey | None:
        async with reading(self._db) as connection:
            row = (await connection.execute(sa.select(t.api_key).where(t.api_key.c.hash == hashed))).one_or_none()
        if row is None:
            return None
        key = _api_key(row)
        if now_ms - (key.last_used_at or 0) >= _USE_NOTED_MS:
            used = sa.update(t.api_key).where(t.api_key.c.id == key.id).values(last_used_at=now_ms)

            async def note(connection: AsyncConnection) -> bool:
                return bool((await connection.execute(used)).rowcount)

            if not await in_transaction(self._db, note):
                return None  # removed a moment ago
        return key

    async def list_of(self, user_id: str) -> list[ApiKey]:
        async with reading(self._db) as connection:
            return [_api_key(row) for row in await connection.execute(_of(t.api_key, user_id))]

    async def remove(self, user_id: str, key_id: str | None) -> bool:
        return await _remove(self._db, t.api_key, user_id, key_id)


class SqlTotpSecrets:
    """`domain.devices.TotpSecrets`, encrypted under the platform's data keys and bound to their rows.

    `former` opens what an earlier version has sealed; whatever it opens is encrypted anew when it is used.
    """

    def __init__(self, database: Database, keys: CipherSource, former: Former = no_former) -> None:
        self._db = database
        self._keys = keys
        self._former = former

    async def enrol(self, secret: TotpSecret) -> bool:
        this = t.totp_secret.c.user_id == secret.user_id
        cipher = await self._keys.newest()
        values = {
            "user_id": secret.user_id,
            "sealed": cipher.seal(totp_place(secret.user_id), secret.secret),
            "created_at": secret.created_at,
            "confirmed_at": None,
            "last_step": 0,
        }

        async def put(connection: AsyncConnection) -> bool:
            await _lock_user(connection, secret.user_id)
            known = (await connection.execute(sa.select(t.totp_secret).where(this))).one_or_none()
            if known is not None and known.confirmed_at is not None:
                return False
            await connection.execute(sa.delete(t.totp_secret).where(this))
            await connection.execute(sa.insert(t.totp_secret).values(values))
            return True

        return await in_transaction(self._db, put)

    async def get(self, user_id: str) -> TotpSecret | None:
        query = sa.select(t.totp_secret).where(t.totp_secret.c.user_id == user_id)
        async with reading(self._db) as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        try:
            text = await open_totp(user_id, row.sealed, await self._keys.cipher(), self._keys, self._former)
        except FieldDamaged as error:
            raise Refusal(
                Code.CONFLICT, "the second factor cannot be read any more; operations can reset it"
            ) from error
        return TotpSecret(user_id, text, row.created_at, row.confirmed_at, row.last_step)

    async def spend(self, secret: TotpSecret, step: int, session_id: str, now_ms: int) -> bool:
        cipher = await self._keys.newest()
        mine = t.totp_secret.c.user_id == secret.user_id
        confirmed = sa.func.coalesce(t.totp_secret.c.confirmed_at, now_ms)
        session = (t.device_session.c.id == session_id) & (t.device_session.c.user_id == secret.user_id)

        async def use(connection: AsyncConnection) -> bool:
            row = (await connection.execute(sa.select(t.totp_secret).where(mine).with_for_update())).one_or_none()
            if row is None or row.last_step >= step:
                return False
            # It may have been encrypted anew since it was read, and then it is another ciphertext of the same secret.
            stored = await open_totp(secret.user_id, row.sealed, cipher, self._keys, self._former)
            if not hmac.compare_digest(stored, secret.secret):
                return False
            values = {"last_step": step, "confirmed_at": confirmed}
            values |= {"sealed": cipher.seal(totp_place(secret.user_id), stored)}
            await connection.execute(sa.update(t.totp_secret).where(mine).values(values))
            await connection.execute(sa.update(t.device_session).where(session).values(second_factor_at=now_ms))
            return True

        return await in_transaction(self._db, use)

    async def reset(self, user_id: str) -> bool:
        async def forget(connection: AsyncConnection) -> bool:
            sessions = t.device_session.c.user_id == user_id
            gone = await connection.execute(sa.delete(t.totp_secret).where(t.totp_secret.c.user_id == user_id))
            await connection.execute(sa.update(t.device_session).where(sessions).values(second_factor_at=0))
            return bool(gone.rowcount)

        return await in_transaction(self._db, forget)


async def _lock_user(connection: AsyncConnection, user_id: str) -> None:
    """One at a time of each user adds something."""
    await connection.execute(sa.select(t.user.c.id).where(t.user.c.id == user_id).with_for_update())


async def _require_room(connection: AsyncConnection, table: sa.Table, user_id: str, most: int) -> None:
    count = sa.select(sa.func.count()).select_from(table).where(table.c.user_id == user_id)
    found = (await connection.execute(count)).scalar_one()
    if found >= most:
        raise Refusal(Code.CONFLICT, f"there are {found} already, {most} is the most: remove one first")


def _of(table: sa.Table, user_id: str) -> Any:
    query = sa.select(table).where(table.c.user_id == user_id)
    return query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(_LISTED)


async def _remove(database: Database, table: sa.Table, user_id: str, key_id: str | None) -> bool:
    these = table.c.user_id == user_id if key_id is None else (table.c.user_id == user_id) & (table.c.id == key_id)

    async def work(connection: AsyncConnection) -> bool:
        return bool((await connection.execute(sa.delete(table).where(these))).rowcount)

    return await in_transaction(database, work)


def _device_key(row: sa.Row[Any]) -> DeviceKey:
    return DeviceKey(row.id, row.user_id, row.name, row.public_key, row.created_at, row.last_used_at)


def _api_key(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(row.id, row.user_id, row.name, row.created_at, row.last_used_at)
