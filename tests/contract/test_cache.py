"""`ports.OtpStore`, `ports.TicketStore`, `ports.RateLimiter` and `ports.Outbox` on a real server."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Iterator

import pytest
from redis.asyncio import Redis

from domain.identities import PendingLink
from domain.ports import StoreUnavailable
from storage.cache import RedisOtp, RedisOutbox, RedisRateLimiter, RedisServer, RedisTickets
from storage.sign_ins import RedisSignIns
from tests.support.keys import PHONE_NAMES
from tests.support.servers import Valkey

PHONE = "+8613800000000"
RIGHT, WRONG = b"\x00\xffright" * 4, b"\x00\xffwrong" * 4


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
async def server(valkey: Valkey) -> AsyncIterator[RedisServer]:
    if not valkey.running:
        valkey.start()
    async with Redis.from_url(valkey.url) as redis:
        await redis.flushall()
    server = RedisServer(valkey.url)
    yield server
    await server.close()


@pytest.fixture
def otp(server: RedisServer) -> RedisOtp:
    return RedisOtp(server, PHONE_NAMES)


@pytest.fixture
def limiter(server: RedisServer) -> RedisRateLimiter:
    return RedisRateLimiter(server)


@pytest.fixture
def outbox(server: RedisServer) -> RedisOutbox:
    return RedisOutbox(server)


# --- tickets ---


async def test_a_ticket_that_was_issued_is_spent_once_however_many_try(server: RedisServer) -> None:
    tickets = RedisTickets(server)
    await tickets.issue("t", 60)
    assert sum(await asyncio.gather(*(tickets.spend("t") for _ in range(50)))) == 1
    assert not await tickets.spend("t")


async def test_a_ticket_that_was_never_issued_or_is_too_old_is_not_spent(server: RedisServer) -> None:
    tickets = RedisTickets(server)
    assert not await tickets.spend("t")
    await tickets.issue("t", 1)
    await asyncio.sleep(1.1)
    assert not await tickets.spend("t")


async def test_a_server_that_has_forgotten_everything_lets_no_ticket_through(
    server: RedisServer, valkey: Valkey
) -> None:
    tickets = RedisTickets(server)
    await tickets.issue("t", 60)
    async with Redis.from_url(valkey.url) as redis:
        await redis.flushall()
    assert not await tickets.spend("t")


# --- one-time codes ---


async def test_the_right_code_is_right_once(otp: RedisOtp) -> None:
    await otp.put(PHONE, RIGHT, 60)
    assert await otp.check(PHONE, RIGHT, 5)
    assert not await otp.check(PHONE, RIGHT, 5)


async def test_four_wrong_tries_leave_one_for_the_right_code(otp: RedisOtp) -> None:
    await otp.put(PHONE, RIGHT, 60)
    assert not any([await otp.check(PHONE, WRONG, 5) for _ in range(4)])
    assert await otp.check(PHONE, RIGHT, 5)


async def test_after_five_wrong_tries_the_right_code_is_refused(otp: RedisOtp) -> None:
    await otp.put(PHONE, RIGHT, 60)
    assert not any([await otp.check(PHONE, WRONG, 5) for _ in range(5)])
    assert not await otp.check(PHONE, RIGHT, 5)


async def test_of_fifty_different_guesses_at_once_only_five_are_looked_at(server: RedisServer, otp: RedisOtp) -> None:
    looked_at = 0
    for right_at in range(50):
        await otp.put(PHONE, RIGHT, 60)
        guesses = [RIGHT if place == right_at else WRONG for place in range(50)]
        looked_at += sum(await asyncio.gather(*(otp.check(PHONE, guess, 5) for guess in guesses)))
    # Each guess was the right one in one round: it was looked at in exactly those rounds in which it was let in.
    assert looked_at <= 10
    assert not await otp.check(PHONE, RIGHT, 5)


async def test_the_right_code_given_fifty_times_at_once_logs_in_once(otp: RedisOtp) -> None:
    await otp.put(PHONE, RIGHT, 60)
    assert sum(await asyncio.gather(*(otp.check(PHONE, RIGHT, 5) for _ in range(50)))) == 1


async def test_a_new_code_replaces_the_old_one_and_its_tries(otp: RedisOtp) -> None:
    await otp.put(PHONE, WRONG, 60)
    assert not any([await otp.check(PHONE, b"other", 5) for _ in range(4)])
    await otp.put(PHONE, RIGHT, 60)
    assert not any([await otp.check(PHONE, WRONG, 5) for _ in range(4)])
    assert await otp.check(PHONE, RIGHT, 5)


async def test_a_code_is_for_its_phone_only(otp: RedisOtp) -> None:
    await otp.put(PHONE, RIGHT, 60)
    assert not await otp.check("+8613800000001", RIGHT, 5)
    assert await otp.check(PHONE, RIGHT, 5)


async def test_a_code_ends_with_its_time(otp: RedisOtp) -> None:
    await otp.put(PHONE, RIGHT, 1)
    await asyncio.sleep(1.1)
    assert not await otp.check(PHONE, RIGHT, 5)


async def test_a_guess_does_not_lengthen_the_life_of_a_code(otp: RedisOtp) -> None:
    await otp.put(PHONE, RIGHT, 1)
    await asyncio.sleep(0.6)
    assert not await otp.check(PHONE, WRONG, 5)
    await asyncio.sleep(0.5)
    assert not await otp.check(PHONE, RIGHT, 5)


async def test_no_phone_number_is_readable_in_the_store(valkey: Valkey, otp: RedisOtp) -> None:
    await otp.put(PHONE, RIGHT, 60)
    async with Redis.from_url(valkey.url) as redis:
        assert not [key for key in await redis.keys("*") if b"138" in key]


# --- rate limits ---


async def test_the_limit_is_exact_under_a_race(limiter: RedisRateLimiter) -> None:
    waits = await asyncio.gather(*(limiter.hit("ip:1", 20, 60) for _ in range(100)))
    assert waits.count(None) == 20
    assert all(59 < wait <= 60 for wait in waits if wait is not None)


async def test_the_wait_that_is_named_is_long_enough_and_not_longer(limiter: RedisRateLimiter) -> None:
    assert await limiter.hit("k", 2, 1) is None
    await asyncio.sleep(0.3)
    assert await limiter.hit("k", 2, 1) is None
    wait = await limiter.hit("k", 2, 1)
    assert wait is not None
    assert 0.5 < wait <= 0.7
    await asyncio.sleep(wait + 0.005)
    assert await limiter.hit("k", 2, 1) is None
    assert await limiter.hit("k", 2, 1) is not None


async def test_no_window_holds_more_than_the_limit_wherever_it_begins(limiter: RedisRateLimiter) -> None:
    allowed: list[float] = []
    ends = time.monotonic() + 2.5
    while time.monotonic() < ends:
        if await limiter.hit("k", 5, 1) is None:
            allowed.append(time.monotonic())
        await asyncio.sleep(0.01)
    assert len(allowed) >= 10
    assert all(later - earlier > 0.98 for earlier, later in zip(allowed, allowed[5:], strict=False))


async def test_keys_do_not_share_their_limits(limiter: RedisRateLimiter) -> None:
    assert await limiter.hit("a", 1, 60) is None
    assert await limiter.hit("b", 1, 60) is None
    assert await limiter.hit("a", 1, 60) is not None


async def test_a_limit_that_was_lowered_holds_at_once(limiter: RedisRateLimiter) -> None:
    for _ in range(10):
        assert await limiter.hit("a", 10, 60) is None
    assert await limiter.hit("a", 3, 60) is not None


async def test_a_limit_of_zero_lets_nothing_through(limiter: RedisRateLimiter) -> None:
    assert await limiter.hit("a", 0, 60) == 60


async def test_a_counter_remembers_no_more_hits_than_its_limit(valkey: Valkey, limiter: RedisRateLimiter) -> None:
    async with Redis.from_url(valkey.url) as redis:
        for _ in range(3):
            assert await limiter.hit("a", 2, 1) is None
            assert await limiter.hit("a", 2, 1) is None
            assert await redis.llen("rate:a") <= 2
            await asyncio.sleep(1.01)


async def test_counters_leave_the_store_with_their_window(valkey: Valkey, limiter: RedisRateLimiter) -> None:
    await limiter.hit("a", 5, 1)
    await asyncio.sleep(2.2)
    async with Redis.from_url(valkey.url) as redis:
        assert await redis.dbsize() == 0


# --- the outbox ---


async def test_the_outbox_shows_the_newest_first_with_its_code(outbox: RedisOutbox) -> None:
    await outbox.add(PHONE, "sms", "验证码 123456", "123456", 1_000)
    await outbox.add("u1", "push", "New quote", None, 2_000)
    await outbox.add(PHONE, "sms", "second", "654321", 2_000)
    assert await outbox.items(PHONE, 10) == [
        {"to": PHONE, "kind": "sms", "text": "second", "code": "654321", "at": 2_000},
        {"to": PHONE, "kind": "sms", "text": "验证码 123456", "code": "123456", "at": 1_000},
    ]
    assert [item["kind"] for item in await outbox.items(None, 2)] == ["sms", "push"]
    assert await outbox.items("nobody", 10) == []


async def test_the_outbox_keeps_the_last_thousand(outbox: RedisOutbox) -> None:
    for batch in range(0, 1_010, 101):
        await asyncio.gather(*(outbox.add("a", "sms", str(batch + n), None, 0) for n in range(101)))
    assert len(await outbox.items(None, 5_000)) == 1_000


async def test_who_reads_the_server_learns_no_phone_even_by_trying_all_numbers(
    valkey: Valkey, otp: RedisOtp, server: RedisServer
) -> None:
    await otp.put(PHONE, RIGHT, 60)
    sign_ins = RedisSignIns(server, PHONE_NAMES)
    await sign_ins.offer("token", PendingLink("google", b"d" * 32), 60)
    assert await sign_ins.claim("token", PHONE)
    async with Redis.from_url(valkey.url) as redis:
        held = b" ".join([key async for key in redis.scan_iter()])
        async for key in redis.scan_iter("link:*"):
            held += b" ".join((await redis.hgetall(key)).values())
    for guess in (PHONE, PHONE.lstrip("+")):
        assert guess.encode() not in held
        for named in ("sha1", "sha256", "blake2b", "md5"):
            assert hashlib.new(named, guess.encode()).hexdigest().encode() not in held


# --- the server goes and comes ---


async def test_a_prefix_keeps_platforms_on_one_server_apart(valkey: Valkey, otp: RedisOtp) -> None:
    other = RedisServer(valkey.url, prefix="other")
    await RedisOtp(other, PHONE_NAMES).put(PHONE, RIGHT, 60)
    assert not await otp.check(PHONE, RIGHT, 5)
    assert await RedisOtp(other, PHONE_NAMES).check(PHONE, RIGHT, 5)
    await other.close()


async def seconds_until_unavailable(attempt: Awaitable[object]) -> float:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await attempt
    return time.monotonic() - began


async def working_again(server: RedisServer, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            await server.ping()
        except StoreUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        else:
            return


async def test_of_all_who_ask_a_silent_server_one_at_a_time_waits(valkey: Valkey, limiter: RedisRateLimiter) -> None:
    await limiter.hit("warm", 100, 60)
    valkey.pause()
    try:
        await seconds_until_unavailable(limiter.hit("a", 5, 60))
        waits: list[float] = []
        ending = time.monotonic() + 3.0
        while time.monotonic() < ending:
            hits = [seconds_until_unavailable(limiter.hit("a", 5, 60)) for _ in range(20)]
            waits += await asyncio.gather(*hits)
            await asyncio.sleep(0.01)
    finally:
        valkey.resume()
    slow = [wait for wait in waits if wait > 0.2]
    assert 1 <= len(slow) <= 3
    assert len(waits) > 1_000


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_lost_server_is_noticed_within_a_second_and_regained(
    valkey: Valkey, server: RedisServer, fault: str
) -> None:
    otp, limiter, outbox = RedisOtp(server, PHONE_NAMES), RedisRateLimiter(server), RedisOutbox(server)
    await asyncio.gather(*(limiter.hit("warm", 100, 60) for _ in range(30)))
    await server.ping()
    getattr(valkey, fault)()
    try:
        attempts = (
            otp.put(PHONE, RIGHT, 60),
            otp.check(PHONE, RIGHT, 5),
            limiter.hit("a", 5, 60),
            outbox.add("a", "sms", "", None, 0),
            outbox.items(None, 10),
            server.ping(),
        )
        assert max(await asyncio.gather(*(seconds_until_unavailable(attempt) for attempt in attempts))) <= 1.0
        began = time.monotonic()
        crowd = await asyncio.gather(*(limiter.hit("a", 5, 60) for _ in range(100)), return_exceptions=True)
        assert {type(outcome) for outcome in crowd} == {StoreUnavailable}
        assert time.monotonic() - began <= 1.2
    finally:
        valkey.resume() if fault == "pause" else valkey.start()
    await working_again(server, within_s=1.0)
    await otp.put(PHONE, RIGHT, 60)
    assert await asyncio.gather(*(limiter.hit(f"b{n}", 5, 60) for n in range(50))) == [None] * 50


async def test_a_caller_that_gives_up_does_not_spoil_the_answer_of_the_next(limiter: RedisRateLimiter) -> None:
    # A connection that goes back to its pool with an unread answer hands it to whoever comes next.
    for round_ in range(100):
        leaver = asyncio.ensure_future(limiter.hit(f"full{round_}", 1, 60))
        await asyncio.sleep(0.00002 * (round_ % 20))
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        assert await limiter.hit(f"mine{round_}", 1, 60) is None
        wait = await limiter.hit(f"mine{round_}", 1, 60)
        assert wait is not None
        assert wait > 59
