"""The numbers of the marketplace, in one frozen object: rules read them from here and hold no literals of their own."""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from domain.times import DAY_MS, HOUR_MS, MINUTE_MS


class CategoryPolicy(msgspec.Struct, frozen=True):
    """What one category of work asks for beyond the general rules. Zero photos and no verification are the default."""

    photos_per_milestone: int = 0
    verified: bool = False
    """Whether only workers quote and are hired whose identity operations have seen."""
    licence: bool = False
    """The same with a licence for the category, which is still good when a visit begins."""
    slot_notice_ms: int | None = None
    """Overrides `Policy.slot_notice_ms`; 0 for urgent work."""


Moments = tuple[int, ...]
"""Several times from one beginning, or before one end: something is said at each of them."""


class Policy(msgspec.Struct, frozen=True):
    """Limits and rates of orders. Times in milliseconds, rates in basis points (1/10,000), places in metres.

    Times after which an order does something by itself are frozen into the event that starts them: a changed policy
    counts for what begins later.
    """

    draft_ttl_ms: int = 30 * DAY_MS
    quote_window_ms: int = 72 * HOUR_MS
    quote_extension_ms: int = 24 * HOUR_MS
    """How much longer quotes are taken when an award came to nothing."""
    no_quote_nudge_ms: Moments = (24 * HOUR_MS,)
    description_min: int = 20
    open_orders_max: int = 10
    """For new orders. One that is open again, because its hire fell through, stays whatever has been opened since."""
    quotes_active_max: int = 8
    quotes_total_max: int = 48
    """All quotes an order ever had, withdrawn and rejected ones too: bounds the size of its state."""
    quote_revisions_max: int = 50
    milestones_max: int = 10
    first_milestone_max_bp: int = 3_000
    check_radius: bool = True
    """A worker may quote only where their own radius reaches."""

    deposit_nudge_ms: Moments = (HOUR_MS, 12 * HOUR_MS)
    deposit_due_ms: int = 24 * HOUR_MS
    deposit_grace_ms: int = HOUR_MS
    """How long a payment that is still being processed when the deposit is due is waited for; once for each payment."""
    deposit_graces_max: int = 3
    deposit_attempts_max: int = 5
    payments_max: int = 60
    payment_patience_ms: int = 15 * MINUTE_MS
    """After this long without a word from the rail another attempt may begin; should both succeed, one goes back."""
    rails: tuple[str, ...] = ("sandbox",)
    instant_refund_rails: tuple[str, ...] = ("sandbox",)
    """Rails that confirm a refund in the same breath; all others confirm with `refund_paid`."""
    rail_hold_ms: int = 180 * DAY_MS
    escrow_margin_ms: int = 7 * DAY_MS
    escrow_nudge_ms: Moments = (7 * DAY_MS,)
    """Before the rail's deadline, as the next one."""
    escrow_default_ms: int = DAY_MS
    commission_bp: int = 1_000
    commission_vat_bp: int = 600
    cancellation_policy: str = "standard-1"
    call_out_bp: int = 1_000
    """Call-out fee of a late cancellation by the customer, of what is in escrow."""
    travel_bp: int = 500
    late_cancel_ms: int = 24 * HOUR_MS

    slot_nudge_ms: Moments = (24 * HOUR_MS, 48 * HOUR_MS)
    slot_due_ms: int = 72 * HOUR_MS
    """Operations hear of a paid order without a visit."""
    slot_timeout_ms: int = 7 * DAY_MS
    visits_max: int = 50
    slot_notice_ms: int = 2 * HOUR_MS
    slot_clock_slack_ms: int = MINUTE_MS
    slot_answer_grace_ms: int = 15 * MINUTE_MS
    """How much of the notice may be used up between the proposal and its confirmation."""
    slot_max_ms: int = 24 * HOUR_MS
    slot_horizon_ms: int = 365 * DAY_MS
    slot_unit_ms: int = 15 * MINUTE_MS
    reschedules_max: int = 3
    visit_reminder_ms: Moments = (24 * HOUR_MS, 2 * HOUR_MS)
    """Before the start of the slot."""
    no_show_ms: int = 45 * MINUTE_MS
    """After the end of the slot."""
    check_out_ms: int = 12 * HOUR_MS
    next_visit_due_ms: int = 72 * HOUR_MS
    trip_early_ms: int = 4 * HOUR_MS
    fix_age_max_ms: int = 30_000
    fix_accuracy_max_m: float = 100.0
    arrived_within_m: float = 150.0
    check_in_within_m: float = 200.0
    code_tries_max: int = 5

    review_nudge_ms: Moments = (24 * HOUR_MS, 72 * HOUR_MS, 6 * DAY_MS)
    review_ms: int = 7 * DAY_MS
    final_nudge_ms: Moments = (24 * HOUR_MS, 72 * HOUR_MS, 6 * DAY_MS)
    final_auto_approve_ms: int = 7 * DAY_MS
    unheard_extension_ms: int = 48 * HOUR_MS
    """How much longer silence is not yet consent where nobody was reminded in time, or nobody could have answered."""
    change_rounds_max: int = 3
    reworks_max: int = 2
    changes_max: int = 30
    respond_nudge_ms: Moments = (24 * HOUR_MS, 72 * HOUR_MS)
    respond_ms: int = 5 * DAY_MS
    """Whole days are business days."""
    mediation_ms: int = 30 * DAY_MS
    payout_ms: int = DAY_MS
    """Whole days are business days."""
    instant_payout_rails: tuple[str, ...] = ("sandbox",)
    """Rails that confirm a payout in the same breath; all others confirm with `payouts_confirmed`."""
    disputes_max: int = 30
    dispute_after_release_ms: int = 14 * DAY_MS
    rating_window_ms: int = 14 * DAY_MS
    site_cell_m: float = 1_000.0

    default_category: CategoryPolicy = CategoryPolicy()
    categories: dict[str, CategoryPolicy] = {}

    def category(self, name: str) -> CategoryPolicy:
        return self.categories.get(name, self.default_category)

    def notice_ms(self, category: str) -> int:
        own = self.category(category).slot_notice_ms
        return self.slot_notice_ms if own is None else own


