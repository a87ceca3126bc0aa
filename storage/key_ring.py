"""The platform's data keys: wrapped in the database, unwrapped once in each process."""

import asyncio
import base64
import logging
import os
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.keys import DATA_KEY_BYTES, KeyProvider, KeysUnavailable
from domain.ports import Clock, StoreUnavailable
from storage.crypto import HEADER_BYTES, FieldCipher, FieldDamaged, Place, UnknownKey
from storage.engine import Database
from storage.tables import data_key, setting
from storage.transactions import in_transaction, reading

INDEX_KEY: Final = "blind_index_key"
"""The setting that holds the blind indexes' key, itself an encrypted field, so that it follows the data keys."""
FORMER_INDEX_KEY: Final = "blind_index_key_former"
"""The same of the key before, for as long as there may be indexes under it."""
_INDEX_PLACE: Final = Place("setting", INDEX_KEY, "value")
_FORMER_PLACE: Final = Place("setting", FORMER_INDEX_KEY, "value")
_ATTEMPTS: Final = 4
_log = logging.getLogger(__name__)


class SqlKeyRing:
    """`crypto.CipherSource` over the table `data_key`. The first who opens it makes the first key.

    Keys that are unwrapped stay for as long as the process lives: a provider that goes away takes nothing with it.
    Keys that others add are found by whoever meets them, or is about to encrypt.
    """

    def __init__(self, database: Database, providers: Mapping[str, KeyProvider], primary: str, clock: Clock) -> None:
        """`primary` names the provider that makes new keys; the others only unwrap what they once wrapped."""
        self._database = database
        self._providers = providers
        self._primary = providers[primary]
        self._clock = clock
        self._keys: dict[int, bytes] = {}
        self._cipher: FieldCipher | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> FieldCipher:
        """Make what is missing and unwrap what is there.

        Raises:
            KeysUnavailable: the newest data key cannot be unwrapped, or none can be made.
            StoreUnavailable: the database does not answer.
        """
        async with self._opening:
            if self._cipher is None:
                rows = await self._stored()
                if not rows:
                    await self._add(1)
                    rows = await self._stored()
                self._cipher = await self._unwrapped(rows)
            return self._cipher

    async def add(self) -> FieldCipher:
        """A new data key that encrypts from now on, here and in every process that writes next."""
        await self.open()
        rows = await self._stored()
        await self._add(max(rows) + 1)
        return await self.newest()

    async def rotate_index_key(self) -> FieldCipher:
        """A new key of the blind indexes, which comes with a new data key: what is not under that has an old index.

        From now on both index keys find; nobody stores an index under the former one any more (`index_mark_of`). Where an
        earlier rotation is not over, that one goes on and nothing is made.
        """
        await self.open()
        for _ in range(_ATTEMPTS):
            if FORMER_INDEX_KEY in await self._index_sealed():
                return await self.reloaded()
            await self._add(max(await self._stored()) + 1, new_index=True)
        raise StoreUnavailable("others make data keys at the same time")

    async def end_index_rotation(self) -> None:
        """Forget the former index key. Only when nothing is left that was stored before the rotation."""

        async def forget(connection: AsyncConnection) -> None:
            await connection.execute(sa.delete(setting).where(setting.c.key == FORMER_INDEX_KEY))

        await in_transaction(self._database, forget)
        await self.reloaded()

    async def keep_index_key(self) -> None:
        """Put the blind indexes' keys under the newest data key."""
        cipher = await self.newest()
        for key, sealed in (await self._index_sealed()).items():
            place = _INDEX_PLACE if key == INDEX_KEY else _FORMER_PLACE
            new = _text(cipher.seal(place, cipher.open(place, sealed)))
            this = sa.update(setting).where(setting.c.key == key, setting.c.value == _text(sealed)).values(value=new)

            async def replace(connection: AsyncConnection, this: sa.Update = this) -> None:
                await connection.execute(this)

            await in_transaction(self._database, replace)
        await self.reloaded()

    # --- crypto.CipherSource -------------------------------------------------------------------------------------

    async def cipher(self) -> FieldCipher:
        if self._cipher is not None:
            return self._cipher
        try:
            return await self.open()
        except (KeysUnavailable, FieldDamaged) as error:
            raise StoreUnavailable(str(error)) from error

    async def newest(self) -> FieldCipher:
        cipher = await self.cipher()
        async with reading(self._database) as connection:
            newest = await connection.scalar(sa.select(sa.func.max(data_key.c.number)))
        if newest is None or newest <= cipher.newest:
            return cipher
        try:
            return await self.knowing(newest)
        except StoreUnavailable as error:
            _log.warning("encrypting under data key %d still: %s", cipher.newest, error)
            return cipher

    async def knowing(self, number: int) -> FieldCipher:
        cipher = await self.cipher()
        if number in cipher.numbers:
            return cipher
        async with self._opening:
            cipher = self._cipher or cipher
            if number not in cipher.numbers:
                row = (await self._stored()).get(number)
                if row is None:
                    raise StoreUnavailable(f"there is no data key {number}")
                try:
                    self._keys[number] = await self._unwrap(number, row)
                except KeysUnavailable as error:
                    raise StoreUnavailable(f"data key {number}: {error}") from error
                # A new index key comes with a new data key, in one transaction.
                cipher = await self._read_index_keys()
            return cipher

    async def reloaded(self) -> FieldCipher:
        await self.cipher()
        async with self._opening:
            return await self._read_index_keys()

    async def _read_index_keys(self) -> FieldCipher:
        """Raises StoreUnavailable: a data key that they are under is not to be had."""
        sealed = await self._index_sealed()
        try:
            for number in {int.from_bytes(one[1:HEADER_BYTES]) for one in sealed.values()} - self._keys.keys():
                row = (await self._stored()).get(number)
                if row is None:
                    raise StoreUnavailable(f"there is no data key {number}")
                self._keys[number] = await self._unwrap(number, row)
            self._cipher = self._with_index_keys(sealed)
        except (KeysUnavailable, FieldDamaged) as error:
            raise StoreUnavailable(f"the blind indexes' keys: {error}") from error
        return self._cipher

    def _with_index_keys(self, sealed: Mapping[str, bytes]) -> FieldCipher:
        opener = FieldCipher(self._keys, bytes(DATA_KEY_BYTES))
        index_key = bytes.fromhex(opener.open(_INDEX_PLACE, sealed[INDEX_KEY]))
        former = sealed.get(FORMER_INDEX_KEY)
        former_key = None if former is None else bytes.fromhex(opener.open(_FORMER_PLACE, former))
        mark = _mark({key: _text(one) for key, one in sealed.items()})
        return FieldCipher(self._keys, index_key, former_index_key=former_key, index_mark=mark)

    # --- what is stored ------------------------------------------------------------------------------------------

    async def _stored(self) -> dict[int, sa.Row[Any]]:
        async with reading(self._database) as connection:
            return {row.number: row for row in await connection.execute(sa.select(data_key))}

    async def _add(self, number: int, *, new_index: bool = False) -> None:
        """Store a new key under a number, unless somebody else has: the primary key decides. The first brings the index key.

        `new_index`: a new index key comes with it, and the present one becomes the former.
        """
        fresh = await self._primary.new_key()
        row = {"number": number, "provider": self._primary.name, "wrapped": fresh.wrapped}
        row["created_at"] = self._clock.now_ms()

        async def insert(connection: AsyncConnection) -> None:
            await connection.execute(sa.insert(data_key).values(row))
            if number == 1:
                first = FieldCipher({1: fresh.plain}, bytes(DATA_KEY_BYTES))
                value = _text(first.seal(_INDEX_PLACE, os.urandom(DATA_KEY_BYTES).hex()))
                await connection.execute(sa.insert(setting).values(key=INDEX_KEY, value=value))
            if new_index:
                # Whoever stores an index meanwhile holds a lock on this row: see `index_mark_of`.
                both = FieldCipher({**self._keys, number: fresh.plain}, bytes(DATA_KEY_BYTES))
                this = setting.c.key == INDEX_KEY
                stored = await connection.scalar(sa.select(setting.c.value).where(this).with_for_update())
                former = both.seal(_FORMER_PLACE, both.open(_INDEX_PLACE, base64.b64decode(stored or "")))
                made = both.seal(_INDEX_PLACE, os.urandom(DATA_KEY_BYTES).hex())
                await connection.execute(sa.insert(setting).values(key=FORMER_INDEX_KEY, value=_text(former)))
                await connection.execute(sa.update(setting).where(this).values(value=_text(made)))

        try:
            await in_transaction(self._database, insert)
        except IntegrityError:
            _log.info("another process has made data key %d", number)

    async def _unwrapped(self, rows: Mapping[int, sa.Row[Any]]) -> FieldCipher:
        """All keys that can be had; the newest and that of the indexes' key must be, because nobody can work without them."""
        sealed = await self._index_sealed()
        newest = max(rows)
        found = await asyncio.gather(
            *(self._unwrap(number, row) for number, row in rows.items()), return_exceptions=True
        )
        for number, key in zip(rows, found, strict=True):
            if isinstance(key, bytes):
                self._keys[number] = key
            elif isinstance(key, KeysUnavailable) and number != newest:
                _log.warning("data key %d is not to be had, nor what is under it: %s", number, key)
            else:
                raise key
        try:
            return self._with_index_keys(sealed)
        except UnknownKey as error:
            raise KeysUnavailable(
                f"the blind indexes' key is under data key {error.number}, which is not to be had"
            ) from None

    async def _unwrap(self, number: int, row: sa.Row[Any]) -> bytes:
        provider = self._providers.get(row.provider)
        if provider is None:
            raise KeysUnavailable(f"data key {number} was wrapped by {row.provider}, which is not configured any more")
        return await provider.unwrap(row.wrapped)

    async def _index_sealed(self) -> dict[str, bytes]:
        async with reading(self._database) as connection:
            found = {row.key: base64.b64decode(row.value) for row in await connection.execute(_index_settings())}
        if INDEX_KEY not in found:
            raise FieldDamaged(f"{_INDEX_PLACE} is missing")
        return found


async def index_mark_of(connection: AsyncConnection) -> str:
    """The `index_mark` of now, which stands until the connection's transaction ends.

    Whoever stores an index reads it in the same transaction and compares it with the cipher's: so none is stored under a
    former key once its rotation has begun, and none after the job that rewrites them has passed.
    """
    rows = await connection.execute(_index_settings().with_for_update(read=True))
    return _mark({row.key: row.value for row in rows})


def _index_settings() -> sa.Select[Any]:
    wanted = (INDEX_KEY, FORMER_INDEX_KEY)
    return sa.select(setting.c.key, setting.c.value).where(setting.c.key.in_(wanted)).order_by(setting.c.key)


def _mark(values: Mapping[str, str]) -> str:
    return " ".join(values.get(key, "") for key in (INDEX_KEY, FORMER_INDEX_KEY)).strip()


def _text(sealed: bytes) -> str:
    return base64.b64encode(sealed).decode("ascii")
