"""Data keys and the job that brings everything under the newest one, on SQLite and on MariaDB, among several processes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.engine import Connection

from deploy.connections import SystemClock, new_id
from domain.devices import TotpSecret
from domain.keys import FreshKey, KeysUnavailable
from domain.ports import StoreUnavailable
from storage.accounts import SqlAccounts
from storage.crypto import CipherSource, FieldCipher, FieldDamaged
from storage.engine import Database, _config, migrate
from storage.erasures import SqlErasures
from storage.file_keys import FileKeyProvider
from storage.key_ring import SqlKeyRing
from storage.reencryption import (
    PHONE,
    Reencrypted,
    ReencryptionSettings,
    has_former_totp,
    has_plain,
    phone_place,
    reencrypt,
    scrub,
)
from storage.tables import data_key, totp_secret, user
from storage.tokens import JwtIssuer, SigningKeys
from storage.user_keys import SqlTotpSecrets
from tests.support.databases import migrated
from tests.support.keys import FixedKeys, file_ring

_phones = (f"+86139{number:08d}" for number in count(1))
AT_ONCE = ReencryptionSettings(batch=7, pause_s=0.0)


@pytest.fixture(params=["sqlite", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of its own, without a key."""
    with migrated(request.param, tmp_path) as made:
        yield made


@pytest.fixture
async def another(url: str) -> AsyncIterator[Callable[[], Database]]:
    """Each call is one more process's connections."""
    made: list[Database] = []

    def database() -> Database:
        made.append(Database(url))
        return made[-1]

    yield database
    for one in made:
        await one.close()


class Provider(FileKeyProvider):
    """Counts what it is asked, and is away when told so."""

    def __init__(self) -> None:
        super().__init__(lambda: b"m" * 32, "the test's secret")
        self.away = False
        self.unwrapped = 0

    async def new_key(self) -> FreshKey:
        self._must_be_there()
        return await super().new_key()

    async def unwrap(self, wrapped: bytes) -> bytes:
        self._must_be_there()
        self.unwrapped += 1
        return await super().unwrap(wrapped)

    def _must_be_there(self) -> None:
        if self.away:
            raise KeysUnavailable("the provider is away")


def ring(database: Database, provider: FileKeyProvider) -> SqlKeyRing:
    return SqlKeyRing(database, {"file": provider}, "file", SystemClock())


def accounts(database: Database, keys: CipherSource) -> SqlAccounts:
    return SqlAccounts(database, SystemClock(), new_id, keys)


async def people(database: Database, keys: CipherSource, number: int) -> dict[str, str]:
    """So many new users: phones by id."""
    made = [await accounts(database, keys).find_or_create(next(_phones), "en") for _ in range(number)]
    return {one.id: one.phone for one, _ in made}


async def numbers_in_use(database: Database) -> set[int]:
    async with database.read() as connection:
        rows = await connection.scalars(sa.select(user.c.phone_sealed))
        return {int.from_bytes(sealed[1:5]) for sealed in rows}


def silent(_progress: Reencrypted) -> None:
    """Nobody listens."""


async def test_ten_processes_that_start_at_once_make_one_key_and_understand_one_another(
    another: Callable[[], Database],
) -> None:
    rings = [file_ring(another()) for _ in range(10)]
    ciphers = await asyncio.gather(*(one.open() for one in rings))
    sealed = ciphers[0].seal(phone_place("a"), "+1")
    assert {cipher.open(phone_place("a"), sealed) for cipher in ciphers} == {"+1"}
    assert len({cipher.blind_index(*PHONE, "+1") for cipher in ciphers}) == 1
    async with another().read() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).select_from(data_key)) == 1


async def test_a_new_key_encrypts_in_every_process_from_its_next_write_on(another: Callable[[], Database]) -> None:
    one, other = another(), another()
    mine, theirs = file_ring(one), file_ring(other)
    before = await people(other, theirs, 2)
    assert (await mine.add()).newest == 2
    after = await people(other, theirs, 1)
    assert await numbers_in_use(one) == {1, 2}
    for where, keys in ((one, mine), (other, theirs)):
        known = await accounts(where, keys).get([*before, *after])
        assert {person.id: person.phone for person in known.values()} == before | after
        for phone in (*before.values(), *after.values()):
            assert not (await accounts(where, keys).find_or_create(phone, "en"))[1]


