"""Settings are read once, checked at the door, and a refusal says what to write instead."""

from pathlib import Path

import msgspec
import pytest

from deploy.settings import Ports, SettingsError, from_environment, unknown_keys
from domain.otp import DEFAULT_BUDGETS, OtpBudgets
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
    ("env", "totp", "on"),
    [("dev", "auto", False), ("dev", "on", True), ("prod", "auto", True), ("prod", "off", False)],
)
def test_the_second_factor_of_operators_follows_the_environment_unless_it_is_set(env: str, totp: str, on: bool) -> None:
    assert from_environment({"RENOVEASY_ENV": env, "RENOVEASY_OPS_TOTP": totp}).ops_totp_on is on


def test_places_come_from_a_file_that_is_there_or_from_nowhere(tmp_path: Path) -> None:
    assert from_environment({}).geoip_path is None
    file = tmp_path / "places.mmdb"
    file.touch()
    assert from_environment({"RENOVEASY_GEOIP_PATH": str(file)}).geoip_path == file


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
        ("OPS_TOTP", "yes", "auto, on, off"),
        ("GEOIP_PATH", "/nowhere/places.mmdb", "an .mmdb file that is there"),
        ("GEOIP_PATH", "/", "an .mmdb file that is there"),
        ("LOG_LEVEL", "loud", "debug, info, warning, error"),
        ("BIND", "example.org", "an IPv4 address"),
        ("HOSTS", "0", "a whole number from 1 to 256"),
        ("NAMESPACE", "a.b", "up to 32 of a-z"),
        ("ORIGINS", "app.example.com", "origins such as https://"),
        ("ORIGINS", "https://a.example, *", "origins such as https://"),
        ("HOST_ACTIVATIONS", "10", "a whole number from 100 to"),
        ("HOST_ACTIVATIONS_BYTES", "1 GB", "a whole number from 1048576 to"),
        ("END_PAUSED_HOSTS", "yes", "on, off"),
        ("OTP_PREFIX_HOUR", "-1", "a whole number from 0 to 1000000"),
        ("OTP_PHONE_GAP_S", "0", "a whole number from 1 to 86400"),
        ("OTP_PREFIX_DIGITS", "13", "a whole number from 0 to 12"),
        ("OTP_BREAKER_PERCENT", "101", "0: never shut"),
        ("POLICY", "{", "a JSON object of policy fields"),
        ("POLICY", "[]", "a JSON object of policy fields"),
        ("POLICY", '{"quote_window": 1}', "policy.quote_window does not exist; there are: arrived_within_m, "),
        ("POLICY", '{"quotes_active_max": "many"}', "policy.quotes_active_max cannot be 'many'"),
        ("POLICY", '{"quotes_active_max": -1}', "use a number from 0"),
        ("NATS_URL", "http://localhost:4222", "nats:// or tls://"),
        ("REDIS_URL", "localhost", "redis://"),
        ("DATABASE_URL", "postgres://x", "mysql+asyncmy://"),
        ("DATABASE_URL", "mysql+asyncmy://h:port/x", "mysql+asyncmy://"),
        ("KEY_PROVIDER", "gcp", "file, vault, aws-kms"),
        ("VAULT_URL", "vault:8200", "https:// or http://"),
        ("VAULT_KEY", "a/b", "the name of a transit key"),
        ("VAULT_MOUNT", "../sys", "where the transit engine is mounted"),
        ("VAULT_TOKEN_FILE", "/nowhere/token", "a file that is there"),
        ("AWS_KMS_KEY", "a b", "a key's id, ARN or alias"),
        ("AWS_REGION", "EU", "a region such as eu-central-1"),
    ],
)
def test_a_bad_value_names_its_key_the_value_and_what_is_allowed(key: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_environment({f"RENOVEASY_{key}": value})
    text = str(caught.value)
    assert f"RENOVEASY_{key} is {value!r}" in text
    assert allowed in text


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"KEY_PROVIDER": "vault"}, "VAULT_URL"),
        ({"KEY_PROVIDER": "vault", "VAULT_URL": "https://v"}, "VAULT_KEY"),
        ({"KEY_PROVIDER": "vault", "VAULT_URL": "https://v", "VAULT_KEY": "k"}, "VAULT_TOKEN_FILE"),
        ({"KEY_PROVIDER": "aws-kms"}, "AWS_KMS_KEY"),
        ({"KEY_PROVIDER": "aws-kms", "AWS_KMS_KEY": "alias/k"}, "AWS_REGION"),
    ],
)
def test_a_key_provider_names_what_it_needs(given: dict[str, str], missing: str) -> None:
    with pytest.raises(SettingsError, match=f"RENOVEASY_{missing} is empty; RENOVEASY_KEY_PROVIDER="):
        from_environment({f"RENOVEASY_{key}": value for key, value in given.items()})


