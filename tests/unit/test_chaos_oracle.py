"""The judge has teeth: every way to break a promise is planted into a faultless run, and found."""

import msgspec
import pytest

from tests.support.oracle import Evidence, Fault, Row, Sent, judge, silences, silences_after, unclaimed

ROOM = "conversation:0190a0a0-0000-7000-8000-000000000005"
ANNA, BELA = "anna", "bela"
PARTITION = 5


class Run:
    """Six messages that Anna and Bela wrote by turns, each sent when the one before was acknowledged, seen by both."""

    def __init__(self) -> None:
        self.evidence = Evidence()
        self.evidence.opened[ROOM] = (ANNA, BELA)
        self.rows = [
            Row(PARTITION, 1, None, 0, "takeover", None, "host-0/h0-a", 0, "takeover", ""),
            Row(PARTITION, 2, ROOM, 1, "member.joined", "c", f"user:{ANNA}", 0, "member.joined", ""),
            Row(PARTITION, 3, ROOM, 2, "member.joined", None, f"user:{ANNA}", 0, "member.joined", ""),
        ]
        for device in ("phone", "laptop"):
            self.evidence.began[device, ROOM] = 2
            self.evidence.shown[device, ROOM] = []
        for number in range(6):
            self.post(f"m{number}", (ANNA, BELA)[number % 2], float(number))
        self.commits = {"h0-a": [(PARTITION, 2, 9)]}

    def send(self, identifier: str, by: str, at_s: float) -> Sent:
        message = Sent(identifier, ROOM, by, f"{by} says {identifier}", at_s, at_s, f"{by}/1", 1)
        self.evidence.sent[identifier] = message
        return message

    def post(self, identifier: str, by: str, at_s: float) -> None:
        message = self.send(identifier, by, at_s)
        offset = self.rows[-1].offset + 1
        self.rows.append(
            Row(
                PARTITION, offset + 1, ROOM, offset, "message.posted", identifier, f"user:{by}", int(at_s * 1000), identifier,
                message.text,
            )
        )  # fmt: skip
        self.evidence.acked(message, offset, f"t{offset}", False, at_s + 0.5)
        for device in ("phone", "laptop"):
            body = {"message_id": identifier, "by": by, "text": message.text}
            self.evidence.show(device, ROOM, offset, "message.posted", body, at_s + 0.5)

    def judge(self, **options: object) -> list[Fault]:
        return judge(self.evidence, self.rows, self.commits, **options)

    def without(self, *indexes: int) -> None:
        """Take rows out of the log and close the ranks, as if they had never been written."""
        left = [row for index, row in enumerate(self.rows) if index not in indexes]
        self.rows = [row._replace(position=n + 1, offset=max(0, n) if row.stream else 0) for n, row in enumerate(left)]


@pytest.fixture
def run() -> Run:
    return Run()


def promises(faults: list[Fault]) -> set[str]:
    return {fault.promise for fault in faults}


def test_a_run_without_faults_is_faultless(run: Run):
    assert run.judge() == []


class TestLost:
    def test_an_acknowledged_message_that_is_not_stored(self, run: Run):
        run.without(8)
        assert any(f.promise == "L" and "m5" in f.how and "not stored" in f.how for f in run.judge())

    def test_an_acknowledged_message_that_one_device_was_never_shown(self, run: Run):
        run.evidence.shown["phone", ROOM].pop()
        assert run.judge() == [Fault("L", f"{ROOM} at phone", "was shown nothing after 7; the log ends at 8")]

    def test_a_device_that_was_shown_nothing_at_all(self, run: Run):
        run.evidence.shown["laptop", ROOM].clear()
        assert promises(run.judge()) == {"L"}

    def test_a_message_that_was_acknowledged_at_another_place(self, run: Run):
        message = run.evidence.sent["m5"]
        message.offset = 9
        assert promises(run.judge()) == {"L"}

    def test_a_conversation_that_was_opened_and_is_gone(self, run: Run):
        run.evidence.opened["conversation:0190a0a0-0000-7000-8000-000000000006"] = (ANNA, BELA)
        assert promises(run.judge()) == {"L"}

    def test_what_was_acknowledged_after_the_lights_went_out_is_not_held_against_the_platform(self, run: Run):
        run.without(8)
        run.evidence.shown["phone", ROOM].pop()
        assert run.judge(until_s=5.2) == []
        assert promises(run.judge(until_s=5.5)) == {"L", "P"}