async def test_a_process_that_met_no_new_key_reads_what_is_under_it(another: Callable[[], Database]) -> None:
    one, other = another(), another()
    mine, theirs = file_ring(one), file_ring(other)
    await theirs.open()
    await mine.add()
    made = await people(one, mine, 1)
    assert {p.id: p.phone for p in (await accounts(other, theirs).get([*made])).values()} == made


async def test_what_a_process_has_unwrapped_outlives_the_provider(another: Callable[[], Database]) -> None:
    database, provider = another(), Provider()
    keys = ring(database, provider)
    made = await people(database, keys, 2)
    provider.away = True
    assert {p.id for p in (await accounts(database, keys).get([*made])).values()} == set(made)
    assert (await accounts(database, keys).find_or_create(next(_phones), "en"))[1]
    with pytest.raises(StoreUnavailable, match="the provider is away"):
        await ring(database, provider).cipher()
    with pytest.raises(KeysUnavailable):
        await ring(database, provider).open()


async def test_while_the_provider_is_away_a_process_goes_on_under_the_key_that_it_has(
    another: Callable[[], Database],
) -> None:
    database, provider = another(), Provider()
    keys = ring(database, provider)
    await keys.open()
    await ring(another(), Provider()).add()
    provider.away = True
    await people(database, keys, 1)
    assert await numbers_in_use(database) == {1}
    provider.away = False
    await people(database, keys, 1)
    assert await numbers_in_use(database) == {1, 2}


async def test_keys_are_unwrapped_once_in_a_process(another: Callable[[], Database]) -> None:
    database, provider = another(), Provider()
    keys = ring(database, provider)
    await asyncio.gather(*(keys.cipher() for _ in range(20)))
    await people(database, keys, 3)
    assert provider.unwrapped == 1


async def test_the_job_brings_all_under_the_newest_key_in_small_batches(another: Callable[[], Database]) -> None:
    database = another()
    keys = file_ring(database)
    made = await people(database, keys, 20)
    await keys.add()
    seen: list[tuple[int, int]] = []
    done = await reencrypt(database, keys, lambda p: seen.append((p.done, p.total)), AT_ONCE)
    assert seen == [(0, 20), (7, 20), (14, 20), (20, 20)]
    assert (done.done, done.damaged) == (20, [])
    assert await numbers_in_use(database) == {2}
    assert {p.id: p.phone for p in (await accounts(database, keys).get([*made])).values()} == made
    assert (await reencrypt(database, keys, silent, AT_ONCE)).total == 0


async def test_a_job_that_was_cut_off_goes_on_where_it_was(another: Callable[[], Database]) -> None:
    database = another()
    keys = file_ring(database)
    made = await people(database, keys, 20)
    await keys.add()

    def cut(progress: Reencrypted) -> None:
        if progress.done == 14:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await reencrypt(database, keys, cut, AT_ONCE)
    assert await numbers_in_use(database) == {1, 2}
    assert {p.id: p.phone for p in (await accounts(database, keys).get([*made])).values()} == made
    again = await reencrypt(database, keys, silent, AT_ONCE)
    assert (again.total, again.done) == (6, 6)
    assert await numbers_in_use(database) == {2}


async def test_two_jobs_and_people_who_log_in_meanwhile_lose_nobody(another: Callable[[], Database]) -> None:
    database, other = another(), another()
    keys, theirs = file_ring(database), file_ring(other)
    made = await people(database, keys, 60)
    await keys.add()

    async def log_in() -> dict[str, str]:
        for phone in made.values():
            assert not (await accounts(other, theirs).find_or_create(phone, "en"))[1]
        return await people(other, theirs, 10)

    _, _, joined = await asyncio.gather(
        reencrypt(database, keys, silent, AT_ONCE), reencrypt(other, theirs, silent, AT_ONCE), log_in()
    )
    assert await numbers_in_use(database) == {2}
    everybody = made | joined
    assert {p.id: p.phone for p in (await accounts(database, keys).get([*everybody])).values()} == everybody


