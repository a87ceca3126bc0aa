"""What streams do by themselves: reminders fire late rather than lost, and are harmless when early, late or double.

The log holds every reminder; the near ones are in a heap here. Firing one is an ordinary command of the platform's to its
stream, whose first guard is that the reminder still stands.
"""

import asyncio
import contextlib
import heapq
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from actors.turn import OVER
from domain.channels import STREAM_KINDS, stream_partition
from domain.commands import SYSTEM, Accepted, Answer, Command, Reminder
from domain.errors import Code, Refused
from domain.ports import Clock, Metrics, OutcomeUnknown, PartitionLog, StoreUnavailable, Turn

log = logging.getLogger(__name__)

HORIZON_MS: Final = 60_000
"""How far ahead reminders are held in memory."""
PAGE: Final = 2_000
AT_ONCE: Final = 64
"""Reminders that may be under way; after an outage all that are overdue fire in order, at the pace of their commits."""
PATIENCE_S: Final = 10.0
"""A firing without an answer is repeated after this."""
RETRY_S: Final = 1.0
REFUSED_S: Final = 60.0
"""A firing that fails, or that the rules refuse although the reminder stands, is tried again after this, here or not."""
SORE: Final = 10_000
"""Such reminders as are remembered."""
LONGEST_SLEEP_S: Final = 1.0

Submit = Callable[[Command, Callable[[Answer], None]], None]


