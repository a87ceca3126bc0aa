"""The REST application whose codes, counters and limits are those of a real Valkey, with limits on, behind one proxy."""

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from redis.asyncio import Redis

from storage.cache import RedisOtp, RedisRateLimiter, RedisServer
from storage.otp_budget import RedisOtpBudget
from tests.support.fake_platform import CountingMetrics
from tests.support.keys import PHONE_NAMES
from tests.support.rest_app import World
from tests.support.servers import Valkey

DEVICE = {"id": "d", "name": "d", "platform": "ios"}


class CountedSms:
    """A phone network that only remembers what it was given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    async def send(self, phone: str, text: str, code: str | None) -> None:
        assert code is not None
        self.sent.append((phone, code))

    def code_of(self, phone: str) -> str:
        return next(code for to, code in reversed(self.sent) if to == phone)


class OtpWorld(World):
    """`http` speaks to `served`, the application; `address` gives an address that nobody has used yet."""

    http: httpx.AsyncClient
    served: Any

    def __init__(self, server: RedisServer, redis: "Redis[bytes]", **settings: Any) -> None:
        super().__init__(**({"rate_limits": True, "trusted_hops": 1} | settings))
        self.redis = redis
        self.otp = RedisOtp(server, PHONE_NAMES)
        self.otp_budget = RedisOtpBudget(server)
        self.limiter = RedisRateLimiter(server)
        self.sms = CountedSms()
        self.metrics = CountingMetrics()
        self._addresses: Iterator[int] = itertools.count(0x0B_00_00_01)

    def address(self) -> str:
        number = next(self._addresses)
        return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))

    async def ask(self, phone: str, address: str = "") -> httpx.Response:
        """Ask for a code, from an address of its own unless one is given."""
        headers = {"X-Forwarded-For": address or self.address()}
        return await self.http.post("/v1/auth/otp", json={"phone": phone}, headers=headers)

    async def guess(self, phone: str, code: Any, address: str = "") -> httpx.Response:
        body = {"phone": phone, "code": code, "device": DEVICE}
        headers = {"X-Forwarded-For": address or self.address()}
        return await self.http.post("/v1/auth/otp/verify", json=body, headers=headers)

    async def code_for(self, phone: str) -> str:
        assert (await self.ask(phone)).status_code == 202
        return self.sms.code_of(phone)

    async def time_passes(self, seconds: int) -> None:
        """Everything that the counters remember is so much older."""
        for key in await self.redis.keys("otp-*"):
            if key == b"otp-shut":
                for prefix, _ in await self.redis.zrange(key, 0, -1, withscores=True):
                    await self.redis.zincrby(key, -seconds * 1_000_000, prefix)
                continue
            times = [int(time) - seconds * 1_000_000 for time in await self.redis.lrange(key, 0, -1)]
            for place, time in enumerate(times):
                await self.redis.lset(key, place, str(time))

    @property
    def refusals(self) -> Counter[str]:
        """How often each limit has refused a code."""
        counts = self.metrics.counts
        return Counter({name.removeprefix("otp_refused_"): n for name, n in counts.items() if "otp_refused_" in name})


@asynccontextmanager
async def otp_world(valkey: Valkey, timeout_s: float = 30.0, **settings: Any) -> AsyncIterator[OtpWorld]:
    """A world over a server that has been emptied; patient, so that a busy machine changes no answer."""
    if not valkey.running:
        valkey.start()
    server = RedisServer(valkey.url, timeout_s=timeout_s)
    try:
        async with Redis.from_url(valkey.url) as redis:
            await redis.flushall()
            world = OtpWorld(server, redis, **settings)
            world.served = world.app()
            async with httpx.AsyncClient(transport=httpx.ASGITransport(world.served), base_url="http://rest") as http:
                world.http = http
                yield world
    finally:
        await server.close()
