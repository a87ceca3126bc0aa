"""Following streams: subscriptions, recovery, history, hints."""

import asyncio

from tests.contract.exchanges.stage import Exchange, Person, Stage, exchange


async def say(stage: Stage, chat: str, by: Person, *texts: str) -> None:
    """Messages that are not written down."""
    for text in texts:
        body = {"id": stage.new("message"), "text": text}
        await stage.rest("POST", f"/v1/conversations/{chat}/messages", by, json=body)


@exchange("`subscribe`, from now on")
async def subscribing(stage: Stage) -> None:
    """`offset` is where the stream stands; what comes from now on is pushed, `offset` + 1 first. A conversation begins with one
    `member.joined` for each member, so that this one stands at 2."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    line = await stage.online(anna)
    await line.asks({"subscribe": {"channel": f"conversation:{chat}"}})
    stage.note("Ben writes:")
    await say(stage, chat, ben, "The tiles have come.")
    await line.hears()


@exchange("`subscribe`, with recovery")
async def recovering(stage: Stage) -> None:
    """The client had everything up to 3. The reply's `offset` is the one that was asked about; `publications` come after it.
    Where they do not fit into 256 KiB, the rest follows as pushes."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    await say(stage, chat, ben, "One", "Two", "Three")
    channel = f"conversation:{chat}"
    epoch = await stage.epoch(anna, channel)
    line = await stage.online(anna)
    await line.asks({"subscribe": {"channel": channel, "recover": True, "epoch": epoch, "offset": 3, "flag": 2}})
    stage.note("With nothing missed:")
    again = await stage.online(anna)
    await again.asks({"subscribe": {"channel": channel, "recover": True, "epoch": epoch, "offset": 5, "flag": 2}})


@exchange("`subscribe`, from the very beginning")
async def from_the_beginning(stage: Stage) -> None:
    """The epoch `""` and the offset 0 are the beginning of any stream."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    line = await stage.online(anna)
    request = {"channel": f"conversation:{chat}", "recover": True, "epoch": "", "offset": 0, "flag": 2}
    await line.asks({"subscribe": request})


@exchange("`subscribe`, from a position that does not exist")
async def unknown_epoch(stage: Stage) -> None:
    """With `flag` 2 the answer is error 112: forget what you have of this stream, and take it from the beginning. So it is for an
    offset beyond the stream's end."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    line = await stage.online(anna)
    channel = f"conversation:{chat}"
    await line.asks({"subscribe": {"channel": channel, "recover": True, "epoch": "another", "offset": 1, "flag": 2}})
    stage.note(
        "Without `flag` 2 the subscription stands, from now on, and `recovered` is not there: there is a hole before it."
    )
    await line.asks({"subscribe": {"channel": channel, "recover": True, "epoch": "another", "offset": 1}})


@exchange("`subscribe`, where one may not")
async def not_a_member(stage: Stage) -> None:
    """103 for a stream that one is no member of, and for one that does not exist. 105 for one's own `user:<id>`, which the
    server follows for the client, and for what the connection follows already."""
    anna, ben, carl = await stage.people("anna", "ben", "carl")
    chat, mine = await stage.chat(anna, ben), await stage.chat(carl, ben)
    line = await stage.online(carl)
    for channel in (f"conversation:{chat}", f"order:{stage.new('nothing')}", f"user:{anna.id}", "news"):
        await line.asks({"subscribe": {"channel": channel}})
    await line.asks({"subscribe": {"channel": f"user:{carl.id}"}})
    await line.asks({"subscribe": {"channel": f"conversation:{mine}"}})
    await line.asks({"subscribe": {"channel": f"conversation:{mine}"}})


@exchange("`unsubscribe`")
async def unsubscribing(stage: Stage) -> None:
    """Nothing of the channel comes after the reply. It is no error to unsubscribe from what one does not follow."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    line = await stage.following(anna, f"conversation:{chat}")
    await line.asks({"unsubscribe": {"channel": f"conversation:{chat}"}})
    await say(stage, chat, ben, "Nobody hears this.")
    await line.asks({"unsubscribe": {"channel": f"conversation:{chat}"}})


@exchange("Several commands in one frame")
async def one_frame(stage: Stage) -> None:
    """A line each. Commands about one stream are answered in their order; those about different streams in any. The replies may
    come in one frame or in several."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    line = await stage.online(anna)
    message = {"conversation_id": chat, "id": stage.new("message"), "text": "All at once"}
    await line.says(
        {"subscribe": {"channel": f"conversation:{chat}"}},
        {"rpc": {"method": "message.send", "data": message}},
        {"unsubscribe": {"channel": f"conversation:{chat}"}},
        {"ping": {}},
    )
    answers = await line.take(5)
    for item in answers:
        stage.sheet.item("", item)


