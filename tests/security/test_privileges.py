"""SEC-18, SEC-19: fields, methods, headers and spellings of paths give nobody more than their rule does."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from domain import access
from domain.access import Role, Rule
from domain.order_table import CLIENT_COMMANDS, ROWS
from domain.wire import RPC_METHODS
from serve_apps.endpoint import Endpoint
from serve_apps.rest import ROUTES
from tests.security.city import ORDER, Belongings, City, Person
from tests.security.samples import replaced, sample
from tests.security.tally import Tally
from tests.security.test_idor import MEANT, asked, name_of, path_of, rpc_data

# --- SEC-18: fields that nobody asked for --------------------------------------------------------------------------

CANARY: Final = "canary-7f3a"
EXTRA: Final[dict[str, Any]] = {
    "role": CANARY,
    "roles": ["admin", "ops", CANARY],
    "is_admin": CANARY,
    "owner_id": CANARY,
    "user_id_of_owner": CANARY,
    "status": CANARY,
    "state": CANARY,
    "price": {"amount": 1, "currency": CANARY},
    "seq": CANARY,
    "created_at": CANARY,
    "verified": CANARY,
    "customer_id": CANARY,
    "actor": {"kind": "system", "id": CANARY},
    "private": {"seed": CANARY},
    "__proto__": {"role": CANARY},
}
"""What would be somebody's to say, and is in no shape that clients may send."""
TRUE_EXTRA: Final[dict[str, Any]] = dict.fromkeys(("is_admin", "verified", "admin", "phone_verified", "auto"), True)
KEPT_OUT: Final = frozenset({"logout"})
FOR_WORKERS: Final = frozenset({"add_api_key"})
GIVEN: Final[dict[str, frozenset[str]]] = {"finish_sign_in": frozenset({"state"})}
"""Route → those of these fields that are its caller's to set after all: the state of a sign-in is what came back with it."""


def objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where there are objects in a value."""
    if isinstance(value, dict):
        yield path
        for key, inner in value.items():
            yield from objects(inner, (*path, key))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from objects(inner, (*path, position))


def with_extra(body: Any, extra: dict[str, Any]) -> Any:
    """The same with the extra fields in every object of it, except where they have a meaning."""
    for path in list(objects(body)):
        inner = body
        for key in path:
            inner = inner[key]
        body = replaced(body, path, {**extra, **inner})
    return body


async def roles_of(city: City, person: Person) -> tuple[str, ...]:
    return tuple((await city.platform.accounts.get([person.id]))[person.id].roles)


@pytest.mark.parametrize("row", [row for row in ROUTES if row.body is not None], ids=name_of)
async def test_a_field_that_is_not_in_the_shape_of_a_body_is_ignored_or_refused(
    city: City, tally: Tally, row: Endpoint
) -> None:
    given_here = GIVEN.get(row.name, frozenset())
    assert not set(row.body.__struct_fields__) & {*EXTRA, *TRUE_EXTRA} - given_here
    role = Role.OPS if row.rule is Rule.OPS else Role.WORKER if row.name in FOR_WORKERS else Role.CUSTOMER
    mine = await city.belongings(role)
    before = await roles_of(city, mine.owner)
    for extra in (EXTRA, TRUE_EXTRA):
        given = {name: value for name, value in extra.items() if name not in given_here}
        plain = sample(row.body, city.new_id) | MEANT.get(row.name, {})
        # In every object, and, because some objects are refused for it, in the outermost alone.
        for body in (with_extra(plain, given), {**given, **plain}):
            path = path_of(row, mine.ids)
            headers = {"Idempotency-Key": city.new_id()} if row.keyed else {}
            answer = await mine.owner.ask(row.method, path, body, headers=headers)
            tally.tried("SEC-18", "fields that are not the caller's to set", name_of(row), len(given))
            assert answer.status < 500, answer.body
            assert CANARY.encode() not in answer.body
            if row.name in KEPT_OUT:
                mine = await city.belongings(role)
    allowed = {"worker"} if row.name == "put_worker" else set()
    assert set(before) <= set(await roles_of(city, mine.owner)) <= {*before, *allowed}
    assert set(before) <= {"customer", role}
    assert CANARY not in city.rows()


@pytest.mark.parametrize("method", RPC_METHODS)
async def test_a_field_that_is_not_in_the_shape_of_a_method_is_ignored_or_refused(
    city: City, tally: Tally, method: str
) -> None:
    mine = await city.belongings(Role.CUSTOMER)
    async with mine.owner.line() as line:
        for extra in (EXTRA, TRUE_EXTRA):
            reply = await line.rpc(method, with_extra(rpc_data(method, city, mine.ids), extra))
            tally.tried("SEC-18", "fields that are not the caller's to set", f"rpc {method}", len(extra))
            assert CANARY not in json.dumps(reply)
            assert reply.get("error", {}).get("code", 0) not in {100, *range(500, 600)}
    assert await roles_of(city, mine.owner) == ("customer",)
    assert CANARY not in city.rows()


async def test_a_field_that_is_not_in_the_payload_of_a_command_is_ignored_or_refused(city: City, tally: Tally) -> None:
    mine = await city.belongings(Role.CUSTOMER)
    for command in sorted(CLIENT_COMMANDS):
        for person in (mine.owner, mine.partner, mine.rival):
            payload = sample(ROWS[command].payload, city.new_id)
            payload |= {name: value for name, value in mine.ids.items() if name in payload}
            version = (await mine.owner.must("GET", f"/v1/orders/{mine.ids['order_id']}"))["version"]
            body = {"command": command, "command_id": city.new_id(), "expected_version": version}
            extra = EXTRA | {"by": CANARY, "at": CANARY, "auto": True, "total": CANARY, "fee": CANARY}
            body["payload"] = with_extra(payload, extra)
            answer = await person.ask("POST", f"/v1/orders/{mine.ids['order_id']}/commands", body)
            tally.tried("SEC-18", "fields that are not the caller's to set", f"order.command {command}", len(extra))
            assert answer.status in (200, 403, 404, 409, 422), (command, answer.body)
            assert CANARY.encode() not in answer.body
    assert CANARY not in city.rows()


# --- SEC-18: what answers show ---------------------------------------------------------------------------------------

NEVER: Final = frozenset(
    {"private", "seed", "hash", "command_hash", "phone_hash", "session_hash", "otp"}
    | {"public_key", "key", "key_hash", "hashed", "sealed", "secret", "subject", "digest", "issuer", "confirmed_at"}
)
"""Fields of the log and of the database that no answer has."""
OF_ONES_OWN: Final = {"POST /v1/me/export": {"confirmed_at"}}
"""But for these, which say something of the caller's own sessions."""


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values())) if value else set()
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


async def everything_seen_by(person: Person, mine: Belongings) -> list[tuple[str, Any]]:
    """What all routes that only read, a recovery from the beginning and `sync` tell somebody."""
    seen: list[tuple[str, Any]] = []
    for row in ROUTES:
        if row.method != "GET" or row.rule not in access.GUARDED or row.media_type != "application/json":
            continue
        for room in ("conversation_id", "room_id") if "conversation_id" in row.ids else ("conversation_id",):
            answer = await asked(person, row, mine.ids | {"conversation_id": mine.ids[room]})
            seen.append((name_of(row), answer.json))
    cursor: dict[str, str] = {}
    for _ in range(20):
        page = await person.must("POST", "/v1/me/export", cursor)
        if "account" in page:
            assert page["account"].pop("phone") == person.phone  # their own, and the one place where it is whole
        seen.append(("POST /v1/me/export", page))
        if "next_cursor" not in page:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert "next_cursor" not in page
    async with person.line() as line:
        for kind, name in (("order", "order_id"), ("conversation", "conversation_id"), ("conversation", "room_id")):
            channel = f"{kind}:{mine.ids[name]}"
            told = await line.ask({"subscribe": {"channel": channel, "recover": True, "epoch": "", "offset": 0}})
            seen.append((f"subscribe {kind}", told))
            seen.append((f"history {kind}", await line.ask({"history": {"channel": channel, "limit": 1000}})))
        seen.append(("sync", await line.rpc("sync", {})))
        seen.append(("pushes", line.heard))
    return seen


