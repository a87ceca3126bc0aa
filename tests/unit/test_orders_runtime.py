"""Orders act by themselves on the real runtime: what the rules set is stored, fires, and is gone."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from actors.kinds import kinds
from domain.aggregate import Account, AccountNeed, OpenOrdersNeed, WorkerProfile
from domain.commands import Actor
from domain.policy import policy_from
from tests.support.runtime import World, eventually, new_id, person
from tests.unit.order_world import SITE

ANNA, BEN = person(), person()
SOON = {
    "no_quote_nudge_ms": [60],
    "quote_window_ms": 1_000,
    "quote_extension_ms": 150,
    "deposit_nudge_ms": [40, 80],
    "deposit_due_ms": 900,
    "deposit_grace_ms": 60,
}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = await World(kinds(b"pepper", policy_from(SOON))).start()
    profile = WorkerProfile(("plumbing",), 31.24, 121.48, 20_000, 10_000, "CNY")
    made.facts.known |= {
        AccountNeed(ANNA.id): Account(ANNA.id, ("customer",)),
        AccountNeed(BEN.id): Account(BEN.id, ("customer", "worker"), profile),
        OpenOrdersNeed(ANNA.id): 0,
    }
    yield made
    await made.stop()


async def opened(world: World) -> str:
    order_id = new_id()
    wish = {"category": "plumbing", "title": "Tap", "description": "The kitchen tap drips all day.", "site": SITE}
    await world.tell("create", ANNA, order_id, kind="order", publish=True, **wish)
    return order_id


async def awarded(world: World) -> str:
    order_id, quote_id = await opened(world), new_id()
    lines = [{"title": "All", "amount": 5_000}]
    quote = await world.tell(
        "submit_quote", BEN, order_id, kind="order", quote_id=quote_id, rev=1, milestones=lines, currency="CNY"
    )
    await world.tell(
        "accept_quote", ANNA, order_id, kind="order", quote_id=quote_id, rev=1, expected_version=quote.offset
    )
    return order_id


def told(world: World, order_id: str) -> list[str]:
    """What has happened: the type of every event, and for reminders their name."""
    bodies = [json.loads(entry.body) for entry in world.store.streams[f"order:{order_id}"]]
    return [body.get("reminder") or body["type"].removeprefix("order.") for body in bodies]


def stored(world: World) -> list[str]:
    return sorted(name for _, name in world.store.reminders)


async def test_an_order_that_nobody_wants_is_said_to_be_so_and_expires(world: World) -> None:
    await world.host()
    order_id = await opened(world)
    assert stored(world) == ["no_quote_nudge", "quote_window"]
    await eventually(lambda: told(world, order_id)[-1] == "expired")
    assert told(world, order_id) == ["created", "published", "no_quote_nudge", "expired"]
    assert stored(world) == []


async def test_a_deposit_is_asked_for_waited_for_and_given_up_once_each(world: World) -> None:
    await world.host()
    order_id = await awarded(world)
    await eventually(lambda: told(world, order_id)[4:] == ["deposit_nudge", "deposit_nudge"])
    await world.tell("start_payment", ANNA, order_id, kind="order", payment_id=new_id(), milestone=1, rail="sandbox")
    await eventually(lambda: told(world, order_id)[-1] == "expired")
    assert told(world, order_id)[4:] == [
        "deposit_nudge", "deposit_nudge", "payment_started", "deposit_due", "reopened", "expired",
    ]  # fmt: skip
    assert stored(world) == []


async def test_what_was_due_while_no_host_was_there_happens_at_the_takeover(world: World) -> None:
    host = await world.host()
    order_id = await awarded(world)
    await world.crash(host)
    await asyncio.sleep(1.0)
    await world.host("host-1")
    await eventually(lambda: told(world, order_id)[-1] == "expired")
    assert "deposit_nudge" in told(world, order_id)
    assert [event for event in told(world, order_id)[4:] if event != "deposit_nudge"] == ["reopened", "expired"]
    assert stored(world) == []


async def test_the_deposit_its_card_and_the_contacts_that_it_reveals_are_one_commit(world: World) -> None:
    await world.host()
    order_id, payment_id = await awarded(world), new_id()
    order = f"order:{order_id}"
    (room,) = [stream for stream in world.store.streams if stream.startswith("conversation:")]
    await world.tell("send", ANNA, room.partition(":")[2], text="call me at 138 0013 8000")
    await world.tell("start_payment", ANNA, order_id, kind="order", payment_id=payment_id, milestone=1, rail="sandbox")
    news = {"payment_id": payment_id, "psp_event_id": "evt-1", "amount": 5_000, "currency": "CNY"}
    await world.tell("deposit_held", Actor("psp", "sandbox"), order_id, kind="order", **news)

    entries = world.store.streams[room]
    posted = [json.loads(entry.body) for entry in entries]
    hidden = next(body for body in posted if body.get("masked"))
    assert (hidden["text"], hidden["masked"]) == ("call me at •••", ["phone"])
    assert [body["type"] for body in posted[-3:]] == ["contacts.revealed", "message.revealed", "message.posted"]
    assert posted[-1]["card"]["type"] == "order.funded"
    assert {entry.at for entry in entries[-3:]} == {world.store.streams[order][-1].at}
