"""Who is there, in Redis: for each gateway one hash of channel → clients, so that a beat refreshes all of them at once.

Keys: `live` and `over` are sorted sets of gateways by their last beat, `by:<gateway>` its hash, `seen:<channel>` when the last
one went. Every operation is one script; a hash that nobody buries is forgotten after a day. The braces keep all keys in one
slot of a Redis cluster.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from domain.ports import Buried
from domain.presence import DEAD_AFTER_MS, LAST_SEEN_MS, Heard, Present, Said, keeps_last_seen, user_channel
from storage.cache import RedisServer, Script

_BASE: Final = "{presence}"
_FORGOTTEN_MS: Final = 86_400_000

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(tuple[Present, ...]).decode


class RedisPresence:
    """`ports.PresenceStore`. Reading a channel costs one look-up for each gateway, whoever is on it."""

    def __init__(
        self, server: RedisServer, dead_after_ms: int = DEAD_AFTER_MS, last_seen_ms: int = LAST_SEEN_MS
    ) -> None:
        self._server = server
        self._dead_after_ms = dead_after_ms
        self._last_seen_ms = last_seen_ms

    async def enter(self, gateway: str) -> None:
        await self._server.run(_ENTER, _BASE, gateway)

    async def beat(self, gateway: str) -> bool:
        return bool(await self._server.run(_BEAT, _BASE, gateway, _FORGOTTEN_MS))

    async def say(
        self, gateway: str, here: Mapping[str, Sequence[Present]], gone: Mapping[str, int] | None = None
    ) -> bool:
        arguments: list[str | bytes | int] = [gateway, _FORGOTTEN_MS, self._last_seen_ms, len(here)]
        for channel, clients in here.items():
            arguments += [channel, _encode(tuple(clients))]
        for channel, ago_ms in (gone or {}).items():
            arguments += [channel, max(0, ago_ms) if keeps_last_seen(channel) else -1]
        return bool(await self._server.run(_SAY, _BASE, *arguments))

    async def leave(self, gateway: str) -> None:
        await self._server.run(_LEAVE, _BASE, gateway)

    async def bury(self, limit: int = 500) -> Buried:
        name, more, *items = await self._server.run(
            _BURY, _BASE, self._dead_after_ms, limit, self._last_seen_ms, user_channel("")
        )
        return Buried(
            name.decode(), {channel.decode(): _decode(clients) for channel, clients in _pairs(items)}, bool(more)
        )

    async def read(self, channels: Sequence[str]) -> list[Heard]:
        now_ms, live, over, *found = await self._server.run(_READ, _BASE, *channels)
        gateways = [(name.decode(), int(beat), ended) for all_, ended in ((live, False), (over, True))
                    for name, beat in _pairs(all_)]  # fmt: skip
        return [_heard(now_ms, gateways, seen, said) for seen, *said in found]


def _heard(now_ms: int, gateways: Sequence[tuple[str, int, bool]], seen: bytes, said: Sequence[Any]) -> Heard:
    """`said`: the number of a gateway, from 1, and its clients, in turn."""
    spoken = ((*gateways[number - 1], _decode(clients)) for number, clients in _pairs(said))
    all_said = tuple(Said(name, beat_ms, over, clients) for name, beat_ms, over, clients in spoken)
    return Heard(now_ms, all_said, int(seen) if seen else None)


def _pairs(flat: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local base, name = KEYS[1], ARGV[1]
"""

_REMEMBER: Final = """
local function remember(channel, at, keep)
  local key = base .. ':seen:' .. channel
  if at > tonumber(redis.call('GET', key) or 0) then
    redis.call('SET', key, string.format('%.0f', at), 'PX', keep)
  end
end
"""

_ENTER = Script(f"""{_NOW}
redis.call('ZADD', base .. ':live', now, name)
return 1
""")

_BEAT = Script(f"""{_NOW}
if not redis.call('ZSCORE', base .. ':live', name) then return 0 end
redis.call('ZADD', base .. ':live', now, name)
redis.call('PEXPIRE', base .. ':by:' .. name, ARGV[2])
return 1
""")

_SAY = Script(f"""{_NOW}{_REMEMBER}
if not redis.call('ZSCORE', base .. ':live', name) then return 0 end
local mine, at = base .. ':by:' .. name, 5
for _ = 1, tonumber(ARGV[4]) do
  redis.call('HSET', mine, ARGV[at], ARGV[at + 1])
  at = at + 2
end
while at < #ARGV do
  local ago = tonumber(ARGV[at + 1])
  redis.call('HDEL', mine, ARGV[at])
  if ago >= 0 then remember(ARGV[at], now - ago, ARGV[3]) end
  at = at + 2
end
redis.call('PEXPIRE', mine, ARGV[2])
return 1
""")

_LEAVE = Script(f"""{_NOW}
if redis.call('ZREM', base .. ':live', name) == 1 then redis.call('ZADD', base .. ':over', now, name) end
return 1
""")

# HRANDFIELD and not HSCAN: a scan that begins anew after each removal finds nothing but empty places in the end.
_BURY = Script(f"""{_NOW}{_REMEMBER}
local limit, keep, one_user = ARGV[2], ARGV[3], ARGV[4]
local dead = redis.call('ZRANGEBYSCORE', base .. ':live', '-inf', now - tonumber(ARGV[1]), 'WITHSCORES')
for n = 1, #dead, 2 do
  redis.call('ZADD', base .. ':over', dead[n + 1], dead[n])
  redis.call('ZREM', base .. ':live', dead[n])
end
local first = redis.call('ZRANGE', base .. ':over', 0, 0, 'WITHSCORES')
if not first[1] then return {{'', 0}} end
local theirs, beat = base .. ':by:' .. first[1], tonumber(first[2])
local items = redis.call('HRANDFIELD', theirs, limit, 'WITHVALUES')
local answer = {{first[1], 0}}
for n = 1, #items, 2 do
  if string.sub(items[n], 1, #one_user) == one_user then remember(items[n], beat, keep) end
  redis.call('HDEL', theirs, items[n])
  answer[#answer + 1] = items[n]
  answer[#answer + 1] = items[n + 1]
end
if redis.call('HLEN', theirs) == 0 then redis.call('ZREM', base .. ':over', first[1]) end
answer[2] = redis.call('ZCARD', base .. ':over')
return answer
""")

_READ = Script(f"""{_NOW}
local live = redis.call('ZRANGE', base .. ':live', 0, -1, 'WITHSCORES')
local over = redis.call('ZRANGE', base .. ':over', 0, -1, 'WITHSCORES')
local answer = {{now, live, over}}
local gateways = {{}}
for n = 1, #live, 2 do gateways[#gateways + 1] = base .. ':by:' .. live[n] end
for n = 1, #over, 2 do gateways[#gateways + 1] = base .. ':by:' .. over[n] end
for _, channel in ipairs(ARGV) do
  local found = {{redis.call('GET', base .. ':seen:' .. channel) or ''}}
  for number, key in ipairs(gateways) do
    local clients = redis.call('HGET', key, channel)
    if clients then
      found[#found + 1] = number
      found[#found + 1] = clients
    end
  end
  answer[#answer + 1] = found
end
return answer
""")
