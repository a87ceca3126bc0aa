"""Who was away for ten thousand events gets them all when they come back: in order, once, with either official client."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deploy.ledger import Ledger, gaps
from deploy.person import Addresses, Person
from tests.cluster.conftest import CLIENTS, People, conversation_of

EVENTS = 10_000
SOCKETS = 24
LIMIT_S = 60.0


class JsClient:
    """The official JavaScript client in a Node process: one JSON command a line goes in, one JSON event a line comes out."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.told: list[dict[str, Any]] = []

    def do(self, what: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, "client": "away", **arguments}).encode() + b"\n")

    async def until(self, what: str, limit_s: float = 15.0, **wanted: Any) -> dict[str, Any]:
        """The next event that has these values; all that come before it are kept in `told`."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(limit_s):
                while line := await self._process.stdout.readline():
                    self.told.append(json.loads(line))
                    if all(self.told[-1].get(key) == value for key, value in wanted.items()):
                        return self.told[-1]
        except TimeoutError:
            pass
        raise AssertionError(f"no {what} in {limit_s} s; {len(self.told)} events came, at last {self.told[-3:]}")

    @property
    def publications(self) -> list[dict[str, Any]]:
        return [item for item in self.told if item.get("event") == "publication"]


@asynccontextmanager
async def js_client(node: str) -> AsyncIterator[JsClient]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        node, str(CLIENTS / "client.mjs"), stdin=pipe, stdout=pipe, limit=1 << 20
    )
    try:
        yield JsClient(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


async def talk(devices: list[Person], room: str, count: int) -> None:
    """Send that many messages as fast as the platform acknowledges them, each device one after the other."""
    numbers = iter(range(count))

    async def work(device: Person) -> None:
        for n in numbers:
            await device.say(room, f"while you were away {n}")

    await asyncio.gather(*(work(device) for device in devices))


@pytest.mark.timeout(180)
async def test_ten_thousand_missed_events_come_back_once_and_in_order(
    people: People, addresses: Addresses, node: str
) -> None:
    ledger = Ledger()
    devices = list(await asyncio.gather(*(people(addresses, ledger, 0) for _ in range(SOCKETS))))
    reader, watcher = await people(addresses, Ledger(), 1), await people(addresses, Ledger(), 2)
    room = await conversation_of(devices[0], reader, watcher)
    channel = f"conversation:{room}"
    feed = await reader.follow(channel)
    async with js_client(node) as js:
        js.do("open", url=addresses.ws, token=watcher.token)
        js.do("connect")
        js.do("subscribe", channel=channel)
        await js.until("subscription", event="subscribed", channel=channel)
        last_seen = await devices[0].say(room, "before you go")
        await feed.reach(last_seen.offset)
        await js.until("publication", event="publication", offset=last_seen.offset)
        await reader.disconnect()
        js.do("disconnect")
        await js.until("goodbye", event="disconnected")

        await talk(devices, room, EVENTS)

        head = last_seen.offset + EVENTS
        await reader.reconnect()
        js.do("connect")
        # Life goes on while they catch up: what is new comes after what was missed.
        await talk(devices[:1], room, 20)
        await feed.reach(head + 20, LIMIT_S)
        await js.until(f"publication {head + 20}", LIMIT_S, event="publication", offset=head + 20)

        stored = await reader.stream(channel)
        assert gaps("the stream", [event["offset"] for event in stored]) == []
        assert len(stored) == head + 20, "every message that was sent is in the stream"
        assert feed.faults() == [], "the Python client"
        assert feed.recoveries == [True], "the Python client was told that it recovered"
        assert feed.events == stored[feed.start :], "the Python client was told what is stored"
        offsets = [publication["offset"] for publication in js.publications]
        assert gaps("the JavaScript client", offsets, offsets[0]) == []
        back = [item for item in js.told if item.get("event") == "subscribed" and item.get("channel") == channel][-1]
        assert (back["was_recovering"], back["recovered"]) == (True, True), "the JavaScript client was told so too"
        kept = [{"offset": publication["offset"], **publication["data"]} for publication in js.publications]
        assert kept == stored[offsets[0] - 1 :], "the JavaScript client was told what is stored"


async def test_a_position_of_long_ago_is_as_good_as_one_of_a_moment_ago(
    people: People, addresses: Addresses, node: str
) -> None:
    anna, bela = await people(addresses, Ledger(), 0), await people(addresses, Ledger(), 1)
    room = await conversation_of(anna, bela)
    for n in range(150):
        await anna.say(room, f"message {n}")
    feed = await anna.follow(f"conversation:{room}")
    async with js_client(node) as js:
        js.do("open", url=addresses.ws, token=bela.token)
        js.do("connect")
        js.do("subscribe", channel=feed.channel, since={"offset": 0, "epoch": feed.epoch})
        answer = await js.until("subscription", event="subscribed", channel=feed.channel)
        assert (answer["recovered"], answer["position"]) == (True, {"offset": 0, "epoch": feed.epoch})
        await js.until("the newest event", event="publication", offset=feed.start)
        assert [item["offset"] for item in js.publications] == list(range(1, feed.start + 1))