async def test_a_row_that_was_erased_while_the_job_had_it_stays_erased(another: Callable[[], Database]) -> None:
    database = another()
    made = await people(database, FixedKeys(1), 1)

    class Erasing(FixedKeys):
        """The job has read the row and asks for its key: just then the row is erased."""

        async def knowing(self, number: int) -> FieldCipher:
            async with database.write() as connection:
                await connection.execute(sa.update(user).values(phone_sealed=None, phone_index=None))
            return await FixedKeys(1, 2).knowing(number)

    await reencrypt(database, Erasing(2), silent, AT_ONCE)
    async with database.read() as connection:
        row = (await connection.execute(sa.select(user.c.id, user.c.phone, user.c.phone_sealed))).one()
    assert tuple(row) == (*made, None, None)


async def test_fields_that_cannot_be_read_are_named_and_kept_and_the_job_goes_on(
    another: Callable[[], Database],
) -> None:
    database = another()
    keys = file_ring(database)
    made = sorted(await people(database, keys, 10))
    await keys.add()
    async with database.write() as connection:
        swapped = await connection.scalar(sa.select(user.c.phone_sealed).where(user.c.id == made[0]))
        await connection.execute(sa.update(user).where(user.c.id == made[3]).values(phone_sealed=swapped))
    done = await reencrypt(database, keys, silent, AT_ONCE)
    assert (done.done, done.damaged) == (9, [f"user.phone of {made[3]}"])
    with pytest.raises(FieldDamaged, match=made[3]):
        await accounts(database, keys).get([made[3]])


async def test_another_provider_takes_over_and_the_former_is_not_needed_any_more(
    another: Callable[[], Database],
) -> None:
    """The key of the blind indexes follows, or everything would still hang on the former provider."""
    database, former = another(), Provider()
    made = await people(database, ring(database, former), 5)

    class Named(Provider):
        name = "vault"  # type: ignore[misc]

    later = Named()
    both = SqlKeyRing(database, {"file": former, "vault": later}, "vault", SystemClock())
    await both.add()
    await reencrypt(database, both, silent)
    await both.keep_index_key()
    former.away = True
    for providers in ({"vault": later}, {"file": former, "vault": later}):
        alone = SqlKeyRing(database, providers, "vault", SystemClock())
        assert {p.id: p.phone for p in (await accounts(database, alone).get([*made])).values()} == made
        for phone in made.values():
            assert not (await accounts(database, alone).find_or_create(phone, "en"))[1]


async def test_without_the_former_provider_and_before_the_job_a_start_says_what_is_missing(
    another: Callable[[], Database],
) -> None:
    database, former, later = another(), Provider(), Provider()
    later.name = "vault"  # type: ignore[misc]
    await ring(database, former).open()
    with pytest.raises(KeysUnavailable, match="wrapped by file, which is not configured"):
        await SqlKeyRing(database, {"vault": later}, "vault", SystemClock()).open()


async def test_a_lost_index_key_stops_everything_instead_of_making_everybody_a_stranger(
    another: Callable[[], Database],
) -> None:
    database = another()
    await people(database, file_ring(database), 1)
    async with database.write() as connection:
        await connection.exec_driver_sql("DELETE FROM setting WHERE `key` = 'blind_index_key'")
    with pytest.raises(StoreUnavailable, match="blind_index_key is missing"):
        await accounts(database, file_ring(database)).find_or_create(next(_phones), "en")


# --- what else is sealed -----------------------------------------------------------------------------------------


async def test_second_factors_come_under_the_newest_key_whoever_has_sealed_them(
    another: Callable[[], Database], tmp_path: Path
) -> None:
    """Those of an earlier version hang on the signing keys; one whose key is gone is named, and keeps nobody else."""
    database = another()
    keys, issuer = file_ring(database), JwtIssuer(SigningKeys.open(tmp_path / "mine"))
    lost = JwtIssuer(SigningKeys.open(tmp_path / "lost"))
    await keys.open()
    mine, old, gone = sorted(new_id() for _ in range(3))
    secrets = SqlTotpSecrets(database, keys, issuer.unseal)
    for person in (mine, old, gone):
        await secrets.enrol(TotpSecret(person, f"SECRET{person[:4]}", 1))
    async with database.write() as connection:
        for person, by in ((old, issuer), (gone, lost)):
            this = sa.update(totp_secret).where(totp_secret.c.user_id == person)
            await connection.execute(this.values(sealed=by.seal(f"SECRET{person[:4]}")))
    assert await has_former_totp(database)
    await keys.add()
    done = await reencrypt(database, keys, silent, AT_ONCE, issuer.unseal)
    assert (done.total, done.done, done.damaged) == (3, 2, [f"totp_secret.sealed of {gone}"])
    assert done.phones_are_whole
    for person in (mine, old):
        known = await SqlTotpSecrets(database, keys).get(person)
        assert known is not None
        assert known.secret == f"SECRET{person[:4]}"