class TestDoubled:
    def test_a_message_that_is_stored_twice(self, run: Run):
        run.rows.append(run.rows[-1]._replace(position=10, offset=9, command_id=None))
        for device in ("phone", "laptop"):
            run.evidence.show(device, ROOM, 9, "message.posted", _body(run.evidence.sent["m5"]), 6.0)
        assert "D" in promises(run.judge())

    def test_a_publication_that_is_shown_twice(self, run: Run):
        shown = run.evidence.shown["phone", ROOM]
        shown.insert(3, shown[2])
        assert promises(run.judge()) == {"D"}

    def test_a_message_that_is_shown_again_at_a_new_offset(self, run: Run):
        run.evidence.show("phone", ROOM, 9, "message.posted", _body(run.evidence.sent["m0"]), 6.0)
        assert promises(run.judge()) == {"P"}


class TestDisordered:
    def test_a_device_that_is_shown_two_messages_the_other_way_round(self, run: Run):
        shown = run.evidence.shown["phone", ROOM]
        shown[2], shown[3] = shown[3], shown[2]
        assert "O" in promises(run.judge())

    def test_a_device_that_is_shown_other_messages_at_the_right_offsets(self, run: Run):
        shown = run.evidence.shown["phone", ROOM]
        shown[2], shown[3] = shown[3]._replace(offset=shown[2].offset), shown[2]._replace(offset=shown[3].offset)
        assert promises(run.judge()) == {"O"}

    def test_a_hole_in_what_a_device_is_shown(self, run: Run):
        del run.evidence.shown["phone", ROOM][2]
        assert promises(run.judge()) == {"O"}

    def test_a_hole_in_the_log(self, run: Run):
        run.rows[8] = run.rows[8]._replace(offset=9)
        assert "O" in promises(run.judge())

    def test_what_was_sent_after_an_acknowledgement_stands_before_it(self, run: Run):
        third, fourth = run.evidence.sent["m2"], run.evidence.sent["m3"]
        third.offset, fourth.offset = fourth.offset, third.offset
        swapped = run.rows[5], run.rows[6]
        run.rows[5] = swapped[1]._replace(position=6, offset=5)
        run.rows[6] = swapped[0]._replace(position=7, offset=6)
        assert any(f.promise == "O" and f.where == ROOM for f in run.judge())

    def test_one_connection_s_messages_stand_in_another_order_than_they_were_sent(self, run: Run):
        """Neither was acknowledged when the other was sent, so only the connection's own order tells."""
        third, fifth = run.evidence.sent["m2"], run.evidence.sent["m4"]
        third.sent_s, third.acked_s, fifth.sent_s, fifth.acked_s = 10.0, 11.0, 10.1, 11.0
        run.evidence.sent = {"m2": fifth, "m4": third}
        third.sent_s, fifth.sent_s = fifth.sent_s, third.sent_s
        faults = [f for f in run.judge() if f.promise == "O" and f.where == ROOM]
        assert len(faults) == 1
        fifth.attempts = 2
        assert [f for f in run.judge() if f.promise == "O" and f.where == ROOM] == []


class TestPhantoms:
    def test_a_stored_message_that_nobody_sent(self, run: Run):
        del run.evidence.sent["m3"]
        assert promises(run.judge()) == {"P"}

    def test_a_stored_message_under_another_name(self, run: Run):
        run.rows[5] = run.rows[5]._replace(actor="user:carl")
        assert promises(run.judge()) == {"P"}

    def test_a_stored_message_with_another_text(self, run: Run):
        run.rows[5] = run.rows[5]._replace(text="something else")
        assert promises(run.judge()) == {"P"}

    def test_a_message_that_is_shown_with_another_text(self, run: Run):
        message = run.evidence.sent["m5"]
        run.evidence.shown["phone", ROOM].pop()
        run.evidence.show("phone", ROOM, 8, "message.posted", {**_body(message), "text": "other"}, 6.0)
        assert promises(run.judge()) == {"P"}

    def test_something_that_is_shown_and_not_stored(self, run: Run):
        run.evidence.show("phone", ROOM, 9, "message.edited", {}, 6.0)
        assert promises(run.judge()) == {"P"}

    def test_an_event_that_nobody_asked_for(self, run: Run):
        run.rows.append(Row(PARTITION, 10, ROOM, 9, "member.left", None, "user:x", 0, "member.left", ""))
        assert "P" in promises(run.judge())

    def test_one_more_member_than_was_asked_for(self, run: Run):
        run.rows.append(Row(PARTITION, 10, ROOM, 9, "member.joined", None, "user:x", 0, "member.joined", ""))
        assert "P" in promises(run.judge())


