"""Who still waits: deadlines across machines, without comparing anybody's clock with anybody else's."""

from typing import Final

_WINDOW_MS: Final = 8_000
_SENDERS: Final = 4_096


class Deadlines:
    """How late requests are, judged by the least delay seen from the same sender.

    The difference of two monotonic clocks is constant but for a slow drift, so the smallest difference of the last
    seconds is that of a request that came at once; what is above it was spent on the way. The window is short because a
    suspended machine's clock stands still: its requests would all be late until what was seen before is forgotten.
    """

    def __init__(self) -> None:
        self._least: dict[str, tuple[int, int, int]] = {}

    def left_ms(self, reply: str, sent_ms: int, wait_ms: int, now_ms: int) -> int:
        """For how long the sender of a request will go on waiting; `now_ms` is our own monotonic clock."""
        sender = reply.rpartition(".")[0]
        apart = now_ms - sent_ms
        before, least, since_ms = self._least.get(sender, (apart, apart, now_ms))
        if now_ms - since_ms > _WINDOW_MS:
            before, least, since_ms = least, apart, now_ms
        least = min(least, apart)
        if sender not in self._least and len(self._least) >= _SENDERS:
            del self._least[next(iter(self._least))]
        self._least[sender] = (before, least, since_ms)
        return wait_ms - (apart - min(before, least))