async def test_the_placeholder_of_an_erased_account_is_not_sealed_as_if_it_were_a_number(
    another: Callable[[], Database],
) -> None:
    database = another()
    keys = file_ring(database)
    erased, kept = await people(database, keys, 2)
    await SqlErasures(database).begin(erased, 1)
    await keys.add()
    done = await reencrypt(database, keys, silent, AT_ONCE)
    assert (done.total, done.done, done.damaged) == (1, 1, [])
    async with database.read() as connection:
        columns = (user.c.phone, user.c.phone_sealed, user.c.phone_index)
        row = (await connection.execute(sa.select(*columns).where(user.c.id == erased))).one()
    assert tuple(row) == (None, None, None)
    known = await accounts(database, keys).get([erased, kept])
    assert known[erased].phone == ""


# --- another key of the blind indexes ----------------------------------------------------------------------------


async def indexes(database: Database) -> dict[str, bytes]:
    async with database.read() as connection:
        return {row.id: row.phone_index for row in await connection.execute(sa.select(user.c.id, user.c.phone_index))}


async def test_everybody_is_found_before_while_and_after_the_index_key_is_replaced(
    another: Callable[[], Database],
) -> None:
    """In every process: in one that replaces it, in one that runs already and has not heard, and in one that starts."""
    database, other = another(), another()
    keys, theirs = file_ring(database), file_ring(other)
    made = await people(database, keys, 20)
    before = await indexes(database)
    assert await people(other, theirs, 0) == {}
    await theirs.open()
    await keys.rotate_index_key()

    async def all_found() -> None:
        for where, ring_there in ((database, keys), (other, theirs), (database, file_ring(database))):
            for person, phone in made.items():
                found, is_new = await accounts(where, ring_there).find_or_create(phone, "en")
                assert (found.id, is_new) == (person, False)

    await all_found()

    def cut(progress: Reencrypted) -> None:
        if progress.done == 14:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await reencrypt(database, keys, cut, AT_ONCE)
    await all_found()
    assert (await keys.rotate_index_key()).newest == 2  # the one that is under way goes on
    done = await reencrypt(database, keys, silent, AT_ONCE)
    assert done.damaged == []
    await keys.end_index_rotation()
    await keys.keep_index_key()
    await all_found()
    after = await indexes(database)
    assert all(after[person] != before[person] for person in made)
    assert (await file_ring(database).open()).former_index_key is None


async def test_nobody_gets_a_second_account_from_a_process_that_has_not_heard_of_the_new_index_key(
    another: Callable[[], Database],
) -> None:
    database, other = another(), another()
    keys, theirs = file_ring(database), file_ring(other)
    await keys.open()
    await theirs.open()
    await keys.rotate_index_key()
    made = await people(database, keys, 3)  # by the new key alone
    for person, phone in made.items():
        found, is_new = await accounts(other, theirs).find_or_create(phone, "en")
        assert (found.id, is_new) == (person, False)


async def test_an_index_is_not_stored_under_a_key_whose_replacement_has_begun(
    another: Callable[[], Database],
) -> None:
    """The process has asked which key is the newest; before it stores the account, another one begins the rotation, and
    its job passes."""
    database, other = another(), another()
    keys = file_ring(database)
    await keys.open()

    class Late(SqlKeyRing):
        overtaken = False

        async def newest(self) -> FieldCipher:
            known = await super().newest()
            if not self.overtaken:
                self.overtaken = True
                await keys.rotate_index_key()
                await reencrypt(database, keys, silent, AT_ONCE)
                await keys.end_index_rotation()
            return known

    late = Late(other, {"file": Provider()}, "file", SystemClock())
    made = await people(other, late, 1)
    assert late.overtaken
    for person, phone in made.items():
        cipher = await file_ring(database).open()
        assert (await indexes(database))[person] == cipher.blind_index(*PHONE, phone)


