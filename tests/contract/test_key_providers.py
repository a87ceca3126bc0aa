"""Every key provider against what it speaks to: a file, Vault's transit API over HTTP, AWS KMS as moto serves it."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import boto3
import msgspec
import pytest

from deploy.connections import keys_folder
from deploy.keys import MASTER, key_providers
from deploy.settings import Settings, from_environment
from domain.keys import DATA_KEY_BYTES, KeyProvider, KeysUnavailable
from tests.support.vault import TOKEN, Vault


@pytest.fixture
def vault() -> Iterator[Vault]:
    with Vault() as server:
        yield server


def kms_key(endpoint: str) -> str:
    kms = boto3.client("kms", region_name="eu-central-1", endpoint_url=endpoint)
    key: str = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.close()
    return key


def settings_for(kind: str, folder: Path, request: pytest.FixtureRequest) -> Settings:
    environment = {"RENOVEASY_DATA_DIR": str(folder), "RENOVEASY_KEY_PROVIDER": kind}
    if kind == "vault":
        token = folder / "token"
        token.write_text(f"{TOKEN}\n")
        environment |= {
            "RENOVEASY_VAULT_URL": request.getfixturevalue("vault").url,
            "RENOVEASY_VAULT_KEY": "renoveasy",
            "RENOVEASY_VAULT_TOKEN_FILE": str(token),
        }
    if kind == "aws-kms":
        endpoint = request.getfixturevalue("aws")
        environment |= {
            "RENOVEASY_AWS_KMS_KEY": kms_key(endpoint),
            "RENOVEASY_AWS_REGION": "eu-central-1",
            "RENOVEASY_AWS_KMS_ENDPOINT": endpoint,
        }
    return from_environment(environment)


@pytest.fixture(params=["file", "vault", "aws-kms"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return settings_for(request.param, tmp_path, request)


@pytest.fixture
def provider(settings: Settings) -> KeyProvider:
    return key_providers(settings)[settings.key_provider]


async def test_what_is_wrapped_comes_back_and_does_not_show_the_key(provider: KeyProvider, settings: Settings) -> None:
    fresh = await provider.new_key()
    assert provider.name == settings.key_provider
    assert len(fresh.plain) == DATA_KEY_BYTES
    assert fresh.plain not in fresh.wrapped
    assert len(fresh.wrapped) <= 1024
    assert await provider.unwrap(fresh.wrapped) == fresh.plain
    another_process = key_providers(settings)[settings.key_provider]
    assert await another_process.unwrap(fresh.wrapped) == fresh.plain


async def test_each_key_is_a_new_one_and_none_is_printed(provider: KeyProvider) -> None:
    made = [await provider.new_key() for _ in range(3)]
    assert len({fresh.plain for fresh in made}) == len({fresh.wrapped for fresh in made}) == 3
    assert str(made[0]) == "FreshKey(***)"


async def test_what_was_changed_cut_off_or_never_wrapped_is_refused(provider: KeyProvider) -> None:
    wrapped = (await provider.new_key()).wrapped
    changed = wrapped[:-3] + bytes([wrapped[-3] ^ 1]) + wrapped[-2:]
    for wrong in (changed, wrapped[:-4], wrapped[:20], b"", b"\x00\xff" * 40, b"vault:v9:AAAA"):
        with pytest.raises(KeysUnavailable):
            await provider.unwrap(wrong)


async def test_another_master_key_opens_nothing(request: pytest.FixtureRequest, tmp_path: Path, aws: str) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    mine, theirs = (key_providers(settings_for("file", folder, request))["file"] for folder in (one, other))
    with pytest.raises(KeysUnavailable, match=MASTER):
        await theirs.unwrap((await mine.new_key()).wrapped)


def test_the_secret_in_the_data_folder_is_for_its_owner_alone_and_made_once(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings = settings_for("file", tmp_path, request)
    path = keys_folder(settings) / MASTER
    assert not path.exists()
    asyncio.run(key_providers(settings)["file"].new_key())
    first = path.read_bytes()
    asyncio.run(key_providers(settings)["file"].new_key())
    assert (len(first), path.read_bytes()) == (32, first)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_former_file_is_not_made_anew_where_another_provider_is_in_use(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings = settings_for("vault", tmp_path, request)
    with pytest.raises(KeysUnavailable, match="field-master"):
        await key_providers(settings)["file"].unwrap(b"x" * 60)
    assert not (keys_folder(settings) / MASTER).exists()


# --- Vault -------------------------------------------------------------------------------------------------------


def to_vault(request: pytest.FixtureRequest, folder: Path) -> KeyProvider:
    return key_providers(settings_for("vault", folder, request))["vault"]


async def test_vault_is_asked_by_the_two_calls_that_its_policy_allows(
    request: pytest.FixtureRequest, vault: Vault, tmp_path: Path
) -> None:
    provider = to_vault(request, tmp_path)
    await provider.unwrap((await provider.new_key()).wrapped)
    assert vault.asked == ["/v1/transit/datakey/plaintext/renoveasy", "/v1/transit/decrypt/renoveasy"]


async def test_what_vault_wrapped_before_its_key_was_rotated_still_opens(
    request: pytest.FixtureRequest, vault: Vault, tmp_path: Path
) -> None:
    provider = to_vault(request, tmp_path)
    before = await provider.new_key()
    vault.rotate("renoveasy")
    after = await provider.new_key()
    assert (before.wrapped[:9], after.wrapped[:9]) == (b"vault:v1:", b"vault:v2:")
    assert await provider.unwrap(before.wrapped) == before.plain


async def test_a_renewed_token_is_taken_from_the_file_at_the_next_call(
    request: pytest.FixtureRequest, vault: Vault, tmp_path: Path
) -> None:
    provider = to_vault(request, tmp_path)
    (tmp_path / "token").write_text("hvs.expired")
    with pytest.raises(KeysUnavailable, match="403: permission denied") as caught:
        await provider.new_key()
    assert "hvs." not in str(caught.value)
    (tmp_path / "token").write_text(TOKEN)
    await provider.new_key()
    (tmp_path / "token").unlink()
    with pytest.raises(KeysUnavailable, match="token cannot be read"):
        await provider.new_key()


async def test_a_sealed_vault_and_a_strange_answer_say_so_without_quoting_a_key(
    request: pytest.FixtureRequest, vault: Vault, tmp_path: Path
) -> None:
    provider = to_vault(request, tmp_path)
    vault.sealed = True
    with pytest.raises(KeysUnavailable, match="503: Vault is sealed"):
        await provider.new_key()
    vault.sealed = False
    for answer in (
        b"",
        b"<html>",
        b"[]",
        b'{"data":{"plaintext":"c2hvcnQ=","ciphertext":"vault:v1:x"}}',
        b'{"data":{}}',
    ):
        vault.answer = answer
        with pytest.raises(KeysUnavailable) as caught:
            await provider.new_key()
        assert "c2hvcnQ" not in str(caught.value)


# --- outages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vault", "aws-kms"])
async def test_a_provider_that_is_down_is_named(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    settings = settings_for(kind, tmp_path, request)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    settings = msgspec.structs.replace(settings, vault_url=settings.vault_url and nobody, aws_kms_endpoint=nobody)
    with pytest.raises(KeysUnavailable, match=r"(Vault's|AWS KMS's) key .* does not answer"):
        await key_providers(settings)[kind].new_key()


async def test_kms_refuses_a_key_that_does_not_exist(request: pytest.FixtureRequest, tmp_path: Path, aws: str) -> None:
    settings = settings_for("aws-kms", tmp_path, request)
    strange = msgspec.structs.replace(settings, aws_kms_key="alias/nobody")
    with pytest.raises(KeysUnavailable, match="refuses: NotFound"):
        await key_providers(strange)["aws-kms"].new_key()


async def test_kms_binds_a_data_key_to_its_purpose(request: pytest.FixtureRequest, tmp_path: Path, aws: str) -> None:
    settings = settings_for("aws-kms", tmp_path, request)
    kms = boto3.client("kms", region_name="eu-central-1", endpoint_url=aws)
    for_something_else = kms.generate_data_key(KeyId=settings.aws_kms_key, KeySpec="AES_256")["CiphertextBlob"]
    kms.close()
    with pytest.raises(KeysUnavailable):
        await key_providers(settings)["aws-kms"].unwrap(for_something_else)
