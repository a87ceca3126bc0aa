"""One-time codes under attack: guessing them (SEC-7), and having them sent at our expense (SEC-8)."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from domain.otp import OtpBudgets, prefix_of
from domain.ports import StoreUnavailable
from serve_apps.auth import code_hash
from storage.cache import RedisOtp, RedisServer
from storage.otp_budget import RedisOtpBudget
from tests.support.hostile import FULL, everywhere
from tests.support.keys import PHONE_NAMES
from tests.support.otp_world import OtpWorld, otp_world
from tests.support.servers import Valkey

ALICE, BOB = "+8613800000001", "+8613900000001"
HOUR_S, DAY_S = 3_600, 86_400
Open = Callable[..., AbstractAsyncContextManager[OtpWorld]]


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
def open_world(valkey: Valkey) -> Open:
    return lambda **settings: otp_world(valkey, **settings)


@pytest.fixture
async def world(open_world: Open) -> AsyncIterator[OtpWorld]:
    async with open_world() as opened:
        yield opened


def wrong(code: str, by: int = 1) -> str:
    return f"{(int(code) + by) % 1_000_000:06d}"


def statuses(answers: list[Any]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


# --- SEC-7: guessing ---


async def test_of_fifty_who_use_the_right_code_at_once_one_gets_in(world: OtpWorld) -> None:
    code = await world.code_for(ALICE)
    answers = await asyncio.gather(*(world.guess(ALICE, code) for _ in range(50)))
    assert statuses(answers) == {200: 1, 401: 49}
    assert len(world.sessions.sessions) == 1


@pytest.mark.parametrize("limits", [True, False], ids=["limits-on", "limits-lifted"])
@pytest.mark.parametrize("ahead", [5, 6, 49])
async def test_behind_five_wrong_guesses_in_a_race_the_right_code_is_worth_nothing(
    open_world: Open, ahead: int, limits: bool
) -> None:
    async with open_world(rate_limits=limits) as world:
        code = await world.code_for(ALICE)
        await asyncio.gather(*(world.guess(ALICE, wrong(code, n + 1)) for n in range(ahead)))
        assert (await world.guess(ALICE, code)).status_code == 401


async def test_four_wrong_guesses_in_a_race_leave_the_owner_one_try(world: OtpWorld) -> None:
    code = await world.code_for(ALICE)
    await asyncio.gather(*(world.guess(ALICE, wrong(code, n + 1)) for n in range(4)))
    assert (await world.guess(ALICE, code)).status_code == 200


async def test_a_try_is_counted_once_for_all_processes_together(valkey: Valkey, world: OtpWorld) -> None:
    code = await world.code_for(ALICE)
    servers = [RedisServer(valkey.url, timeout_s=30.0) for _ in range(4)]
    pepper = world.settings.otp_pepper
    guesses = [code_hash(pepper, ALICE, wrong(code, n + 1)) for n in range(200)]
    looked = await asyncio.gather(
        *(RedisOtp(servers[n % 4], PHONE_NAMES).check(ALICE, guess, 5) for n, guess in enumerate(guesses)),
    )
    assert not any(looked)
    assert not await RedisOtp(servers[0], PHONE_NAMES).check(ALICE, code_hash(pepper, ALICE, code), 5)
    for server in servers:
        await server.close()


async def test_a_guesser_wins_in_five_of_the_possible_codes_and_not_more(valkey: Valkey, world: OtpWorld) -> None:
    """The simulation of a million codes, made small: of 50 possible codes 50 are tried at once, from four processes.

    Without a limit every code issued would be found; with five tries 5 of 50 are. 400 codes: 40 expected, deviation 6.
    """
    servers = [RedisServer(valkey.url, timeout_s=30.0) for _ in range(4)]
    stores = [RedisOtp(server, PHONE_NAMES) for server in servers]
    chance = random.Random(7)
    found = 0
    for _ in range(400):
        right = chance.randrange(50)
        await stores[0].put(ALICE, b"%d" % right, 60)
        guesses = chance.sample(range(50), 50)
        found += sum(
            await asyncio.gather(*(stores[n % 4].check(ALICE, b"%d" % guess, 5) for n, guess in enumerate(guesses)))
        )
    for server in servers:
        await server.close()
    assert 40 - 4 * 6 <= found <= 40 + 4 * 6


async def test_guesses_from_a_thousand_addresses_on_many_phones_let_nobody_in(open_world: Open) -> None:
    """6,000 guesses (1,500 from 250 addresses in the short form)."""
    async with open_world() as world:
        victims = [f"+8613{n:02d}{n:02d}00001" for n in range(20)]
        codes = {phone: await world.code_for(phone) for phone in victims}
        chance = random.Random(7)
        sent, rounds = 0, 20 if FULL else 5
        for _ in range(rounds):
            guesses: list[Any] = []
            for _ in range(50):
                address = world.address()
                guesses += [
                    world.guess(phone, wrong(codes[phone], chance.randrange(1, 10**6)), address)
                    for phone in chance.sample(victims, 6)
                ]
            answers = await asyncio.gather(*guesses)
            sent += len(answers)
            # Of six from one address the sixth is refused before it is looked at.
            assert statuses(answers) == {401: 250, 429: 50}
        assert sent == rounds * 300
        assert not world.sessions.sessions
        # Each code is dead by now, for its owner as well, who asks for another one.
        assert statuses([await world.guess(phone, code) for phone, code in codes.items()]) == {401: 20}
        await world.time_passes(60)
        assert statuses([await world.guess(phone, await world.code_for(phone)) for phone in victims]) == {200: 20}


@pytest.mark.parametrize("times", [1, 50])
async def test_a_code_that_was_used_is_used_up(world: OtpWorld, times: int) -> None:
    code = await world.code_for(ALICE)
    assert (await world.guess(ALICE, code)).status_code == 200
    assert statuses(list(await asyncio.gather(*(world.guess(ALICE, code) for _ in range(times))))) == {401: times}


@pytest.mark.parametrize("other", ["asked-too", "never-asked"])
async def test_a_code_is_worth_nothing_for_another_phone(world: OtpWorld, other: str) -> None:
    code = await world.code_for(ALICE)
    if other == "asked-too":
        while await world.code_for(BOB) == code:
            await world.time_passes(60)
    assert (await world.guess(BOB, code)).status_code == 401
    assert (await world.guess(ALICE, code)).status_code == 200


async def test_a_new_code_ends_the_former_one(world: OtpWorld) -> None:
    former = await world.code_for(ALICE)
    await world.time_passes(60)
    assert await world.code_for(ALICE) != former
    assert (await world.guess(ALICE, former)).status_code == 401


async def test_a_code_ends_with_its_time(open_world: Open) -> None:
    async with open_world(otp_ttl_s=1) as world:
        code = await world.code_for(ALICE)
        await asyncio.sleep(1.1)
        assert (await world.guess(ALICE, code)).status_code == 401


SPELLINGS = {
    "space-before": lambda code: " " + code,
    "newline-behind": lambda code: code + "\n",
    "nul-behind": lambda code: code + "\0",
    "full-width": lambda code: "".join(chr(0xFF10 + int(digit)) for digit in code),
    "arabic-digits": lambda code: "".join(chr(0x0660 + int(digit)) for digit in code),
    "plus": lambda code: "+" + code,
    "leading-zero": lambda code: "0" + code,
    "underscores": lambda code: "_".join(code),
    "number": int,
    "list": lambda code: [code],
    "object": lambda code: {"$ne": ""},
    "true": lambda code: True,
    "null": lambda code: None,
    "empty": lambda code: "",
    "wildcard": lambda code: "*" * 6,
    "long": lambda code: code * 10_000,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_second_spelling_of_the_code_is_none(world: OtpWorld, spelling: str) -> None:
    code = await world.code_for(ALICE)
    answer = await world.guess(ALICE, SPELLINGS[spelling](code))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert not world.sessions.sessions


PHONES = [
    "+86 13800000001",
    "+86-138-0000-0001",
    "+8613800000001 ",
    "+8613800000001\n",
    "008613800000001",
    "8613800000001",
    "+８６13800000001",
    "tel:+8613800000001",
    "+8613800000001;ext=1",
    "+8613800000001\0",
    "+86013800000001",
    "+8613800000001,+8613900000001",
]


@pytest.mark.parametrize(("phone", "route"), everywhere(PHONES, ["otp", "verify"]), ids=repr)
async def test_a_second_spelling_of_a_phone_has_no_counters_of_its_own(world: OtpWorld, phone: str, route: str) -> None:
    code = await world.code_for(ALICE)
    answer = await (world.ask(phone) if route == "otp" else world.guess(phone, code))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert len(world.sms.sent) == 1
    assert not world.sessions.sessions


async def test_who_has_an_account_cannot_be_told_from_the_answers(world: OtpWorld) -> None:
    await world.guess(ALICE, await world.code_for(ALICE))
    await world.time_passes(60)
    known, unknown = await world.ask(ALICE), await world.ask(BOB)
    assert (known.status_code, known.content, known.headers.keys()) == (202, unknown.content, unknown.headers.keys())
    refused = [await world.guess(phone, wrong(world.sms.code_of(phone))) for phone in (ALICE, BOB)]
    again = [await world.ask(phone) for phone in (ALICE, BOB)]
    for one, other in (refused, again):
        hidden = {"request_id", "retry_after_s"}
        assert {k: v for k, v in one.json().items() if k not in hidden} == {
            k: v for k, v in other.json().items() if k not in hidden
        }


@pytest.mark.parametrize("fault", ["kill", "pause"])
@pytest.mark.parametrize("route", ["otp", "verify"])
async def test_without_redis_no_code_is_sent_and_none_accepted(
    valkey: Valkey, open_world: Open, route: str, fault: str
) -> None:
    async with open_world(timeout_s=0.9) as world:
        code = await world.code_for(ALICE)
        getattr(valkey, fault)()
        try:
            answer = await (world.ask(BOB) if route == "otp" else world.guess(ALICE, code))
        finally:
            valkey.resume() if fault == "pause" else valkey.start()
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert len(world.sms.sent) == 1
        assert not world.sessions.sessions


# --- SEC-8: pumping ---


def neighbours(count: int, start: int = 0) -> list[str]:
    """Adjacent numbers of one prefix."""
    return [f"+3706{n:07d}" for n in range(start, start + count)]


BUDGETS = {
    "one-phone-at-once": ({}, lambda n: ALICE, 1, "phone_gap"),
    "a-prefix-within-the-hour": ({"prefix_hour": 7}, lambda n: f"+37060000{n:03d}", 7, "prefix_hour"),
    "a-prefix-within-the-day": ({"prefix_day": 7}, lambda n: f"+37060000{n:03d}", 7, "prefix_day"),
    "all-within-the-hour": ({"global_hour": 7}, lambda n: f"+861{n:03d}0000001", 7, "global_hour"),
    "all-within-the-day": ({"global_day": 7}, lambda n: f"+861{n:03d}0000001", 7, "global_day"),
    "a-prefix-that-gets-none": ({"prefix_hour": 0}, lambda n: f"+37060000{n:03d}", 0, "prefix_hour"),
    "no-codes-at-all": ({"global_day": 0}, lambda n: f"+861{n:03d}0000001", 0, "global_day"),
}


@pytest.mark.parametrize("case", BUDGETS)
async def test_a_budget_is_exact_under_a_race(open_world: Open, case: str) -> None:
    given, phone, allowed, limit = BUDGETS[case]
    async with open_world(otp_budgets=OtpBudgets(**given)) as world:
        answers = await asyncio.gather(*(world.ask(phone(n)) for n in range(100)))
        expected = {202: allowed, 429: 100 - allowed} if allowed else {429: 100}
        assert statuses(answers) == expected
        assert len(world.sms.sent) == allowed
        assert world.metrics.counts["otp_sent"] == allowed
        assert world.refusals == {limit: 100 - allowed}
        refused = [answer for answer in answers if answer.status_code == 429]
        for answer in refused:
            assert answer.json()["code"] == "rate_limited"
            assert 0 < answer.json()["retry_after_s"] <= int(answer.headers["retry-after"])


async def test_what_one_budget_refuses_is_counted_by_none(open_world: Open) -> None:
    async with open_world(otp_budgets=OtpBudgets(prefix_hour=3, global_hour=5)) as world:
        await asyncio.gather(*(world.ask(phone) for phone in neighbours(50)))
        assert len(world.sms.sent) == 3
        # Counted, fifty refusals would have used up what is left for others.
        assert statuses([await world.ask(f"+86138{n}0000001") for n in range(3)]) == {202: 2, 429: 1}
        assert await world.redis.llen("otp-sent:all") == 5
        phones = await world.redis.keys("otp-sent:phone:*")
        assert len(phones) == 5


@pytest.mark.parametrize(
    ("between_s", "asked", "sent"),
    [(59, 2, 1), (60, 2, 2), (60, 4, 3), (1_200, 4, 4), (3_600, 11, 10)],
    ids=["59-s", "a-minute", "four-in-an-hour", "three-an-hour-for-ever", "eleven-in-a-day"],
)
async def test_a_phone_gets_one_a_minute_three_an_hour_ten_a_day(
    world: OtpWorld, between_s: int, asked: int, sent: int
) -> None:
    for _ in range(asked):
        await world.ask(ALICE)
        await world.time_passes(between_s)
    assert len(world.sms.sent) == sent


async def test_after_a_day_a_phone_has_ten_more(world: OtpWorld) -> None:
    for _ in range(10):
        await world.ask(ALICE)
        await world.time_passes(HOUR_S)
    refused = await world.ask(ALICE)
    assert refused.status_code == 429
    assert abs(refused.json()["retry_after_s"] - 14 * HOUR_S) < 10
    await world.time_passes(14 * HOUR_S)
    assert (await world.ask(ALICE)).status_code == 202


async def test_where_limits_are_lifted_codes_are_sent_and_not_counted(open_world: Open) -> None:
    async with open_world(rate_limits=False) as world:
        assert statuses([await world.ask(ALICE) for _ in range(12)]) == {202: 12}
        assert (await world.guess(ALICE, world.sms.code_of(ALICE))).status_code == 200
        assert await world.redis.keys("*") == []


async def test_the_wait_that_is_named_is_that_of_the_limit_that_holds_longest(open_world: Open) -> None:
    async with open_world(otp_budgets=OtpBudgets(prefix_hour=1)) as world:
        await world.ask(ALICE)
        refused = await world.ask(ALICE)
        assert world.refusals == {"prefix_hour": 1}
        assert refused.json()["retry_after_s"] > 3_500


async def test_pumping_by_adjacent_numbers_from_rotating_addresses_sends_the_budget_and_not_one_more(
    open_world: Open,
) -> None:
    """20,000 requests (4,000 in the short form), each from an address of its own: limits by address see nothing."""
    requests = 20_000 if FULL else 4_000
    honest = [f"+8613{n:02d}{n:02d}55555" for n in range(50)]
    async with open_world() as world:
        budget = world.settings.otp_budgets
        # A premium range, its neighbours in another country, and every number twice.
        range_of = [*neighbours(requests // 4), *(f"+2348{n:09d}" for n in range(requests // 4))] * 2
        logged_in = 0
        for start in range(0, requests, 400):
            answers = await asyncio.gather(*(world.ask(phone) for phone in range_of[start : start + 400]))
            assert set(statuses(answers)) <= {202, 429}
            # Meanwhile honest people ask, read and log in.
            for phone in honest[start * 50 // requests : (start + 400) * 50 // requests]:
                logged_in += (await world.guess(phone, await world.code_for(phone))).status_code == 200
        attacked = Counter(prefix_of(phone, int(phone[1:4]), 5) for phone, _ in world.sms.sent if phone[1:3] != "86")
        assert attacked
        assert set(attacked.values()) == {budget.prefix_hour}
        assert len(world.sms.sent) == sum(attacked.values()) + len(honest)
        assert logged_in == len(honest)
        assert sum(world.refusals.values()) == requests - sum(attacked.values())


async def test_twenty_thousand_wishes_over_four_processes_take_every_budget_exactly(valkey: Valkey) -> None:
    budgets = OtpBudgets(global_hour=500, global_day=500, breaker_percent=0)
    servers = [RedisServer(valkey.url, timeout_s=30.0) for _ in range(4)]
    async with otp_world(valkey):
        chance = random.Random(7)
        taken: list[tuple[str, str]] = []

        async def attack(budget: RedisOtpBudget) -> None:
            for _ in range(20_000 // 32):
                # Four prefixes reach their own limit, and then the rest reaches that of all.
                (which,) = chance.choices(range(16), [50] * 4 + [1] * 12)
                prefix, phone = f"37060{which:03d}", f"p{which}-{chance.randrange(400)}"
                if (await budget.take(phone, prefix, budgets)).refused is None:
                    taken.append((phone, prefix))

        await asyncio.gather(*(attack(RedisOtpBudget(servers[n % 4])) for n in range(32)))
    for server in servers:
        await server.close()
    assert len(taken) == 500
    assert max(Counter(prefix for _, prefix in taken).values()) == budgets.prefix_hour
    assert max(Counter(phone for phone, _ in taken).values()) == 1


@pytest.mark.parametrize("lost", ["budget", "store", "network"])
async def test_what_could_not_be_sent_is_used_up_all_the_same(open_world: Open, lost: str) -> None:
    async def gone(*_: Any) -> Any:
        raise StoreUnavailable("gone")

    async with open_world(otp_budgets=OtpBudgets(global_hour=3)) as world:
        place, name = {"budget": (world.limiter, "hit"), "store": (world.otp, "put"), "network": (world.sms, "send")}[
            lost
        ]
        working = getattr(place, name)
        setattr(place, name, gone)
        assert (await world.ask(BOB)).status_code == 503
        setattr(place, name, working)
        assert statuses(list(await asyncio.gather(*(world.ask(f"+86138{n}0000001") for n in range(5)))))[202] <= 3
        assert world.metrics.counts["otp_sent"] == len(world.sms.sent) == (3 if lost == "budget" else 2)


# --- the breaker ---

BREAKER = OtpBudgets(breaker_codes=10, breaker_percent=20)


async def pumped(world: OtpWorld, count: int, used: int = 0, start: int = 0) -> None:
    for place, phone in enumerate(neighbours(count, start)):
        code = await world.code_for(phone)
        if place < used:
            assert (await world.guess(phone, code)).status_code == 200
    await world.time_passes(120)


async def test_a_prefix_whose_codes_nobody_uses_is_shut_for_an_hour_and_others_stay_open(open_world: Open) -> None:
    async with open_world(otp_budgets=BREAKER) as world:
        await pumped(world, 10, used=1)
        refused = await world.ask(neighbours(1, 500)[0])
        assert refused.status_code == 429
        assert refused.json()["retry_after_s"] == 3_600
        assert world.refusals == {"breaker": 1}
        assert world.metrics.counts["otp_breaker_opened"] == 1
        assert world.metrics.gauges["otp_prefixes_shut"] == 1
        assert (await world.ask(BOB)).status_code == 202
        await world.time_passes(3_599)
        assert (await world.ask(neighbours(1, 501)[0])).status_code == 429
        await world.time_passes(1)
        assert (await world.ask(neighbours(1, 502)[0])).status_code == 202
        assert world.metrics.gauges["otp_prefixes_shut"] == 0
        assert world.metrics.counts["otp_breaker_opened"] == 1


async def test_a_prefix_that_was_shut_is_judged_by_what_was_sent_since(open_world: Open) -> None:
    async with open_world(otp_budgets=OtpBudgets(breaker_codes=10, breaker_percent=20, shut_s=600)) as world:
        await pumped(world, 10)
        assert (await world.ask(neighbours(1, 500)[0])).status_code == 429
        await world.time_passes(600)
        await pumped(world, 10, start=600)
        assert (await world.ask(neighbours(1, 700)[0])).status_code == 429
        assert world.metrics.counts["otp_breaker_opened"] == 2


@pytest.mark.parametrize(
    ("count", "used", "change"),
    [
        (9, 0, {}),
        (10, 2, {}),
        (10, 0, {"breaker_percent": 0}),
        (10, 0, {"breaker_wait_s": 600}),
        (10, 0, {"breaker_window_s": 60}),
    ],
    ids=["too-few-to-judge", "enough-are-used", "switched-off", "not-read-yet", "out-of-the-window"],
)
async def test_a_prefix_stays_open(open_world: Open, count: int, used: int, change: dict[str, int]) -> None:
    budgets = OtpBudgets(**({"breaker_codes": 10, "breaker_percent": 20} | change))
    async with open_world(otp_budgets=budgets) as world:
        await pumped(world, count, used=used)
        assert (await world.ask(neighbours(1, 500)[0])).status_code == 202
        assert world.metrics.counts["otp_breaker_opened"] == 0


async def test_in_a_race_a_prefix_is_shut_once_and_nothing_slips_through(open_world: Open) -> None:
    async with open_world(otp_budgets=BREAKER) as world:
        await pumped(world, 10)
        answers = await asyncio.gather(*(world.ask(phone) for phone in neighbours(100, 100)))
        assert statuses(answers) == {429: 100}
        assert world.metrics.counts["otp_breaker_opened"] == 1


@pytest.mark.parametrize(
    ("phone", "country_code", "digits", "prefix"),
    [
        ("+8613800000001", 86, 5, "8613800"),
        ("+8613800000001", 86, 0, "86"),
        ("+37060000001", 370, 5, "37060000"),
        ("+29012345", 290, 5, "29012"),
        ("+29012", 290, 5, "290"),
        ("+390612345678", 39, 5, "3906123"),
        ("+12025550123", 1, 12, "12025550"),
    ],
    ids=["china", "country-alone", "lithuania", "short", "shorter", "leading-zero", "digits-beyond"],
)
def test_neighbours_share_a_prefix_and_the_last_three_digits_are_outside(
    phone: str, country_code: int, digits: int, prefix: str
) -> None:
    assert prefix_of(phone, country_code, digits) == prefix


async def test_counters_hold_no_phone_number_and_leave_with_their_window(world: OtpWorld) -> None:
    await world.guess(ALICE, await world.code_for(ALICE))
    keys = await world.redis.keys("otp-*")
    assert len(keys) == 4
    assert not [key for key in keys if ALICE[-6:].encode() in key]
    assert all([DAY_S < await world.redis.ttl(key) <= DAY_S + 1 for key in keys])
    assert all([await world.redis.llen(key) == 1 for key in keys])
