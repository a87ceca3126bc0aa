"""SEC-1: nobody reaches what belongs to others by naming it, over REST or over the WebSocket.

Every route and every method that names something is asked by every role about what is their own, what is a stranger's and
what does not exist. The last two are answered alike, byte for byte, and change nothing.
"""

import base64
import itertools
import json
from typing import Any, Final

import pytest

from domain import access
from domain.access import Role, Rule
from domain.order_table import CLIENT_COMMANDS, ROWS
from domain.wire import RPC_METHODS, SEND_TYPES
from serve_apps.endpoint import Endpoint
from serve_apps.rest import ROUTES
from tests.security.city import ORDER, PROVIDER, REDIRECT, ROLES, Answer, City, Line, Person
from tests.security.samples import SOON, sample
from tests.security.tally import Tally
from tests.support.device_keys import Handset, challenge_for, raw
from tests.support.pictures import PDF, picture

WITH_IDS: Final = [row for row in ROUTES if row.ids]
OF_PEOPLE: Final = frozenset({"user_id", "worker_id"})
"""Ids that are no secrets: whoever knows one may look at the public profile, write to the user and block them."""
OWN_OTHERWISE: Final[dict[str, set[int]]] = {
    "command_order": {200, 403, 409},
    "pay": {403, 409},
    "message_history": {200},
    "remove_member": {200, 403},
    "inspect_stream": {200, 403},
    "review_worker_document": {200, 403, 409},
}
"""What is answered about one's own where it is not simply the route's own status: the sample's command may be another role's."""

MEANT: Final[dict[str, dict[str, Any]]] = {
    "send_message": {"text": "hello"},
    "pay": {"rail": "sandbox"},
    "add_device_key": {
        "public_key": {
            "kty": "EC",
            "crv": "P-256",
            "x": "jlM7b6C_e0YluzBmfAH7YH75-LioD-9bMAYocDGHsqM",
            "y": "c-sdveAzGDZtBp-DpvWQAFPHNjPLBBshxV4ahsH0ALQ",
        }
    },
    "start_sign_in": {"redirect_uri": REDIRECT},
    "review_worker_document": {"expires_at": SOON},
}
"""What a sample of the body does not have and every request must."""


CALLED: Final[dict[tuple[str, str], str]] = {
    ("inspect_stream", "id"): "order_id",
    ("remove_api_key", "key_id"): "api_key_id",
}
"""Route and part of its path → what `Belongings.ids` calls it, where that is another name."""


def part_of(row: Endpoint, name: str) -> str:
    """What `Belongings.ids` calls this id in the path."""
    return CALLED.get((row.name, name), name)


def value_of(row: Endpoint, name: str, ids: dict[str, str], kind: str = "order") -> str:
    """What stands in this part of the path."""
    if name in row.names:
        return PROVIDER
    return kind if name in row.words else ids[part_of(row, name)]


def path_of(row: Endpoint, ids: dict[str, str], kind: str = "order") -> str:
    path = row.path
    for name in row.parts:
        path = path.replace(f"{{{name}}}", value_of(row, name, ids, kind))
    return path


def name_of(row: Endpoint) -> str:
    return f"{row.method} {row.path}"


async def asked(person: Person, row: Endpoint, ids: dict[str, str]) -> Answer:
    """The route asked with a valid body and query about these ids."""
    new_id = person.city.new_id
    more: dict[str, Any] = {"headers": {"Idempotency-Key": new_id()}} if row.keyed else {}
    if row.query is not None:
        more["params"] = sample(row.query, new_id)
    body = None if row.body is None else sample(row.body, new_id)
    if body is not None:
        body |= MEANT.get(row.name, {})
    if row.name == "add_member":
        body["user_id"] = person.id
    return await person.ask(row.method, path_of(row, ids), body, **more)


def unknown(city: City, ids: dict[str, str], *names: str) -> dict[str, str]:
    """The same with ids in place of the named ones that nobody has."""
    return ids | {name: city.new_id() for name in names or ids}


