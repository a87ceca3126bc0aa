"""Which turns a commit writes, and the rows they become: small mistakes here are holes and doubles in everybody's log."""

import random

import pytest

from domain.commands import Reminder
from domain.ports import Entry, Snapshot, Turn
from storage.commit_plan import plan_commit, touched
from tests.support.log_rows import AT, HASH, new_id

ONE, TWO = 7, 9
NONE: tuple[set[int], set[str]] = (set(), set())


def streams(partition: int, count: int) -> list[str]:
    return sorted(f"conversation:{new_id(partition)}" for _ in range(count))


def row(stream: str, offset: int, command_id: str | None = None, at: int = AT) -> Entry:
    return Entry(stream, offset, "message.posted", command_id, HASH if command_id else None, "user:u1", at, b"{}")


def turn(partition: int, *entries: Entry, **more: object) -> Turn:
    return Turn(partition, list(entries), **more)  # type: ignore[arg-type]


def columns(entry: Entry) -> tuple[object, ...]:
    return (
        entry.stream,
        entry.offset,
        entry.type,
        entry.command_id,
        entry.command_hash,
        entry.actor,
        entry.at,
        entry.body,
    )


def test_rows_go_after_the_last_position_of_their_partition_in_the_order_of_their_turns() -> None:
    """A position left out is a hole that readers wait at; one used twice fences the host that did it."""
    (a, b), (c,) = streams(ONE, 2), streams(TWO, 1)
    entries = [row(c, 5, new_id()), row(b, 1, new_id()), row(b, 2), row(a, 8, new_id()), row(c, 6, new_id())]
    turns = [turn(TWO, entries[0]), turn(ONE, *entries[1:3]), turn(ONE, entries[3]), turn(TWO, entries[4])]
    plan = plan_commit(turns, {ONE: 40, 3: 1}, *NONE)
    assert plan.rows == [
        (ONE, 41, *columns(entries[1])),
        (ONE, 42, *columns(entries[2])),
        (ONE, 43, *columns(entries[3])),
        (TWO, 1, *columns(entries[0])),
        (TWO, 2, *columns(entries[4])),
    ]
    assert plan.turns == turns
    assert plan.entries == entries
    assert (plan.bases, plan.heads) == ({ONE: 40, TWO: 0}, {ONE: 43, TWO: 2})
    assert plan.firsts == {a: 8, b: 1, c: 5}
    assert plan.lasts == {a: 8, b: 2, c: 6}
    assert plan.partition_of == {a: ONE, b: ONE, c: TWO}
    assert (plan.fenced, plan.stale) == (set(), set())


def test_of_several_snapshots_of_a_stream_the_last_is_written_and_all_go_in_the_order_of_their_keys() -> None:
    """Hosts that lock rows in different orders wait for each other until the database ends one."""
    a, b, c = streams(ONE, 3)
    older, newer, other, alone = (Snapshot(s, n, 1, b"") for s, n in ((c, 1), (c, 2), (a, 1), (b, 4)))
    turns = [
        turn(ONE, row(c, 1), snapshots=[older]),
        turn(ONE, row(c, 2), row(a, 1), snapshots=[newer, other]),
        turn(ONE, snapshots=[alone]),
    ]
    plan = plan_commit(turns, {}, *NONE)
    assert plan.snapshots == [other, alone, newer]
    only = plan_commit(turns[2:], {ONE: 3}, *NONE)
    assert (only.snapshots, only.rows, only.bases, only.heads) == ([alone], [], {}, {})


def test_of_what_turns_do_to_a_reminder_the_last_word_counts() -> None:
    """One set anew and removed later must not be written; one removed and set anew must not be lost."""
    a, b = streams(ONE, 2)
    first, again, other = (
        Reminder(s, n, AT + d, d, "x", b"") for s, n, d in ((b, "due", 1), (b, "due", 2), (a, "z", 3))
    )
    gone = Reminder(a, "gone", AT, 1, "x", b"")
    turns = [
        turn(ONE, row(b, 1), reminders=[first]),
        turn(ONE, row(b, 2), done=[(b, "due")]),
        turn(ONE, row(b, 3), reminders=[again], done=[(b, "due")]),
        turn(ONE, row(a, 1), reminders=[other, gone]),
        turn(ONE, row(a, 2), done=[(a, "gone"), (a, "early")]),
    ]
    plan = plan_commit(turns, {}, *NONE)
    assert plan.reminders == [(ONE, other), (ONE, again)]
    assert plan.done == [(a, "early"), (a, "gone")]


def test_claims_and_releases_know_their_streams_and_when_and_go_in_the_order_of_their_keys() -> None:
    a, b = streams(ONE, 2)
    turns = [
        turn(ONE, row(b, 1, at=AT + 5), row(a, 1, at=AT + 3), claims=("k2", "k1"), releases=("r2", "r1")),
        turn(ONE, row(a, 2, at=AT + 7), claims=("k0",), releases=("r0",)),
    ]
    plan = plan_commit(turns, {}, *NONE)
    first, second = ((b, a), AT + 5), ((a,), AT + 7)
    assert plan.claims == [("k0", *second), ("k1", *first), ("k2", *first)]
    assert plan.releases == [("r0", *second), ("r1", *first), ("r2", *first)]


