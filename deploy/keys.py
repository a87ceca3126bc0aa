"""Which provider keeps the platform's keys, and what a start does with the phones of earlier versions."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from deploy.connections import SystemClock, keys_folder, secret
from deploy.runtime import StartError
from deploy.settings import Settings, key_of
from domain.keys import KeyProvider, KeysUnavailable
from domain.ports import StoreUnavailable
from storage.crypto import FieldDamaged
from storage.engine import Database, DatabaseSettings
from storage.file_keys import FileKeyProvider
from storage.key_ring import SqlKeyRing
from storage.kms_keys import KmsKeyProvider, KmsSettings
from storage.reencryption import (
    Former,
    Reencrypted,
    Report,
    has_former_totp,
    has_plain,
    no_former,
    reencrypt,
    scrub,
)
from storage.tokens import JwtIssuer, SigningKeys
from storage.vault_keys import VaultKeyProvider, VaultSettings

MASTER = "field-master"
_PATIENT = DatabaseSettings(busy_timeout_s=60, statement_timeout_s=600, commit_timeout_s=600, idle_transaction_s=600)


def key_providers(settings: Settings) -> Mapping[str, KeyProvider]:
    """Every provider that is configured, by its name: a former one still unwraps what it has wrapped."""
    read: Callable[[], bytes] = partial(secret, settings, MASTER)
    path = keys_folder(settings) / MASTER
    if settings.key_provider != "file":
        read = path.read_bytes  # only the provider in use makes its secret
    found: dict[str, KeyProvider] = {"file": FileKeyProvider(read, str(path))}
    if settings.vault_url:
        vault = VaultSettings(
            url=settings.vault_url,
            key=settings.vault_key,
            mount=settings.vault_mount,
            namespace=settings.vault_namespace,
            certificates=settings.vault_certificates,
        )
        found["vault"] = VaultKeyProvider(vault, partial(_token, settings.vault_token_file))
    if settings.aws_kms_key:
        kms = KmsSettings(settings.aws_kms_key, settings.aws_region, settings.aws_kms_endpoint)
        found["aws-kms"] = KmsKeyProvider(kms)
    return found


def key_ring(settings: Settings, database: Database) -> SqlKeyRing:
    """The data keys of the platform; nothing is asked before its first use."""
    return SqlKeyRing(database, key_providers(settings), settings.key_provider, SystemClock())


async def open_keys(settings: Settings, database: Database) -> SqlKeyRing:
    """The same, opened. StartError says what is missing and which setting it is about."""
    ring = key_ring(settings, database)
    try:
        await ring.open()
    except (KeysUnavailable, FieldDamaged) as error:
        raise StartError(f"the keys of personal data are not to be had: {error} ({key_of('key_provider')})") from None
    return ring


async def make_phones_secret(settings: Settings, report: Report, *, always_open: bool) -> None:
    """Open the keys, and encrypt what an earlier version has left in plain, with no trace of it in the database's files.

    `always_open` false leaves the keys alone where there is nothing to encrypt. Secrets of second factors that an earlier
    version has sealed come under the data keys too, where the signing keys are here. Raises StartError.
    """
    database = Database(settings.database_url or f"sqlite+aiosqlite:///{settings.sqlite_path}", _PATIENT)
    try:
        plain = await has_plain(database)
        if plain or always_open:
            ring = await open_keys(settings, database)
            if plain or await has_former_totp(database):
                await reencrypt(database, ring, report, former=sealed_before(settings))
            if plain:
                await scrub(database)
    except StoreUnavailable as error:
        raise StartError(f"phones cannot be encrypted: {error}") from None
    finally:
        await database.close()


async def reencrypt_all(
    settings: Settings, report: Report, *, new_key: bool, new_index_key: bool = False
) -> tuple[int, Reencrypted]:
    """Everything under the newest data key, which is a new one if that is asked for; its number and what was done.

    `new_index_key`: phones are found by a new key too from then on. A rotation that was begun before is ended here.

    Raises StartError.
    """
    database = Database(settings.database_url or f"sqlite+aiosqlite:///{settings.sqlite_path}", _PATIENT)
    try:
        ring = await open_keys(settings, database)
        if new_index_key:
            cipher = await ring.rotate_index_key()
        else:
            cipher = await (ring.add() if new_key else ring.newest())
        done = await reencrypt(database, ring, report, former=sealed_before(settings))
        if done.phones_are_whole:
            await ring.end_index_rotation()
        if not done.damaged:
            await ring.keep_index_key()
        if await has_plain(database):
            await scrub(database)
        return cipher.newest, done
    except KeysUnavailable as error:
        raise StartError(f"there is no new data key: {error} ({key_of('key_provider')})") from None
    except StoreUnavailable as error:
        raise StartError(f"stopped half-way, and the next run goes on from here: {error}") from None
    finally:
        await database.close()


def sealed_before(settings: Settings) -> Former:
    """What opens what an earlier version has sealed under keys that came from the signing keys."""
    folder = keys_folder(settings)
    return JwtIssuer(SigningKeys.open(folder)).unseal if folder.is_dir() else no_former


def _token(path: str) -> str:
    return Path(path).read_text().strip()
