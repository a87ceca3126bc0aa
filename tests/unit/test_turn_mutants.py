"""One turn by itself: small mistakes that a whole host would have hidden, and what would have come of each."""

from typing import Any

import pytest

from actors.activation import Item, Landed
from actors.turn import BEHIND, EARLY, OVER, Broken, Lookup, Outcome, attempt
from domain.aggregate import AccountNeed, Decision, MessageNeed
from domain.commands import (
    Accepted,
    Actor,
    Attached,
    Command,
    Publication,
    Query,
    Reminder,
    Status,
    Viewed,
    command_hash,
)
from domain.errors import Code, Refused
from domain.ids import uuid7
from domain.ports import Entry, Loaded, Snapshot
from tests.support.log_rows import AT, new_id
from tests.support.runtime import person
from tests.support.tally import Stream, Tally

ANNA, BEN = person(), person()
SYSTEM = Actor("system", "", "")
OWNER = 55
NEED, OTHER = AccountNeed("u1"), MessageNeed("c1", "m1")


@pytest.fixture
def rules() -> Tally:
    return Tally()


@pytest.fixture
def stream(rules: Tally) -> Stream:
    return made("conversation:a", rules)


def made(name: str, rules: Tally) -> Stream:
    stream = Stream(name, 7, rules, 0.0)
    stream.load(Loaded(None, []))
    return stream


def command(name: str = "say", actor: Actor = ANNA, command_id: str | None = None, **more: Any) -> Command:
    given = {"payload": b'{"n":1}'} | more
    return Command("conversation", "a", name, actor, new_id() if command_id is None else command_id, **given)


def query(name: Any, actor: Actor = ANNA, command_id: str = "") -> Query:
    return Query("conversation", "a", name, actor, command_id)


def run(stream: Stream, request: Command | Query | Item, *others: Stream, now_ms: int = AT) -> Outcome | Lookup:
    item = request if isinstance(request, Item) else Item(request, "reply")
    return attempt(stream, item, now_ms, OWNER, {each.stream: each for each in (stream, *others)}.get)


def ended(outcome: Outcome | Lookup) -> Outcome:
    assert isinstance(outcome, Outcome)
    return outcome


def refused(outcome: Outcome | Lookup) -> Code:
    answer = ended(outcome).answer
    assert isinstance(answer, Refused)
    assert ended(outcome).turn is None
    return answer.code


def entry(offset: int, event: str, known: str | None, hashed: bytes | None, stream: str = "conversation:a") -> Entry:
    return Entry(stream, offset, f"type of {event}", known, hashed, ANNA.label, AT, event.encode())


# --- queries -----------------------------------------------------------------------------------------------------


def test_questions_are_answered_from_what_is_durable(stream: Stream) -> None:
    """A view of what is not committed yet shows what may never have happened."""
    stream.commit("a")
    stream.decide("b")
    view = ended(run(stream, query("view")))
    assert isinstance(view.answer, Viewed)
    assert (view.answer.version, view.durable, view.turn) == (1, True, None)
    assert b'"events":["a"]' in view.answer.body
    attached = ended(run(stream, query("attach")))
    assert (attached.answer, attached.durable) == (Attached("epoch of a", 1, OWNER), True)


@pytest.mark.parametrize("name", ["view", "attach", "status"])
def test_what_does_not_exist_and_what_one_may_not_see_get_the_same_answer(
    stream: Stream, rules: Tally, name: str
) -> None:
    absent = ended(run(stream, query(name)))
    stream.commit("a")
    rules.banned = BEN
    hidden = ended(run(stream, query(name, BEN)))
    assert absent.answer == hidden.answer == Refused(Code.NOT_FOUND, "there is no such conversation")
    assert (absent.durable, hidden.durable) == (True, True)


@pytest.mark.parametrize("name", ["view", "attach", "status"])
def test_a_question_waits_for_the_facts_that_its_answer_needs(stream: Stream, rules: Tally, name: str) -> None:
    """Without them the rules decide on a stranger's rights as if nobody knew him."""
    stream.commit("a")
    rules.needed = (NEED,)
    item = Item(query(name), "reply")
    assert run(stream, item) == Lookup(needs=(NEED,))
    item.facts[NEED] = None
    assert not isinstance(ended(run(stream, item)).answer, Refused)


