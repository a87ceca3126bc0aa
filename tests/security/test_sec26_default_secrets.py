"""SEC-26: the platform does not start with servers whose password everybody knows, and never says what it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.given_secrets import KNOWN, check_secrets, wrong_with
from deploy.runtime import StartError
from deploy.settings import Settings, from_environment

STRONG = "cT9-lw2_Vq7kXe"
REFUSED = [
    "mysql+asyncmy://root@db.example/renoveasy", "mysql+asyncmy://root:@db.example/renoveasy",
    "mysql+asyncmy://root:root@db.example/renoveasy", "mysql+asyncmy://app:password@db.example/renoveasy",
    "mysql+asyncmy://app:PASSWORD@127.0.0.1/renoveasy", "mariadb+asyncmy://app:changeme@localhost/renoveasy",
    "mysql+asyncmy://renoveasy1:Renoveasy1@db.example/x", "mysql+asyncmy://my-own-name:my-own-name@db.example/x",
    "mysql+asyncmy://app:pass%77ord@db.example/x", "mysql+asyncmy://app:short@db.example/x",
    "mysql+asyncmy://app:xxxxxxxxxxxx@db.example/x", "mysql+asyncmy://db.example/x", "mysql+asyncmy://app@10.0.0.7:3306/x",
    "redis://cache.example:6379/0", "redis://:foobared@cache.example/0", "rediss://default:default@cache.example/0",
    "redis://cache.example/0?password=changeme", "redis://[2001:db8::1]/0", "redis://:12345678@127.0.0.1/0",
    "redis://0.0.0.0:6379", "redis://localhost.evil.example/0", "redis://127.0.0.1.evil.example/0",
    "nats://nats.example:4222", "nats://secret@nats.example:4222", "nats://user:pass@nats.example", "tls://nats.example",
    "nats://admin:admin123@127.0.0.1", "nats://natspass@127.0.0.1", "nats://app:@nats.example", "nats://token@nats.example",
]  # fmt: skip
ACCEPTED = [
    "", "sqlite+aiosqlite:////var/lib/renoveasy/renoveasy.db", "unix:///run/valkey.sock",
    f"mysql+asyncmy://app:{STRONG}@db.example/renoveasy", f"redis://:{STRONG}@cache.example/0",
    f"redis://cache.example/0?password={STRONG}", f"nats://{STRONG}@nats.example", f"nats://app:{STRONG}@nats.example",
    "redis://127.0.0.1:6379/0", "redis://localhost/0", "nats://[::1]:4222", "mysql+asyncmy://root@127.0.0.1/renoveasy",
]  # fmt: skip


def settings(env: str, url: str) -> Settings:
    field = {"mysql": "DATABASE", "maria": "DATABASE", "sqlit": "DATABASE", "nats:": "NATS", "tls:/": "NATS"}.get(
        url[:5]
    )
    return from_environment({"RENOVEASY_ENV": env, f"RENOVEASY_{field or 'REDIS'}_URL": url}, Path("/nowhere"))


@pytest.mark.parametrize("url", REFUSED)
def test_an_open_door_or_a_password_that_all_know_stops_the_start_outside_of_dev(url: str) -> None:
    with pytest.raises(StartError, match=r"RENOVEASY_(DATABASE|NATS|REDIS)_URL has .* password") as error:
        check_secrets(settings("prod", url))
    assert url not in str(error.value)
    check_secrets(settings("dev", url))


@pytest.mark.parametrize("url", ACCEPTED)
def test_a_good_password_and_what_never_leaves_the_machine_are_accepted(url: str) -> None:
    check_secrets(settings("prod", url))


@pytest.mark.parametrize("password", sorted(KNOWN))
def test_every_known_password_is_refused_in_any_case(password: str) -> None:
    for spelt in (password, password.upper(), password.title()):
        assert wrong_with(f"redis://:{spelt}@cache.example/0")


def test_the_start_ends_with_the_sentence_and_has_made_nothing(tmp_path: Path) -> None:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RENOVEASY_")},
        "RENOVEASY_DATA_DIR": str(tmp_path / "data"),
        "RENOVEASY_ENV": "prod",
        "RENOVEASY_REDIS_URL": "redis://:hunter2@cache.example/0",
    }
    command = [sys.executable, "-m", "deploy.cli", "up"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "RENOVEASY_REDIS_URL has a password that is guessed at once" in ended.stdout
    assert "hunter2" not in ended.stdout + ended.stderr
    assert not (tmp_path / "data").exists()
