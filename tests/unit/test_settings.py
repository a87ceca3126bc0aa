"""Settings are read once, checked at the door, and a refusal says what to write instead."""

from pathlib import Path

import msgspec
import pytest

from deploy.settings import Ports, SettingsError, from_environment, unknown_keys
from domain.policy import DEFAULT_POLICY, CategoryPolicy


def test_an_empty_environment_gives_the_embedded_platform_on_loopback(tmp_path: Path) -> None:
    settings = from_environment({}, tmp_path)
    assert settings.data_dir == tmp_path / "var"
    assert (settings.bind, settings.http_port, settings.ws_port, settings.dashboard_port) == (
        "127.0.0.1",
        8000,
        8080,
        8265,
    )
    assert settings.embedded == {"database": True, "nats": True, "redis": True}
    assert settings.env == "dev"
    assert not settings.rate_limits_on
    assert settings.ports == Ports()


def test_a_platform_that_others_can_reach_is_not_a_development_one() -> None:
    assert from_environment({"RENOVEASY_BIND": "0.0.0.0"}).env == "prod"
    assert from_environment({"RENOVEASY_BIND": "0.0.0.0", "RENOVEASY_ENV": "dev"}).env == "dev"


@pytest.mark.parametrize(
    ("env", "limits", "on"),
    [("dev", "auto", False), ("dev", "on", True), ("prod", "auto", True), ("prod", "off", False)],
)
def test_rate_limits_follow_the_environment_unless_they_are_set(env: str, limits: str, on: bool) -> None:
    assert from_environment({"RENOVEASY_ENV": env, "RENOVEASY_RATE_LIMITS": limits}).rate_limits_on is on


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("HTTP_PORT", "80a", "a whole number from 1 to 65535"),
        ("HTTP_PORT", "0", "a whole number from 1 to 65535"),
        ("HTTP_PORT", "65536", "a whole number from 1 to 65535"),
        ("HTTP_PORT", "-1", "a whole number from 1 to 65535"),
        ("HTTP_PORT", "٨٠", "a whole number from 1 to 65535"),
        ("PORT_GCS", "x", "0: a free port"),
        ("ENV", "staging", "dev, prod"),
        ("RATE_LIMITS", "yes", "auto, on, off"),
        ("LOG_LEVEL", "loud", "debug, info, warning, error"),
        ("BIND", "example.org", "an IPv4 address"),
        ("HOSTS", "0", "a whole number from 1 to 256"),
        ("NAMESPACE", "a.b", "up to 32 of a-z"),
        ("ORIGINS", "app.example.com", "origins such as https://"),
        ("ORIGINS", "https://a.example, *", "origins such as https://"),
        ("HOST_ACTIVATIONS", "10", "a whole number from 100 to"),
        ("HOST_ACTIVATIONS_BYTES", "1 GB", "a whole number from 1048576 to"),
        ("END_PAUSED_HOSTS", "yes", "on, off"),
        ("POLICY", "{", "a JSON object of policy fields"),
        ("POLICY", "[]", "a JSON object of policy fields"),
        ("POLICY", '{"quote_window": 1}', "policy.quote_window does not exist; there are: arrived_within_m, "),
        ("POLICY", '{"quotes_active_max": "many"}', "policy.quotes_active_max cannot be 'many'"),
        ("POLICY", '{"quotes_active_max": -1}', "use a number from 0"),
        ("NATS_URL", "http://localhost:4222", "nats:// or tls://"),
        ("REDIS_URL", "localhost", "redis://"),
        ("DATABASE_URL", "postgres://x", "mysql+asyncmy://"),
        ("DATABASE_URL", "mysql+asyncmy://h:port/x", "mysql+asyncmy://"),
    ],
)
def test_a_bad_value_names_its_key_the_value_and_what_is_allowed(key: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_environment({f"RENOVEASY_{key}": value})
    text = str(caught.value)
    assert f"RENOVEASY_{key} is {value!r}" in text
    assert allowed in text


def test_a_refused_address_does_not_show_its_password() -> None:
    with pytest.raises(SettingsError) as caught:
        from_environment({"RENOVEASY_DATABASE_URL": "postgres://root:hunter2@db/x"})
    assert "hunter2" not in str(caught.value)


def test_a_data_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="RENOVEASY_DATA_DIR"):
        from_environment({"RENOVEASY_DATA_DIR": str(tmp_path / "file")})


def test_a_mistyped_key_is_reported_with_the_one_that_was_meant() -> None:
    assert unknown_keys({"RENOVEASY_HTP_PORT": "1", "RENOVEASY_HTTP_PORT": "1", "PATH": ""}) == {
        "RENOVEASY_HTP_PORT": "RENOVEASY_HTTP_PORT"
    }


def test_each_data_folder_has_run_folders_of_its_own_that_are_short_enough_for_sockets(tmp_path: Path) -> None:
    deep = {"RENOVEASY_DATA_DIR": str(tmp_path / ("d" * 200))}
    one, two = from_environment({}, tmp_path), from_environment(deep)
    assert one.run_dir != two.run_dir
    for settings in (one, two):
        assert len(str(settings.run_dir / "h" / ("0" * 56) / "s.4194304.tmp")) <= 107


def test_origins_are_a_list_and_none_by_default() -> None:
    assert from_environment({}).origins == ()
    given = from_environment({"RENOVEASY_ORIGINS": "https://a.example, http://localhost:5173"})
    assert given.origins == ("https://a.example", "http://localhost:5173")


def test_a_policy_changes_the_fields_that_it_names_and_no_others() -> None:
    assert from_environment({}).policy == DEFAULT_POLICY
    given = from_environment({"RENOVEASY_POLICY": '{"quote_window_ms": 3000, "categories": {"locks": {}}}'}).policy
    assert given.quote_window_ms == 3000
    assert given == msgspec.structs.replace(
        DEFAULT_POLICY, quote_window_ms=3000, categories={"locks": CategoryPolicy()}
    )


def test_caps_of_hosts_can_be_set() -> None:
    given = from_environment({"RENOVEASY_HOST_ACTIVATIONS": "5000", "RENOVEASY_HOST_ACTIVATIONS_BYTES": "268435456"})
    assert (given.host_activations, given.host_activations_bytes) == (5_000, 256 << 20)
    assert from_environment({}).host_activations_bytes == 512 << 20
