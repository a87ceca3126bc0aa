"""The gateway's port for plain HTTP: who may ask for what, how large, and how slowly."""

import asyncio
import json
import logging
import time
from urllib.parse import quote

import pytest

from gateway.protobuf import decode_emulation
from tests.support.streams import ALICE, CHAT, JSON, PAGE, Client, Open, open_house, raw, send, sse_url

__all__ = ["open_house"]

# --- who may ask ---


@pytest.mark.parametrize("path", ["/connection/sse", "/connection/http_stream", "/emulation"])
@pytest.mark.parametrize("origin", ["null", "https://evil.example", "http://app.example", f"{PAGE}.evil.example", ""])
async def test_a_foreign_origin_is_refused(open_house: Open, path: str, origin: str) -> None:
    house = await open_house()
    response = await house.http.post(house.url(path), content=b"{}", headers=JSON | {"origin": origin})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("path", ["/connection/sse", "/connection/http_stream", "/emulation"])
async def test_a_page_of_ours_is_answered_before_it_asks_and_when_it_does(open_house: Open, path: str) -> None:
    house = await open_house()
    asking = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    preflight = await house.http.options(house.url(path), headers=asking)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "content-type"
    assert "access-control-allow-credentials" not in preflight.headers
    answer = await house.http.post(house.url(path), content=b"{}", headers={"origin": PAGE, "content-type": "text/x"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (415, PAGE)
    assert "origin" in answer.headers["vary"].lower()


async def test_a_foreign_page_gets_no_preflight(open_house: Open) -> None:
    house = await open_house()
    response = await house.http.options(house.url("/emulation"), headers={"origin": "https://evil.example"})
    assert response.status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/emulation", b"405"),
        ("GET", "/connection/http_stream", b"405"),
        ("PUT", "/emulation", b"404"),
        ("DELETE", "/connection/sse", b"404"),
    ],
)
async def test_another_method_is_refused(open_house: Open, method: str, path: str, status: bytes) -> None:
    house = await open_house()
    answer = await raw(house.ports[0], f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] == status


@pytest.mark.parametrize("path", ["/", "/connection/other", "/emulation/", "//emulation", "/v1/me"])
async def test_there_is_nothing_else_to_post_to(open_house: Open, path: str) -> None:
    house = await open_house()
    assert (await house.http.post(house.url(path), content=b"{}", headers=JSON)).status_code == 404


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"])
@pytest.mark.parametrize("path", ["/connection/sse", "/connection/http_stream", "/emulation"])
async def test_a_body_of_another_kind_is_refused(open_house: Open, path: str, kind: str) -> None:
    house = await open_house()
    response = await house.http.post(house.url(path), content=b"{}", headers={"content-type": kind})
    assert response.status_code == 415


# --- tokens in URLs ---


async def test_a_ticket_may_stand_in_a_url_once(open_house: Open) -> None:
    house = await open_house()
    ticket = house.platform.ticket(house.platform.token(ALICE, "sid-a"))
    url = sse_url(house, {"id": 1, "connect": {"token": ticket}})
    heard = []
    for _ in range(2):
        async with house.http.stream("GET", url) as response:
            assert response.status_code == 200
            heard.append(await Client(response).hear())
    assert heard[0]["connect"]["expires"]
    assert heard[1]["error"]["code"] == 109


