"""Attackers as a process of their own, so that what they compute costs the honest ones nothing.

`python -m tests.security.attackers <gateway's port> <REST's URL> <token> <seconds>`; prints how much they have tried, as JSON.
"""

import asyncio
import itertools
import json
import os
import random
import sys
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx

from tests.security.test_frames import FORBIDDEN, TOO_MUCH
from tests.security.wires import RawSocket, frame

A_SECOND = 20
"""Attacks of each kind, but for floods."""
FLOOD = 1_500
"""Commands that one connection sends at once: so many beyond its budget that it is closed for it."""
HOSTILE = ("' OR 1=1--", "../../etc/passwd", "*", "%00", str(uuid.uuid4()), "x" * 2_000)


async def paced(attack: Callable[[], Awaitable[None]], seconds: float) -> int:
    """The attack again and again, at its rate; how often."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for done in itertools.count():
        if loop.time() - began_s > seconds:
            return done
        with suppress(OSError, EOFError, AssertionError, TimeoutError, httpx.HTTPError):
            await attack()
        await asyncio.sleep(max(0.0, began_s + (done + 1) / A_SECOND - loop.time()))
    raise AssertionError


async def main(port: int, rest_url: str, token: str, seconds: float) -> dict[str, int]:
    rng = random.Random(1)
    wrong = [data for data, _ in (*TOO_MUCH.values(), *FORBIDDEN.values())]
    auth = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    async def frames() -> None:
        async with RawSocket(port, token) as socket:
            await socket.send(rng.choice(wrong))
            await socket.closed_with(2)

    async def strangers() -> None:
        async with RawSocket(port) as socket:
            await socket.send(rng.choice(wrong))
            await socket.closed_with(2)

    async def flood() -> None:
        channels = (f"conversation:{uuid.uuid4()}" for _ in range(FLOOD))
        said = (json.dumps({"id": at, "subscribe": {"channel": each}}) for at, each in enumerate(channels, 2))
        async with RawSocket(port, token) as socket:
            await socket.send(b"".join(frame(each.encode()) for each in said))
            await socket.closed_with(1)

    async with httpx.AsyncClient(base_url=rest_url, headers=auth, timeout=10) as http:

        async def requests() -> None:
            text = rng.choice(HOSTILE)
            await http.get(f"/v1/orders/{uuid.uuid4()}", params={"x": text})
            await http.post("/v1/conversations", content=b"[" * rng.choice((10, 1_000, 100_000)))
            await http.patch("/v1/me", json={"name": text * 20, "roles": ["admin"]})

        kinds = {"frames": frames, "strangers": strangers, "floods": flood, "requests": requests}
        tried = await asyncio.gather(*(paced(attack, seconds) for attack in kinds.values()))
    return dict(zip(kinds, tried, strict=True))


if __name__ == "__main__":
    os.nice(19)  # they have machines of their own
    print(json.dumps(asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])))))
