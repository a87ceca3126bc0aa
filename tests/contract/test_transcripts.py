"""`docs/transcripts.md` is what the platform says, word for word; `docs/protocol.md` names all that a client can say and meet.

`RENOVEASY_WRITE_TRANSCRIPTS=1` writes the pages anew instead of comparing them.
"""

import asyncio
import difflib
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from domain.errors import STATUS, Code
from domain.wire import RPC_METHODS, SEND_TYPES
from gateway import codes
from tests.contract.exchanges import chat, connecting, orders, refusals, streams, tables, transports
from tests.contract.exchanges.stage import Exchange, Stage
from tests.support.databases import migrated
from tests.support.parts import Parts
from tests.support.servers import GuardedNats, GuardedValkey, Valkey, free_port

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "transcripts.md"
PROTOCOL = ROOT / "docs" / "protocol.md"
WRITE = os.environ.get("RENOVEASY_WRITE_TRANSCRIPTS") == "1"
AT_ONCE = 2
"""How many exchanges are played at a time, beside those that wait."""

CHAPTERS: dict[str, list[Exchange]] = {
    "Connecting": connecting.EXCHANGES,
    "Streams": streams.EXCHANGES,
    "Conversations": chat.EXCHANGES,
    "Orders": orders.EXCHANGES,
    "Errors and limits": refusals.EXCHANGES,
    "Other ways to say the same": transports.EXCHANGES,
}
HEAD = """\
# Transcripts

Every exchange of [the protocol](protocol.md), as a running platform said it: `tests/contract/test_transcripts.py` plays them with
plain sockets and fails when a word of this page is not what came. How to read them:

- `→` is what the client says, `←` what it hears, one JSON object a line. Where more than one client speaks, a name stands before
  the arrow. On the wire several lines may travel in one frame, with newlines between them, in both directions.
- What differs from run to run has a name: `<anna>` and `<ben>` are users, `<anna-phone>` one of their device sessions, `<chat>`,
  `<message>`, `<message-2>` ids, `<token-of-anna>` an access token, `<time>` any time. Ids that clients make are UUIDv7.
- What comes to one client without an order of its own is sorted here: replies by `id`, then pushes by channel, those with an
  offset first. On the wire the publication of one's own write may come before its reply or after it.
- Pings and their pongs, and `connect` of clients that were there before, are left out, so that `id` often begins with 2; so are
  the hints `conversation.activity` and `order.activity`, but in the transcript about them.
"""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[str, GuardedNats, GuardedValkey]]:
    """As the platform has them: whatever is played here, no role needs more than it is permitted."""
    with migrated("sqlite", tmp_path) as database, GuardedNats() as nats, GuardedValkey() as valkey:
        yield database, nats, valkey
        assert "violation" not in nats.full_log.lower()


@pytest.fixture
async def parts(servers: tuple[str, GuardedNats, GuardedValkey]) -> AsyncIterator[Parts]:
    """One gateway as the platform has it, one with budgets, and one that is going to be replaced, each on a port of its own."""
    environments = {
        "gateway-1": {"RENOVEASY_WS_PORT": str(free_port()), "RENOVEASY_RATE_LIMITS": "on"},
        "gateway-2": {"RENOVEASY_WS_PORT": str(free_port())},
    }
    database, nats, valkey = servers
    async with Parts(
        database,
        nats.url,
        valkey.url,
        hosts=1,
        gateways=3,
        rest=True,
        environments=environments,
        environment=nats.environment | valkey.environment,
    ) as running:
        yield running