def test_a_denial_waits_once_for_what_is_under_way(stream: Stream, rules: Tally) -> None:
    """Who has just been made a member is told "not found", although the commit is in the database already."""
    stream.commit("a")
    rules.banned = BEN
    stream.decide("b")
    item = Item(query("view", BEN), "reply")
    assert run(stream, item) == Lookup(settle=True)
    assert refused(run(stream, item)) is Code.NOT_FOUND
    # A refused command is not a denial of what others may have done: it never waits.
    told = ended(run(stream, command(actor=BEN)))
    assert (refused(told), told.durable) == (Code.FORBIDDEN, False)


def test_whether_an_id_landed_is_known_only_after_it_was_looked_up(stream: Stream) -> None:
    """Answering "no" about an id that was forgotten makes the client send it again as something new."""
    here, dated = new_id(), uuid7(AT, b"0123456789")
    stream.load(Loaded(Snapshot("conversation:a", 1, 1, b"a,x", AT), []))
    stream.commit("b", known=here)
    known = ended(run(stream, query("status", command_id=here)))
    assert (known.answer, known.durable) == (Status(True, 2), True)
    item = Item(query("status", command_id=dated), "reply")
    assert run(stream, item) == Lookup(command=True)
    item.looked_up = True
    absent = ended(run(stream, item))
    assert (absent.answer, absent.durable) == (Status(False, None), True)
    item.found = Landed(b"hash", 1, 1, AT, ())
    found = ended(run(stream, item))
    assert (found.answer, found.durable) == (Status(True, 1), True)


def test_that_an_id_landed_is_said_when_it_is_durable(stream: Stream) -> None:
    known = new_id()
    events = stream.decide("a", "b", known=known)
    stream.landed(events[:1])  # only part of it is: a retry would still find nothing whole
    stream.uncommitted = 1
    assert ended(run(stream, query("status", command_id=known))) == Outcome(Status(True, 1), durable=False)
    stream.landed(events[1:])
    assert ended(run(stream, query("status", command_id=known))) == Outcome(Status(True, 1), durable=True)


# --- commands: what is missing -----------------------------------------------------------------------------------


def test_an_id_that_is_not_ruled_out_is_looked_up_before_anything_is_decided(stream: Stream, rules: Tally) -> None:
    """A command from before the snapshot would be carried out a second time."""
    stream.load(Loaded(Snapshot("conversation:a", 1, 1, b"a,x", AT), []))
    item = Item(command(), "reply")
    assert run(stream, item) == Lookup(command=True)
    assert rules.decided == []
    item.looked_up = True
    assert isinstance(ended(run(stream, item)).answer, Accepted)


def test_what_was_found_in_the_log_is_answered_as_the_first_time(stream: Stream, rules: Tally) -> None:
    stream.load(Loaded(Snapshot("conversation:a", 1, 1, b"a,x", AT), []))
    sent = command()
    item = Item(sent, "reply")
    item.looked_up = True
    events = (Publication(1, b"x"),)
    item.found = Landed(command_hash(ANNA, "say", {"n": 1}), 1, 1, AT - 9, events)
    assert ended(run(stream, item)) == Outcome(Accepted(1, AT - 9, events, True, None))
    item.found = Landed(b"other", 1, 1, AT - 9, events)
    told = ended(run(stream, item)).answer
    assert isinstance(told, Refused)
    assert (told.code, told.current, told.allowed_commands) == (Code.IDEMPOTENCY_MISMATCH, {"offset": 1}, None)
    assert rules.decided == []


def test_facts_are_asked_for_before_the_caller_is_admitted_and_others_before_the_decision(
    stream: Stream, rules: Tally
) -> None:
    rules.needed, rules.needed_to_decide = (NEED,), (NEED, OTHER)
    item = Item(command(), "reply")
    assert run(stream, item) == Lookup(needs=(NEED,))
    item.facts[NEED] = "anna"
    # A message may have been posted a moment ago: it is looked for when that is in the database.
    assert run(stream, item) == Lookup(needs=(OTHER,), settle=True)
    item.facts[OTHER] = "message"
    ended(run(stream, item))
    ((_, _, parsed, now_ms, facts),) = rules.decided
    assert (parsed, now_ms, facts.get(NEED), facts.get(OTHER)) == ({"n": 1}, AT, "anna", "message")


def test_other_facts_do_not_wait_for_what_is_under_way(stream: Stream, rules: Tally) -> None:
    rules.needed_to_decide = (NEED,)
    assert run(stream, command()) == Lookup(needs=(NEED,), settle=False)


def test_streams_that_are_touched_are_loaded_first(stream: Stream, rules: Tally) -> None:
    other = made("conversation:b", rules)
    rules.touched = ("conversation:b", "conversation:c", "conversation:a")
    assert run(stream, command(), other) == Lookup(streams=("conversation:c",))
    assert isinstance(ended(run(stream, command(), other, made("conversation:c", rules))).answer, Accepted)


