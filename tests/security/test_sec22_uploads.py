"""SEC-22: what is uploaded to do harm: to who decodes it, to who opens it later, to the disk, to the memory.

Every case is answered with its documented code, or is kept as pixels alone and served as a file to be saved.
"""

import asyncio
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from PIL import Image

from domain.access import Role
from tests.security.city import ORDER, Answer, City, Person
from tests.security.tally import Tally
from tests.support.pictures import (
    PDF,
    TYPES,
    chunk,
    jpeg_of_size,
    located,
    moving,
    picture,
    png,
    webp_of_size,
)

POST: Final = "POST /v1/uploads"
GET: Final = "GET /v1/uploads/{upload_id}"
SCRIPT: Final = b"<script>alert('canary')</script>"
CANARIES: Final = (
    b"canary",
    b"CanaryCamera",
    b"Canary Artist",
    b"GPS",
    b"Exif",
    b"http://ns.adobe.com",
    b"<?php",
    b"PK\x03\x04",
)
LIMIT: Final = 10 << 20
RSS_MOST: Final = 48 << 20


async def sent(
    person: Person, content: bytes, media_type: str | None = "image/png", purpose: str = "chat", **more: Any
) -> Answer:
    headers = ({} if media_type is None else {"Content-Type": media_type}) | more.pop("headers", {})
    params = {"purpose": purpose} | more.pop("params", {})
    return await person.ask("POST", "/v1/uploads", content=content, headers=headers, params=params, **more)


def refused_with(answer: Answer) -> tuple[int, str, str]:
    errors = answer.json.get("errors") or [{"code": ""}]
    return answer.status, answer.code, errors[0]["code"]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def person(city: City) -> Person:
    return await city.person(Role.CUSTOMER)


def kept(city: City) -> tuple[int, str]:
    return len(city.platform.objects.contents), city.state()


# --- what it is --------------------------------------------------------------------------------------------------


@cache
def zipped(name: str = "canary.txt") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(zipfile.ZipInfo(name), b"canary" * 10)
    return out.getvalue()


OTHERS: Final[dict[str, bytes]] = {
    "a GIF": b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00;",
    "a BMP": b"BM" + bytes(60),
    "a TIFF": b"II*\x00" + bytes(60),
    "an icon": b"\x00\x00\x01\x00\x01\x00" + bytes(40),
    "an SVG with a script": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)">' + SCRIPT + b"</svg>",
    "an SVG behind a declaration": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    "a page of HTML": b"<!doctype html><html>" + SCRIPT + b"</html>",
    "HTML behind blanks": b" \n\t" + SCRIPT,
    "a ZIP": zipped(),
    "a program of Linux": b"\x7fELF\x02\x01\x01" + bytes(60),
    "a program of Windows": b"MZ\x90\x00" + bytes(60),
    "a shell script": b"#!/bin/sh\nrm -rf /\n",
    "a program in PHP": b"<?php system($_GET['c']); ?>",
    "JSON": b'{"purpose": "document"}',
    "HEIC": b"\x00\x00\x00\x18ftypheic" + bytes(40),
    "AVIF": b"\x00\x00\x00\x18ftypavif" + bytes(40),
    "a Photoshop file": b"8BPS\x00\x01" + bytes(40),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n(canary) run\n",
    "a RIFF that is a sound": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40),
    "a JPEG behind one byte": b"\x00" + picture("JPEG"),
    "a PNG behind a line end": b"\n" + picture("PNG"),
    "a PNG whose line ends were changed": picture("PNG").replace(b"\r\n", b"\n", 1),
    "a PDF behind HTML": SCRIPT + PDF,
    "nothing but zeros": bytes(1_000),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("media_type", ["image/jpeg", "image/png", "image/webp", "application/pdf"])
async def test_what_is_not_what_it_is_said_to_be_is_refused(
    city: City, tally: Tally, person: Person, name: str, media_type: str
) -> None:
    before = kept(city)
    answer = await sent(person, OTHERS[name], media_type, "document")
    tally.tried("SEC-22", f"{name} that is said to be {media_type}", POST)
    assert refused_with(answer) == (422, "invalid", "wrong_type")
    assert kept(city) == before