class Company:
    """Plays exchanges, and keeps what was said."""

    def __init__(self, parts: Parts, valkey: Valkey, http: httpx.AsyncClient) -> None:
        self._parts = parts
        self._valkey = valkey
        self._http = http
        ports = {name: part.ports["websocket"] for name, part in parts.parts.items() if part.role == "gateway"}
        urls = {name: f"ws://127.0.0.1:{port}/connection/websocket" for name, port in ports.items()}
        self._urls = {"first": urls["gateway-0"], "budgeted": urls["gateway-1"], "leaving": urls["gateway-2"]}
        self._urls["http"] = f"http://127.0.0.1:{ports['gateway-0']}"
        self._few = asyncio.Semaphore(AT_ONCE)
        self.texts: dict[str, str] = {}

    async def play(self, exchange: Exchange) -> None:
        stage = Stage(self._parts, self._valkey, self._http, self._urls)
        try:
            await exchange.play(stage)
            await stage.over()
        except BaseException as error:
            error.add_note(f"in the exchange {exchange.title}, after:\n{stage.sheet.text}")
            await stage.hang_up()
            raise
        self.texts[exchange.title] = f"### {exchange.title}\n\n{exchange.text}\n\n{stage.sheet.text}\n"

    async def _in_turn(self, exchange: Exchange) -> None:
        async with self._few:
            await self.play(exchange)

    async def play_all(self) -> str:
        everything = [exchange for chapter in CHAPTERS.values() for exchange in chapter]
        early = [
            self.play(each) if each.when == "slow" else self._in_turn(each)
            for each in everything
            if each.when != "last"
        ]
        ended = await asyncio.gather(*early, return_exceptions=True)
        late = [exchange for exchange in everything if exchange.when == "last"]
        ended += [await asyncio.gather(self.play(exchange), return_exceptions=True) for exchange in late]
        failures = [
            error for each in ended for error in (each if isinstance(each, list) else [each]) if error is not None
        ]
        if failures:
            raise BaseExceptionGroup("exchanges that went otherwise", failures)
        chapters = [
            f"## {title}\n\n" + "\n".join(self.texts[exchange.title] for exchange in chapter)
            for title, chapter in CHAPTERS.items()
        ]
        return "\n".join([HEAD, *chapters])


@pytest.mark.timeout(300)
async def test_the_page_of_transcripts_is_what_the_platform_says(
    parts: Parts, servers: tuple[str, GuardedNats, GuardedValkey]
) -> None:
    async with httpx.AsyncClient(base_url=parts.rest, timeout=60) as http:
        said = await Company(parts, servers[2], http).play_all()
    if WRITE:
        PAGE.write_text(said)
    lines = difflib.unified_diff(PAGE.read_text().splitlines(), said.splitlines(), "docs/transcripts.md", "said", n=2)
    difference = "\n".join(lines)
    assert not difference, f"RENOVEASY_WRITE_TRANSCRIPTS=1 writes the page anew:\n{difference}"


@pytest.mark.parametrize("name", [*RPC_METHODS, *SEND_TYPES])
def test_the_protocols_page_names_what_a_client_may_ask(name: str) -> None:
    assert f"`{name}`" in PROTOCOL.read_text()


@pytest.mark.parametrize("method", RPC_METHODS)
def test_there_is_a_transcript_of_every_method(method: str) -> None:
    assert f'"method":"{method}"' in PAGE.read_text()


@pytest.mark.parametrize("kind", SEND_TYPES)
def test_there_is_a_transcript_of_everything_that_is_sent_without_an_answer(kind: str) -> None:
    assert f'"send":{{"data":{{"type":"{kind}"' in PAGE.read_text()


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_protocols_page_says_what_the_code_says(name: str) -> None:
    text, table = PROTOCOL.read_text(), tables.block(name)
    if WRITE:
        between = f"{re.escape(tables.begin(name))}.*{re.escape(tables.end(name))}"
        text = re.sub(between, lambda _: table, text, flags=re.DOTALL)
        PROTOCOL.write_text(text)
    assert table in text, "RENOVEASY_WRITE_TRANSCRIPTS=1 writes the tables anew"


def test_every_close_that_a_test_can_bring_about_is_in_a_transcript() -> None:
    """Not there: what the platform does only when something is broken or a client reads nothing for long."""
    shown = set(re.findall(r"← close (\d{4})", PAGE.read_text()))
    rare = {codes.SHUTDOWN, codes.SERVER_ERROR, codes.SLOW, codes.INSUFFICIENT_STATE}
    known = {str(each.code) for each in vars(codes).values() if isinstance(each, codes.Disconnect) and each not in rare}
    assert known <= shown


def test_every_error_that_a_client_can_meet_is_in_a_transcript() -> None:
    """Not there: what belongs to the protocol, and is answered by nothing here."""
    shown = {int(code) for code in re.findall(r'"error":{"code":(\d+)', PAGE.read_text())}
    unused = {codes.UNAUTHORIZED, codes.UNKNOWN_CHANNEL, codes.BAD_REQUEST}
    known = {each.code for each in vars(codes).values() if isinstance(each, codes.ErrorCode) and each not in unused}
    assert known <= shown


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.FENCED])
def test_the_protocols_page_has_the_whole_catalogue_of_errors(code: Code) -> None:
    rows = [line for line in PROTOCOL.read_text().splitlines() if line.startswith("| `") and f"`{code}`" in line]
    assert any(str(STATUS[code]) in row for row in rows)
