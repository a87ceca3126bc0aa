"""When a device session has to prove who it is, and what it is trusted with after."""

import msgspec
import pytest

from domain.devices import living, login_message, require_fresh, require_second_factor, seen_again, stepped_up, strange
from domain.errors import Code, Refusal
from domain.places import Place, Seen, agent_of, coarse
from domain.ports import Device, DeviceSession

NOW = 1_800_000_000_000
HOUR = 3_600_000
PHONE = Device("phone-1", "Li's phone", "ios")
SHANGHAI = Place("CN", "Shanghai", 31.2, 121.5)
BEIJING = Place("CN", "Beijing", 39.9, 116.4)
SUZHOU = Place("CN", "Suzhou", 31.3, 120.6)
BERLIN = Place("DE", "Berlin", 52.5, 13.4)
HERE = Seen("198.51.100.7", "App/ (iOS )", SHANGHAI)


def session(**changes: object) -> DeviceSession:
    known = DeviceSession("s", "u", PHONE, NOW, NOW, seen=HERE, confirmed_at=NOW)
    return msgspec.structs.replace(known, **changes)


def seen(**changes: object) -> Seen:
    return msgspec.structs.replace(HERE, **changes)


@pytest.mark.parametrize(
    ("device", "now", "after_ms", "why"),
    [
        (PHONE, HERE, HOUR, ""),
        (None, HERE, HOUR, ""),
        (Device("phone-1", "renamed", "ios"), HERE, HOUR, ""),
        (Device("phone-2", "Li's phone", "ios"), HERE, HOUR, "device"),
        (Device("phone-1", "Li's phone", "android"), HERE, HOUR, "device"),
        (PHONE, seen(ip="203.0.113.9"), HOUR, ""),
        (PHONE, seen(agent="curl/"), HOUR, "agent"),
        (PHONE, seen(agent=""), HOUR, "agent"),
        (PHONE, seen(place=BERLIN), 1_000 * HOUR, "country"),
        (PHONE, seen(place=Place("DE")), HOUR, "country"),
        (PHONE, seen(place=Place()), HOUR, ""),
        (PHONE, seen(place=SUZHOU), 0, ""),
        (PHONE, seen(place=BEIJING), 0, "distance"),
        (PHONE, seen(place=BEIJING), HOUR * 59 // 60, "distance"),
        (PHONE, seen(place=BEIJING), HOUR, ""),
        (PHONE, seen(place=BEIJING), -HOUR, "distance"),
        (PHONE, seen(place=Place("CN")), 0, ""),
        (PHONE, seen(place=Place("", "", 52.5, 13.4)), HOUR, "distance"),
    ],
)
def test_a_refresh_from_elsewhere_has_to_step_up(device: Device | None, now: Seen, after_ms: int, why: str) -> None:
    assert strange(session(), device, now, NOW + after_ms) == why


def test_a_session_of_which_nothing_was_noted_is_not_strange_until_something_is() -> None:
    old = session(seen=Seen())
    assert strange(old, None, seen(place=BERLIN), NOW) == ""
    known = seen_again(old, HERE)
    assert strange(known, None, seen(place=BERLIN), NOW) == "country"


def test_a_known_place_is_not_forgotten_for_an_unknown_one() -> None:
    after = seen_again(session(), Seen("192.0.2.1", HERE.agent, Place()))
    assert after.seen == Seen("192.0.2.1", HERE.agent, SHANGHAI)
    assert strange(after, None, seen(place=BERLIN), NOW + HOUR) == "country"


def test_after_a_step_up_the_session_belongs_to_the_new_device_and_place() -> None:
    other, there = Device("phone-2", "new", "ios"), seen(place=BERLIN)
    after = stepped_up(session(confirmed_at=0), other, there, NOW + HOUR)
    assert strange(after, other, there, NOW + HOUR) == ""
    assert strange(after, PHONE, HERE, NOW + HOUR) == "device"
    assert after.confirmed_at == NOW + HOUR


@pytest.mark.parametrize(
    ("confirmed_at", "fresh"),
    [(NOW, True), (NOW - 599_999, True), (NOW - 600_000, False), (NOW + 1, False), (0, False)],
)
def test_a_session_is_fresh_for_ten_minutes_after_a_code(confirmed_at: int, fresh: bool) -> None:
    assert allowed(require_fresh, session(confirmed_at=confirmed_at)) == ("" if fresh else "otp")


@pytest.mark.parametrize(
    ("at", "verified"),
    [(NOW, True), (NOW - 12 * HOUR + 1, True), (NOW - 12 * HOUR, False), (NOW + 1, False), (0, False)],
)
def test_a_second_factor_counts_for_twelve_hours(at: int, verified: bool) -> None:
    assert allowed(require_second_factor, session(second_factor_at=at)) == ("" if verified else "totp")


def test_a_session_that_is_gone_is_neither_fresh_nor_verified() -> None:
    assert allowed(require_fresh, None) == "otp"
    assert allowed(require_second_factor, None) == "totp"


def allowed(rule: object, known: DeviceSession | None) -> str:
    """The factor that is asked for; empty: none."""
    try:
        rule(known, NOW)  # type: ignore[operator]
    except Refusal as refusal:
        return str(refusal.refused.current["factor"]) if refusal.code is Code.STEP_UP_REQUIRED else str(refusal)
    return ""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("RenovEasy/1.2.3 (iPhone14,2; iOS 17.1)", "RenovEasy/1.10 (iPhone15,3; iOS 18.0.1)", True),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_1 like Mac OS X)",
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18 like Mac OS X)",
            True,
        ),
        ("RenovEasy/1.2 (iOS)", "RenovEasy/1.2 (Android)", False),
        ("RenovEasy/1.2", "python-httpx/0.28", False),
    ],
)
def test_an_update_is_the_same_client_and_another_program_is_not(old: str, new: str, same: bool) -> None:
    assert (agent_of(old) == agent_of(new)) is same


def test_a_user_agent_is_kept_short_and_printable() -> None:
    assert agent_of("x" * 10_000) == "x" * 200
    assert agent_of("a\x00b\ncd\xff") == "abcd"


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (("CN", "Shanghai", 31.2304, 121.4737), Place("CN", "Shanghai", 31.2, 121.5)),
        (("cn", None, None, None), Place()),
        (("CN", "x" * 500, 31.2, None), Place("CN", "x" * 120)),
        ((None, 7, True, False), Place()),
        (("CN", "", float("nan"), 0.0), Place("CN")),
    ],
)
def test_a_place_is_coarse_and_holds_only_what_makes_sense(given: tuple[object, ...], place: Place) -> None:
    assert coarse(*given) == place


def test_sessions_of_a_key_are_those_that_it_opened_and_that_still_live() -> None:
    sessions = [
        session(id="a", device_key_id="k"),
        session(id="b", device_key_id="other"),
        session(id="c", device_key_id="k", revoked_at=NOW),
        session(id="d"),
    ]
    assert living(sessions, "k") == ["a"]
    assert living(sessions) == ["a", "b", "d"]


def test_what_a_device_key_signs_is_for_one_platform_one_key_and_one_challenge() -> None:
    message = login_message("renoveasy-api", "key", "challenge")
    assert message == b"renoveasy device login v1\nrenoveasy-api\nkey\nchallenge"
