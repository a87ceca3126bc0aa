"""Fifty canaries go through a whole platform, well used and abused, while parts of it fail: no log of any process holds one.

Hosts, gateways, placement, Serve's replicas, NATS, Valkey and Ray itself: every file that any of them has written, and what the
platform has printed. HAProxy writes to the machine's syslog, and has its own test: `tests/security/test_haproxy_log.py`;
`tests/security/test_logs.py` goes through the logging of one process, road by road.
"""

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import uuid
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.security.wires import RawSocket, frame
from tests.support.platform import Platform

PHONES: Final = 20
SECRETS: Final = 30
ROLES: Final = ("host-0", "host-1", "gateway-0", "gateway-1", "placement", "up", "ray", "nats", "valkey")
MOST_BYTES: Final = 1 << 26


class Canaries:
    """What must not be found again. `secret` makes one that stands nowhere else."""

    def __init__(self) -> None:
        digits = secrets.randbelow(10**5)
        self.phones = [f"+86139{digits:05d}{number:03d}" for number in range(PHONES)]
        self.secrets: dict[str, str] = {}

    def secret(self, kind: str) -> str:
        self.secrets[kind] = text = f"{secrets.token_urlsafe(12)}canary{secrets.token_urlsafe(12)}"
        return text

    def told(self, kind: str, text: str) -> str:
        """One that the platform has made."""
        self.secrets[kind] = text
        return text

    def found_in(self, line: str) -> list[str]:
        """What a line shows: secrets as they are, phones with whatever stands between their digits."""
        found = [kind for kind, text in self.secrets.items() if text in line]
        numbers = {re.sub(r"[^0-9]", "", match) for match in re.findall(r"1[ -]?3[ -]?9[0-9 -]{8,14}", line)}
        return found + [phone for phone in self.phones if any(phone[3:] in number for number in numbers)]


async def used(http: httpx.AsyncClient, platform: Platform, canaries: Canaries) -> None:
    """People log in, some with a wrong code first; what they are given is a canary too."""
    opened = []
    for number, phone in enumerate(canaries.phones[:8]):
        await http.post("/v1/auth/otp", json={"phone": phone})
        code = (await http.get("/dev/outbox", params={"to": phone})).json()["items"][0]["code"]
        device = {"id": str(uuid.uuid4()), "name": canaries.secret(f"device {number}")}
        await http.post("/v1/auth/otp/verify", json={"phone": phone, "code": "000000", "device": device})
        grant = (await http.post("/v1/auth/otp/verify", json={"phone": phone, "code": code, "device": device})).json()
        opened.append(grant)
    for number in range(2):
        canaries.told(f"access token {number}", opened[number]["access_token"])
        canaries.told(f"refresh token {number}", opened[number]["refresh_token"])
    ann, bob = ({"Authorization": f"Bearer {grant['access_token']}"} for grant in opened[:2])
    key = await http.post("/v1/me/api-keys", json={"name": "x"}, headers=ann)
    assert key.status_code in (201, 403)
    ticket = await http.post("/v1/auth/ticket", headers=ann)
    canaries.told("ticket", ticket.json()["ticket"])
    room = await http.post("/v1/conversations", json={"member_ids": [opened[1]["user"]["id"]]}, headers=ann)
    assert room.status_code == 201, room.text
    said = {
        "id": str(uuid.uuid4()),
        "text": f"write to {canaries.secret('e-mail')}@example.com or call {canaries.phones[9]}",
    }
    sent = await http.post(f"/v1/conversations/{room.json()['id']}/messages", json=said, headers=ann)
    assert sent.status_code in (200, 201), sent.text
    await http.get(
        f"/v1/conversations/{room.json()['id']}/messages/search", params={"q": canaries.secret("search")}, headers=bob
    )
    await http.patch("/v1/me", json={"name": canaries.secret("name")}, headers=ann)
    order = {
        "category": "plumbing",
        "title": "x",
        "description": canaries.secret("description"),
        "address": canaries.secret("address"),
    }
    await http.post("/v1/orders", json=order, headers=ann)
    for grant in opened[:2]:
        async with RawSocket(platform.ws_port, grant["access_token"]):
            pass
    for _ in range(3):  # reuse of a refresh token, which is told in the audit log
        await http.post("/v1/auth/refresh", json={"refresh_token": canaries.secrets["refresh token 1"]})


