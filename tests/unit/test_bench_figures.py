"""The bench's arithmetic: what is told of many samples, rounds and processes, and when it must not be believed."""

import math
import random
import statistics

import pytest

from benchmarks.figures import (
    BUSY_LIMIT,
    Schedule,
    Spread,
    Usage,
    highest_sustained,
    latency,
    per_thousand,
    percentile,
    spread,
)


class TestPercentile:
    def test_is_the_smallest_value_that_the_share_does_not_exceed(self):
        ordered = [15.0, 20.0, 35.0, 40.0, 50.0]
        assert [percentile(ordered, share) for share in (0.05, 0.3, 0.4, 0.5, 1.0)] == [15.0, 20.0, 20.0, 35.0, 50.0]

    def test_of_a_hundred_is_the_rank_itself_for_every_whole_percent(self):
        ordered = [float(rank) for rank in range(1, 101)]
        assert [percentile(ordered, percent / 100) for percent in range(1, 101)] == ordered

    def test_of_one_value_is_that_value(self):
        assert percentile([7.0], 0.5) == percentile([7.0], 0.999) == 7.0

    @pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
    def test_needs_values_and_a_share(self, values, share):
        with pytest.raises(ValueError, match="no percentile"):
            percentile(values, share)

    def test_agrees_with_its_definition_on_random_values(self):
        dice = random.Random(7)
        for _ in range(200):
            values = sorted(dice.random() for _ in range(dice.randint(1, 300)))
            share = dice.choice((0.5, 0.95, 0.99, 0.999))
            found = percentile(values, share)
            covered = sum(value <= found for value in values) / len(values)
            below = sum(value < found for value in values) / len(values)
            assert below < share <= covered


class TestLatency:
    def test_is_in_milliseconds_whatever_the_order(self):
        told = latency([0.004, 0.001, 0.003, 0.002])
        assert told is not None
        assert (told.count, told.p50_ms, told.p99_ms, told.max_ms) == (4, 2.0, 4.0, 4.0)

    def test_of_nothing_is_nothing(self):
        assert latency([]) is None


class TestOpenLoop:
    def test_one_item_is_due_at_once_and_the_last_before_the_end(self):
        schedule = Schedule(100, 2.0)
        assert (schedule.total, schedule.due(0.0), schedule.due(1.985), schedule.due(1.99)) == (200, 1, 199, 200)
        assert schedule.at_s(199) == 1.99

    @pytest.mark.parametrize("rate", [1, 3, 7, 100, 333, 1_000, 3_000, 10_000])
    def test_an_item_is_due_at_its_moment_and_not_before(self, rate):
        schedule = Schedule(rate, 6.0)
        for number in range(1, schedule.total):
            at_s = schedule.at_s(number)
            assert schedule.due(at_s) >= number + 1
            assert schedule.due(at_s - 0.01 / rate) <= number

    def test_nothing_is_due_before_the_start_and_all_of_it_ever_after(self):
        schedule = Schedule(50, 1.0)
        assert (schedule.due(-0.001), schedule.due(1e6)) == (0, 50)

    def test_a_stalled_server_is_charged_for_what_waited(self):
        """What coordinated omission hides: a second's stall at 100 a second is 100 late items, not one."""
        schedule = Schedule(100, 10.0)
        stalled = [max(0.0, 6.0 - schedule.at_s(n)) if 5.0 <= schedule.at_s(n) < 6.0 else 0.001 for n in range(1_000)]
        told = latency(stalled)
        assert told is not None
        assert told.p99_ms > 800
        assert told.p50_ms == 1.0


class TestUsage:
    def usage(self, **changed):
        values = {"wall_s": 10.0, "generator_cpu_s": 2.0, "machine_cpu_s": 7.0, "stolen_cpu_s": 0.0}
        return Usage(**(values | changed), servers={"host": 3.0, "gateway": 2.0})

    def test_what_others_used_is_what_remains_of_the_machine(self):
        assert self.usage(machine_cpu_s=9.0).others == pytest.approx(0.2)
        assert self.usage().faults() == []

    def test_a_busy_generator_makes_a_run_void(self):
        assert self.usage(generator_cpu_s=10 * BUSY_LIMIT).void is False
        busy = self.usage(generator_cpu_s=7.1, machine_cpu_s=12.1)
        assert busy.void is True
        assert busy.faults() == ["void: the generator was 71% busy"]

    def test_programs_of_others_and_the_hypervisor_make_it_noisy(self):
        noisy = self.usage(machine_cpu_s=9.0, stolen_cpu_s=2.0)
        assert noisy.void is False
        assert [fault[:6] for fault in noisy.faults()] == ["noisy:", "noisy:"]

    def test_of_unknown_servers_nothing_is_said(self):
        unknown = Usage(1.0, 0.1, 1.9, 0.0, None)
        assert (unknown.servers_cpu_s, unknown.others, unknown.faults()) == (None, None, [])
        assert per_thousand(unknown.servers_cpu_s, 500) is None

    def test_cpu_is_told_per_thousand(self):
        assert per_thousand(5.0, 20_000) == 0.25
        assert per_thousand(5.0, 0) is None


class TestRounds:
    def test_median_least_and_greatest(self):
        assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
        assert spread([4.0, None, 2.0]) == Spread(2.0, 2.0, 4.0, 2)
        assert spread([None]) is None

    def test_the_median_of_odd_many_is_the_middle_one(self):
        dice = random.Random(3)
        values = [dice.random() for _ in range(99)]
        found = spread(values)
        assert found is not None
        assert found.median == statistics.median(values)
        assert not math.isnan(found.min)

    def test_the_highest_rate_that_held(self):
        assert highest_sustained([(100, True), (500, True), (1_000, False)]) == 500
        assert highest_sustained([(100, False), (500, True), (1_000, False)]) == 500
        assert highest_sustained([(100, False)]) == 0
        assert highest_sustained([]) == 0
