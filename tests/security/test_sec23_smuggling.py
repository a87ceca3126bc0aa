"""SEC-23: requests that two programs could read in two ways, against HAProxy's real program with our configuration.

Each is refused with 400 (or 422, for a transfer coding that nobody knows) and the upstream hears nothing of it; or, where
HTTP lets a proxy put it right, the upstream gets exactly one request, with one framing and no line that was not meant.
"""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.security.tally import Tally
from tests.support.front import Front, Upstream, front_of

HIDDEN = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def post(*headers: bytes, body: bytes = b"", line: bytes = b"POST /a HTTP/1.1", host: bytes = b"Host: x") -> bytes:
    return b"\r\n".join([line, host, *headers, b"", body])


def get(*headers: bytes, line: bytes = b"GET /a HTTP/1.1") -> bytes:
    return post(*headers, line=line)


CHUNKED = b"Transfer-Encoding: chunked"
END = b"0\r\n\r\n"

REFUSED = {
    "two lengths that differ": post(b"Content-Length: 3", b"Content-Length: 40", body=b"abc" + HIDDEN),
    "a list of lengths that differ": post(b"Content-Length: 3, 40", body=b"abc" + HIDDEN),
    "a negative length": post(b"Content-Length: -1", body=HIDDEN),
    "a length with a plus": post(b"Content-Length: +3", body=b"abc"),
    "a hexadecimal length": post(b"Content-Length: 0x3", body=b"abc"),
    "a length with a letter": post(b"Content-Length: 3a", body=b"abc"),
    "a length with a fraction": post(b"Content-Length: 3.0", body=b"abc"),
    "an empty length": post(b"Content-Length:", body=HIDDEN),
    "a length that overflows": post(b"Content-Length: 18446744073709551620", body=HIDDEN),
    "an unknown transfer coding": post(b"Transfer-Encoding: xchunked", body=END + HIDDEN),
    "the coding identity with a length": post(
        b"Transfer-Encoding: identity", b"Content-Length: 3", body=b"abc" + HIDDEN
    ),
    "chunked twice": post(b"Transfer-Encoding: chunked, chunked", body=END + HIDDEN),
    "chunked twice in two lines": post(CHUNKED, CHUNKED, body=END + HIDDEN),
    "chunked and then another coding": post(b"Transfer-Encoding: chunked, identity", body=END + HIDDEN),
    "another coding in a line behind": post(CHUNKED, b"Transfer-Encoding: identity", body=END + HIDDEN),
    "a quoted coding": post(b'Transfer-Encoding: "chunked"', body=END + HIDDEN),
    "gzip before chunked": post(b"Transfer-Encoding: gzip, chunked", body=END + HIDDEN),
    "chunked in HTTP/1.0": post(CHUNKED, body=END + HIDDEN, line=b"POST /a HTTP/1.0"),
    "a blank before the colon of Content-Length": post(b"Content-Length : 3", body=b"abc"),
    "a blank before the colon of Transfer-Encoding": post(b"Transfer-Encoding : chunked", body=END + HIDDEN),
    "a tab before the colon": post(b"Transfer-Encoding\t: chunked", body=END + HIDDEN),
    "a control character in a header's name": get(b"X\x0b: a"),
    "a NUL in a header": get(b"X: a\x00b"),
    "a lone carriage return in a header": get(b"X: a\rY: b"),
    "a lone carriage return before a length": post(b"X: a\rContent-Length: 40", body=HIDDEN),
    "a header without a colon": get(b"Transfer-Encoding"),
    "a header without a name": get(b": chunked"),
    "a header that is not ASCII in its name": get(b"Transfer-Encod\xc4\xb1ng: chunked"),
    "two hosts": get(b"Host: y"),
    "no host": b"GET /a HTTP/1.1\r\n\r\n",
    "a host that is not the one in the address": get(line=b"GET http://y/a HTTP/1.1"),
    "a blank in the path": get(line=b"GET /a b HTTP/1.1"),
    "a NUL in the path": get(line=b"GET /a\x00 HTTP/1.1"),
    "a version that is none": get(line=b"GET /a HTTP/1.1x"),
    "a version of two digits": get(line=b"GET /a HTTP/11.1"),
    "a method with a bracket": get(line=b"G{T /a HTTP/1.1"),
    "a header section beyond 16 KiB": get(b"X: " + b"a" * 20_000),
    "more than a hundred headers": get(*(b"X-%d: a" % n for n in range(150))),
    "a chunk size that is no number": post(CHUNKED, body=b"zz\r\nabc\r\n" + END),
    "a negative chunk size": post(CHUNKED, body=b"-1\r\nabc\r\n" + END),
    "a chunk size that overflows": post(CHUNKED, body=b"10000000000000003\r\nabc\r\n" + END),
    "a chunk size with 0x": post(CHUNKED, body=b"0x3\r\nabc\r\n" + END),
    "a chunk longer than it says": post(CHUNKED, body=b"3\r\nabcdef\r\n" + END),
    "a chunk that ends in something else": post(CHUNKED, body=b"3\r\nabcXX" + END),
}