def test_a_refused_address_does_not_show_its_password() -> None:
    with pytest.raises(SettingsError) as caught:
        from_environment({"RENOVEASY_DATABASE_URL": "postgres://root:hunter2@db/x"})
    assert "hunter2" not in str(caught.value)


GOOGLE = '{"kind": "oidc", "issuer": "https://accounts.google.com", "client_id": "id", "client_secret": "hunter2"}'


def test_sign_in_providers_are_read_from_json() -> None:
    assert from_environment({}).oidc_providers == {}
    wechat = '{"kind": "wechat", "client_id": "wx1", "client_secret": "s"}'
    given = from_environment({"RENOVEASY_OIDC_PROVIDERS": f'{{"google": {GOOGLE}, "wechat": {wechat}}}'}).oidc_providers
    assert (given["google"].issuer, given["wechat"].kind) == ("https://accounts.google.com", "wechat")
    assert unknown_keys({"RENOVEASY_OIDC_PROVIDERS": "{}"}) == {}


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ((GOOGLE, GOOGLE[:-1]), "a JSON object of providers"),
        (('"google"', '"Google"'), "a short lower-case word"),
        (('"kind": "oidc"', '"kind": "saml"'), "Invalid enum value"),
        (('"client_id": "id", ', ""), "client_id"),
        (('"client_id"', '"clientid"'), "unknown field"),
        (("https://accounts", "http://accounts"), "google.issuer: must be an https address"),
        (("https://accounts.google.com", "https://169.254.169.254"), "google.issuer: must be an https address"),
        (("https://accounts.google.com", "https://[::1]"), "google.issuer: must be an https address"),
        (("https://accounts.google.com", "https://u:hunter2@x.example"), "google.issuer: must be an https address"),
        (('"client_id"', '"token_endpoint": "https://x.example/t", "client_id"'), "come from its issuer"),
        (('"oidc"', '"wechat", "token_endpoint": "http://x.example"'), "google.token_endpoint: must be an https"),
    ],
)
def test_a_bad_provider_is_refused_with_what_is_wrong_and_without_its_secret(
    change: tuple[str, str], allowed: str
) -> None:
    text = f'{{"google": {GOOGLE}}}'.replace(*change)
    with pytest.raises(SettingsError) as caught:
        from_environment({"RENOVEASY_OIDC_PROVIDERS": text})
    assert str(caught.value).startswith("RENOVEASY_OIDC_PROVIDERS is '***'; allowed:")
    assert allowed in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_provider_on_this_machine_is_for_development_alone() -> None:
    local = f'{{"google": {GOOGLE.replace("https://accounts.google.com", "http://127.0.0.1:9000")}}}'
    assert from_environment({"RENOVEASY_OIDC_PROVIDERS": local}).oidc_providers["google"].issuer
    with pytest.raises(SettingsError, match="must be an https address"):
        from_environment({"RENOVEASY_OIDC_PROVIDERS": local, "RENOVEASY_ENV": "prod"})


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("https://app.example.com/in, com.example.app:/in", True),
        ("http://127.0.0.1:8000/in", True),
        ("http://app.example.com/in", False),
        ("https://app.example.com", False),
        ("myapp:/in", False),
        ("javascript:alert(1)", False),
        ("https://app.example.com/in#x", False),
        ("https://*.example.com/in", False),
    ],
)
def test_redirect_addresses_are_exact_ones_of_an_app_or_a_site(text: str, good: bool) -> None:
    if good:
        assert len(from_environment({"RENOVEASY_OIDC_REDIRECTS": text}).oidc_redirects) == text.count(",") + 1
    else:
        with pytest.raises(SettingsError, match="RENOVEASY_OIDC_REDIRECTS"):
            from_environment({"RENOVEASY_OIDC_REDIRECTS": text})


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


def test_budgets_of_codes_can_be_set_one_by_one() -> None:
    assert from_environment({}).otp == DEFAULT_BUDGETS
    given = from_environment({"RENOVEASY_OTP_GLOBAL_DAY": "500", "RENOVEASY_OTP_SHUT_S": "60"}).otp
    assert given == msgspec.structs.replace(DEFAULT_BUDGETS, global_day=500, shut_s=60)
    assert unknown_keys({"RENOVEASY_OTP_GLOBAL_DAY": "1", "RENOVEASY_OTP_GLOBAL_DAYS": "1"}) == {
        "RENOVEASY_OTP_GLOBAL_DAYS": "RENOVEASY_OTP_GLOBAL_DAY"
    }


def test_every_budget_of_codes_can_be_set() -> None:
    for name in OtpBudgets.__struct_fields__:
        assert not unknown_keys({f"RENOVEASY_OTP_{name.upper()}": "7"})
        assert getattr(from_environment({f"RENOVEASY_OTP_{name.upper()}": "7"}).otp, name) == 7
