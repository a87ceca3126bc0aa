"""One activation by itself: small mistakes that a whole host would have hidden, and what would have come of each."""

import gc
import tracemalloc
from typing import Any

import pytest

from actors.activation import BARE_BYTES, REMEMBERED, Activation, Item, Landed, landings
from actors.kinds import kinds
from domain.aggregate import AccountNeed
from domain.commands import Accepted, Command, Publication
from domain.ids import uuid7
from domain.ports import Entry, Loaded, Snapshot
from tests.support.log_rows import AT, new_id
from tests.support.runtime import person
from tests.support.tally import EVERY, Stream, Tally


@pytest.fixture
def rules() -> Tally:
    return Tally()


@pytest.fixture
def stream(rules: Tally) -> Stream:
    made = Stream("conversation:s", 7, rules, 0.0)
    made.load(Loaded(None, []))
    return made


def made_at(ms: int) -> str:
    return uuid7(ms, new_id()[:10].encode())


def row(offset: int, command_id: str | None = None, command_hash: bytes | None = b"hash") -> Entry:
    return Entry("conversation:s", offset, "said", command_id, command_hash, "user:u1", AT + offset, b"%d" % offset)


# --- loading -----------------------------------------------------------------------------------------------------


def test_a_load_is_the_snapshot_with_what_follows_and_all_of_it_is_durable(rules: Tally) -> None:
    """A version that counts as tentative would be undone by the next failed flush: acknowledged events gone."""
    stream = Stream("conversation:s", 7, rules, 5.0)
    assert not stream.ready
    known = made_at(AT)
    stream.load(Loaded(Snapshot("conversation:s", 3, 1, b"s,a,b,c", AT - 1), [row(4, known), row(5)]))
    assert stream.state == ["s", "a", "b", "c", "4", "5"]
    assert (stream.version, stream.committed, stream.tentative, stream.ready) == (5, 5, False, True)
    assert stream.recent == {
        known: Landed(b"hash", 4, 5, AT + 4, (Publication(4, b"seen 4"), Publication(5, b"seen 5")))
    }
    # The snapshot was at 3: the next one is due four events later, not after four more from here.
    assert stream.snapshot() is None
    stream.commit("f")
    assert stream.snapshot() is None
    stream.commit("g")
    assert stream.snapshot() is not None


def test_after_a_snapshot_only_ids_made_later_than_all_before_it_are_ruled_out(rules: Tally) -> None:
    """An id that the snapshot swallowed would be carried out a second time."""
    stream = Stream("conversation:s", 7, rules, 0.0)
    stream.load(Loaded(Snapshot("conversation:s", 1, 1, b"s,a", AT), []))
    assert [stream.rules_out(made_at(AT + n)) for n in (-1, 0, 1)] == [False, False, True]
    assert not stream.rules_out(new_id())  # a random id says nothing about when it was made


def test_without_a_snapshot_everything_unknown_is_ruled_out(stream: Stream) -> None:
    """Else every message of a young conversation costs a look-up in the database."""
    assert stream.rules_out(new_id()) is True
    assert stream.rules_out(made_at(1)) is True


def test_a_request_begins_with_nothing_found_out(stream: Stream) -> None:
    """A request that believes that its id was looked up is carried out again; one with rounds behind it gives up early."""
    item = Item(Command("conversation", new_id(), "send", person(), new_id(), b"{}"), "reply", 3.0)
    assert (item.reply, item.until_s, item.looked_up, item.settled, item.rounds) == ("reply", 3.0, False, False, 0)
    assert (item.parsed, item.error, item.hash, item.found, item.reserved) == (None,) * 4 + (frozenset(),)
    one, two = AccountNeed("u1"), AccountNeed("u2")
    assert item.missing((one, two)) == (one, two)
    item.facts[one] = None  # asked for, and there is nothing: that is an answer too
    assert item.missing((one, two)) == (two,)
    item.facts[two] = "known"
    assert item.missing((one, two)) == ()
    assert item.known().get(two) == "known"


