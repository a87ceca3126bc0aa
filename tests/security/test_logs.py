"""No line of a log and no error shows a phone number, an address, a token, a code or a password: fifty of them try.

Each canary is driven through every road into a log: the message, its arguments, fields, containers, names of fields, objects,
exceptions and what caused them. Then no written line may hold it, not even a part of it that would tell.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import httpx
import msgspec
import pytest
import structlog

from deploy.telemetry import masked
from domain.errors import Code, Refusal, from_validation
from domain.redaction import EXAMPLE_PHONE, redacted
from serve_apps.i18n import LOCALES, otp_text
from serve_apps.rest import ROUTES
from tests.support.logs import logging_to
from tests.support.rest_app import World


class Canary(NamedTuple):
    """`said` is how it comes into a log; none of `tells` may come out."""

    kind: str
    said: str
    tells: tuple[str, ...]


def phone(said: str) -> Canary:
    digits = "".join(str(int(letter)) for letter in said.replace("%2B", "+") if letter.isdigit())
    return Canary("phone", said, (said, digits, digits[3:-2]))


def secret(kind: str, said: str, told: str) -> Canary:
    return Canary(kind, said, (told,))


JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImEifQ.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLW9mLWNhbmFyeQ"
REFRESH = "Zk3vQyJ9sL2_mN8pXr4TbW7cD1eF5gH-aB6kUoYiS0Q"

CANARIES = (
    *map(
        phone,
        (
            "+8613971358246",
            "+86 139 7135 8247",
            "+86-139-7135-8248",
            "0086 13971358249",
            "008613971358250",
            "8613971358251",
            "13971358252",
            "139 7135 8253",
            "139-7135-8254",
            "１３９７１３５８２５５",
            "＋８６１３９７１３５８２５６",
            "%2B8613971358257",
            "+1 (415) 739-1358",
            "(415) 739-1359",
            "415-739-1360",
            "415.739.1361",
            "1-415-739-1362",
            "+14157391363",
            "4157391364",
            "+44 20 7391 3565",
            "020 7391 3566",
            "07739 135867",
            "010-73913568",
            "(010) 7391-3569",
            "+49 (0)30 73913570",
            "+33 7 39 13 57 71",
            "phone13971358272",
            "tel:+8613971358273",
            "+86\u00a0139\u20117135\u20118274",
        ),
    ),
    secret("jwt", JWT, JWT[-20:]),
    secret("bearer", "sent with Bearer abcdefgcanarybearer", "canarybearer"),
    secret("refresh token", REFRESH, REFRESH),
    secret("refresh token", f'"refresh_token": "{REFRESH.swapcase()}"', REFRESH.swapcase()),
    secret("ticket", "ticket=0f8ac3ticketcanary", "0f8ac3ticketcanary"),
    secret("vault", "X-Vault-Token: hvs.CAESIcanaryvault", "CAESIcanaryvault"),
    secret("vault", "hvs.CAESIothercanary", "CAESIothercanary"),
    secret("aws", "AKIAIOSFODNN7CANARY1", "FODNN7CANARY1"),
    secret("code", "739154 is your RenovEasy code", "739154"),
    secret("code", "code: 739155", "739155"),
    secret("code", '{"otp": "739156"}', "739156"),
    secret("code", "verification_code=739157", "739157"),
    secret("code", "验证码是 739158", "739158"),
    secret("e-mail", "li.canary+home@example.com", "li.canary"),
    secret("e-mail", "王canary@例え.example.cn", "王canary"),
    secret("e-mail", "q=canary.two%40example.org", "canary.two"),
    secret("password", "mysql+asyncmy://root:pw-canary@db/x", "pw-canary"),
    secret("password", "password=pw2canary", "pw2canary"),
    secret("password", "{'password': 'pw3canary'}", "pw3canary"),
    secret("cookie", "Cookie: sid=cookiecanary; other=x", "cookiecanary"),
    secret("key", "api_key: keycanary7", "keycanary7"),
)


class Shows:
    """An object whose representation says it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Shows({self.text})"


def by_stdlib(said: str) -> None:
    log = logging.getLogger("third.party")
    log.info(f"it was {said}")
    log.warning("it was %s and %r", said, said)
    log.error("in a dictionary: %(a)s", {"a": said})
    log.info("in an object: %s in %s", Shows(said), [said, (said,), {"x": said}])
    log.info("more", extra={"detail": said})
    log.info("a stack", extra={"x": said}, stack_info=True)


