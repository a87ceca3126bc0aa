"""How connections begin, live and end."""

import asyncio

from tests.contract.exchanges.stage import Exchange, Stage, exchange
from tests.support.crowd import log_in

RUBBISH = "not.a.token"
PHONE = "+8613900000001"


@exchange("Logging in")
async def logging_in(stage: Stage) -> None:
    """Over REST, before anything else. The code comes by SMS. The access token is good for 15 minutes; the refresh token gives
    a new pair, once, and for 30 days. `id` names the device to the user alone; the platform makes a session of each login."""
    await stage.asks_rest(None, "POST", "/v1/auth/otp", {"phone": PHONE})
    (item, *_) = (await stage.rest("GET", "/dev/outbox", params={"to": PHONE}))["items"]
    device = {"id": "anna-1", "name": "Anna's phone", "platform": "ios"}
    code = stage.names.know(item["code"], "code")
    verify = {"phone": PHONE, "code": code, "device": device}
    pair = await stage.asks_rest(None, "POST", "/v1/auth/otp/verify", verify, name="anna")
    await stage.asks_rest(None, "POST", "/v1/auth/refresh", {"refresh_token": pair["refresh_token"]}, name="anna")


@exchange("The first command")
async def connecting(stage: Stage) -> None:
    """`connect` comes first. `data` is the client's own affair, but for `handover`. `client` names this connection to
    others, `node` the gateway. The server follows `user:<id>` for the client, and sends a ping every `ping` seconds.
    `ttl` is for how many seconds the token is still good: send `refresh` before."""
    (anna,) = await stage.people("anna")
    line = await stage.dial()
    await line.asks({"connect": {"token": anna.token, "data": {"device_id": "phone"}}})


@exchange("A token that has expired")
async def expired_token(stage: Stage) -> None:
    """109: get a fresh one and say `connect` again, on this connection or on a new one."""
    (anna,) = await stage.people("anna")
    (old,) = await log_in(stage.parts, [anna.id], life_s=-3600)
    stage.names.know(old, "expired-token-of-anna")
    line = await stage.dial()
    await line.asks({"connect": {"token": old}})
    await line.asks({"connect": {"token": anna.token}})


@exchange("A token that is none")
async def rubbish_token(stage: Stage) -> None:
    """No reply: the connection is closed with 3500. Do not come back with this token; log in again."""
    line = await stage.dial()
    await line.says({"connect": {"token": RUBBISH}})
    await line.ends()


