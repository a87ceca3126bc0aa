"""Partitions move as little as they must, and only for a reason."""

from actors.placement import HEARTBEAT_S, MISSED, SLOW_FOR_S, SLOW_S, Heartbeat, Placement, assign
from domain.ids import PARTITIONS


def beat(name: str, life: str = "1") -> Heartbeat:
    return Heartbeat(name, f"{name}-{life}", 100, 0, 0)


def owner_of(owners: dict[str, tuple[int, ...]]) -> dict[int, str]:
    return {partition: host for host, partitions in owners.items() for partition in partitions}


def test_every_partition_has_exactly_one_owner_and_hosts_share_fairly() -> None:
    owners = assign(["host-0", "host-1", "host-2"])
    assert sorted(p for owned in owners.values() for p in owned) == list(range(PARTITIONS))
    assert all(PARTITIONS / 3 * 0.8 < len(owned) < PARTITIONS / 3 * 1.2 for owned in owners.values())


def test_when_a_host_goes_only_its_partitions_move_and_they_come_back_with_it() -> None:
    before = owner_of(assign(["host-0", "host-1", "host-2"]))
    without = owner_of(assign(["host-0", "host-2"]))
    moved = {p for p in before if before[p] != without[p]}
    assert moved == {p for p, host in before.items() if host == "host-1"}
    assert owner_of(assign(["host-2", "host-1", "host-0"])) == before


def test_a_new_incarnation_takes_its_predecessors_place() -> None:
    placement = Placement(7, 1)
    placement.heard(beat("host-0"), 0.0)
    placement.heard(beat("host-1"), 0.0)
    before = placement.table
    assert placement.heard(beat("host-1", "2"), 0.1)
    assert placement.table.version > before.version
    assert placement.table.owners["host-1-2"] == before.owners["host-1-1"]
    assert "host-1-1" not in placement.table.owners


def test_a_host_that_stays_silent_is_dropped_after_three_heartbeats_and_not_before() -> None:
    placement = Placement(0, 1)
    placement.heard(beat("host-0"), 0.0)
    placement.heard(beat("host-1"), 0.0)
    limit_s = HEARTBEAT_S * MISSED
    placement.heard(beat("host-0"), limit_s)
    assert not placement.tick(limit_s)
    assert placement.tick(limit_s + 0.01)
    assert set(placement.table.owners) == {"host-0-1"}
    assert len(placement.table.owners["host-0-1"]) == PARTITIONS


def late(placement: Placement, gap_s: float, times: int, from_s: float = 0.0) -> tuple[int, float]:
    """Of two hosts one is late every time: how often partitions moved, and when it was heard last."""
    moved, now_s = 0, from_s
    for _ in range(times):
        version, ending_s = placement.table.version, now_s + gap_s
        while now_s < ending_s:
            now_s = min(now_s + HEARTBEAT_S / 2, ending_s)
            placement.heard(beat("host-0"), now_s)
            placement.tick(now_s)
        placement.heard(beat("host-1"), now_s)
        moved += placement.table.version - version
    return moved, now_s


def pair() -> Placement:
    placement = Placement(0, 2)
    placement.heard(beat("host-0"), 0.0)
    placement.heard(beat("host-1"), 0.0)
    return placement


def test_a_host_that_is_late_every_time_loses_its_partitions_once_and_not_every_time() -> None:
    moved, _ = late(pair(), 1.1, times=50)
    assert moved == 2  # away and back


def test_a_host_that_gets_slower_by_and_by_keeps_its_partitions() -> None:
    placement, now_s = pair(), 0.0
    for gap_s in (0.3, 0.45, 0.65, 0.9, 1.2, 1.6):
        moved, now_s = late(placement, gap_s, times=3, from_s=now_s)
        assert moved == 0


def test_whoever_comes_back_from_a_long_silence_is_not_waited_for_longer_the_next_time() -> None:
    moved, _ = late(pair(), SLOW_S + HEARTBEAT_S, times=5)
    assert moved == 10


def test_that_a_host_was_slow_is_forgotten_when_it_has_been_fast_for_a_minute() -> None:
    placement = pair()
    _, now_s = late(placement, 1.1, times=2)
    moved, now_s = late(placement, HEARTBEAT_S, times=int(SLOW_FOR_S / HEARTBEAT_S) + 2, from_s=now_s)
    assert moved == 0
    moved, _ = late(placement, 1.1, times=1, from_s=now_s)
    assert moved == 2


def test_however_slow_a_host_has_been_it_is_given_up_after_two_seconds() -> None:
    placement = pair()
    _, now_s = late(placement, 1.9, times=3)
    placement.heard(beat("host-0"), now_s + SLOW_S)
    assert not placement.tick(now_s + SLOW_S)
    placement.heard(beat("host-0"), now_s + SLOW_S + 0.01)
    assert placement.tick(now_s + SLOW_S + 0.01)


def test_a_new_life_of_a_host_is_not_blamed_for_how_slow_the_old_one_was() -> None:
    placement = pair()
    _, now_s = late(placement, 1.9, times=3)
    placement.heard(beat("host-1", "2"), now_s)
    placement.heard(beat("host-0"), now_s + 0.8)
    assert placement.tick(now_s + 0.8)


def test_the_last_host_keeps_its_partitions_however_long_it_is_silent() -> None:
    placement = Placement(0, 1)
    placement.heard(beat("host-0"), 0.0)
    before = placement.table
    assert not placement.tick(1_000.0)
    assert placement.table == before


def test_a_crash_moves_partitions_at_once_and_is_news_only_once() -> None:
    placement = Placement(0, 1)
    placement.heard(beat("host-0"), 0.0)
    placement.heard(beat("host-1"), 0.0)
    assert placement.died("host-0-1")
    assert not placement.died("host-0-1")
    assert set(placement.table.owners) == {"host-1-1"}


def test_a_new_placement_hears_everybody_who_owns_something_before_it_says_anything() -> None:
    placement = Placement(7, 3)
    owning = [Heartbeat(f"host-{n}", f"host-{n}-1", 100, 512, 3) for n in range(2)]
    assert not placement.heard(owning[0], 0.0)
    assert placement.table.version == 0
    assert not placement.tick(0.1)
    assert not placement.heard(owning[1], 0.2)
    placement.heard(owning[0], 0.6)
    assert placement.tick(HEARTBEAT_S * MISSED)
    assert placement.table.version > 7
    assert set(placement.table.owners) == {"host-0-1", "host-1-1"}


def test_repeated_heartbeats_change_nothing() -> None:
    placement = Placement(0, 1)
    placement.heard(beat("host-0"), 0.0)
    version = placement.table.version
    assert not placement.heard(beat("host-0"), 0.25)
    assert placement.table.version == version
