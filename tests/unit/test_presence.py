"""Who is there, by what gateways have said."""

from domain.presence import Attendance, Heard, Present, Said, alive, attendance, stats, user_presence
from domain.wire import DevicePresence, UserPresence

NOW = 1_767_225_600_000
PHONE = Present("client-1", "alice", "phone", NOW - 5_000)
TABLET = Present("client-2", "alice", "tablet", NOW - 9_000)
BOBS = Present("client-3", "bob", "phone", NOW - 1_000)


def said(*clients: Present, beat_ms: int = NOW, over: bool = False) -> Said:
    return Said("gateway", beat_ms, over, clients)


def test_a_gateway_counts_for_thirty_seconds_after_its_last_beat_and_no_longer() -> None:
    assert alive(NOW, NOW)
    assert alive(NOW, NOW + 29_999)
    assert not alive(NOW, NOW + 30_000)
    assert alive(NOW + 5, NOW)


def test_all_who_live_gateways_speak_of_are_there_those_first_who_came_first() -> None:
    heard = Heard(NOW, (said(PHONE, BOBS), said(TABLET)))
    assert attendance(heard) == Attendance((TABLET, PHONE, BOBS))


def test_a_client_that_two_names_of_a_gateway_speak_of_is_there_once() -> None:
    assert attendance(Heard(NOW, (said(PHONE), said(PHONE)))).clients == (PHONE,)


def test_who_was_there_by_a_dead_gateway_was_last_seen_when_it_beat() -> None:
    heard = Heard(NOW, (said(PHONE, beat_ms=NOW - 30_000), said(beat_ms=NOW - 40_000)), NOW - 50_000)
    assert attendance(heard) == Attendance((), NOW - 30_000)


def test_a_dead_gateway_that_spoke_of_nobody_says_nothing_of_when_somebody_was_seen() -> None:
    assert attendance(Heard(NOW, (said(beat_ms=NOW - 30_000),), NOW - 50_000)) == Attendance((), NOW - 50_000)


def test_a_gateway_that_is_over_does_not_count_however_lately_it_beat() -> None:
    assert attendance(Heard(NOW, (said(PHONE, over=True),))) == Attendance((), NOW)


def test_who_is_there_has_not_been_last_seen() -> None:
    assert attendance(Heard(NOW, (said(PHONE),), NOW - 1)).last_seen_ms is None
    assert attendance(Heard(NOW)) == Attendance((), None)


def test_the_numbers_count_connections_and_people() -> None:
    assert stats([PHONE, TABLET, BOBS]) == (3, 2)
    assert stats([]) == (0, 0)


def test_each_device_is_shown_once_since_its_first_connection() -> None:
    again = Present("client-4", "alice", "phone", NOW)
    assert user_presence("alice", Attendance((PHONE, TABLET, again))) == UserPresence(
        "alice",
        True,
        (DevicePresence("tablet", "2025-12-31T23:59:51.000Z"), DevicePresence("phone", "2025-12-31T23:59:55.000Z")),
    )


def test_who_is_away_is_shown_with_when_they_were_last_seen() -> None:
    assert user_presence("alice", Attendance((), NOW)) == UserPresence("alice", False, (), "2026-01-01T00:00:00.000Z")
    assert user_presence("alice", Attendance()) == UserPresence("alice", False, ())
