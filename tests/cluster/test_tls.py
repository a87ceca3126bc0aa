"""A whole platform with TLS on both roads, and everything that it has embedded behind credentials of each role."""

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.certificates import Authority, Files
from tests.support.platform import Platform

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Files:
    return authority.issue()


@pytest.fixture(scope="module")
def platform(files: Files) -> Iterator[Platform]:
    with Platform(**files.settings("http"), **files.settings("ws")) as running:
        yield running


def shown(platform: Platform, port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=10)


def until_other(platform: Platform, port: int, former: str) -> None:
    deadline = time.monotonic() + 60
    while shown(platform, port) == former:
        assert time.monotonic() < deadline, "the former certificate is still in use"
        time.sleep(0.2)


def test_the_whole_story_over_tls_needs_no_right_that_a_role_does_not_have(platform: Platform) -> None:
    played = platform.renoveasy("demo", "--fast", "--pairs", "1", limit_s=120)
    assert played.returncode == 0, played.stdout + played.stderr
    assert "all went well" in played.stdout
    log = (platform.data_dir / "logs" / "nats.log").read_text()
    assert "Violation" not in log, log[-2000:]


def test_it_says_where_and_as_what_it_answers(platform: Platform, authority: Authority) -> None:
    assert f"https://127.0.0.1:{platform.http_port}/v1" in platform.output
    assert f"wss://127.0.0.1:{platform.ws_port}/connection/websocket" in platform.output
    ports = {name: port for entry in platform.processes() for name, port in entry["ports"].items()}
    assert (ports["https"], ports["wss"]) == (platform.http_port, platform.ws_port)
    with httpx.Client(verify=authority.context(), trust_env=False, timeout=10) as client:
        assert client.get(f"https://localhost:{platform.http_port}/health/ready").status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{platform.rest}/health/ready", timeout=10, trust_env=False)


def test_new_files_are_used_by_both_roads_and_the_doctor_sees_them(
    platform: Platform, authority: Authority, files: Files
) -> None:
    before = {port: shown(platform, port) for port in (platform.http_port, platform.ws_port)}
    with httpx.Client(verify=authority.context(), trust_env=False, timeout=10) as client:
        client.get(f"https://localhost:{platform.http_port}/health/live")
        authority.issue()
        for port, former in before.items():
            until_other(platform, port, former)
        # Over the connection that stands; httpx would open another one silently, so it is counted.
        client.get(f"https://localhost:{platform.http_port}/health/live")
        assert len(client._transport._pool.connections) == 1  # type: ignore[attr-defined]
    said = platform.renoveasy("doctor").stdout  # what else it finds is of other tests
    assert said.count("for localhost, 127.0.0.1,") == 2, said
    assert "another one" not in said, said


def test_files_that_cannot_be_used_are_refused_before_anything_starts(tmp_path: Path, authority: Authority) -> None:
    good, other = authority.issue("good"), authority.issue("other")
    for certificate, key, sentence in (
        (good.certificate, other.key, "is not the key of the first certificate in"),
        (tmp_path / "nowhere.pem", good.key, "cannot be read: No such file or directory"),
    ):
        started = Platform(tmp_path / "data", **Files(certificate, key).settings("http")).launch()
        assert started.wait(60) == 1
        (line,) = [line for line in started.output.splitlines() if line]
        assert sentence in line
        assert "RENOVEASY_HTTP_TLS_CERTIFICATE and RENOVEASY_HTTP_TLS_KEY" in line
        assert not (tmp_path / "data").exists()
        started.close()
