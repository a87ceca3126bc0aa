"""Forged, borrowed and mistaken tokens at every door that takes one (SEC-3, SEC-4, SEC-5)."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from domain.ports import Device, DeviceSession, User
from gateway.server import GatewayServer
from serve_apps.endpoint import GUARDED, Endpoint
from serve_apps.rest import ROUTES
from storage.tickets import ConnectVerifier
from storage.tokens import LOOK_S, JwtIssuer, JwtVerifier, SigningKeys
from tests.security.tally import Tally
from tests.support.fake_platform import FakePlatform
from tests.support.forged_tokens import (
    CLAIMS,
    KEY_NAMES,
    NOW_S,
    OTHER_USER,
    OTHERS_SESSION,
    REVOKED_SESSION,
    SESSION,
    SIGNATURES,
    TIMES,
    UNKNOWN_SESSION,
    USER,
    Craft,
    class_of,
)
from tests.support.gateways import gateway_over
from tests.support.hostile import FULL, everywhere
from tests.support.rest_app import ManualClock, World

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOORS = ["rest", "ws-connect", "ws-refresh", "stream-connect"]
KEYS = SigningKeys([generate_private_key(65537, 2048)])
OWN_KEYS = SigningKeys([generate_private_key(65537, 2048)])


class StandingClock(ManualClock):
    """Shows NOW until a test moves it; what has to wait for something waits in real time."""

    def __init__(self) -> None:
        super().__init__(NOW_S * 1000)
        self._moved_s = 0.0

    def monotonic_s(self) -> float:
        return time.monotonic() + self._moved_s

    def advance_s(self, seconds: float) -> None:
        super().advance_s(seconds)
        self._moved_s += seconds


class House:
    """REST and a gateway, both with the real verifier over the same sessions."""

    def __init__(self, keys: SigningKeys) -> None:
        self.clock = StandingClock()
        self.world = World(clock=self.clock)
        device = Device("d", "d", "d")
        for user_id in (USER, OTHER_USER):
            self.world.accounts.users[user_id] = User(user_id, f"+861380000000{user_id[-1]}", "", "en", ("ops",), 0)
        self.world.sessions.sessions = {
            SESSION: DeviceSession(SESSION, USER, device, 0, 0),
            OTHERS_SESSION: DeviceSession(OTHERS_SESSION, OTHER_USER, device, 0, 0),
            REVOKED_SESSION: DeviceSession(REVOKED_SESSION, USER, device, 0, 0, revoked_at=1),
        }
        sessions: Any = self.world.sessions
        self.verifier = JwtVerifier(keys, sessions, self.clock)
        self.world.verifier = self.verifier
        # The gateway has a verifier of its own, as in another process; both know the same keys.
        self.gateway_verifier = ConnectVerifier(JwtVerifier(keys, sessions, self.clock), self.world.tickets, self.clock)
        self.honest = JwtIssuer(keys).access(USER, SESSION, NOW_S * 1000, 900)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.world.app()), base_url="http://rest")
        self._server: GatewayServer | None = None
        self._port = 0

    async def gateway(self) -> int:
        if self._server is None:
            self._server = gateway_over(FakePlatform(), verifier=self.gateway_verifier, clock=self.clock)
            self._port = await self._server.start()
        return self._port

    async def close(self) -> None:
        await self.http.aclose()
        if self._server is not None:
            await self._server.stop()

    async def told(self, door: str, token: str) -> str:
        """`accepted`, or the catalogue's word for why not."""
        match door:
            case "rest":
                return await self._rest(token)
            case "ws-connect":
                return await self._socket({"id": 1, "connect": {"token": token}})
            case "ws-refresh":
                before = {"id": 1, "connect": {"token": self.honest}}
                return await self._socket(before, {"id": 2, "refresh": {"token": token}})
        return await self._stream({"id": 1, "connect": {"token": token}})

    async def _rest(self, token: str) -> str:
        # A header has no room for all that JSON can hold.
        raw = token.encode("utf-8", "replace")
        answer = await self.http.get("/v1/me", headers={"Authorization": b"Bearer " + raw})
        if answer.status_code == 200:
            return "accepted"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "Traceback" not in answer.text
        return f"{answer.json()['code']}" if answer.status_code == 401 else f"{answer.status_code}"

    async def _socket(self, *commands: dict[str, Any]) -> str:
        url = f"ws://127.0.0.1:{await self.gateway()}/connection/websocket"
        async with connect(url, ping_interval=None) as socket:
            said = ""
            for command in commands:
                said = await _answer(socket, command)
            return said

    async def _stream(self, command: dict[str, Any]) -> str:
        url = f"http://127.0.0.1:{await self.gateway()}/connection/http_stream"
        async with (
            httpx.AsyncClient(timeout=5) as http,
            http.stream(
                "POST", url, content=json.dumps(command), headers={"content-type": "application/json"}
            ) as heard,
        ):
            assert heard.status_code == 200
            async for line in heard.aiter_lines():
                item = json.loads(line)
                disconnect = item.get("push", {}).get("disconnect")
                if disconnect:
                    return _CLOSED[disconnect["code"]]
                if item:
                    return "accepted" if "connect" in item else _ERRORS[item["error"]["code"]]
        return "ended"


