"""What people say in a conversation, and what the others hear of it."""

from tests.contract.exchanges.stage import Exchange, Stage, exchange
from tests.support.transcripts import Item, Line


def rpc(method: str, **data: object) -> Item:
    return {"rpc": {"method": method, "data": data}}


async def two(stage: Stage) -> tuple[str, Line, Line]:
    """A conversation of Anna and Ben, both of whom follow it."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    channel = f"conversation:{chat}"
    return chat, await stage.following(anna, channel, "anna"), await stage.following(ben, channel, "ben")


@exchange("`message.send`")
async def sending(stage: Stage) -> None:
    """The positive answer means: committed. Everybody who follows the conversation hears it, who wrote it too; the reply and the
    publication may come in either order. `reply_to` is the `message_id` of another message of the conversation."""
    chat, anna, ben = await two(stage)
    first, second = stage.new("message"), stage.new("message")
    await anna.asks(rpc("message.send", conversation_id=chat, id=first, text="On my way 🚲"), more=1)
    await ben.hears()
    await ben.asks(rpc("message.send", conversation_id=chat, id=second, text="Good", reply_to=first), more=1)
    await anna.hears()


@exchange("The same write again")
async def replaying(stage: Stage) -> None:
    """After a lost connection, no answer, or any temporary error: the same `id` with the same content. It has no second effect,
    nobody hears anything, and the answer has the offset and the time of the first one."""
    chat, anna, ben = await two(stage)
    message = rpc("message.send", conversation_id=chat, id=stage.new("message"), text="Is anybody at home?")
    await anna.asks(message, more=1)
    await ben.hears()
    await anna.asks(message)


@exchange("`idempotency_mismatch`")
async def mismatch(stage: Stage) -> None:
    """The same `id` with other content: a bug of the client, and nothing has happened."""
    chat, anna, ben = await two(stage)
    message = stage.new("message")
    await anna.asks(rpc("message.send", conversation_id=chat, id=message, text="At ten"), more=1)
    await ben.hears()
    await anna.asks(rpc("message.send", conversation_id=chat, id=message, text="At eleven"))


@exchange("`message.edit`, `message.react`, `message.delete`")
async def changing(stage: Stage) -> None:
    """Each has an `id` of its own, beside the `message_id` that it is about."""
    chat, anna, ben = await two(stage)
    message = stage.new("message")
    await anna.asks(rpc("message.send", conversation_id=chat, id=message, text="At tne"), more=1)
    await ben.hears()
    for method, data in (
        ("message.edit", {"id": stage.new("edit"), "message_id": message, "text": "At ten"}),
        ("message.react", {"id": stage.new("reaction"), "message_id": message, "emoji": "👍", "on": True}),
        ("message.delete", {"id": stage.new("deletion"), "message_id": message}),
    ):
        await anna.asks(rpc(method, conversation_id=chat, **data), more=1)
        await ben.hears()
    stage.note("Who asks for the stream now finds no text in it any more, but all offsets:")
    await ben.asks({"history": {"channel": f"conversation:{chat}", "limit": 10}})


@exchange("Refusals")
async def refusing(stage: Stage) -> None:
    """The catalogue's code is the `message`, its HTTP status the `code`; `data` has what REST would say beside it."""
    chat, anna, ben = await two(stage)
    (carl,) = await stage.people("carl")
    message = stage.new("message")
    await anna.asks(rpc("message.send", conversation_id=chat, id=message, text="At ten"), more=1)
    await ben.hears()
    await anna.asks(rpc("message.send", conversation_id=chat, id=stage.new("message"), text=" "))
    await anna.asks(rpc("message.send", conversation_id=chat, id="1", text="At ten"))
    await anna.asks(rpc("message.send", conversation_id=chat, id=stage.new("message")))
    stranger = stage.new("message")
    await anna.asks(rpc("message.send", conversation_id=chat, id=stranger, text="Yes", reply_to=stage.new("nothing")))
    await ben.asks(rpc("message.edit", conversation_id=chat, id=stage.new("edit"), message_id=message, text="At nine"))
    line = await stage.online(carl, "carl")
    await line.asks(rpc("message.send", conversation_id=chat, id=stage.new("message"), text="Hello"))


