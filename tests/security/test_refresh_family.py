"""SEC-6, SEC-12: a refresh token that is used again ends its whole family, on every gateway. Real processes."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.security.city import Line
from tests.security.tally import Tally
from tests.security.test_honest import logged_in
from tests.support.databases import migrated
from tests.support.hostile import FULL
from tests.support.parts import Parts
from tests.support.servers import Nats, Valkey, free_port

AT_ONCE: Final = 20
SOCKETS: Final = 3
"""Of the family, on each gateway."""
TIMES: Final = 20 if FULL else 2
LATE_S: Final = 2.0
"""What the catalogue allows; asked for in the full form, on a machine that does nothing else."""
REVOKED: Final = 4500


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[str, Nats, Valkey]]:
    with migrated("sqlite", tmp_path) as database, Nats() as nats, Valkey() as valkey:
        yield database, nats, valkey


class Watched:
    """A socket, and when and how it ended."""

    def __init__(self, url: str, token: str) -> None:
        self._line = Line(url, token)
        self.ended_s = 0.0

    async def open(self) -> "Watched":
        await self._line.__aenter__()
        self._waiting = asyncio.create_task(self._wait(self._line.socket))
        return self

    async def _wait(self, socket: ClientConnection) -> None:
        await socket.wait_closed()
        self.ended_s = time.perf_counter()

    async def code(self, within_s: float) -> int | None:
        async with asyncio.timeout(within_s):
            await self._waiting
        return self._line.socket.close_code

    @property
    def open_still(self) -> bool:
        return not self._waiting.done()

    async def close(self) -> None:
        await self._line.__aexit__(None, None, None)
        await self._waiting


async def refreshed(http: httpx.AsyncClient, token: str) -> httpx.Response:
    return await http.post("/v1/auth/refresh", json={"refresh_token": token})


@pytest.mark.timeout(900)
async def test_a_token_that_is_used_again_closes_every_socket_of_its_family_wherever_it_is(
    servers: tuple[str, Nats, Valkey], tally: Tally
) -> None:
    database, nats, valkey = servers
    ports = [free_port(), free_port()]
    environments = {f"gateway-{n}": {"RENOVEASY_WS_PORT": str(port)} for n, port in enumerate(ports)}
    parts = Parts(database, nats.url, valkey.url, hosts=1, gateways=2, rest=True, environments=environments)
    urls = [f"ws://127.0.0.1:{port}/connection/websocket" for port in ports]
    late_s: list[float] = []
    async with parts as running, httpx.AsyncClient(base_url=running.rest, timeout=60) as http:
        bystander = await logged_in(http, "+8613700000000")
        others = [await Watched(url, bystander["access_token"]).open() for url in urls]
        for number in range(TIMES):
            person = await logged_in(http, f"+86137000001{number:02d}")
            first = person["refresh_token"]
            answers = await asyncio.gather(*(refreshed(http, first) for _ in range(AT_ONCE)))
            tally.tried("SEC-6", "one token many times at once", "POST /v1/auth/refresh", AT_ONCE)
            assert [answer.status_code for answer in answers] == [200] * AT_ONCE, [a.text for a in answers]
            assert len({answer.json()["refresh_token"] for answer in answers}) == 1, "one family, one pair"
            second = answers[0].json()
            third = (await refreshed(http, second["refresh_token"])).json()
            tokens = (person["access_token"], second["access_token"], third["access_token"])
            family = [await Watched(url, token).open() for url in urls for token in tokens[:SOCKETS]]
            began_s = time.perf_counter()
            again = await refreshed(http, first)
            tally.tried("SEC-6", "a spent token again", "POST /v1/auth/refresh")
            assert (again.status_code, again.json()["code"]) == (401, "session_revoked"), again.text
            codes = [await watched.code(30) for watched in family]
            tally.tried("SEC-12", "a family that was ended while it was connected", "every gateway", len(family))
            assert codes == [REVOKED] * len(family)
            late_s += [watched.ended_s - began_s for watched in family]
            for spent in (first, second["refresh_token"], third["refresh_token"]):
                assert (await refreshed(http, spent)).status_code == 401
            for token, url in zip(tokens, urls * 2, strict=False):
                await refused(url, token)
        assert all(other.open_still for other in others)
        for other in others:
            await other.close()
    late_s.sort()
    print(f"\n{len(late_s)} sockets closed after p50 {late_s[len(late_s) // 2]:.3f} s, at most {late_s[-1]:.3f} s")
    assert not FULL or late_s[-1] <= LATE_S


async def refused(url: str, token: str) -> None:
    """No connection is had with an access token of a family that has ended."""
    line: Any = Line(url, token)
    with pytest.raises((ConnectionClosed, ConnectionError)):
        await line.__aenter__()
    await line.__aexit__(None, None, None)
