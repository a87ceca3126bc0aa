"""A worker on the way: which fixes to believe, which to show, which to keep, and what to say about the arrival.

All functions are pure but for `Track`, the memory that one activation has of one trip; it is never stored.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from domain.errors import Refusal, from_validation, invalid
from domain.geo import bearing_deg, cell_centre, distance_m, turn_deg
from domain.ports import Position
from domain.times import epoch_ms, rfc3339


class TrackPolicy(msgspec.Struct, frozen=True):
    """Filter set after Traccar's; pacing after Google Fleet Engine's and Uber's. Milliseconds, metres, metres a second."""

    batch_max: int = 50
    future_max_ms: int = 30_000
    past_max_ms: int = 86_400_000
    """A fix may have waited on a device without a network for a day."""
    accuracy_max_m: float = 100.0
    speed_max_mps: float = 55.0
    escape_after_ms: int = 300_000
    """After this long without a believed fix the next is believed, however far off or inaccurate."""
    publish_every_ms: int = 1_000
    still_m: float = 10.0
    still_deg: float = 10.0
    heartbeat_ms: int = 30_000
    """A worker who stands still is still shown to be there this often."""
    sample_every_ms: int = 5_000
    sample_distance_m: float = 20.0
    coarse_eta_s: float = 1_800.0
    coarse_cell_m: float = 1_220.0
    """About the edge of an H3 cell of resolution 7."""
    detour: float = 1.3
    speed_default_mps: float = 8.3
    speed_range_mps: tuple[float, float] = (3.0, 25.0)
    p90_factor: float = 1.5


TRACK_POLICY: Final = TrackPolicy()


class Fix(msgspec.Struct, frozen=True):
    """One GPS observation. `at` is Unix milliseconds."""

    at: int
    lat: float
    lon: float
    accuracy_m: float
    speed_mps: float | None = None
    heading_deg: float | None = None


class Verdict(StrEnum):
    """Whether a fix is believed, and if not, why."""

    ACCEPTED = "accepted"
    INVALID = "invalid"
    ZERO = "zero"
    FUTURE = "future"
    DUPLICATE = "duplicate"
    OLDER = "older"
    INACCURATE = "inaccurate"
    TOO_FAST = "too_fast"


class Track:
    """What is remembered of a trip: the last fix believed, shown and kept, and how fast the worker moves."""

    __slots__ = ("accepted_ms", "last", "published", "published_ms", "sampled", "speed_mps", "visit_id")

    def __init__(self) -> None:
        self.start("")

    def start(self, visit_id: str) -> None:
        """Forget everything: another trip begins."""
        self.visit_id = visit_id
        self.last: Fix | None = None
        self.accepted_ms = 0
        self.published: Fix | None = None
        self.published_ms = 0
        self.sampled: Fix | None = None
        self.speed_mps: float | None = None


class _FixInput(msgspec.Struct):
    at: datetime
    lat: float
    lon: float
    accuracy_m: float
    speed_mps: float | None = None
    heading_deg: float | None = None


class _Fixes(msgspec.Struct):
    fixes: list[msgspec.Raw]


_FIXES = msgspec.json.Decoder(_Fixes)
_FIX = msgspec.json.Decoder(_FixInput)


def parse_fixes(payload: bytes, policy: TrackPolicy = TRACK_POLICY) -> list[Fix]:
    """The readable fixes of a batch, oldest first; those that are no fixes at all are left out.

    Raises:
        Refusal: `invalid` where the payload is no batch of fixes, or one too long.
    """
    try:
        raw = _FIXES.decode(payload).fixes
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise from_validation(error) from None
    except (UnicodeDecodeError, RecursionError):
        raise invalid("fixes", "malformed", "not JSON") from None
    if len(raw) > policy.batch_max:
        raise invalid("fixes", "too_many", f"at most {policy.batch_max} fixes at once")
    fixes = [fix for fix in map(_readable, raw) if fix is not None]
    return sorted(fixes, key=lambda fix: fix.at)