class TestUnsettled:
    def test_a_message_that_never_got_an_answer(self, run: Run):
        run.send("m6", ANNA, 7.0)
        assert promises(run.judge()) == {"U"}

    def test_a_message_that_is_said_not_to_have_landed_and_is_stored(self, run: Run):
        message = run.evidence.sent["m5"]
        message.offset, message.absent = 0, True
        assert promises(run.judge()) == {"U"}

    def test_a_message_that_was_refused_for_good_and_is_stored(self, run: Run):
        message = run.evidence.sent["m5"]
        message.offset, message.refused = 0, "forbidden"
        assert promises(run.judge()) == {"U"}

    def test_a_refused_message_that_is_not_stored_is_fine(self, run: Run):
        run.send("m6", ANNA, 7.0).refused = "forbidden"
        assert run.judge() == []

    def test_two_answers_that_differ(self, run: Run):
        run.evidence.acked(run.evidence.sent["m5"], 9, "t9", True, 7.0)
        assert promises(run.judge()) == {"U"}

    def test_two_answers_that_both_claim_to_be_the_first(self, run: Run):
        run.evidence.acked(run.evidence.sent["m5"], 8, "t8", False, 7.0)
        assert promises(run.judge()) == {"U"}

    def test_a_replay_that_agrees_is_fine(self, run: Run):
        run.evidence.acked(run.evidence.sent["m5"], 8, "t8", True, 7.0)
        assert run.judge() == []


class TestTwoWriters:
    def takeover(self, run: Run, owner: str) -> None:
        """Another host takes the partition after everything, and writes one more message."""
        run.rows.append(Row(PARTITION, 10, None, 0, "takeover", None, f"host-1/{owner}", 0, "takeover", ""))
        message = run.send("m6", ANNA, 7.0)
        body = _body(message)
        run.rows.append(Row(PARTITION, 11, ROOM, 9, "message.posted", "m6", f"user:{ANNA}", 0, "m6", message.text))
        run.evidence.acked(message, 9, "t9", False, 7.5)
        for device in ("phone", "laptop"):
            run.evidence.show(device, ROOM, 9, "message.posted", body, 7.5)

    def test_the_new_owner_writes_on(self, run: Run):
        self.takeover(run, "h1-b")
        run.commits["h1-b"] = [(PARTITION, 11, 11)]
        assert run.judge() == []

    def test_the_former_owner_writes_on(self, run: Run):
        self.takeover(run, "h1-b")
        run.commits["h0-a"].append((PARTITION, 11, 11))
        assert promises(run.judge()) == {"W"}

    def test_a_commit_across_a_takeover(self, run: Run):
        self.takeover(run, "h1-b")
        run.commits = {"h1-b": [(PARTITION, 9, 11)]}
        assert promises(run.judge()) == {"W"}

    def test_rows_that_no_host_knows_of_are_counted(self, run: Run):
        assert unclaimed(run.rows, run.commits) == 0
        run.commits = {"h0-a": [(PARTITION, 2, 4), (PARTITION, 6, 8)]}
        assert unclaimed(run.rows, run.commits) == 2

    def test_a_hole_in_a_partition_s_positions(self, run: Run):
        run.rows[8] = run.rows[8]._replace(position=10)
        assert promises(run.judge()) == {"W"}

    def test_a_stream_in_another_partition(self, run: Run):
        run.rows.append(Row(7, 1, ROOM, 9, "message.posted", "m5", f"user:{BELA}", 0, "m5", "bela says m5"))
        assert "W" in promises(run.judge())


class TestSilences:
    def test_the_longest_time_without_an_acknowledgement_counts_from_the_start_and_to_the_end(self, run: Run):
        assert silences(run.evidence, 0.0, 6.0) == {ROOM: 1.0}
        assert silences(run.evidence, -3.0, 6.0) == {ROOM: 3.5}
        assert silences(run.evidence, 0.0, 9.5) == {ROOM: 4.0}

    def test_a_stream_in_which_nothing_was_acknowledged_was_silent_all_the_time(self, run: Run):
        for message in run.evidence.sent.values():
            message.offset = 0
        assert silences(run.evidence, 1.0, 6.0) == {ROOM: 5.0}

    def test_after_an_event_only_streams_that_had_to_move_count(self, run: Run):
        run.evidence.happened("kill host-0", 2.2)
        assert silences_after(run.evidence, run.rows, "kill", 0.0, 6.0, 0.0) == []
        run.rows.append(Row(PARTITION, 10, None, 0, "takeover", None, "host-1/b", 2_400, "takeover", ""))
        run.evidence.sent["m3"].acked_s = 4.4
        assert silences_after(run.evidence, run.rows, "kill", 0.0, 6.0, 0.0) == [pytest.approx(1.9)]
        assert silences_after(run.evidence, run.rows, "pause", 0.0, 6.0, 0.0) == []


def _body(message: Sent) -> dict[str, str]:
    return {"message_id": message.id, "by": message.by, "text": message.text}


def test_messages_are_plain_data_so_that_a_run_can_be_kept():
    assert msgspec.json.decode(msgspec.json.encode(Run().evidence.sent["m0"]), type=Sent).id == "m0"
