"""A client's access token: when a fresh one is to be fetched, and what to do when there is none. Pure."""

from collections.abc import Callable
from typing import Final

from gateway.client_settings import Pace

_NEVER: Final = float("inf")


class Token:
    """`text` is the last one that is not known to be worthless; empty if there is none."""

    __slots__ = ("_attempts", "_chance", "_fetching", "_pace", "_retry_s", "no_more", "text")

    def __init__(self, pace: Pace, chance: Callable[[], float]) -> None:
        self._pace = pace
        self._chance = chance
        self._attempts = 0
        self._fetching = False
        self._retry_s = _NEVER
        self.text = ""
        self.no_more = False
        """Set once there will not be another one."""

    @property
    def coming(self) -> bool:
        """Whether one is being fetched, or will be by itself."""
        return self._fetching or self._retry_s < _NEVER

    @property
    def retry_s(self) -> float:
        """When `tick` has something to do."""
        return self._retry_s

    def fetch(self) -> bool:
        """Whether one is to be fetched now, because it is wanted and nobody does so."""
        if self.no_more or self.coming:
            return False
        self._fetching = True
        return True

    def tick(self, now_s: float) -> bool:
        """As `fetch`, after a failure."""
        if self._retry_s > now_s:
            return False
        self._retry_s = _NEVER
        return self.fetch()

    def fresh(self, text: str) -> None:
        self.text, self._fetching, self._attempts = text, False, 0

    def failed(self, now_s: float, *, for_good: bool) -> None:
        self._fetching = False
        if for_good:
            self.no_more = True
        else:
            self._attempts += 1
            self._retry_s = now_s + self._pace.delay_s(self._attempts, self._chance())
