"""`renoveasy migrate`, `reencrypt` and a start: what they do with keys and phones, and what they say without keys."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from deploy.cli import main
from deploy.connections import SystemClock, keys_folder, new_id
from deploy.keys import key_ring, make_phones_secret
from deploy.runtime import StartError
from deploy.settings import Settings, from_environment
from storage.accounts import SqlAccounts
from storage.engine import Database
from storage.key_ring import SqlKeyRing
from storage.reencryption import has_plain
from storage.tables import data_key, setting, totp_secret, user
from storage.tokens import JwtIssuer, SigningKeys
from storage.user_keys import SqlTotpSecrets
from tests.contract.test_key_ring import with_plain_rows
from tests.support.vault import TOKEN, Vault


@pytest.fixture
def vault() -> Iterator[Vault]:
    with Vault() as server:
        yield server


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"RENOVEASY_DATA_DIR": str(tmp_path / "var")}


def with_vault(environment: dict[str, str], vault: Vault, folder: Path) -> dict[str, str]:
    token = folder / "token"
    token.write_text(TOKEN)
    return environment | {
        "RENOVEASY_KEY_PROVIDER": "vault",
        "RENOVEASY_VAULT_URL": vault.url,
        "RENOVEASY_VAULT_KEY": "renoveasy",
        "RENOVEASY_VAULT_TOKEN_FILE": str(token),
    }


def renoveasy(environment: dict[str, str], *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


def url_of(settings: Settings) -> str:
    return f"sqlite+aiosqlite:///{settings.sqlite_path}"


async def people(settings: Settings, count: int) -> dict[str, str]:
    database = Database(url_of(settings))
    accounts = SqlAccounts(database, SystemClock(), new_id, key_ring(settings, database))
    made = [(await accounts.find_or_create(f"+86136{n:08d}", "en"))[0] for n in range(count)]
    await database.close()
    return {person.id: person.phone for person in made}


async def known(settings: Settings, ids: list[str]) -> dict[str, str]:
    database = Database(url_of(settings))
    accounts = SqlAccounts(database, SystemClock(), new_id, key_ring(settings, database))
    found = {person.id: person.phone for person in (await accounts.get(ids)).values()}
    await database.close()
    return found


async def stored(settings: Settings) -> tuple[list[str], set[int], bool]:
    """Who wrapped each data key, which keys the phones are under, and whether any phone is, or was, in plain."""
    database = Database(url_of(settings))
    async with database.read() as connection:
        providers = (await connection.scalars(sa.select(data_key.c.provider).order_by(data_key.c.number))).all()
        sealed = (await connection.scalars(sa.select(user.c.phone_sealed))).all()
    plain = await has_plain(database)
    await database.close()
    return list(providers), {int.from_bytes(one[1:5]) if one else 0 for one in sealed}, plain


def test_migrating_an_empty_database_makes_no_keys(environment: dict[str, str], tmp_path: Path) -> None:
    """The machine that migrates may not be the one whose data folder has the keys."""
    result = renoveasy(environment, "migrate")
    assert (result.exit_code, result.output.startswith("the schema is at ")) == (0, True)
    assert not (tmp_path / "var" / "keys").exists()
    assert asyncio.run(stored(from_environment(environment)))[0] == []


def test_migrating_encrypts_the_phones_of_an_earlier_version(environment: dict[str, str]) -> None:
    settings = from_environment(environment)
    assert renoveasy(environment, "migrate").exit_code == 0
    made = asyncio.run(with_plain_rows(url_of(settings), 5))
    assert asyncio.run(stored(settings)) == ([], {0}, True)
    assert renoveasy(environment, "migrate").exit_code == 0
    assert asyncio.run(stored(settings)) == (["file"], {1}, False)
    assert asyncio.run(known(settings, [*made])) == made


def test_reencrypting_says_how_far_it_came_and_a_new_key_is_made_when_asked_for(environment: dict[str, str]) -> None:
    settings = from_environment(environment)
    renoveasy(environment, "migrate")
    made = asyncio.run(people(settings, 5))
    nothing = renoveasy(environment, "reencrypt")
    assert "0 rewritten, all under data key 1" in nothing.output
    again = renoveasy(environment, "reencrypt", "--new-key")
    assert (again.exit_code, "5 rewritten, all under data key 2" in again.output) == (0, True)
    assert asyncio.run(stored(settings)) == (["file", "file"], {2}, False)
    assert asyncio.run(known(settings, [*made])) == made


def test_the_key_of_the_blind_indexes_is_replaced_with_one_command(environment: dict[str, str]) -> None:
    settings = from_environment(environment)
    renoveasy(environment, "migrate")
    made = asyncio.run(people(settings, 5))
    again = renoveasy(environment, "reencrypt", "--new-index-key")
    assert (again.exit_code, "5 rewritten, all under data key 2" in again.output) == (0, True)
    assert asyncio.run(people(settings, 5)) == made
    assert asyncio.run(index_settings(settings)) == ["blind_index_key"]


async def index_settings(settings: Settings) -> list[str]:
    database = Database(url_of(settings))
    async with database.read() as connection:
        keys = (await connection.scalars(sa.select(setting.c.key).where(setting.c.key.like("blind_index%")))).all()
    await database.close()
    return list(keys)


async def test_a_start_takes_second_factors_off_the_signing_keys(environment: dict[str, str]) -> None:
    """So that a signing key can be removed when its tokens have expired, as `renoveasy rotate-keys` says."""
    settings = from_environment(environment)
    await asyncio.to_thread(renoveasy, environment, "migrate")
    issuer, person = JwtIssuer(SigningKeys.open(keys_folder(settings))), new_id()
    database = Database(url_of(settings))
    async with database.write() as connection:
        row = {"user_id": person, "sealed": issuer.seal("SECRET"), "created_at": 1, "last_step": 0}
        await connection.execute(sa.insert(totp_secret).values(row))
    await make_phones_secret(settings, lambda _: None, always_open=True)
    SigningKeys.rotate(keys_folder(settings))
    (keys_folder(settings) / "signing-1.pem").unlink()
    known = await SqlTotpSecrets(database, key_ring(settings, database)).get(person)
    assert known is not None
    assert known.secret == "SECRET"
    await database.close()


def test_moving_from_the_file_to_vault_needs_the_file_no_more(
    environment: dict[str, str], vault: Vault, tmp_path: Path
) -> None:
    renoveasy(environment, "migrate")
    made = asyncio.run(people(from_environment(environment), 5))
    with_it = with_vault(environment, vault, tmp_path)
    moved = renoveasy(with_it, "reencrypt", "--new-key")
    assert (moved.exit_code, "5 rewritten, all under data key 2" in moved.output) == (0, True)
    (tmp_path / "var" / "keys" / "field-master").unlink()
    settings = from_environment(with_it)
    assert asyncio.run(stored(settings)) == (["file", "vault"], {2}, False)
    assert asyncio.run(known(settings, [*made])) == made
    assert asyncio.run(people(settings, 5)) == made


def test_fields_that_were_changed_outside_are_named_without_what_is_in_them(environment: dict[str, str]) -> None:
    settings = from_environment(environment)
    renoveasy(environment, "migrate")
    made = asyncio.run(people(settings, 2))
    broken = min(made)

    async def damage() -> None:
        database = Database(url_of(settings))
        async with database.write() as connection:
            await connection.execute(sa.update(user).where(user.c.id == broken).values(phone_sealed=b"x" * 50))
        await database.close()

    asyncio.run(damage())
    result = renoveasy(environment, "reencrypt", "--new-key")
    assert result.exit_code == 1
    assert f"cannot be read and was left as it is: user.phone of {broken}" in result.output
    assert "1 fields were changed outside of the platform" in result.output
    assert made[broken] not in result.output


async def test_a_start_without_its_provider_says_which_and_what_is_missing(
    environment: dict[str, str], vault: Vault, tmp_path: Path
) -> None:
    settings = from_environment(with_vault(environment, vault, tmp_path))
    assert (await asyncio.to_thread(renoveasy, environment, "migrate")).exit_code == 0
    vault.sealed = True
    with pytest.raises(StartError, match=r"503: Vault is sealed.*RENOVEASY_KEY_PROVIDER"):
        await make_phones_secret(settings, lambda _: None, always_open=True)
    vault.stop()
    with pytest.raises(StartError, match="does not answer"):
        await make_phones_secret(settings, lambda _: None, always_open=True)
    vault.sealed = False
    vault.start()
    await make_phones_secret(settings, lambda _: None, always_open=True)


async def test_a_running_process_needs_its_provider_no_more(
    environment: dict[str, str], vault: Vault, tmp_path: Path
) -> None:
    settings = from_environment(with_vault(environment, vault, tmp_path))
    await asyncio.to_thread(renoveasy, environment, "migrate")
    database = Database(url_of(settings))
    ring: SqlKeyRing = key_ring(settings, database)
    await ring.open()
    accounts = SqlAccounts(database, SystemClock(), new_id, ring)
    vault.stop()
    person, is_new = await accounts.find_or_create("+8613600000001", "en")
    assert is_new
    assert (await accounts.get([person.id]))[person.id].phone == "+8613600000001"
    assert vault.asked == ["/v1/transit/datakey/plaintext/renoveasy", "/v1/transit/decrypt/renoveasy"]
    await database.close()


async def test_a_data_folder_with_another_secret_is_refused_and_nothing_is_changed(
    environment: dict[str, str], tmp_path: Path
) -> None:
    settings = from_environment(environment)
    await asyncio.to_thread(renoveasy, environment, "migrate")
    await make_phones_secret(settings, lambda _: None, always_open=True)
    (tmp_path / "var" / "keys" / "field-master").unlink()
    with pytest.raises(StartError, match=r"wrapped under another secret than .*field-master"):
        await make_phones_secret(settings, lambda _: None, always_open=True)
    result = await asyncio.to_thread(renoveasy, environment, "reencrypt", "--new-key")
    assert (result.exit_code, "another secret" in result.output) == (1, True)
    assert (await stored(settings))[0] == ["file"]