async def test_no_answer_holds_what_its_reader_may_not_know(city: City, tally: Tally) -> None:
    mine = await city.belongings(Role.CUSTOMER)
    people = {
        "customer": mine.owner,
        "worker": mine.partner,
        "bidder": mine.rival,
        "stranger": await city.person(Role.CUSTOMER),
        "free worker": await city.person(Role.WORKER),
        "ops": await city.person(Role.OPS),
        "admin": await city.person(Role.ADMIN),
    }
    phones = [person.phone for person in people.values()]
    for viewer, person in people.items():
        for where, answer in await everything_seen_by(person, mine):
            text, keys = json.dumps(answer), keys_of(answer)
            tally.tried("SEC-18", "reading what others may see", where)
            assert not (NEVER - OF_ONES_OWN.get(where, set())) & keys, (viewer, where)
            assert not any(phone in text or phone[3:] in text for phone in phones), (viewer, where)
            if viewer != "customer":
                assert "check_in_code" not in keys, (viewer, where)
            if viewer in ("worker", "stranger", "free worker"):
                assert mine.ids["rival_quote_id"] not in text, (viewer, where)
            if viewer in ("bidder", "stranger", "free worker"):
                assert not {mine.ids["quote_id"], mine.ids["visit_id"]} & set(text.split('"')), (viewer, where)
                assert ORDER["site"]["address"] not in text, (viewer, where)  # type: ignore[index]
            if viewer == "customer" and where != "GET /v1/workers/{worker_id}":
                assert not {"commission_bp", "vat_bp", "base"} & keys, (viewer, where)
    assert "check_in_code" in keys_of((await mine.owner.ask("GET", f"/v1/orders/{mine.ids['order_id']}")).json)


async def test_others_quotes_and_the_exact_place_of_an_open_order_are_its_customers_alone(
    city: City, tally: Tally
) -> None:
    customer = await city.person(Role.CUSTOMER)
    workers = [await city.person(Role.WORKER) for _ in range(3)]
    order_id, *quotes = await city.quoted(customer, *workers)
    for position, worker in enumerate(workers):
        for path in (f"/v1/orders/{order_id}", "/v1/orders?role=worker", f"/v1/orders/{order_id}/events"):
            answer = await worker.ask("GET", path)
            tally.tried("SEC-18", "reading what others may see", f"GET {path.replace(order_id, '{order_id}')}")
            text = answer.body.decode()
            assert not [quote for quote in quotes if quote != quotes[position] and quote in text]
            assert not [other for other in workers if other is not worker and other.id in text]
            assert "Long Street" not in text
            assert "31.2304" not in text
    shown = (await customer.ask("GET", f"/v1/orders/{order_id}")).body.decode()
    assert all(quote in shown for quote in quotes)


# --- SEC-19: functions of others ----------------------------------------------------------------------------------

REFUSED: Final = frozenset({403, 404, 405})
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "TRACE", "PROPFIND", "get", "Delete", "GET/../PUT")
OVERRIDES: Final = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-Method")
DETOURS: Final = ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Forwarded-Path", "X-Accel-Redirect")


def spellings(path: str) -> list[tuple[str, str]]:
    """A path as one writes it to get past a check that looks for another spelling, with the kind of the trick."""
    head, _, tail = path.rpartition("/")
    kinds = {
        "slashes": (path.replace("/", "//"), f"/{path}", f"{path}/", f"{path}//"),
        "dot segments": (
            f"{head}/./{tail}",
            f"{head}/x/../{tail}",
            f"{head}/%2e%2e/{tail}",
            f"/%2e{path}",
            f"/v1/..{path}",
            f"/health/..{path}",
        ),
        "parameters of segments": (f"{path};admin=1", f"{head};x=y/{tail}", f"{head}/..;/{tail}"),
        "encoded separators": (
            path.replace("/", "%2f"),
            f"{head}%2F{tail}",
            f"{head}%252f{tail}",
            f"{head}%5c{tail}",
            f"{head}%c0%af{tail}",
            f"{head}%ef%bc%8f{tail}",
        ),
        "encoded control characters": (f"{path}%00", f"{path}%20", f"{path}%09", f"{path}%0d%0aX-Role:%20admin"),
        "encoded delimiters": (f"{path}%23", f"{path}%3frole=admin"),
        "upper case": (path.upper(), path.title()),
        "suffix": (f"{path}.json", f"{path}.html", f"{path}~"),
    }
    return [(kind, each) for kind, written in kinds.items() for each in written]


PROTECTED: Final = [row for row in ROUTES if row.rule in access.GUARDED]


