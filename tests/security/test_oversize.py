"""SEC-13: a request that is too large, too deep or no JSON is refused with its code, whatever route or method it is for.

Made of the tables: every route that takes a body, every method, every message without an answer, every command of the
protocol. Nothing changes, nothing fails, and none of it keeps the process busy.
"""

import json
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import pytest_asyncio

from domain.access import Role, Rule
from domain.wire import RPC_METHODS, SEND_TYPES
from serve_apps.endpoint import Endpoint
from serve_apps.rest import ROUTES
from tests.security.city import City, Line
from tests.security.samples import sample
from tests.security.tally import Tally
from tests.security.test_idor import MEANT, name_of, path_of
from tests.security.wires import RawSocket, frame
from tests.support.hostile import FULL, some

LIMIT: Final = 256 * 1024
FRAME_LIMIT: Final = 65_536
MOST_CPU_S: Final = 0.5
"""Of the whole process, the attacker included. The catalogue's 50 ms are asked for in the full form."""

NO_BODY: Final[dict[str, tuple[bytes, int]]] = {
    "a body one byte too large": (b" " * (LIMIT + 1), 413),
    "a body of four megabytes": (b" " * (4 << 20), 413),
    "arrays 100,000 deep": (b"[" * 100_000, 422),
    "objects 30,000 deep": (b'{"a":' * 30_000 + b"1" + b"}" * 30_000, 422),
    "NaN": (b'{"a":NaN}', 422),
    "Infinity": (b'{"a":-Infinity}', 422),
    "half a body": (b'{"a":', 422),
    "two bodies": (b"{}{}", 422),
    "no UTF-8": (b'{"a":"\xff\xfe"}', 422),
    "a surrogate in UTF-8": (b'{"a":"\xed\xa0\x80"}', 422),
    "a lone surrogate": (b'{"a":"\\ud800"}', 422),
    "UTF-16": ('{"a":1}'.encode("utf-16"), 422),
    "a byte order mark": (b"\xef\xbb\xbf{}", 422),
    "NUL": (b"\x00" * 100, 422),
    "an array": (b"[]", 422),
    "a text": (b'"text"', 422),
}
"""What is a body of no route."""
ODD_FIELDS: Final[dict[str, bytes]] = {
    "10**4 keys": b",".join(b'"k%d":1' % number for number in range(10_000)),
    "an integer of 5,000 digits": b'"zz":' + b"9" * 5_000,
    "an exponent out of range": b'"zz":1e400',
    "a key of 60,000 characters": b'"' + b"k" * 60_000 + b'":1',
    "a value of 100,000 characters": b'"zz":"' + b"v" * 100_000 + b'"',
    "1,000 deep in a field": b'"zz":' + b"[" * 1_000 + b"]" * 1_000,
}
"""Fields beside good ones. A route may ignore them; it may not fail."""

WITH_BODY: Final = [row for row in ROUTES if row.body is not None]
RAW: Final = [row.name for row in ROUTES if row.raw]
"""What takes bytes has limits of its own, and `test_sec22_uploads.py` tries them."""


def body_of(row: Endpoint, city: City) -> dict[str, Any]:
    return sample(row.body, city.new_id) | MEANT.get(row.name, {})


def within(spent_s: float, what: str) -> None:
    assert spent_s <= MOST_CPU_S / (10 if FULL else 1), what


def test_nothing_takes_bytes_but_what_is_attacked_with_bytes() -> None:
    assert RAW == ["upload"]


@pytest.mark.parametrize("row", WITH_BODY, ids=name_of)
async def test_a_body_that_is_too_much_or_no_json_is_refused_by_every_route(
    city: City, tally: Tally, row: Endpoint
) -> None:
    mine = city.of[Role.OPS if row.rule is Rule.OPS else Role.WORKER]  # nothing of it changes
    person, ids = mine.owner, mine.ids
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": city.new_id()} if row.keyed else {})
    before = city.state()
    for what, (data, wanted) in NO_BODY.items():
        began_s = time.process_time()
        answer = await person.ask(row.method, path_of(row, ids), content=data, headers=headers)
        within(time.process_time() - began_s, what)
        tally.tried("SEC-13", what, name_of(row))
        # Signatures are looked at before the body, sizes before signatures.
        assert answer.status in ({413} if wanted == 413 else {wanted, 401, 403}), (what, answer.status, answer.body)
        assert answer.code in {"too_large", "payload_too_large", "invalid", "unauthenticated", "forbidden"}, answer.body
        assert not FULL or city.state() == before, what
    assert city.state() == before


