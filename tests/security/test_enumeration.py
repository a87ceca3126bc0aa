"""SEC-28: whether somebody is registered, or something exists, is told neither by the body of an answer nor by its time."""

import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec
import pytest
import pytest_asyncio

from domain.access import Role
from domain.otp import OtpBudgets
from tests.security.city import Answer, City
from tests.security.tally import Tally
from tests.support.hostile import FULL
from tests.support.ranks import mann_whitney
from tests.support.servers import Valkey

SAMPLES: Final = 2_000 if FULL else 12
LEAST_P: Final = 0.01
KNOWN: Final = 40
"""People, so that no single row's place in a page of the database decides."""
DEVICE: Final = {"id": "a-phone", "name": "phone", "platform": "ios"}


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with Valkey() as valkey:
        yield valkey.url


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def city(url: str, redis_url: str) -> AsyncIterator[City]:
    most = dict.fromkeys(("phone_hour", "phone_day", "prefix_hour", "prefix_day", "global_hour", "global_day"), 10**8)
    budgets = OtpBudgets(phone_gap_s=0, breaker_percent=0, **most)
    async with City(url, redis_url, otp_budgets=budgets) as made:
        await made.settle()
        yield made


Asked = Callable[[], Awaitable[Answer]]


class Doors:
    """By name: how something known and something unknown is asked about.

    Each returns what to ask, with all that it needs: only the asking is timed. Both have as many of theirs, each asked about
    as often, so that neither is remembered better by any cache on the way.
    """

    def __init__(self, city: City, rng: random.Random) -> None:
        self._city, self._rng = city, rng
        self._phones: dict[bool, list[str]] = {
            True: [],
            False: [f"+86139{rng.randrange(10**8):08d}" for _ in range(KNOWN)],
        }
        self._keys = {True: [city.stranger.ids["key_id"]], False: [city.new_id()]}
        self._rooms = {True: [city.stranger.ids["conversation_id"]], False: [city.new_id()]}

    async def begin(self) -> "Doors":
        for _ in range(KNOWN):
            person = await self._city.person(Role.CUSTOMER)
            self._phones[True].append(person.phone)
        return self

    def _posting(self, path: str, body: dict[str, Any]) -> Asked:
        content = msgspec.json.encode(body)

        async def ask() -> Answer:
            response = await self._city.http.post(path, content=content, headers={"Content-Type": "application/json"})
            return Answer(response.status_code, response.content, dict(response.headers))

        return ask

    async def request(self, known: bool) -> Asked:
        return self._posting("/v1/auth/otp", {"phone": self._rng.choice(self._phones[known])})

    async def verify(self, known: bool) -> Asked:
        """A wrong code, to somebody to whom one was sent just now."""
        phone = self._rng.choice(self._phones[known])
        await self._posting("/v1/auth/otp", {"phone": phone})()
        return self._posting("/v1/auth/otp/verify", {"phone": phone, "code": "000000", "device": DEVICE})

    async def refresh(self, known: bool) -> Asked:
        """A token that nobody has: one of nobody's making, or one that begins as the platform's do."""
        random_text = "".join(self._rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=43))
        real = self._city.platform.tokens.refresh()
        token = real[:-8] + random_text[:8] if known else random_text
        return self._posting("/v1/auth/refresh", {"refresh_token": token[:43]})

    async def search(self, known: bool) -> Asked:
        """In a conversation of a stranger's, which is in use, and in one that nobody has and nobody has asked about."""
        room = self._rooms[known][0] if known else self._city.new_id()
        path = f"/v1/conversations/{room}/messages/search"
        person = self._city.of[Role.CUSTOMER].owner

        async def ask() -> Answer:
            answer = await person.ask("GET", path, params={"q": "secret"})
            return Answer(answer.status, answer.like(room), {})

        return ask

    async def challenge(self, known: bool) -> Asked:
        key = self._keys[known][0]
        posting = self._posting("/v1/auth/device-login/challenge", {"key_id": key})

        async def ask() -> Answer:
            answer = await posting()
            return Answer(answer.status, b"" if answer.status == 200 else answer.like(key), {})

        return ask


DOORS: Final = ("request", "verify", "refresh", "search", "challenge")
TARGETS: Final = {
    "request": "POST /v1/auth/otp",
    "verify": "POST /v1/auth/otp/verify",
    "refresh": "POST /v1/auth/refresh",
    "search": "GET /v1/conversations/{conversation_id}/messages/search",
    "challenge": "POST /v1/auth/device-login/challenge",
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def doors(city: City) -> Doors:
    return await Doors(city, random.Random(28)).begin()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("door", DOORS)
async def test_what_is_known_is_answered_like_what_is_not(city: City, doors: Doors, tally: Tally, door: str) -> None:
    prepare: Callable[[bool], Awaitable[Asked]] = getattr(doors, door)
    took_s: dict[bool, list[float]] = {True: [], False: []}
    said: dict[bool, set[tuple[int, bytes]]] = {True: set(), False: set()}
    order = [True, False] * (SAMPLES + 50)
    random.Random(door).shuffle(order)
    for known in order:
        ask = await prepare(known)
        began_s = time.perf_counter()
        answer = await ask()
        took_s[known].append(time.perf_counter() - began_s)
        said[known].add((answer.status, answer.like() if answer.headers else answer.body))
    tally.tried("SEC-28", "known or not, by the body", TARGETS[door], len(order))
    assert said[True] == said[False]
    assert len(said[True]) == 1, said[True]
    if FULL:
        one, two = took_s[True][50:], took_s[False][50:]
        p = mann_whitney(one, two)
        medians = [round(statistics.median(each) * 1000, 3) for each in (one, two)]
        print(f"\n{door}: {len(one)} and {len(two)} samples, medians {medians} ms, p = {p:.3f}", flush=True)
        tally.tried("SEC-28", "known or not, by the time", TARGETS[door], len(one) + len(two))
        assert p > LEAST_P


def test_the_ranks_tell_apart_what_differs_and_nothing_else() -> None:
    rng = random.Random(1)
    one = [rng.expovariate(1.0) for _ in range(2_000)]
    two = [rng.expovariate(1.0) for _ in range(2_000)]
    assert mann_whitney(one, two) > 0.05
    assert mann_whitney(one, [value + 0.15 for value in two]) < 0.001
    assert mann_whitney([1.0] * 50, [1.0] * 50) == 1.0
    tied, other = [1.0, 2, 2, 3, 4, 4, 5, 5, 6, 7], [3.0, 4, 5, 5, 6, 6, 7, 7, 8, 9]
    assert abs(mann_whitney(tied, other) - shuffled(tied, other, rng)) < 0.015
    false_alarms = sum(
        mann_whitney([rng.random() for _ in range(100)], [rng.random() for _ in range(100)]) < 0.05 for _ in range(400)
    )
    assert 5 <= false_alarms <= 38


def shuffled(one: list[float], two: list[float], rng: random.Random) -> float:
    """The same p-value by trying: how often two random halves of all values have rank sums that differ at least so much."""
    both, far = one + two, 0

    def distance(some: list[float], others: list[float]) -> float:
        wins = sum((a > b) + (a == b) / 2 for a in some for b in others)
        return abs(wins - len(some) * len(others) / 2)

    found = distance(one, two)
    for _ in range(4_000):
        rng.shuffle(both)
        far += distance(both[: len(one)], both[len(one) :]) >= found
    return far / 4_000
