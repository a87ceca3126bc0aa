"""Commands to orders, and what an order's conversation hides until the deposit is held."""

import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from domain.times import rfc3339
from tests.contract.exchanges.chat import rpc
from tests.contract.exchanges.stage import Exchange, Person, Stage, exchange
from tests.support.transcripts import Item

SITE = {"lat": 31.2304, "lon": 121.4737, "address": "1 Long Street"}
JOB = {"category": "plumbing", "title": "A tap", "description": "The kitchen tap has been dripping.", "site": SITE}
TRADE = {
    "skills": ["plumbing"],
    "base": {"lat": 31.22, "lon": 121.47},
    "radius_m": 30_000,
    "hourly_rate": {"amount": 12_000, "currency": "CNY"},
    "bio": "Twelve years in the trade.",
}
QUARTER_S = 900


def command(stage: Stage, order: str, name: str, version: int | None = None, **payload: object) -> Item:
    data: Item = {"order_id": order, "command": name, "command_id": stage.new("command")}
    if version is not None:
        data["expected_version"] = version
    return rpc("order.command", **data, **({"payload": payload} if payload else {}))


async def do(stage: Stage, by: Person, order: str, name: str, version: int | None = None, **payload: object) -> Item:
    """A command that is not written down; the order afterwards."""
    said = command(stage, order, name, version, **payload)["rpc"]["data"]
    said.pop("order_id")
    done: Item = (await stage.rest("POST", f"/v1/orders/{order}/commands", by, json=said))["order"]
    return done


class Deal(NamedTuple):
    anna: Person
    ben: Person
    order: str
    chat: str


async def awarded(stage: Stage) -> Deal:
    """Anna has accepted Ben's quote."""
    anna, ben = await stage.people("anna", "ben")
    await stage.rest("PUT", "/v1/me/worker", ben, json=TRADE)
    order = stage.new("order")
    await stage.rest("POST", "/v1/orders", anna, json={"id": order, **JOB, "publish": True})
    quote = stage.new("quote")
    lines = [{"title": "Parts", "amount": 3_000}, {"title": "Work", "amount": 9_000}]
    quoted = await do(stage, ben, order, "submit_quote", quote_id=quote, rev=1, milestones=lines, currency="CNY")
    done = await do(stage, anna, order, "accept_quote", quoted["version"], quote_id=quote, rev=1)
    return Deal(anna, ben, order, stage.names.number(done["conversation_id"], "chat"))


async def pay(stage: Stage, deal: Deal) -> None:
    payment = {"id": stage.new("payment"), "milestone": 1, "rail": "sandbox"}
    await stage.rest("POST", f"/v1/orders/{deal.order}/payments", deal.anna, json=payment)


@exchange("`order.command`")
async def publishing(stage: Stage) -> None:
    """An order is made over REST, and then followed and commanded over the WebSocket. `version` is the stream's offset. The reply
    has the order as the caller may see it now, and the command's events."""
    (anna,) = await stage.people("anna")
    order = stage.new("order")
    await stage.asks_rest(anna, "POST", "/v1/orders", {"id": order, **JOB})
    line = await stage.online(anna)
    await line.asks({"subscribe": {"channel": f"order:{order}"}})
    publish = command(stage, order, "publish")
    await line.asks(publish, more=1)
    stage.note("The same command again:")
    await line.asks(publish)


@exchange("`version_conflict` and `invalid_transition`")
async def conflicts(stage: Stage) -> None:
    """With `expected_version` a command is refused if the order has moved on meanwhile; without, if its state does not allow it.
    `current` is what the order is now, `allowed_commands` what the caller may do instead."""
    (anna,) = await stage.people("anna")
    order = stage.new("order")
    await stage.rest("POST", "/v1/orders", anna, json={"id": order, **JOB, "publish": True})
    line = await stage.online(anna)
    await line.asks(command(stage, order, "cancel", 1))
    await line.asks(command(stage, order, "publish"))
    stage.note("A command that there is not, and an order of somebody else:")
    await line.asks(command(stage, order, "paint"))
    await line.asks(command(stage, stage.new("nothing"), "publish"))


@exchange("A masked message and its reveal")
async def masking(stage: Stage) -> None:
    """In an order's conversation, before the deposit is held. Then the deposit is paid; a card of the order follows what it
    reveals."""
    deal = await awarded(stage)
    channel = f"conversation:{deal.chat}"
    line = await stage.following(deal.ben, channel)
    text = "Call me: 138 0013 8000"
    await line.asks(rpc("message.send", conversation_id=deal.chat, id=stage.new("message"), text=text), more=1)
    stage.note("Anna pays:")
    await pay(stage, deal)
    await line.hears(4)


@exchange("`fix` and positions")
async def positions(stage: Stage) -> None:
    """While the worker is on the way their device sends where it is, a few fixes at once after a stretch without a network. Who
    follows the order hears positions, at most one a second; they have no offset."""
    deal = await awarded(stage)
    await pay(stage, deal)
    visit, now_s = stage.new("visit"), time.time()
    start = datetime.fromtimestamp((now_s // QUARTER_S + 12) * QUARTER_S, UTC)
    begins, ends = (rfc3339(int(each.timestamp() * 1000)) for each in (start, start + timedelta(hours=2)))
    await do(stage, deal.ben, deal.order, "propose_slot", visit_id=visit, start=begins, end=ends)
    await do(stage, deal.anna, deal.order, "confirm_slot", visit_id=visit)
    await do(stage, deal.ben, deal.order, "start_trip", visit_id=visit, fix=fix(31.2104, now_s - 5))
    annas = await stage.following(deal.anna, f"order:{deal.order}", "anna")
    bens = await stage.online(deal.ben, "ben")
    await bens.says({"send": {"data": {"type": "fix", "order_id": deal.order, "fixes": [fix(31.2105, now_s)]}}})
    await annas.hears()


def fix(lat: float, at_s: float) -> Item:
    return {"at": rfc3339(int(at_s * 1000)), "lat": lat, "lon": 121.4737, "accuracy_m": 8.0}


EXCHANGES: list[Exchange] = [publishing, conflicts, masking, positions]