@pytest.mark.parametrize("how", ["connect", "refresh", "second", "parameter", "both"])
async def test_an_access_token_in_a_url_is_refused_and_never_written_down(
    open_house: Open, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    house = await open_house()
    token = house.platform.token(ALICE, "canary-sid")
    ticket = house.platform.ticket(house.platform.token(ALICE, "sid-a"))
    by_ticket, by_token = {"id": 1, "connect": {"token": ticket}}, {"id": 1, "connect": {"token": token}}
    url = {
        "connect": sse_url(house, by_token),
        "refresh": sse_url(house, by_ticket, {"id": 2, "refresh": {"token": token}}),
        "second": sse_url(house, by_ticket, by_token),
        "parameter": sse_url(house, by_ticket) + f"&access_token={token}",
        "both": sse_url(house, by_ticket) + "&cf_connect=" + quote(json.dumps(by_token)),
    }[how]
    answer = await raw(
        house.ports[0],
        f"GET {url.partition(str(house.ports[0]))[2]} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode(),
    )
    assert answer.split(b" ")[1] == b"400"
    assert b"canary" not in answer
    assert not house.servers[0]._board.peers
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert "canary" not in "".join(record.getMessage() for record in ours)


@pytest.mark.parametrize("query", ["", "?cf_connect=", "?cf_connect=nonsense", "?cf_connect=%ff", "?" + "a=1&" * 50])
async def test_a_get_without_a_command_is_refused(open_house: Open, query: str) -> None:
    house = await open_house()
    assert (await house.http.get(house.url(f"/connection/sse{query}"))).status_code == 400


async def test_a_stream_does_not_keep_what_its_request_said(open_house: Open) -> None:
    house = await open_house()
    ticket = house.platform.ticket(house.platform.token(ALICE, "sid-a"))
    async with house.http.stream("GET", sse_url(house, {"id": 1, "connect": {"token": ticket}})) as response:
        await Client(response).hear()
        (connection,) = house.servers[0]._http._state.connections
        assert connection.cycle.scope["query_string"] == b""
        assert connection.cycle.scope["headers"] == []


# --- sizes ---


@pytest.mark.parametrize("path", ["/connection/http_stream", "/connection/sse"])
@pytest.mark.parametrize(("size", "status"), [(4_096, 200), (4_097, 413), (400_000, 413), (3_000_000, 413)])
async def test_the_size_of_a_first_frame_is_bounded(open_house: Open, path: str, size: int, status: int) -> None:
    house = await open_house(max_frame_bytes=4_096)
    connect = json.dumps({"id": 1, "connect": {"token": house.platform.token(ALICE, "sid-a")}})
    async with house.http.stream("POST", house.url(path), content=connect.ljust(size), headers=JSON) as response:
        assert response.status_code == status


@pytest.mark.parametrize(("size", "status"), [(4_096, 204), (4_097, 413), (9_000, 413), (3_000_000, 413)])
async def test_the_size_of_a_posted_frame_is_bounded(open_house: Open, size: int, status: int) -> None:
    house = await open_house(max_frame_bytes=4_096)
    client = await house.connected()
    assert (await house.post(client, data=json.dumps(send(2)).ljust(size))).status_code == status
    assert len(house.platform.streams[CHAT].events) == (status == 204)


async def test_a_frame_of_quotes_may_be_as_large_as_over_a_websocket(open_house: Open) -> None:
    house = await open_house(max_frame_bytes=4_096)
    client = await house.connected()
    frame = json.dumps({"id": 2, "ping": {}})
    while len(frame) < 3_900:
        frame += "\n" + json.dumps({"id": 3, "ping": {}}, separators=(",", ":"))
    assert (await house.post(client, data=frame)).status_code == 204


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"session":1,"node":"n","data":""}', b"\xff", b'{"session":"s","node":"n"}', b"[" * 60_000],
)
async def test_what_is_no_command_is_400(open_house: Open, body: bytes) -> None:
    house = await open_house()
    assert (await house.http.post(house.url("/emulation"), content=body, headers=JSON)).status_code == 400


async def test_garbage_for_a_stream_of_ones_own_ends_it_as_over_a_websocket(open_house: Open) -> None:
    house = await open_house()
    client = await house.connected()
    assert (await house.post(client, data="{broken")).status_code == 204
    assert (await client.end())["code"] == 3501


async def test_protobuf_is_posted_as_protobuf(open_house: Open) -> None:
    house = await open_house()
    assert decode_emulation(b"\x0a\x01n\x12\x01s\x1a\x02\x01\x02") == ("n", "s", b"\x01\x02")
    kind = {"content-type": "application/octet-stream"}
    nowhere = await house.http.post(
        house.url("/emulation"), content=b"\x0a\x01n\x12\x01s\x1a\x02\x01\x02", headers=kind
    )
    broken = await house.http.post(house.url("/emulation"), content=b"\x0a\xff", headers=kind)
    assert (nowhere.status_code, broken.status_code) == (404, 400)