def test_claims_are_reserved_all_together_before_anything_changes(stream: Stream, rules: Tally) -> None:
    """Two orders that get one worker for one hour: reserving what is left over lets them each have a part of it."""
    rules.decisions["say"] = Decision(["said"], claims=("k1", "k2"), releases=("r1",))
    item = Item(command(), "reply")
    assert run(stream, item) == Lookup(claims=("k1", "k2"))
    item.reserved = frozenset({"k1"})
    assert run(stream, item) == Lookup(claims=("k1", "k2"))
    assert (stream.version, stream.tentative) == (0, False)
    item.reserved = frozenset({"k1", "k2", "k3"})
    turn = ended(run(stream, item)).turn
    assert turn is not None
    assert (turn.claims, turn.releases) == (("k1", "k2"), ("r1",))


# --- commands: refusals ------------------------------------------------------------------------------------------


def test_who_may_not_do_it_is_not_told_what_else_is_wrong(stream: Stream, rules: Tally) -> None:
    """Access comes before parameters: else a stranger learns which ids exist and which fields are looked at."""
    known = new_id()
    stream.commit("a", known=known)
    rules.banned = BEN
    for sent in (command(actor=BEN, payload=b"bad"), command(actor=BEN, command_id=known), command("x", BEN, "no id")):
        assert refused(run(stream, sent)) is Code.FORBIDDEN


def test_a_payload_is_parsed_once_however_often_the_turn_is_tried(stream: Stream, rules: Tally) -> None:
    """Parsing is most of what a turn costs, and a turn that waits for facts is tried two or three times."""
    rules.needed = (NEED,)
    for payload in (b'{"n":1}', b"bad"):
        rules.parsed.clear()
        item = Item(command(payload=payload), "reply")
        run(stream, item)
        item.facts[NEED] = None
        answer = ended(run(stream, item)).answer
        assert len(rules.parsed) == 1
        assert isinstance(answer, Refused) == (payload == b"bad")


def test_a_bad_payload_is_refused_with_what_is_wrong_and_nothing_else_happens(stream: Stream, rules: Tally) -> None:
    told = ended(run(stream, command(payload=b"bad")))
    assert (told.answer, told.turn, told.durable) == (Refused(Code.INVALID, "not JSON"), None, False)
    assert rules.decided == []


@pytest.mark.parametrize("bad", ["", "nonsense", new_id().upper()], ids=["none", "nonsense", "upper case"])
def test_a_write_without_a_proper_id_is_refused(stream: Stream, bad: str) -> None:
    assert refused(run(stream, command(command_id=bad))) is Code.INVALID


@pytest.mark.parametrize("name", ["receipt.read", "receipt.delivered"])
@pytest.mark.parametrize("given", ["", "nonsense", new_id()], ids=["none", "nonsense", "an id"])
def test_a_receipt_needs_no_id_and_none_that_it_carries_is_kept(stream: Stream, name: str, given: str) -> None:
    """A receipt that took an id would make a later message of the same id a mismatch."""
    turn = ended(run(stream, command(name, command_id=given))).turn
    assert turn is not None
    assert [(row.command_id, row.command_hash) for row in turn.entries] == [(None, None)]
    assert stream.recent == {}


def test_an_id_that_was_used_for_something_else_says_where(stream: Stream, rules: Tally) -> None:
    rules.kind = "order"
    known = new_id()
    stream.commit("a", "b", known=known)
    told = ended(run(stream, command(command_id=known))).answer
    assert isinstance(told, Refused)
    assert (told.code, told.current) == (Code.IDEMPOTENCY_MISMATCH, {"state": "seen", "version": 2, "offset": 1})
    assert told.allowed_commands == ("a", "b")


def test_a_mismatch_that_says_nothing_of_an_order_says_the_offset_alone(stream: Stream) -> None:
    known = new_id()
    stream.commit("a", known=known)
    told = ended(run(stream, command(command_id=known))).answer
    assert isinstance(told, Refused)
    assert (told.current, told.allowed_commands) == ({"offset": 1}, None)


# --- reminders ---------------------------------------------------------------------------------------------------


def reminder(name: str = "due", due_at: int = AT, fence: int = 1, stream: str = "conversation:a") -> Reminder:
    return Reminder(stream, name, due_at, fence, "say", b"{}")


