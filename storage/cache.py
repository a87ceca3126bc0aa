"""Short-lived shared state in Redis (or Valkey): one-time codes, tickets, rate limits, what the sandbox senders would send.

Each operation is one Lua script, so it is atomic under any race; time is the server's. An operation ends within
`timeout_s`, connecting included, or raises `StoreUnavailable`; the next one connects anew. While the server is silent only one
operation at a time waits for it, and everybody else is told at once: a hung Redis must not slow down what can do without.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
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

    async def run(self, script: Script, keys: str | Sequence[str], *arguments: str | bytes | int) -> Any:
        """Run a script on a key, or on several. Raises StoreUnavailable: it may or may not have run."""
        names = [f"{self._prefix}{key}" for key in ([keys] if isinstance(keys, str) else keys)]
        now_s = time.monotonic()
        if self._silent:
            if now_s < self._try_again_s:
                raise StoreUnavailable("Redis: did not answer a moment ago")
            self._try_again_s = now_s + self._timeout_s + SILENCE_S  # the others wait for what becomes of this one
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._run(script, names, arguments)
        except (TimeoutError, RedisTimeout) as error:
            self._silent, self._try_again_s = True, time.monotonic() + SILENCE_S
            raise StoreUnavailable(f"Redis: no answer in {self._timeout_s:g} s") from error
        except (RedisError, OSError) as error:
            self._silent = False
            raise StoreUnavailable(f"Redis: {error or type(error).__name__}") from error
        self._silent = False
        return answer

    async def _run(self, script: Script, names: Sequence[str], arguments: Sequence[str | bytes | int]) -> Any:
        try:
            return await self._redis.evalsha(script.sha1, len(names), *names, *arguments)
        except NoScriptError:
            return await self._redis.eval(script.source, len(names), *names, *arguments)

    async def ping(self) -> None:
        """Return if the server answers; StoreUnavailable otherwise."""
        await self.run(_PING, "")

    async def close(self) -> None:
        await self._redis.aclose()


_PING = Script("return 1")


class PhoneNames:
    """Names for phone numbers in Redis: equal for equal numbers, and without the secret they say nothing about them.

    There are few enough numbers to try them all against a bare hash.
    """

    def __init__(self, secret: bytes) -> None:
        """`secret` is shared by all processes; the key is derived from it (HKDF), so that it is good for nothing else."""
        self._key = HKDF(SHA256(), 32, None, b"renoveasy phones in redis v1").derive(secret)

    def of(self, phone: str) -> str:
        return hmac.digest(self._key, phone.encode(), "sha256").hex()


class RedisOtp:
    """`ports.OtpStore`. Phones are stored as keyed hashes, and a code's hash is compared inside the server."""

    def __init__(self, server: RedisServer, names: PhoneNames) -> None:
        self._server = server
        self._names = names

    async def put(self, phone: str, code_hash: bytes, ttl_s: int) -> None:
        await self._server.run(_OTP_PUT, self._key(phone), code_hash, ttl_s)

    async def check(self, phone: str, code_hash: bytes, tries: int) -> bool:
        return bool(await self._server.run(_OTP_CHECK, self._key(phone), code_hash, tries))

    def _key(self, phone: str) -> str:
        return f"otp:{self._names.of(phone)}"


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


class RedisTickets:
    """`ports.TicketStore`. What is stored is that a ticket may be used, not that it was: a server that has lost
    everything lets nobody use a ticket twice."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def issue(self, ticket_id: str, ttl_s: int) -> None:
        await self._server.run(_TICKET_ISSUE, f"ticket:{ticket_id}", ttl_s)

    async def spend(self, ticket_id: str) -> bool:
        return bool(await self._server.run(_TICKET_SPEND, f"ticket:{ticket_id}"))


_TICKET_ISSUE = Script("redis.call('SET', KEYS[1], 1, 'EX', ARGV[1]) return 1")
_TICKET_SPEND = Script("return redis.call('DEL', KEYS[1])")


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