def test_an_activation_begins_with_nothing_committed_nothing_waiting_and_nothing_stored() -> None:
    """Operators see these numbers; a phantom flush under way would keep the activation in memory for ever."""
    stream = Activation("conversation:s", 7, Tally(), 5.0)
    assert (stream.stream, stream.partition, stream.last_used_s, stream.track) == ("conversation:s", 7, 5.0, None)
    assert (stream.committed, stream.uncommitted, stream.express, stream.snapshot_offset) == (0, 0, 0, 0)
    assert stream.newest_id_ms == 0
    assert (stream.ready, stream.paused, stream.dead, stream.tentative, stream.loading) == (False,) * 4 + (None,)
    assert (stream.bytes, stream.state, stream.version) == (BARE_BYTES, ["s"], 0)


# --- tentative and durable ---------------------------------------------------------------------------------------


def test_what_is_shown_is_what_is_durable_while_more_is_decided(stream: Stream) -> None:
    """A read between decision and commit showed a message that the failed flush then took back."""
    stream.commit("a")
    assert stream.stable() == ["s", "a"]
    second, third = stream.decide("b"), stream.decide("c", "d")
    assert (stream.tentative, stream.version, stream.committed) == (True, 4, 1)
    assert stream.stable() == ["s", "a"]
    stream.landed(second)
    assert (stream.tentative, stream.committed, stream.stable()) == (True, 2, ["s", "a", "b"])
    assert stream.state == ["s", "a", "b", "c", "d"]
    stream.landed(third)
    assert (stream.tentative, stream.committed, stream.stable()) == (False, 4, ["s", "a", "b", "c", "d"])


def test_what_has_landed_in_one_burst_is_not_seen_again_in_the_next(stream: Stream) -> None:
    """Events left over from a burst would be applied a second time to the base of the next one."""
    first, second = stream.decide("a"), stream.decide("b")
    stream.landed(first)
    stream.landed(second)
    third, _ = stream.decide("c"), stream.decide("d")
    stream.landed(third)
    assert stream.stable() == ["s", "a", "b", "c"]
    assert stream.stable() == ["s", "a", "b", "c"]


def test_a_burst_of_64_events_is_evolved_once_and_a_longer_one_never_leaves_more_to_catch_up(
    stream: Stream, rules: Tally
) -> None:
    """Evolving everything twice halves a busy host; keeping all of an endless burst is memory without a bound."""
    turns = [stream.decide(str(n)) for n in range(200)]
    rules.evolved.clear()
    for turn in turns[:64]:
        stream.landed(turn)
    assert rules.evolved == []
    for turn in turns[64:199]:
        stream.landed(turn)
    assert len(rules.evolved) == 195  # three lots of 65, and four wait
    stream.stable()
    assert len(rules.evolved) == 199
    stream.landed(turns[199])
    assert len(rules.evolved) == 199


def test_undoing_keeps_what_is_durable_and_forgets_the_rest(stream: Stream) -> None:
    """A tentative id that stayed known would be answered as done although nothing of it is in the log."""
    kept, lost = new_id(), new_id()
    stream.commit("a", "b", known=kept)
    weight = stream.bytes
    stream.decide("c", known=lost)
    life = stream.life
    stream.revert()
    assert (stream.state, stream.version, stream.tentative) == (["s", "a", "b"], 2, False)
    assert list(stream.recent) == [kept]
    assert stream.bytes == weight
    assert stream.life != life  # whoever decided on what was undone can see it
    stream.commit("d")
    assert stream.stable() == ["s", "a", "b", "d"]


def test_every_undoing_is_a_life_of_its_own(stream: Stream) -> None:
    """A turn from before two undoings would pass for one of now."""
    lives = [stream.life]
    for _ in range(3):
        stream.decide("a")
        stream.revert()
        lives.append(stream.life)
    assert len(set(lives)) == 4


