"""Publishing out of the log while a partition changes hands: no cursor passes what nobody has said."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from actors.background import Background
from actors.kinds import kinds
from actors.relay import Relay
from domain.channels import event_subject
from domain.commands import Delivery
from domain.ids import partition_of
from domain.ports import Entry, NoMetrics, Received, StoreUnavailable, Takeover
from storage.memory_broker import MemoryBroker, MemoryBus

ROOM = "0190a0a0-0000-7000-8000-000000000003"
STREAM = f"conversation:{ROOM}"
PARTITION = partition_of(ROOM)


class Pages:
    """A log of one partition that is read two entries at a time; what is after position 36 only when it is let."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.trouble: Exception | None = None
        self.saved: dict[int, int] = {}
        self.deaf = 0
        """How many cancellations are lost while cursors are saved, as in the moment of a driver's answer."""
        self.saving = asyncio.Event()

    async def read_partition(self, partition: int, after: int, limit: int) -> list[tuple[int, Entry]]:
        if after >= 36:
            await self.open.wait()
        if self.trouble is not None:
            raise self.trouble
        body = b'{"type":"message.posted"}'
        positions = range(after + 1, min(after + 3, 39))
        return [(n, Entry(STREAM, n, "message.posted", None, None, "", 0, body)) for n in positions]

    async def save_cursors(self, cursors: Mapping[int, int]) -> None:
        self.saving.set()
        while self.deaf:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.deaf -= 1
        self.saved |= cursors


class World:
    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.log = Pages()
        self.background = Background()
        self.heard: list[int] = []
        self.relay = Relay(MemoryBroker(self.bus), self.log, kinds(b"pepper"), NoMetrics())  # type: ignore[arg-type]

    def hear(self, message: Received) -> None:
        delivery = msgspec.msgpack.decode(message.data, type=Delivery)
        self.heard.extend(item.offset for item in delivery.items)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await MemoryBroker(made.bus).subscribe(event_subject(STREAM), made.hear)
    for work in made.relay.work():
        made.background.spawn(work)
    yield made
    await made.background.stop()


async def until(true: Any) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_takeover_whose_log_cannot_be_read_leaves_the_cursor_where_it_was(world: World) -> None:
    """The new owner reads what the former one may not have published. Meanwhile cursors are saved, as they are every second;
    one that was saved at the takeover's own position would be believed by the next attempt, and nothing would be published."""
    world.log.trouble = StoreUnavailable("refused")
    taking = asyncio.create_task(world.relay.take_over({PARTITION: Takeover(position=39, cursor=36)}))
    await asyncio.sleep(0)
    await world.relay.settle([PARTITION])
    world.log.open.set()
    with pytest.raises(StoreUnavailable):
        await taking
    assert world.log.saved == {}


async def test_what_is_lost_in_the_middle_of_a_takeover_is_published_again_before_the_cursor_passes_it(
    world: World,
) -> None:
    world.bus.go_down()
    taking = asyncio.create_task(world.relay.take_over({PARTITION: Takeover(position=39, cursor=34)}))
    await until(lambda: world.relay._losses)
    world.bus.come_back()
    await until(lambda: world.relay._repaired == world.relay._losses)
    await world.relay.settle([PARTITION])
    assert world.log.saved == {PARTITION: 36}
    assert sorted(set(world.heard)) == [35, 36]
    world.log.open.set()
    await taking
    await world.relay.settle([PARTITION])
    assert world.log.saved == {PARTITION: 39}
    assert sorted(set(world.heard)) == [35, 36, 37, 38]


async def test_a_cancellation_that_a_driver_loses_keeps_nobody_from_stopping(world: World) -> None:
    world.log.deaf = 2
    await world.relay.take_over({PARTITION: Takeover(position=36, cursor=36)})
    world.relay.published(PARTITION, 37)
    async with asyncio.timeout(10):
        await world.log.saving.wait()
        await world.background.stop()
    assert world.log.deaf == 0
