"""What thousands of sessions with live conversations take, as the bench tells it."""

from benchmarks.report import holding
from benchmarks.scenarios.chat import Held
from benchmarks.summary import Round, held_summary


def held(kib: float, gateways: int = 1) -> Held:
    return Held(
        sessions=5_000,
        conversations=2_500,
        gateways=gateways,
        gateway_kib_per_session=kib,
        all_kib_per_session=kib + 8,
        all_mib=900.0,
    )


def test_what_a_session_takes_is_told_on_one_line() -> None:
    text = "2,500 live conversations: 18.3 KiB a session in the gateways, 26.3 in all processes"
    assert holding(held(18.26)) == f"5,000 sessions on 1 gateway, {text}"
    assert holding(held(18.26, gateways=2)) == f"5,000 sessions on 2 gateways, {text}"


def test_the_median_of_the_rounds_that_measured_it_is_kept() -> None:
    rounds = [Round(1, held=held(10)), Round(2, held=held(30)), Round(3, held=held(20)), Round(4)]
    found = held_summary(rounds)["gateway_kib_per_session"]
    assert found is not None
    assert (found.median, found.min, found.max, found.rounds) == (20, 10, 30, 3)
    assert held_summary([Round(1)])["sessions"] is None
