"""The unmodified `centrifuge-python` client against a gateway on a real socket."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from centrifuge import (
    Client,
    ClientEventHandler,
    ClientState,
    ReplyError,
    StreamPosition,
    SubscriptionEventHandler,
    SubscriptionState,
)

from domain.errors import Code, Refusal
from storage.broker import NatsBroker
from tests.support.fake_platform import CountingMetrics, FakePlatform
from tests.support.gateways import gateway_over
from tests.support.servers import Nats

ALICE = "0190a0a0-0000-7000-8000-00000000000a"
BOB = "0190a0a0-0000-7000-8000-00000000000b"
CONVERSATION = "0190a0a0-0000-7000-8000-0000000000c1"
ORDER = "0190a0a0-0000-7000-8000-0000000000d1"
CHAT, JOB = f"conversation:{CONVERSATION}", f"order:{ORDER}"


def new_id() -> str:
    return str(uuid.uuid4())


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


class Recorder(ClientEventHandler, SubscriptionEventHandler):
    """Keeps what happens, of a client or of a subscription."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def of(self, name: str) -> list[Any]:
        return [ctx for event, ctx in self.events if event == name]

    @property
    def offsets(self) -> list[int]:
        return [ctx.pub.offset for ctx in self.of("publication")]

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        events = self.events

        async def note(ctx: Any) -> None:
            events.append((name[3:], ctx))

        return note


class House:
    """A platform with a gateway in front, and what a test opened on it."""

    def __init__(self, platform: FakePlatform, **settings: Any) -> None:
        self.platform = platform
        self.metrics = CountingMetrics()
        self.server = gateway_over(platform, self.metrics, **settings)
        self.clients: list[Client] = []
        self.port = 0

    async def restart(self) -> None:
        await self.server.stop()
        self.server = gateway_over(self.platform, self.metrics, port=self.port)
        await self.server.start()

    def client(self, user: str = ALICE, *, token: str | None = None, **options: Any) -> tuple[Client, Recorder]:
        seen = Recorder()
        client = Client(
            f"ws://127.0.0.1:{self.port}/connection/websocket",
            events=seen,
            token=self.platform.token(user, f"sid-{user[-1]}") if token is None else token,
            min_reconnect_delay=0.01,
            max_reconnect_delay=0.05,
            **options,
        )
        self.clients.append(client)
        return client, seen

    async def connected(self, user: str = ALICE, **options: Any) -> tuple[Client, Recorder]:
        client, seen = self.client(user, **options)
        await client.connect()
        await client.ready(5)
        return client, seen

    async def subscribed(self, client: Client, channel: str = CHAT) -> tuple[Any, Recorder]:
        seen = Recorder()
        sub = client.new_subscription(channel, events=seen, min_resubscribe_delay=0.01, max_resubscribe_delay=0.05)
        await sub.subscribe()
        await sub.ready(5)
        return sub, seen


Open = Callable[..., Any]


@pytest.fixture
async def open_house() -> AsyncIterator[Open]:
    houses: list[House] = []

    async def build(broker: Any = None, **settings: Any) -> House:
        platform = FakePlatform(broker)
        platform.create(CHAT, ALICE, BOB)
        platform.create(JOB, ALICE)
        house = House(platform, **settings)
        house.port = await house.server.start()
        houses.append(house)
        return house

    yield build
    for house in houses:
        for client in house.clients:
            await client.disconnect()
        await house.server.stop()


async def test_connecting_subscribes_to_the_callers_own_hints(open_house: Open) -> None:
    house = await open_house()
    client, seen = await house.connected()
    assert [ctx.channel for ctx in seen.of("subscribed")] == [f"user:{ALICE}"]
    await house.platform.hint(ALICE, {"type": "offer", "order_id": ORDER})
    await house.platform.hint(BOB, {"type": "offer"})
    await until(lambda: seen.of("publication"))
    (hint,) = seen.of("publication")
    assert (hint.channel, hint.pub.data["type"], hint.pub.offset) == (f"user:{ALICE}", "offer", 0)
    assert client.state is ClientState.CONNECTED


async def test_a_bad_token_ends_the_client_for_good(open_house: Open) -> None:
    house = await open_house()
    client, seen = house.client(token="rubbish")
    await client.connect()
    await until(lambda: seen.of("disconnected"))
    assert seen.of("disconnected")[0].code == 3500
    assert client.state is ClientState.DISCONNECTED


