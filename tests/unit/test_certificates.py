"""Certificates are judged before they are used: by a start, and by the doctor."""

from pathlib import Path

import pytest

from deploy.certificates import check_certificates
from deploy.doctor import Finding, examine
from deploy.given_secrets import check_secrets
from deploy.runtime import StartError
from deploy.settings import Settings, SettingsError, from_environment, unknown_keys
from tests.support.certificates import Authority, Files


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def settings_of(folder: Path, **settings: str) -> Settings:
    return from_environment({f"RENOVEASY_{key.upper()}": value for key, value in settings.items()}, folder)


def refused(folder: Path, files: Files, road: str = "http") -> str:
    with pytest.raises(StartError) as error:
        check_certificates(settings_of(folder, **files.settings(road)))
    said = str(error.value)
    assert "\n" not in said
    assert f"RENOVEASY_{road.upper()}_TLS_CERTIFICATE" in said
    assert "PRIVATE" not in said
    return said


def test_good_files_and_none_are_accepted(tmp_path: Path, authority: Authority) -> None:
    files = authority.issue()
    check_certificates(settings_of(tmp_path, **files.settings("http"), **files.settings("ws")))
    check_certificates(settings_of(tmp_path))


@pytest.mark.parametrize("road", ["http", "ws"])
def test_each_thing_that_can_be_wrong_has_its_sentence(tmp_path: Path, authority: Authority, road: str) -> None:
    good, other = authority.issue("good"), authority.issue("other")
    nowhere, garbage = tmp_path / "nowhere", tmp_path / "garbage"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    assert "cannot be read: No such file" in refused(tmp_path, Files(nowhere, good.key), road)
    assert "cannot be read: No such file" in refused(tmp_path, Files(good.certificate, nowhere), road)
    assert "cannot be read: Is a directory" in refused(tmp_path, Files(tmp_path, good.key), road)
    assert "holds no certificate in PEM" in refused(tmp_path, Files(garbage, good.key), road)
    assert "holds no private key in PEM" in refused(tmp_path, Files(good.certificate, garbage), road)
    assert "holds no private key in PEM" in refused(tmp_path, Files(good.certificate, good.certificate), road)
    assert "is not the key of" in refused(tmp_path, Files(good.certificate, other.key), road)
    assert "needs a passphrase" in refused(tmp_path, authority.issue("hidden", passphrase=b"x"), road)
    assert "has expired on" in refused(tmp_path, authority.issue("expired", since_days=-9, days=-1), road)
    assert "is not valid before" in refused(tmp_path, authority.issue("early", since_days=3, days=9), road)


def test_one_file_needs_the_other(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"RENOVEASY_WS_TLS_KEY is empty; RENOVEASY_WS_TLS_CERTIFICATE needs it"):
        settings_of(tmp_path, ws_tls_certificate="a.pem")
    with pytest.raises(SettingsError, match=r"RENOVEASY_HTTP_TLS_CERTIFICATE is empty"):
        settings_of(tmp_path, http_tls_key="a.key")


def test_paths_are_taken_from_the_folder_of_the_start(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, ws_tls_certificate="a.pem", ws_tls_key="a.key")
    assert settings.ws_tls_certificate == str(tmp_path / "a.pem")
    assert (settings.rest_address[:5], settings.ws_address[:4]) == ("http:", "wss:")


async def found(folder: Path, **settings: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in await examine(settings_of(folder, **settings))}


async def test_the_doctor_says_for_whom_and_until_when(tmp_path: Path, authority: Authority) -> None:
    soon, late = authority.issue("soon", days=5), authority.issue("late", days=20)
    said = await found(tmp_path, **soon.settings("http"), **late.settings("ws"))
    assert (said["TLS of REST"].verdict, said["TLS of WebSocket"].verdict) == ("warn", "ok")
    assert "for localhost, 127.0.0.1, until" in said["TLS of WebSocket"].what
    assert "nothing is restarted" in said["TLS of REST"].advice
    broken = await found(tmp_path, **Files(soon.certificate, late.key).settings("http"))
    assert (broken["TLS of REST"].verdict, broken["TLS of WebSocket"].what) == ("fail", "off")
    assert "RENOVEASY_HTTP_TLS_KEY" in broken["TLS of REST"].advice


async def test_a_chain_lasts_as_long_as_the_first_of_it_that_ends(tmp_path: Path, authority: Authority) -> None:
    """The authority of these tests has 30 days."""
    said = await found(tmp_path, **authority.issue("longer", days=90).settings("http"))
    assert "(29 days)" in said["TLS of REST"].what


async def test_the_doctor_warns_of_plain_text_on_a_network(tmp_path: Path) -> None:
    assert (await found(tmp_path, bind="0.0.0.0"))["TLS of REST"].verdict == "warn"
    assert (await found(tmp_path))["TLS of REST"].verdict == "ok"


# --- credentials of roles ------------------------------------------------------------------------------------------


def test_a_role_uses_its_own_url_and_else_the_common_one(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, nats_url="nats://all@h", nats_url_host="nats://host:s@h", redis_url="redis://r")
    assert settings.url_of("nats_url", "host") == "nats://host:s@h"
    assert settings.url_of("nats_url", "rest") == "nats://all@h"
    assert settings.of_role("host").redis_url == ""
    assert settings.of_role("rest").redis_url == "redis://r"
    assert unknown_keys({"RENOVEASY_NATS_URL_HOST": "", "RENOVEASY_REDIS_URL_REST": ""}) == {}
    assert unknown_keys({"RENOVEASY_NATS_URL_HOSTS": ""}) == {"RENOVEASY_NATS_URL_HOSTS": "RENOVEASY_NATS_URL_HOST"}


def test_a_role_has_no_server_where_the_platform_starts_its_own(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="RENOVEASY_NATS_URL is empty"):
        settings_of(tmp_path, nats_url_host="nats://host:s@h")
    with pytest.raises(SettingsError, match=r"RENOVEASY_REDIS_URL_REST is '\*\*\*'; allowed"):
        settings_of(tmp_path, redis_url="redis://r", redis_url_rest="http://u:p@h")


def test_default_secrets_of_a_role_are_refused_too(tmp_path: Path) -> None:
    good = "nats://host:d0wn-the-lane@nats.example"
    roles = {f"nats_url_{role}": good for role in ("host", "gateway", "rest", "placement", "census")}
    check_secrets(settings_of(tmp_path, env="prod", nats_url="nats://nats.example", **roles))
    with pytest.raises(StartError, match="RENOVEASY_NATS_URL_REST has a password that everybody knows"):
        bad = roles | {"nats_url_rest": "nats://rest:changeme@nats.example"}
        check_secrets(settings_of(tmp_path, env="prod", nats_url="nats://nats.example", **bad))
    del roles["nats_url_census"]  # then it uses the common one
    with pytest.raises(StartError, match="RENOVEASY_NATS_URL has no password"):
        check_secrets(settings_of(tmp_path, env="prod", nats_url="nats://nats.example", **roles))
