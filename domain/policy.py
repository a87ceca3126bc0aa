"""The numbers of the marketplace, in one frozen object: rules read them from here and hold no literals of their own."""

from typing import Final

import msgspec

from domain.times import DAY_MS, HOUR_MS, MINUTE_MS


class CategoryPolicy(msgspec.Struct, frozen=True):
    """What one category of work asks for beyond the general rules. Zero photos and no verification are the default."""

    photos_per_milestone: int = 0
    slot_notice_ms: int | None = None
    """Overrides `Policy.slot_notice_ms`; 0 for urgent work."""


class Policy(msgspec.Struct, frozen=True):
    """Limits and rates of orders. Times in milliseconds, rates in basis points (1/10,000), places in metres."""

    description_min: int = 20
    open_orders_max: int = 10
    quotes_active_max: int = 8
    quotes_total_max: int = 48
    """All quotes an order ever had, withdrawn and rejected ones too: bounds the size of its state."""
    quote_revisions_max: int = 50
    milestones_max: int = 10
    first_milestone_max_bp: int = 3_000
    check_radius: bool = True
    """A worker may quote only where their own radius reaches."""

    deposit_attempts_max: int = 5
    payments_max: int = 60
    payment_patience_ms: int = 15 * MINUTE_MS
    """After this long without a word from the rail another attempt may begin; should both succeed, one goes back."""
    rails: tuple[str, ...] = ("sandbox",)
    instant_refund_rails: tuple[str, ...] = ("sandbox",)
    """Rails that confirm a refund in the same breath; all others confirm with `refund_paid`."""
    rail_hold_ms: int = 180 * DAY_MS
    escrow_margin_ms: int = 7 * DAY_MS
    commission_bp: int = 1_000
    commission_vat_bp: int = 600
    cancellation_policy: str = "standard-1"
    call_out_bp: int = 1_000
    """Call-out fee of a late cancellation by the customer, of what is in escrow."""
    travel_bp: int = 500
    late_cancel_ms: int = 24 * HOUR_MS

    visits_max: int = 50
    slot_notice_ms: int = 2 * HOUR_MS
    slot_clock_slack_ms: int = MINUTE_MS
    slot_answer_grace_ms: int = 15 * MINUTE_MS
    """How much of the notice may be used up between the proposal and its confirmation."""
    slot_max_ms: int = 24 * HOUR_MS
    slot_horizon_ms: int = 365 * DAY_MS
    slot_unit_ms: int = 15 * MINUTE_MS
    reschedules_max: int = 3
    trip_early_ms: int = 4 * HOUR_MS
    fix_age_max_ms: int = 30_000
    fix_accuracy_max_m: float = 100.0
    arrived_within_m: float = 150.0
    check_in_within_m: float = 200.0
    code_tries_max: int = 5

    change_rounds_max: int = 3
    reworks_max: int = 2
    changes_max: int = 30
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