def for_operators(role: Role) -> bool:
    return role in access.OPERATORS


def guarded_ids(row: Endpoint) -> list[str]:
    """The ids in the path that say whose it is."""
    return [name for name in row.ids if name not in OF_PEOPLE]


ATTACKED: Final = [row for row in WITH_IDS if guarded_ids(row)]


def sees_all(row: Endpoint, role: Role) -> bool:
    """Whether this role is meant to see what belongs to others there: operations see orders, and how streams stand."""
    return for_operators(role) and (row.stream == "order" or row.rule is Rule.OPS)


async def test_what_belongs_to_others_is_answered_like_what_does_not_exist(city: City, tally: Tally) -> None:
    strangers = city.stranger.ids
    for row in ATTACKED:
        for role in ROLES:
            person = city.of[role].owner
            nowhere = unknown(city, strangers)
            before = city.state()
            missing = await asked(person, row, nowhere)
            foreign = await asked(person, row, strangers)
            where = (name_of(row), role)
            tally.tried("SEC-1", f"an id of somebody else's, as {role}", name_of(row))
            tally.tried("SEC-1", f"an id that nobody has, as {role}", name_of(row))
            if row.rule is Rule.OPS and not for_operators(role):
                assert (missing.status, missing.code) == (403, "forbidden"), where
            else:
                assert (missing.status, missing.code) == (404, "not_found"), where
            if sees_all(row, role):
                assert foreign.status in {row.status} | OWN_OTHERWISE.get(row.name, set()), (where, foreign.body)
                continue
            assert foreign.status == missing.status, where
            assert foreign.like(*strangers.values()) == missing.like(*nowhere.values()), where
            assert city.state() == before, where
    assert city.overheard == [] or set(city.overheard) == {f"ev.order.{strangers['order_id']}"}


async def test_an_id_of_ones_own_does_not_open_what_belongs_to_others(city: City, tally: Tally) -> None:
    """Where a path has two ids: one's own conversation with a stranger's message, and the other way round."""
    strangers = city.stranger.ids
    rows = [row for row in ATTACKED if len(row.ids) > 1]
    assert rows
    for row in rows:
        for role in ROLES:
            own, person = city.of[role].ids, city.of[role].owner
            for crossed in row.ids:
                ids = own | {crossed: strangers[crossed]}
                nowhere = own | {crossed: city.new_id()}
                before = city.state()
                foreign, missing = await asked(person, row, ids), await asked(person, row, nowhere)
                tally.tried("SEC-1", f"an id of one's own beside a foreign one, as {role}", f"{name_of(row)} {crossed}")
                tally.tried(
                    "SEC-1", f"an id of one's own beside one that nobody has, as {role}", f"{name_of(row)} {crossed}"
                )
                # Taking somebody out who is no member is a write that changes nothing, whoever they are.
                harmless = {200} if crossed in OF_PEOPLE else set()
                assert foreign.status == missing.status in {403, 404} | harmless, (name_of(row), role, crossed)
                assert foreign.like(ids[crossed]) == missing.like(nowhere[crossed])
                assert city.state() == before


async def test_what_is_ones_own_is_there(city: City) -> None:
    """Or else everything would be refused to everybody, and the rest of these tests would say nothing."""
    for role in ROLES:
        mine = await city.belongings(role)
        for row in ATTACKED:
            answer = await asked(mine.owner, row, mine.ids)
            if row.rule is Rule.OPS and not for_operators(role):
                assert answer.status == 403
            else:
                assert answer.status in OWN_OTHERWISE.get(row.name, {row.status}), (name_of(row), role, answer.body)


