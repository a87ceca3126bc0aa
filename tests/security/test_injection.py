"""SEC-24: whatever is written where a string may stand, it is text: no database, broker, cache, log or browser obeys it.

Every string of every route, header, method, command's payload and channel name is replaced by hostile ones in turn. Behind
the application stand a real SQLite and a real Redis; on the broker every subject is looked at.
"""

import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final
from urllib.parse import quote

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from domain import access
from domain.access import Role, Rule
from domain.order_table import CLIENT_COMMANDS, ROWS
from domain.otp import OtpBudgets
from domain.wire import RPC_METHODS, SEND_TYPES
from serve_apps.endpoint import Endpoint
from serve_apps.rest import ROUTES
from storage.memory_broker import MemoryBroker
from tests.security.city import Belongings, City, Person
from tests.security.conftest import FULL_FORM
from tests.security.samples import Path, replaced, sample, strings
from tests.security.tally import Tally
from tests.security.test_idor import MEANT, name_of, rpc_data, value_of
from tests.support.pictures import picture
from tests.support.servers import Valkey

FORGED: Final = "forged-9c1e"
"""What would begin a line of a log, or be the name of a header or of a key, if an injection had worked."""
ATTACKS: Final[dict[str, tuple[str, ...]]] = {
    "SQL": (
        "' OR '1'='1",
        "'; DROP TABLE user;--",
        "x' UNION SELECT phone, id FROM user--",
        '") OR 1=1--',
        "\\'; UPDATE user SET roles='admin'--",
        "1; ATTACH DATABASE '/tmp/forged-9c1e' AS x",
    ),
    "LIKE and MATCH patterns": ("%", "_", "%secret%", "sec*", '"secret" OR "a"', "secret NEAR of", "[a-z]*"),
    "format strings and templates": (
        "%s%n%x",
        "{0.__class__.__init__.__globals__}",
        "{{7*7}}",
        "${jndi:ldap://127.0.0.1/forged-9c1e}",
        "$(touch /tmp/forged-9c1e)",
        "`id`",
        "%(asctime)s",
    ),
    "line ends, for logs and headers": (
        f"x\r\n{FORGED}: yes\r\n\r\n<html>",
        f"x\n{FORGED} level=critical logged in as admin",
        f"\x1b[2J\x1b]0;{FORGED}\x07",
        f"x\u2028{FORGED}\u2029{FORGED}",
        f"x\x85{FORGED}",
    ),
    "subjects of the broker": (
        "*",
        ">",
        "ev.>",
        "ev.order.*",
        "cmd.1 5\r\nPUB ctl.revoked 1\r\nx\r\n",
        "a b",
        "a..b",
        "$SYS.>",
    ),
    "keys and commands of the cache": (
        "x\r\nFLUSHALL\r\n",
        f"*3\r\n$3\r\nSET\r\n$11\r\n{FORGED}\r\n$1\r\n1\r\n",
        "{x}*",
        f"x' return redis.call('SET', '{FORGED}', 1) --",
        "rate:*",
    ),
    "HTML and links": (
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "javascript:alert(1)",
        '"><svg/onload=alert(1)>',
        "[x](javascript:alert(1))",
        "</title><script>",
    ),
    "paths of files": (
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "/etc/passwd\x00.png",
        "C:\\boot.ini",
        "file:///etc/passwd",
    ),
}
BROKEN: Final = ("\\ud800", "\\udc00\\ud800", "\\u0000", "\\u202e\\u2066", "\\uffff\\ufdd0")
"""Characters that JSON can write and UTF-8 cannot, or that show something else than they are; as JSON writes them."""
MARK: Final = "@broken@"
SUBJECT: Final = re.compile(
    r"cmd\.\d{1,4}|ev\.(order|conversation)\.[0-9a-f-]{36}|ev\.user\.\d{1,4}|ctl\.[a-z_]+|gw\.[\w-]+|_INBOX\.\d+(\.\d+)?"
)
KEY: Final = re.compile(
    r"otp:[0-9a-f]{64}|ticket:[0-9a-f]{32}|outbox|\{presence\}:[\w:.-]+|rate:(ip|auth):([0-9a-f.:/]+|unknown)"
    r"|otp-sent:(all|phone:[0-9a-f]{32}|prefix:\d{1,8})|otp-used:prefix:\d{1,8}|otp-shut"
    r"|challenge:[0-9a-f]{64}|tries:totp:[0-9a-f-]{36}|rate:(key|upload):[0-9a-f-]{36}"
    r"|(sign-in|link):[0-9a-f]{64}"
)
HEADERS: Final = (
    "Idempotency-Key",
    "X-Request-Id",
    "X-Forwarded-For",
    "Accept-Language",
    "User-Agent",
    "X-Signature",
    "Accept",
)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with Valkey() as valkey:
        yield valkey.url


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def city(url: str, redis_url: str) -> AsyncIterator[City]:
    most = dict.fromkeys(("phone_hour", "phone_day", "prefix_hour", "prefix_day", "global_hour", "global_day"), 10**8)
    budgets = OtpBudgets(phone_gap_s=0, breaker_percent=0, **most)
    generous = {
        "requests_per_ip_minute": 10**8,
        "auth_per_ip_hour": 10**8,
        "totp_tries": 10**8,
        "uploads_per_user_hour": 10**8,
    }
    async with City(url, redis_url, rate_limits=True, trusted_hops=1, otp_budgets=budgets, **generous) as made:
        await made.settle()
        yield made