@pytest.mark.parametrize("role", [Role.CUSTOMER, Role.WORKER])
async def test_no_spelling_of_a_path_leads_to_what_the_plain_one_refuses(city: City, tally: Tally, role: Role) -> None:
    person = city.of[role].owner
    rows = [row for row in PROTECTED if row.rule is Rule.OPS or any(name.endswith("_id") for name in row.ids)]
    before = city.state()
    for row in rows:
        if set(row.ids) <= {"user_id", "worker_id"}:
            continue
        for kind, path in spellings(path_of(row, city.stranger.ids)):
            headers = person.auth | {"Content-Type": "application/json", "Idempotency-Key": city.new_id()}
            answer = await city.raw(row.method, path, headers, b"{}")
            tally.tried("SEC-19", f"path: {kind}", name_of(row))
            assert answer.status in REFUSED, (path, name_of(row), answer.body)
    assert city.state() == before


async def test_no_spelling_of_a_path_is_open_to_who_has_no_token(city: City, tally: Tally) -> None:
    ids, before = city.stranger.ids, city.state()
    for row in PROTECTED:
        for kind, path in spellings(path_of(row, ids)):
            answer = await city.raw(row.method, path, {"Content-Type": "application/json"}, b"{}")
            tally.tried("SEC-19", f"path: {kind}", name_of(row))
            assert answer.status in REFUSED | {401}, (path, name_of(row), answer.body)
    assert city.state() == before


async def test_who_is_not_of_operations_is_refused_there_whatever_they_ask(city: City, tally: Tally) -> None:
    rows = [row for row in ROUTES if row.rule is Rule.OPS]
    assert rows
    for row in rows:
        for role in (Role.CUSTOMER, Role.WORKER):
            for claim in (
                {},
                {"X-Role": "admin"},
                {"X-User-Id": city.of[Role.ADMIN].owner.id},
                {"Cookie": "role=admin"},
            ):
                answer = await asked_with(city.of[role].owner, row, city.of[role].ids, claim)
                tally.tried("SEC-19", "a function of operations", name_of(row))
                assert answer.status == 403, (name_of(row), role, claim)


async def asked_with(person: Person, row: Endpoint, ids: dict[str, str], headers: dict[str, str]) -> Any:
    return await person.ask(row.method, path_of(row, ids), None if row.body is None else {}, headers=headers)


async def test_a_method_that_a_path_does_not_have_is_refused_whatever_headers_say(city: City, tally: Tally) -> None:
    person, ids = city.of[Role.CUSTOMER].owner, city.stranger.ids
    paths: dict[str, set[str]] = {}
    for row in ROUTES:
        paths.setdefault(path_of(row, ids), set()).add(row.method)
    before = city.state()
    for path, offered in paths.items():
        for method in METHODS:
            if method in offered or (method == "HEAD" and "GET" in offered):
                continue
            for wanted in sorted(offered):
                headers = person.auth | dict.fromkeys(OVERRIDES, wanted) | {"Content-Type": "application/json"}
                answer = await city.raw(method, f"{path}?_method={wanted}", headers, b"{}")
                tally.tried("SEC-19", "a method that the path does not have", path)
                assert answer.status in REFUSED, (method, path, answer.status)
    assert city.state() == before


async def test_a_header_does_not_make_another_request_of_the_one_that_was_made(city: City, tally: Tally) -> None:
    """A reading request stays one, and an open page stays that page, whatever a proxy's headers say."""
    person, ids = city.of[Role.CUSTOMER].owner, city.of[Role.CUSTOMER].ids
    before = city.state()
    for row in ROUTES:
        if row.method != "GET" or row.name in ("readiness", "ready"):
            continue
        for wanted in ("DELETE", "PUT", "POST"):
            headers = dict.fromkeys(OVERRIDES, wanted)
            answer = await asked_with(person, row, ids, headers)
            plain = await asked_with(person, row, ids, {})
            tally.tried("SEC-19", "another method in a header", name_of(row), len(headers))
            assert answer.status == plain.status, name_of(row)
    admin = f"/v1/admin/streams/order/{ids['order_id']}"
    for header in DETOURS:
        answer = await city.raw("GET", "/health/live", person.auth | {header: admin})
        tally.tried("SEC-19", "another path in a header", "GET /health/live")
        assert answer.json == {"status": "ok"}
    assert city.state() == before