def by_structlog(said: str) -> None:
    log = structlog.get_logger("ours")
    log.info(f"it was {said}", detail=said, number=1)
    log.info("it was %s", said)
    log.warning("nested", some={"deeply": [{"nested": (said, {said})}]}, raw=said.encode(), thing=Shows(said))
    log.info("as a name", some={said: 1, "x": {said: {said: said}}})
    log.bind(bound=said).info("bound")
    with structlog.contextvars.bound_contextvars(request_id=said):
        log.info("in the context")


def by_exceptions(said: str) -> None:
    log = logging.getLogger("third.party")
    try:
        try:
            try:
                raise KeyError(said)
            except KeyError as inner:
                raise ValueError(f"because of {said}") from inner
        except ValueError:
            raise ExceptionGroup(f"several: {said}", [OSError(5, said), RuntimeError({"a": said})])  # noqa: B904
    except ExceptionGroup as error:
        error.add_note(f"a note about {said}")
        log.exception("failed with %s", error)
        structlog.get_logger("ours").exception("failed", error=error)
        structlog.get_logger("ours").error("failed", exc_info=error)


def by_mistakes(said: str) -> None:
    """Lines that cannot be written as they are must not be printed in another way."""
    log = logging.getLogger("third.party")
    log.info("%d", said)
    log.info("%s %s", said)
    log.info("%(missing)s", {"a": said})

    class Silent:
        def __repr__(self) -> str:
            raise RuntimeError(said)

    structlog.get_logger("ours").info("an object", thing=Silent(), other=said)
    round_and_round: dict[str, Any] = {"said": said}
    round_and_round["self"] = round_and_round
    structlog.get_logger("ours").info("a circle", thing=round_and_round)


ROADS: dict[Callable[[str], None], int] = {by_stdlib: 6, by_structlog: 6, by_exceptions: 3, by_mistakes: 5}
"""Each with its lines: none may be lost."""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    with logging_to(tmp_path) as path:
        yield path