@pytest.mark.parametrize("other", [reminder("else"), reminder(due_at=AT - 1), reminder(fence=0)])
def test_a_reminder_runs_only_while_just_that_one_stands(stream: Stream, rules: Tally, other: Reminder) -> None:
    """One that was moved or removed would still cancel the order."""
    rules.standing[1] = (reminder(), reminder("more"))
    stream.commit("a")
    assert ended(run(stream, command(actor=SYSTEM, reminder=other))) == Outcome(OVER)
    assert isinstance(ended(run(stream, command(actor=SYSTEM, reminder=reminder()))).answer, Accepted)


def test_a_reminder_never_runs_early_nor_on_a_state_from_before_it(stream: Stream, rules: Tally) -> None:
    rules.standing[1] = (reminder(), reminder("later", fence=2))
    stream.commit("a")
    due = command(actor=SYSTEM, reminder=reminder())
    assert ended(run(stream, due, now_ms=AT - 1)) == Outcome(EARLY)
    # What has a fence beyond the state was set by somebody who has gone on: this host is not the owner any more.
    assert ended(run(stream, command(actor=SYSTEM, reminder=reminder("later", fence=2)))) == Outcome(BEHIND)
    assert isinstance(ended(run(stream, due, now_ms=AT)).answer, Accepted)


def test_a_turn_sets_and_removes_the_reminders_that_it_has_changed(stream: Stream, rules: Tally) -> None:
    """A row left behind fires for nothing; one that was not written never fires."""
    kept, moved, before = reminder("kept"), reminder("moved"), [reminder(n) for n in ("z", "y")]
    rules.standing[1] = (kept, moved, *before)
    rules.standing[2] = (reminder("new b"), kept, reminder("moved", AT + 1), reminder("new a"))
    rules.standing[3] = rules.standing[2]
    stream.commit("a")
    turn = ended(run(stream, command())).turn
    assert turn is not None
    assert turn.reminders == [reminder("moved", AT + 1), reminder("new a"), reminder("new b")]
    assert turn.done == [("conversation:a", "y"), ("conversation:a", "z")]
    turn = ended(run(stream, command())).turn
    assert turn is not None
    assert (turn.reminders, turn.done) == ([], [])


# --- commands: effects -------------------------------------------------------------------------------------------


def test_a_command_becomes_rows_an_answer_and_something_to_remember(stream: Stream, rules: Tally) -> None:
    rules.decisions["say"] = Decision(["one", "two"])
    stream.commit("a")
    sent = command()
    hashed = command_hash(ANNA, "say", {"n": 1})
    outcome = ended(run(stream, sent))
    seen = (Publication(2, b"seen one"), Publication(3, b"seen two"))
    assert outcome.answer == Accepted(2, AT, seen, False, None)
    assert outcome.durable is False
    assert outcome.turn is not None
    assert outcome.turn.partition == 7
    assert outcome.turn.entries == [entry(2, "one", sent.command_id, hashed), entry(3, "two", None, hashed)]
    (step,) = outcome.steps
    assert step.activation is stream
    assert (step.events, step.publications) == ([(2, "one"), (3, "two")], list(seen))
    assert stream.recent == {sent.command_id: Landed(hashed, 2, 3, AT, seen)}
    assert (stream.state, stream.tentative, stream.stable()) == (["a", "a", "one", "two"], True, ["a", "a"])
    again = ended(run(stream, sent))
    assert again == Outcome(Accepted(2, AT, seen, True, None))


def test_an_order_shows_itself_beside_the_answer_as_its_caller_may_see_it_now(stream: Stream, rules: Tally) -> None:
    rules.kind = "order"
    sent = command()
    first = ended(run(stream, sent)).answer
    assert isinstance(first, Accepted)
    assert first.view == rules.view(["a", "say"], ANNA, Item(sent, "").known())
    stream.decide("later")
    again = ended(run(stream, sent)).answer
    assert isinstance(again, Accepted)
    assert again.view == rules.view(["a", "say", "later"], ANNA, Item(sent, "").known())
    rules.decisions["nothing"] = Decision([])
    nothing = ended(run(stream, command("nothing")))
    assert nothing == Outcome(Accepted(2, AT, (), False, again.view))
    # The platform's own commands are asked by nobody who would look at it.
    own = ended(run(stream, command(actor=SYSTEM))).answer
    assert isinstance(own, Accepted)
    assert own.view is None


def test_a_command_that_changes_nothing_commits_nothing(stream: Stream, rules: Tally) -> None:
    stream.commit("a")
    rules.decisions["say"] = Decision([])
    assert ended(run(stream, command())) == Outcome(Accepted(1, AT))
    told = Refused(Code.CONFLICT, "no")
    rules.decisions["say"] = Decision([], refusal=told)
    assert ended(run(stream, command())) == Outcome(told)
    assert (stream.version, stream.tentative) == (1, False)


