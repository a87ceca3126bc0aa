"""HAProxy logs every request, to the machine's syslog: none of what clients write is in it."""

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.security.tally import Tally
from tests.support.front import front_of
from tests.support.servers import free_port

PHONE = "+8613971358246"
TOLD = (
    "canary-in-the-query",
    "canary-in-the-path",
    "canary-in-a-header",
    "canary-in-a-body",
    "canary-in-a-method",
    "13971358246",
)
SAID = {
    "a query": f"GET /v1/me?token={TOLD[0]} HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path": f"GET /v1/{TOLD[1]}/{PHONE} HTTP/1.1\r\nHost: x\r\n\r\n",
    "headers": f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOLD[2]}\r\nCookie: sid={TOLD[2]}\r\n\r\n",
    "a body": f"POST /v1/me HTTP/1.1\r\nHost: x\r\nContent-Length: {len(TOLD[3])}\r\n\r\n{TOLD[3]}",
    "a request that is none": f"{TOLD[4].upper()} /v1/me?{TOLD[0]}\r\nAuthorization {TOLD[2]}\r\n\r\n",
}


@pytest.mark.parametrize("where", SAID)
async def test_what_a_client_writes_is_not_in_haproxys_log(where: str, tally: Tally) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:

        def listening(folder: Path) -> dict[str, Any]:
            log.bind(str(folder / "log"))
            log.settimeout(5)
            return {}

        async with front_of(free_port(), listening) as front:
            await front.say(SAID[where].encode())
            lines = [log.recv(65_536).decode(errors="replace")]
            log.setblocking(False)
            while True:
                try:
                    lines.append(log.recv(65_536).decode(errors="replace"))
                except BlockingIOError:
                    break
    tally.tried("SEC-11", f"secrets in {where}", "HAProxy's log", 1)
    assert any(" 50" in line or " 40" in line for line in lines), lines
    assert [line for line in lines for told in TOLD if told.lower() in line.lower()] == []