REAL: Final = {kind: (media_type, picture(kind)) for kind, media_type in TYPES.items()} | {
    "PDF": ("application/pdf", PDF)
}


@pytest.mark.parametrize("real", REAL)
@pytest.mark.parametrize("said", REAL)
async def test_a_picture_under_another_ones_name_is_refused(
    city: City, tally: Tally, person: Person, real: str, said: str
) -> None:
    answer = await sent(person, REAL[real][1], REAL[said][0], "document")
    if real == said:
        assert answer.status == 201, "or else all of that were refused to everybody"
        return
    tally.tried("SEC-22", f"a {real} that is said to be a {said}", POST)
    assert refused_with(answer) == (422, "invalid", "wrong_type")


NOT_TAKEN: Final = (
    "image/svg+xml", "text/html", "image/gif", "image/heic", "image/*", "*/*", "application/zip", "video/mp4", "text/xml",
    "application/octet-stream", "application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded",
    "image/png, text/html", "image/png text/html", "image/jpg", "text/html; image/png", "", None,
)  # fmt: skip


@pytest.mark.parametrize("media_type", NOT_TAKEN)
async def test_types_that_are_not_taken_are_415_whatever_comes(
    city: City, tally: Tally, person: Person, media_type: str | None
) -> None:
    before = kept(city)
    answer = await sent(person, picture("PNG"), media_type)
    tally.tried("SEC-22", f"the type {media_type!r}", POST)
    assert (answer.status, answer.code) == (415, "unsupported_media_type")
    assert kept(city) == before


@pytest.mark.parametrize("purpose", ["chat", "photo", "evidence"])
async def test_a_pdf_is_a_document_and_nothing_else(tally: Tally, person: Person, purpose: str) -> None:
    answer = await sent(person, PDF, "application/pdf", purpose)
    tally.tried("SEC-22", f"a PDF for {purpose}", POST)
    assert (answer.status, answer.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "params", [{"purpose": "admin"}, {"purpose": ""}, {"purpose": "../chat"}, {"purpose": ["chat", "document"]}]
)
async def test_a_purpose_that_is_none_is_refused(tally: Tally, person: Person, params: dict[str, Any]) -> None:
    answer = await sent(person, picture("PNG"), params=params)
    tally.tried("SEC-22", f"the purpose {params['purpose']!r}", POST)
    assert (answer.status, answer.code) == (422, "invalid")


# --- whole or not ------------------------------------------------------------------------------------------------


def damaged() -> Iterator[tuple[str, str, bytes]]:
    for kind, media_type in TYPES.items():
        whole = picture(kind, (400, 300))
        for part in (0.02, 0.3, 0.8):
            yield f"a {kind} that ends after {part:.0%}", media_type, whole[: max(16, int(len(whole) * part))]
        yield f"a {kind} that is its first bytes", media_type, whole[:12]
    zeros = zlib.compress(bytes(100))
    yield "a PNG without a width", "image/png", png(0, 5, zeros)
    yield "a PNG without a height", "image/png", png(5, 0, zeros)
    yield "a PNG whose pixels are no zlib", "image/png", png(20, 20, b"canary" * 20)
    yield "a PNG with too few pixels", "image/png", png(200, 200, zlib.compress(bytes(50)))
    yield "a PNG without pixels", "image/png", png(20, 20)
    yield "a PNG of a depth that is none", "image/png", png(5, 5, zeros, depth=7)
    yield "a PNG of a colour that is none", "image/png", png(5, 5, zeros, colour=9)
    yield "a PNG with a wrong checksum", "image/png", picture("PNG")[:29] + b"\0\0\0\0" + picture("PNG")[33:]
    yield "a PNG with a chunk of 2 GB", "image/png", picture("PNG")[:33] + b"\x7f\xff\xff\xffIDAT" + b"x" * 100
    yield "a PNG whose text is a bomb", "image/png", png(5, 5, zeros, (b"zTXt", b"k\0\0" + bomb()))
    yield "a PNG whose colour profile is a bomb", "image/png", png(5, 5, zeros, (b"iCCP", b"k\0\0" + bomb()))
    yield "a PNG of head and end", "image/png", picture("PNG")[:33] + picture("PNG")[-12:]
    yield "a JPEG whose sizes point outside", "image/jpeg", b"\xff\xd8\xff\xe0\xff\xff" + bytes(30)
    yield "a JPEG of markers alone", "image/jpeg", b"\xff\xd8" + b"\xff\xd0" * 500
    yield "a JPEG without pixels", "image/jpeg", b"\xff\xd8\xff\xd9"
    yield "a JPEG with a segment of no length", "image/jpeg", b"\xff\xd8\xff\xe0\x00\x00" + bytes(50)
    yield "a WebP without a picture", "image/webp", b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(10)
    yield "a WebP of an unknown chunk", "image/webp", b"RIFF\x1e\0\0\0WEBPCANY\x0a\0\0\0" + bytes(20)
    yield "a WebP of bad bits", "image/webp", b"RIFF\x40\0\0\0WEBPVP8L\x30\0\0\0\x2f\x0f\0\x01\0" + b"\xa5" * 56


