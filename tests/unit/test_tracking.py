"""Which fixes are believed, which are shown and kept, and what they tell."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import Refusal
from domain.geo import bearing_deg, cell_centre, distance_m, turn_deg
from domain.times import rfc3339
from domain.tracking import TRACK_POLICY, Fix, Track, Verdict, accept, follow, parse_fixes
from tests.unit.order_world import ACTORS, NOW, World

SITE = (31.2304, 121.4737)
STEP = 1 / 111_195
"""One metre in degrees of latitude."""


def at(seconds: float = 0.0, north_m: float = 0.0, **more: Any) -> Fix:
    return Fix(NOW + int(seconds * 1000), SITE[0] + north_m * STEP, SITE[1], more.pop("accuracy_m", 5.0), **more)


def batch(*fixes: Fix) -> bytes:
    return json.dumps(
        {
            "type": "fix",
            "fixes": [
                {"at": rfc3339(f.at), "lat": f.lat, "lon": f.lon, "accuracy_m": f.accuracy_m}
                | ({} if f.speed_mps is None else {"speed_mps": f.speed_mps})
                | ({} if f.heading_deg is None else {"heading_deg": f.heading_deg})
                for f in fixes
            ],
        }
    ).encode()


def shown(track: Track, *fixes: Fix, now_ms: int = NOW) -> dict[str, Any] | None:
    data, _ = follow(track, "v", SITE, batch(*fixes), now_ms)
    return None if data is None else json.loads(data)


@pytest.mark.parametrize(
    ("fix", "verdict"),
    [
        (Fix(NOW + 1_000, 91.0, 0.0, 5.0), Verdict.INVALID),
        (Fix(NOW + 1_000, float("nan"), 0.0, 5.0), Verdict.INVALID),
        (Fix(NOW + 1_000, 1.0, 1.0, -1.0), Verdict.INVALID),
        (Fix(NOW + 1_000, 0.0, 0.0, 5.0), Verdict.ZERO),
        (at(31), Verdict.FUTURE),
        (at(0), Verdict.DUPLICATE),
        (at(-1), Verdict.OLDER),
        (at(1, accuracy_m=101.0), Verdict.INACCURATE),
        (at(1, 56), Verdict.TOO_FAST),
        (at(1, 54), Verdict.ACCEPTED),
        (at(30, accuracy_m=100.0), Verdict.ACCEPTED),
    ],
)
def test_a_fix_is_believed_or_not(fix: Fix, verdict: Verdict) -> None:
    track = Track()
    assert accept(track, at(0), NOW) is Verdict.ACCEPTED
    assert accept(track, fix, NOW) is verdict


def test_after_five_minutes_of_silence_the_next_fix_is_believed() -> None:
    track = Track()
    accept(track, at(0), NOW)
    far = at(299, 50_000, accuracy_m=500.0)
    assert accept(track, far, NOW + 299_000) is Verdict.INACCURATE
    assert accept(track, at(300, 50_000, accuracy_m=500.0), NOW + 300_000) is Verdict.ACCEPTED


def test_positions_are_shown_at_most_once_a_second() -> None:
    track = Track()
    assert shown(track, at(0, 900))
    assert shown(track, at(0.5, 870), now_ms=NOW + 500) is None
    assert shown(track, at(1, 850), now_ms=NOW + 1_000)


def test_standing_still_is_no_news_but_twice_a_minute() -> None:
    track = Track()
    assert shown(track, at(0, 900, heading_deg=10.0))
    assert shown(track, at(5, 905, heading_deg=19.0), now_ms=NOW + 5_000) is None
    assert shown(track, at(6, 905, heading_deg=20.0), now_ms=NOW + 6_000)
    assert shown(track, at(40, 905, heading_deg=20.0), now_ms=NOW + 40_000)


def test_of_a_batch_the_newest_is_shown_and_samples_are_kept() -> None:
    track = Track()
    fixes = [at(n, 900 - 10 * n) for n in range(20)]
    data, kept = follow(track, "v", SITE, batch(*reversed(fixes)), NOW + 20_000)
    assert data is not None
    assert json.loads(data)["at"] == rfc3339(fixes[-1].at)
    assert [p.at for p in kept] == [fixes[n].at for n in range(0, 20, 2)]
    assert {p.visit_id for p in kept} == {"v"}


def test_a_position_says_when_the_worker_will_arrive() -> None:
    track = Track()
    data = shown(track, at(0, 10_000, speed_mps=10.0))
    assert data is not None
    assert data["type"] == "position"
    assert data["eta_s"] == pytest.approx(1_300, rel=0.01)
    assert data["eta_p90_s"] == pytest.approx(1.5 * data["eta_s"], rel=0.01)
    assert (data["lat"], data["speed_mps"]) == (pytest.approx(SITE[0] + 10_000 * STEP), 10.0)


def test_more_than_half_an_hour_away_only_a_cell_is_shown() -> None:
    first, second = (shown(Track(), at(0, 40_000 + shift, speed_mps=10.0)) for shift in (0, 30))
    assert first is not None
    assert second is not None
    assert (first["lat"], first["lon"]) == (second["lat"], second["lon"])
    assert first["accuracy_m"] >= 1_000
    assert "speed_mps" not in first
    assert first["eta_s"] > TRACK_POLICY.coarse_eta_s


def test_a_new_visit_starts_a_new_track() -> None:
    track = Track()
    follow(track, "first", SITE, batch(at(0)), NOW)
    data, kept = follow(track, "second", SITE, batch(at(-60, 30_000)), NOW)
    assert data is not None
    assert kept[0].visit_id == "second"


def test_a_bad_fix_does_not_spoil_its_batch() -> None:
    good = {"at": rfc3339(NOW), "lat": 1.5, "lon": 2.5, "accuracy_m": 3}
    bad = [{**good, "lat": "north"}, {**good, "at": "yesterday"}, {**good, "at": "2026-01-01T00:00:00"}, 7, None, {}]
    fixes = parse_fixes(json.dumps({"fixes": [*bad, good]}).encode())
    assert fixes == [Fix(NOW, 1.5, 2.5, 3.0)]


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"fixes": 3}', b"\xff", b'{"fixes": [' + b"1," * 51 + b"1]}"])
def test_what_is_no_batch_is_refused_and_shows_nothing(payload: bytes) -> None:
    with pytest.raises(Refusal):
        parse_fixes(payload)
    assert follow(Track(), "v", SITE, payload, NOW) == (None, [])


def test_an_order_shows_the_worker_only_while_on_the_way() -> None:
    world = World()
    track = Track()
    world.scheduled()
    fixes = batch(at(0, 900))
    assert world.rules.signal(world.state, track, ACTORS["ben"], "fix", fixes, NOW) == (None, [])
    world.do("ben", "start_trip", visit_id=world.visit_id)
    assert world.rules.signal(world.state, track, ACTORS["anna"], "fix", fixes, NOW) == (None, [])
    data, kept = world.rules.signal(world.state, track, ACTORS["ben"], "fix", fixes, NOW)
    assert data is not None
    assert len(kept) == 1
    world.do("ben", "check_in", visit_id=world.visit_id, code=world.code)
    assert world.rules.signal(world.state, track, ACTORS["ben"], "fix", batch(at(60)), NOW + 60_000) == (None, [])


LATS, LONS = st.floats(-90, 90), st.floats(-180, 180)


@given(LATS, LONS, LATS, LONS)
def test_distances_are_symmetric_and_within_half_the_earth(a: float, b: float, c: float, d: float) -> None:
    there, back = distance_m(a, b, c, d), distance_m(c, d, a, b)
    assert there == pytest.approx(back, abs=1e-3)
    assert 0 <= there <= 20_015_200
    assert 0 <= bearing_deg(a, b, c, d) <= 360


@given(st.floats(-80, 80), LONS)
def test_the_cell_of_a_place_is_near_it(lat: float, lon: float) -> None:
    centre = cell_centre(lat, lon, 1_000)
    assert distance_m(lat, lon, *centre) < 800
    assert abs(centre[0]) <= 90
    assert abs(centre[1]) <= 180


def test_known_distances_and_turns() -> None:
    assert distance_m(31.2304, 121.4737, 39.9042, 116.4074) == pytest.approx(1_067_000, rel=0.005)
    assert bearing_deg(0, 0, 1, 0) == pytest.approx(0)
    assert bearing_deg(0, 0, 0, 1) == pytest.approx(90)
    assert turn_deg(350, 10) == pytest.approx(20)


def test_a_fix_from_before_the_first_year_is_dropped_in_silence() -> None:
    payload = b'{"fixes": [{"at": "0001-01-01T00:00:00+14:00", "lat": 31.0, "lon": 121.0, "accuracy_m": 5}]}'
    assert follow(Track(), "v", (31.0, 121.0), payload, 1_795_354_463_833) == (None, [])


def test_the_record_of_a_trip_is_as_coarse_as_what_was_shown_of_it() -> None:
    """Who could not see the worker's exact place live must not find it in the track afterwards."""
    far = b'{"fixes": [{"at": "2026-01-01T10:00:00Z", "lat": 31.9, "lon": 121.9, "accuracy_m": 5}]}'
    near = b'{"fixes": [{"at": "2026-01-01T10:00:00Z", "lat": 31.2, "lon": 121.4, "accuracy_m": 5}]}'
    now_ms = 1_767_261_600_000
    (sample,) = follow(Track(), "v", (31.2, 121.4), far, now_ms)[1]
    assert (sample.lat, sample.lon) != (31.9, 121.9)
    assert sample.accuracy_m > 1_000
    (exact,) = follow(Track(), "v", (31.2, 121.4), near, now_ms)[1]
    assert (exact.lat, exact.lon, exact.accuracy_m) == (31.2, 121.4, 5)
