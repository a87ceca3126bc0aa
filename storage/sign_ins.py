"""Sign-ins by third parties that are under way, in Redis: what is stored is that one may go on, never that it did.

States and link tokens are stored as hashes: who reads the server's memory cannot finish anybody's sign-in with them. Phones are
stored as keyed hashes.
"""

import hashlib

import msgspec

from domain.identities import PendingLink, SignIn
from storage.cache import PhoneNames, RedisServer, Script


class RedisSignIns:
    """`domain.identities.SignInStore`; each operation is one script."""

    def __init__(self, server: RedisServer, names: PhoneNames) -> None:
        self._server = server
        self._names = names

    async def begin(self, state: str, sign_in: SignIn, ttl_s: int) -> None:
        await self._server.run(_BEGIN, _key("sign-in", state), msgspec.json.encode(sign_in), ttl_s)

    async def take(self, state: str) -> SignIn | None:
        stored = await self._server.run(_TAKE, _key("sign-in", state))
        return None if stored is None else msgspec.json.decode(stored, type=SignIn)

    async def offer(self, token: str, link: PendingLink, ttl_s: int) -> None:
        await self._server.run(_OFFER, _key("link", token), msgspec.json.encode(link), ttl_s)

    async def claim(self, token: str, phone: str) -> bool:
        return bool(await self._server.run(_CLAIM, _key("link", token), self._names.of(phone)))

    async def redeem(self, token: str, phone: str) -> PendingLink | None:
        stored = await self._server.run(_REDEEM, _key("link", token), self._names.of(phone))
        return None if stored is None else msgspec.json.decode(stored, type=PendingLink)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _key(kind: str, secret: str) -> str:
    return f"{kind}:{_hash(secret)}"


_BEGIN = Script("redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) return 1")
_TAKE = Script("return redis.call('GETDEL', KEYS[1])")

_OFFER = Script("""
redis.call('HSET', KEYS[1], 'link', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
""")

_CLAIM = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSETNX', KEYS[1], 'phone', ARGV[1])
return redis.call('HGET', KEYS[1], 'phone') == ARGV[1] and 1 or 0
""")

_REDEEM = Script("""
if redis.call('HGET', KEYS[1], 'phone') ~= ARGV[1] then return nil end
local link = redis.call('HGET', KEYS[1], 'link')
redis.call('DEL', KEYS[1])
return link
""")
