"""`ports.Blocks` and `ports.Mutes`, in memory, on SQLite and on MariaDB."""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any

import pytest

from domain.chat import MemberJoined, MemberLeft
from domain.errors import Code, Refusal
from domain.ports import Block, Blocks, Mutes
from domain.times import rfc3339
from storage.blocks import SqlBlocks
from storage.engine import Database
from storage.mutes import SqlMutes
from tests.contract.conftest import InSql
from tests.support.log_rows import AT, chat_row, conversation, new_id, opened, turn
from tests.support.memory_blocks import MemoryBlocks, MemoryMutes

WHEN = rfc3339(AT)


@pytest.fixture
async def another(place: str | None) -> AsyncIterator[Callable[[type, type], Any]]:
    """Each call is one more process, with connections of its own; in memory they are one."""
    databases: list[Database] = []
    memory: dict[type, Any] = {}

    def make(in_memory: type, in_sql: type) -> Any:
        if place is None:
            return memory.setdefault(in_memory, in_memory())
        databases.append(Database(place))
        return in_sql(databases[-1])

    yield make
    for database in databases:
        await database.close()


@pytest.fixture
def blocks(another: Callable[[type, type], Any]) -> Callable[[], Blocks]:
    return lambda: another(MemoryBlocks, SqlBlocks)


@pytest.fixture
def mutes(another: Callable[[type, type], Any]) -> Callable[[], Mutes]:
    return lambda: another(MemoryMutes, SqlMutes)


