"""One-time codes counted in Redis: one script sees all counters of a code, so that none is sent beyond any budget."""

from typing import Final

from domain.otp import LIMITS, OtpBudgets, Refused, Taken
from storage.cache import RedisServer, Script

_HOUR_US: Final = 3_600 * 1_000_000
_DAY_US: Final = 24 * _HOUR_US


class RedisOtpBudget:
    """`domain.otp.OtpBudget`, exact: counters hold the time of each code, by the server's clock.

    Memory: 8 to 16 bytes for each code of the last day, three times. What the server forgets, when it starts empty, is
    allowed anew.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def take(self, phone_key: str, prefix: str, budgets: OtpBudgets) -> Taken:
        keys = (f"otp-sent:phone:{phone_key}", *_of_prefix(prefix), "otp-sent:all", "otp-shut")
        second = 1_000_000
        limit, wait_us, opened, shut = await self._server.run(
            _TAKE,
            keys,
            *(budgets.phone_gap_s * second, budgets.phone_hour, budgets.phone_day),
            *(budgets.prefix_hour, budgets.prefix_day, budgets.global_hour, budgets.global_day),
            *(budgets.breaker_codes, budgets.breaker_percent),
            *(budgets.breaker_window_s * second, budgets.breaker_wait_s * second, budgets.shut_s * second),
            prefix,
        )
        refused = Refused(LIMITS[limit - 1], wait_us / 1e6) if limit else None
        return Taken(refused, bool(opened), shut)

    async def used(self, prefix: str, budgets: OtpBudgets) -> None:
        _, used = _of_prefix(prefix)
        await self._server.run(_USED, used, max(budgets.prefix_hour, budgets.prefix_day, 1))


def _of_prefix(prefix: str) -> tuple[str, str]:
    return f"otp-sent:prefix:{prefix}", f"otp-used:prefix:{prefix}"


_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function add(key, most)
  redis.call('RPUSH', key, string.format('%.0f', now))
  redis.call('LTRIM', key, -most, -1)
  redis.call('PEXPIRE', key, 86401000)
end
"""

# A list holds times, oldest first. If the most-th from its end has left the window, there is room for one more.
# Everything is judged before anything is written: what one limit refuses counts for none.
_TAKE = Script(
    _NOW
    + f"""
local hour, day = {_HOUR_US}, {_DAY_US}
local phone, sent, used, all, shut = unpack(KEYS)
local prefix = ARGV[13]
local n = {{}}
for i = 1, 12 do n[i] = tonumber(ARGV[i]) end
local codes, percent, window, reading, closing = n[8], n[9], n[10], n[11], n[12]
local limit, longest = 0, 0

local function refuse(which, wait, most)
  wait = math.min(wait, most)
  if wait > longest then limit, longest = which, wait end
end
local function within(which, key, most, span)
  if most <= 0 then return refuse(which, span, span) end
  local first = redis.call('LINDEX', key, -most)
  if first then refuse(which, tonumber(first) + span - now, span) end
end
local function since(key, moment)
  local length = redis.call('LLEN', key)
  local low, high = 0, length
  while low < high do
    local middle = math.floor((low + high) / 2)
    if tonumber(redis.call('LINDEX', key, middle)) > moment then high = middle else low = middle + 1 end
  end
  return length - low
end

within(1, phone, 1, n[1])
within(2, phone, n[2], hour)
within(3, phone, n[3], day)
within(4, sent, n[4], hour)
within(5, sent, n[5], day)
within(6, all, n[6], hour)
within(7, all, n[7], day)

local opened = 0
local closed_until = tonumber(redis.call('ZSCORE', shut, prefix) or '0')
if percent > 0 and closed_until <= now then
  local from = math.max(now - window, closed_until)
  local judged = since(sent, from) - since(sent, math.max(now - reading, from))
  if judged >= codes and since(used, from) * 100 < judged * percent then
    opened, closed_until = 1, now + closing
    redis.call('ZREMRANGEBYSCORE', shut, '-inf', string.format('%.0f', now - window))
    redis.call('ZADD', shut, string.format('%.0f', closed_until), prefix)
    redis.call('PEXPIRE', shut, math.ceil((closing + window) / 1000) + 1000)
  end
end
if percent > 0 then refuse(8, closed_until - now, closing) end

local shut_now = redis.call('ZCOUNT', shut, '(' .. string.format('%.0f', now), '+inf')
if longest > 0 then return {{limit, longest, opened, shut_now}} end
add(phone, math.max(n[2], n[3]))
add(sent, math.max(n[4], n[5]))
add(all, math.max(n[6], n[7]))
return {{0, 0, opened, shut_now}}
"""
)

_USED = Script(_NOW + "add(KEYS[1], tonumber(ARGV[1])) return 1")
