"""Two people who write to each other without a pause, and a judge of what became of every line."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deploy.ledger import Ledger, differences
from deploy.person import Person
from tests.cluster.conftest import People, addresses_of, conversation_of
from tests.support.platform import Platform

PATIENCE_S = 150.0
PAIRS = 3
LOOPS = 4


class Chat:
    """Two people who write to each other without a pause: every loop sends its next line when the last is acknowledged."""

    def __init__(self, anna: Person, bela: Person, room: str, pause_s: float = 0.0) -> None:
        self.people = (anna, bela)
        self.pause_s = pause_s
        self.room = room
        self.ledger = anna.ledger
        self.acknowledged_at: list[float] = []
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        for person in self.people:
            await person.follow(f"conversation:{self.room}")
        for n in range(LOOPS):
            self._tasks.append(asyncio.create_task(self._speak(self.people[n % 2], n)))

    async def _speak(self, person: Person, loop: int) -> None:
        line = 0
        while not self._stopping:
            await person.say(self.room, f"{loop}/{line}", "rest" if loop < 2 else "ws")
            self.acknowledged_at.append(time.monotonic())
            line += 1
            await asyncio.sleep(self.pause_s)

    def ended_early(self) -> list[BaseException | None]:
        """Why loops have stopped although nobody asked them to."""
        return [task.exception() for task in self._tasks if task.done() and not self._stopping]

    def stall_s(self, since: float) -> float:
        """The longest time without an acknowledgement from then on (monotonic seconds)."""
        times = [since, *(at for at in self.acknowledged_at if at > since)]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)

    async def end(self) -> None:
        """Every line that was sent is acknowledged when this returns."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def silence(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def faults(self) -> list[str]:
        """What was promised and not kept, as seen by both people and in the stored stream."""
        channel = f"conversation:{self.room}"
        stored = await self.people[0].stream(channel)
        own = Ledger(messages=[message for message in self.ledger.messages if message.conversation_id == self.room])
        found = differences(own, {channel: stored})
        texts = [event["text"] for event in stored if event["type"] == "message.posted"]
        for loop in range(LOOPS):
            lines = [int(text.split("/")[1]) for text in texts if text.startswith(f"{loop}/")]
            if lines != list(range(len(lines))):
                found.append(f"{channel}: what loop {loop} sent one after the other is stored as {lines}")
        for person in self.people:
            feed = person.feeds[channel]
            await feed.reach(stored[-1]["offset"])
            found += [f"{person.name}: {fault}" for fault in feed.faults()]
            if feed.events != stored[feed.start :]:
                found.append(f"{person.name} was told something else than what is stored in {channel}")
        return found


@asynccontextmanager
async def chats(people: People, platform: Platform, ledger: Ledger, pause_s: float = 0.0) -> AsyncIterator[list[Chat]]:
    """Pairs of people in the middle of a chat; whatever still talks at the end is silenced."""
    at = addresses_of(platform)
    joined = [await people(at, ledger, number, PATIENCE_S) for number in range(2 * PAIRS)]
    pairs = list(zip(joined[::2], joined[1::2], strict=True))
    begun = [Chat(anna, bela, await conversation_of(anna, bela), pause_s) for anna, bela in pairs]
    try:
        await asyncio.gather(*(chat.begin() for chat in begun))
        yield begun
    finally:
        await asyncio.gather(*(chat.silence() for chat in begun))


def broken(rooms: list[Chat]) -> list[BaseException | None]:
    """Why chats have ended although nobody ended them."""
    return [reason for room in rooms for reason in room.ended_early()]
