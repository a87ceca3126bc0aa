"""`DeviceKeys`, `ApiKeys` and `TotpSecrets` of `domain.devices` on SQLite and on MariaDB."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from domain.devices import ApiKey, DeviceKey, TotpSecret
from domain.errors import Code, Refusal
from domain.ports import Device, DeviceSession
from storage import tables as t
from storage.accounts import SqlAccounts
from storage.crypto import header_of
from storage.engine import Database
from storage.reencryption import reencrypt
from storage.sessions import SqlSessions
from storage.tokens import JwtIssuer, SigningKeys
from storage.user_keys import SqlApiKeys, SqlDeviceKeys, SqlTotpSecrets
from tests.support.databases import migrated
from tests.support.keys import FixedKeys
from tests.support.rest_app import ManualClock

NOW = 1_800_000_000_000
_numbers = count(1)


def new_id() -> str:
    return f"01890000-0000-7000-9000-{next(_numbers):012x}"


@pytest.fixture(scope="module", params=["sqlite", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with migrated(request.param, tmp_path_factory.mktemp("keys")) as url:
        yield url


@pytest.fixture
async def databases(url: str) -> AsyncIterator[list[Database]]:
    """Two processes' worth of connections."""
    made = [Database(url), Database(url)]
    yield made
    for database in made:
        await database.close()


@pytest.fixture
async def user_id(databases: list[Database]) -> str:
    accounts = SqlAccounts(databases[0], ManualClock(), new_id, FixedKeys())
    user, _ = await accounts.find_or_create(f"+8613{next(_numbers):09d}", "en")
    return user.id


def new_secret() -> str:
    return base64.b32encode(os.urandom(20)).decode()


def device_key(user_id: str, public_key: bytes | None = None) -> DeviceKey:
    return DeviceKey(new_id(), user_id, "指纹 👆", public_key or os.urandom(91), NOW + next(_numbers))


def api_key(user_id: str) -> tuple[ApiKey, bytes]:
    return ApiKey(new_id(), user_id, "calendar", NOW + next(_numbers)), os.urandom(32)


# --- device keys ---


async def test_a_device_key_is_found_and_listed_until_it_is_removed(databases: list[Database], user_id: str) -> None:
    keys, elsewhere = SqlDeviceKeys(databases[0]), SqlDeviceKeys(databases[1])
    first, second = device_key(user_id), device_key(user_id)
    assert await keys.add(first, 5) == first
    await keys.add(second, 5)
    await keys.add(device_key(new_id()), 5)
    assert await elsewhere.get(first.id) == first
    assert await elsewhere.list_of(user_id) == [second, first]
    assert not await keys.remove(new_id(), first.id)
    assert await keys.remove(user_id, first.id)
    assert not await keys.remove(user_id, first.id)
    assert await elsewhere.get(first.id) is None
    assert await elsewhere.list_of(user_id) == [second]


async def test_the_same_key_of_a_user_is_registered_once_and_another_user_may_have_it_too(
    databases: list[Database], user_id: str
) -> None:
    keys = SqlDeviceKeys(databases[0])
    first = device_key(user_id)
    await keys.add(first, 1)
    assert await keys.add(device_key(user_id, first.public_key), 1) == first
    other = device_key(new_id(), first.public_key)
    assert await keys.add(other, 1) == other