class Watch:
    """What an injection would have changed, looked at before and after."""

    def __init__(self, city: City, redis_url: str) -> None:
        self._city, self._redis = city, Redis.from_url(redis_url)
        self.subjects: set[str] = set()
        self._rows = self._strangers()

    async def begin(self) -> "Watch":
        await self._redis.set("canary", "alive")
        listener = MemoryBroker(self._city.platform._bus)
        self._listening = await listener.subscribe(">", lambda message: self.subjects.add(message.subject))
        return self

    def _strangers(self) -> list[str]:
        stranger = self._city.stranger
        known = {*stranger.ids.values(), stranger.owner.id, stranger.rival.id}
        return sorted(row for row in self._city.rows().splitlines() if any(each in row for each in known))

    async def end(self) -> None:
        await self._listening.stop()
        keys = {key.decode("utf-8", "replace") for key in await self._redis.keys()}
        canary = await self._redis.get("canary")
        await self._redis.aclose()
        assert self._strangers() == self._rows, "rows of somebody who was not there have changed"
        assert all(SUBJECT.fullmatch(subject) for subject in self.subjects), sorted(self.subjects)
        assert canary == b"alive"
        assert {key for key in keys - {"canary"} if not KEY.fullmatch(key)} == set()


@pytest_asyncio.fixture(loop_scope="module")
async def watch(city: City, redis_url: str) -> AsyncIterator[None]:
    watching = await Watch(city, redis_url).begin()
    yield
    await watching.end()


def is_id(path: Path) -> bool:
    """Whether an id stands there: everything but a canonical UUID is then refused."""
    named = [str(part) for part in path if isinstance(part, str)]
    if "device" in named or not named:
        return False
    return named[-1] == "id" or named[-1].endswith(("_id", "_ids"))


class Shooter:
    """Hands out texts: of each kind of attack one in turn, or with `full` all."""

    def __init__(self, full: bool) -> None:
        self._full = full
        self._turns = {kind: itertools.cycle(texts) for kind, texts in ATTACKS.items()}
        self._broken = itertools.cycle(BROKEN)
        self._headers = itertools.cycle(HEADERS)

    def texts(self) -> Iterator[tuple[str, str]]:
        for kind, texts in ATTACKS.items():
            for text in texts if self._full else (next(self._turns[kind]),):
                yield kind, text

    def headers(self) -> Iterator[tuple[str, tuple[str, str]]]:
        """A header for each text in turn, or with `full` all headers for all texts."""
        for shot in self.texts():
            for header in HEADERS if self._full else (next(self._headers),):
                yield header, shot

    def broken(self) -> Iterator[str]:
        yield from BROKEN if self._full else (next(self._broken),)


@pytest.fixture(scope="module")
def shooter() -> Shooter:
    return Shooter(FULL_FORM)


OF_EVERYBODY: Final = frozenset({"list_documents_to_review"})
"""What shows operations everybody's, whatever the request says."""


async def checked(city: City, person: Person, row: Endpoint, path: str, **more: Any) -> Any:
    answer = await person.ask(row.method, path, **more)
    assert answer.status < 500, (name_of(row), path, more, answer.body)
    assert not any(FORGED in name or FORGED in value for name, value in answer.headers.items()), answer.headers
    assert answer.headers.get("x-content-type-options") == "nosniff"
    for secret in (city.stranger.owner.id, city.stranger.ids["message_id"]):
        if row.name not in OF_EVERYBODY:
            assert secret.encode() not in answer.body, (name_of(row), path, more)
    return answer


def filled(row: Endpoint, ids: dict[str, str], **other: str) -> str:
    path = row.path
    for name in row.parts:
        path = path.replace(f"{{{name}}}", quote(other.get(name, value_of(row, name, ids)), safe=""))
    return path