def test_a_snapshot_that_was_undone_is_made_again_at_the_next_event(stream: Stream) -> None:
    """Else the stream goes without one for as long as the undone events were many."""
    stream.commit("a", "b", "c", "d", "e", "f")
    stream.decide("g", "h", "i", "j")
    assert stream.snapshot() is not None
    stream.revert()
    stream.commit("G")
    snapshot = stream.snapshot()
    assert snapshot is not None
    assert (snapshot.offset, snapshot.body) == (7, b"s,a,b,c,d,e,f,G")


def test_where_too_few_events_are_left_for_a_snapshot_it_waits_for_them(stream: Stream) -> None:
    stream.commit("a", "b")
    stream.decide("c", "d", "e")
    assert stream.snapshot() is not None
    stream.revert()
    stream.commit("C")
    assert stream.snapshot() is None
    stream.commit("D")
    assert stream.snapshot() is not None


def test_a_snapshot_of_what_is_durable_outlives_an_undoing(stream: Stream) -> None:
    """Else every failed flush is followed by a snapshot of each stream that it touched."""
    stream.commit("a", "b", "c", "d")
    assert stream.snapshot() is not None
    stream.decide("e")
    stream.revert()
    stream.commit("E")
    assert stream.snapshot() is None


# --- snapshots ---------------------------------------------------------------------------------------------------


def test_a_snapshot_comes_with_every_so_many_events_and_says_which_ids_it_swallows(stream: Stream) -> None:
    """What lands with the snapshot is not in the tail of the next load: an id missing from it would run twice."""
    older, newer = made_at(AT), made_at(AT + 5)
    stream.commit("a", known=newer)
    stream.commit("b", known=older)
    stream.commit("c", known=new_id())
    assert stream.snapshot() is None
    stream.commit("d")
    assert stream.snapshot() == Snapshot("conversation:s", 4, 1, b"s,a,b,c,d", AT + 5)
    assert stream.snapshot() is None
    stream.commit("e")
    assert stream.snapshot() is None
    assert stream.snapshot(after=2) is None
    assert stream.snapshot(after=1) == Snapshot("conversation:s", 5, 1, b"s,a,b,c,d,e", AT + 5)


def test_a_snapshot_remembers_ids_that_the_activation_has_forgotten(stream: Stream) -> None:
    """The newest id of all was forgotten long ago; a snapshot that knows only the recent ones rules it out: it runs twice."""
    stream.commit("a", known=made_at(AT + 1_000))
    for n in range(REMEMBERED):
        stream.commit("b", known=made_at(AT + n))
    snapshot = stream.snapshot()
    assert snapshot is not None
    assert snapshot.newest_id_ms == AT + 1_000


@pytest.mark.parametrize("ids", [[], [new_id() for _ in range(REMEMBERED + 1)]], ids=["none", "random ones"])
def test_a_snapshot_without_dated_ids_rules_out_all_that_are_dated(stream: Stream, ids: list[str]) -> None:
    for known in ids or [""] * EVERY:
        stream.commit("a", known=known)
    snapshot = stream.snapshot()
    assert snapshot is not None
    assert snapshot.newest_id_ms == 0


# --- remembering -------------------------------------------------------------------------------------------------


def test_the_last_64_commands_are_remembered_and_of_the_others_when_they_were_made(stream: Stream) -> None:
    """An id that was forgotten but counts as never seen has a second effect."""
    ids = [made_at(AT + n) for n in range(REMEMBERED + 1)]
    for known in ids[:-1]:
        stream.commit("a", known=known)
    assert list(stream.recent) == ids[:-1]
    assert stream.complete
    stream.commit("a", known=ids[-1])
    assert list(stream.recent) == ids[1:]
    assert [stream.rules_out(made_at(AT + n)) for n in (0, 1)] == [False, True]


def test_an_old_id_that_is_forgotten_late_does_not_make_newer_ones_unknown(stream: Stream) -> None:
    """A client with a slow clock: its id goes after the newest one and must not take that one's date away."""
    for known in (made_at(AT), made_at(AT - 500), *(new_id() for _ in range(REMEMBERED))):
        stream.commit("a", known=known)
    assert not stream.rules_out(made_at(AT))
    assert stream.rules_out(made_at(AT + 1))