async def test_without_a_token_nothing_is_told_about_anything(city: City, tally: Tally) -> None:
    for row in WITH_IDS:
        if row.rule not in access.GUARDED:
            continue
        nobody = Person(city, "", "", {"Authorization": ""})
        ids, nowhere = city.stranger.ids, unknown(city, city.stranger.ids)
        before = city.state()
        foreign, missing = await asked(nobody, row, ids), await asked(nobody, row, nowhere)
        tally.tried("SEC-1", "no token", name_of(row), 2)
        assert (foreign.status, foreign.code) == (401, "unauthenticated")
        assert foreign.like(*ids.values()) == missing.like(*nowhere.values())
        assert city.state() == before


# --- ids in bodies ---------------------------------------------------------------------------------------------------


async def test_an_order_id_of_somebody_elses_makes_no_order_and_says_nothing_about_theirs(
    city: City, tally: Tally
) -> None:
    """Ids are made by clients: one that is taken can only be refused, without a word about what has it."""
    for role in ROLES:
        person, before = city.of[role].owner, city.state()
        for row_name, path, kind, more in (
            ("create_order", "/v1/orders", "order_id", sample_order()),
            ("open_conversation", "/v1/conversations", "conversation_id", {"member_ids": [city.stranger.partner.id]}),
        ):
            taken = city.stranger.ids[kind]
            answer = await person.ask("POST", path, {"id": taken, **more})
            tally.tried("SEC-1", "a stranger's id for something new", row_name)
            assert (answer.status, answer.code) in ((409, "idempotency_mismatch"), (404, "not_found")), answer.body
            assert taken.encode() not in answer.body
            assert city.stranger.owner.id.encode() not in answer.body
            assert city.state() == before


def sample_order() -> dict[str, Any]:
    return dict(ORDER)


async def test_a_device_key_of_somebody_elses_is_answered_like_none(city: City, tally: Tally) -> None:
    """A challenge is had for any key; who does not have the key can do nothing with it, and learns nothing of the key."""
    strangers, before = city.stranger.ids["key_id"], city.rows_of(city.stranger)
    for role in ROLES:
        person = city.of[role].owner
        handset = Handset()
        own_key = await handset.register(city.http, person.auth)
        shapes, refusals = [], []
        for key_id in (strangers, city.new_id()):
            given = await person.ask("POST", "/v1/auth/device-login/challenge", {"key_id": key_id})
            assert given.status == 200
            shapes.append((sorted(given.json), len(given.json["challenge"]), given.json["expires_in_s"]))
            for issued_to, signed_for in itertools.product((key_id, own_key), repeat=2):
                challenge = await challenge_for(city.http, issued_to)
                signature = raw(*handset.sign(challenge, signed_for))
                body = {"key_id": key_id, "challenge": challenge, "signature": signature, "device": handset.device}
                refused = await person.ask("POST", "/v1/auth/device-login", body)
                tally.tried("SEC-1", "a stranger's key", "POST /v1/auth/device-login")
                assert (refused.status, refused.code) == (401, "unauthenticated"), refused.body
                refusals.append(refused.like(key_id))
        tally.tried("SEC-1", "a stranger's key", "POST /v1/auth/device-login/challenge", 2)
        assert shapes[0] == shapes[1]
        assert len(set(refusals)) == 1
        assert city.rows_of(city.stranger) == before
        assert (await handset.login(city.http)).status_code == 200, "or else all of that were refused to everybody"


