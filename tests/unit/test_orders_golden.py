"""Orders as former releases have written them still read the same, and go on.

`test_orders_golden_<n>.json` holds log bodies and snapshots as release <n> wrote them; a file is added, never changed.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from domain.order_events import chain
from domain.order_state import OrderState
from domain.order_turn import held_keys
from domain.times import DAY_MS, parse_rfc3339
from tests.unit.order_world import ORDER, World, make_id

FILES = sorted(Path(__file__).parent.glob("test_orders_golden_*.json"))
HISTORIES = {
    f"{path.stem[-1]} {name}": history for path in FILES for name, history in json.loads(path.read_text()).items()
}


def world_of(state: OrderState) -> World:
    world = World()
    world.state = state
    world.now = state.updated_at
    world.claims = held_keys(state, world.rules.policy)
    return world


def from_snapshot(name: str) -> World:
    return world_of(World().rules.decode_state(json.dumps(HISTORIES[name]["snapshot"]).encode()))


@pytest.mark.parametrize("name", HISTORIES)
def test_an_old_history_gives_the_state_of_its_snapshot(name: str) -> None:
    world, previous = World(), ""
    body: dict[str, Any]
    for body in HISTORIES[name]["events"]:
        assert chain(previous, body) == body["hash"]
        previous = body["hash"]
        event = world.rules.decode_event(json.dumps(body).encode())
        assert json.loads(world.rules.encode_event(event)) == body
        world.state = world.rules.evolve(world.state, event, world.state.version + 1)
    assert world.state == from_snapshot(name).state
    assert world.state.version == len(HISTORIES[name]["events"])
    assert world.rules.reminders(world.state) == world.rules.reminders(from_snapshot(name).state)


@pytest.mark.parametrize("name", [name for name in HISTORIES if name.startswith("1 ")])
def test_orders_from_before_there_were_timers_have_none(name: str) -> None:
    world = from_snapshot(name)
    assert (world.standing(), world.seen("anna")["timers"]) == ([], [])


def test_an_old_order_gets_its_timers_with_the_next_event_that_sets_some() -> None:
    world = from_snapshot("1 open")
    world.quote("ben", 7, rev=7)
    world.do("anna", "accept_quote", world.state.version, quote_id=make_id(0x2007), rev=7)
    assert set(world.timers()) == {"deposit_nudge", "deposit_due"}
    world.wait(DAY_MS)
    assert (world.state.state, world.timers()) == ("open", {"quote_window": DAY_MS})


def test_old_orders_go_on_by_hand() -> None:
    world = from_snapshot("1 submitted")
    world.do("system", "approve_completion")
    approved_at = parse_rfc3339(world.events[-1].at)
    assert world.state.rating_ends == approved_at + 14 * DAY_MS
    cancelled = from_snapshot("1 turned")
    (dispute,) = cancelled.state.disputes[-1:]
    cancelled.do("system", "dispute_default", dispute_id=dispute.id)
    assert (cancelled.state.holds, cancelled.state.id) == ((), ORDER)