_CLOSED = {3500: "unauthenticated", 3005: "token_expired", 4500: "session_revoked"}
_ERRORS = {109: "token_expired", 100: "internal"}


async def _answer(socket: ClientConnection, command: dict[str, Any]) -> str:
    try:
        await socket.send(json.dumps(command))
        async with asyncio.timeout(5):
            while (reply := json.loads(await socket.recv())).get("id") != command["id"]:
                pass
    except ConnectionClosed:
        return _CLOSED[socket.close_code or 0]
    return _ERRORS[reply["error"]["code"]] if "error" in reply else "accepted"


class Canary:
    """A server of the attacker's that would gladly give out their keys, and counts who asks."""

    def __init__(self) -> None:
        self.hits = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hits += 1
        body = json.dumps(OWN_KEYS.jwks()).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        writer.close()


@asynccontextmanager
async def opened(keys: SigningKeys = KEYS) -> AsyncIterator[House]:
    house = House(keys)
    try:
        yield house
    finally:
        await house.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house() -> AsyncIterator[House]:
    """One for all cases: whatever is refused leaves it as it was."""
    async with opened() as built:
        yield built


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def canary() -> AsyncIterator[Canary]:
    canary = Canary()
    server = await asyncio.start_server(canary.serve, "127.0.0.1", 0)
    canary.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield canary
    server.close()
    await server.wait_closed()


@pytest.fixture(scope="module")
def craft(canary: Canary) -> Craft:
    return Craft(KEYS, OWN_KEYS, canary.url)


async def test_the_canary_counts_who_asks(canary: Canary) -> None:
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{canary.url}/jwks.json")).json() == OWN_KEYS.jwks()
    assert canary.hits == 1
    canary.hits = 0


@pytest.mark.parametrize("door", DOORS)
async def test_what_is_forged_here_would_be_let_in_if_nothing_were_wrong(house: House, craft: Craft, door: str) -> None:
    for token in (craft.real, craft.signed(), craft.with_claims(), craft.with_header()):
        assert await house.told(door, token) == "accepted"


@pytest.mark.parametrize(("case", "door"), everywhere(SIGNATURES, DOORS))
async def test_a_token_whose_signature_or_form_is_not_ours_is_refused(
    house: House, craft: Craft, tally: Tally, case: str, door: str
) -> None:
    tally.tried(*class_of(case), door)
    assert await house.told(door, SIGNATURES[case](craft)) == "unauthenticated"


@pytest.mark.parametrize(("case", "door"), everywhere(KEY_NAMES, DOORS))
async def test_a_token_does_not_say_which_key_it_is_checked_with(
    house: House, craft: Craft, canary: Canary, tally: Tally, case: str, door: str
) -> None:
    tally.tried(*class_of(case), door)
    assert await house.told(door, KEY_NAMES[case](craft)) == "unauthenticated"
    await asyncio.sleep(0)
    assert canary.hits == 0


@pytest.mark.parametrize(("case", "door"), everywhere(CLAIMS, DOORS))
async def test_a_token_for_something_else_is_refused(
    house: House, craft: Craft, tally: Tally, case: str, door: str
) -> None:
    tally.tried(*class_of(case), door)
    expected = "unauthenticated"
    if case == "a-ticket-nobody-issued" and door != "rest":
        expected = "token_expired"  # what the SDKs take for "ask the application for another one"
    assert await house.told(door, CLAIMS[case](craft)) == expected