def test_what_is_not_durable_yet_is_never_forgotten(stream: Stream) -> None:
    """Nobody could look such an id up: it is not in the log yet, and a retry would be decided a second time."""
    ids = [new_id() for _ in range(REMEMBERED + 3)]
    stream.commit("a", known=ids[0])
    waiting = [stream.decide("a", known=known) for known in ids[1:]]
    assert list(stream.recent) == ids[1:]
    stream.landed(waiting[0])
    stream.decide("a", known=new_id())
    # The one that landed may go, though it is the very last that is durable; the next in line waits for its commit.
    assert list(stream.recent)[: len(ids) - 2] == ids[2:]


def test_an_id_remembered_anew_is_weighed_once(stream: Stream) -> None:
    known = new_id()
    stream.commit("a", known=known)
    weight = stream.bytes
    stream.remember(known, stream.recent[known])
    assert (stream.bytes, list(stream.recent)) == (weight, [known])


def test_what_lands_again_says_so_and_nothing_else_changes() -> None:
    events = (Publication(4, b"a"), Publication(5, b"b"))
    assert Landed(b"hash", 4, 5, AT, events).replay(b"view") == Accepted(4, AT, events, True, b"view")


# --- weights -----------------------------------------------------------------------------------------------------


def test_an_activation_weighs_its_stored_state_thrice_and_what_it_remembers(rules: Tally) -> None:
    """The cap by bytes is only as good as this sum: one that drifts frees everything, or nothing."""
    stream = Stream("conversation:s", 7, rules, 0.0)
    stream.load(Loaded(Snapshot("conversation:s", 1, 1, b"s," + b"x" * 998, 0), []))
    assert stream.bytes == BARE_BYTES + 3_000
    events = (Publication(2, b"12345"), Publication(3, b"678"))
    landed = Landed(b"", 2, 3, AT, events)
    assert landed.weight == Landed(b"", 2, 3, AT, ()).weight + 8
    stream.remember("one", landed)
    assert stream.bytes == BARE_BYTES + 3_000 + landed.weight


def test_the_weights_are_about_what_things_take() -> None:
    """A weight that is wrong by orders of magnitude makes the cap mean nothing."""
    chat = kinds(b"pepper")["conversation"]
    empty = weighed(lambda: Activation(f"conversation:{new_id()}", 7, chat, 0.0))
    assert BARE_BYTES / 3 < empty < 3 * BARE_BYTES
    one = weighed(lambda: Landed(new_id().encode(), 1, 1, AT, (Publication(1, new_id().encode()),)))
    assert Landed(b"", 1, 1, AT, ()).weight / 3 < one < 3 * Landed(b"", 1, 1, AT, ()).weight


def weighed(make: Any) -> float:
    """The bytes that one of many takes."""
    gc.collect()
    tracemalloc.start()
    try:
        made = [make() for _ in range(500)]
        gc.collect()
        return tracemalloc.get_traced_memory()[0] / len(made)
    finally:
        tracemalloc.stop()


# --- commands in the log -----------------------------------------------------------------------------------------


def test_the_commands_of_a_tail_are_found_with_all_their_events_and_nothing_else(rules: Tally) -> None:
    """A retry is answered from this: with a stranger's event in it, or one missing, the answer is not the first one."""
    one, two = new_id(), new_id()
    tail = [
        row(1),  # the end of a command whose first row the snapshot has swallowed
        row(2, None, None),  # a receipt
        row(3, one, b"one"),
        row(4, None, b"one"),
        row(5, None, b"one"),
        row(6, None, None),
        row(7, two, b"two"),
        row(8, None, b"other"),
    ]
    found = landings(rules, tail)
    seen = {n: Publication(n, b"seen %d" % n) for n in range(1, 9)}
    assert found == {
        one: Landed(b"one", 3, 5, AT + 3, (seen[3], seen[4], seen[5])),
        two: Landed(b"two", 7, 7, AT + 7, (seen[7],)),
    }
