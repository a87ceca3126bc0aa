"""The data folder belongs to one platform at a time, and only that platform's own processes are ever ended."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from deploy import runtime
from deploy.runtime import Runtime, StartError
from deploy.settings import Settings, from_environment
from domain.policy import policy_from


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    found = from_environment({"RENOVEASY_DATA_DIR": str(tmp_path / "data")})
    runtime.make_run_dir(found)
    yield found
    found.run_dir.rmdir()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {runtime.TOKEN_KEY: "token-of-this-test"}
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1, env=environment
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()


def recorded(settings: Settings, pid: int, started: str, token: str = "another") -> Runtime:
    return Runtime(pid=1, started="", state="ready", token=token, settings=settings, tree=((pid, started),))


def test_a_data_folder_has_one_holder_and_the_second_is_told_who(settings: Settings) -> None:
    with runtime.locked(settings.data_dir):
        assert runtime.is_locked(settings.data_dir)
        with (
            pytest.raises(StartError, match=rf"pid {os.getpid()}.*RENOVEASY_DATA_DIR"),
            runtime.locked(settings.data_dir),
        ):
            pass
    assert not runtime.is_locked(settings.data_dir)


def test_a_port_in_use_is_named_with_its_setting(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"port {port} is in use.*RENOVEASY_WS_PORT"):
            runtime.check_public_ports(msgspec.structs.replace(settings, ws_port=port))


def test_two_settings_with_one_port_are_refused(settings: Settings) -> None:
    with pytest.raises(StartError, match="RENOVEASY_HTTP_PORT and RENOVEASY_WS_PORT are both 9"):
        runtime.check_public_ports(msgspec.structs.replace(settings, http_port=9, ws_port=9))


def test_every_inner_port_is_chosen_and_no_two_platforms_get_the_same(settings: Settings, tmp_path: Path) -> None:
    other = msgspec.structs.replace(settings, data_dir=tmp_path / "other")
    with runtime.chosen_ports(settings, None) as one, runtime.chosen_ports(other, one) as two:
        ports = [(*msgspec.structs.astuple(chosen.ports), chosen.metrics_port) for chosen in (one, two)]
    assert 0 not in ports[0]
    assert len({*ports[0], *ports[1]}) == len(ports[0]) + len(ports[1])


def test_the_ports_of_the_last_start_are_taken_again(settings: Settings, tmp_path: Path) -> None:
    with runtime.chosen_ports(msgspec.structs.replace(settings, data_dir=tmp_path / "x"), None) as last:
        pass
    with runtime.chosen_ports(settings, last) as again:
        assert again.ports == last.ports


def test_a_port_that_is_set_is_kept(settings: Settings) -> None:
    given = msgspec.structs.replace(settings, ports=msgspec.structs.replace(settings.ports, nats=4222))
    with runtime.chosen_ports(given, None) as chosen:
        assert chosen.ports.nats == 4222


def test_the_runtime_file_comes_back_as_written_and_is_private(settings: Settings) -> None:
    settings.data_dir.mkdir()
    written = recorded(settings, 5, "x")
    runtime.write(written)
    assert runtime.read(settings.data_dir) == written
    assert (settings.data_dir / runtime.FILE).stat().st_mode & 0o777 == 0o600


def test_a_policy_of_ones_own_survives_the_runtime_file(settings: Settings) -> None:
    settings.data_dir.mkdir()
    policy = policy_from({"quote_window_ms": 3000, "categories": {"locks": {"slot_notice_ms": 0}}})
    runtime.write(recorded(msgspec.structs.replace(settings, policy=policy), 5, "x"))
    read = runtime.read(settings.data_dir)
    assert read is not None
    assert read.settings.policy == policy


def test_the_runtime_file_of_an_older_version_is_understood(settings: Settings) -> None:
    """Else an upgrade after a crash would leave the crashed platform's processes where they are."""
    settings.data_dir.mkdir()
    runtime.write(recorded(settings, 5, "x"))
    path = settings.data_dir / runtime.FILE
    known = json.loads(path.read_text())
    for added in ("host_activations", "host_activations_bytes", "end_paused_hosts", "policy"):
        del known["settings"][added]
    path.write_text(json.dumps(known))
    assert runtime.read(settings.data_dir) == recorded(settings, 5, "x")


def test_a_leftover_is_ended_by_its_pid_and_start(settings: Settings, sleeper: "subprocess.Popen[bytes]") -> None:
    found = recorded(settings, sleeper.pid, runtime.start_of(sleeper.pid))
    assert runtime.end_leftovers(found) == [sleeper.pid]
    assert sleeper.wait(5) != 0


def test_a_stranger_with_a_leftovers_pid_is_left_alone(settings: Settings, sleeper: "subprocess.Popen[bytes]") -> None:
    assert runtime.end_leftovers(recorded(settings, sleeper.pid, "an earlier start")) == []
    assert sleeper.poll() is None


def test_a_leftover_that_left_the_tree_is_found_by_its_token(
    settings: Settings, sleeper: "subprocess.Popen[bytes]"
) -> None:
    assert runtime.end_leftovers(recorded(settings, 0, "", "token-of-this-test")) == [sleeper.pid]
