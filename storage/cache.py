"""Short-lived shared state in Redis (or Valkey): one-time codes, rate limits, and what the sandbox senders would send.

Each operation is one Lua script, so it is atomic under any race; time is the server's. An operation ends within
`timeout_s`, connecting included, or raises `StoreUnavailable`; the next one connects anew. While the server is silent only one
operation at a time waits for it, and everybody else is told at once: a hung Redis must not slow down what can do without.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeout

from domain.ports import StoreUnavailable

TIMEOUT_S: Final = 0.9
SILENCE_S: Final = 0.5
"""How long after an operation that was not answered the next one tries."""
_CONNECTIONS: Final = 16


class Script:
    """A Lua script, sent in full only where the server does not know it yet."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha1 = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class RedisServer:
    """A connection pool to one Redis, for the stores below. `prefix` and a colon stand before every key.

    Nothing is connected before the first use.
    """

    def __init__(self, url: str, prefix: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self._prefix = f"{prefix}:" if prefix else ""
        self._timeout_s = timeout_s
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # One retry: it replaces a pooled connection that died with an earlier server.
            retry=Retry(NoBackoff(), 1),
            decode_responses=False,
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._silent = False
        self._try_again_s = 0.0

    async def run(self, script: Script, key: str, *arguments: str | bytes | int) -> Any:
        """Run a script on one key. Raises StoreUnavailable: it may or may not have run."""
        now_s = time.monotonic()
        if self._silent:
            if now_s < self._try_again_s:
                raise StoreUnavailable("Redis: did not answer a moment ago")
            self._try_again_s = now_s + self._timeout_s + SILENCE_S  # the others wait for what becomes of this one
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._run(script, f"{self._prefix}{key}", arguments)
        except (TimeoutError, RedisTimeout) as error:
            self._silent, self._try_again_s = True, time.monotonic() + SILENCE_S
            raise StoreUnavailable(f"Redis: no answer in {self._timeout_s:g} s") from error
        except (RedisError, OSError) as error:
            self._silent = False
            raise StoreUnavailable(f"Redis: {error or type(error).__name__}") from error
        self._silent = False
        return answer

    async def _run(self, script: Script, name: str, arguments: Sequence[str | bytes | int]) -> Any:
        try:
            return await self._redis.evalsha(script.sha1, 1, name, *arguments)
        except NoScriptError:
            return await self._redis.eval(script.source, 1, name, *arguments)

    async def ping(self) -> None:
        """Return if the server answers; StoreUnavailable otherwise."""
        await self.run(_PING, "")

    async def close(self) -> None:
        await self._redis.aclose()


_PING = Script("return 1")


class RedisOtp:
    """`ports.OtpStore`. Phones are stored as hashes, and a code's hash is compared inside the server."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def put(self, phone: str, code_hash: bytes, ttl_s: int) -> None:
        await self._server.run(_OTP_PUT, _otp_key(phone), code_hash, ttl_s)

    async def check(self, phone: str, code_hash: bytes, tries: int) -> bool:
        return bool(await self._server.run(_OTP_CHECK, _otp_key(phone), code_hash, tries))


def _otp_key(phone: str) -> str:
    return f"otp:{hashlib.sha256(phone.encode()).hexdigest()}"


_OTP_PUT = Script("""
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'hash', ARGV[1], 'tries', 0)
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
""")

_OTP_CHECK = Script("""
local hash = redis.call('HGET', KEYS[1], 'hash')
if not hash then return 0 end
local tries = redis.call('HINCRBY', KEYS[1], 'tries', 1)
local right = hash == ARGV[1] and tries <= tonumber(ARGV[2])
if right or tries >= tonumber(ARGV[2]) then redis.call('DEL', KEYS[1]) end
return right and 1 or 0
""")


class RedisRateLimiter:
    """`ports.RateLimiter`, exact: no window of that length, wherever it begins, holds more than `limit` counted hits.

    A refused hit is not counted. Memory: 8 to 16 bytes for each of the last `limit` hits of a key.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def hit(self, key: str, limit: int, window_s: int) -> float | None:
        if limit <= 0:
            return float(window_s)
        wait_us = await self._server.run(_HIT, f"rate:{key}", limit, window_s * 1_000_000)
        return None if wait_us == 0 else wait_us / 1e6


# The list holds the times of the last `limit` hits: if the first of them has left the window, there is room for one.
_HIT = Script("""
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local first = redis.call('LINDEX', KEYS[1], -limit)
if first then
  local wait = tonumber(first) + window - now
  if wait > 0 then return math.min(wait, window) end
end
redis.call('RPUSH', KEYS[1], string.format('%.0f', now))
redis.call('LTRIM', KEYS[1], -limit, -1)
redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000) + 1000)
return 0
""")


class RedisOutbox:
    """`ports.Outbox`: the last 1,000 items, newest first."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def add(self, to: str, kind: str, text: str, code: str | None, at: int) -> None:
        item = {"to": to, "kind": kind, "text": text, "at": at} | ({} if code is None else {"code": code})
        await self._server.run(_OUTBOX_ADD, "outbox", json.dumps(item))

    async def items(self, to: str | None, limit: int) -> list[dict[str, Any]]:
        stored: Sequence[bytes] = await self._server.run(_OUTBOX_READ, "outbox")
        items: list[dict[str, Any]] = [json.loads(item) for item in stored]
        return [item for item in items if to is None or item["to"] == to][: max(limit, 0)]


_OUTBOX_ADD = Script("""
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, 999)
return 1
""")

_OUTBOX_READ = Script("return redis.call('LRANGE', KEYS[1], 0, 999)")
