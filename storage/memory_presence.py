"""Who is there, in memory: `ports.PresenceStore` for one process, with a clock that it is given.

Several gateways share one as they share one Redis. It can be taken away, and it can forget.
"""

from collections.abc import Callable, Mapping, Sequence

from domain.ports import Buried, StoreUnavailable
from domain.presence import DEAD_AFTER_MS, LAST_SEEN_MS, Heard, Present, Said, alive, keeps_last_seen


class MemoryPresence:
    """`ports.PresenceStore`. While `is_up` is false every method raises, and nothing happens."""

    def __init__(
        self, now_ms: Callable[[], int], dead_after_ms: int = DEAD_AFTER_MS, last_seen_ms: int = LAST_SEEN_MS
    ) -> None:
        self._now_ms = now_ms
        self._dead_after_ms = dead_after_ms
        self._last_seen_ms = last_seen_ms
        self._live: dict[str, int] = {}
        self._over: dict[str, int] = {}
        self._by: dict[str, dict[str, tuple[Present, ...]]] = {}
        self._seen: dict[str, int] = {}
        self.is_up = True

    def forget(self) -> None:
        """Lose everything, as a server does that is started anew."""
        for kept in (self._live, self._over, self._by, self._seen):
            kept.clear()

    async def enter(self, gateway: str) -> None:
        self._check()
        self._live[gateway] = self._now_ms()

    async def beat(self, gateway: str) -> bool:
        self._check()
        if gateway in self._live:
            self._live[gateway] = self._now_ms()
        return gateway in self._live

    async def say(
        self, gateway: str, here: Mapping[str, Sequence[Present]], gone: Mapping[str, int] | None = None
    ) -> bool:
        self._check()
        if gateway not in self._live:
            return False
        mine = self._by.setdefault(gateway, {})
        mine.update((channel, tuple(clients)) for channel, clients in here.items())
        for channel, ago_ms in (gone or {}).items():
            mine.pop(channel, None)
            self._remember(channel, self._now_ms() - max(0, ago_ms))
        return True

    async def leave(self, gateway: str) -> None:
        self._check()
        if self._live.pop(gateway, None) is not None:
            self._over[gateway] = self._now_ms()

    async def bury(self, limit: int = 500) -> Buried:
        self._check()
        now_ms = self._now_ms()
        for gateway, beat_ms in list(self._live.items()):
            if not alive(beat_ms, now_ms, self._dead_after_ms):
                self._over[gateway] = self._live.pop(gateway)
        if not self._over:
            return Buried()
        gateway = min(self._over, key=lambda name: (self._over[name], name))
        theirs = self._by.get(gateway, {})
        gone = {channel: theirs.pop(channel) for channel in list(theirs)[:limit]}
        for channel in gone:
            self._remember(channel, self._over[gateway])
        if not theirs:
            self._by.pop(gateway, None)
            del self._over[gateway]
        return Buried(gateway, gone, bool(self._over))

    async def read(self, channels: Sequence[str]) -> list[Heard]:
        self._check()
        return [self._heard(channel) for channel in channels]

    def _heard(self, channel: str) -> Heard:
        now_ms = self._now_ms()
        gateways = [(name, beat_ms, over) for all_, over in ((self._live, False), (self._over, True))
                    for name, beat_ms in all_.items()]  # fmt: skip
        said = tuple(
            Said(*gateway, self._by[gateway[0]][channel])
            for gateway in gateways
            if channel in self._by.get(gateway[0], ())
        )
        seen_ms = self._seen.get(channel)
        remembered = seen_ms is not None and now_ms - seen_ms < self._last_seen_ms
        return Heard(now_ms, said, seen_ms if remembered else None)

    def _remember(self, channel: str, at_ms: int) -> None:
        if keeps_last_seen(channel):
            self._seen[channel] = max(at_ms, self._seen.get(channel, 0))

    def _check(self) -> None:
        if not self.is_up:
            raise StoreUnavailable("the memory is away")
