"""Whether somebody still waits is judged without anybody's wall clock, and without trusting two clocks to agree."""

from actors.deadlines import Deadlines

HOUR_MS = 3_600_000


def test_a_request_that_came_at_once_has_all_its_time() -> None:
    deadlines = Deadlines()
    assert deadlines.left_ms("_INBOX.a.1", 1_000, 5_000, 1_000) == 5_000


def test_time_on_the_way_counts_however_far_apart_the_clocks_are() -> None:
    deadlines = Deadlines()
    for apart in (0, HOUR_MS, -HOUR_MS):
        sender = f"_INBOX.{apart}."
        assert deadlines.left_ms(f"{sender}1", 10_000, 5_000, 10_000 + apart) == 5_000
        assert deadlines.left_ms(f"{sender}2", 12_000, 5_000, 12_000 + apart + 2_000) == 3_000
        assert deadlines.left_ms(f"{sender}3", 13_000, 5_000, 13_000 + apart + 6_000) == -1_000


def test_the_first_of_a_sender_may_have_been_late_and_the_next_puts_that_right() -> None:
    deadlines = Deadlines()
    assert deadlines.left_ms("_INBOX.a.1", 1_000, 5_000, 4_000) == 5_000
    assert deadlines.left_ms("_INBOX.a.2", 5_000, 5_000, 5_000) == 5_000
    assert deadlines.left_ms("_INBOX.a.3", 6_000, 5_000, 9_000) == 2_000


def test_clocks_that_drift_apart_over_days_expire_nothing() -> None:
    deadlines = Deadlines()
    for second in range(0, 86_400 * 3, 10):
        drifted = int(second * 1_000 * 1.0001)  # 100 ppm: half a minute in three days
        assert deadlines.left_ms("_INBOX.a.1", second * 1_000, 5_000, drifted) > 4_900


def test_senders_are_forgotten_before_they_fill_the_memory() -> None:
    deadlines = Deadlines()
    for number in range(10_000):
        deadlines.left_ms(f"_INBOX.{number}.1", 0, 5_000, 0)
    assert len(deadlines._least) <= 4_096