def test_the_streams_of_a_turn_are_named_once_and_the_one_that_it_is_about_first() -> None:
    a, b, c = streams(ONE, 3)
    assert touched(turn(ONE, row(c, 1), row(a, 1), row(c, 2), snapshots=[Snapshot(b, 1, 1, b""), Snapshot(c, 2, 1, b"")])) == (
        c, a, b,
    )  # fmt: skip


# --- what is left out --------------------------------------------------------------------------------------------


def test_what_is_fenced_is_left_out_and_drags_nothing_along() -> None:
    (a,), (b,) = streams(ONE, 1), streams(TWO, 1)
    fenced, stale = {ONE}, {"conversation:x"}
    holed = turn(ONE, row(a, 1), row(a, 3))  # nobody looks at what is fenced
    kept = turn(TWO, row(b, 1))
    plan = plan_commit([holed, kept], {}, fenced, stale)
    assert plan.turns == [kept]
    assert (plan.fenced, plan.stale) == ({ONE}, {"conversation:x"})
    plan.fenced.add(TWO)
    assert (fenced, stale) == ({ONE}, {"conversation:x"})  # the caller's are not changed


def test_a_turn_that_is_left_out_takes_all_turns_of_its_streams_along_however_far_that_goes() -> None:
    """One that came before on the same stream would be fine by itself, and its stream would have a hole after it."""
    a, b, c, d = streams(ONE, 4)
    turns = [
        turn(ONE, row(c, 1), row(b, 1)),
        turn(ONE, row(c, 2), snapshots=[Snapshot(d, 3, 1, b"")]),
        turn(ONE, row(d, 4)),
        turn(ONE, row(a, 2), row(b, 2)),
        turn(TWO, row(e := streams(TWO, 1)[0], 1)),
    ]
    for wrong in (a, b, c, d):
        plan = plan_commit(turns, {}, set(), {wrong})
        assert plan.turns == turns[4:]
        assert plan.stale == {a, b, c, d}
    assert plan_commit(turns, {}, set(), {e}).turns == turns[:4]


@pytest.mark.parametrize("offsets", [(0,), (-1,), (1, 3), (2, 2), (3, 2), (0, 1)])
def test_a_stream_with_a_hole_or_a_double_is_never_written(offsets: tuple[int, ...]) -> None:
    a, b = streams(ONE, 2)
    turns = [*(turn(ONE, row(a, offset)) for offset in offsets), turn(ONE, row(b, 4), row(b, 5))]
    plan = plan_commit(turns, {}, *NONE)
    assert (plan.stale, plan.turns) == ({a}, turns[-1:])


def test_a_command_id_twice_in_a_stream_is_never_written_and_rows_without_one_are_no_doubles() -> None:
    a, b = streams(ONE, 2)
    same = new_id()
    turns = [
        turn(ONE, row(a, 1, same), row(a, 2)),
        turn(ONE, row(a, 3, same)),
        turn(ONE, row(b, 1, same), row(b, 2), row(b, 3)),
    ]
    plan = plan_commit(turns, {}, *NONE)
    assert (plan.stale, plan.turns) == ({a}, turns[2:])


def test_a_row_in_a_partition_that_its_stream_does_not_live_in_is_never_written() -> None:
    """No fence would protect it: the owner of its own partition knows nothing of it."""
    (a,), (b,) = streams(ONE, 1), streams(TWO, 1)
    turns = [turn(ONE, row(a, 1), row(b, 1)), turn(TWO, row(b, 2)), turn(TWO, row(c := streams(TWO, 1)[0], 1))]
    plan = plan_commit(turns, {}, *NONE)
    assert (plan.stale, plan.turns) == ({a, b}, turns[2:])
    assert plan.firsts == {c: 1}


def test_any_flush_leaves_whole_streams_or_none() -> None:
    """Whatever is stale: of each stream either all rows are written or none."""
    dice = random.Random(5)
    for _ in range(200):
        names, offsets = streams(ONE, 6), dict.fromkeys(range(6), 0)
        turns = []
        for _ in range(8):
            picked = dice.sample(range(6), dice.randint(1, 3))
            for n in picked:
                offsets[n] += 1
            turns.append(turn(ONE, *(row(names[n], offsets[n]) for n in picked)))
        stale = {dice.choice(names)}
        plan = plan_commit(turns, {ONE: 3}, set(), stale)
        assert plan.stale >= stale
        for n, name in enumerate(names):
            written = [entry.offset for entry in plan.entries if entry.stream == name]
            assert written == ([] if name in plan.stale else list(range(1, offsets[n] + 1)))
        assert [position for _, position, *_ in plan.rows] == list(range(4, 4 + len(plan.rows)))