async def abused(http: httpx.AsyncClient, platform: Platform, canaries: Canaries) -> None:
    """The same kinds of things where they do not belong, and in requests that fail."""
    for phone in canaries.phones[8:]:
        await http.get(f"/v1/users/{phone}")
        await http.get("/v1/me", params={"phone": phone})
        await http.post("/v1/auth/otp", json={"phone": [phone]})
        await http.post("/v1/auth/otp", content=f'{{"phone": "{phone}"')
        await http.post("/v1/auth/otp", json={phone: phone, "phone": phone + "x"})
        await http.get("/v1/me", headers={"X-Phone": phone, "Authorization": f"Bearer {phone}"})
    bearer, query = canaries.secret("bearer"), canaries.secret("token in the URL")
    await http.get("/v1/me", headers={"Authorization": f"Bearer {bearer}"})
    await http.get("/v1/me", params={"token": query, "access_token": query})
    await http.post("/v1/auth/refresh", json={"refresh_token": canaries.secret("refresh token of nobody's")})
    await http.get("/v1/me", headers={"Cookie": f"sid={canaries.secret('cookie')}"})
    await http.get("/v1/me", headers={"Authorization": f"ApiKey rek_{canaries.secret('API key')}"})
    signature = f"t=1,v1={canaries.secret('signature')}"
    await http.post("/v1/webhooks/payments/sandbox", content=b"{", headers={"X-Signature": signature})
    finish = {"state": canaries.secret("state"), "code": canaries.secret("code of a provider"), "device": {"id": "x"}}
    await http.post("/v1/auth/oidc/google/finish", json=finish)
    login = {
        "key_id": str(uuid.uuid4()),
        "challenge": canaries.secret("challenge"),
        "signature": "x",
        "device": {"id": "x"},
    }
    await http.post("/v1/auth/device-login", json=login)
    token = canaries.secret("token of a socket")
    async with RawSocket(platform.ws_port) as stranger:
        await stranger.send(frame(json.dumps({"id": 1, "connect": {"token": token}}).encode()))
        await stranger.closed_with(5)
    port_token = canaries.secret("token in the URL of a socket")
    await raw(platform.ws_port, f"GET /connection/websocket?token={port_token} HTTP/1.1\r\nHost: x\r\n\r\n")
    for port in (platform.http_port, platform.ws_port):
        broken = canaries.secret(f"a broken request to {port}")
        await raw(port, f"GET /v1/me HTTP/1.1\r\nAuthorization: Bearer {broken}\r\nHost x\r\nA\x01: b\r\n\r\n")


async def raw(port: int, said: str) -> None:
    def ask() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            plain.sendall(said.encode())
            plain.recv(4096)

    await asyncio.to_thread(ask)


async def failing(http: httpx.AsyncClient, platform: Platform, canaries: Canaries) -> None:
    """The same again while Valkey does not answer and a host is dead."""
    valkey = next(each for each in platform.tree() if "valkey" in each.name())
    host = next(iter((await asyncio.to_thread(platform.pids, "host")).values()))
    valkey.suspend()
    os.kill(host, signal.SIGKILL)
    try:
        async with asyncio.timeout(60):
            calls = [http.post("/v1/auth/otp", json={"phone": phone}) for phone in canaries.phones]
            token = canaries.secrets["access token 0"]
            calls += [http.get("/v1/me", headers={"Authorization": f"Bearer {token}"}) for _ in range(4)]
            await asyncio.gather(*calls, return_exceptions=True)
    finally:
        valkey.resume()


def written(platform: Platform) -> dict[str, str]:
    """Every log of every process by its name; what they printed is among them."""
    texts = {"printed": platform.output}
    folder = platform.data_dir / "logs"
    for at, _, names in os.walk(folder, followlinks=True):
        for path in (Path(at) / name for name in names):
            with path.open("rb") as file:
                texts[str(path.relative_to(folder))] = file.read(MOST_BYTES).decode(errors="replace")
    return texts


@pytest.mark.timeout(300)
async def test_no_log_of_any_process_holds_a_canary() -> None:
    canaries = Canaries()
    with Platform(hosts="2", gateways="2", log_level="debug", rate_limits="off") as platform:
        async with httpx.AsyncClient(base_url=platform.rest, timeout=20, trust_env=False) as http:
            await used(http, platform, canaries)
            await abused(http, platform, canaries)
            await failing(http, platform, canaries)
        platform.stop()
        texts = written(platform)
    assert len(canaries.phones) + len(canaries.secrets) >= 50
    assert canaries.found_in(f"to {canaries.phones[3]}, {canaries.secrets['bearer']}") == ["bearer", canaries.phones[3]]
    missing = [role for role in ROLES if not any(role in name for name in texts)]
    assert missing == [], f"of these there is no log, in {sorted(texts)}"
    found = {
        f"{name}: {canary}": line[:300]
        for name, text in texts.items()
        for line in text.splitlines()
        for canary in canaries.found_in(line)
    }
    print(json.dumps({name: len(text) for name, text in sorted(texts.items())}))
    assert found == {}
