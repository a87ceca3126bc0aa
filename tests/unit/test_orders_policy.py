"""A policy made from an operator's overrides: what is left out stays, what cannot be is named."""

import pytest

from domain.policy import DEFAULT_POLICY, CategoryPolicy, Policy, PolicyError, policy_from
from domain.times import DAY_MS


def test_what_is_not_overridden_stays_as_it_was() -> None:
    assert policy_from({}) == DEFAULT_POLICY
    assert policy_from({"quote_window_ms": 3000}) == Policy(quote_window_ms=3000)
    base = Policy(commission_bp=700)
    assert policy_from({"quote_window_ms": 3000}, base) == Policy(quote_window_ms=3000, commission_bp=700)


def test_values_come_as_json_gives_them() -> None:
    made = policy_from(
        {
            "deposit_nudge_ms": [1000, 2000],
            "rails": ["sandbox", "bank"],
            "check_radius": False,
            "site_cell_m": 500,
            "categories": {"plumbing": {"photos_per_milestone": 2}},
        }
    )
    assert (made.deposit_nudge_ms, made.rails, made.check_radius) == ((1000, 2000), ("sandbox", "bank"), False)
    assert (made.site_cell_m, made.categories) == (500.0, {"plumbing": CategoryPolicy(2)})


@pytest.mark.parametrize(
    ("overrides", "field", "said"),
    [
        ({"quote_windows_ms": 1}, "quote_windows_ms", "does not exist"),
        ({"quote_window_ms": "3 days"}, "quote_window_ms", "'3 days': Expected `int`"),
        ({"quote_window_ms": 1.5}, "quote_window_ms", "1.5"),
        ({"quote_window_ms": None}, "quote_window_ms", "None"),
        ({"quote_window_ms": -1}, "quote_window_ms", f"-1: use a number from 0 to {3650 * DAY_MS}"),
        ({"quote_window_ms": 3651 * DAY_MS}, "quote_window_ms", "use a number from 0"),
        ({"deposit_nudge_ms": 1000}, "deposit_nudge_ms", "Expected `array`"),
        ({"deposit_nudge_ms": [1000, -1]}, "deposit_nudge_ms", "-1"),
        ({"deposit_nudge_ms": [1000, "x"]}, "deposit_nudge_ms[1]", "Expected `int`"),
        ({"commission_bp": 10_001}, "commission_bp", "from 0 to 10000"),
        ({"slot_unit_ms": 0}, "slot_unit_ms", "from 1"),
        ({"site_cell_m": float("nan")}, "site_cell_m", "nan"),
        ({"categories": {"plumbing": {"slot_notice_ms": -5}}}, "categories.plumbing.slot_notice_ms", "-5"),
        ({"rails": "sandbox"}, "rails", "Expected `array`"),
    ],
)
def test_what_cannot_be_is_named_with_its_value_and_what_is_allowed(
    overrides: dict[str, object], field: str, said: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_from(overrides)
    assert str(caught.value).startswith(f"policy.{field} ")
    assert said in str(caught.value)


def test_an_unknown_field_is_answered_with_those_there_are() -> None:
    with pytest.raises(PolicyError, match="quote_window_ms"):
        policy_from({"window": 1})
