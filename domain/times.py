"""Instants: Unix milliseconds inside, RFC 3339 UTC with milliseconds outside."""

from datetime import UTC, datetime
from functools import lru_cache

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
MINUTE_MS = 60_000


def rfc3339(at_ms: int) -> str:
    """The instant as `2026-01-31T09:30:00.000Z`."""
    return f"{_to_the_second(at_ms // 1000)}.{at_ms % 1000:03d}Z"


@lru_cache(maxsize=256)
def _to_the_second(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def epoch_ms(at: datetime) -> int:
    """Unix milliseconds of an aware datetime; a naive one is taken as UTC."""
    aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1000)


def parse_rfc3339(text: str) -> int:
    """Unix milliseconds of an RFC 3339 instant with an offset.

    Raises:
        ValueError: the text is not such an instant.
    """
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("an instant needs an offset")
    return epoch_ms(at)