@exchange("Commands before `connect`")
async def out_of_order(stage: Stage) -> None:
    """3501: a bug of the client. What comes *behind* `connect`, even in the same frame, waits for its answer."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    early = await stage.dial()
    await early.says({"subscribe": {"channel": f"conversation:{chat}"}})
    await early.ends()
    stage.note("In one frame with `connect`, a line each:")
    line = await stage.dial()
    await line.says({"connect": {"token": anna.token}}, {"subscribe": {"channel": f"conversation:{chat}"}})
    await line.hears(2)


@exchange("What is not the protocol")
async def not_the_protocol(stage: Stage) -> None:
    """A frame that is not JSON, or nested deeper than 32 levels, ends the connection with 3501; one of more than 64 KiB ends it
    with 1009, by the rules of WebSockets (RFC 6455)."""
    (anna,) = await stage.people("anna")
    line = await stage.online(anna)
    stage.sheet.line("", "→", "Hello?")
    await line.send("Hello?")
    await line.ends()
    large = await stage.online(anna)
    stage.sheet.line("", "→", "(65,537 bytes)")
    await large.send("x" * 65_537)
    await large.ends()


@exchange("Ping and pong", when="slow")
async def pinging(stage: Stage) -> None:
    """`{}` from the server is a ping; answer it with `{}` at once. The first one comes `ping` seconds after `connect`. Where
    nothing at all comes for 10 s more than that, the connection is dead: close it and come back."""
    (anna,) = await stage.people("anna")
    line = await stage.online(anna, pings=True)
    await line.hears()
    await line.says({})
    stage.note("A client may ask by itself whether the other end is there:")
    await line.asks({"ping": {}})


@exchange("No pong", when="slow")
async def no_pong(stage: Stage) -> None:
    """Ten seconds after a ping without a pong the server hangs up: 3012, come back."""
    (anna,) = await stage.people("anna")
    line = await stage.online(anna, pings=True)
    await line.hears()
    await line.ends()


@exchange("Saying nothing", when="slow")
async def saying_nothing(stage: Stage) -> None:
    """Who does not say `connect` within 10 s is closed with 3502."""
    line = await stage.dial()
    stage.sheet.line("", "→", "(nothing)")
    await line.ends()


@exchange("`refresh`")
async def refreshing(stage: Stage) -> None:
    """With a fresh access token of the same device session, before `ttl` is over."""
    (anna,) = await stage.people("anna")
    line = await stage.online(anna)
    pair = await stage.rest("POST", "/v1/auth/refresh", json={"refresh_token": anna.refresh_token})
    stage.names.know(pair["access_token"], "fresh-token-of-anna")
    await line.asks({"refresh": {"token": pair["access_token"]}})


@exchange("`refresh` with a token that does not do")
async def refreshing_in_vain(stage: Stage) -> None:
    """An expired one ends the connection with 3005, which says: come back with a fresh one. One of another user or device
    ends it with 3500."""
    anna, ben = await stage.people("anna", "ben")
    (old,) = await log_in(stage.parts, [anna.id], life_s=-3600)
    stage.names.know(old, "expired-token-of-anna")
    for token in (old, ben.token):
        line = await stage.online(anna)
        await line.says({"refresh": {"token": token}})
        await line.ends()


@exchange("Not refreshing", when="slow")
async def not_refreshing(stage: Stage) -> None:
    """A connection outlives its token by 25 s; then 3005."""
    (anna,) = await stage.people("anna")
    (token,) = await log_in(stage.parts, [anna.id], life_s=1)
    stage.names.know(token, "token-that-expires-in-a-second")
    line = await stage.dial()
    await line.says({"connect": {"token": token}})
    (told,) = await line.take()
    told["connect"]["ttl"] = 1
    stage.sheet.item("", told)
    await line.ends()


@exchange("Logging out")
async def logging_out(stage: Stage) -> None:
    """Whatever ends a device session (`POST /v1/auth/logout`, `DELETE /v1/auth/sessions/{id}`, a refresh token used twice)
    closes its connections with 4500. Its tokens are worth nothing from then on. The user's other devices are told."""
    (anna,) = await stage.people("anna")
    tablet = await stage.person("anna", anna.phone, "tablet")
    phones, tablets = await stage.online(anna, "phone"), await stage.online(tablet, "tablet")
    await stage.asks_rest(anna, "POST", "/v1/auth/logout", {}, "phone")
    await tablets.hears()
    await phones.ends()
    again = await stage.dial("phone")
    await again.says({"connect": {"token": anna.token}})
    await again.ends()


@exchange("A connection too many")
async def too_many(stage: Stage) -> None:
    """A user has 20 connections on one gateway at most: one more, and the oldest is closed with 3504."""
    (anna,) = await stage.people("anna")
    first = await stage.online(anna, "1st")
    for _ in range(19):
        await stage.online(anna)
    stage.note("The 21st connects:")
    line = await stage.dial("21st")
    await line.says({"connect": {"token": anna.token}})
    await line.hears()
    await first.ends()


@exchange("A gateway that is replaced", when="last")
async def draining(stage: Stage) -> None:
    """Ben's client did not ask for a handover: 4001, and it comes back after a random part of 2 s. Anna's did: she is told
    first, stands on the next gateway from where she is, and closes the first connection herself."""
    anna, ben = await stage.people("anna", "ben")
    chat = await stage.chat(anna, ben)
    channel = f"conversation:{chat}"
    old = await stage.dial("anna, 1st", "leaving")
    await old.says({"connect": {"token": anna.token, "data": {"handover": True}}})
    (told,) = await old.take()
    leaving = told["connect"]["node"]
    stage.names.know(leaving, "node-that-is-replaced")
    stage.sheet.item("anna, 1st", told)
    await old.asks({"subscribe": {"channel": channel}})
    bens = await stage.online(ben, "ben", "leaving")
    draining = asyncio.create_task(stage.parts.stop("gateway-2"))
    await bens.ends()
    await old.hears()
    new = await stage.dial("anna, 2nd")
    (told,) = [await new.silently({"connect": {"token": anna.token, "data": {"handover": True}}})]
    stage.note("The second connection, to another gateway:")
    stage.sheet.said("anna, 2nd", {"id": 1, "connect": {"token": anna.token, "data": {"handover": True}}})
    stage.sheet.item("anna, 2nd", told)
    epoch = await stage.epoch(anna, channel)
    await new.asks({"subscribe": {"channel": channel, "recover": True, "epoch": epoch, "offset": 2, "flag": 2}})
    stage.note("Now she closes the first one.")
    await old.hang_up()
    await draining


EXCHANGES: list[Exchange] = [
    logging_in,
    connecting,
    expired_token,
    rubbish_token,
    out_of_order,
    not_the_protocol,
    pinging,
    no_pong,
    saying_nothing,
    refreshing,
    refreshing_in_vain,
    not_refreshing,
    logging_out,
    too_many,
    draining,
]