@pytest.mark.parametrize(("case", "door"), everywhere(TIMES, DOORS))
async def test_clocks_are_forgiven_five_seconds_and_no_more(
    house: House, craft: Craft, tally: Tally, case: str, door: str
) -> None:
    shifts, expected = TIMES[case]
    if expected != "accepted":
        tally.tried("SEC-5", "out of its time", door)
    token = craft.with_claims(**{name: NOW_S + shift for name, shift in shifts.items()})
    assert await house.told(door, token) == expected


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("sid", [REVOKED_SESSION, UNKNOWN_SESSION], ids=["revoked", "unknown"])
async def test_a_token_of_a_session_that_is_not_alive_is_refused(
    house: House, craft: Craft, tally: Tally, sid: str, door: str
) -> None:
    tally.tried("SEC-5", "a session that is not alive", door)
    assert await house.told(door, craft.with_claims(sid=sid)) == "session_revoked"


@pytest.mark.parametrize("door", DOORS)
async def test_a_ticket_opens_a_connection_once_and_nothing_at_rest(house: House, craft: Craft, door: str) -> None:
    await house.world.tickets.issue("t", 30)
    ticket = craft.issuer.ticket(USER, SESSION, "t", NOW_S * 1000, 30)
    told = [await house.told(door, ticket) for _ in range(2)]
    assert told == (["unauthenticated"] * 2 if door == "rest" else ["accepted", "token_expired"])


@pytest.mark.parametrize("wrong", ["access-token", "ticket", "session-id", "key-name"])
async def test_nothing_but_a_refresh_token_is_refreshed(house: House, craft: Craft, wrong: str) -> None:
    ticket = craft.issuer.ticket(USER, SESSION, "t", NOW_S * 1000, 30)
    tokens = {"access-token": craft.real, "ticket": ticket, "session-id": SESSION, "key-name": craft.kid}
    answer = await house.http.post("/v1/auth/refresh", json={"refresh_token": tokens[wrong]})
    # What is too long to be a refresh token at all is an invalid field.
    assert (answer.status_code, answer.json()["code"]) in {(401, "unauthenticated"), (422, "invalid")}
    assert not house.world.sessions.tokens


# --- rotated keys ---


