"""From the login to an event stream, on the platform's own processes: two gateways on one port, NATS, Redis and REST."""

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.databases import migrated
from tests.support.parts import Parts
from tests.support.servers import Nats, Valkey

MESSAGES = 12
"""Each over a connection of its own: it would be a wonder (1 in 2,048) if all of them met the same gateway."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    with migrated("sqlite", tmp_path_factory.mktemp("tickets")) as database, Nats() as nats, Valkey() as valkey:
        yield database, nats.url, valkey.url


@pytest.fixture
async def parts(servers: tuple[str, str, str]) -> AsyncIterator[Parts]:
    async with Parts(*servers, hosts=1, gateways=2, rest=True) as running:
        yield running


async def logged_in(rest: httpx.AsyncClient, phone: str) -> dict[str, Any]:
    await rest.post("/v1/auth/otp", json={"phone": phone})
    (item, *_) = (await rest.get("/dev/outbox", params={"to": phone})).json()["items"]
    device = {"id": "browser", "name": "browser", "platform": "web"}
    answer = await rest.post("/v1/auth/otp/verify", json={"phone": phone, "code": item["code"], "device": device})
    pair: dict[str, Any] = answer.json()
    return pair


def connecting(token: str) -> str:
    return "/connection/sse?cf_connect=" + quote(json.dumps({"id": 1, "connect": {"token": token}}))


async def heard(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Replies and pushes, pings left out."""
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: {}":
            yield json.loads(line.removeprefix("data: "))


async def test_a_ticket_opens_one_stream_whose_commands_any_gateway_takes(parts: Parts) -> None:
    gateway = f"http://127.0.0.1:{parts.ws_port}"
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{parts.http_port}", timeout=10) as rest,
        httpx.AsyncClient(base_url=gateway, timeout=10) as http,
    ):
        alice, bob = await logged_in(rest, "+8613800000001"), await logged_in(rest, "+8613800000002")
        auth = {"Authorization": f"Bearer {alice['access_token']}"}
        members = {"member_ids": [bob["user"]["id"]]}
        chat = (await rest.post("/v1/conversations", json=members, headers=auth)).json()["id"]
        assert (await http.get(connecting(alice["access_token"]))).status_code == 400
        ticket = (await rest.post("/v1/auth/ticket", headers=auth)).json()["ticket"]
        assert (await rest.get("/v1/me", headers={"Authorization": f"Bearer {ticket}"})).status_code == 401
        async with http.stream("GET", connecting(ticket)) as stream:
            items = heard(stream)
            told = (await anext(items))["connect"]
            for number in range(2, 2 + MESSAGES):
                data = {"conversation_id": chat, "id": str(uuid.uuid4()), "text": str(number)}
                frame = json.dumps({"id": number, "rpc": {"method": "message.send", "data": data}})
                body = {"session": told["session"], "node": told["node"], "data": frame}
                async with httpx.AsyncClient(base_url=gateway, timeout=10) as knocking:
                    assert (await knocking.post("/emulation", json=body)).status_code == 204
            answered = 2
            while answered < 2 + MESSAGES:
                if "rpc" in (item := await anext(items)):
                    assert item["id"] == answered
                    answered += 1
            async with http.stream("GET", connecting(ticket)) as second:
                assert (await anext(heard(second)))["error"]["code"] == 109
            await rest.post("/v1/auth/logout", json={}, headers=auth)
            while "disconnect" not in (item := await anext(items)).get("push", {}):
                pass
            assert item["push"]["disconnect"]["code"] == 4500
    written = [
        path for path in Path(parts.folder).rglob("*") if path.is_file() and path.suffix in (".log", ".txt", ".json")
    ]
    assert written
    secret = ticket.rpartition(".")[2]
    assert not [path for path in written if secret in path.read_text(errors="replace")]
