"""While others attack, honest users are answered nearly as fast as before. Real processes, the full form only."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from deploy.connections import new_id
from tests.security.city import Line
from tests.security.conftest import FULL_FORM
from tests.security.tally import Tally
from tests.support.databases import migrated
from tests.support.parts import Parts
from tests.support.servers import Nats, Valkey, free_port

PAIRS: Final = 10
A_SECOND: Final = 5
"""Messages of each honest user, well within their budget."""
MOST: Final = 2.0
"""How many times as long the slowest hundredth of the answers may take."""
SECONDS: Final = float(os.environ.get("RENOVEASY_HONEST_S", "60"))


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[str, Nats, Valkey]]:
    with migrated("sqlite", tmp_path) as database, Nats() as nats, Valkey() as valkey:
        yield database, nats, valkey


async def logged_in(http: httpx.AsyncClient, phone: str) -> dict[str, Any]:
    assert (await http.post("/v1/auth/otp", json={"phone": phone})).status_code == 202
    code = (await http.get("/dev/outbox", params={"to": phone})).json()["items"][0]["code"]
    body = {"phone": phone, "code": code, "device": {"id": phone}}
    answer = await http.post("/v1/auth/otp/verify", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def talk(line: Line, room: str, seconds: float, took_s: list[float]) -> None:
    """Messages at their times, whether or not the one before is answered late; how long each answer took."""
    began_s = time.perf_counter()
    for number in range(int(seconds * A_SECOND)):
        due_s = began_s + number / A_SECOND
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        reply = await line.rpc("message.send", {"conversation_id": room, "id": new_id(), "text": "hello"})
        assert "rpc" in reply, reply
        took_s.append(time.perf_counter() - due_s)


def p99(took_s: list[float]) -> float:
    return sorted(took_s)[int(len(took_s) * 0.99)]


@pytest.mark.skipif(not FULL_FORM, reason="two minutes and real processes: RENOVEASY_CHAOS=full")
@pytest.mark.timeout(600)
async def test_honest_users_wait_at_most_twice_as_long_while_others_attack(
    servers: tuple[str, Nats, Valkey], tally: Tally
) -> None:
    database, nats, valkey = servers
    port = free_port()
    environments = {"gateway-0": {"RENOVEASY_WS_PORT": str(port), "RENOVEASY_RATE_LIMITS": "on"}}
    parts = Parts(database, nats.url, valkey.url, hosts=1, gateways=1, rest=True, environments=environments)
    async with parts as running, httpx.AsyncClient(base_url=running.rest, timeout=30) as http:
        people = [await logged_in(http, f"+8613700000{number:03d}") for number in range(PAIRS * 2 + 1)]
        attacker, honest = people[0], people[1:]
        rooms = []
        for one, two in zip(honest[::2], honest[1::2], strict=True):
            auth = {"Authorization": f"Bearer {one['access_token']}"}
            opened = await http.post("/v1/conversations", json={"member_ids": [two["user"]["id"]]}, headers=auth)
            rooms += [opened.json()["id"]] * 2
        url = f"ws://127.0.0.1:{port}/connection/websocket"
        lines = [await Line(url, person["access_token"]).__aenter__() for person in honest]

        async def measured(seconds: float) -> float:
            took_s: list[float] = []
            await asyncio.gather(*(talk(line, room, seconds, took_s) for line, room in zip(lines, rooms, strict=True)))
            return p99(took_s)

        await measured(SECONDS / 10)
        calm_s = await measured(SECONDS)
        attack = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.security.attackers", str(port), running.rest),
            *(attacker["access_token"], str(SECONDS + 2)),
            stdout=asyncio.subprocess.PIPE,
        )
        await asyncio.sleep(1)
        attacked_s = await measured(SECONDS)
        said, _ = await attack.communicate()
        for line in lines:
            await line.__aexit__(None, None, None)
        tried: dict[str, int] = json.loads(said)
    for kind, times in tried.items():
        tally.tried("SEC-16", f"attacks beside honest users: {kind}", "the gateway and REST", times)
    print(f"\nhonest p99 {calm_s * 1000:.1f} ms, under attack {attacked_s * 1000:.1f} ms, attacks {tried}")
    assert all(times > SECONDS / 2 for times in tried.values()), tried
    assert attacked_s <= calm_s * MOST
