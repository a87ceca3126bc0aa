"""`ports.PresenceStore`: the same promises in memory and on a real Valkey."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from domain.ports import Buried, PresenceStore, StoreUnavailable
from domain.presence import Attendance, Heard, Present, attendance
from storage.cache import RedisServer
from storage.memory_presence import MemoryPresence
from storage.presence import RedisPresence
from tests.support.servers import Valkey

DEAD_MS, REMEMBERED_MS = 400, 1_500
ALICE, CHAT = "user:0190a0a0-0000-7000-8000-00000000000a", "conversation:0190a0a0-0000-7000-8000-0000000000c1"
PHONE = Present("client-1", "alice", "phone", 1_000)
TABLET = Present("client-2", "alice", "tablet", 2_000)
BOBS = Present("client-3", "bob", "phone", 3_000)


class Stage:
    """A store, and how time passes for it."""

    def __init__(self, store: PresenceStore, elapse: Callable[[int], Awaitable[None]]) -> None:
        self.store = store
        self.elapse = elapse

    async def heard(self, channel: str = CHAT) -> Heard:
        (heard,) = await self.store.read([channel])
        return heard

    async def seen(self, channel: str = CHAT) -> Attendance:
        return attendance(await self.heard(channel), DEAD_MS)

    async def gateway(self, name: str, **here: Any) -> None:
        await self.store.enter(name)
        assert await self.store.say(name, here.get("on", {}))

    async def bury_all(self, limit: int = 500) -> list[Buried]:
        buried = [await self.store.bury(limit)]
        while buried[-1].more:
            buried.append(await self.store.bury(limit))
        return buried


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


async def in_memory(_: Valkey) -> AsyncIterator[Stage]:
    now = [1_700_000_000_000]

    async def elapse(ms: int) -> None:
        now[0] += ms

    yield Stage(MemoryPresence(lambda: now[0], DEAD_MS, REMEMBERED_MS), elapse)


async def on_valkey(valkey: Valkey) -> AsyncIterator[Stage]:
    async with Redis.from_url(valkey.url) as redis:
        await redis.flushall()

    async def elapse(ms: int) -> None:
        await asyncio.sleep(ms / 1000)

    server = RedisServer(valkey.url, prefix="test")
    yield Stage(RedisPresence(server, DEAD_MS, REMEMBERED_MS), elapse)
    await server.close()


@pytest.fixture(params=[in_memory, on_valkey], ids=["memory", "valkey"])
async def stage(request: pytest.FixtureRequest, valkey: Valkey) -> AsyncIterator[Stage]:
    async for made in request.param(valkey):
        yield made


async def test_what_was_said_is_heard_with_who_said_it(stage: Stage) -> None:
    await stage.gateway("a", on={CHAT: [PHONE, BOBS], ALICE: [PHONE]})
    await stage.gateway("b", on={CHAT: [TABLET]})
    heard = await stage.heard()
    assert {(said.gateway, said.over, said.clients) for said in heard.said} == {
        ("a", False, (PHONE, BOBS)),
        ("b", False, (TABLET,)),
    }
    assert (await stage.seen()).clients == (PHONE, TABLET, BOBS)
    assert await stage.seen(ALICE) == Attendance((PHONE,))


async def test_of_a_channel_that_nobody_spoke_of_nothing_is_heard(stage: Stage) -> None:
    await stage.gateway("a", on={ALICE: [PHONE]})
    assert await stage.seen() == Attendance()
    assert await stage.store.read([]) == []


async def test_what_is_said_anew_takes_the_place_of_what_was_said_before(stage: Stage) -> None:
    await stage.gateway("a", on={CHAT: [PHONE, BOBS]})
    assert await stage.store.say("a", {CHAT: [BOBS]})
    assert (await stage.seen()).clients == (BOBS,)
    assert await stage.store.say("a", {}, {CHAT: 0})
    assert (await stage.seen()).clients == ()


async def test_several_channels_are_read_in_the_order_of_the_question(stage: Stage) -> None:
    await stage.gateway("a", on={CHAT: [BOBS], ALICE: [PHONE]})
    heard = await stage.store.read([ALICE, "user:nobody", CHAT])
    assert [attendance(each, DEAD_MS).clients for each in heard] == [(PHONE,), (), (BOBS,)]


async def test_when_the_last_one_went_is_remembered_for_a_user_and_for_no_conversation(stage: Stage) -> None:
    await stage.gateway("a", on={CHAT: [PHONE], ALICE: [PHONE]})
    assert await stage.store.say("a", {}, {CHAT: 100, ALICE: 100})
    user, chat = await stage.heard(ALICE), await stage.heard()
    assert user.last_seen_ms is not None
    assert 100 <= user.now_ms - user.last_seen_ms < 400
    assert (await stage.seen(ALICE)).last_seen_ms == user.last_seen_ms
    assert chat.last_seen_ms is None


async def test_who_was_seen_later_elsewhere_stays_seen_later(stage: Stage) -> None:
    await stage.gateway("a", on={ALICE: [PHONE]})
    await stage.gateway("b", on={ALICE: [TABLET]})
    assert await stage.store.say("b", {}, {ALICE: 0})
    later = (await stage.heard(ALICE)).last_seen_ms
    assert await stage.store.say("a", {}, {ALICE: 60_000})
    assert (await stage.heard(ALICE)).last_seen_ms == later


async def test_a_user_who_is_still_there_by_another_gateway_is_online(stage: Stage) -> None:
    await stage.gateway("a", on={ALICE: [PHONE]})
    await stage.gateway("b", on={ALICE: [TABLET]})
    assert await stage.store.say("a", {}, {ALICE: 0})
    assert await stage.seen(ALICE) == Attendance((TABLET,))


async def test_when_somebody_was_seen_is_forgotten_in_the_end(stage: Stage) -> None:
    await stage.gateway("a", on={ALICE: [PHONE]})
    assert await stage.store.say("a", {}, {ALICE: 0})
    await stage.elapse(REMEMBERED_MS + 100)
    assert await stage.seen(ALICE) == Attendance()


async def test_a_gateway_that_beats_counts_for_ever_and_one_that_is_silent_no_more(stage: Stage) -> None:
    await stage.gateway("a", on={CHAT: [PHONE]})
    await stage.gateway("b", on={CHAT: [BOBS], "user:bob": [BOBS]})
    for _ in range(4):
        await stage.elapse(150)
        assert await stage.store.beat("a")
    assert (await stage.seen()).clients == (PHONE,)
    heard = await stage.heard("user:bob")
    assert (await stage.seen("user:bob")).last_seen_ms == heard.said[0].beat_ms
    assert heard.now_ms - heard.said[0].beat_ms >= 600


async def test_a_silent_gateway_that_beats_before_it_is_buried_counts_again(stage: Stage) -> None:
    await stage.gateway("a", on={CHAT: [PHONE]})
    await stage.elapse(DEAD_MS + 50)
    assert (await stage.seen()).clients == ()
    assert await stage.store.beat("a")
    assert (await stage.seen()).clients == (PHONE,)


async def test_what_a_dead_gateway_had_said_is_buried_bit_by_bit_and_its_users_were_last_seen_when_it_beat(
    stage: Stage,
) -> None:
    said = {f"user:{n}": [Present(f"client-{n}", str(n), "phone", 1)] for n in range(1_000)} | {CHAT: [PHONE]}
    await stage.gateway("dead", on=said)
    beat_ms = (await stage.heard()).said[0].beat_ms
    await stage.elapse(DEAD_MS + 50)
    await stage.gateway("a", on={CHAT: [BOBS]})
    buried = await stage.bury_all(limit=100)
    assert {each.gateway for each in buried} == {"dead"}
    assert all(len(each.gone) <= 100 for each in buried)
    gone = {channel: clients for each in buried for channel, clients in each.gone.items()}
    assert gone == {channel: tuple(clients) for channel, clients in said.items()}
    assert sum(len(each.gone) for each in buried) == 1_001
    heard = await stage.store.read(list(said))
    assert [each.last_seen_ms for each in heard] == [beat_ms] * 1_000 + [None]
    assert [len(each.said) for each in heard] == [0] * 1_000 + [1]
    assert (await stage.store.bury()).gone == {}


async def test_while_it_is_being_buried_its_users_were_seen_when_it_beat(stage: Stage) -> None:
    await stage.gateway("dead", on={"user:1": [PHONE], "user:2": [PHONE], "user:3": [PHONE]})
    beat_ms = (await stage.heard("user:1")).said[0].beat_ms
    await stage.elapse(DEAD_MS + 50)
    assert (await stage.store.bury(1)).more
    heard = await stage.store.read(["user:1", "user:2", "user:3"])
    assert {attendance(each, DEAD_MS) for each in heard} == {Attendance((), beat_ms)}


async def test_nobody_who_lives_is_buried(stage: Stage) -> None:
    await stage.gateway("a", on={CHAT: [PHONE]})
    assert await stage.store.bury() == Buried()
    assert (await stage.seen()).clients == (PHONE,)


async def test_a_name_that_was_buried_means_nothing_any_more(stage: Stage) -> None:
    """A gateway that slept is told so: under its old name it could only say half of what it has."""
    await stage.gateway("zombie", on={CHAT: [PHONE]})
    await stage.elapse(DEAD_MS + 50)
    await stage.bury_all()
    assert not await stage.store.beat("zombie")
    assert not await stage.store.say("zombie", {CHAT: [PHONE]}, {ALICE: 0})
    assert await stage.seen(ALICE) == Attendance()
    assert (await stage.seen()).clients == ()
    await stage.gateway("awake", on={CHAT: [PHONE]})
    assert (await stage.seen()).clients == (PHONE,)


async def test_a_name_that_never_entered_says_nothing(stage: Stage) -> None:
    assert not await stage.store.beat("stranger")
    assert not await stage.store.say("stranger", {CHAT: [PHONE]}, {ALICE: 0})
    assert await stage.seen() == Attendance()
    assert await stage.seen(ALICE) == Attendance()


async def test_who_was_there_by_a_gateway_that_left_was_seen_until_then(stage: Stage) -> None:
    await stage.gateway("a", on={CHAT: [PHONE], ALICE: [PHONE]})
    await stage.elapse(200)
    await stage.store.leave("a")
    heard, seen = await stage.heard(ALICE), await stage.seen(ALICE)
    assert (seen.clients, (await stage.seen()).clients) == ((), ())
    assert seen.last_seen_ms is not None
    assert heard.now_ms - seen.last_seen_ms < 150
    assert not await stage.store.beat("a")
    await stage.bury_all()
    assert await stage.seen(ALICE) == seen
    assert await stage.store.bury() == Buried()


# --- Valkey alone ---


async def test_a_server_that_was_emptied_knows_nobody(valkey: Valkey) -> None:
    async for stage in on_valkey(valkey):
        await stage.gateway("a", on={CHAT: [PHONE]})
        async with Redis.from_url(valkey.url) as redis:
            await redis.flushall()
        assert not await stage.store.beat("a")
        assert not await stage.store.say("a", {CHAT: [PHONE]})
        assert await stage.seen() == Attendance()
        async with Redis.from_url(valkey.url) as redis:
            assert await redis.dbsize() == 0


async def test_nothing_is_kept_for_ever(valkey: Valkey) -> None:
    async for stage in on_valkey(valkey):
        await stage.gateway("a", on={CHAT: [PHONE], ALICE: [PHONE]})
        assert await stage.store.say("a", {}, {ALICE: 0})
        async with Redis.from_url(valkey.url) as redis:
            await redis.expire("test:{presence}:by:a", 100)
        await stage.store.beat("a")
        async with Redis.from_url(valkey.url) as redis:
            assert 86_000 < await redis.ttl("test:{presence}:by:a") <= 86_400
            assert 0 < await redis.pttl(f"test:{{presence}}:seen:{ALICE}") <= REMEMBERED_MS
        await stage.store.leave("a")
        await stage.bury_all()
        async with Redis.from_url(valkey.url) as redis:
            assert await redis.keys("*") == [f"test:{{presence}}:seen:{ALICE}".encode()]


async def test_a_server_that_is_gone_is_unavailable_at_once(valkey: Valkey) -> None:
    server = RedisServer(valkey.url)
    store = RedisPresence(server)
    await store.enter("a")
    valkey.kill()
    try:
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: store.enter("a"), lambda: store.beat("a"), lambda: store.say("a", {}),
            lambda: store.leave("a"), store.bury, lambda: store.read([CHAT]),
        ]  # fmt: skip
        for attempt in attempts:
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await attempt()
            assert time.monotonic() - began < 1
    finally:
        valkey.start()
        await server.close()


async def test_a_memory_that_is_away_is_unavailable_and_unchanged() -> None:
    store = MemoryPresence(lambda: 0)
    await store.enter("a")
    assert await store.say("a", {CHAT: [PHONE]})
    store.is_up = False
    for attempt in (lambda: store.beat("a"), lambda: store.say("a", {CHAT: []}), lambda: store.read([CHAT])):
        with pytest.raises(StoreUnavailable):
            await attempt()
    store.is_up = True
    assert attendance((await store.read([CHAT]))[0]).clients == (PHONE,)