def _readable(raw: msgspec.Raw) -> Fix | None:
    try:
        seen = _FIX.decode(raw)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if seen.at.tzinfo is None:
        return None
    return Fix(epoch_ms(seen.at), seen.lat, seen.lon, seen.accuracy_m, seen.speed_mps, seen.heading_deg)


def judge(track: Track, fix: Fix, now_ms: int, policy: TrackPolicy = TRACK_POLICY) -> Verdict:
    """Whether to believe a fix, given those before it."""
    if not _plausible(fix):
        return Verdict.INVALID
    if fix.lat == 0 and fix.lon == 0:
        return Verdict.ZERO
    if fix.at > now_ms + policy.future_max_ms:
        return Verdict.FUTURE
    if fix.at < now_ms - policy.past_max_ms:
        return Verdict.OLDER
    last = track.last
    if last is not None and fix.at <= last.at:
        return Verdict.DUPLICATE if fix.at == last.at else Verdict.OLDER
    if last is not None and fix.at - last.at >= policy.escape_after_ms:
        return Verdict.ACCEPTED
    if fix.accuracy_m > policy.accuracy_max_m:
        return Verdict.INACCURATE
    if last is not None:
        moved = distance_m(last.lat, last.lon, fix.lat, fix.lon)
        if moved > policy.speed_max_mps * (fix.at - last.at) / 1000:
            return Verdict.TOO_FAST
    return Verdict.ACCEPTED


def _plausible(fix: Fix) -> bool:
    speed = fix.speed_mps if fix.speed_mps is not None else 0.0
    heading = fix.heading_deg if fix.heading_deg is not None else 0.0
    in_range = abs(fix.lat) <= 90 and abs(fix.lon) <= 180 and 0 <= fix.accuracy_m < 1e6
    return in_range and 0 <= speed < 1e4 and -360 <= heading <= 360


def accept(track: Track, fix: Fix, now_ms: int, policy: TrackPolicy = TRACK_POLICY) -> Verdict:
    """Judge a fix and, if it is believed, remember it."""
    verdict = judge(track, fix, now_ms, policy)
    if verdict is Verdict.ACCEPTED:
        track.speed_mps = _speed(track, fix)
        track.last, track.accepted_ms = fix, now_ms
    return verdict


def _speed(track: Track, fix: Fix) -> float | None:
    """An exponential mean of the reported (or else implied) speed; standing at a light does not make it zero at once."""
    seen = fix.speed_mps
    last = track.last
    if seen is None and last is not None:
        seen = distance_m(last.lat, last.lon, fix.lat, fix.lon) / max((fix.at - last.at) / 1000, 0.001)
    if seen is None or track.speed_mps is None:
        return track.speed_mps if seen is None else seen
    return 0.8 * track.speed_mps + 0.2 * seen


def should_publish(track: Track, fix: Fix, now_ms: int, policy: TrackPolicy = TRACK_POLICY) -> bool:
    """At most once a second, and only what is news: moved by 10 m or turned by 10°, or a sign of life twice a minute."""
    shown = track.published
    if shown is None:
        return True
    since = now_ms - track.published_ms
    if since < policy.publish_every_ms:
        return False
    moved = distance_m(shown.lat, shown.lon, fix.lat, fix.lon) >= policy.still_m
    turned = (
        shown.heading_deg is not None
        and fix.heading_deg is not None
        and turn_deg(shown.heading_deg, fix.heading_deg) >= policy.still_deg
    )
    return moved or turned or since >= policy.heartbeat_ms


def should_sample(track: Track, fix: Fix, policy: TrackPolicy = TRACK_POLICY) -> bool:
    """Whether to keep the fix: five seconds or 20 m after the last one kept."""
    kept = track.sampled
    if kept is None:
        return True
    apart = distance_m(kept.lat, kept.lon, fix.lat, fix.lon)
    return fix.at - kept.at >= policy.sample_every_ms or apart >= policy.sample_distance_m


