"""While others attack, honest users are answered nearly as fast as before. Real processes, the full form only."""

import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
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
ATTACKERS_START_S: Final = 1.5
MOST: Final = 2.0
"""How many times as long the slowest hundredth of the answers may take."""
SECONDS: Final = float(os.environ.get("RENOVEASY_HONEST_S", "10"))
"""Of each phase."""
PHASES: Final = 6
"""Calm and attacked by turns, so that what the machine's disk does by itself falls into both."""


@pytest.fixture
def servers() -> Iterator[tuple[str, Nats, Valkey]]:
    """In memory, where it can be: some disks take a tenth of a second for a sync now and then, whoever attacks."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield from on_servers(Path(folder))


def on_servers(folder: Path) -> Iterator[tuple[str, Nats, Valkey]]:
    with migrated("sqlite", folder) as database, Nats() as nats, Valkey() as valkey:
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

        calm: list[float] = []
        attacked: list[float] = []
        tried: Counter[str] = Counter()
        gc.collect()
        gc.freeze()  # the collections of this process, a tenth of a second each, are nobody's waiting
        await measured(SECONDS / 2)
        for _ in range(PHASES):
            calm.append(await measured(SECONDS))
            attack = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.security.attackers", str(port), running.rest),
                *(attacker["access_token"], str(SECONDS + 2)),
                stdout=asyncio.subprocess.PIPE,
            )
            await asyncio.sleep(ATTACKERS_START_S)
            attacked.append(await measured(SECONDS))
            said, _ = await attack.communicate()
            tried.update(json.loads(said))
        gc.unfreeze()
        for line in lines:
            await line.__aexit__(None, None, None)
    calm_s, attacked_s = statistics.median(calm), statistics.median(attacked)
    for kind, times in tried.items():
        tally.tried("SEC-16", f"attacks beside honest users: {kind}", "the gateway and REST", times)
    each = [[round(p99_s * 1000, 1) for p99_s in phase] for phase in (calm, attacked)]
    print(
        f"\nhonest p99 {calm_s * 1000:.1f} ms, under attack {attacked_s * 1000:.1f} ms, of {each}, attacks {dict(tried)}"
    )
    assert all(times > SECONDS * PHASES for times in tried.values()), tried
    assert attacked_s <= calm_s * MOST
