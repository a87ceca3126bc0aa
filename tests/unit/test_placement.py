"""Partitions move as little as they must, and only for a reason."""

from actors.placement import HEARTBEAT_S, MISSED, Heartbeat, Placement, assign
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