async def listed(blocks: Blocks, user: str, limit: int = 10) -> list[str]:
    """Every page of a list."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await blocks.list_of(user, cursor, limit)
        found += [block.blocked_id for block in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def test_a_block_stands_until_it_is_ended_and_every_change_has_a_time_of_its_own(
    blocks: Callable[[], Blocks],
) -> None:
    one, other = blocks(), blocks()
    ann, bob = new_id(), new_id()
    assert await one.unblock(ann, bob, 5) is None
    assert await one.block(ann, bob, 10) == Block(ann, bob, True, 10)
    assert await other.block(ann, bob, 20) == Block(ann, bob, True, 10)
    assert await other.among([ann, bob]) == {(ann, bob)}
    assert await other.unblock(ann, bob, 10) == Block(ann, bob, False, 11)  # later, whatever the clock says
    assert await one.unblock(ann, bob, 30) == Block(ann, bob, False, 11)
    assert await one.among([ann, bob]) == frozenset()
    assert await one.block(ann, bob, 3) == Block(ann, bob, True, 12)


async def test_a_block_has_a_direction_and_is_between_the_users_who_are_asked_about(
    blocks: Callable[[], Blocks],
) -> None:
    one = blocks()
    ann, bob, cara, dan = new_id(), new_id(), new_id(), new_id()
    await one.block(ann, bob, 10)
    await one.block(bob, cara, 11)
    await one.block(cara, dan, 12)
    await one.unblock(cara, dan, 13)
    assert await one.among([ann, bob]) == {(ann, bob)}
    assert await one.among([ann, bob, cara, dan, ann]) == {(ann, bob), (bob, cara)}
    assert await one.among([ann, cara, dan]) == frozenset()
    assert await one.among([]) == frozenset()


async def test_what_is_known_is_renewed_only_where_the_contrary_has_come_to_be_true(
    blocks: Callable[[], Blocks],
) -> None:
    one = blocks()
    ann, bob = new_id(), new_id()
    first = await one.block(ann, bob, 10)
    assert await one.renew(first, 50) == first
    ended = await one.unblock(ann, bob, 20)
    assert ended is not None
    assert await one.renew(first, 30) == Block(ann, bob, False, 30)
    assert await one.renew(ended, 40) == Block(ann, bob, False, 30)
    assert await one.renew(first, 30) == Block(ann, bob, False, 31)


async def test_lists_are_latest_first_and_paged_without_a_hole(blocks: Callable[[], Blocks]) -> None:
    one = blocks()
    ann = new_id()
    others = [new_id() for _ in range(7)]
    for n, other in enumerate(others):
        await one.block(ann, other, 100 + n // 3)  # several at one time
    await one.block(new_id(), ann, 1)
    await one.unblock(ann, others[2], 200)
    expected = sorted((100 + n // 3, other) for n, other in enumerate(others) if n != 2)
    for limit in (1, 2, 6, 10):
        assert await listed(blocks(), ann, limit) == [other for _, other in reversed(expected)]
    assert await listed(one, new_id()) == []


@pytest.mark.parametrize("cursor", ["?", "bm8", "a" * 400])
async def test_a_cursor_that_no_page_gave_out_is_refused(blocks: Callable[[], Blocks], cursor: str) -> None:
    with pytest.raises(Refusal) as caught:
        await blocks().list_of(new_id(), cursor, 10)
    assert caught.value.code == Code.INVALID


async def test_twenty_first_blocks_at_once_in_two_processes_are_one(blocks: Callable[[], Blocks]) -> None:
    one, other = blocks(), blocks()
    await asyncio.gather(*(at.block(new_id(), new_id(), 1) for at in [one, other] * 10))  # all are connected now
    ann, bob = new_id(), new_id()
    ticks = count(1)
    made = await asyncio.gather(*(at.block(ann, bob, next(ticks)) for at in [one, other] * 10))
    assert len(set(made)) == 1
    assert await listed(one, ann) == [bob]


async def test_conversations_of_two_are_told_apart_from_those_of_more(sql_store: InSql, partition: int) -> None:
    log = sql_store.log()
    heads = {p: t.position for p, t in (await log.take([partition], "host", AT)).items()}
    ann, bob, cara = new_id(), new_id(), new_id()
    alone, order, three, left, grown, shrunk = (conversation(partition) for _ in range(6))
    turns = [
        turn(*opened(alone, ann, bob)),
        turn(*opened(order, bob, ann, order_id=new_id(partition))),
        turn(*opened(three, ann, bob, cara)),
        turn(*opened(left, ann, bob), chat_row(left, 3, MemberLeft(bob, WHEN, bob), bob, new_id())),
        turn(*opened(grown, ann, bob), chat_row(grown, 3, MemberJoined(ann, WHEN, cara), ann, new_id())),
        turn(*opened(shrunk, ann, bob, cara), chat_row(shrunk, 4, MemberLeft(cara, WHEN, cara), cara, new_id())),
        turn(*opened(conversation(partition), ann, cara)),
    ]
    done = await log.commit(turns, heads)
    assert not done.stale
    blocks = SqlBlocks(sql_store.database())
    bare = {name: stream.partition(":")[2] for name, stream in locals().items() if str(stream).startswith("conver")}
    pair = sorted(bare[name] for name in ("alone", "order", "shrunk"))
    assert await blocks.shared(ann, bob, alone=True) == pair
    assert await blocks.shared(bob, ann, alone=True) == pair
    assert await blocks.shared(ann, bob, alone=False) == sorted([*pair, bare["three"], bare["grown"]])
    assert await blocks.shared(ann, new_id(), alone=False) == []


async def test_a_mute_is_one_members_and_ends_at_its_time(mutes: Callable[[], Mutes]) -> None:
    one, other = mutes(), mutes()
    room, hall, ann, bob = new_id(), new_id(), new_id(), new_id()
    await one.mute(room, ann, 100)
    await one.mute(room, bob, 0)
    await one.mute(hall, ann, 300)
    assert await other.muted(room, [ann, bob, new_id()], 99) == {ann, bob}
    assert await other.muted(room, [ann, bob], 100) == {bob}
    assert await other.muted(room, [ann], 100) == frozenset()
    assert await other.muted(room, [], 1) == frozenset()
    assert await other.of(ann, [room, hall, new_id()], 50) == {room: 100, hall: 300}
    assert await other.of(ann, [room, hall], 200) == {hall: 300}
    assert await other.of(bob, [room], 10**13) == {room: 0}
    assert await other.of(ann, [], 1) == {}


async def test_a_mute_is_replaced_and_lifted(mutes: Callable[[], Mutes]) -> None:
    one = mutes()
    room, ann, bob = new_id(), new_id(), new_id()
    await one.mute(room, ann, 100)
    await one.mute(room, bob, 100)
    await one.mute(room, ann, 0)
    assert await one.of(ann, [room], 200) == {room: 0}
    await one.unmute(room, ann)
    await one.unmute(room, ann)
    await one.unmute(new_id(), ann)
    assert await one.of(ann, [room], 50) == {}
    assert await one.of(bob, [room], 50) == {room: 100}