def test_a_wrong_try_is_committed_without_its_id_and_then_refused(stream: Stream, rules: Tally) -> None:
    """Refusals are not remembered: with the id in the log the right code, sent again, would be answered as done."""
    told = Refused(Code.CONFLICT, "wrong code")
    rules.decisions["say"] = Decision(["tried"], refusal=told)
    outcome = ended(run(stream, command()))
    assert outcome.answer == told
    assert outcome.turn is not None
    assert outcome.turn.entries == [entry(1, "tried", None, None)]
    assert stream.recent == {}


def test_every_fourth_event_comes_with_a_snapshot_in_the_same_turn(stream: Stream) -> None:
    turns = [ended(run(stream, command())).turn for _ in range(5)]
    assert [len(turn.snapshots) for turn in turns if turn is not None] == [0, 0, 0, 1, 0]
    assert turns[3] is not None
    assert turns[3].snapshots[0].offset == 4


def test_what_a_turn_does_to_other_streams_is_part_of_it(stream: Stream, rules: Tally) -> None:
    """An order's card in its chat: one commit, each with its own offsets, ids, reminders and snapshot."""
    there = Tally()
    other = made("conversation:b", there)
    other.commit("x", "y")
    there.standing[2] = (reminder("old", stream="conversation:b"),)
    there.standing[4] = (reminder("new", stream="conversation:b"),)
    there.decisions["note"] = Decision(["n1"])
    cards = [Command("conversation", "b", name, ANNA, new_id(), b'{"c":1}') for name in ("card", "note")]
    rules.decisions["say"] = Decision(["said"], related=cards)
    sent = command()
    outcome = ended(run(stream, sent, other))
    hashes = [command_hash(ANNA, name, {"c": 1}) for name in ("card", "note")]
    assert outcome.turn is not None
    assert outcome.turn.entries == [
        entry(1, "said", sent.command_id, command_hash(ANNA, "say", {"n": 1})),
        entry(3, "card", cards[0].command_id, hashes[0], "conversation:b"),
        entry(4, "n1", cards[1].command_id, hashes[1], "conversation:b"),
    ]
    assert outcome.turn.reminders == [reminder("new", stream="conversation:b")]
    assert outcome.turn.done == [("conversation:b", "old")]
    assert [(s.stream, s.offset) for s in outcome.turn.snapshots] == [("conversation:b", 4)]
    first, second = outcome.steps
    assert (first.activation, first.events) == (stream, [(1, "said")])
    assert (second.activation, second.events) == (other, [(3, "card"), (4, "n1")])
    assert second.publications == [Publication(3, b"seen card"), Publication(4, b"seen n1")]
    # The second was decided on what the first had made of the stream.
    assert [(state, name, now_ms) for state, name, _, now_ms, _ in there.decided] == [
        (["b", "x", "y"], "card", AT),
        (["b", "x", "y", "card"], "note", AT),
    ]
    assert list(other.recent) == [card.command_id for card in cards]
    assert outcome.answer == Accepted(1, AT, (Publication(1, b"seen said"),), False, None)


def test_a_card_that_changes_nothing_leaves_its_stream_alone(stream: Stream, rules: Tally) -> None:
    there = Tally()
    other = made("conversation:b", there)
    there.decisions["card"] = Decision([])
    rules.decisions["say"] = Decision(["said"], related=[Command("conversation", "b", "card", ANNA, new_id(), b"{}")])
    outcome = ended(run(stream, command(), other))
    assert outcome.turn is not None
    assert len(outcome.turn.entries) == 1
    assert (other.tentative, other.recent) == (False, {})


def test_a_turn_that_fails_half_way_is_broken_and_says_at_what(stream: Stream, rules: Tally) -> None:
    """Part of its events are in the state already: whoever goes on from there commits what nobody decided."""
    rules.decisions["say"] = Decision(["fine", "poison"])
    with pytest.raises(Broken, match=r"say on conversation:a failed half-way: ValueError\('cannot evolve'\)"):
        run(stream, command())
    rules.decisions["go"] = Decision(["fine"], related=[Command("conversation", "z", "card", ANNA, new_id(), b"{}")])
    with pytest.raises(Broken, match="conversation:z"):
        run(made("conversation:c", rules), command("go"))


def test_rules_that_fail_before_anything_has_changed_break_nothing(stream: Stream, rules: Tally) -> None:
    rules.decisions["say"] = ValueError("a mistake")
    with pytest.raises(ValueError, match="a mistake"):
        run(stream, command())
    assert not stream.tentative
