"""`renoveasy up` as its users meet it: real processes, beside another platform, stopped, killed and started again."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.platform import Platform, free_ports

pytestmark = pytest.mark.timeout(400)

ROLES = {"host", "gateway", "placement", "rest", "nats", "redis", "ray", "proxy", "dashboard", "up"}


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform() as running:
        yield running


def eventually(true: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def answers(platform: Platform) -> bool:
    try:
        return httpx.get(f"{platform.rest}/health/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def listening(platform: Platform) -> set[tuple[str, int]]:
    return {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in platform.tree()
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }


def sockets_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_socket()]


# --- while it runs -----------------------------------------------------------------------------------------------


def test_ready_is_the_last_line_after_the_addresses(platform: Platform) -> None:
    lines = platform.output.splitlines()
    assert lines[-1].startswith("ready")
    for address in (
        f"{platform.rest}/v1",
        platform.websocket,
        platform.dashboard,
        platform.metrics,
        str(platform.data_dir),
    ):
        assert address in platform.output


def test_rest_dashboard_and_serve_answer(platform: Platform) -> None:
    assert answers(platform)
    assert httpx.get(f"{platform.dashboard}/api/version", timeout=10).status_code == 200
    applications = httpx.get(f"{platform.dashboard}/api/serve/applications/", timeout=20).json()["applications"]
    assert applications["rest"]["status"] == "RUNNING"


def test_ps_names_each_role_with_the_process_that_does_its_work(platform: Platform) -> None:
    found = platform.processes()
    assert {entry["role"] for entry in found} >= ROLES
    below = {process.pid for process in platform.tree()}
    assert {entry["pid"] for entry in found} <= below
    programs = {entry["name"]: " ".join(psutil.Process(entry["pid"]).cmdline()) for entry in found}
    for name, program in {
        "nats": "nats-server",
        "redis": "valkey-server",
        "haproxy": "haproxy",
        "raylet": "raylet",
    }.items():
        assert program in programs[name]
    for name in ("host-0", "gateway-0", "placement"):
        assert programs[name].startswith("ray::")


def test_nobody_else_on_the_network_can_reach_it(platform: Platform) -> None:
    assert {address for address, _port in listening(platform)} == {"127.0.0.1"}


def test_its_own_numbers_are_on_the_prometheus_endpoint(platform: Platform) -> None:
    assert eventually(lambda: "ray_renoveasy_" in httpx.get(platform.metrics, timeout=10).text, 60)


@pytest.mark.parametrize("role", ["nats", "redis"])
def test_a_crashed_server_comes_back_on_its_port(platform: Platform, role: str) -> None:
    (before,) = platform.pids(role).values()
    os.kill(before, signal.SIGKILL)
    assert eventually(lambda: platform.pids(role).get(role, before) != before, 15)
    port = next(entry["ports"][role] for entry in platform.processes() if entry["role"] == role)
    assert eventually(lambda: connects(port), 5)


def test_a_second_start_on_the_data_folder_is_told_who_has_it(platform: Platform) -> None:
    second = Platform(platform.data_dir).launch()
    assert second.wait(30) == 1
    assert f"pid {platform.pid}" in second.output
    assert "RENOVEASY_DATA_DIR" in second.output
    assert "Traceback" not in second.output
    second.close()


def test_a_port_in_use_is_named_with_its_setting(platform: Platform, tmp_path: Path) -> None:
    second = Platform(tmp_path, http_port=str(platform.http_port)).launch()
    assert second.wait(30) == 1
    assert f"port {platform.http_port} is in use" in second.output
    assert "RENOVEASY_HTTP_PORT" in second.output
    assert "Traceback" not in second.output
    second.close()


def test_doctor_finds_the_running_platform_well(platform: Platform) -> None:
    result = platform.renoveasy("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "fail" not in result.stdout


# --- beside another one, and again and again ---------------------------------------------------------------------


def test_a_second_platform_comes_and_goes_without_the_first_one_noticing(platform: Platform) -> None:
    firsts = {entry["name"]: entry["pid"] for entry in platform.processes()}
    with Platform() as second:
        assert answers(second)
        assert not {port for _, port in listening(platform)} & {port for _, port in listening(second)}

        # The whole tree goes at once, as when power fails; the data folder is the same afterwards.
        second.kill()
        second.start()
        assert answers(second)

        # Only the first process goes: nothing may outlive it.
        tree = second.tree()
        os.kill(second.pid, signal.SIGKILL)
        assert eventually(lambda: alive(tree) == [], 15), alive(tree)
        second.wait(5)
    assert answers(platform)
    assert {entry["name"]: entry["pid"] for entry in platform.processes()} == firsts


def test_ctrl_c_while_starting_stops_what_was_started(tmp_path: Path) -> None:
    starting = Platform(tmp_path).launch()
    assert eventually(lambda: "ray " in starting.output, 60)
    tree = starting.tree()
    assert starting.stop(signal.SIGINT) == 0
    assert alive(tree) == []
    starting.close()


def test_ctrl_c_stops_everything_within_20_s_and_leaves_nothing(platform: Platform) -> None:
    """The last one with the shared platform, for it ends it."""
    tree = platform.tree()
    began = time.monotonic()
    assert platform.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 20
    assert alive(tree) == []
    assert sockets_in(platform.run_dir) == []


# --- before it runs ----------------------------------------------------------------------------------------------


def test_a_bad_setting_ends_with_code_2_and_no_traceback(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    bad = Platform(tmp_path, http_port=f"{port}x").launch()
    assert bad.wait(30) == 2
    assert "RENOVEASY_HTTP_PORT" in bad.output
    assert "Traceback" not in bad.output
    bad.close()


def test_ps_without_a_platform_is_an_empty_list_and_an_error(tmp_path: Path) -> None:
    result = Platform(tmp_path).renoveasy("ps", "--json")
    assert (result.returncode, result.stdout.strip()) == (1, "[]")
    assert str(tmp_path) in result.stderr