def caller_of(row: Endpoint, city: City, mine: Belongings) -> Person:
    return city.of[Role.OPS].owner if row.rule is Rule.OPS else mine.owner


FOR_WORKERS: Final = frozenset({"add_api_key"})
ENDING: Final = frozenset({"logout", "erase_me"})
"""What ends the caller's own session: each shot is somebody else's, who has nothing that would keep them from ending it."""


@pytest.mark.parametrize("row", ROUTES, ids=name_of)
@pytest.mark.usefixtures("watch")
async def test_no_string_in_a_request_is_anything_but_text(
    city: City, tally: Tally, shooter: Shooter, row: Endpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = await city.belongings(Role.WORKER if row.name in FOR_WORKERS else Role.CUSTOMER)
    person, where = caller_of(row, city, mine), name_of(row)
    body = None if row.body is None else sample(row.body, city.new_id, everything=True) | MEANT.get(row.name, {})
    query = None if row.query is None else sample(row.query, city.new_id, everything=True)
    plain: dict[str, Any] = {"params": {}} if query is not None else {}
    whole: dict[Any, Any] = query or {} if row.raw else {}

    def more(**given: Any) -> dict[str, Any]:
        keyed = {"headers": {"Idempotency-Key": city.new_id()}} if row.keyed else {}
        made = {"body": body, **plain, **keyed, **given}
        if row.raw:
            made |= {"content": picture("PNG"), "headers": {"Content-Type": "image/png"} | made.get("headers", {})}
        return made

    for part in row.parts:
        for kind, text in shooter.texts():
            answer = await checked(city, person, row, filled(row, mine.ids, **{part: text}), **more())
            tally.tried("SEC-24", kind, where)
            assert answer.status in (401, 404, 405), (part, text, answer.body)
    for place in strings(query or {}):
        for kind, text in shooter.texts():
            answer = await checked(city, person, row, filled(row, mine.ids), **more(params=whole | {place[0]: text}))
            tally.tried("SEC-24", kind, where)
            assert not is_id(place) or answer.status == 422, (place, text)
    for place in strings(body or {}):
        for kind, text in shooter.texts():
            given = more(body=replaced(body, place, text))
            answer = await checked(city, person, row, filled(row, mine.ids), **given)
            if row.name == "add_api_key":  # or else there would be too many of them before the last text
                await city.platform.api_keys.remove(person.id, None)
            tally.tried("SEC-24", kind, where)
            assert not is_id(place) or answer.status in (401, 403, 404, 409, 422), (place, text, answer.body)
        for text in shooter.broken():
            written = json.dumps(replaced(body, place, MARK)).replace(MARK, text)
            given = more(body=None, content=written.encode(), headers={"Content-Type": "application/json"})
            answer = await checked(city, person, row, filled(row, mine.ids), **given)
            tally.tried("SEC-24", "characters that are none", where)
            assert "ud" not in text or answer.status in (401, 404, 422), (place, text, answer.body)
    for header, (kind, text) in shooter.headers():
        written = text.encode()
        if row.name in ENDING:
            person = await city.person(Role.CUSTOMER)
        given = more(headers={header: written.replace(b"\r", b"").replace(b"\n", b" ").replace(b"\x00", b"")})
        await checked(city, person, row, filled(row, mine.ids), **given)
        tally.tried("SEC-24", kind, where)
    out, err = capfd.readouterr()
    assert not [line for line in (out + err).splitlines() if line.startswith(FORGED)]


CALM: Final = {100, *range(500, 600)}
"""Codes that say that something here failed."""


@pytest.mark.parametrize("method", RPC_METHODS)
@pytest.mark.usefixtures("watch")
async def test_no_string_in_the_data_of_a_method_is_anything_but_text(
    city: City, tally: Tally, shooter: Shooter, method: str
) -> None:
    mine = await city.belongings(Role.CUSTOMER)
    data = rpc_data(method, city, mine.ids)
    async with mine.owner.line() as line:
        for place in strings(data):
            for kind, text in shooter.texts():
                reply = await line.rpc(method, replaced(data, place, text))
                tally.tried("SEC-24", kind, f"rpc {method}")
                refused(reply, city, by_id=is_id(place) or place == ("stream",))
        for kind, text in shooter.texts():
            reply = await line.rpc(text, data)
            tally.tried("SEC-24", kind, "rpc")
            assert reply["error"]["code"] == 104


def refused(reply: dict[str, Any], city: City, by_id: bool) -> None:
    """Not accepted where an id is wanted, and never a fault of the platform's own."""
    code = reply.get("error", {}).get("code", 0)
    assert code not in CALM, reply
    assert not by_id or code in (103, 403, 404, 409, 422), reply
    assert city.stranger.owner.id not in json.dumps(reply)


@pytest.mark.parametrize("command", sorted(CLIENT_COMMANDS))
@pytest.mark.usefixtures("watch")
async def test_no_string_in_the_payload_of_a_command_is_anything_but_text(
    city: City, tally: Tally, shooter: Shooter, command: str
) -> None:
    mine = await city.belongings(Role.CUSTOMER)
    payload = sample(ROWS[command].payload, city.new_id, everything=True)
    payload |= {name: value for name, value in mine.ids.items() if name in payload}
    for person in (mine.owner, mine.partner):
        async with person.line() as line:
            for place in strings(payload):
                for kind, text in shooter.texts():
                    data = {"order_id": mine.ids["order_id"], "command": command, "command_id": city.new_id()}
                    reply = await line.rpc("order.command", data | {"payload": replaced(payload, place, text)})
                    tally.tried("SEC-24", kind, f"order.command {command}")
                    refused(reply, city, by_id=is_id(place))


@pytest.mark.usefixtures("watch")
async def test_no_name_of_a_channel_is_a_pattern(city: City, tally: Tally, shooter: Shooter) -> None:
    mine = city.of[Role.CUSTOMER]
    async with mine.owner.line() as line:
        for command in ("subscribe", "unsubscribe", "history", "presence", "presence_stats", "publish"):
            for kind, text in shooter.texts():
                for channel in (
                    text,
                    f"order:{text}",
                    f"conversation:{text}",
                    f"user:{text}",
                    f"order:{mine.ids['order_id']}{text}",
                ):
                    reply = await line.ask({command: {"channel": channel}})
                    tally.tried("SEC-24", kind, f"channel of {command}")
                    if command != "unsubscribe":
                        assert reply["error"]["code"] == 103, (command, channel, reply)
        for kind, text in shooter.texts():
            reply = await line.ask(
                {"subscribe": {"channel": f"order:{mine.ids['order_id']}", "recover": True, "epoch": text, "flag": 2}}
            )
            tally.tried("SEC-24", kind, "epoch of subscribe")
            assert reply["error"]["code"] == 112, reply


@pytest.mark.usefixtures("watch")
async def test_what_is_sent_without_an_answer_is_text_too(city: City, tally: Tally, shooter: Shooter) -> None:
    mine = city.of[Role.CUSTOMER]
    async with mine.owner.line() as line:
        for name, shape in SEND_TYPES.items():
            data = sample(shape, city.new_id, everything=True)
            data |= {key: mine.ids[key] for key in data if key in mine.ids}
            for place in strings(data):
                for kind, text in shooter.texts():
                    await line.send(replaced(data, place, text))
                    tally.tried("SEC-24", kind, f"send {name}")
    assert set(SEND_TYPES) == set(access.SEND)


async def test_what_was_said_is_read_as_it_was_written_and_finds_only_itself(city: City, tally: Tally) -> None:
    """Texts are stored as they are: who shows them escapes them, and every answer says that it is JSON."""
    mine = await city.belongings(Role.CUSTOMER)
    path = f"/v1/conversations/{mine.ids['conversation_id']}/messages"
    for kind, texts in ATTACKS.items():
        for text in texts:
            message_id = city.new_id()
            sent = await mine.owner.ask("POST", path, {"id": message_id, "text": text})
            tally.tried("SEC-24", kind, "a message, there and back")
            assert sent.status in (200, 422), (text, sent.body)
            answer = await mine.partner.ask("GET", path, params={"limit": 1})
            assert answer.headers["content-type"] == "application/json"
            newest = answer.json["items"][0]
            assert sent.status == 422 or (newest["message_id"], newest["text"]) == (message_id, text)


@pytest.mark.parametrize(
    "pattern",
    [
        "%",
        "_",
        "%cret%",
        "se_ret",
        "se%et",
        "*cret",
        '"nothing" OR "secret"',
        "text:secret",
        "nothing -x",
        "secret NOT of",
    ],
)
async def test_a_search_takes_no_patterns(city: City, tally: Tally, pattern: str) -> None:
    mine = await city.belongings(Role.CUSTOMER)
    path = f"/v1/conversations/{mine.ids['conversation_id']}/messages/search"
    answer = await mine.owner.ask("GET", path, params={"q": pattern})
    tally.tried("SEC-24", "LIKE and MATCH patterns", "q of a search")
    assert answer.status == 422 or (answer.status, answer.json["items"]) == (200, []), answer.body