async def test_an_expired_token_is_replaced_by_a_fresh_one(open_house: Open) -> None:
    house = await open_house()

    async def get_token() -> str:
        return house.platform.token(ALICE, "sid-a")

    client, seen = await house.connected(token=house.platform.token(ALICE, "sid-a", -5), get_token=get_token)
    assert [ctx.error.code for ctx in seen.of("error")] == [109]
    assert client.state is ClientState.CONNECTED


async def test_a_connection_lives_past_its_token_only_by_refresh(open_house: Open) -> None:
    house = await open_house(expiry_grace_s=0.4)
    fetched = []

    async def get_token() -> str:
        fetched.append(1)
        return house.platform.token(ALICE, "sid-a", 1.2)

    refreshing, kept = await house.connected(token="", get_token=get_token)
    _, lost = await house.connected(BOB, token=house.platform.token(BOB, "sid-b", 1.2))
    await until(lambda: lost.of("connecting")[1:])
    assert lost.of("connecting")[1].code == 3005
    await until(lambda: len(fetched) >= 3)
    assert refreshing.state is ClientState.CONNECTED
    assert len(kept.of("connected")) == 1


async def test_a_refresh_for_somebody_else_is_refused(open_house: Open) -> None:
    house = await open_house()
    tokens = [house.platform.token(ALICE, "sid-a", 1.1), house.platform.token(BOB, "sid-b")]

    async def get_token() -> str:
        return tokens.pop(0)

    _, seen = await house.connected(token="", get_token=get_token)
    await until(lambda: seen.of("disconnected"))
    assert seen.of("disconnected")[0].code == 3500


async def test_a_refresh_with_an_expired_token_lets_the_client_come_back_with_a_fresh_one(open_house: Open) -> None:
    house = await open_house()
    tokens = [house.platform.token(ALICE, "sid-a", life_s) for life_s in (1.1, -5, -5, 900)]

    async def get_token() -> str:
        return tokens.pop(0)

    client, seen = await house.connected(token="", get_token=get_token)
    await until(lambda: len(seen.of("connected")) == 2)
    assert [ctx.code for ctx in seen.of("connecting")] == [0, 3005]
    assert client.state is ClientState.CONNECTED


async def test_a_subscriber_hears_every_event_with_its_offset(open_house: Open) -> None:
    house = await open_house()
    await house.platform.post(CHAT, {"type": "message.posted", "text": "before"})
    client, _ = await house.connected()
    _, seen = await house.subscribed(client)
    (ctx,) = seen.of("subscribed")
    assert (ctx.positioned, ctx.recoverable, ctx.recovered) == (True, True, False)
    assert ctx.stream_position == StreamPosition(1, "e1")
    await house.platform.post(
        CHAT, {"type": "message.posted", "text": "你好\n"}, {"type": "message.posted", "text": "b"}
    )
    await until(lambda: len(seen.offsets) == 2)
    assert seen.offsets == [2, 3]
    assert seen.of("publication")[0].pub.data["text"] == "你好\n"


