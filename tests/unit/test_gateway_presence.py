"""What a gateway says of who is there, and what it hears: on a clock that is set, and a store that can be taken away."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest

from domain.commands import Delivery
from domain.ports import BrokerUnavailable, StoreUnavailable
from domain.presence import Present
from gateway.presence import Presence, PresenceSettings
from storage.memory_presence import MemoryPresence

CHAT, OTHER = (f"conversation:0190a0a0-0000-7000-8000-0000000000c{n}" for n in (1, 2))
ALICE = "user:0190a0a0-0000-7000-8000-00000000000a"
PHONE = Present("client-1", "alice", "phone", 1_000)
TABLET = Present("client-2", "alice", "tablet", 2_000)
BOBS = Present("client-3", "bob", "phone", 3_000)


class Town:
    """A clock, a store and a broker that several gateways share."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.store = CountingStore(self)
        self.broker_is_up = True
        self.told: list[tuple[str, str, str]] = []

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    async def publish(self, subject: str, data: bytes) -> None:
        if not self.broker_is_up:
            raise BrokerUnavailable
        delivery = msgspec.msgpack.decode(data, type=Delivery)
        assert subject == "ev." + delivery.stream.replace(":", ".")
        assert (delivery.items, delivery.owner) == ((), 0)
        self.told += [(delivery.stream, "+" if move.here else "-", move.client.client) for move in delivery.moves]

    async def elapse(self, seconds: float, *gateways: "Gateway", step_s: float = 0.25) -> None:
        """Time passes for all; these gateways do what they do meanwhile."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += step_s
            for gateway in gateways:
                await gateway.presence.keep()
                await gateway.presence.tell()


class CountingStore(MemoryPresence):
    def __init__(self, town: Town) -> None:
        super().__init__(town.now_ms)
        self.calls: Counter[str] = Counter()
        self.largest = 0

    async def beat(self, gateway: str) -> bool:
        self.calls["beat"] += 1
        return await super().beat(gateway)

    async def say(self, gateway: str, here: Any, gone: Any = None) -> bool:
        self.calls["say"] += 1
        self.largest = max(self.largest, len(here), len(gone or ()))
        return await super().say(gateway, here, gone)


class Gateway:
    """The presence of one gateway, and the clients that are connected to it."""

    def __init__(self, town: Town, name: str, **settings: Any) -> None:
        self.on: defaultdict[str, dict[Present, None]] = defaultdict(dict)
        self.counts: Counter[str] = Counter()
        self.presence = Presence(
            PresenceSettings(**settings), town.store, town, self, town, lambda: name, self.counts  # type: ignore[arg-type]
        )  # fmt: skip

    def here(self, channel: str) -> Sequence[Present]:
        return tuple(self.on.get(channel, ()))

    def peopled(self) -> Iterable[str]:
        return [channel for channel, clients in self.on.items() if clients]

    def join(self, channel: str, *clients: Present) -> None:
        for client in clients:
            self.on[channel][client] = None
            self.presence.joined(channel, client)

    def leave(self, channel: str, *clients: Present) -> None:
        for client in clients:
            del self.on[channel][client]
            self.presence.left(channel, client, last=not self.on[channel])

    async def sees(self, channel: str = CHAT) -> tuple[str, ...]:
        (attendance,) = await self.presence.of([channel])
        return tuple(client.client for client in attendance.clients)

    async def last_seen_ms(self, channel: str = ALICE) -> int | None:
        (attendance,) = await self.presence.of([channel])
        return attendance.last_seen_ms


@pytest.fixture
def town() -> Town:
    return Town()


# --- who is there ---


async def test_ones_own_clients_are_there_at_once_and_those_of_others_within_a_moment(town: Town) -> None:
    a, b = Gateway(town, "a"), Gateway(town, "b")
    a.join(CHAT, PHONE)
    assert (await a.sees(), await b.sees()) == (("client-1",), ())
    await town.elapse(0.5, a, b)
    b.join(CHAT, BOBS)
    assert (await a.sees(), await b.sees()) == (("client-1",), ("client-1", "client-3"))
    await town.elapse(0.5, a, b)
    assert await a.sees() == await b.sees() == ("client-1", "client-3")
    a.leave(CHAT, PHONE)
    assert (await a.sees(), await b.sees()) == (("client-3",), ("client-1", "client-3"))
    await town.elapse(0.5, a, b)
    assert await a.sees() == await b.sees() == ("client-3",)


async def test_what_does_not_change_costs_one_beat_in_ten_seconds_however_many_there_are(town: Town) -> None:
    a = Gateway(town, "a")
    for n in range(5_000):
        client = Present(f"client-{n}", f"user-{n}", "phone", n)
        a.join(f"user:{n}", client)
        a.join(f"conversation:{n // 2}", client)
    await town.elapse(5, a)
    town.store.calls.clear()
    await town.elapse(100, a)
    assert town.store.calls == {"beat": 10}


async def test_thousands_of_changes_are_said_in_bounded_batches(town: Town) -> None:
    a = Gateway(town, "a")
    a.join(CHAT, BOBS)
    await town.elapse(1, a)
    for n in range(6_000):
        a.join(f"user:{n}", PHONE)
    town.store.calls.clear()
    await town.elapse(0.25, a)
    assert town.store.calls["say"] == 8
    await town.elapse(1, a)
    assert (town.store.calls["say"], town.store.largest) == (12, 500)


async def test_many_on_one_channel_are_said_once_a_moment_not_once_each(town: Town) -> None:
    a, b = Gateway(town, "a"), Gateway(town, "b")
    for n in range(1_000):
        a.join(CHAT, Present(f"client-{n}", "u", "d", n))
    await town.elapse(0.5, a, b)
    assert town.store.calls["say"] == 1
    assert len(await b.sees()) == 1_000


async def test_what_changes_while_it_is_being_said_is_said_again(town: Town) -> None:
    a, b = Gateway(town, "a"), Gateway(town, "b")
    a.join(CHAT, PHONE)
    say = town.store.say

    async def slowly(gateway: str, here: Any, gone: Any = None) -> bool:
        said = await say(gateway, here, gone)
        if CHAT in here and TABLET not in a.on[CHAT]:
            a.join(CHAT, TABLET)
        return said

    town.store.say = slowly  # type: ignore[method-assign]
    await town.elapse(0.5, a, b)
    assert await b.sees() == ("client-1", "client-2")


async def test_when_a_user_went_is_known_to_the_others_and_right_here_at_once(town: Town) -> None:
    a, b = Gateway(town, "a"), Gateway(town, "b")
    a.join(ALICE, PHONE)
    await town.elapse(1, a, b)
    assert await b.last_seen_ms() is None
    a.leave(ALICE, PHONE)
    went_ms = town.now_ms()
    assert await a.last_seen_ms() == went_ms
    await town.elapse(5, a, b)
    assert await a.last_seen_ms() == await b.last_seen_ms() == went_ms


# --- gateways that end ---


async def test_the_clients_of_a_killed_gateway_are_gone_thirty_seconds_after_its_last_beat(town: Town) -> None:
    a, b = Gateway(town, "a"), Gateway(town, "b")
    a.join(CHAT, PHONE)
    a.join(ALICE, PHONE)
    await town.elapse(15, a, b)
    beat_ms = (await town.store.read([CHAT]))[0].said[0].beat_ms
    await town.elapse((beat_ms + 29_750 - town.now_ms()) / 1000, b)
    assert await b.sees() == ("client-1",)
    await town.elapse(0.25, b)
    assert await b.sees() == ()
    assert await b.last_seen_ms() == beat_ms
    await town.elapse(20, b)
    assert await b.last_seen_ms() == beat_ms
    assert [heard.said for heard in await town.store.read([CHAT, ALICE])] == [(), ()]


async def test_those_who_asked_are_told_that_the_clients_of_a_killed_gateway_went(town: Town) -> None:
    a, b, c = Gateway(town, "a"), Gateway(town, "b"), Gateway(town, "c")
    a.join(CHAT, PHONE)
    a.join(ALICE, PHONE)
    await town.elapse(15, a, b, c)
    town.told.clear()
    await town.elapse(60, b, c)
    assert town.told == [(CHAT, "-", "client-1")]


async def test_a_gateway_that_slept_is_not_shown_and_is_shown_again_when_it_wakes(town: Town) -> None:
    zombie, other = Gateway(town, "zombie"), Gateway(town, "other")
    zombie.join(CHAT, PHONE)
    await town.elapse(15, zombie, other)
    await town.elapse(45, other)
    assert await other.sees() == ()
    assert town.told[-1] == (CHAT, "-", "client-1")
    await town.elapse(1, zombie, other)
    assert await other.sees() == ("client-1",)
    assert town.told[-1] == (CHAT, "+", "client-1")
    zombie.leave(CHAT, PHONE)
    await town.elapse(3, zombie, other)
    assert await other.sees() == ()
    assert town.told[-1] == (CHAT, "-", "client-1")


async def test_a_gateway_that_stops_takes_its_clients_with_it_at_once(town: Town) -> None:
    a, b = Gateway(town, "a"), Gateway(town, "b")
    a.join(CHAT, PHONE)
    a.join(ALICE, PHONE)
    await town.elapse(15, a, b)
    a.leave(CHAT, PHONE)
    a.leave(ALICE, PHONE)
    await a.presence.stop()
    assert await b.sees() == ()
    assert await b.last_seen_ms() == town.now_ms()
    assert town.told == [(CHAT, "+", "client-1"), (CHAT, "-", "client-1")]
    await town.elapse(60, b)
    assert len(town.told) == 2


# --- a store that is away, or forgets ---


async def test_while_the_store_is_away_asking_fails_and_what_changed_is_said_afterwards(town: Town) -> None:
    a, b = Gateway(town, "a"), Gateway(town, "b")
    a.join(CHAT, PHONE)
    a.join(ALICE, PHONE)
    await town.elapse(15, a, b)
    town.store.is_up = False
    a.join(CHAT, TABLET)
    a.leave(ALICE, PHONE)
    went_ms = town.now_ms()
    await town.elapse(20, a, b)
    with pytest.raises(StoreUnavailable):
        await a.sees()
    assert a.counts["gateway_presence_failed"] <= 20
    town.store.is_up = True
    await town.elapse(1.5, a, b)
    assert await b.sees() == ("client-1", "client-2")
    assert await b.last_seen_ms() == went_ms


async def test_a_gateway_that_starts_without_the_store_enters_when_it_is_there(town: Town) -> None:
    a, b = Gateway(town, "a"), Gateway(town, "b")
    town.store.is_up = False
    a.join(CHAT, PHONE)
    await town.elapse(5, a)
    town.store.is_up = True
    await town.elapse(1.5, a, b)
    assert await b.sees() == ("client-1",)
    assert town.told == [(CHAT, "+", "client-1")]


async def test_a_store_that_forgot_everything_is_told_all_of_it_again(town: Town) -> None:
    a, b = Gateway(town, "a"), Gateway(town, "b")
    for n in range(3_000):
        a.join(f"user:{n}", PHONE)
    b.join(CHAT, BOBS)
    await town.elapse(15, a, b)
    town.store.forget()
    await town.elapse(12, a, b)
    assert await b.sees("user:0") == await b.sees("user:2999") == ("client-1",)
    assert await a.sees() == ("client-3",)
    assert town.store.largest <= 500


async def test_after_an_outage_nobody_is_buried_who_only_could_not_beat(town: Town) -> None:
    a, b = Gateway(town, "a"), Gateway(town, "b")
    a.join(CHAT, PHONE)
    await town.elapse(15, a, b)
    town.store.is_up = False
    await town.elapse(120, a, b)
    town.store.is_up = True
    town.told.clear()
    await town.elapse(1, b)
    await town.elapse(60, a, b)
    assert await b.sees() == ("client-1",)
    assert town.told == []
    assert a.counts["gateway_presence_again"] == 0


async def test_what_cannot_be_said_does_not_grow_without_a_bound(town: Town) -> None:
    a, b = Gateway(town, "a", max_left=100), Gateway(town, "b")
    a.join(CHAT, PHONE)
    for n in range(10):
        a.join(f"user:old-{n}", PHONE)
    await town.elapse(15, a, b)
    town.store.is_up = False
    for n in range(10):
        a.leave(f"user:old-{n}", PHONE)
    for n in range(1_000):
        a.join(f"user:{n}", PHONE)
        a.leave(f"user:{n}", PHONE)
        assert len(a.presence._left) <= 100
    town.store.is_up = True
    await town.elapse(40, a, b)
    assert await b.sees() == ("client-1",)
    assert await b.sees("user:old-3") == ()
    assert await a.sees("user:old-3") == ()


# --- comings and goings ---


async def test_a_join_is_told_at_once_and_a_leave_two_seconds_later(town: Town) -> None:
    a = Gateway(town, "a")
    a.join(CHAT, PHONE)
    await town.elapse(0.25, a)
    assert town.told == [(CHAT, "+", "client-1")]
    a.leave(CHAT, PHONE)
    await town.elapse(1.75, a)
    assert len(town.told) == 1
    await town.elapse(0.25, a)
    assert town.told[1:] == [(CHAT, "-", "client-1")]


async def test_whoever_reconnects_has_come_before_they_went_by_whichever_gateway(town: Town) -> None:
    a, b = Gateway(town, "a"), Gateway(town, "b")
    a.join(CHAT, PHONE)
    await town.elapse(1, a, b)
    a.leave(CHAT, PHONE)
    await town.elapse(1, a, b)
    b.join(CHAT, Present("client-9", "alice", "phone", 9_000))
    await town.elapse(5, a, b)
    assert town.told == [(CHAT, "+", "client-1"), (CHAT, "+", "client-9"), (CHAT, "-", "client-1")]


async def test_a_client_that_unsubscribes_and_subscribes_within_two_seconds_was_never_away(town: Town) -> None:
    a = Gateway(town, "a")
    a.join(CHAT, PHONE)
    await town.elapse(1, a)
    a.leave(CHAT, PHONE)
    await town.elapse(1, a)
    a.join(CHAT, PHONE)
    await town.elapse(10, a)
    assert town.told == [(CHAT, "+", "client-1")]
    a.leave(CHAT, PHONE)
    a.join(CHAT, PHONE)
    a.join(OTHER, PHONE)
    a.leave(OTHER, PHONE)
    await town.elapse(10, a)
    assert town.told == [(CHAT, "+", "client-1")]


async def test_nobody_is_told_of_a_users_own_channel(town: Town) -> None:
    a = Gateway(town, "a")
    a.join(ALICE, PHONE)
    await town.elapse(1, a)
    a.leave(ALICE, PHONE)
    await town.elapse(10, a)
    assert town.told == []


async def test_what_the_broker_does_not_take_is_lost_and_counted(town: Town) -> None:
    a = Gateway(town, "a")
    town.broker_is_up = False
    a.join(CHAT, PHONE)
    await town.elapse(1, a)
    town.broker_is_up = True
    await town.elapse(10, a)
    assert (town.told, a.counts["gateway_moves_lost"], len(a.presence._moves)) == ([], 1, 0)


async def test_a_storm_of_comings_is_told_bit_by_bit_and_in_messages_that_fit(town: Town) -> None:
    a = Gateway(town, "a")
    for n in range(2_500):
        a.join(CHAT, Present(f"client-{n}", "u", "d", n))
    await town.elapse(0.25, a)
    assert len(town.told) == 2_000
    await town.elapse(0.25, a)
    assert len(town.told) == 2_500