@exchange("`history`, forward")
async def history(stage: Stage) -> None:
    """Of a stream that the connection follows, `limit` publications at a time (at most 1,000, and 256 KiB). `since` is where the
    page begins, itself left out; the next page is since its last one. `offset` is where the stream stands. A `limit` of 0,
    or none, asks for the position alone."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    await say(stage, chat, ben, "One", "Two")
    channel = f"conversation:{chat}"
    epoch = await stage.epoch(anna, channel)
    line = await stage.following(anna, channel)
    await line.asks({"history": {"channel": channel}})
    await line.asks({"history": {"channel": channel, "limit": 2}})
    await line.asks({"history": {"channel": channel, "limit": 2, "since": {"epoch": epoch, "offset": 2}}})
    await line.asks({"history": {"channel": channel, "limit": 2, "since": {"epoch": epoch, "offset": 4}}})
    stage.note("Another epoch than the stream's, and a channel that the connection does not follow:")
    await line.asks({"history": {"channel": channel, "limit": 2, "since": {"epoch": "another", "offset": 2}}})
    await line.asks({"history": {"channel": f"user:{anna.id}", "limit": 2}})


@exchange("`history`, backward")
async def history_backward(stage: Stage) -> None:
    """`reverse`: the latest first; with `since`, what came before it."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    await say(stage, chat, ben, "One", "Two")
    channel = f"conversation:{chat}"
    epoch = await stage.epoch(anna, channel)
    line = await stage.following(anna, channel)
    await line.asks({"history": {"channel": channel, "limit": 1, "reverse": True}})
    since = {"epoch": epoch, "offset": 4}
    await line.asks({"history": {"channel": channel, "limit": 1, "reverse": True, "since": since}})


@exchange("Hints on `user:<id>`")
async def hints(stage: Stage) -> None:
    """Every event of a stream is hinted at to its members, who wrote it included; but receipts only to who left them, and only
    `receipt.read`. A hint says where the stream stands now. Here Anna follows nothing. In all other transcripts of this page
    these hints are left out."""
    anna, ben = await stage.people("anna", "ben")
    line = await stage.online(anna, "anna", hints=True)
    chat = await stage.chat(ben, anna)
    await line.hears()
    await say(stage, chat, ben, "Are you there?")
    await line.hears()
    await line.asks({"rpc": {"method": "receipt.read", "data": {"conversation_id": chat, "offset": 3}}}, more=1)


@exchange("`sync`")
async def syncing(stage: Stage) -> None:
    """Where everything stands that the user is part of: the latest 2,000 conversations, and all orders that are not closed. To be
    called once after a reconnect, instead of subscribing to everything."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    await say(stage, chat, ben, "One", "Two")
    order = {
        "id": stage.new("order"),
        "category": "plumbing",
        "title": "A tap",
        "description": "The kitchen tap drips.",
    }
    order["site"] = {"lat": 31.2304, "lon": 121.4737, "address": "1 Long Street"}
    await stage.rest("POST", "/v1/orders", anna, json=order)
    line = await stage.online(anna)
    await line.asks({"rpc": {"method": "sync", "data": {}}})


@exchange("`presence` and `presence_stats`")
async def presence(stage: Stage) -> None:
    """Who follows the channel now, by client; and how many. Only on a channel that the connection follows itself, or on one's
    own `user:<id>`, which lists all of one's connections."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    channel = f"conversation:{chat}"
    await stage.following(ben, channel, "ben")
    line = await stage.online(anna)
    await line.asks({"presence": {"channel": channel}})
    await line.silently({"subscribe": {"channel": channel}})
    await line.asks({"presence": {"channel": channel}})
    await line.asks({"presence_stats": {"channel": channel}})
    await line.asks({"presence": {"channel": f"user:{anna.id}"}})


@exchange("`join` and `leave`")
async def joining(stage: Stage) -> None:
    """To who subscribed with `join_leave`, about everybody, themselves included. A `leave` comes two seconds late."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    channel = f"conversation:{chat}"
    line = await stage.online(anna, "anna")
    await line.asks({"subscribe": {"channel": channel, "join_leave": True}}, more=1)
    bens = await stage.online(ben, "ben")
    await bens.asks({"subscribe": {"channel": channel}})
    await line.hears()
    await bens.asks({"unsubscribe": {"channel": channel}})
    await line.hears()


@exchange("`presence.get`")
async def presence_get(stage: Stage) -> None:
    """Who is online at all, and on which devices. Carl shares no conversation with Anna: he looks like nobody. Afterwards Ben
    hangs up."""
    anna, ben, carl = await stage.people("anna", "ben", "carl")
    await stage.chat(anna, ben)
    bens = await stage.online(ben)
    await stage.online(carl)
    line = await stage.online(anna)
    await asyncio.sleep(0.5)
    await line.asks({"rpc": {"method": "presence.get", "data": {"user_ids": [ben.id, carl.id]}}})
    await bens.hang_up()
    await asyncio.sleep(0.5)
    await line.asks({"rpc": {"method": "presence.get", "data": {"user_ids": [ben.id]}}})


EXCHANGES: list[Exchange] = [
    subscribing,
    recovering,
    from_the_beginning,
    unknown_epoch,
    not_a_member,
    unsubscribing,
    one_frame,
    history,
    history_backward,
    hints,
    syncing,
    presence,
    joining,
    presence_get,
]
