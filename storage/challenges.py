"""Challenges of device keys, and counted tries, in Redis (or Valkey): each operation is one script, atomic under any race."""

import hashlib

from storage.cache import RedisServer, Script


class RedisChallenges:
    """`domain.devices.ChallengeStore`. What is stored is that a challenge may be used: a server that has lost everything
    lets none through."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def issue(self, challenge: str, key_id: str, ttl_s: int) -> None:
        await self._server.run(_ISSUE, _key(challenge), key_id, ttl_s)

    async def spend(self, challenge: str, key_id: str) -> bool:
        return bool(await self._server.run(_SPEND, _key(challenge), key_id))


def _key(challenge: str) -> str:
    """Hashed: what a caller sends may be long, or not even text that can be encoded."""
    return f"challenge:{hashlib.sha256(challenge.encode('utf-8', 'surrogatepass')).hexdigest()}"


_ISSUE = Script("redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) return 1")
_SPEND = Script("""
local issued_to = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
return issued_to == ARGV[1] and 1 or 0
""")


class RedisTries:
    """`domain.devices.TryCounter`."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def take(self, key: str, most: int, pause_s: int) -> float | None:
        wait_ms = await self._server.run(_TAKE, f"tries:{key}", most, pause_s * 1000)
        return None if wait_ms == 0 else wait_ms / 1000

    async def clear(self, key: str) -> None:
        await self._server.run(_CLEAR, f"tries:{key}")


_TAKE = Script("""
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then
  return math.max(redis.call('PTTL', KEYS[1]), 1)
end
redis.call('INCR', KEYS[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 0
""")
_CLEAR = Script("return redis.call('DEL', KEYS[1])")
