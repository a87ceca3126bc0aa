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
from domain.errors import RETRYABLE, Refused
from domain.ports import Clock, Metrics, OutcomeUnknown, PartitionLog, StoreUnavailable, Turn

log = logging.getLogger(__name__)

HORIZON_MS: Final = 60_000
"""How far ahead reminders are held in memory."""
PAGE: Final = 2_000
AT_ONCE: Final = 64
"""Reminders that may be under way; after an outage all that are overdue fire in order, at the pace of their commits."""
PATIENCE_MS: Final = 10_000
"""A firing without an answer is repeated after this."""
RETRY_MS: Final = 1_000
REFUSED_MS: Final = 60_000
"""A firing that the rules refuse although the reminder stands is tried again after this."""
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
        self._heap: list[tuple[int, int, Reminder]] = []
        self._firing: dict[Reminder, int] = {}
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
        try:
            rows = await self._log.reminders(partitions, until_ms + 1, PAGE)
        except BaseException:
            self._known_until_ms = before
            raise
        if self._known_until_ms != until_ms:
            return  # partitions came meanwhile: read again
        for reminder in rows:
            if self._near.get((reminder.stream, reminder.name)) != reminder:
                self._add(reminder)
        if len(rows) == PAGE:
            self._known_until_ms = rows[-1].due_at

    def _add(self, reminder: Reminder, at_ms: int = 0) -> None:
        self._near[reminder.stream, reminder.name] = reminder
        self._pushed += 1
        heapq.heappush(self._heap, (at_ms or reminder.due_at, self._pushed, reminder))
        self._wake.set()

    def _take_out(self, key: tuple[str, str]) -> None:
        reminder = self._near.pop(key, None)
        if reminder is not None:
            self._firing.pop(reminder, None)

    def _sleep_s(self) -> float:
        if not self._heap or len(self._firing) >= AT_ONCE:
            return LONGEST_SLEEP_S
        return min(LONGEST_SLEEP_S, max(0.001, (self._heap[0][0] - self._clock.now_ms()) / 1000))

    def _fire_due(self) -> None:
        now_ms = self._clock.now_ms()
        for reminder in [r for r, until_ms in self._firing.items() if until_ms < now_ms]:
            self._again(reminder, now_ms)
        while self._heap and self._heap[0][0] <= now_ms and len(self._firing) < AT_ONCE:
            reminder = heapq.heappop(self._heap)[2]
            if self._near.get((reminder.stream, reminder.name)) is reminder and reminder not in self._firing:
                self._fire(reminder, now_ms)
        oldest_ms = min((reminder.due_at for reminder in self._firing), default=now_ms)
        self._metrics.gauge("reminders_near", len(self._near))
        self._metrics.gauge("oldest_overdue_reminder_s", max(0, now_ms - oldest_ms) / 1000)

    def _fire(self, reminder: Reminder, now_ms: int) -> None:
        self._firing[reminder] = now_ms + PATIENCE_MS
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
        now_ms = self._clock.now_ms()
        if answer == OVER or (isinstance(answer, Accepted) and answer.replayed):
            self._take_out((reminder.stream, reminder.name))
            self._over.append(reminder)
            self._wake.set()
        elif isinstance(answer, Refused) and answer.code in RETRYABLE:
            self._again(reminder, now_ms + RETRY_MS)
        else:
            log.error("%s of %s stands although it fired: %r", reminder.name, reminder.stream, answer)
            self._again(reminder, now_ms + REFUSED_MS)
        if len(self._firing) < AT_ONCE:
            self._wake.set()

    def _again(self, reminder: Reminder, at_ms: int) -> None:
        self._firing.pop(reminder, None)
        if self._near.get((reminder.stream, reminder.name)) is reminder:
            self._add(reminder, at_ms)

    async def _drop_over(self) -> None:
        """Remove from the store what turned out to be over."""
        over, self._over = self._over, []
        try:
            if over:
                await self._log.drop_reminders(over)
        except BaseException:
            self._over = over + self._over
            raise