async def test_what_may_not_be_seen_answers_like_what_does_not_exist(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected(BOB)
    answers = []
    for channel in (JOB, f"order:{new_id()}", "order:nonsense", "nonsense", f"user:{ALICE}", ""):
        seen = Recorder()
        sub = client.new_subscription(channel, events=seen)
        await sub.subscribe()
        await until(lambda seen=seen: seen.of("unsubscribed"))
        answers.append((seen.of("unsubscribed")[0].code, seen.of("unsubscribed")[0].reason))
        assert sub.state is SubscriptionState.UNSUBSCRIBED
    assert set(answers) == {(103, "permission denied")}


async def test_an_owner_that_is_away_for_a_moment_does_not_end_a_subscription(open_house: Open) -> None:
    house = await open_house()
    house.platform.refuse = Refusal(Code.UNAVAILABLE)
    client, _ = await house.connected()
    seen = Recorder()
    sub = client.new_subscription(CHAT, events=seen, min_resubscribe_delay=0.01)
    await sub.subscribe()
    await until(lambda: seen.of("error"))
    assert seen.of("error")[0].error.message == "unavailable"
    house.platform.refuse = None
    await sub.ready(5)


async def test_rpc_writes_and_the_same_id_has_no_second_effect(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected()
    data = {"conversation_id": CONVERSATION, "id": new_id(), "text": "hello"}
    results = [(await client.rpc("message.send", data)).data]
    results += [answer.data for answer in await asyncio.gather(*(client.rpc("message.send", data) for _ in range(19)))]
    assert {(result["offset"], result["at"]) for result in results} == {(1, results[0]["at"])}
    assert [result["replayed"] for result in results] == [False] + [True] * 19
    assert results[0]["at"].endswith("Z")
    status = await client.rpc("write.status", {"stream": CHAT, "id": data["id"]})
    assert status.data == {"known": True, "offset": 1}
    assert (await client.rpc("write.status", {"stream": CHAT, "id": new_id()})).data == {"known": False}


async def test_rpc_covers_orders_receipts_and_sync(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected()
    data = {"order_id": ORDER, "command": "publish", "command_id": new_id(), "payload": {"note": "now"}}
    result = (await client.rpc("order.command", data)).data
    assert result["order"] == {"id": ORDER, "state": "open"}
    assert (result["events"][0]["offset"], result["events"][0]["type"], result["replayed"]) == (
        1,
        "order.publish",
        False,
    )
    assert (await client.rpc("receipt.read", {"conversation_id": CONVERSATION, "offset": 3})).data == {}
    assert (await client.rpc("sync", {})).data == {
        "conversations": [{"id": CONVERSATION, "offset": 1, "read_offset": 0, "unread": 0}],
        "orders": [{"id": ORDER, "offset": 1, "state": "open"}],
    }
    command = house.platform.asked[-1]
    assert (command.name, command.command_id, command.payload) == ("receipt.read", "", b'{"offset":3}')


@pytest.mark.parametrize(
    ("method", "data", "code", "message"),
    [
        ("no.such", {}, 104, "method not found"),
        ("message.send", {"conversation_id": new_id(), "id": new_id(), "text": "x"}, 404, "not_found"),
        ("message.send", {"conversation_id": "../etc", "id": new_id(), "text": "x"}, 404, "not_found"),
        ("message.send", {"conversation_id": CONVERSATION, "id": "7", "text": "x"}, 422, "invalid"),
        ("message.send", {"conversation_id": CONVERSATION, "id": new_id(), "text": 5}, 422, "invalid"),
        ("message.send", [1, 2], 422, "invalid"),
        ("order.command", {"order_id": ORDER, "command": 5, "command_id": new_id()}, 422, "invalid"),
        (
            "order.command",
            {"order_id": ORDER, "command": "forbidden_now", "command_id": new_id()},
            409,
            "invalid_transition",
        ),
        ("write.status", {"stream": f"user:{ALICE}", "id": new_id()}, 404, "not_found"),
    ],
)
async def test_rpc_errors_carry_the_catalogue(
    open_house: Open, method: str, data: Any, code: int, message: str
) -> None:
    house = await open_house()
    client, _ = await house.connected()
    with pytest.raises(ReplyError) as caught:
        await client.rpc(method, data)
    assert (caught.value.code, caught.value.message, caught.value.temporary) == (code, message, False)


async def test_an_unknown_outcome_may_be_asked_again(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected()
    house.platform.refuse = Refusal(Code.UNAVAILABLE)
    with pytest.raises(ReplyError) as caught:
        await client.rpc("message.send", {"conversation_id": CONVERSATION, "id": new_id(), "text": "x"})
    assert (caught.value.code, caught.value.message, caught.value.temporary) == (503, "unavailable", True)


async def test_what_is_not_offered_says_so(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected()
    sub, _ = await house.subscribed(client)
    for call, code in ((sub.presence(), 108), (sub.presence_stats(), 108), (sub.publish({"a": 1}), 103)):
        with pytest.raises(ReplyError) as caught:
            await call
        assert caught.value.code == code


async def test_history_pages_both_ways(open_house: Open) -> None:
    house = await open_house()
    await house.platform.post(CHAT, *({"n": n} for n in range(1, 8)))
    client, _ = await house.connected()
    with pytest.raises(ReplyError, match="permission denied"):
        await client.history(CHAT, limit=2)
    sub, _ = await house.subscribed(client)

    async def page(**options: Any) -> list[int]:
        result = await sub.history(**options)
        assert (result.offset, result.epoch) == (7, "e1")
        return [pub.offset for pub in result.publications]

    assert await page(limit=3) == [1, 2, 3]
    assert await page(limit=3, since=StreamPosition(3, "e1")) == [4, 5, 6]
    assert await page(limit=3, reverse=True) == [7, 6, 5]
    assert await page(limit=3, since=StreamPosition(5, "e1"), reverse=True) == [4, 3, 2]
    assert await page(limit=-1) == [1, 2, 3, 4, 5, 6, 7]
    assert await page() == []
    with pytest.raises(ReplyError) as caught:
        await page(limit=3, since=StreamPosition(3, "other"))
    assert caught.value.code == 112


async def test_typing_reaches_the_others_without_an_offset(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected()
    _, seen = await house.subscribed(client)
    await house.platform.ephemeral(CHAT, {"type": "typing", "by": BOB, "on": True})
    await house.platform.ephemeral(CHAT, {"type": "typing", "by": "a stale owner"}, owner=3)
    await house.platform.post(CHAT, {"type": "message.posted"})
    await until(lambda: len(seen.of("publication")) == 2)
    assert seen.offsets == [0, 1]
    assert seen.of("publication")[0].pub.data == {"type": "typing", "by": BOB, "on": True}


async def test_ten_thousand_missed_events_come_back_once_and_in_order_while_new_ones_arrive(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected()
    sub, seen = await house.subscribed(client)
    await house.platform.post(CHAT, {"type": "message.posted", "text": "seen"})
    await until(lambda: seen.offsets == [1])
    await client.disconnect()
    for start in range(0, 10_000, 1_000):
        bodies = ({"type": "message.posted", "text": f"{n:0100d}"} for n in range(start, start + 1_000))
        await house.platform.post(CHAT, *bodies)
    house.platform.read_delay_s = 0.01
    await client.connect()
    for n in range(200):
        await house.platform.post(CHAT, {"type": "message.posted", "text": f"new {n}"})
        await asyncio.sleep(0.001)
    await until(lambda: len(seen.offsets) >= 10_201, 30)
    await asyncio.sleep(0.1)
    assert seen.offsets == list(range(1, 10_202))
    recovered = seen.of("subscribed")[1]
    assert (recovered.was_recovering, recovered.recovered, recovered.stream_position.offset) == (True, True, 1)
    assert house.metrics.counts["gateway_recovery_pages"] > 1
    assert sub.state is SubscriptionState.SUBSCRIBED


async def test_a_restarted_gateway_serves_those_who_come_back(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected()
    _, seen = await house.subscribed(client)
    await house.platform.post(CHAT, {"n": 1})
    await until(lambda: seen.offsets == [1])
    await asyncio.gather(house.restart(), house.platform.post(CHAT, {"n": 2}, {"n": 3}))
    await house.platform.post(CHAT, {"n": 4})
    await until(lambda: len(seen.offsets) >= 4)
    assert seen.offsets == [1, 2, 3, 4]


async def test_a_wrong_epoch_is_not_recovered(open_house: Open) -> None:
    house = await open_house()
    await house.platform.post(CHAT, {"n": 1})
    client, _ = await house.connected()
    _, seen = await house.subscribed(client)
    await client.disconnect()
    house.platform.create(CHAT, ALICE, epoch="e2")
    await house.platform.post(CHAT, {"n": 1}, {"n": 2})
    await house.restart()
    await client.connect()
    await until(lambda: len(seen.of("subscribed")) == 2)
    ctx = seen.of("subscribed")[1]
    assert (ctx.was_recovering, ctx.recovered, ctx.stream_position) == (True, False, StreamPosition(2, "e2"))
    assert seen.offsets == []


async def test_events_missed_while_the_broker_was_away_are_fetched(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected()
    _, seen = await house.subscribed(client)
    house.platform.broker.cut()
    await house.platform.post(CHAT, {"n": 1}, {"n": 2})
    await asyncio.sleep(0.02)
    house.platform.broker.heal()
    await until(lambda: seen.offsets == [1, 2])
    await house.platform.post(CHAT, {"n": 3})
    await until(lambda: seen.offsets == [1, 2, 3])


async def test_events_committed_while_nats_was_dead_are_fetched_and_new_subscriptions_wait_for_it(
    open_house: Open,
) -> None:
    with Nats() as nats:
        broker = await NatsBroker(nats.url).start()
        house = await open_house(broker)
        client, _ = await house.connected()
        _, seen = await house.subscribed(client)
        await house.platform.post(CHAT, {"n": 1})
        await house.platform.hint(ALICE, {"type": "offer"})
        await until(lambda: seen.offsets == [1])
        await asyncio.to_thread(nats.kill)
        await house.platform.post(CHAT, {"n": 2}, {"n": 3}, publish=False)
        waiting = Recorder()
        later = client.new_subscription(JOB, events=waiting, min_resubscribe_delay=0.05, max_resubscribe_delay=0.1)
        await later.subscribe()
        await until(lambda: waiting.of("error"))
        assert waiting.of("error")[0].error.message == "unavailable"
        await asyncio.to_thread(nats.restart)
        await until(lambda: seen.offsets == [1, 2, 3])
        await later.ready(10)
        await house.platform.post(CHAT, {"n": 4})
        await house.platform.post(JOB, {"n": 1})
        await until(lambda: seen.offsets == [1, 2, 3, 4] and waiting.offsets == [1])
        await client.disconnect()
        await house.server.stop()
        await broker.close()


async def test_a_revocation_missed_while_the_broker_was_away_still_counts(open_house: Open) -> None:
    house = await open_house()
    _, seen = await house.connected()
    house.platform.broker.cut()
    await house.platform.revoke("sid-a")
    await asyncio.sleep(0.02)
    house.platform.broker.heal()
    await until(lambda: seen.of("disconnected"))
    assert seen.of("disconnected")[0].code == 4500


async def test_who_left_hears_nothing_more(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected(BOB)
    other, _ = await house.connected(ALICE)
    sub, seen = await house.subscribed(client)
    _, others = await house.subscribed(other)
    await house.platform.leave(CHAT, BOB)
    await house.platform.post(CHAT, {"type": "message.posted", "text": "about Bob"})
    await until(lambda: sub.state is SubscriptionState.UNSUBSCRIBED)
    await until(lambda: others.offsets == [1, 2])
    assert seen.offsets == [1]
    assert seen.of("unsubscribed")[0].code == 103


async def test_a_worker_whose_contract_came_to_nothing_hears_nothing_more_of_the_order(open_house: Open) -> None:
    house = await open_house()
    house.platform.streams[JOB].members.add(BOB)
    customers = [await house.subscribed((await house.connected(ALICE))[0], JOB) for _ in range(4)]
    client, _ = await house.connected(BOB)
    sub, _ = await house.subscribed(client, JOB)
    house.platform.streams[JOB].members.discard(BOB)
    await house.platform.post(JOB, {"type": "order.reopened", "by": ALICE, "state": "open"})
    await until(lambda: sub.state is SubscriptionState.UNSUBSCRIBED, 1)
    assert all(customer.state is SubscriptionState.SUBSCRIBED for customer, _ in customers)


async def test_unsubscribing_ends_it_and_subscribing_again_recovers(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected()
    sub, seen = await house.subscribed(client)
    await sub.unsubscribe()
    await until(lambda: house.metrics.gauges.get("gateway_subscriptions") == 0)
    await house.platform.post(CHAT, {"n": 1})
    await asyncio.sleep(0.02)
    assert seen.offsets == []
    await sub.subscribe()
    await sub.ready(5)
    await until(lambda: seen.offsets == [1])


async def test_a_revoked_session_is_closed_at_once_and_stays_away(open_house: Open) -> None:
    house = await open_house()
    client, seen = await house.connected()
    _, others = await house.connected(BOB)
    await house.platform.revoke("sid-a")
    await until(lambda: seen.of("disconnected"), 1)
    assert (seen.of("disconnected")[0].code, seen.of("disconnected")[0].reason) == (4500, "session_revoked")
    assert not others.of("disconnected")
    await client.connect()
    await until(lambda: len(seen.of("disconnected")) == 2)
    assert seen.of("disconnected")[1].code == 4500


async def test_a_draining_gateway_sends_its_clients_elsewhere(open_house: Open) -> None:
    house = await open_house(drain_s=0.05)
    house.platform.delay_s = 0.3
    client, seen = await house.connected()
    pending = asyncio.ensure_future(
        client.rpc("message.send", {"conversation_id": CONVERSATION, "id": new_id(), "text": "last words"})
    )
    await until(lambda: house.platform.asked)
    await house.server.drain()
    assert (await pending).data["offset"] == 1
    await until(lambda: seen.of("connecting")[1:])
    assert seen.of("connecting")[1].code == 4001
    assert client.state is ClientState.CONNECTING


async def test_a_silent_client_is_pinged_and_kept(open_house: Open) -> None:
    house = await open_house(ping_interval_s=0.2, pong_timeout_s=0.1)
    client, seen = await house.connected()
    await asyncio.sleep(0.8)
    assert client.state is ClientState.CONNECTED
    assert len(seen.of("connected")) == 1


async def test_a_recovery_beyond_reach_is_told_apart_by_its_flag(open_house: Open) -> None:
    house = await open_house()
    client, _ = await house.connected()
    positions = [StreamPosition(99, "e1"), StreamPosition(0, "e1")]

    async def get_state(_: str) -> StreamPosition:
        return positions.pop(0)

    sub = client.new_subscription(CHAT, get_state=get_state, min_resubscribe_delay=0.01)
    await sub.subscribe()
    await sub.ready(5)
    assert positions == []
