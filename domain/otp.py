"""How many one-time codes may be sent, so that text messages can neither be pumped nor used up at others' expense."""

from typing import Final, Literal, Protocol, get_args

import msgspec

ADJACENT_DIGITS: Final = 3
"""So many last digits of a number never belong to its prefix: at least a thousand neighbours share one."""

Limit = Literal[
    "phone_gap", "phone_hour", "phone_day", "prefix_hour", "prefix_day", "global_hour", "global_day", "breaker"
]
LIMITS: Final[tuple[Limit, ...]] = get_args(Limit)


class OtpBudgets(msgspec.Struct, frozen=True):
    """How many codes are sent at most: in every window of that length, wherever it begins, for each phone, for each prefix
    and in all. A budget of 0 lets nothing through.

    The breaker shuts a prefix for `shut_s` as soon as at least `breaker_codes` were sent to it within `breaker_window_s`
    and less than `breaker_percent` of a hundred of them were used to log in. Codes younger than `breaker_wait_s` do not count
    as sent: people need time to read them. Where a prefix is open again, it is judged by what was sent since.
    `breaker_percent` 0 never shuts.
    """

    phone_gap_s: int = 60
    """Seconds between two codes for one phone."""
    phone_hour: int = 3
    phone_day: int = 10
    prefix_digits: int = 5
    """A prefix is the country code and so many digits behind it; 0: the country."""
    prefix_hour: int = 60
    prefix_day: int = 300
    global_hour: int = 2_000
    global_day: int = 10_000
    breaker_codes: int = 20
    breaker_percent: int = 10
    breaker_window_s: int = 3_600
    breaker_wait_s: int = 120
    shut_s: int = 3_600


DEFAULT_BUDGETS: Final = OtpBudgets()


class Refused(msgspec.Struct, frozen=True):
    """No code may be sent: which limit is in the way for longest, and for how many seconds."""

    limit: Limit
    wait_s: float


class Taken(msgspec.Struct, frozen=True):
    """What became of the wish to send a code. `refused` None: it may be sent, and is counted everywhere.

    `opened_breaker`: this wish has shut the prefix. `shut_prefixes`: so many are shut now.
    """

    refused: Refused | None
    opened_breaker: bool
    shut_prefixes: int


class OtpBudget(Protocol):
    """Counts codes for all processes together. Every method is atomic under any race and goes by the counter's own clock.

    Raises `StoreUnavailable`: then no code may be sent.
    """

    async def take(self, phone_key: str, prefix: str, budgets: OtpBudgets) -> Taken:
        """Count one code for all limits together, or for none: a refused one counts nowhere.

        Whoever has taken one and cannot send it has used it up all the same: codes sent never exceed codes taken.
        """
        ...

    async def used(self, prefix: str, budgets: OtpBudgets) -> None:
        """A code for this prefix has logged somebody in."""
        ...


def prefix_of(phone: str, country_code: int, digits: int) -> str:
    """What a number in E.164 shares with its neighbours: the country code and `digits` more, without the plus.

    Of short numbers fewer, so that the last `ADJACENT_DIGITS` always stay outside.
    """
    country = str(country_code)
    national = phone.removeprefix("+").removeprefix(country)
    return country + national[: max(0, min(digits, len(national) - ADJACENT_DIGITS))]
