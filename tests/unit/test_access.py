"""Who may do what: nothing is without a rule and a rate class, and the documents say the same as the code."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from domain import access
from domain.access import ABSENT_SPREAD_S, ABSENT_STEP_S, Access, Rate, Role, Rule, absent_in_s
from domain.channels import Channel
from domain.commands import Actor
from domain.wire import RPC_METHODS, SEND_TYPES
from gateway import codes, protocol, rpc
from gateway.session import Session
from serve_apps.asyncapi import asyncapi
from serve_apps.endpoint import endpoint
from serve_apps.openapi import WHO_MAY, openapi
from serve_apps.rest import ROUTES
from tests.contract.exchanges import tables
from tests.unit.test_gateway_session import frame, opened, replies

DOCS = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
ID = "0190a0a0-0000-7000-8000-00000000000a"
ACTOR = Actor("user", ID, ID)


def test_every_method_type_channel_and_command_in_the_code_has_a_rule_and_nothing_else_has() -> None:
    assert access.RPC.keys() == RPC_METHODS.keys()
    assert access.SEND.keys() == SEND_TYPES.keys()
    assert access.CHANNELS.keys() == set(Channel.__annotations__["kind"].__args__)
    assert access.COMMANDS.keys() == {field.name for field in msgspec.structs.fields(protocol.Command)} - {"id"}


def test_whatever_the_gateway_understands_has_a_rule() -> None:
    """The plan of every method is made from the table's names alone: one that `rpc` knows beside them has no rule."""
    known = {*rpc._WRITES, *rpc._RECEIPTS, "order.command", "write.status", "presence.get", "sync"}
    assert known == set(access.RPC)


def test_a_method_without_a_rule_and_one_for_some_roles_only_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> dict[str, Any]:
        session = opened()
        data = {"conversation_id": ID, "id": ID, "text": "hello"}
        effects = session.receive(frame({"id": 9, "rpc": {"method": "message.send", "data": data}}), 0)
        said = [effect for effect in effects if isinstance(effect, bytes)]
        return replies(said)[0]["error"] if said else {}

    assert asked() == {}
    monkeypatch.setitem(access.RPC, "message.send", Access(Rule.OPS))
    assert asked()["code"] == codes.METHOD_NOT_FOUND.code
    monkeypatch.delitem(access.RPC, "message.send")
    assert asked()["code"] == codes.METHOD_NOT_FOUND.code


def test_what_is_sent_without_a_rule_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = msgspec.json.encode({"type": "typing", "conversation_id": ID, "on": True})
    assert rpc.signal(data, ACTOR) is not None
    monkeypatch.delitem(access.SEND, "typing")
    assert rpc.signal(data, ACTOR) is None


def test_a_kind_of_channel_without_a_rule_is_like_one_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def followed(session: Session, channel: str) -> list[Any]:
        return session.receive(frame({"id": 9, "subscribe": {"channel": channel}}), 0)

    assert not any(isinstance(effect, bytes) for effect in followed(opened(), f"order:{ID}"))
    monkeypatch.delitem(access.CHANNELS, "order")
    assert replies(followed(opened(), f"order:{ID}")) == replies(followed(opened(), "nothing"))


def test_a_route_cannot_be_written_without_a_rule() -> None:
    with pytest.raises(TypeError, match="rule"):
        endpoint("GET", "/v1/secrets", tag="secrets")  # type: ignore[call-arg]


@pytest.mark.parametrize("rule", Rule)
def test_a_rule_lets_in_exactly_the_roles_that_it_names(rule: Rule) -> None:
    let_in = {role for role in Role if access.admits(rule, (role,))}
    assert let_in == {Rule.OPS: {Role.OPS, Role.ADMIN}, Rule.NOBODY: set()}.get(rule, set(Role))
    assert access.admits(rule, ("emperor", "customer")) == access.admits(rule, ("customer",))
    assert access.admits(rule, ()) == (rule not in access.GUARDED and rule is not Rule.NOBODY)


def test_every_rule_is_said_in_words() -> None:
    assert WHO_MAY.keys() == set(Rule)
    said = {match[1] for match in re.finditer(r"^\| `(\w+)` \| ", DOCS, re.MULTILINE)}
    assert set(Rule) - {Rule.NOBODY} <= said


def test_every_route_is_in_openapi_with_the_rule_and_the_rate_class_that_the_code_has() -> None:
    paths = openapi(ROUTES)["paths"]
    documented = {
        (method.upper(), path, operation.get("x-rule"), operation.get("x-rate"))
        for path, item in paths.items()
        for method, operation in item.items()
    }
    assert documented == {(row.method, row.path, row.rule, row.rate) for row in ROUTES}
    assert not any(row.rule is Rule.NOBODY for row in ROUTES)


def test_every_method_type_and_channel_is_in_asyncapi_with_its_rule_and_its_rate_class() -> None:
    documented = {
        name: (operation.get("x-rule"), operation.get("x-rate")) for name, operation in asyncapi()["operations"].items()
    }
    declared: dict[str, Access] = dict(access.RPC)
    declared |= {f"send.{name}": given for name, given in access.SEND.items()}
    declared |= {f"receive.{name}": given for name, given in access.CHANNELS.items()}
    assert documented == {name: tuple(given) for name, given in declared.items()}
    assert all(access.on_the_wire(given) and given.rate is Rate.BUDGET for given in declared.values())


@pytest.mark.parametrize("name", ["routes", "methods", "commands"])
def test_the_protocols_page_lists_them_all(name: str) -> None:
    assert tables.block(name) in DOCS, "RENOVEASY_WRITE_TRANSCRIPTS=1 and tests/contract/test_transcripts.py write it"


@pytest.mark.parametrize("elapsed_s", [0.0, 0.0003, 0.0016, 0.0099])
def test_when_absence_is_told_says_nothing_of_how_long_it_took_to_find_out(elapsed_s: float) -> None:
    for asked_s in (5_000.0004, 5_000.0123, 71.9999):
        told_s = elapsed_s + absent_in_s(asked_s, asked_s + elapsed_s)
        assert told_s == pytest.approx(absent_in_s(asked_s, asked_s), abs=1e-6)
        assert ABSENT_STEP_S <= told_s <= ABSENT_STEP_S + ABSENT_SPREAD_S


def test_absence_is_told_at_later_and_later_moments_of_their_own() -> None:
    told = {round(0.0125 + absent_in_s(80.0, 80.0125), 6), round(0.0199 + absent_in_s(80.0, 80.0199), 6)}
    assert told == {0.02}
    spread = {absent_in_s(3.0 + micros / 1e6, 3.0 + micros / 1e6) for micros in range(0, 1_000, 50)}
    assert len(spread) == 20
