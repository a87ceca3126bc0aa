"""Errors that belong to no stream, limits, and what happens while a part of the platform is away."""

import asyncio
from collections.abc import Sequence

from actors.router import BrokerRouter
from deploy.connections import SystemClock
from domain.commands import Actor, Command, canonical_json
from domain.ports import NoMetrics
from storage.broker import NatsBroker
from tests.contract.exchanges.chat import rpc
from tests.contract.exchanges.stage import Exchange, Stage, exchange, new_id
from tests.support.transcripts import compact

SUBSCRIPTIONS = 512
BURST = 80
MORE = 1_000
"""Even if the budget is full again when they come, more than ten times the burst of them are refused."""


@exchange("Errors of the protocol")
async def protocol_errors(stage: Stage) -> None:
    """104 for a method or a command that there is not. 103 for `publish`: clients say what they have to say by `rpc`. 108 for
    tokens of channels, which there are none of."""
    (anna,) = await stage.people("anna")
    line = await stage.online(anna)
    await line.asks(rpc("message.shout"))
    await line.asks({"shout": {}})
    await line.asks({"publish": {"channel": f"user:{anna.id}", "data": {}}})
    await line.asks({"sub_refresh": {"channel": f"user:{anna.id}", "token": "any"}})


@exchange("Errors over REST")
async def problems(stage: Stage) -> None:
    """`application/problem+json` (RFC 9457). `code` is the word to act upon, `title` and `detail` are for people."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    await stage.asks_rest(anna, "GET", f"/v1/orders/{stage.new('nothing')}")
    await stage.asks_rest(anna, "POST", f"/v1/conversations/{chat}/messages", {"id": stage.new("message"), "text": ""})


@exchange("A subscription too many")
async def too_many_subscriptions(stage: Stage) -> None:
    """A connection has 512 at most, all connections of a user 2,048: then 106. Drop some, or do without: `sync` and hints on
    `user:<id>` say what has moved."""
    anna, ben = await stage.people("anna", "ben")
    chats = [new_id() for _ in range(SUBSCRIPTIONS)]
    await open_all(stage, chats, anna.id, ben.id)
    last = await stage.chat(anna, ben)
    line = await stage.online(anna)
    for start in range(0, SUBSCRIPTIONS, 64):
        some = [{"subscribe": {"channel": f"conversation:{chat}"}} for chat in chats[start : start + 64]]
        await line.send("\n".join(compact(line.numbered(command)) for command in some))
        await line.take(len(some))
    await line.asks({"subscribe": {"channel": f"conversation:{last}"}})


async def open_all(stage: Stage, chats: Sequence[str], *members: str) -> None:
    """Open conversations at their owners, without a request for each."""
    broker = await NatsBroker(stage.parts.environment["RENOVEASY_NATS_URL_REST"], "", "stage", "rest").start()
    router = BrokerRouter(broker, SystemClock(), NoMetrics())
    payload = canonical_json({"member_ids": list(members)})
    opener = Actor("user", members[0], "stage")
    try:
        opening = (Command("conversation", chat, "open", opener, new_id(), payload) for chat in chats)
        await asyncio.gather(*(router.ask(command, 60.0) for command in opening))
    finally:
        await broker.close()


@exchange("Too many requests, and who does not listen")
async def budgets(stage: Stage) -> None:
    """Where rate limits are on, a connection has 20 commands a second, four seconds' worth at once: the 81st of a burst is
    answered 111, and had no effect. Wait a moment, and ask again with the same id. Who goes on regardless, for ten times that
    burst, is closed with 4501."""
    (anna,) = await stage.people("anna")
    line = await stage.online(anna, gateway="budgeted")
    stage.sheet.said("", {"id": 2, "ping": {}})
    stage.sheet.line("", "→", f"(and {BURST} more in the same frame)")
    await line.send("\n".join(compact(line.numbered({"ping": {}})) for _ in range(BURST + 1)))
    answers = await line.take(BURST + 1)
    assert [answer["id"] for answer in answers if "error" in answer] == [BURST + 2]
    stage.sheet.item("", answers[0])
    stage.sheet.line("", "←", f"(and {BURST - 1} more like it)")
    stage.sheet.item("", answers[-1])
    stage.note("On and on:")
    stage.sheet.line("", "→", f"({MORE:,} more)")
    await line.send("\n".join(compact(line.numbered({"ping": {}})) for _ in range(MORE)))
    while isinstance(item := await line.next_item(), dict):
        assert item.get("error", {}).get("code", 111) == 111, item
    stage.sheet.line("", "←", item)


@exchange("While nobody owns the streams", when="last")
async def host_away(stage: Stage) -> None:
    """Commands and subscriptions wait, and then end with 503, `temporary: true`. The outcome of a write is unknown: send the same
    again."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    line = await stage.online(anna)
    for why in ("no answer came", "nobody listens on the subject"):
        stage.names.know(why, "what the last attempt met")
    stage.parts.kill("host-0")
    message = rpc("message.send", conversation_id=chat, id=stage.new("message"), text="Hello?")
    await line.says(message, {"subscribe": {"channel": f"conversation:{chat}"}})
    await line.hears(2)


@exchange("While Redis is away", when="last")
async def redis_away(stage: Stage) -> None:
    """Nobody can say who is there, and a ticket cannot be checked: `connect` is answered 100, `temporary: true`. Access tokens
    work as ever."""
    (anna,) = await stage.people("anna")
    ticket = (await stage.rest("POST", "/v1/auth/ticket", anna))["ticket"]
    stage.names.know(ticket, "ticket")
    stage.valkey.kill()
    line = await stage.dial()
    await line.asks({"connect": {"token": ticket}})
    await line.asks({"connect": {"token": anna.token}})
    await line.asks({"presence": {"channel": f"user:{anna.id}"}})
    await line.asks(rpc("presence.get", user_ids=[anna.id]))


EXCHANGES: list[Exchange] = [protocol_errors, problems, too_many_subscriptions, budgets, host_away, redis_away]