@pytest.mark.parametrize("row", WITH_BODY, ids=name_of)
async def test_strange_fields_beside_good_ones_make_no_route_fail(city: City, tally: Tally, row: Endpoint) -> None:
    for what, extra in some(ODD_FIELDS.items(), 2, WITH_BODY.index(row)):
        person = await city.person(Role.OPS if row.rule is Rule.OPS else Role.WORKER)
        ids = {name: city.new_id() for name in city.stranger.ids}
        plain = json.dumps(body_of(row, city)).encode().removesuffix(b"}")
        data = plain + (b"," if plain != b"{" else b"") + extra + b"}"
        began_s = time.process_time()
        answer = await person.ask(
            row.method, path_of(row, ids), content=data, headers={"Content-Type": "application/json"}
        )
        within(time.process_time() - began_s, what)
        tally.tried("SEC-13", what, name_of(row))
        assert answer.status < 500, (what, answer.body)


@pytest.mark.parametrize("row", ROUTES, ids=name_of)
async def test_more_query_than_anybody_sends_makes_no_route_fail(city: City, tally: Tally, row: Endpoint) -> None:
    if row.name == "erase_me":
        return  # it takes nothing, and there would be nobody left who could ask again
    person = await city.person(Role.OPS if row.rule is Rule.OPS else Role.CUSTOMER)
    path = path_of(row, {name: city.new_id() for name in city.stranger.ids})
    queries = {
        "1,000 parameters": "&".join(f"p{number}=1" for number in range(1_000)),
        "a parameter of 60,000 characters": "q=" + "x" * 60_000,
        "the same parameter twice": "limit=1&limit=2",
        "bytes that are no UTF-8 in a query": "q=%ff%fe&limit=%00",
    }
    for what, query in some(queries.items(), 2, ROUTES.index(row)):
        headers = person.auth | {"Content-Type": "application/json", "Idempotency-Key": city.new_id()}
        answer = await city.raw(row.method, f"{path}?{query}", headers, b"{}" if row.body else b"")
        tally.tried("SEC-13", what, name_of(row))
        assert answer.status < 500 or row.name in ("ready", "readiness"), (what, answer.body)


# --- frames ----------------------------------------------------------------------------------------------------------

DATA: Final[dict[str, bytes]] = {
    "100 deep": b"[" * 100 + b"]" * 100,
    "30,000 deep": b"[" * 30_000 + b"]" * 30_000,
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "a lone surrogate": b'{"a":"\\ud800"}',
    "half an object": b'{"a":',
}
"""What ends the connection with 3501 (bad request), wherever in a command it stands."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def honest(city: City) -> AsyncIterator[Line]:
    async with city.of[Role.CUSTOMER].owner.line() as line:
        yield line


def commands(city: City) -> dict[str, bytes]:
    """Every command of the protocol, every method and every message without an answer, with a place for data."""
    channel = f"conversation:{city.of[Role.CUSTOMER].ids['conversation_id']}"
    plain = ("subscribe", "unsubscribe", "publish", "history", "presence", "presence_stats", "sub_refresh")
    made = {name: b'{"id":2,"%b":{"channel":"%b","data":@}}' % (name.encode(), channel.encode()) for name in plain}
    made |= {name: b'{"id":2,"%b":{"x":@}}' % name.encode() for name in ("ping", "refresh")}
    for method in RPC_METHODS:
        made[f"rpc {method}"] = b'{"id":2,"rpc":{"method":"%b","data":@}}' % method.encode()
    for name in SEND_TYPES:
        made[f"send {name}"] = b'{"send":{"data":{"type":"%b","zz":@}}}' % name.encode()
    return made


@pytest.mark.parametrize("what", DATA)
async def test_data_that_is_too_much_or_no_json_ends_the_connection_whatever_it_is_for(
    city: City, honest: Line, tally: Tally, what: str
) -> None:
    token, before = city.of[Role.CUSTOMER].owner.token, city.state()
    for target, template in commands(city).items():
        async with RawSocket(city.ws_port, token) as socket:
            await socket.send(frame(template.replace(b"@", DATA[what])))
            code = await socket.closed_with()
        tally.tried("SEC-13", what, target)
        assert code == 3501, (target, code)
    assert await honest.ask({"ping": {}}) == {"ping": {}}
    assert city.state() == before


@pytest.mark.parametrize("over", [-2, -1, 0, 1, 2])
async def test_the_limit_of_a_frame_is_exact_for_every_command(
    city: City, honest: Line, tally: Tally, over: int
) -> None:
    token = city.of[Role.CUSTOMER].owner.token
    for target, template in commands(city).items():
        if target.startswith("send ") or target == "refresh":
            continue  # nothing answers the one, and the other ends the connection for its token
        async with RawSocket(city.ws_port, token) as socket:
            inner = template.replace(b"@", b"{}")
            data = inner + b" " * (FRAME_LIMIT + over - len(inner))
            half = len(data) // 2
            await socket.send(frame(data) if over % 2 else frame(data[:half], fin=False) + frame(data[half:], 0))
            if over > 0:
                tally.tried("SEC-14", "a message just beyond the limit", target)
                assert await socket.closed_with() == 1009, target
            else:
                assert json.loads((await socket.read())[1])["id"] == 2, target
    assert await honest.ask({"ping": {}}) == {"ping": {}}