def cursor_of(*place: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


async def test_no_cursor_of_an_export_holds_what_others_wrote_or_ordered(city: City, tally: Tally) -> None:
    """Whoever makes a cursor up may begin wherever they like, and is told of their own things only."""
    stranger = city.stranger
    theirs = {*stranger.ids.values(), stranger.owner.id, stranger.partner.id, stranger.rival.id}
    before = city.state()
    for role in ROLES:
        own, told = city.of[role], 0
        for part in ("messages", "customer", "worker", "uploads", "account", "../messages"):
            keys = ("", own.ids["conversation_id"], *(stranger.ids[f"{kind}_id"] for kind in ("conversation", "order")))
            for key, after in itertools.product((*keys, f"0:{keys[-1]}", stranger.owner.id), (0, 1, (1 << 53) - 1, -1)):
                answer = await own.owner.ask("POST", "/v1/me/export", {"cursor": cursor_of(part, key, after)})
                tally.tried("SEC-1", "a cursor of one's own making", "POST /v1/me/export")
                assert answer.status in (200, 422), answer.body
                assert not [each for each in theirs if each.encode() in answer.body], (role, part, key)
                told += own.ids["message_id"].encode() in answer.body
        assert told
    assert city.state() == before


OWN_ONLY: Final = [row for row in ROUTES if (row.rule is Rule.OWNER and not row.ids) or row.name == "logout"]
"""What names nobody, because it is about who asks."""


@pytest.mark.parametrize("row", OWN_ONLY, ids=name_of)
async def test_what_is_about_the_caller_is_about_nobody_else_whoever_a_request_names(
    city: City, tally: Tally, row: Endpoint
) -> None:
    """In the query, in the body, in headers. Each way is somebody else's who has nothing: some of this ends an account."""
    stranger, victim = city.stranger, city.stranger.owner
    names = ("user_id", "id", "owner_id", "account_id", "sub", "phone", "session_id", "key_id", "user")
    named = {name: stranger.ids.get(name, victim.id) for name in names} | {"user_id": victim.id, "phone": victim.phone}
    headers = {"X-User-Id": victim.id, "X-Forwarded-User": victim.id, "Cookie": f"user_id={victim.id}"}
    theirs = [victim.id, victim.phone, *stranger.ids.values()]
    before = city.rows_of(stranger)
    body = None if row.body is None else sample(row.body, city.new_id) | MEANT.get(row.name, {})
    if row.name == "logout":
        body = {"all": True}
    if row.name in ("upload", "add_worker_document"):
        del named["id"]  # it is that of what is made
    query = {} if row.query is None else sample(row.query, city.new_id)
    for way in ({"params": query | named}, {"body": named | (body or {})}, {"headers": headers}):
        person = await city.person(Role.WORKER)
        if row.name == "add_worker_document":
            body = {**(body or {}), "upload_id": await person.upload(PDF, "document", "application/pdf")}
        given = {"params": query, "body": body} | way
        if row.name == "add_worker_document" and "body" in way:
            given["body"] = named | body
        if row.raw:
            given |= {"body": None, "content": picture("PNG")}
            given["headers"] = {"Content-Type": "image/png"} | given.get("headers", {})
        if given["body"] is not None and row.body is None:
            given |= {"body": None, "json": given["body"]}
        answer = await person.ask(row.method, path_of(row, {}), **given)
        tally.tried("SEC-1", "somebody else named where nobody is asked for", name_of(row))
        linked_to_nobody = row.name == "remove_identity"
        assert answer.status == (404 if linked_to_nobody else row.status), answer.body
        assert not [each for each in theirs if each.encode() in answer.body], answer.body
        assert city.rows_of(stranger) == before
        assert (await victim.ask("GET", "/v1/me")).status == 200
        ended = row.name in ("logout", "erase_me")
        assert (await person.ask("GET", "/v1/me")).status == (401 if ended else 200)


async def test_a_stranger_gives_an_order_no_command(city: City, tally: Tally) -> None:
    """Each command of the order's table, with a payload that fits, to a stranger's order and to one that nobody has."""
    for command in sorted(CLIENT_COMMANDS):
        for role in ROLES:
            if for_operators(role):
                continue
            person = city.of[role].owner
            payload = sample(ROWS[command].payload, city.new_id)
            payload |= {name: value for name, value in city.stranger.ids.items() if name in payload}
            before, answers = city.state(), []
            for order_id in (city.stranger.ids["order_id"], city.new_id()):
                body = {"command": command, "command_id": city.new_id(), "expected_version": 9, "payload": payload}
                answers.append(await person.ask("POST", f"/v1/orders/{order_id}/commands", body))
            tally.tried("SEC-1", f"an id of somebody else's, as {role}", f"order.command {command}")
            tally.tried("SEC-1", f"an id that nobody has, as {role}", f"order.command {command}")
            assert (answers[0].status, answers[0].code) == (404, "not_found"), command
            assert answers[0].like() == answers[1].like(), command
            assert city.state() == before, command


async def test_operations_may_know_of_an_order_and_still_not_act_as_its_customer_or_worker(
    city: City, tally: Tally
) -> None:
    order_id = city.stranger.ids["order_id"]
    for role in access.OPERATORS:
        person = city.of[role].owner
        for command in sorted(CLIENT_COMMANDS):
            if "ops" in ROWS[command].who:
                continue
            before = city.state()
            payload = sample(ROWS[command].payload, city.new_id)
            body = {"command": command, "command_id": city.new_id(), "expected_version": 9, "payload": payload}
            answer = await person.ask("POST", f"/v1/orders/{order_id}/commands", body)
            tally.tried("SEC-1", f"operations in somebody's place, as {role}", f"order.command {command}")
            assert answer.status in (403, 409), (command, answer.body)
            assert city.state() == before, command


# --- the WebSocket ---------------------------------------------------------------------------------------------------

PLACES: Final = {"conversation_id", "order_id", "stream"}


def rpc_data(method: str, city: City, ids: dict[str, str]) -> dict[str, Any]:
    """Valid data of a method that names these ids."""
    data: dict[str, Any] = sample(RPC_METHODS[method][0], city.new_id)
    for name in data:
        if name == "stream":
            data[name] = f"conversation:{ids['conversation_id']}"
        elif name in ids:
            data[name] = ids[name]
    if method == "message.send":
        data["text"] = "hello"
    if method == "order.command":
        data |= {"command": "cancel", "expected_version": 9}
    if method == "write.status":
        data["id"] = ids["message_id"]
    return data


@pytest.mark.parametrize("role", ROLES)
async def test_no_method_reaches_a_stream_of_others(city: City, tally: Tally, role: Role) -> None:
    strangers, nowhere = city.stranger.ids, unknown(city, city.stranger.ids)
    async with city.of[role].owner.line() as line:
        for method, given in access.RPC.items():
            if given.rule is not Rule.MEMBER:
                continue
            before = city.state()
            missing = await line.rpc(method, rpc_data(method, city, nowhere))
            assert missing["error"]["code"] == 404, (method, missing)
            assert missing["error"]["message"] == "not_found"
            tally.tried("SEC-1", f"an id that nobody has, as {role}", f"rpc {method}")
            if method == "order.command" and for_operators(role):
                continue
            foreign = await line.rpc(method, rpc_data(method, city, strangers))
            tally.tried("SEC-1", f"an id of somebody else's, as {role}", f"rpc {method}")
            assert hidden(foreign, strangers) == hidden(missing, nowhere), method
            assert city.state() == before, method


async def test_who_is_online_is_not_told_to_strangers(city: City, tally: Tally) -> None:
    stranger = city.stranger
    async with stranger.owner.line():
        for role in ROLES:
            async with city.of[role].owner.line() as line:
                there = await line.rpc("presence.get", {"user_ids": [stranger.owner.id]})
                nowhere = city.new_id()
                missing = await line.rpc("presence.get", {"user_ids": [nowhere]})
                tally.tried("SEC-1", f"an id of somebody else's, as {role}", "rpc presence.get")
                assert hidden(there, {"": stranger.owner.id}) == hidden(missing, {"": nowhere})


async def test_sync_tells_of_nobody_elses_streams(city: City, tally: Tally) -> None:
    for role in ROLES:
        async with city.of[role].owner.line() as line:
            told = json.dumps(await line.rpc("sync", {"user_id": city.stranger.owner.id}))
            tally.tried("SEC-1", f"an id of somebody else's, as {role}", "rpc sync")
            assert city.of[role].ids["conversation_id"] in told
            assert not any(each in told for each in city.stranger.ids.values())


CHANNEL_COMMANDS: Final = (
    "subscribe",
    "unsubscribe",
    "history",
    "presence",
    "presence_stats",
    "publish",
    "sub_refresh",
)


@pytest.mark.parametrize("role", ROLES)
async def test_no_command_of_the_protocol_reaches_a_channel_of_others(city: City, tally: Tally, role: Role) -> None:
    async with city.of[role].owner.line() as line:
        for kind in access.CHANNELS:
            strangers = {"user": city.stranger.owner.id}.get(kind) or city.stranger.ids[f"{kind}_id"]
            nowhere = city.new_id()
            for command in CHANNEL_COMMANDS:
                if command == "subscribe" and kind == "order" and for_operators(role):
                    continue
                before = city.state()
                foreign = await line.ask({command: {"channel": f"{kind}:{strangers}", "recover": True, "epoch": ""}})
                missing = await line.ask({command: {"channel": f"{kind}:{nowhere}", "recover": True, "epoch": ""}})
                tally.tried("SEC-1", f"an id of somebody else's, as {role}", f"{command} {kind}")
                tally.tried("SEC-1", f"an id that nobody has, as {role}", f"{command} {kind}")
                assert hidden(foreign, {"": strangers}) == hidden(missing, {"": nowhere}), (command, kind)
                if command != "unsubscribe":
                    wanted = 108 if command == "sub_refresh" else 103
                    assert foreign["error"]["code"] == wanted, (command, kind)
                assert city.state() == before
        assert not line.heard


async def test_nothing_that_a_stranger_sends_is_heard(city: City, tally: Tally) -> None:
    async with city.stranger.owner.line() as victim:
        for kind in ("order", "conversation"):
            await victim.ask({"subscribe": {"channel": f"{kind}:{city.stranger.ids[f'{kind}_id']}"}})
        for role in ROLES:
            async with city.of[role].owner.line() as line:
                for name, shape in SEND_TYPES.items():
                    data = sample(shape, city.new_id)
                    data |= {key: city.stranger.ids[key] for key in data if key in city.stranger.ids}
                    await line.send(data)
                    tally.tried("SEC-1", f"an id of somebody else's, as {role}", f"send {name}")
        # A word of the partner's comes behind all of that on its way to the victim.
        path = f"/v1/conversations/{city.stranger.ids['conversation_id']}/messages"
        await city.stranger.partner.must("POST", path, {"id": city.new_id(), "text": "the last word"})
        async with city.stranger.partner.line() as friend:
            await friend.rpc(
                "message.send",
                {"conversation_id": city.stranger.ids["conversation_id"], "id": city.new_id(), "text": "x"},
            )
        for _ in range(100):
            heard = json.dumps(victim.heard)
            if '"text": "x"' in heard:
                break
            await victim.ask({"ping": {}})
        assert '"text": "x"' in heard
        assert "typing" not in heard
        assert "position" not in heard


def hidden(reply: dict[str, Any], ids: dict[str, str]) -> str:
    text = json.dumps(reply)
    for each in ids.values():
        text = text.replace(each, "<id>")
    return text


def test_every_route_and_every_method_that_names_something_is_attacked() -> None:
    """A route or a method that is new is here by itself; one whose ids are of a kind that nobody has is found out here."""
    have = {
        "order_id",
        "conversation_id",
        "message_id",
        "session_id",
        "key_id",
        "api_key_id",
        "upload_id",
        "document_id",
    }
    assert {part_of(row, name) for row in ATTACKED for name in guarded_ids(row)} <= have
    assert all(
        row.ids[0] == "id" or name in row.ids for row in ATTACKED for called, name in CALLED if called == row.name
    )
    assert {name for row in ROUTES for name in row.names} <= {"provider"}
    named = {name for data, _ in RPC_METHODS.values() for name in data.__struct_fields__ if name in PLACES}
    assert named == PLACES
    assert Line is not None
