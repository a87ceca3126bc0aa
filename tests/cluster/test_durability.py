"""What was acknowledged survives `kill -9`: of one host while people chat, and of the whole tree while orders go on."""

import asyncio
import os
import signal
import time

import httpx
import pytest

from deploy.ledger import Ledger, differences
from deploy.story import Script, Story
from tests.cluster.chats import PATIENCE_S, broken, chats
from tests.cluster.conftest import People, addresses_of, until
from tests.support.platform import Platform

STALL_LIMIT_S = 10.0
"""The longest time without an acknowledgement that one killed host may cause, on a busy test machine."""


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
            return bool(broken(rooms)) or all(
                sum(at > killed_at for at in room.acknowledged_at) >= 50 for room in rooms
            )

        await until("every chat goes on after a host was killed", going_on, 60.0)
        assert not broken(rooms)
        for room in rooms:
            await room.end()
        assert ledger.unanswered == {}, "every write was settled"
        faults = [fault for room in rooms for fault in await room.faults()]
        assert faults == []
        for room in rooms:
            stall_s = room.stall_s(killed_at)
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
        await until("every chat goes on", lambda: broken(rooms) or len(chat_ledger.messages) >= enough)
        assert not broken(rooms)
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


def _failed(tasks: list[asyncio.Task[None]]) -> bool:
    return any(task.done() for task in tasks)
