"""Which write goes when: one at a time in each stream, in order, again and again until the answer is final. Pure.

The next write of a stream waits for the answer to the one before. To send it earlier would save half a round trip, since a
gateway works on one command of a stream after the other anyway, and would cost the order: where the first is answered
`unavailable`, the second may have landed already.

Where a copy of a write got no answer, it may still land for a while. A refusal counts only when no such copy can land any
more: until then the write is asked again, or it would be reported as refused and land nevertheless, behind its successors.
For the same reason a refused write leaves the device's memory before anything is made of its refusal: the platform does not
remember refusals, and another process of this client would ask again.
"""

from collections import deque
from collections.abc import Callable, Iterable

from gateway.client_settings import Pace
from gateway.client_wire import Write


class _Item:
    __slots__ = ("attempts", "doubt_until_s", "due_s", "flying", "sent_s", "write")

    def __init__(self, write: Write, doubt_until_s: float = 0.0) -> None:
        self.write = write
        self.attempts = 0
        self.due_s = 0.0
        self.flying = False
        self.sent_s = 0.0
        self.doubt_until_s = doubt_until_s


class Outbox:
    """The order of what waits. `kept` are the writes that an earlier process left behind, in their order.

    `chance` gives numbers in [0, 1). `doubt_s` is how long after its sending a copy may land at the latest.
    """

    def __init__(
        self, kept: Iterable[Write], now_s: float, pace: Pace, doubt_s: float, max_in_flight: int,
        chance: Callable[[], float],
    ) -> None:  # fmt: skip
        self._pace = pace
        self._doubt_s = doubt_s
        self._max_in_flight = max_in_flight
        self._chance = chance
        self._lanes: dict[str, deque[_Item]] = {}
        self._items: dict[str, _Item] = {}
        self._idle: dict[str, None] = {}
        self._flying = 0
        for write in kept:
            self._append(_Item(write, now_s + doubt_s))

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, write_id: str) -> bool:
        return write_id in self._items

    @property
    def flying(self) -> int:
        """How many are sent and not answered."""
        return self._flying

    def due_s(self) -> float:
        """When `take` will have something next; infinity if that depends on answers alone."""
        if self._flying >= self._max_in_flight:
            return float("inf")
        return min((self._lanes[name][0].due_s for name in self._idle), default=float("inf"))

    def add(self, write: Write) -> None:
        """The write is stored, and may be sent. A receipt takes the place of a lower one that waits."""
        waiting = self._items.get(write.id)
        if waiting is None:
            self._append(_Item(write))
        elif write.watermark > waiting.write.watermark:
            waiting.write = write

    def take(self, now_s: float) -> list[Write]:
        """What is to be sent now; each is then answered by one of the methods below."""
        taken: list[Write] = []
        for name in list(self._idle):
            if self._flying >= self._max_in_flight:
                break
            item = self._lanes[name][0]
            if item.due_s > now_s:
                continue
            del self._idle[name]
            item.flying, item.sent_s = True, now_s
            item.attempts += 1
            self._flying += 1
            taken.append(item.write)
        return taken

    def attempts(self, write_id: str) -> int:
        item = self._items.get(write_id)
        return 0 if item is None else item.attempts

    def done(self, sent: Write) -> bool:
        """The answer is final: True, and it is gone; False for a receipt that has grown meanwhile and goes again."""
        item = self._land(sent.id)
        return item is not None and self._over(item, sent)

    def refused(self, sent: Write, now_s: float) -> bool:
        """A refusal: True if no earlier copy can land any more; then the lane waits until the write is `forgotten`.

        Else it is asked again when none can.
        """
        item = self._land(sent.id)
        if item is None:
            return False
        if item.doubt_until_s > now_s:
            item.due_s = item.doubt_until_s
            return False
        del self._idle[self._lane(item.write)]
        return True

    def forgotten(self, sent: Write) -> bool:
        """The refused write is not kept any more; as `done`."""
        item = self._items.get(sent.id)
        if item is None:
            return False
        self._idle[self._lane(item.write)] = None
        return self._over(item, sent)

    def unanswered(self, write_id: str, now_s: float, after_s: float = 0.0, *, at_once: bool = False) -> None:
        """Its outcome is unknown; it goes again after `after_s` at least, or `at_once` over another connection."""
        item = self._land(write_id)
        if item is not None:
            item.doubt_until_s = max(item.doubt_until_s, item.sent_s + self._doubt_s)
            pause_s = 0.0 if at_once else self._pace.delay_s(item.attempts, self._chance())
            item.due_s = now_s + max(after_s, pause_s)

    def _over(self, item: _Item, sent: Write) -> bool:
        if item.write.watermark > sent.watermark:
            item.attempts, item.due_s = 0, 0.0
            return False
        lane = self._lane(item.write)
        queue = self._lanes[lane]
        queue.popleft()
        del self._items[sent.id]
        if not queue:
            del self._lanes[lane]
            del self._idle[lane]
        return True

    def _append(self, item: _Item) -> None:
        lane = self._lane(item.write)
        self._items[item.write.id] = item
        if lane not in self._lanes:
            self._lanes[lane] = deque()
            self._idle[lane] = None
        self._lanes[lane].append(item)

    def _land(self, write_id: str) -> _Item | None:
        """It is under way no more."""
        item = self._items.get(write_id)
        if item is None or not item.flying:
            return None
        item.flying = False
        self._flying -= 1
        self._idle[self._lane(item.write)] = None
        return item

    @staticmethod
    def _lane(write: Write) -> str:
        """Receipts wait for nobody: each has a lane of its own."""
        return write.id if write.watermark else write.stream
