"""`domain.devices.ChallengeStore` and `TryCounter` on a real server."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from domain.ports import StoreUnavailable
from storage.cache import RedisServer
from storage.challenges import RedisChallenges, RedisTries
from tests.support.servers import Valkey


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
async def server(valkey: Valkey) -> AsyncIterator[RedisServer]:
    async with Redis.from_url(valkey.url) as redis:
        await redis.flushall()
    server = RedisServer(valkey.url)
    yield server
    await server.close()


async def test_a_challenge_is_spent_once_however_many_try(server: RedisServer) -> None:
    challenges = RedisChallenges(server)
    await challenges.issue("c", "key", 60)
    assert sum(await asyncio.gather(*(challenges.spend("c", "key") for _ in range(20)))) == 1
    assert not await challenges.spend("c", "key")


async def test_a_challenge_is_for_one_key_and_is_used_up_by_another_one(server: RedisServer) -> None:
    challenges = RedisChallenges(server)
    await challenges.issue("c", "key", 60)
    assert not await challenges.spend("c", "other")
    assert not await challenges.spend("c", "key")


async def test_a_challenge_that_was_never_issued_or_is_too_old_is_not_spent(server: RedisServer) -> None:
    challenges = RedisChallenges(server)
    assert not await challenges.spend("c", "key")
    assert not await challenges.spend("", "")
    await challenges.issue("c", "key", 1)
    await asyncio.sleep(1.1)
    assert not await challenges.spend("c", "key")


@pytest.mark.parametrize("challenge", ["x" * 100_000, "\0", "a b\r\nDEL *", "\ud800", "短"])
async def test_a_challenge_may_be_any_text(server: RedisServer, challenge: str) -> None:
    challenges = RedisChallenges(server)
    assert not await challenges.spend(challenge, "key")
    await challenges.issue(challenge, "key", 60)
    assert await challenges.spend(challenge, "key")


async def test_of_many_tries_at_once_as_many_are_let_through_as_there_are(server: RedisServer) -> None:
    tries = RedisTries(server)
    waits = await asyncio.gather(*(tries.take("k", 5, 60) for _ in range(20)))
    assert waits.count(None) == 5
    assert all(59 < wait <= 60 for wait in waits if wait is not None)
    assert await tries.take("other", 5, 60) is None


async def test_tries_come_back_after_the_pause_or_when_they_are_cleared(server: RedisServer) -> None:
    tries = RedisTries(server)
    assert [await tries.take("k", 1, 1) is None for _ in range(2)] == [True, False]
    await asyncio.sleep(1.1)
    assert await tries.take("k", 1, 60) is None
    await tries.clear("k")
    assert await tries.take("k", 1, 60) is None


async def test_without_the_server_nothing_is_let_through() -> None:
    away = RedisServer("redis://127.0.0.1:1/0", timeout_s=0.2)
    for asked in (
        RedisChallenges(away).issue("c", "key", 60),
        RedisChallenges(away).spend("c", "key"),
        RedisTries(away).take("k", 5, 60),
    ):
        with pytest.raises(StoreUnavailable):
            await asked
    await away.close()
