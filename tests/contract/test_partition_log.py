"""`ports.PartitionLog` and `ports.StreamReader`: in memory, on SQLite and on MariaDB."""

import asyncio
import importlib.metadata

import pytest
import sqlalchemy as sa

from domain.aggregate import Opening, OpenOrdersNeed
from domain.ports import Entry, PartitionLog, Snapshot, Turn
from storage import tables as t
from tests.contract.conftest import InSql, Store
from tests.support.log_rows import AT, HASH, conversation, new_id, opened, order_row, order_state, posted, turn

SCHEMAS = {"conversation": 1, "order": 1}


async def owned(log: PartitionLog, *partitions: int) -> dict[int, int]:
    return {p: taken.position for p, taken in (await log.take(partitions, "host", AT)).items()}


async def stored(log: PartitionLog, stream: str) -> list[Entry]:
    return (await log.load([stream], SCHEMAS))[stream].tail


async def test_positions_have_no_holes_and_offsets_neither(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    first, second = conversation(partition), conversation(partition)
    expected = []
    for n in range(1, 6):
        turns = [turn(posted(first, n)), turn(posted(second, 2 * n - 1), posted(second, 2 * n))]
        done = await log.commit(turns, heads)
        assert done.heads == {partition: heads[partition] + 3}
        assert (done.fenced, done.stale) == (frozenset(), frozenset())
        heads.update(done.heads)
        expected += [entry for t in turns for entry in t.entries]
    rows = await log.read_partition(partition, 0, 1000)
    assert rows == list(enumerate(expected, heads[partition] - 14))
    assert [entry.offset for entry in await stored(log, second)] == list(range(1, 11))
    assert await log.heads([partition, partition + 1]) == {partition: heads[partition], partition + 1: 0}


async def test_who_takes_a_partition_fences_its_former_owner_there_and_nowhere_else(
    store: Store, partition: int
) -> None:
    old, new = store.log(), store.log()
    heads = await owned(old, partition, partition + 1)
    taken = await new.take([partition], "new", AT)
    assert taken[partition].position == heads[partition] + 1

    lost, kept = conversation(partition), conversation(partition + 1)
    done = await old.commit([turn(posted(lost, 1)), turn(posted(kept, 1))], heads)

    assert done.fenced == {partition}
    assert done.stale == frozenset()
    assert done.heads == {partition + 1: heads[partition + 1] + 1}
    assert await stored(new, lost) == []
    assert len(await stored(new, kept)) == 1
    again = await new.commit([turn(posted(lost, 1))], {partition: taken[partition].position})
    assert not again.fenced


async def test_rows_before_those_of_a_fenced_partition_are_written_once(store: Store, partition: int) -> None:
    """They had been inserted when the clash came, and were to be undone."""
    old, new = store.log(), store.log()
    heads = await owned(old, partition, partition + 1)
    kept, lost = conversation(partition), conversation(partition + 1)
    heads.update((await old.commit([turn(posted(kept, 1)), turn(posted(lost, 1))], heads)).heads)
    await new.take([partition + 1], "new", AT)

    done = await old.commit([turn(posted(kept, 2)), turn(posted(lost, 2))], heads)

    assert done.fenced == {partition + 1}
    assert done.heads == {partition: heads[partition] + 1}
    assert [e.offset for e in await stored(new, kept)] == [1, 2]
    assert [e.offset for e in await stored(new, lost)] == [1]


async def test_a_fenced_owner_stays_fenced_when_its_successor_has_written_on(store: Store, partition: int) -> None:
    old, new = store.log(), store.log()
    heads = await owned(old, partition)
    stream = conversation(partition)
    heads.update((await old.commit([turn(posted(stream, 1))], heads)).heads)
    theirs = await owned(new, partition)
    await new.load([stream], SCHEMAS)
    await new.commit([turn(posted(stream, 2))], theirs)

    done = await old.commit([turn(posted(stream, 2))], heads)

    assert done.fenced == {partition}
    assert [e.offset for e in await stored(old, stream)] == [1, 2]


async def test_a_fenced_owner_that_meets_a_stream_for_the_first_time_is_told_that_it_is_fenced(
    store: Store, partition: int
) -> None:
    first, old, new = store.log(), store.log(), store.log()
    heads = await owned(first, partition)
    stream, other = conversation(partition), conversation(partition + 1)
    await first.commit([turn(posted(stream, n)) for n in (1, 2, 3)], heads)
    heads = await owned(old, partition, partition + 1)
    theirs = await owned(new, partition)
    await new.commit([turn(posted(stream, 4))], theirs)

    done = await old.commit([turn(posted(stream, 4)), turn(posted(other, 1))], heads)

    assert (done.fenced, done.stale) == ({partition}, frozenset())
    assert done.heads == {partition + 1: heads[partition + 1] + 1}


async def test_a_stream_that_has_moved_on_is_cut_out_with_all_its_turns(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream, other = conversation(partition), conversation(partition)
    heads.update((await log.commit([turn(posted(stream, 1))], heads)).heads)

    done = await log.commit([turn(posted(stream, 1)), turn(posted(other, 1)), turn(posted(stream, 2))], heads)

    assert done.stale == {stream}
    assert len(await stored(log, stream)) == 1
    assert len(await stored(log, other)) == 1
    assert done.heads == {partition: heads[partition] + 1}


async def test_a_turn_that_would_leave_a_hole_in_its_stream_is_cut_out(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream, fresh, good = (conversation(partition) for _ in range(3))
    heads.update((await log.commit([turn(posted(stream, 1))], heads)).heads)

    done = await log.commit([turn(posted(stream, 3)), turn(posted(fresh, 2)), turn(posted(good, 1))], heads)

    assert done.stale == {stream, fresh}
    assert [e.offset for e in await stored(log, stream)] == [1]
    assert await stored(log, fresh) == []
    assert len(await stored(log, good)) == 1


async def test_a_head_that_would_leave_a_hole_in_the_partition_is_refused_as_fenced(
    store: Store, partition: int
) -> None:
    log = store.log()
    heads = await owned(log, partition)
    done = await log.commit([turn(posted(conversation(partition), 1))], {partition: heads[partition] + 5})
    assert done.fenced == {partition}
    assert await log.heads([partition]) == heads


async def test_a_turn_of_two_streams_is_all_or_nothing_and_drags_its_streams_along(
    store: Store, partition: int
) -> None:
    log = store.log()
    heads = await owned(log, partition)
    moved, innocent, before = (conversation(partition) for _ in range(3))
    heads.update((await log.commit([turn(posted(moved, 1))], heads)).heads)

    both = turn(posted(innocent, 2), posted(moved, 1))
    done = await log.commit([turn(posted(innocent, 1)), both, turn(posted(before, 1))], heads)

    # The first turn was right in itself, but whoever decided it went on from there: both are left out and named.
    assert done.stale == {moved, innocent}
    assert await stored(log, innocent) == []
    assert len(await stored(log, before)) == 1


async def test_a_command_id_that_has_landed_makes_its_stream_stale(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream, other, same = conversation(partition), conversation(partition), new_id()
    heads.update((await log.commit([turn(posted(stream, 1, message_id=same))], heads)).heads)

    done = await log.commit([turn(posted(stream, 2, message_id=same)), turn(posted(other, 1, message_id=same))], heads)

    assert done.stale == {stream}
    assert len(await stored(log, stream)) == 1
    assert len(await stored(log, other)) == 1  # another stream's ids are its own


async def test_a_command_id_twice_in_one_flush_is_cut_out_too(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream, same = conversation(partition), new_id()
    turns = [turn(posted(stream, n, message_id=same)) for n in (1, 2)]
    assert (await log.commit(turns, heads)).stale == {stream}
    assert await stored(log, stream) == []


async def test_commands_are_found_with_all_their_events_and_nothing_else(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream, command = conversation(partition), new_id()
    joins = opened(stream, "u1", "u2", "u3")
    receipt = Entry(
        stream,
        5,
        "receipt.read",
        None,
        None,
        "user:u1",
        AT,
        b'{"type":"receipt.read","by":"u1","at":"2026-01-31T09:30:00.000Z","read_offset":4}',
    )
    await log.commit([turn(*joins, posted(stream, 4, message_id=command), receipt)], heads)

    first = joins[0].command_id
    assert first is not None
    keys = [(stream, first), (stream, command), (stream, new_id()), (conversation(partition), command)]
    found = await store.log().find_commands(keys)

    assert [entry.offset for entry in found.pop((stream, first))] == [1, 2, 3]
    assert [entry.offset for entry in found.pop((stream, command))] == [4]
    assert found == {}


async def test_a_stream_loads_as_its_snapshot_and_what_follows(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    with_snapshot, without, empty = (conversation(partition) for _ in range(3))
    snapshot = Snapshot(with_snapshot, 2, 1, b'{"n":2}', 77)
    rows = [posted(with_snapshot, n) for n in (1, 2, 3)]
    await log.commit([turn(*rows, snapshots=[snapshot]), turn(posted(without, 1))], heads)

    loaded = await store.log().load([with_snapshot, without, empty], SCHEMAS)

    assert loaded[with_snapshot].snapshot == snapshot
    assert loaded[with_snapshot].tail == rows[2:]
    assert loaded[without].snapshot is None
    assert [e.offset for e in loaded[without].tail] == [1]
    assert (loaded[empty].snapshot, loaded[empty].tail) == (None, [])


async def test_a_snapshot_of_another_schema_is_not_used(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream = conversation(partition)
    rows = [posted(stream, n) for n in (1, 2)]
    await log.commit([turn(*rows, snapshots=[Snapshot(stream, 2, 1, b"{}")])], heads)
    loaded = (await log.load([stream], {"conversation": 2}))[stream]
    assert (loaded.snapshot, loaded.tail) == (None, rows)


async def test_a_snapshot_only_moves_forward(store: Store, partition: int) -> None:
    log, zombie = store.log(), store.log()
    heads = await owned(log, partition)
    stream = conversation(partition)
    await log.commit([turn(posted(stream, 1), posted(stream, 2), snapshots=[Snapshot(stream, 2, 1, b"new")])], heads)
    late = turn(posted(stream, 1))
    late.entries, late.snapshots = [], [Snapshot(stream, 1, 1, b"old")]
    await zombie.commit([late], {})
    assert (await log.load([stream], SCHEMAS))[stream].snapshot == Snapshot(stream, 2, 1, b"new")


async def test_snapshots_alone_are_kept_whoever_owns_the_partition(store: Store, partition: int) -> None:
    log, other = store.log(), store.log()
    heads = await owned(log, partition)
    stream, second = conversation(partition), conversation(partition)
    heads.update((await log.commit([turn(posted(stream, 1), posted(stream, 2), posted(second, 1))], heads)).heads)
    await other.take([partition], "other", AT)
    newer, older = Snapshot(stream, 2, 1, b"newer"), Snapshot(stream, 1, 1, b"older")

    for snapshot in (newer, older):
        done = await log.commit([Turn(partition, [], [snapshot])], heads)
        assert (done.heads, done.fenced, done.stale) == ({}, frozenset(), frozenset())
    # Beside rows that are fenced they are left out with them, which does no harm.
    both = [Turn(partition, [], [Snapshot(second, 1, 1, b"x")]), turn(posted(second, 2))]
    assert (await log.commit(both, heads)).fenced == {partition}

    loaded = await other.load([stream, second], SCHEMAS)
    assert (loaded[stream].snapshot, loaded[stream].tail) == (newer, [])
    assert (loaded[second].snapshot, len(loaded[second].tail)) == (None, 1)


async def test_ends_are_the_last_offsets_of_those_streams_that_have_any(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    streams = [conversation(partition) for _ in range(130)]
    await log.commit([turn(posted(streams[0], 1), posted(streams[0], 2)), turn(posted(streams[1], 1))], heads)
    assert await store.log().ends([*streams, streams[1]]) == {streams[0]: 2, streams[1]: 1}
    assert await store.log().ends([]) == {}


async def test_cursors_only_move_forward_and_are_told_at_takeover(store: Store, partition: int) -> None:
    log = store.log()
    assert (await log.take([partition], "a", AT))[partition].cursor == 0
    await log.save_cursors({partition: 7, partition + 1: 3})
    await store.log().save_cursors({partition: 5, partition + 1: 4})
    await log.save_cursors({})
    taken = await store.log().take([partition, partition + 1], "b", AT)
    assert [taken[p].cursor for p in (partition, partition + 1)] == [7, 4]


async def test_all_keys_are_reserved_or_none(store: Store, partition: int) -> None:
    log = store.log()
    mine, theirs = conversation(partition), conversation(partition)
    a, b, c = (f"cal:{new_id()}:{n}" for n in range(3))
    assert await log.reserve(mine, [a, b], 1000, 2000) is None
    assert await store.log().reserve(theirs, [c, b], 1500, 2500) == b
    assert await log.reserve(mine, [c, a], 1500, 2500) is None  # c is still free, and one's own may be asked for again
    assert await log.reserve(mine, [], 0, 0) is None


async def test_a_reservation_runs_out(store: Store, partition: int) -> None:
    log, key = store.log(), f"cal:{new_id()}:0"
    mine, theirs = conversation(partition), conversation(partition)
    assert await log.reserve(mine, [key], 1000, 2000) is None
    assert await log.reserve(theirs, [key], 1999, 3000) == key
    assert await log.reserve(theirs, [key], 2000, 3000) is None
    assert await log.reserve(mine, [key], 2001, 3000) == key


async def test_a_commit_keeps_claims_for_good_until_it_releases_them(store: Store, partition: int) -> None:
    log, key = store.log(), f"cal:{new_id()}:0"
    mine, theirs = conversation(partition), conversation(partition)
    heads = await owned(log, partition)
    await log.reserve(mine, [key], AT, AT + 10)
    heads.update((await log.commit([turn(posted(mine, 1), claims=(key,))], heads)).heads)
    assert await log.reserve(theirs, [key], AT + 10**9, AT + 10**10) == key
    assert await log.reserve(mine, [key], AT, AT + 10) is None
    assert await log.reserve(theirs, [key], AT + 10**9, AT + 10**10) == key  # reserving again did not weaken it
    heads.update((await log.commit([turn(posted(theirs, 1), releases=(key,))], heads)).heads)
    assert await log.reserve(theirs, [key], AT, AT + 10) == key  # only its holder releases it
    await log.commit([turn(posted(mine, 2), releases=(key,))], heads)
    assert await log.reserve(theirs, [key], AT, AT + 10) is None


async def test_a_turn_whose_reservation_went_to_somebody_else_is_cut_out(store: Store, partition: int) -> None:
    log, key = store.log(), f"cal:{new_id()}:0"
    mine, theirs, other = (conversation(partition) for _ in range(3))
    heads = await owned(log, partition)
    await log.reserve(mine, [key], AT - 20, AT - 10)
    await store.log().reserve(theirs, [key], AT - 5, AT + 10)
    done = await log.commit([turn(posted(mine, 1), claims=(key,)), turn(posted(other, 1))], heads)
    assert done.stale == {mine}
    assert await stored(log, mine) == []
    assert len(await stored(log, other)) == 1


async def test_claims_of_a_fenced_turn_are_not_kept_by_the_rest_of_its_flush(store: Store, partition: int) -> None:
    """They had been written when the clash came."""
    old, key = store.log(), f"cal:{new_id()}:0"
    heads = await owned(old, partition, partition + 1)
    lost, kept, theirs = conversation(partition), conversation(partition + 1), conversation(partition + 2)
    await old.reserve(lost, [key], AT, AT + 10)
    await store.log().take([partition], "new", AT)
    done = await old.commit([turn(posted(lost, 1), claims=(key,)), turn(posted(kept, 1))], heads)
    assert done.fenced == {partition}
    assert len(await stored(old, kept)) == 1
    assert await store.log().reserve(theirs, [key], AT + 10, AT + 20) is None


async def test_a_commit_that_comes_to_nothing_leaves_nothing_locked(store: Store, partition: int) -> None:
    log, key = store.log(), f"cal:{new_id()}:0"
    mine, theirs = conversation(partition), conversation(partition)
    heads = await owned(log, partition)
    await store.log().reserve(theirs, [key], AT, AT + 10)
    assert (await log.commit([turn(posted(mine, 1), claims=(key,))], heads)).stale == {mine}
    async with asyncio.timeout(1):
        assert await store.log().reserve(theirs, [key], AT, AT + 20) is None


async def test_of_many_that_reserve_one_key_at_once_one_gets_it(store: Store, partition: int) -> None:
    key = f"cal:{new_id()}:0"
    logs = [store.log() for _ in range(6)]
    answers = await asyncio.gather(*(log.reserve(conversation(partition), [key], 1, 9) for log in logs))
    assert sorted(answers, key=str) == [None] + [key] * 5 or answers.count(None) == 1


async def customer_of(store: Store) -> str:
    """Somebody who can have orders."""
    identifier = new_id()
    if isinstance(store, InSql):
        row = {
            "id": identifier,
            "name": "",
            "locale": "en",
            "roles": '["customer"]',
            "rating_sum": 0,
            "rating_count": 0,
        }
        async with store.database().write() as connection:
            await connection.execute(sa.insert(t.user).values(row | {"created_at": AT, "updated_at": AT}))
    return identifier


def opens(partition: int, customer: str, most: int) -> Turn:
    """A turn that makes an order and opens it."""
    stream = f"order:{new_id(partition)}"
    row, state = order_row(stream, 1, "order.published"), order_state(stream, 1, "open", customer)
    return turn(row, snapshots=[state], opening=Opening(customer, most))


async def test_hosts_that_open_orders_of_one_customer_at_once_stay_below_the_limit_together(
    store: Store, partition: int
) -> None:
    """Each of them has asked before how many there are, and was told the truth of that moment."""
    customer, most = await customer_of(store), 7

    async def host(number: int) -> int:
        log = store.log()
        heads = await owned(log, partition + number)
        opened_here = 0
        for _ in range(4):
            done = await log.commit([opens(partition + number, customer, most) for _ in range(3)], heads)
            opened_here += 3 - len(done.stale)
            heads |= done.heads
        return opened_here

    opened_by = await asyncio.gather(*map(host, range(4)))
    facts = await store.facts().facts([OpenOrdersNeed(customer)])
    assert sum(opened_by) == facts.open_orders(customer) == most


async def test_an_order_that_is_over_makes_room_and_others_customers_are_not_concerned(
    store: Store, partition: int
) -> None:
    customer, other = await customer_of(store), await customer_of(store)
    log = store.log()
    heads = await owned(log, partition)
    first, second, third = opens(partition, customer, 1), opens(partition, customer, 1), opens(partition, other, 1)
    done = await log.commit([first, second, third], heads)
    assert done.stale == {second.entries[0].stream}
    stream = first.entries[0].stream
    gone = turn(order_row(stream, 2, "order.cancelled"), snapshots=[order_state(stream, 2, "cancelled", customer)])
    done = await log.commit([gone], done.heads)
    assert (await log.commit([second], done.heads)).stale == set()


async def test_eight_takers_at_once_leave_no_hole(store: Store, partition: int) -> None:
    wanted = [partition, partition + 1, partition + 2]
    logs = [store.log() for _ in range(8)]
    taken = await asyncio.gather(*(log.take(wanted, f"host-{n}", AT) for n, log in enumerate(logs)))
    for p in wanted:
        assert sorted(t[p].position for t in taken) == list(range(1, 9))
    done = [
        await log.commit([turn(posted(conversation(partition), 1))], {p: t.position for p, t in owned_by.items()})
        for log, owned_by in zip(logs, taken, strict=True)
    ]
    # Whoever came last owns it; nobody else can write.
    assert [not d.fenced for d in done] == [t[partition].position == 8 for t in taken]


@pytest.mark.parametrize("text", ["𝄞 emoji 👷🏽‍♀️", "null\x00byte", "漢字かな", "‮rtl‬ \u2028", "quote ' \" \\ % %s :x"])
async def test_bodies_keep_any_unicode(store: Store, partition: int, text: str) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream = conversation(partition)
    rows = [posted(stream, 1, text=text), posted(stream, 2, text=text * 2000)]
    await log.commit([turn(*rows)], heads)
    assert await stored(store.log(), stream) == rows
    assert await store.reader().read(stream, 0, 10) == [(row.offset, row.body) for row in rows]


async def test_a_reader_in_another_process_pages_a_stream_both_ways(store: Store, partition: int) -> None:
    log, reader = store.log(), store.reader()
    heads = await owned(log, partition)
    stream = conversation(partition)
    rows = [posted(stream, n, text="x" * 100) for n in range(1, 451)]
    await log.commit([turn(*rows)], heads)
    assert [o for o, _ in await reader.read(stream, 0, 1000)] == list(range(1, 451))
    assert [o for o, _ in await reader.read(stream, 440, 5)] == [441, 442, 443, 444, 445]
    assert [o for o, _ in await reader.read(stream, 450, 5)] == []
    assert [o for o, _ in await reader.read_back(stream, 4, 10)] == [3, 2, 1]
    assert [o for o, _ in await reader.read_back(stream, 10_000, 2)] == [450, 449]


async def test_a_page_is_cut_by_bytes_but_never_empty(store: Store, partition: int) -> None:
    log, reader = store.log(), store.reader()
    heads = await owned(log, partition)
    stream = conversation(partition)
    rows = [posted(stream, n, text="x" * 1000) for n in range(1, 11)]
    await log.commit([turn(*rows)], heads)
    assert [o for o, _ in await reader.read(stream, 0, 100, max_bytes=10)] == [1]
    size = len(rows[0].body)
    assert [o for o, _ in await reader.read(stream, 2, 100, max_bytes=3 * size)] == [3, 4, 5]


async def test_what_an_order_keeps_private_is_never_read_as_a_publication(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream = f"order:{new_id(partition)}"
    row = order_row(stream, 1, "order.created", state="draft", version=1, private={"code": "4711"}, hash="x")
    await log.commit([turn(row, snapshots=[order_state(stream, 1, "draft", "u1")])], heads)
    ((_, data),) = await store.reader().read(stream, 0, 10)
    ((_, back),) = await store.reader().read_back(stream, 2, 10)
    assert data == back
    assert b"4711" not in data
    assert b"order.created" in data


async def test_rows_to_publish_again_come_by_position_without_takeovers(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream = conversation(partition)
    heads.update((await log.commit([turn(posted(stream, 1)), turn(posted(stream, 2))], heads)).heads)
    heads = await owned(log, partition)
    await log.commit([turn(posted(stream, 3))], heads)
    rows = await log.read_partition(partition, 2, 10)
    assert [(position, entry.offset) for position, entry in rows] == [(3, 2), (5, 3)]
    assert [position for position, _ in await log.read_partition(partition, 0, 1)] == [2]


async def test_a_flush_of_256_commands_over_many_streams_lands_whole(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition, partition + 1)
    streams = [conversation(partition + n % 2) for n in range(64)]
    turns = [turn(posted(stream, n)) for n in range(1, 5) for stream in streams]
    done = await log.commit(turns, heads)
    assert done.heads == {p: heads[p] + 128 for p in heads}
    loaded = await log.load(streams, SCHEMAS)
    assert all([e.offset for e in loaded[s].tail] == [1, 2, 3, 4] for s in streams)


async def test_two_hosts_commit_to_their_own_partitions_at_once(sql_store: InSql, partition: int) -> None:
    logs = [sql_store.log(), sql_store.log()]
    heads = [await owned(log, partition + n) for n, log in enumerate(logs)]

    async def work(n: int) -> None:
        stream = conversation(partition + n)
        for offset in range(1, 31):
            done = await logs[n].commit([turn(posted(stream, offset))], heads[n])
            assert not done.fenced
            assert not done.stale
            heads[n].update(done.heads)

    await asyncio.gather(work(0), work(1))
    assert [await logs[0].heads([partition + n]) for n in (0, 1)] == heads


async def test_the_hash_of_a_command_comes_back(store: Store, partition: int) -> None:
    log = store.log()
    heads = await owned(log, partition)
    stream, same = conversation(partition), new_id()
    await log.commit([turn(posted(stream, 1, message_id=same))], heads)
    ((entry,),) = (await store.log().find_commands([(stream, same)])).values()
    assert (entry.command_hash, entry.actor, entry.at) == (HASH, "user:u1", AT)


def test_the_driver_whose_thread_runs_whole_transactions_is_the_pinned_one() -> None:
    """`SqlPartitionLog` hands SQLite's transactions to a private method of aiosqlite."""
    assert importlib.metadata.version("aiosqlite") == "0.22.1"
