"""Rolling operations on a real platform: parts are drained, hang, are added and removed while people chat."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from deploy.ledger import Ledger
from domain.ids import PARTITIONS
from tests.cluster.chats import Chat, broken, chats
from tests.cluster.conftest import People, addresses_of, conversation_of, until
from tests.support.platform import Platform

pytestmark = pytest.mark.timeout(300)

PAUSE_S = 0.05
STALL_LIMIT_S = 5.0
"""On a busy test machine; an idle one does it in one and a half."""


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(hosts="2", gateways="2") as running:
        yield running


async def operate(platform: Platform, *arguments: str) -> str:
    """A `renoveasy` command that must succeed; what it said."""
    done = await asyncio.to_thread(platform.renoveasy, *arguments, limit_s=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def hosts_of(platform: Platform) -> dict[str, dict[str, Any]]:
    entries = await asyncio.to_thread(platform.processes)
    return {entry["name"]: entry for entry in entries if entry["role"] == "host"}


def pid_of(platform: Platform, name: str) -> int:
    """The process that does the work of a part now; 0 while there is none."""
    try:
        entry = json.loads((platform.data_dir / "processes" / f"{name.partition('-')[0]}.{name}.json").read_text())
    except FileNotFoundError:
        return 0
    return int(entry["pid"])


async def going(rooms: list[Chat], lines: int = 5) -> None:
    """Every chat has `lines` acknowledged lines more than now."""
    enough = [len(room.acknowledged_at) + lines for room in rooms]

    def reached() -> bool:
        return bool(broken(rooms)) or all(
            len(room.acknowledged_at) >= wanted for room, wanted in zip(rooms, enough, strict=True)
        )

    await until(f"{lines} lines in every chat", reached)
    assert not broken(rooms)


async def nothing_was_lost(rooms: list[Chat]) -> None:
    for room in rooms:
        await room.end()
    assert [fault for room in rooms for fault in await room.faults()] == []


# --- seeing it -----------------------------------------------------------------------------------------------------


async def test_ps_shows_what_each_host_owns(platform: Platform) -> None:
    hosts = await hosts_of(platform)
    assert set(hosts) == {"host-0", "host-1"}
    assert sum(host["partitions"] for host in hosts.values()) == PARTITIONS
    assert len({host["table_version"] for host in hosts.values()}) == 1
    for name, host in hosts.items():
        assert host["incarnation"].startswith(f"{name}-")
        assert (host["leaving"], host["mailbox"]) == (False, 0)
        assert host["activations"] >= 0
    shown = (await asyncio.to_thread(platform.renoveasy, "ps")).stdout
    assert f"partitions={hosts['host-0']['partitions']}" in shown


async def test_an_operator_sees_where_a_stream_lives(platform: Platform, people: People) -> None:
    at, ledger = addresses_of(platform), Ledger()
    anna, bela = await people(at, ledger, 0), await people(at, ledger, 1)
    room = await conversation_of(anna, bela)
    said = await anna.say(room, "hello")
    assert "ops" in await operate(platform, "grant", anna.phone, "ops")
    shown = await anna.rest("GET", f"/v1/admin/streams/conversation/{room}")
    assert shown["owner"] is not None, shown["unanswered"]
    host = (await hosts_of(platform))[shown["owner"]["host"]]
    assert shown["owner"]["incarnation"] == shown["database"]["takeover"]["incarnation"] == host["incarnation"]
    assert shown["activation"]["committed_offset"] == shown["database"]["head"] == said.offset
    assert shown["activation"]["recent"][0]["command_id"] == said.id
    assert shown["differences"] == []


async def test_load_balancers_may_ask_with_head(platform: Platform) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        for path in ("/health/live", "/health/ready"):
            answer = await http.head(platform.rest + path)
            assert (answer.status_code, answer.content) == (200, b"")


# --- draining ------------------------------------------------------------------------------------------------------


async def test_hosts_are_replaced_one_after_the_other_without_a_single_retry(
    platform: Platform, people: People
) -> None:
    ledger, before = Ledger(), await hosts_of(platform)
    async with chats(people, platform, ledger, PAUSE_S) as rooms:
        await going(rooms)
        began_s = time.monotonic()
        said = await operate(platform, "drain", "--all-hosts")
        await going(rooms)
        assert ledger.retried == set(), "no client had to ask twice"
        assert max(room.stall_s(began_s) for room in rooms) < STALL_LIMIT_S
        await nothing_was_lost(rooms)
    replaced = [line.split()[0] for line in said.splitlines() if " replaced after " in line]
    assert replaced == ["host-0", "host-1"]
    assert "renoveasy ps" in said.splitlines()[-1], "what to do next"
    after = await hosts_of(platform)
    for name in before:
        assert after[name]["pid"] != before[name]["pid"]
        assert after[name]["incarnation"] != before[name]["incarnation"]
        assert after[name]["partitions"] == before[name]["partitions"]


@pytest.mark.parametrize("name", ["host-1", "gateway-0"])
async def test_sigterm_drains_a_part_and_ray_starts_a_fresh_one(platform: Platform, people: People, name: str) -> None:
    pid = pid_of(platform, name)
    async with chats(people, platform, Ledger(), PAUSE_S) as rooms:
        await going(rooms)
        os.kill(pid, signal.SIGTERM)
        await until(f"{name} has ended", lambda: not psutil.pid_exists(pid), 60.0)
        await until(f"a fresh {name}", lambda: pid_of(platform, name) not in (0, pid), 60.0)
        await going(rooms)
        await nothing_was_lost(rooms)
    log = (platform.data_dir / "logs" / f"{name}.log").read_text()
    assert "got SIGTERM" in log
    assert "did not stop in order" not in log


# --- scaling -------------------------------------------------------------------------------------------------------


async def test_hosts_and_gateways_are_added_and_removed_while_people_chat(platform: Platform, people: People) -> None:
    ledger = Ledger()
    async with chats(people, platform, ledger, PAUSE_S) as rooms:
        await going(rooms)
        await operate(platform, "scale", "--hosts", "3", "--gateways", "3")
        hosts = await hosts_of(platform)
        assert set(hosts) == {"host-0", "host-1", "host-2"}
        assert sum(host["partitions"] for host in hosts.values()) == PARTITIONS
        assert hosts["host-2"]["partitions"] > PARTITIONS / 5
        assert set(await asyncio.to_thread(platform.pids, "gateway")) == {"gateway-0", "gateway-1", "gateway-2"}
        await going(rooms)

        await operate(platform, "drain", "placement")
        await operate(platform, "scale", "--hosts", "2", "--gateways", "2")
        hosts = await hosts_of(platform)
        assert set(hosts) == {"host-0", "host-1"}
        assert sum(host["partitions"] for host in hosts.values()) == PARTITIONS
        assert set(await asyncio.to_thread(platform.pids, "gateway")) == {"gateway-0", "gateway-1"}
        await going(rooms)
        await nothing_was_lost(rooms)


# --- a host that hangs ---------------------------------------------------------------------------------------------


async def test_a_paused_host_is_taken_over_ended_and_started_anew(platform: Platform, people: People) -> None:
    ledger, before = Ledger(), await hosts_of(platform)
    pid = before["host-1"]["pid"]
    async with chats(people, platform, ledger, PAUSE_S) as rooms:
        await going(rooms)
        os.kill(pid, signal.SIGSTOP)
        paused_s = time.monotonic()
        await until("the paused process is ended", lambda: not _is_alive(pid), 30.0)
        await going(rooms)
        stall_s = max(room.stall_s(paused_s) for room in rooms)
        assert stall_s < STALL_LIMIT_S, f"a chat stood still for {stall_s:.1f} s"
        await nothing_was_lost(rooms)
    await until("a fresh host", lambda: pid_of(platform, "host-1") not in (0, pid), 60.0)
    await operate(platform, "drain", "gateway-0")  # begins only when every partition is owned again
    hosts = await hosts_of(platform)
    assert hosts["host-1"]["partitions"] == before["host-1"]["partitions"]
    assert "has been killed" in (platform.data_dir / "logs" / "placement.log").read_text()


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# --- numbers -------------------------------------------------------------------------------------------------------


async def test_what_the_runbook_speaks_of_is_on_the_prometheus_endpoint(platform: Platform) -> None:
    """After all of the above has happened."""
    wanted = {
        "turns_total", "activations", "activations_bytes", "flush_commands_bucket_total", "flush_seconds_bucket_total",
        "pending_commits", "mailbox_depth", "takeovers_total", "handoffs_total", "partitions", "failovers_total",
        "hosts_ended_total", "oldest_overdue_reminder_s", "commit_to_socket_seconds_bucket_total", "gateway_sessions",
    }  # fmt: skip
    async with httpx.AsyncClient(trust_env=False) as http:
        for _ in range(60):  # Ray hands numbers on every few seconds
            text = (await http.get(platform.metrics, timeout=10)).text
            missing = {name for name in wanted if f"\nray_renoveasy_{name}{{" not in text}
            if not missing:
                break
            await asyncio.sleep(1.0)
    assert missing == set()


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["drain", "host-7"], 1, "there is no host-7; there are gateway-0, gateway-1, host-0, host-1, placement"),
        (["drain"], 2, "--rolling"),
        (["drain", "placement", "--for-good"], 1, "placement is the last of its kind"),
        (["scale"], 2, "--hosts N"),
        (["scale", "--hosts", "0"], 2, "1<=x<=256"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(
    platform: Platform, arguments: list[str], code: int, says: str
) -> None:
    before = platform.pids("host")
    done = platform.renoveasy(*arguments)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert platform.pids("host") == before