async def test_an_account_that_was_made_between_the_look_and_the_rotation_is_not_made_again(
    another: Callable[[], Database],
) -> None:
    database, other = another(), another()
    keys, phone = file_ring(database), next(_phones)
    first: list[str] = []

    class Late(SqlKeyRing):
        async def newest(self) -> FieldCipher:
            if not first:
                first.append((await accounts(database, keys).find_or_create(phone, "en"))[0].id)
                await keys.rotate_index_key()
            return await super().newest()

    late = Late(other, {"file": Provider()}, "file", SystemClock())
    found, is_new = await accounts(other, late).find_or_create(phone, "en")
    assert (found.id, is_new) == (first[0], False)


# --- databases of an earlier version -----------------------------------------------------------------------------


def _downgrade(connection: Connection) -> None:
    command.downgrade(_config(connection), "0004")


def _insert_plain(connection: Connection, made: dict[str, str]) -> None:
    names = ("id", "phone", "name", "locale", "roles", "rating_sum", "rating_count", "created_at", "updated_at")
    old = sa.table("user", *(sa.column(name) for name in names))
    for person, phone in made.items():
        row = (person, phone, "Old", "en", '["customer"]', 0, 0, 1, 1)
        connection.execute(sa.insert(old).values(dict(zip(names, row, strict=True))))


async def with_plain_rows(url: str, number: int) -> dict[str, str]:
    """Take the database back to the version before, and put people into it as that one did."""
    made = {new_id(): next(_phones) for _ in range(number)}
    database = Database(url)
    async with database.write() as connection:
        await connection.run_sync(_downgrade)
        await connection.run_sync(_insert_plain, made)
    await database.close()
    await migrate(url, "test")
    await migrate(url, "test")
    return made


async def test_rows_of_an_earlier_version_are_found_in_plain_and_then_encrypted(
    url: str, another: Callable[[], Database]
) -> None:
    made = await with_plain_rows(url, 20)
    database = another()
    keys = file_ring(database)
    known = accounts(database, keys)
    first = next(iter(made))
    assert (await known.find_or_create(made[first], "en"))[0].id == first
    assert await has_plain(database)
    done = await reencrypt(database, keys, silent, AT_ONCE)
    await scrub(database)
    assert (done.total, done.done, await has_plain(database)) == (20, 20, False)
    async with database.read() as connection:
        assert (await connection.scalars(sa.select(user.c.phone).distinct())).all() == [None]
    assert {p.id: p.phone for p in (await known.get([*made])).values()} == made
    for person, phone in made.items():
        assert (await known.find_or_create(phone, "en"))[0].id == person


async def test_traces_are_not_forgotten_while_a_row_is_in_plain(url: str, another: Callable[[], Database]) -> None:
    await with_plain_rows(url, 1)
    database = another()
    await scrub(database)
    assert await has_plain(database)


async def test_an_encrypted_database_is_not_taken_back_by_dropping_phones(
    url: str, another: Callable[[], Database]
) -> None:
    database = another()
    await people(database, file_ring(database), 1)
    with pytest.raises(RuntimeError, match="restore a backup"):
        async with database.write() as connection:
            await connection.run_sync(_downgrade)
    assert len(await numbers_in_use(database)) == 1


async def test_an_empty_database_has_nothing_in_plain(another: Callable[[], Database]) -> None:
    assert not await has_plain(another())


async def test_the_placeholders_of_accounts_that_were_erased_by_an_earlier_version_go(
    url: str, another: Callable[[], Database]
) -> None:
    database, erased = another(), new_id()

    def back(connection: Connection) -> None:
        command.downgrade(_config(connection), "0008")
        _insert_plain(connection, {erased: erased.replace("-", "")})

    async with database.write() as connection:
        await connection.run_sync(back)
    await migrate(url, "test")
    async with another().read() as connection:
        assert (await connection.execute(sa.select(user.c.id, user.c.phone))).all() == [(erased, None)]