PUT_RIGHT = {
    "a length and chunks, the length longer": post(b"Content-Length: 40", CHUNKED, body=END + HIDDEN),
    "chunks and a length, the length shorter": post(CHUNKED, b"Content-Length: 4", body=b"3\r\nabc\r\n" + END + HIDDEN),
    "the same length twice": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "a list of equal lengths": post(b"Content-Length: 3, 3", body=b"abc"),
    "chunked in capitals": post(b"Transfer-Encoding: CHUNKED", body=b"3\r\nabc\r\n" + END),
    "a folded header": get(b"X: a", b" Transfer-Encoding: chunked"),
    "a folded coding": post(b"Transfer-Encoding:", b" chunked", body=b"3\r\nabc\r\n" + END),
    "bare line feeds": b"GET /a HTTP/1.1\nHost: x\nX: a\n\n",
    "a request hidden in a body": post(b"Content-Length: %d" % len(HIDDEN), body=HIDDEN),
    "a request hidden in the body of a GET": get(b"Content-Length: %d" % len(HIDDEN)) + HIDDEN,
    "a request hidden in a chunk": post(CHUNKED, body=b"%x\r\n%s\r\n%s" % (len(HIDDEN), HIDDEN, END)),
    "a request hidden in a chunk's extension": post(CHUNKED, body=b"3;x=GET /smuggled HTTP/1.1\r\nabc\r\n" + END),
    "line ends that are encoded in the path": get(line=b"GET /a%0d%0aX-Evil:%20b%0d%0a HTTP/1.1"),
    "an upgrade to HTTP/2 in clear": get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMA"),
    "hop headers that name ours": get(b"Connection: close, X-Forwarded-For, Content-Length"),
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().running() as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(upstream: Upstream) -> AsyncIterator[Front]:
    async with front_of(upstream.port) as front:
        yield front


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
async def test_what_can_be_read_in_two_ways_is_refused(
    front: Front, upstream: Upstream, tally: Tally, request_: bytes
) -> None:
    tally.tried("SEC-23", next(name for name, each in REFUSED.items() if each is request_), "HAProxy")
    upstream.seen.clear()
    answer = await front.say(request_)
    assert re.match(rb"HTTP/1\.1 (400|422) ", answer), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1
    assert [seen.line for seen in upstream.seen if "smuggled" in seen.line] == []
    assert all(seen.body in (b"", b"abc") for seen in upstream.seen)


@pytest.mark.parametrize("request_", PUT_RIGHT.values(), ids=PUT_RIGHT.keys())
async def test_what_is_put_right_is_one_request_of_one_framing(
    front: Front, upstream: Upstream, tally: Tally, request_: bytes
) -> None:
    tally.tried("SEC-23", next(name for name, each in PUT_RIGHT.items() if each is request_), "HAProxy")
    upstream.seen.clear()
    answer = await front.say(request_)
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    (seen,) = upstream.seen
    assert seen.line.split(" ")[1].startswith("/a")
    assert len(seen.named("transfer-encoding")) + len(seen.named("content-length")) <= 1
    assert seen.body in (b"", b"abc", HIDDEN)
    assert not {"x-evil", "smuggled"} & {name for name, _ in seen.headers}
    assert seen.named("x-forwarded-for") == ["127.0.0.1"]


@pytest.mark.parametrize("method", [b"CONNECT x:80", b"TRACE /a"])
async def test_methods_that_open_tunnels_or_echo_are_refused(front: Front, upstream: Upstream, method: bytes) -> None:
    upstream.seen.clear()
    host = b"Host: x:80" if method.startswith(b"CONNECT") else b"Host: x"
    answer = await front.say(post(line=method + b" HTTP/1.1", host=host))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b'"code":"method_not_allowed"' in answer
    assert upstream.seen == []


async def test_a_client_cannot_say_who_it_is(front: Front, upstream: Upstream) -> None:
    upstream.seen.clear()
    await front.say(get(b"X-Forwarded-For: 10.0.0.1", b"x-forwarded-for: 10.0.0.2"))
    (said,) = upstream.seen[0].named("x-forwarded-for")
    assert said.split(", ")[-1] == "127.0.0.1"


async def test_what_haproxy_answers_itself_has_the_headers_and_the_shape_of_every_answer(front: Front) -> None:
    answer = (await front.say(b"GET /a HTTP/1.1\r\n\r\n")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    assert "content-type: application/problem+json" in head.lower()
    for header in (
        "x-content-type-options: nosniff",
        "content-security-policy: default-src 'none'",
        "cache-control: no-store",
    ):
        assert header in head.lower()
    assert '"code":"invalid"' in body
    passed = (await front.say(get())).decode().lower()
    assert passed.count("x-content-type-options: nosniff") == 1


async def test_two_requests_in_a_row_are_two(front: Front, upstream: Upstream) -> None:
    """The judge itself: an honest pipeline is seen as two."""
    upstream.seen.clear()
    answer = await front.say(get() + get(line=b"GET /b HTTP/1.1"))
    await asyncio.sleep(0.1)
    assert [seen.line for seen in upstream.seen] == ["GET /a HTTP/1.1", "GET /b HTTP/1.1"]
    assert answer.count(b"HTTP/1.1 200") == 2