@cache
def bomb() -> bytes:
    """200 MB of zeros in 200 kB."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()


DAMAGED: Final = {name: (media_type, content) for name, media_type, content in damaged()}


@pytest.mark.parametrize("name", DAMAGED)
async def test_what_is_no_whole_picture_is_refused(city: City, tally: Tally, person: Person, name: str) -> None:
    before = kept(city)
    with Peak() as peak:
        answer = await sent(person, DAMAGED[name][1], DAMAGED[name][0])
    tally.tried("SEC-22", name, POST)
    assert refused_with(answer) == (422, "invalid", "damaged")
    assert kept(city) == before
    assert peak.grown_bytes < RSS_MOST


# --- bombs -------------------------------------------------------------------------------------------------------


class Peak:
    """How far the process's memory has grown at most within the block (Linux)."""

    grown_bytes = 0

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.grown_bytes = self._read("VmHWM") - self._before

    def _read(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found
        return int(found[1]) << 10


@cache
def flat(width: int, height: int) -> bytes:
    """A real PNG, all of it there, of one bit a pixel: a gigapixel in a few hundred kilobytes."""
    packer, line = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(line * 100) for _ in range(height // 100)) + packer.flush()
    return png(width, height, data, depth=1, colour=0)


def bombs() -> Iterator[tuple[str, str, Any]]:
    for width, height in (
        (5_001, 5_000),
        (20_000, 20_000),
        (65_535, 65_535),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (16_384, 1),
    ):
        yield f"a PNG that promises {width} x {height}", "image/png", lambda w=width, h=height: png(w, h, b"x")
    for width, height in ((5_001, 5_000), (65_500, 65_500), (65_535, 1)):
        yield f"a JPEG that promises {width} x {height}", "image/jpeg", lambda w=width, h=height: jpeg_of_size(w, h)
    for width, height in ((5_001, 5_000), (16_383, 16_383), (1 << 24, 1 << 24), (16_384, 2)):
        yield f"a WebP that promises {width} x {height}", "image/webp", lambda w=width, h=height: webp_of_size(w, h)
    lossless = b"RIFF\x40\0\0\0WEBPVP8L\x30\0\0\0\x2f" + (0x0FFF_FFFF).to_bytes(4, "little") + bytes(40)
    yield "a lossless WebP that promises 16384 x 16384", "image/webp", lambda: lossless
    yield "a PNG of 900 million pixels, all there", "image/png", lambda: flat(30_000, 30_000)


BOMBS: Final = {name: (media_type, make) for name, media_type, make in bombs()}


@pytest.mark.parametrize("name", BOMBS)
async def test_more_pixels_than_are_taken_are_not_decoded(city: City, tally: Tally, person: Person, name: str) -> None:
    media_type, make = BOMBS[name]
    content, before = make(), kept(city)
    with Peak() as peak:
        answer = await sent(person, content, media_type)
    tally.tried("SEC-22", name, POST)
    assert refused_with(answer) == (422, "invalid", "too_many_pixels")
    assert kept(city) == before
    assert peak.grown_bytes < RSS_MOST


@pytest.mark.parametrize(("kind", "frames"), [("PNG", 2), ("PNG", 300), ("WEBP", 2), ("WEBP", 300)])
async def test_a_picture_that_moves_is_refused(tally: Tally, person: Person, kind: str, frames: int) -> None:
    with Peak() as peak:
        answer = await sent(person, moving(kind, frames), TYPES[kind])
    tally.tried("SEC-22", f"a {kind} of {frames} frames", POST)
    assert refused_with(answer) == (422, "invalid", "animated")
    assert peak.grown_bytes < RSS_MOST


# --- more than a picture -----------------------------------------------------------------------------------------


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def riff(kind: bytes, content: bytes) -> bytes:
    body = picture("WEBP")[8:] + kind + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def polyglots() -> Iterator[tuple[str, str, bytes]]:
    jpeg, plain_png = picture("JPEG"), picture("PNG")
    tails = {
        "a ZIP": zipped(),
        "HTML": SCRIPT,
        "PHP": b"<?php canary ?>",
        "a PDF": PDF + b"canary",
        "JavaScript": b";canary()",
    }
    for name, tail in tails.items():
        for kind, media_type in TYPES.items():
            yield f"a {kind} with {name} behind it", media_type, picture(kind) + tail
    head, rest = jpeg[:2], jpeg[2:]
    yield "a JPEG with HTML in its comment", "image/jpeg", head + segment(0xFE, SCRIPT) + rest
    yield "a JPEG with PHP in its comment", "image/jpeg", head + segment(0xFE, b"<?php canary ?>") + rest
    yield "a JPEG that is JavaScript too", "image/jpeg", head + segment(0xFE, b"*/=canary();/*") + rest
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>canary" + SCRIPT + b"</x:xmpmeta>"
    yield "a JPEG with XMP", "image/jpeg", head + segment(0xE1, xmp) + rest
    yield (
        "a JPEG with IPTC",
        "image/jpeg",
        head + segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x06canary") + rest,
    )
    yield "a JPEG with a ZIP in its head", "image/jpeg", head + segment(0xE5, zipped()) + rest
    yield "a JPEG with another JPEG in its head", "image/jpeg", head + segment(0xE5, b"canary" + jpeg) + rest
    yield (
        "a PNG with HTML in its text",
        "image/png",
        plain_png[:33] + chunk(b"tEXt", b"Comment\0" + SCRIPT) + plain_png[33:],
    )
    yield (
        "a PNG with packed text",
        "image/png",
        plain_png[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(SCRIPT)) + plain_png[33:],
    )
    international = b"k\0\0\0en\0k\0" + "canary 维".encode()
    yield "a PNG with international text", "image/png", plain_png[:33] + chunk(b"iTXt", international) + plain_png[33:]
    yield "a PNG with a chunk of its own", "image/png", plain_png[:33] + chunk(b"caNy", b"canary" * 9) + plain_png[33:]
    yield (
        "a PNG with PHP among its pixels' chunks",
        "image/png",
        plain_png[:33] + chunk(b"phPx", b"<?php canary ?>") + plain_png[33:],
    )
    yield "a WebP with a chunk of its own", "image/webp", riff(b"CANY", b"canary")
    yield "a WebP with XMP", "image/webp", riff(b"XMP ", xmp)


POLYGLOTS: Final = {name: (media_type, content) for name, media_type, content in polyglots()}


@pytest.mark.parametrize("name", POLYGLOTS)
async def test_of_what_is_a_picture_and_something_else_the_pixels_are_kept(
    city: City, tally: Tally, person: Person, name: str
) -> None:
    media_type, content = POLYGLOTS[name]
    answer = await sent(person, content, media_type)
    tally.tried("SEC-22", name, POST)
    assert answer.status == 201, answer.body
    got = await person.ask("GET", f"/v1/uploads/{answer.json['id']}")
    assert got.status == 200
    assert not [each for each in CANARIES if each in got.body]
    assert len(got.body) == answer.json["bytes"]
    shown = Image.open(io.BytesIO(got.body))
    assert TYPES[shown.format or ""] == media_type == got.headers["content-type"]
    assert shown.size == (48, 32)


@pytest.mark.parametrize("kind", TYPES)
async def test_nobody_learns_where_a_picture_was_taken(tally: Tally, person: Person, kind: str) -> None:
    content = located(kind)
    assert Image.open(io.BytesIO(content)).getexif().get_ifd(0x8825), "or else it proves nothing"
    answer = await sent(person, content, TYPES[kind])
    tally.tried("SEC-22", f"a {kind} that says where it was taken", POST)
    got = await person.ask("GET", f"/v1/uploads/{answer.json['id']}")
    shown = Image.open(io.BytesIO(got.body))
    assert dict(shown.getexif()) == {}
    assert not {"exif", "xmp", "comment", "icc_profile"} & shown.info.keys()
    assert not [each for each in CANARIES if each in got.body]
    assert shown.size == (32, 48), "it is upright without being told so"


# --- how much ----------------------------------------------------------------------------------------------------


class Slow:
    """A body in pieces that counts how many of them were taken."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = iter(pieces)
        self.taken = 0

    async def __aiter__(self) -> Any:
        for piece in self._pieces:
            self.taken += 1
            yield piece


async def spoken(person: Person, body: Slow, **headers: str) -> Answer:
    """A request whose head is written as it is given: no client puts a true length beside it."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/uploads",
        "raw_path": b"/v1/uploads",
        "root_path": "",
        "query_string": b"purpose=chat",
        "headers": [
            (name.lower().replace("_", "-").encode(), value.encode())
            for name, value in (person.auth | {"Content-Type": "image/png"} | headers).items()
        ],
        "client": ("127.0.0.1", 1),
        "server": ("rest", 80),
    }
    pieces = aiter(body)
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        piece = await anext(pieces, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def send(message: Any) -> None:
        said.append(message)

    await person.city.app(scope, receive, send)
    return Answer(said[0]["status"], b"".join(each.get("body", b"") for each in said[1:]))


async def test_nothing_is_no_upload(city: City, tally: Tally, person: Person) -> None:
    for media_type in ("image/png", "image/jpeg", "image/webp", "application/pdf"):
        answer = await sent(person, b"", media_type, "document")
        tally.tried("SEC-22", f"no bytes that are said to be {media_type}", POST)
        assert refused_with(answer) == (422, "invalid", "empty")


async def test_a_length_beyond_the_limit_is_refused_before_a_byte_is_read(tally: Tally, person: Person) -> None:
    for length in (LIMIT + 1, LIMIT * 2, 10**15):
        body = Slow([b"x" * 1000] * 5)
        answer = await spoken(person, body, Content_Length=str(length))
        tally.tried("SEC-22", f"a length of {length}", POST)
        assert (answer.status, answer.code) == (413, "payload_too_large")
        assert body.taken == 0


async def test_without_a_length_it_ends_where_the_limit_is_passed(tally: Tally, person: Person) -> None:
    body = Slow([picture("PNG"), *[bytes(1 << 20)] * 200])
    with Peak() as peak:
        answer = await spoken(person, body)
    tally.tried("SEC-22", "200 MB without a length", POST)
    assert (answer.status, answer.code) == (413, "payload_too_large")
    assert body.taken <= 12
    assert peak.grown_bytes < RSS_MOST


async def test_a_length_that_lies_is_refused(city: City, tally: Tally, person: Person) -> None:
    whole, before = picture("PNG"), kept(city)
    for length in ("0", "1", str(len(whole) - 1), str(len(whole) + 1), "5000"):
        answer = await spoken(person, Slow([whole]), Content_Length=length)
        tally.tried("SEC-22", f"a length of {length} that is another one", POST)
        assert (answer.status, answer.code) == (422, "invalid")
    assert kept(city) == before
    honest = await spoken(person, Slow([whole[:9], whole[9:]]), Content_Length=str(len(whole)))
    assert honest.status == 201


async def test_packed_bodies_are_not_unpacked(tally: Tally, person: Person) -> None:
    for coding in ("gzip", "deflate", "br", "zstd", "identity, gzip"):
        answer = await sent(person, picture("PNG"), headers={"Content-Encoding": coding})
        tally.tried("SEC-22", f"a body packed by {coding}", POST)
        assert (answer.status, answer.code) == (415, "unsupported_media_type")


async def test_fifty_at_once_under_one_id_make_one(city: City, tally: Tally, person: Person) -> None:
    key, before = city.new_id(), len(city.platform.objects.contents)
    tries = (sent(person, picture("PNG"), headers={"Idempotency-Key": key}) for _ in range(50))
    answers = await asyncio.gather(*tries)
    tally.tried("SEC-22", "fifty at once under one id", POST, 50)
    assert {answer.status for answer in answers} <= {201, 503}
    assert {answer.code for answer in answers if answer.status == 503} <= {"busy", "unavailable"}
    again = await sent(person, picture("PNG"), headers={"Idempotency-Key": key})
    assert again.status == 201
    made = [answer.json for answer in (*answers, again) if answer.status == 201]
    assert {(each["id"], each["bytes"]) for each in made} == {(key, again.json["bytes"])}
    assert again.json["replayed"] is True or len(made) == 1
    assert len(city.platform.objects.contents) == before + 1
    other = await sent(person, picture("PNG", colour=9), headers={"Idempotency-Key": key})
    assert (other.status, other.code) == (409, "idempotency_mismatch")


async def test_what_all_send_at_once_has_a_budget_and_who_is_beyond_it_is_told_so(city: City, tally: Tally) -> None:
    """Each has said nine megabytes and not yet the end: those are held, and no more than there is room for."""
    crowd = [await city.person(Role.CUSTOMER) for _ in range(4)]
    intake = city.platform.intake
    go = asyncio.Event()
    free = intake._free_bytes
    with Peak() as peak:
        tries = [asyncio.create_task(held(city, each, go)) for each in crowd for _ in range(5)]
        await asyncio.sleep(0.3)
        taken = free - intake._free_bytes
        go.set()
        statuses = await asyncio.gather(*tries)
    tally.tried("SEC-22", "many large ones at once", POST, 20)
    assert 0 < taken <= free
    assert set(statuses) == {422, 503}
    assert statuses.count(503) >= 4 + 4, "four of each user, and seven of all"
    assert intake._free_bytes == free
    assert peak.grown_bytes < free + RSS_MOST


async def held(city: City, person: Person, go: asyncio.Event) -> int:
    class Waiting(Slow):
        async def __aiter__(self) -> Any:
            yield bytes(9 << 20)
            await go.wait()

    return (await spoken(person, Waiting([]))).status


# --- names -------------------------------------------------------------------------------------------------------

NAMES: Final = (
    "../../etc/passwd", "..\\..\\windows\\win.ini", "/etc/passwd", "C:\\boot.ini", "a\0b.png", "%2e%2e%2fx", "....//....//x",
    "x.png\r\nSet-Cookie: a=b", "\u202egnp.exe", "ｘ．ｐｎｇ", "con", "x" * 5_000, "x.php",
    ".htaccess", "a;b|c`d`$(e)", "'\"><script>",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_means_nothing(city: City, tally: Tally, person: Person, name: str) -> None:
    shown = name.encode("unicode_escape").decode()[:60]
    disposition = re.sub(r"[^\x20-\x7e]", "_", f'attachment; filename="{name[:200]}"')
    answer = await sent(
        person, picture("PNG"), params={"name": name, "filename": name}, headers={"Content-Disposition": disposition}
    )
    tally.tried("SEC-22", f"the name {shown}", POST)
    assert answer.status == 201
    got = await person.ask("GET", f"/v1/uploads/{answer.json['id']}")
    assert got.headers["content-disposition"] == f'attachment; filename="{answer.json["id"]}.png"'
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in city.platform.objects.contents)


@pytest.mark.parametrize(
    "upload_id", ["../../x", "%00", "0190A0A0-0000-7000-8000-000000000001", "x" * 300, "*", "\u202e", ""]
)
async def test_an_id_that_is_no_uuid_makes_nothing(city: City, tally: Tally, person: Person, upload_id: str) -> None:
    before = kept(city)
    answer = await sent(person, picture("PNG"), params={"id": upload_id})
    tally.tried("SEC-22", f"the id {upload_id[:40]!r}", POST)
    assert (answer.status, answer.code) == (422, "invalid")
    assert kept(city) == before


# --- who sees it, and how ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("media_type", "content"), REAL.values(), ids=REAL)
async def test_what_is_served_is_a_file_to_be_saved(
    city: City, tally: Tally, person: Person, media_type: str, content: bytes
) -> None:
    made = (await sent(person, content, media_type, "document")).json
    got = await person.ask("GET", f"/v1/uploads/{made['id']}", headers={"Accept": "text/html", "Range": "bytes=0-1"})
    tally.tried("SEC-22", f"a {media_type} that is to be shown as a page", GET)
    assert got.status == 200
    assert got.headers["content-type"] == media_type
    assert got.headers["content-disposition"].startswith("attachment;")
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'; sandbox"
    assert got.headers["cache-control"] == "no-store"


async def test_members_see_what_a_message_carries_until_it_is_deleted_or_they_are_gone(
    city: City, tally: Tally
) -> None:
    owner, friend, stranger = [await city.person(Role.CUSTOMER) for _ in range(3)]
    room = (await owner.must("POST", "/v1/conversations", {"member_ids": [friend.id, stranger.id]}))["id"]
    upload_id, message_id = await owner.upload(picture("PNG")), city.new_id()
    path = f"/v1/uploads/{upload_id}"
    assert [(await each.ask("GET", path)).status for each in (owner, friend, stranger)] == [200, 404, 404]
    body = {"id": message_id, "attachments": [upload_id]}
    await owner.must("POST", f"/v1/conversations/{room}/messages", body)
    assert [(await each.ask("GET", path)).status for each in (owner, friend, stranger)] == [200, 200, 200]
    key = {"Idempotency-Key": city.new_id()}
    assert (await owner.ask("DELETE", f"/v1/conversations/{room}/members/{stranger.id}", headers=key)).status == 200
    gone, nowhere = await stranger.ask("GET", path), await stranger.ask("GET", f"/v1/uploads/{city.new_id()}")
    tally.tried("SEC-22", "who is no member any more", GET)
    assert (gone.status, gone.like(upload_id)) == (404, nowhere.like())
    async with owner.line() as line:
        data = {"conversation_id": room, "message_id": message_id, "id": city.new_id()}
        assert "rpc" in await line.rpc("message.delete", data)
    tally.tried("SEC-22", "what a deleted message carried", GET)
    assert [(await each.ask("GET", path)).status for each in (owner, friend)] == [200, 404]


async def test_an_order_shows_its_photos_to_those_who_see_the_order(city: City) -> None:
    customer, stranger = await city.person(Role.CUSTOMER), await city.person(Role.CUSTOMER)
    worker, ops = await city.person(Role.WORKER), await city.person(Role.OPS)
    photo = await customer.upload(picture("JPEG"), "photo", "image/jpeg")
    await customer.must("POST", "/v1/orders", ORDER | {"photos": [photo], "publish": True})
    people = (customer, worker, ops, stranger)
    assert [(await each.ask("GET", f"/v1/uploads/{photo}")).status for each in people] == [200, 200, 200, 404]


async def test_a_document_is_its_owners_and_operations_which_is_written_down(city: City, tally: Tally) -> None:
    owner, ops = await city.person(Role.WORKER), await city.person(Role.OPS)
    file = await owner.upload(PDF, "document", "application/pdf")
    room = (await owner.must("POST", "/v1/conversations", {"member_ids": [ops.id]}))["id"]
    body = {"id": city.new_id(), "attachments": [file]}
    refused = await owner.ask("POST", f"/v1/conversations/{room}/messages", body)
    tally.tried("SEC-22", "a document in a message", "POST /v1/conversations/{conversation_id}/messages")
    assert refused_with(refused) == (422, "invalid", "unknown")
    assert refused.json["errors"][0]["field"] == "attachments[0]"
    for role in Role:
        person, allowed = await city.person(role), role in (Role.OPS, Role.ADMIN)
        got = await person.ask("GET", f"/v1/uploads/{file}")
        tally.tried("SEC-22", f"a document of another one's, by {role}", GET)
        assert got.status == (200 if allowed else 404)
        acts = (await ops.must("GET", f"/v1/admin/audit?actor={person.id}&act=ops.get_upload"))["items"]
        assert [act["object"] for act in acts] == ([f"upload:{file}"] if allowed else [])


async def test_what_is_not_ones_own_or_not_for_that_is_named_nowhere(city: City, tally: Tally) -> None:
    owner, friend = await city.person(Role.CUSTOMER), await city.person(Role.CUSTOMER)
    room = (await owner.must("POST", "/v1/conversations", {"member_ids": [friend.id]}))["id"]
    own = await owner.upload(picture("PNG"))
    wrong = {
        "nobody's": city.new_id(),
        "somebody else's": await friend.upload(picture("PNG")),
        "a photo": await owner.upload(picture("PNG"), "photo"),
        "evidence": await owner.upload(picture("PNG"), "evidence"),
        "a document": await owner.upload(PDF, "document", "application/pdf"),
    }
    before, texts = city.state(), set()
    for name, upload_id in wrong.items():
        body = {"id": city.new_id(), "text": "look", "attachments": [own, upload_id]}
        answer = await owner.ask("POST", f"/v1/conversations/{room}/messages", body)
        tally.tried("SEC-22", f"{name} in a message", "POST /v1/conversations/{conversation_id}/messages")
        assert refused_with(answer) == (422, "invalid", "unknown")
        assert answer.json["errors"][0]["field"] == "attachments[1]"
        texts.add(answer.json["detail"])
        async with owner.line() as line:
            reply = await line.rpc("message.send", body | {"conversation_id": room})
        tally.tried("SEC-22", f"{name} in a message", "message.send")
        assert reply["error"]["message"] == "invalid"
    assert len(texts) == 1, "all are told alike"
    wrong["a photo"], chat = own, wrong["a photo"]
    for name, upload_id in wrong.items():
        answer = await owner.ask("POST", "/v1/orders", ORDER | {"photos": [chat, upload_id]})
        tally.tried("SEC-22", f"{name} in an order", "POST /v1/orders")
        assert refused_with(answer) == (422, "invalid", "unknown")
    assert city.state() == before
    body = {"id": city.new_id(), "attachments": [own]}
    await owner.must("POST", f"/v1/conversations/{room}/messages", body)
    await owner.must("POST", "/v1/orders", ORDER | {"photos": [chat]})


# --- verification ------------------------------------------------------------------------------------------------

SOON: Final = "2031-01-31T09:30:00.000Z"


async def test_a_worker_is_verified_from_the_review_until_the_document_expires(city: City) -> None:
    worker, ops, customer = [await city.person(role) for role in (Role.WORKER, Role.OPS, Role.CUSTOMER)]
    file = await worker.upload(PDF, "document", "application/pdf")
    handed_in = {"kind": "identity", "upload_id": file, "number": "310101199001011234"}
    document = await worker.must("POST", "/v1/me/worker/documents", handed_in)
    assert (document["state"], document["number_tail"]) == ("pending", "1234")
    path = f"/v1/admin/worker-documents/{document['id']}/review"
    assert await flags(city, worker, customer) == (False, False)
    review = {"decision": "approve", "expires_at": SOON}
    for person in (worker, customer):
        assert (await person.ask("POST", path, review)).status == 403
    for wrong in (
        {"decision": "approve"},
        {"decision": "reject"},
        {"decision": "approve", "expires_at": "2001-01-01T00:00:00Z"},
    ):
        assert (await ops.ask("POST", path, wrong)).status == 422
    shown = await ops.must("POST", path, review)
    assert (shown["state"], shown["worker_id"], shown["reviewed_by"]) == ("approved", worker.id, ops.id)
    assert await flags(city, worker, customer) == (True, True)
    (listed,) = (await worker.must("GET", "/v1/me/worker/documents"))["items"]
    assert (listed["state"], "reviewed_by" in listed) == ("approved", False)
    assert "310101199001011234" not in city.rows()
    acts = (await ops.must("GET", f"/v1/admin/audit?actor={ops.id}&act=document.reviewed"))["items"]
    assert acts[0]["object"] == f"worker_document:{document['id']}"


async def flags(city: City, worker: Person, customer: Person) -> tuple[bool, bool]:
    mine = await worker.must("GET", "/v1/me")
    public = await customer.must("GET", f"/v1/workers/{worker.id}")
    return mine["verified"], public["verified"]


def test_there_are_enough_of_them() -> None:
    cases = len(OTHERS) * 4 + len(NOT_TAKEN) + len(DAMAGED) + len(BOMBS) + len(POLYGLOTS) + len(NAMES)
    assert cases >= 80