@exchange("`receipt.read` and `receipt.delivered`")
async def receipts(stage: Stage) -> None:
    """By value, without an `id`: the watermark goes forward or stays. One that moves nothing is answered all the same, and nobody
    hears of it. `read_offset` is the member's, `device` and `device_offset` are of the session that said it."""
    chat, anna, ben = await two(stage)
    await anna.asks(rpc("message.send", conversation_id=chat, id=stage.new("message"), text="At ten"), more=1)
    await ben.hears()
    await ben.asks(rpc("receipt.delivered", conversation_id=chat, offset=3), more=1)
    await anna.hears()
    await ben.asks(rpc("receipt.read", conversation_id=chat, offset=3), more=1)
    await anna.hears()
    await ben.asks(rpc("receipt.read", conversation_id=chat, offset=2))
    stage.note("Nobody has read what is not there yet:")
    await ben.asks(rpc("receipt.read", conversation_id=chat, offset=99))


@exchange("`typing`")
async def typing(stage: Stage) -> None:
    """A `send` has no `id` and no answer. What comes of it has no offset, goes to everybody who follows the conversation, and may
    be lost."""
    chat, anna, ben = await two(stage)
    for on in (True, False):
        await anna.says({"send": {"data": {"type": "typing", "conversation_id": chat, "on": on}}})
        await anna.hears()
        await ben.hears()


@exchange("`member.add` and `member.remove`")
async def members(stage: Stage) -> None:
    """Carl follows the conversation from when he is in it until he is taken out: he hears of that, and then the server ends his
    subscription with an `unsubscribe` push, code 2510. Subscribing again tells him that he may not."""
    chat, anna, ben = await two(stage)
    (carl,) = await stage.people("carl")
    channel = f"conversation:{chat}"
    await anna.asks(rpc("member.add", conversation_id=chat, id=stage.new("write"), user_id=carl.id), more=1)
    await ben.hears()
    line = await stage.online(carl, "carl")
    await line.asks({"subscribe": {"channel": channel, "recover": True, "epoch": "", "offset": 0, "flag": 2}})
    await anna.asks(rpc("member.remove", conversation_id=chat, id=stage.new("write"), user_id=carl.id), more=1)
    await ben.hears()
    await line.hears(2)
    await line.asks({"subscribe": {"channel": channel}})


@exchange("`conversation.leave`")
async def leaving(stage: Stage) -> None:
    """Everybody may. The reply says that it is done; the `unsubscribe` push follows the last publication."""
    chat, anna, ben = await two(stage)
    await ben.asks(rpc("conversation.leave", conversation_id=chat, id=stage.new("write")), more=2)
    await anna.hears()


@exchange("Who is blocked")
async def blocked(stage: Stage) -> None:
    """Over REST. In a conversation of two both hear of it, and whom the other has blocked cannot say anything there."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    line = await stage.following(ben, f"conversation:{chat}", "ben")
    await stage.asks_rest(anna, "PUT", f"/v1/blocks/{ben.id}", who="anna")
    await line.hears()
    await line.asks(rpc("message.send", conversation_id=chat, id=stage.new("message"), text="Please answer"))


@exchange("`write.status`")
async def status(stage: Stage) -> None:
    """Did it land? For a write whose outcome is unknown and that is not to be sent again."""
    chat, anna, ben = await two(stage)
    message = stage.new("message")
    await anna.asks(rpc("message.send", conversation_id=chat, id=message, text="At ten"), more=1)
    await ben.hears()
    await anna.asks(rpc("write.status", stream=f"conversation:{chat}", id=message))
    await anna.asks(rpc("write.status", stream=f"conversation:{chat}", id=stage.new("never-sent")))


EXCHANGES: list[Exchange] = [
    sending,
    replaying,
    mismatch,
    changing,
    refusing,
    receipts,
    typing,
    members,
    leaving,
    blocked,
    status,
]