def eta_s(track: Track, fix: Fix, site: tuple[float, float], policy: TrackPolicy = TRACK_POLICY) -> tuple[int, int]:
    """Seconds until arrival, the median and the 90th percentile: the great circle, a detour, and the speed so far."""
    slowest, fastest = policy.speed_range_mps
    speed = track.speed_mps if track.speed_mps is not None and track.speed_mps > 1 else policy.speed_default_mps
    way = distance_m(fix.lat, fix.lon, *site) * policy.detour
    median = way / min(fastest, max(slowest, speed))
    return round(median), round(median * policy.p90_factor)


def _sample(track: Track, fix: Fix, visit_id: str, site: tuple[float, float], policy: TrackPolicy) -> Position:
    """What is recorded of a fix: as coarse as what is shown of it, for the record is shown too."""
    if eta_s(track, fix, site, policy)[0] > policy.coarse_eta_s:
        lat, lon = cell_centre(fix.lat, fix.lon, policy.coarse_cell_m)
        return Position(fix.at, lat, lon, policy.coarse_cell_m, visit_id=visit_id)
    return Position(fix.at, fix.lat, fix.lon, fix.accuracy_m, fix.speed_mps, fix.heading_deg, visit_id)


def position(track: Track, fix: Fix, site: tuple[float, float], policy: TrackPolicy = TRACK_POLICY) -> bytes:
    """The publication of a fix. Half an hour away or more it names only a cell of about a kilometre."""
    median, late = eta_s(track, fix, site, policy)
    data: dict[str, Any] = {"type": "position", "at": rfc3339(fix.at), "visit_id": track.visit_id}
    if median > policy.coarse_eta_s:
        lat, lon = cell_centre(fix.lat, fix.lon, policy.coarse_cell_m)
        data |= {"lat": lat, "lon": lon, "accuracy_m": policy.coarse_cell_m}
    else:
        data |= {"lat": fix.lat, "lon": fix.lon, "accuracy_m": fix.accuracy_m}
        if fix.heading_deg is not None:
            data["heading_deg"] = fix.heading_deg % 360
        if fix.speed_mps is not None:
            data["speed_mps"] = fix.speed_mps
    return msgspec.json.encode(data | {"eta_s": median, "eta_p90_s": late})


def follow(
    track: Track,
    visit_id: str,
    site: tuple[float, float],
    payload: bytes,
    now_ms: int,
    policy: TrackPolicy = TRACK_POLICY,
) -> tuple[bytes | None, list[Position]]:
    """Take a batch of fixes on the way to `site`: the newest as a publication, if it is one, and what to keep."""
    if track.visit_id != visit_id:
        track.start(visit_id)
    try:
        fixes = parse_fixes(payload, policy)
    except Refusal:
        return None, []
    kept: list[Position] = []
    newest: Fix | None = None
    for fix in fixes:
        if accept(track, fix, now_ms, policy) is not Verdict.ACCEPTED:
            continue
        newest = fix
        if should_sample(track, fix, policy):
            track.sampled = fix
            kept.append(_sample(track, fix, visit_id, site, policy))
    if newest is None or not should_publish(track, newest, now_ms, policy):
        return None, kept
    newest = _headed(track, newest)
    track.published, track.published_ms = newest, now_ms
    return position(track, newest, site, policy), kept


def _headed(track: Track, fix: Fix) -> Fix:
    """The fix with a heading: its own, or the direction moved since the last one shown."""
    shown = track.published
    if fix.heading_deg is not None or shown is None:
        return fix
    if distance_m(shown.lat, shown.lon, fix.lat, fix.lon) < 5:
        return fix
    return msgspec.structs.replace(fix, heading_deg=round(bearing_deg(shown.lat, shown.lon, fix.lat, fix.lon), 1))
