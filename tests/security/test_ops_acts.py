"""What operators command over the WebSocket is in the audit log, before it happens, as if it had come over REST."""

from typing import Any

import msgspec

from domain.access import Role
from domain.audit import Recorded, Wanted
from domain.ports import DeviceSession, SessionSource, StoreUnavailable
from tests.security.city import City, Line, Person


async def acts_of(city: City, person: Person) -> list[tuple[str, str, str, str, str]]:
    """Every act of theirs that is an operator's, oldest first, without when and where."""
    page = await city.platform.audit.find(Wanted(actor=person.id), None, 100)
    found: list[Recorded] = list(reversed(page.items))
    return [
        (item.act.act, item.act.outcome, item.act.object, item.act.session, item.act.ip)
        for item in found
        if item.act.act.startswith("ops.")
    ]


async def command(line: Line, city: City, order_id: str, name: str, **payload: Any) -> dict[str, Any]:
    data = {"order_id": order_id, "command": name, "command_id": city.new_id(), "payload": payload}
    return await line.rpc("order.command", data)


async def test_an_operators_command_is_written_before_it_happens_and_again_where_it_is_refused(city: City) -> None:
    ops, order_id = await city.person(Role.OPS), city.of[Role.CUSTOMER].ids["order_id"]
    async with ops.line() as line:
        refused = await command(line, city, order_id, "approve_completion")
        assert refused["error"]["message"] == "invalid_transition"
        await command(line, city, order_id, "rate", stars=5)
    over_rest = await ops.ask(
        "POST", f"/v1/orders/{order_id}/commands", {"command": "approve_completion", "command_id": city.new_id()}
    )
    assert over_rest.code == "invalid_transition"
    socket, socket_too, rest, rest_too = await acts_of(city, ops)
    name = "ops.order.approve_completion"
    assert socket == (name, "allowed", f"order:{order_id}", ops.session_id, "127.0.0.1")
    assert socket_too == (name, "invalid_transition", f"order:{order_id}", ops.session_id, "127.0.0.1")
    assert (rest[:4], rest_too[:4]) == (socket[:4], socket_too[:4])


async def test_a_command_that_succeeds_is_one_row_and_one_that_cannot_be_written_does_not_happen(city: City) -> None:
    ops = await city.person(Role.OPS)
    mine = await city.belongings(Role.CUSTOMER)
    order_id, audit = mine.ids["order_id"], city.platform.audit

    class Away:
        async def write(self, act: object) -> None:
            raise StoreUnavailable("the audit log is away")

    acts = city._gateway._board.ops_acts
    assert acts is not None
    async with ops.line() as line:
        acts._audit = Away()  # type: ignore[assignment]
        try:
            lost = await command(line, city, order_id, "cancel", reason="fraud")
        finally:
            acts._audit = audit
        assert lost["error"]["message"] == "unavailable"
        assert (await mine.owner.must("GET", f"/v1/orders/{order_id}"))["state"] != "cancelled"
        done = await command(line, city, order_id, "cancel", reason="fraud")
        assert "error" not in done, done
    assert [act[:2] for act in await acts_of(city, ops)] == [("ops.order.cancel", "allowed")]


async def test_who_becomes_an_operator_while_connected_is_written_from_then_on_and_customers_never_are(
    city: City,
) -> None:
    person, mine = await city.person(Role.CUSTOMER), await city.belongings(Role.CUSTOMER)
    order_id = mine.ids["order_id"]
    async with person.line() as line, mine.owner.line() as owner:
        await command(line, city, order_id, "approve_completion")
        assert await acts_of(city, person) == []
        await city.platform.accounts.grant(person.id, "ops")
        await command(line, city, order_id, "approve_completion")
        assert [act[1] for act in await acts_of(city, person)] == ["allowed", "invalid_transition"]
        await command(owner, city, order_id, "cancel", reason="changed my mind")
    assert await acts_of(city, mine.owner) == []


async def test_an_operator_without_a_second_factor_commands_no_order(city: City) -> None:
    ops, mine = await city.person(Role.OPS), await city.belongings(Role.CUSTOMER)
    order_id = mine.ids["order_id"]
    acts = city._gateway._board.ops_acts
    assert acts is not None
    sessions, acts._second_factor = acts._sessions, True
    try:
        async with ops.line() as line, mine.owner.line() as owner:
            refused = await command(line, city, order_id, "cancel", reason="fraud")
            assert (refused["error"]["code"], refused["error"]["message"]) == (401, "step_up_required")
            assert await acts_of(city, ops) == []
            assert (await mine.owner.must("GET", f"/v1/orders/{order_id}"))["state"] != "cancelled"
            acts._sessions = Verified(sessions, city.platform.clock.now_ms())
            done = await command(line, city, order_id, "cancel", reason="fraud")
            assert "error" not in done, done
            theirs = await command(owner, city, order_id, "cancel", reason="changed my mind")
            assert theirs["error"]["message"] == "invalid_transition", "who is no operator needs none"
    finally:
        acts._sessions, acts._second_factor = sessions, False


class Verified:
    """Sessions that have all been verified by a second factor at that time."""

    def __init__(self, sessions: SessionSource, at: int) -> None:
        self._sessions, self._at = sessions, at

    async def get(self, session_id: str) -> DeviceSession | None:
        found = await self._sessions.get(session_id)
        return None if found is None else msgspec.structs.replace(found, second_factor_at=self._at)