@pytest.mark.parametrize("door", DOORS)
async def test_a_former_key_is_good_while_it_is_there_and_for_seconds_after_it_was_removed(
    tmp_path: Path, door: str
) -> None:
    former = JwtIssuer(SigningKeys.open(tmp_path))
    async with opened(SigningKeys.open(tmp_path)) as house:
        old = former.access(USER, SESSION, NOW_S * 1000, 900)
        new_keys = SigningKeys.rotate(tmp_path)
        house.honest = new = JwtIssuer(new_keys).access(USER, SESSION, NOW_S * 1000, 900)
        assert [await house.told(door, token) for token in (old, new)] == ["accepted"] * 2
        (tmp_path / "signing-1.pem").unlink()
        house.clock.advance_s(LOOK_S + 1)
        assert [await house.told(door, token) for token in (old, new)] == ["unauthenticated", "accepted"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("when", ["while-it-is-there", "after-it-was-removed"])
async def test_nobody_else_signs_under_the_name_of_a_former_key(tmp_path: Path, when: str, door: str) -> None:
    former = SigningKeys.open(tmp_path)
    running = SigningKeys.rotate(tmp_path)
    async with opened(running) as house:
        if when == "after-it-was-removed":
            (tmp_path / "signing-1.pem").unlink()
            house.clock.advance_s(LOOK_S + 1)
        craft = Craft(running, OWN_KEYS, "")
        assert await house.told(door, craft.own_signed(kid=former.newest.kid)) == "unauthenticated"
        assert await house.told(door, craft.real) == "accepted"


# --- every route ---

ROUTES_WITH_TOKENS = {f"{row.method} {row.path}": row for row in ROUTES if row.rule in GUARDED}
FORGED = SIGNATURES | KEY_NAMES | CLAIMS
EXPIRED = {name: shifts for name, (shifts, expected) in TIMES.items() if expected != "accepted"}


def shots(craft: Craft, number: int, full: bool) -> Iterator[tuple[str, str, str]]:
    """Line, class and token: of each class one, another one at every route; with `full` every case there is."""
    classes: dict[tuple[str, str], list[str]] = {}
    for case in FORGED:
        classes.setdefault(class_of(case), []).append(case)
    for (line, name), cases in classes.items():
        for case in cases if full else [cases[number % len(cases)]]:
            yield line, name, FORGED[case](craft)
    for case in EXPIRED if full else [list(EXPIRED)[number % len(EXPIRED)]]:
        changed = {claim: NOW_S + shift for claim, shift in EXPIRED[case].items()}
        yield "SEC-5", "out of its time", craft.with_claims(**changed)
    for sid in (REVOKED_SESSION, UNKNOWN_SESSION):
        yield "SEC-5", "a session that is not alive", craft.with_claims(sid=sid)


@pytest.mark.parametrize("route", ROUTES_WITH_TOKENS)
async def test_no_route_takes_a_forged_token(
    house: House, craft: Craft, canary: Canary, tally: Tally, route: str
) -> None:
    row: Endpoint = ROUTES_WITH_TOKENS[route]
    path = row.path
    for name in row.parts:
        path = path.replace(f"{{{name}}}", row.words[name][0] if name in row.words else SESSION)
    before = dict(house.world.sessions.sessions), dict(house.world.accounts.users)
    for line, kind, token in shots(craft, list(ROUTES_WITH_TOKENS).index(route), FULL):
        # A header has no room for all that JSON can hold.
        headers = {"Authorization": b"Bearer " + token.encode("utf-8", "replace")}
        answer = await house.http.request(row.method, path, headers=headers, json={} if row.body else None)
        tally.tried(line, kind, route)
        assert answer.status_code == 401, (kind, token, answer.text)
        assert answer.json()["code"] in {"unauthenticated", "token_expired", "session_revoked"}, (kind, answer.text)
    assert house.world.router.asked == house.world.broker.published == []
    assert (house.world.sessions.sessions, house.world.accounts.users) == before
    assert canary.hits == 0


ELSEWHERE: dict[str, Callable[[str], dict[str, Any]]] = {
    "in the query": lambda token: {"params": dict.fromkeys(("access_token", "token", "jwt", "authorization"), token)},
    "in a cookie": lambda token: {"headers": {"Cookie": f"access_token={token}; token={token}; Authorization=Bearer {token}"}},
    "in another header": lambda token: {
        "headers": dict.fromkeys(("X-Access-Token", "X-Auth-Token", "Proxy-Authorization", "X-Authorization"), f"Bearer {token}")
    },
    "under another scheme": lambda token: {"headers": {"Authorization": f"Basic {token}"}},
    "without a scheme": lambda token: {"headers": {"Authorization": token}},
    "twice": lambda token: {"headers": [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]},
    "in the body": lambda token: {"json": {"access_token": token, "token": token, "authorization": f"Bearer {token}"}},
}  # fmt: skip


@pytest.mark.parametrize("route", ROUTES_WITH_TOKENS)
async def test_a_good_token_counts_in_its_own_header_alone(
    house: House, craft: Craft, tally: Tally, route: str
) -> None:
    """SEC-11: what stands in an address stands in logs, in histories and in referrers."""
    row: Endpoint = ROUTES_WITH_TOKENS[route]
    path = row.path
    for name in row.parts:
        path = path.replace(f"{{{name}}}", row.words[name][0] if name in row.words else SESSION)
    before = dict(house.world.sessions.sessions), dict(house.world.accounts.users)
    for where, given in ELSEWHERE.items():
        answer = await house.http.request(row.method, path, **given(house.honest))
        tally.tried("SEC-11", f"a token {where}", route)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), (where, answer.text)
        assert house.honest not in answer.text
    assert (house.world.sessions.sessions, house.world.accounts.users) == before


async def test_every_case_is_of_a_class_and_a_class_is_more_than_a_spelling() -> None:
    """The tally counts classes: it must not grow because somebody writes down another spelling."""
    classes = {class_of(case) for case in FORGED}
    assert {line for line, _ in classes} == {"SEC-3", "SEC-4", "SEC-5"}
    assert len(classes) < len(FORGED) / 4
