"""`renoveasy reset-totp` on a database as the platform leaves it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.devices import TotpSecret
from storage.accounts import SqlAccounts
from storage.engine import Database
from storage.user_keys import SqlTotpSecrets
from tests.support.databases import migrated
from tests.support.keys import ring_of
from tests.support.rest_app import ManualClock

PHONE = "+8613800000001"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("reset")
    with migrated("sqlite", folder):
        yield folder


def reset(folder: Path, phone: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.cli", "reset-totp", phone]
    environment = os.environ | {"RENOVEASY_DATA_DIR": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def enrolled(folder: Path) -> str:
    database = Database(f"sqlite+aiosqlite:///{folder / 'renoveasy.db'}")
    try:
        keys = ring_of(database, folder)
        accounts = SqlAccounts(database, ManualClock(), lambda: "01890000-0000-7000-8000-000000000001", keys)
        user, _ = await accounts.find_or_create(PHONE, "en")
        await SqlTotpSecrets(database, keys).enrol(TotpSecret(user.id, "SECRET", 1))
        return user.id
    finally:
        await database.close()


async def secret_of(folder: Path, user_id: str) -> TotpSecret | None:
    database = Database(f"sqlite+aiosqlite:///{folder / 'renoveasy.db'}")
    try:
        return await SqlTotpSecrets(database, ring_of(database, folder)).get(user_id)
    finally:
        await database.close()


def test_an_operator_who_lost_the_authenticator_is_let_in_anew_by_whoever_has_a_shell(folder: Path) -> None:
    user_id = asyncio.run(enrolled(folder))
    assert asyncio.run(secret_of(folder, user_id)) is not None
    first, second = reset(folder, PHONE), reset(folder, PHONE)
    assert (first.returncode, first.stdout) == (0, f"{PHONE} has no second factor any more\n")
    assert (second.returncode, second.stdout) == (0, f"{PHONE} had no second factor\n")
    assert asyncio.run(secret_of(folder, user_id)) is None


@pytest.mark.parametrize(
    ("phone", "code", "said"),
    [("13800000001", 2, "is not a phone number"), ("+8613800000009", 1, "has no account")],
)
def test_a_number_without_an_account_is_said_and_makes_none(folder: Path, phone: str, code: int, said: str) -> None:
    for _ in range(2):
        done = reset(folder, phone)
        assert done.returncode == code
        assert said in done.stderr
