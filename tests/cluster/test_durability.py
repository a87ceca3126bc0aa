"""What was acknowledged survives `kill -9`: of one host while people chat, and of the whole tree while orders go on."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from deploy.ledger import Ledger, differences
from deploy.person import Person
from deploy.story import Script, Story
from tests.cluster.conftest import People, addresses_of, conversation_of, until
from tests.support.platform import Platform

PATIENCE_S = 150.0
PAIRS = 3
LOOPS = 4
STALL_LIMIT_S = 10.0
"""The longest time without an acknowledgement that one killed host may cause, on a busy test machine."""


class Chat:
    """Two people who write to each other without a pause: every loop sends its next line when the last is acknowledged."""

    def __init__(self, anna: Person, bela: Person, room: str) -> None:
        self.people = (anna, bela)
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

    def ended_early(self) -> list[BaseException | None]:
        """Why loops have stopped although nobody asked them to."""
        return [task.exception() for task in self._tasks if task.done() and not self._stopping]

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
async def chats(people: People, platform: Platform, ledger: Ledger) -> AsyncIterator[list[Chat]]:
    """Pairs of people in the middle of a chat; whatever still talks at the end is silenced."""
    at = addresses_of(platform)
    joined = [await people(at, ledger, number, PATIENCE_S) for number in range(2 * PAIRS)]
    pairs = list(zip(joined[::2], joined[1::2], strict=True))
    begun = [Chat(anna, bela, await conversation_of(anna, bela)) for anna, bela in pairs]
    try:
        await asyncio.gather(*(chat.begin() for chat in begun))
        yield begun
    finally:
        await asyncio.gather(*(chat.silence() for chat in begun))


@pytest.mark.timeout(180)
async def test_a_killed_host_loses_no_acknowledged_message_and_writing_goes_on(
    mortal_platform: Platform, people: People
) -> None:
    ledger = Ledger()
    async with chats(people, mortal_platform, ledger) as rooms:
        hosts = await asyncio.to_thread(mortal_platform.pids, "host")
        assert len(hosts) == 2, f"two hosts run: {hosts}"
        await until("every chat is going", lambda: all(len(room.acknowledged_at) >= 20 for room in rooms))

        os.kill(next(iter(hosts.values())), signal.SIGKILL)
        killed_at = time.monotonic()

        def going_on() -> bool:
            return bool(_broken(rooms)) or all(
                sum(at > killed_at for at in room.acknowledged_at) >= 50 for room in rooms
            )

        await until("every chat goes on after a host was killed", going_on, 60.0)
        assert not _broken(rooms)
        for room in rooms:
            await room.end()
        assert ledger.unanswered == {}, "every write was settled"
        faults = [fault for room in rooms for fault in await room.faults()]
        assert faults == []
        for room in rooms:
            times = [at for at in room.acknowledged_at if at > killed_at - 1.0]
            stall_s = max(after - before for before, after in itertools.pairwise(times))
            assert stall_s < STALL_LIMIT_S, f"{room.room} stood still for {stall_s:.1f} s"


@pytest.mark.timeout(240)
async def test_a_killed_platform_comes_back_with_everything_it_acknowledged(
    mortal_platform: Platform, people: People, http: httpx.AsyncClient, seed: int
) -> None:
    """Stories and chats go on across the kill by themselves: writes without an answer are sent again with their ids."""
    at, story_ledger, chat_ledger = addresses_of(mortal_platform), Ledger(), Ledger()
    scripts = [Script(seed=seed + n, chatter=4, patience_s=PATIENCE_S, milestones=1 + n % 2) for n in range(3)]
    stories = [Story(http, at, script, story_ledger) for script in scripts]
    async with chats(people, mortal_platform, chat_ledger) as rooms:
        playing = [asyncio.create_task(story.run()) for story in stories]
        try:
            hired = {"scheduled", "en_route", "in_progress"}
            await until(
                "an order is scheduled",
                lambda: any(story.scene.state in hired for story in stories) or _failed(playing),
                60,
            )
            assert not _failed(playing), [task.exception() for task in playing if task.done()]
            await until("people chat", lambda: len(chat_ledger.messages) >= 50)

            await asyncio.to_thread(mortal_platform.kill)
            promised = (len(story_ledger.messages), len(story_ledger.transitions), len(chat_ledger.messages))
            assert all(story.scene.outcome == "" for story in stories), "the kill came in the middle of every story"
            pending = set(chat_ledger.unanswered)
            assert pending, "the kill came while messages were on their way"
            await asyncio.to_thread(mortal_platform.start)
            await asyncio.wait_for(asyncio.gather(*playing), 120)
        finally:
            for task in playing:
                task.cancel()
            await asyncio.wait(playing)
        enough = promised[2] + len(pending) + 20
        await until("every chat goes on", lambda: _broken(rooms) or len(chat_ledger.messages) >= enough)
        assert not _broken(rooms)
        for room in rooms:
            await room.end()
        assert story_ledger.unanswered == chat_ledger.unanswered == {}, "every write was settled"
        assert pending <= chat_ledger.retried, "what was on its way was sent again with the same id"
        assert len(story_ledger.messages) > promised[0], "the stories went on"
        assert len(story_ledger.transitions) > promised[1], "the stories went on"
        streams = {}
        for story in stories:
            for channel in (f"order:{story.order_id}", f"conversation:{story.conversation_id}"):
                streams[channel] = await story.customer.stream(channel)
        assert differences(story_ledger, streams) == []
        assert [fault for room in rooms for fault in await room.faults()] == []
        strangers = sorted({line.split(": ", 1)[1] for line in story_ledger.strangers + chat_ledger.strangers})
        assert strangers[:3] == [], "while the platform starts, too, every error has a code of the catalogue"


def _broken(rooms: list[Chat]) -> list[BaseException | None]:
    return [reason for room in rooms for reason in room.ended_early()]


def _failed(tasks: list[asyncio.Task[None]]) -> bool:
    return any(task.done() for task in tasks)
