"""An order goes from login to rating through the public interfaces, with the official clients, on both databases."""

import asyncio

import httpx
import pytest

from deploy.demo import run_demo
from deploy.ledger import Ledger, differences
from deploy.person import Addresses
from deploy.story import Script, Story
from tests.cluster.conftest import addresses_of
from tests.support.platform import Platform, free_ports

HAPPY_PATH = [
    "publish", "submit_quote", "accept_quote", "pay", "propose_slot", "confirm_slot", "start_trip", "arrived", "check_in",
    "submit_milestone", "approve_milestone", "pay", "check_out", "submit_completion", "approve_completion", "rate", "rate",
]  # fmt: skip


@pytest.fixture(params=["platform", "mariadb_platform"], ids=["sqlite", "mariadb"])
def either(request: pytest.FixtureRequest) -> Platform:
    running: Platform = request.getfixturevalue(request.param)
    return running


async def test_two_orders_go_from_login_to_rating_over_rest_and_websocket(
    either: Platform, http: httpx.AsyncClient, seed: int
) -> None:
    ledgers = [Ledger(), Ledger()]
    scripts = [Script(seed=seed, milestones=2, patience_s=20.0), Script(seed=seed + 1, milestones=1, patience_s=20.0)]
    stories = [
        Story(http, addresses_of(either), script, ledger) for script, ledger in zip(scripts, ledgers, strict=True)
    ]
    await asyncio.gather(*(story.run() for story in stories))
    for story, ledger in zip(stories, ledgers, strict=True):
        assert ledger.entries["rest"] >= 8, f"commands and messages went in by {ledger.entries}"
        assert ledger.entries["ws"] >= 8, f"commands and messages went in by {ledger.entries}"
        assert len(ledger.delivery_s) == len(ledger.messages), "every message reached the other side's socket once"
        assert ledger.unanswered == {}
        assert story.scene.outcome == "done"
    two_parts, one_part = ([t.command for t in ledger.transitions] for ledger in ledgers)
    assert two_parts == HAPPY_PATH
    assert one_part == [name for n, name in enumerate(HAPPY_PATH) if n not in (9, 10, 11)]


def test_servers_that_are_given_are_used_and_none_is_started(mariadb_platform: Platform) -> None:
    roles = {entry["role"] for entry in mariadb_platform.processes()}
    assert {"host", "gateway", "placement", "rest", "ray", "proxy"} <= roles
    assert not roles & {"nats", "redis"}
    assert not (mariadb_platform.data_dir / "renoveasy.db").exists()


async def test_the_story_notices_what_was_lost_doubled_or_changed() -> None:
    """The comparison that all these tests rest on fails when it should."""
    ledger = Ledger()
    event = {"offset": 1, "type": "order.published", "by": "c", "at": "t", "state": "open", "version": 1}
    ledger.transitions_from("o", "publish", [event])
    assert differences(ledger, {"order:o": [event]}) == []
    assert differences(ledger, {}), "a stream that is not there"
    assert differences(ledger, {"order:o": []}), "a lost event"
    assert differences(ledger, {"order:o": [event, event]}), "a doubled event"
    assert differences(ledger, {"order:o": [event | {"state": "draft"}]}), "a changed event"
    assert differences(ledger, {"order:o": [event | {"offset": 2}]}), "a moved event"


def test_the_demo_plays_to_its_end(platform: Platform) -> None:
    done = platform.renoveasy("demo", "--fast")
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("2 of 2 from login to rating", "all went well", "position:", "order.awarded -> awarded"):
        assert said in done.stdout, f"{said!r} is missing in:\n{done.stdout}{done.stderr}"
    assert done.stderr == ""


def test_the_demo_says_in_a_sentence_that_no_platform_runs(capfd: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    assert run_demo(Addresses(f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}/connection/websocket")) == 1
    said = capfd.readouterr().err
    assert f"no platform answers at http://127.0.0.1:{port}" in said
    assert "renoveasy up" in said
    assert "Traceback" not in said