DEFAULT_POLICY: Final = Policy()


AGE_MAX_MS: Final = 3_650 * DAY_MS
"""Ten years: no time of a policy is longer."""
_FIELDS: Final = frozenset(Policy.__struct_fields__)
_POSITIVE: Final = frozenset({"slot_unit_ms", "site_cell_m"})
_MOST: Final = {"_ms": AGE_MAX_MS, "_bp": 10_000}
_PATH: Final = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?$")


class PolicyError(ValueError):
    """A policy that cannot be: says which field, what it was given, and what is allowed."""


def policy_from(overrides: Mapping[str, Any], base: Policy = DEFAULT_POLICY) -> Policy:
    """The policy with some of its fields replaced; values are as JSON or TOML would give them.

    Raises:
        PolicyError: a field that does not exist, or a value that it cannot have.
    """
    for name in overrides:
        if name not in _FIELDS:
            raise PolicyError(f"policy.{name} does not exist; there are: {', '.join(sorted(_FIELDS))}")
    try:
        policy = msgspec.convert({**msgspec.to_builtins(base), **overrides}, Policy)
    except msgspec.ValidationError as error:
        found = _PATH.match(str(error))
        assert found is not None
        name = found["path"] or ""
        value = overrides.get(re.split(r"[.\[]", name)[0])
        raise PolicyError(f"policy.{name} cannot be {value!r}: {found['what']}") from None
    for name in overrides:
        _check(name, msgspec.to_builtins(getattr(policy, name)))
    return policy


def _check(name: str, value: Any) -> None:
    """PolicyError for a number out of its range; `name` is the path of the field."""
    if isinstance(value, tuple | list):
        for item in value:
            _check(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(f"{name}.{key}", item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        least = 1 if name in _POSITIVE else 0
        most = next((most for suffix, most in _MOST.items() if name.endswith(suffix)), AGE_MAX_MS)
        if not least <= value <= most:
            raise PolicyError(f"policy.{name} cannot be {value!r}: use a number from {least} to {most}")