def leave_only_ours() -> None:
    """Without pytest's own handlers, which raise where a line cannot be formatted, and print it as it is."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if type(handler).__module__ != "deploy.telemetry"]:
        root.removeHandler(handler)


def without_times(line: str) -> str:
    return re.sub(r'"timestamp": "[^"]*"', "", line)


def leaks(text: str, canary: Canary) -> list[str]:
    """What of it a text shows: as it was said, or its digits however they are separated."""
    lines = [without_times(line) for line in text.splitlines()]
    if canary.kind != "phone":
        return [line for line in lines for told in canary.tells if told in line]
    _, digits, middle = canary.tells
    bare = [("".join(str(int(c)) for c in line if c.isdigit()), line) for line in lines]
    return [line for numbers, line in bare if digits in numbers or middle in numbers]


def test_there_are_fifty_canaries_of_all_kinds_and_no_two_alike() -> None:
    assert len(CANARIES) == 50
    assert len({canary.said for canary in CANARIES}) == 50
    assert {"phone", "jwt", "bearer", "refresh token", "code", "e-mail", "password"} <= {c.kind for c in CANARIES}
    for canary in CANARIES:
        assert leaks(canary.said, canary), "the search must find what it looks for"


@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.__name__)
def test_no_canary_comes_out_by_any_road(
    road: Callable[[str], None], log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_only_ours()
    for canary in CANARIES:
        road(canary.said)
    written = log.read_text()
    assert len(written.splitlines()) == ROADS[road] * len(CANARIES)
    for line in written.splitlines():
        json.loads(line)
    found = {canary.said: leaks(written, canary)[:2] for canary in CANARIES}
    assert {said: lines for said, lines in found.items() if lines} == {}
    printed = "".join(capsys.readouterr())
    assert [canary.said for canary in CANARIES if leaks(printed, canary)] == []
    print(f"{road.__name__}: {len(written.splitlines())} lines, 0 canaries")


def test_a_line_that_cannot_be_formatted_is_written_masked_and_says_so(log: Path) -> None:
    leave_only_ours()
    logging.getLogger("x").info("%d apples for %s", "many")
    (line,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert line["event"] == "cannot be formatted: '%d apples for %s' with ('many',)"


def test_a_line_that_cannot_be_written_is_not_printed_instead(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_only_ours()
    log.mkdir()
    logging.getLogger("x").info("for 13971358246")
    assert capsys.readouterr().err == "a line of x was not written: IsADirectoryError\n"


def test_secrets_are_hidden_by_the_name_of_their_field_whatever_they_look_like(log: Path) -> None:
    names = (
        "password",
        "client_secret",
        "access_token",
        "Authorization",
        "set-cookie",
        "private_key",
        "apiKey",
        "pepper",
    )
    structlog.get_logger("ours").info("fields", **{name: ["plainword", {"a": "plainword"}] for name in names})
    structlog.get_logger("ours").info(
        "numbers", phone=13971358246, user_phone="62345678", phone_numbers=["7391356"], pin=1234
    )
    written = log.read_text()
    assert "plainword" not in written
    assert [
        number for number in ("13971358246", "62345678", "7391356", "1234") if number in without_times(written)
    ] == []


HARMLESS = (
    "order 019aa1b2-0000-7000-8000-000000000000 moved 12345 m",
    "partition 1023 at offset 120034, 120055 and 1000 2000 3000",
    "up after 0.123456789 s, 12.345678 ms, 1764416908 s, 1764416908123 ms",
    "2026-11-29T11:48:28.123456Z and 2026-11-29 11:48:28,123",
    '127.0.0.1:41232 - "GET /v1/orders/019aa1b2-0000-7000-8000-000000000000?after=12 HTTP/1.1" 200',
    'File "/srv/renoveasy/storage/key_ring.py", line 126, in knowing',
    "sha256 9f86d081884c7d13800138000eaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f at 0x713800138000",
    "1764416908.123456 s, 192.168.100.200:41232, 10.138.0.13",
    "token authentication is enabled; the token cannot be read: [Errno 2]",
    "status_code=503, error code 1 of 12 hosts",
    f"must be a phone number in E.164, such as {EXAMPLE_PHONE}",
    "ev.conversation.019aa1b2-0000-7000-8000-000000000000 from host-0@127.0.0.1",
)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_a_reader_needs_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("locale", LOCALES)
def test_the_text_message_with_a_code_does_not_show_it(locale: str) -> None:
    assert "739154" not in redacted(otp_text("739154", 300, locale))


def test_phones_that_are_written_by_chance_are_hidden_in_every_spelling() -> None:
    random, shown = Random(50), []
    spellings = (
        "+86{}",
        "+86 {:.3} {:.0}",
        "{}",
        "86{}",
        "0086{}",
        "(+86) {}",
        "tel={}",
        "'{}'",
        "[{}]",
        "{}@",
        "x{}x",
        "{}.",
    )
    for _ in range(3_000):
        number = f"1{random.choice('3456789')}{random.randrange(10**9):09d}"
        for spelling in spellings:
            text = spelling.replace("{:.3} {:.0}", "{} {} {}").format(*_split(number, spelling))
            if number[3:-2] in re.sub(r"\D", "", redacted(text)):
                shown.append(text)
    assert shown == []


def _split(number: str, spelling: str) -> tuple[str, ...]:
    return (number[:3], number[3:7], number[7:]) if "{:.3}" in spelling else (number,)


@pytest.mark.parametrize(
    "text",
    ["A" * 60_000, "a." * 30_000, "1" * 60_000, "1 " * 30_000, "eyJ-" * 15_000, "+" * 60_000, "a@" * 30_000, "((0" * 20_000,
     "-0" * 30_000, "token" * 12_000, "code " * 12_000, "://" * 20_000, "password=" * 7_000, "_-" * 30_000, "aA1" * 20_000],
    ids=lambda text: text[:6],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_no_text_keeps_the_mask_busy_for_long(text: str) -> None:
    masked(text)


def test_a_very_long_line_is_cut_at_a_word(log: Path) -> None:
    structlog.get_logger("ours").info("word " * 20_000 + "13971358246")
    (line,) = log.read_text().splitlines()
    assert len(line) < 70_000
    assert json.loads(line)["event"].endswith("word …")


# --- errors ------------------------------------------------------------------------------------------------------

PHONES = [canary for canary in CANARIES if canary.kind == "phone"]


def bodies(said: str) -> list[bytes]:
    """Where a number can stand in a body that is refused: as the whole of it, as value, as wrong value, as a name."""
    names = (
        "phone",
        "code",
        "name",
        "role",
        "rail",
        "command",
        "member_ids",
        "emoji",
        "text",
        "device",
        "locale",
        "category",
    )
    shapes: list[Any] = [said, [said], {said: said}, dict.fromkeys(names, said)]
    shapes += [{name: [said]} for name in names] + [{name: {said: [said]}} for name in names]
    return [json.dumps(shape).encode() for shape in shapes]


async def test_no_refusal_repeats_a_phone_of_its_request(log: Path) -> None:
    """Every route, with a number wherever a request can hold one; and the log of it holds none either."""
    tried = refused = 0
    shown = []
    world = World()
    _, auth = await world.login("+8613700000009")
    asgi = httpx.ASGITransport(world.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=asgi, base_url="http://rest", headers=auth) as http:
        for number, route in enumerate(ROUTES):
            canary = PHONES[number % len(PHONES)]
            said, ident = canary.said, world.new_id()
            fine, strange = (re.sub(r"{\w+}", _quoted(part), route.path) for part in (ident, said))
            requests = [
                (strange, {}, b"", {}),
                (fine, {"limit": said, "cursor": said, "q": said, "after": said}, b"", {}),
            ]
            requests += [(fine, {}, b"", {name: said.encode()}) for name in ("Idempotency-Key", "If-Match")]
            if route.method in ("POST", "PUT", "PATCH"):
                requests += [(fine, {}, body, {}) for body in bodies(said)]
            for path, query, body, headers in requests:
                world.router.answers = [Refusal(Code.NOT_FOUND)]
                answer = await http.request(
                    route.method,
                    path,
                    params=query,
                    content=body,
                    headers={"Content-Type": "application/json"} | headers,
                )
                tried += 1
                assert answer.status_code < 500 or answer.status_code == 503, (route.path, answer.text)
                if answer.status_code >= 400 and "json" in answer.headers.get("content-type", ""):
                    refused += 1
                    problem = answer.json() | {"request_id": ""}
                    if leaks(json.dumps(problem, ensure_ascii=False), canary):
                        shown.append((route.method, path, body, problem))
    print(f"{tried} requests, {refused} refused with a problem")
    assert shown == []
    assert refused >= 400
    written = log.read_text() if log.exists() else ""
    assert [canary.said for canary in PHONES if leaks(written, canary)] == []


def _quoted(text: str) -> str:
    return quote(text, safe="").replace("\\", "")


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: f"{canary.kind}-{canary.said[:12]}")
async def test_a_fault_shows_nothing_to_the_client_and_nothing_in_the_log(canary: Canary, log: Path) -> None:
    world = World()
    _, auth = await world.login("+8613700000009")
    cause = ValueError(f"inner {canary.said}")
    fault = RuntimeError(f"boom {canary.said}")
    fault.__cause__ = cause
    world.router.answers = [fault]
    asgi = httpx.ASGITransport(world.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=asgi, base_url="http://rest", headers=auth) as http:
        answer = await http.get(f"/v1/orders/{world.new_id()}")
    assert answer.status_code == 500
    assert leaks(answer.text, canary) == []
    written = log.read_text()
    assert "a request failed" in written
    assert leaks(written, canary) == []


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: f"{canary.kind}-{canary.said[:12]}")
def test_what_a_wrong_shape_repeats_of_its_input_is_hidden_on_every_transport(canary: Canary) -> None:
    class Wanted(msgspec.Struct, forbid_unknown_fields=True):
        kind: Literal["a", "b"] = "a"

    for wrong in ({"kind": canary.said}, {canary.said: 1}):
        with pytest.raises(msgspec.ValidationError) as caught:
            msgspec.json.decode(msgspec.json.encode(wrong), type=Wanted)
        assert leaks(repr(from_validation(caught.value).refused), canary) == []


async def test_a_refusal_that_names_an_address_a_token_or_a_phone_hides_it() -> None:
    world = World()
    _, auth = await world.login("+8613700000009")
    asgi = httpx.ASGITransport(world.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=asgi, base_url="http://rest", headers=auth) as http:
        for canary in CANARIES:
            world.router.answers = [Refusal(Code.CONFLICT, f"there is {canary.said} already")]
            answer = await http.get(f"/v1/orders/{world.new_id()}")
            assert answer.status_code == 409
            assert leaks(answer.text, canary) == []