class Reminders:
    """Fires what is due in the partitions that a host owns. One event loop; `run` does the work."""

    def __init__(
        self,
        partition_log: PartitionLog,
        clock: Clock,
        metrics: Metrics,
        submit: Submit,
        owned: Callable[[], Iterable[int]],
    ) -> None:
        self._log = partition_log
        self._clock = clock
        self._metrics = metrics
        self._submit = submit
        self._owned = owned
        self._near: dict[tuple[str, str], Reminder] = {}
        self._heap: list[tuple[float, int, Reminder]] = []
        """By the wall clock: what becomes due."""
        self._again: list[tuple[float, int, Reminder]] = []
        """By the monotonic clock: what is tried again."""
        self._firing: dict[Reminder, float] = {}
        self._not_before: dict[Reminder, float] = {}
        self._moved: set[tuple[str, str]] | None = None
        self._over: list[Reminder] = []
        self._pushed = 0
        self._known_until_ms = 0
        self._wake = asyncio.Event()

    # --- what the host calls ---------------------------------------------------------------------------------------

    def look(self) -> None:
        """More partitions are owned: what is stored of them must be read."""
        self._known_until_ms = 0
        self._wake.set()

    def forget(self, partition: int) -> None:
        """The partition is not ours any more."""
        for key in [key for key in self._near if stream_partition(key[0]) == partition]:
            self._firing.pop(self._near.pop(key), None)

    def landed(self, turn: Turn) -> None:
        """The turn is durable: so is what it says of reminders."""
        for key in turn.done:
            self._take_out(key)
        for reminder in turn.reminders:
            self._take_out((reminder.stream, reminder.name))
            if reminder.due_at <= self._known_until_ms:
                self._add(reminder)

    def of(self, stream: str) -> list[Reminder]:
        """The near ones of a stream."""
        return [reminder for (name, _), reminder in self._near.items() if name == stream]

    # --- at work ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            self._wake.clear()
            try:
                if self._clock.now_ms() > self._known_until_ms - HORIZON_MS // 2:
                    await self._read()
                await self._drop_over()
            except (StoreUnavailable, OutcomeUnknown) as error:
                log.warning("reminders wait: %s", error)
            except Exception:
                log.exception("reminders could not be read")
            try:
                self._fire_due()
            except Exception:
                log.exception("reminders could not be fired")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._sleep_s())

    async def _read(self) -> None:
        """Bring everything that is due within the horizon into memory.

        What commits while this reads says so itself (`landed`), hence the horizon moves first; what is removed meanwhile
        and read all the same is found over when it fires.
        """
        before, partitions = self._known_until_ms, list(self._owned())
        until_ms = self._known_until_ms = self._clock.now_ms() + HORIZON_MS
        moved = self._moved = set()
        try:
            rows = await self._log.reminders(partitions, until_ms + 1, PAGE)
        except BaseException:
            if self._known_until_ms == until_ms:  # else partitions came meanwhile: nothing is known of them
                self._known_until_ms = before
            raise
        finally:
            self._moved = None
        if self._known_until_ms != until_ms:
            return  # partitions came meanwhile: read again
        owned = set(self._owned())
        for reminder in rows:
            key = (reminder.stream, reminder.name)
            if key not in moved and key not in self._near and stream_partition(reminder.stream) in owned:
                self._add(reminder)
        if len(rows) == PAGE:
            self._known_until_ms = rows[-1].due_at

    def _add(self, reminder: Reminder) -> None:
        self._near[reminder.stream, reminder.name] = reminder
        self._pushed += 1
        if reminder in self._not_before:
            heapq.heappush(self._again, (self._not_before[reminder], self._pushed, reminder))
        else:
            heapq.heappush(self._heap, (reminder.due_at, self._pushed, reminder))
        self._wake.set()

    def _take_out(self, key: tuple[str, str]) -> None:
        if self._moved is not None:
            self._moved.add(key)
        reminder = self._near.pop(key, None)
        if reminder is not None:
            self._not_before.pop(reminder, None)
            if self._firing.pop(reminder, None) is not None:
                self._wake.set()  # its answer comes later, and finds nothing to make room for

    def _sleep_s(self) -> float:
        if len(self._firing) >= AT_ONCE:
            return LONGEST_SLEEP_S
        due_s = (self._heap[0][0] - self._clock.now_ms()) / 1000 if self._heap else LONGEST_SLEEP_S
        again_s = self._again[0][0] - self._clock.monotonic_s() if self._again else LONGEST_SLEEP_S
        return min(LONGEST_SLEEP_S, max(0.001, min(due_s, again_s)))

    def _fire_due(self) -> None:
        now_ms, now_s = self._clock.now_ms(), self._clock.monotonic_s()
        for reminder in [r for r, until_s in self._firing.items() if until_s < now_s]:
            self._retry(reminder, now_s)
        for queue, now in ((self._again, now_s), (self._heap, float(now_ms))):
            while queue and queue[0][0] <= now and len(self._firing) < AT_ONCE:
                reminder = heapq.heappop(queue)[2]
                if self._near.get((reminder.stream, reminder.name)) is reminder and reminder not in self._firing:
                    self._fire(reminder, now_s)
        oldest_ms = min((reminder.due_at for reminder in self._firing), default=now_ms)
        self._metrics.gauge("reminders_near", len(self._near))
        self._metrics.gauge("oldest_overdue_reminder_s", max(0, now_ms - oldest_ms) / 1000)

    def _fire(self, reminder: Reminder, now_s: float) -> None:
        self._firing[reminder] = now_s + PATIENCE_S
        kind, _, stream_id = reminder.stream.partition(":")
        known = next(known for known in STREAM_KINDS if known == kind)
        command = Command(
            known, stream_id, reminder.command, SYSTEM, reminder.command_id, reminder.payload, reminder=reminder
        )
        self._metrics.count("reminders_fired")
        self._submit(command, partial(self._answered, reminder))

    def _answered(self, reminder: Reminder, answer: Answer) -> None:
        if self._firing.pop(reminder, None) is None:
            return
        now_s = self._clock.monotonic_s()
        if answer == OVER or (isinstance(answer, Accepted) and answer.replayed):
            self._take_out((reminder.stream, reminder.name))
            self._over.append(reminder)
            self._wake.set()
        elif isinstance(answer, Refused) and answer.code in (Code.FENCED, Code.BUSY):
            self._retry(reminder, now_s + RETRY_S)
        else:
            log.error("%s of %s stands although it fired: %r", reminder.name, reminder.stream, answer)
            if len(self._not_before) >= SORE:
                del self._not_before[next(iter(self._not_before))]
            self._not_before[reminder] = now_s + REFUSED_S
            self._retry(reminder, now_s + REFUSED_S)
        if len(self._firing) < AT_ONCE:
            self._wake.set()

    def _retry(self, reminder: Reminder, at_s: float) -> None:
        self._firing.pop(reminder, None)
        if self._near.get((reminder.stream, reminder.name)) is reminder:
            self._pushed += 1
            heapq.heappush(self._again, (at_s, self._pushed, reminder))
            self._wake.set()

    async def _drop_over(self) -> None:
        """Remove from the store what turned out to be over."""
        over, self._over = self._over, []
        try:
            if over:
                await self._log.drop_reminders(over)
        except BaseException:
            self._over = over + self._over
            raise
