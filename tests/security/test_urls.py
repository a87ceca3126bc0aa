"""SEC-20: no request makes the platform fetch an address, whatever string of it is one.

Nothing here fetches what a user names, and what is new must not begin to: every string of every route, method and command is
an address in turn. A server on the loopback counts who comes, and the interpreter's audit events show that nobody even asked
for a name. What the platform does fetch, by its own settings, follows no redirect.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

from domain.access import Role, Rule
from domain.errors import Refusal
from domain.keys import KeysUnavailable
from domain.order_table import CLIENT_COMMANDS, ROWS
from domain.wire import RPC_METHODS
from serve_apps.endpoint import Endpoint
from serve_apps.integrations.exchange import Exchange
from serve_apps.rest import ROUTES
from storage.vault_keys import VaultKeyProvider, VaultSettings
from tests.security.city import City
from tests.security.samples import replaced, sample, strings
from tests.security.tally import Tally
from tests.security.test_idor import MEANT, name_of, path_of, rpc_data
from tests.support.hostile import FULL
from tests.support.pictures import picture
from tests.support.urls import reaching, urls

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Canary:
    """Counts connections; redirects `/to/<code>` to another host of this machine, which is counted as well."""

    def __init__(self) -> None:
        self.hits: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        self.hits.append(line)
        code = int(line.split(b"/to/")[1][:3]) if b"/to/" in line else 200
        place = b"location: http://127.0.0.2:%d/second\r\n" % self.port if code != 200 else b""
        writer.write(b"HTTP/1.1 %d x\r\n%bcontent-length: 2\r\nconnection: close\r\n\r\n{}" % (code, place))
        writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def canary() -> AsyncIterator[Canary]:
    canary = Canary()
    server = await asyncio.start_server(canary.serve, "0.0.0.0", 0)
    canary.port = server.sockets[0].getsockname()[1]
    yield canary
    server.close()
    await server.wait_closed()


class Shooter:
    """Of each kind an address in turn, or with the full form all."""

    def __init__(self, port: int) -> None:
        self._all = urls(port)
        self._turns = {kind: itertools.cycle(texts) for kind, texts in self._all.items()}

    def shots(self) -> Iterator[tuple[str, str]]:
        for kind, texts in self._all.items():
            for text in texts if FULL else (next(self._turns[kind]),):
                yield kind, text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shooter(canary: Canary) -> Shooter:
    return Shooter(canary.port)


async def test_there_are_eighty_addresses_and_no_two_alike() -> None:
    forms = [each for kind in urls(1).values() for each in kind]
    assert len(forms) == len(set(forms)) >= 80


async def test_the_canary_and_the_watch_see_who_asks(canary: Canary) -> None:
    async with httpx.AsyncClient(trust_env=False, follow_redirects=True) as http:
        with reaching() as reached:
            assert (await http.get(f"http://localhost:{canary.port}/to/302")).status_code == 200
    assert [hit.split(b" ")[1] for hit in canary.hits] == [b"/to/302", b"/second"]
    assert any("localhost" in place for place in reached)
    assert any("127.0.0.2" in place for place in reached)
    canary.hits.clear()


ENDING: Final = frozenset({"logout", "erase_me"})


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("row", [row for row in ROUTES if row.body is not None or row.query is not None], ids=name_of)
async def test_no_string_of_a_request_is_fetched(
    city: City, canary: Canary, shooter: Shooter, tally: Tally, row: Endpoint
) -> None:
    mine = await city.belongings(Role.CUSTOMER) if row.name in ENDING else city.of[Role.CUSTOMER]
    person = city.of[Role.OPS].owner if row.rule is Rule.OPS else mine.owner
    body = None if row.body is None else sample(row.body, city.new_id, everything=True) | MEANT.get(row.name, {})
    query = {} if row.query is None else sample(row.query, city.new_id, everything=True)
    path = path_of(row, mine.ids)
    given = {"content": picture("PNG")} if row.raw else {}
    with reaching() as reached:
        for kind, text in shooter.shots():
            headers = {"Referer": text[:200].encode(), "X-Callback-Url": text[:200].encode()}
            headers |= {"Idempotency-Key": city.new_id().encode()} if row.keyed else {}
            headers |= {"Content-Type": b"image/png"} if row.raw else {}
            for place in strings(query):
                await ask(person, row, path, params=query | {str(place[0]): text}, headers=headers, **given)
            for place in strings(body or {}):
                await ask(person, row, path, body=replaced(body, place, text), headers=headers)
            extra = dict.fromkeys(("url", "avatar_url", "callback", "webhook", "icon", "redirect_uri"), text)
            if body is not None:
                await ask(person, row, path, body=body | extra, headers=headers)
            tally.tried("SEC-20", f"an address: {kind}", name_of(row))
        await asyncio.sleep(0.05)
    assert reached == []
    assert canary.hits == []
    if row.name not in ENDING:
        assert (await person.ask("GET", "/v1/me")).status == 200, "or else nobody was heard"


async def ask(person: Any, row: Endpoint, path: str, **given: Any) -> None:
    answer = await person.ask(row.method, path, **given)
    assert answer.status < 500 or answer.code == "unavailable", answer.body


@pytest.mark.timeout(1200)
async def test_no_string_of_a_method_or_a_command_is_fetched(
    city: City, canary: Canary, shooter: Shooter, tally: Tally
) -> None:
    mine = await city.belongings(Role.CUSTOMER)
    targets: dict[str, tuple[str, Any]] = {
        f"rpc {name}": (name, rpc_data(name, city, mine.ids)) for name in RPC_METHODS
    }
    for command in sorted(CLIENT_COMMANDS):
        payload = sample(ROWS[command].payload, city.new_id, everything=True)
        data = {"order_id": mine.ids["order_id"], "command": command, "command_id": city.new_id(), "payload": payload}
        targets[f"order.command {command}"] = ("order.command", data)
    async with mine.owner.line() as line:
        with reaching() as reached:
            for target, (method, data) in targets.items():
                for kind, text in shooter.shots():
                    for place in strings(data):
                        if place not in (("command",), ("order_id",)) or method != "order.command":
                            await line.rpc(method, replaced(data, place, text))
                    tally.tried("SEC-20", f"an address: {kind}", target)
            await asyncio.sleep(0.05)
    assert reached == []
    assert canary.hits == []


# --- what the platform does fetch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_what_a_sign_in_provider_redirects_to_is_not_asked(canary: Canary, tally: Tally, code: int) -> None:
    exchange = Exchange("google")
    for method in ("GET", "POST"):
        with pytest.raises(Refusal, match="unavailable"):
            await exchange.fetch(method, f"http://127.0.0.1:{canary.port}/to/{code}")
        tally.tried("SEC-20", "a redirect to another host", "a sign-in provider")
    await exchange.close()
    assert [hit for hit in canary.hits if b"second" in hit] == []
    assert len(canary.hits) == 2
    canary.hits.clear()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_what_vault_redirects_to_is_not_asked_and_gets_no_token(canary: Canary, tally: Tally, code: int) -> None:
    settings = VaultSettings(f"http://127.0.0.1:{canary.port}/to/{code}", "key")
    with pytest.raises(KeysUnavailable):
        await VaultKeyProvider(settings, lambda: "the token").new_key()
    tally.tried("SEC-20", "a redirect to another host", "Vault")
    assert [hit for hit in canary.hits if b"second" in hit] == []
    assert len(canary.hits) == 1
    canary.hits.clear()