async def test_a_head_has_a_size_too(open_house: Open) -> None:
    house = await open_house()
    filler = b"".join(b"x-%d: %s\r\n" % (n, b"y" * 100) for n in range(400))
    endless = await raw(house.ports[0], b"POST /emulation HTTP/1.1\r\n" + filler)
    whole = await raw(house.ports[0], b"POST /emulation HTTP/1.1\r\nconnection: close\r\n" + filler + b"\r\n")
    assert endless == b""
    assert whole == b"" or whole.split(b" ")[1] == b"431"


@pytest.mark.parametrize(
    "smuggled",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"content-length: +5\r\n\r\nhello",
        b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"x: a\r\n b\r\ncontent-length : 5\r\n\r\nhello",
        b"transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    ],
)
async def test_what_two_servers_could_read_in_two_ways_is_not_read_at_all(open_house: Open, smuggled: bytes) -> None:
    house = await open_house()
    client = await house.connected()
    inner = json.dumps({"session": client.session, "node": client.node, "data": json.dumps(send(2))}).encode()
    second = b"POST /emulation HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    request = b"POST /emulation HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" + smuggled
    answer = await raw(house.ports[0], request + second % (len(inner), inner))
    assert answer == b"" or answer.split(b" ")[1] == b"400"
    assert answer.count(b"HTTP/1.1") <= 1
    assert not house.platform.streams[CHAT].events


# --- time ---


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"G",
        b"GET /connection/s",
        b"POST /emulation HTTP/1.1\r\nhost: x\r\n",
        b"POST /emulation HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{",
        b"GET /connection/websocket HTTP/1.1\r\n",
    ],
)
async def test_who_takes_too_long_is_cut_off(open_house: Open, beginning: bytes) -> None:
    house = await open_house(open_timeout_s=0.3, keep_alive_s=60)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.ports[0])
    writer.write(beginning)
    started = time.monotonic()
    while time.monotonic() - started < 3 and not reader.at_eof():
        try:
            async with asyncio.timeout(0.1):
                await reader.read(1_000)
        except TimeoutError:
            continue
        except ConnectionResetError:
            break
    took_s = time.monotonic() - started
    writer.close()
    assert took_s < 1.0


async def test_dripping_bytes_buys_no_time(open_house: Open) -> None:
    house = await open_house(open_timeout_s=0.4)
    for request in (b"POST /emulation HTTP/1.1\r\nx: ", b"\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", house.ports[0])
        if request == b"\r\n":
            writer.write(b"POST /emulation HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
        writer.write(request)
        started = time.monotonic()
        while not reader.at_eof() and time.monotonic() - started < 3:
            writer.write(b"\r\n" if request == b"\r\n" else b"y")
            try:
                async with asyncio.timeout(0.05):
                    await reader.read(1_000)
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - started < 1.5
        writer.close()


async def test_a_slow_body_is_told_so(open_house: Open) -> None:
    house = await open_house(open_timeout_s=0.2)
    head = b"POST /emulation HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    assert (await raw(house.ports[0], head)).split(b" ")[1] == b"408"


async def test_an_idle_connection_is_kept_for_its_time_only(open_house: Open) -> None:
    house = await open_house(keep_alive_s=1)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.ports[0])
    request = b"POST /emulation HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    for _ in range(3):
        writer.write(request)
        assert (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1] == b"400"
        await reader.readuntil(b"\n")
    async with asyncio.timeout(3):
        assert await reader.read() == b""
    writer.close()


async def test_saying_late_what_one_is_buys_no_time(open_house: Open) -> None:
    house = await open_house(open_timeout_s=1.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.ports[0])
    started = time.monotonic()
    await asyncio.sleep(0.7)
    writer.write(b"GET /connection/websocket HTTP/1.1\r\n")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    assert time.monotonic() - started < 1.4
    writer.close()