async def test_however_many_add_at_once_a_user_has_no_more_keys_than_allowed(
    databases: list[Database], user_id: str
) -> None:
    device_keys = [SqlDeviceKeys(database) for database in databases]
    api_keys = [SqlApiKeys(database) for database in databases]
    adding = [
        *(device_keys[n % 2].add(device_key(user_id), 3) for n in range(20)),
        *(api_keys[n % 2].add(*api_key(user_id), 3) for n in range(20)),
    ]
    outcomes = await asyncio.gather(*adding, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert {outcome.code for outcome in refused if isinstance(outcome, Refusal)} == {Code.CONFLICT}
    assert len(refused) == 34
    assert len(await device_keys[0].list_of(user_id)) == len(await api_keys[0].list_of(user_id)) == 3


async def test_all_keys_of_a_user_are_removed_at_once_and_nobody_elses(databases: list[Database], user_id: str) -> None:
    keys, others = SqlDeviceKeys(databases[0]), device_key(new_id())
    for key in (device_key(user_id), device_key(user_id), others):
        await keys.add(key, 5)
    assert await keys.remove(user_id, None)
    assert await keys.list_of(user_id) == []
    assert await keys.get(others.id) == others


# --- API keys ---


async def test_an_api_key_is_found_by_its_hash_until_it_is_removed(databases: list[Database], user_id: str) -> None:
    keys, elsewhere = SqlApiKeys(databases[0]), SqlApiKeys(databases[1])
    key, hashed = api_key(user_id)
    await keys.add(key, hashed, 5)
    found = await elsewhere.find(hashed, NOW)
    assert found == key
    assert await elsewhere.find(os.urandom(32), NOW) is None
    assert not await keys.remove(new_id(), key.id)
    assert await keys.remove(user_id, key.id)
    assert await elsewhere.find(hashed, NOW) is None


async def test_the_use_of_an_api_key_is_noted_every_five_minutes(databases: list[Database], user_id: str) -> None:
    keys = SqlApiKeys(databases[0])
    key, hashed = api_key(user_id)
    await keys.add(key, hashed, 5)
    noted = []
    for now in (NOW, NOW + 299_999, NOW + 300_000):
        await keys.find(hashed, now)
        noted.append((await keys.list_of(user_id))[0].last_used_at)
    assert noted == [NOW, NOW, NOW + 300_000]


# --- second factors ---


async def opened(database: Database, user_id: str) -> DeviceSession:
    session = DeviceSession(new_id(), user_id, Device("d", "d", "d"), NOW, NOW)
    await SqlSessions(database).open(session, os.urandom(32), NOW + 10**9)
    return session


async def verified_at(database: Database, session: DeviceSession) -> int:
    found = await SqlSessions(database).get(session.id)
    assert found is not None
    return found.second_factor_at


async def test_a_secret_that_was_never_confirmed_is_replaced_and_a_confirmed_one_stays(
    databases: list[Database], user_id: str
) -> None:
    secrets = SqlTotpSecrets(databases[0], FixedKeys())
    session = await opened(databases[0], user_id)
    first, second, third = (TotpSecret(user_id, new_secret(), NOW) for _ in range(3))
    assert await secrets.enrol(first)
    assert await secrets.enrol(second)
    assert await secrets.get(user_id) == second
    assert not await secrets.spend(first, 100, session.id, NOW)
    assert await secrets.spend(second, 100, session.id, NOW + 5)
    assert not await secrets.enrol(third)
    known = await secrets.get(user_id)
    assert known is not None
    assert (known.secret, known.confirmed_at, known.last_step) == (second.secret, NOW + 5, 100)


async def test_a_time_step_is_used_once_however_many_try_and_no_earlier_one_after_it(
    databases: list[Database], user_id: str
) -> None:
    secrets = [SqlTotpSecrets(database, FixedKeys()) for database in databases]
    session, bystander = await opened(databases[0], user_id), await opened(databases[0], user_id)
    secret = TotpSecret(user_id, new_secret(), NOW)
    await secrets[0].enrol(secret)
    outcomes = await asyncio.gather(*(secrets[n % 2].spend(secret, 100, session.id, NOW) for n in range(20)))
    assert sum(outcomes) == 1
    assert not await secrets[1].spend(secret, 99, session.id, NOW + 1)
    assert await secrets[1].spend(secret, 101, session.id, NOW + 2)
    assert await verified_at(databases[0], session) == NOW + 2
    assert await verified_at(databases[0], bystander) == 0


async def test_nobody_verifies_a_session_of_somebody_else(databases: list[Database], user_id: str) -> None:
    foreign = await opened(databases[0], new_id())
    secret = TotpSecret(user_id, new_secret(), NOW)
    secrets = SqlTotpSecrets(databases[0], FixedKeys())
    await secrets.enrol(secret)
    await secrets.spend(secret, 100, foreign.id, NOW)
    assert await verified_at(databases[0], foreign) == 0


async def test_a_reset_forgets_the_secret_and_what_it_has_verified(databases: list[Database], user_id: str) -> None:
    secrets, session = SqlTotpSecrets(databases[0], FixedKeys()), await opened(databases[0], user_id)
    secret = TotpSecret(user_id, new_secret(), NOW)
    await secrets.enrol(secret)
    await secrets.spend(secret, 100, session.id, NOW)
    assert await secrets.reset(user_id)
    assert not await secrets.reset(user_id)
    assert await secrets.get(user_id) is None
    assert await verified_at(databases[0], session) == 0
    assert not await secrets.spend(secret, 101, session.id, NOW)


async def stored(database: Database, user_id: str) -> bytes:
    async with database.read() as connection:
        query = sa.select(t.totp_secret.c.sealed).where(t.totp_secret.c.user_id == user_id)
        return (await connection.execute(query)).scalar_one()


async def put(database: Database, user_id: str, sealed: bytes) -> None:
    async with database.write() as connection:
        this = sa.update(t.totp_secret).where(t.totp_secret.c.user_id == user_id)
        await connection.execute(this.values(sealed=sealed))


async def test_a_secret_is_encrypted_for_its_own_row(databases: list[Database], user_id: str) -> None:
    secrets, other = SqlTotpSecrets(databases[0], FixedKeys()), new_id()
    mine, theirs = TotpSecret(user_id, new_secret(), NOW), TotpSecret(other, new_secret(), NOW)
    await secrets.enrol(mine)
    await secrets.enrol(theirs)
    sealed = await stored(databases[0], other)
    assert theirs.secret.encode() not in sealed
    await put(databases[0], user_id, sealed)
    with pytest.raises(Refusal) as refused:
        await secrets.get(user_id)
    assert refused.value.code is Code.CONFLICT


async def test_a_secret_that_an_earlier_version_sealed_is_read_and_encrypted_by_its_first_use(
    databases: list[Database], user_id: str, tmp_path: Path
) -> None:
    """It hung on a signing key, whose removal took the operator's second factor with it."""
    signing = SigningKeys.open(tmp_path)
    secret, session = TotpSecret(user_id, new_secret(), NOW), await opened(databases[0], user_id)
    secrets = SqlTotpSecrets(databases[0], FixedKeys(), JwtIssuer(signing).unseal)
    await secrets.enrol(secret)
    await put(databases[0], user_id, JwtIssuer(signing).seal(secret.secret))
    assert await secrets.get(user_id) == secret
    assert await secrets.spend(secret, 100, session.id, NOW)
    later = await SqlTotpSecrets(databases[1], FixedKeys()).get(user_id)
    assert later is not None
    assert later.secret == secret.secret
    assert (await stored(databases[1], user_id)).startswith(header_of(1))


async def test_a_secret_that_is_encrypted_anew_while_its_code_is_checked_still_counts(
    databases: list[Database], user_id: str
) -> None:
    secret, session = TotpSecret(user_id, new_secret(), NOW), await opened(databases[0], user_id)
    await SqlTotpSecrets(databases[0], FixedKeys(1)).enrol(secret)
    read = await SqlTotpSecrets(databases[1], FixedKeys(1, 2)).get(user_id)
    await reencrypt(databases[0], FixedKeys(1, 2), lambda _: None)
    assert read is not None
    assert await SqlTotpSecrets(databases[1], FixedKeys(1, 2)).spend(read, 100, session.id, NOW)
