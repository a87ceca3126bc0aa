"""The ledger of an order balances, whatever the amounts are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import payments as ledger
from domain.payments import Books, OutOfBalance, post, share, split, transaction

AMOUNTS = st.integers(1, 10**13)
RATES = st.integers(0, 10_000)


@given(AMOUNTS, RATES, RATES)
def test_a_split_loses_nothing(gross: int, commission_bp: int, vat_bp: int) -> None:
    parts = split(gross, commission_bp, vat_bp)
    assert parts.net + parts.commission + parts.vat == gross
    assert min(parts.net, parts.commission, parts.vat) >= 0


def test_commission_and_its_tax_are_rounded_half_up() -> None:
    assert split(50_000, 1_000, 600) == ledger.Split(44_700, 5_000, 300)
    assert share(5, 1_000) == 1
    assert share(4, 1_000) == 0


def test_a_transaction_that_does_not_balance_cannot_be_made() -> None:
    with pytest.raises(OutOfBalance):
        transaction("L1", 1, "CNY", ("a", 1), ("b", -2))


def test_escrow_cannot_be_overdrawn() -> None:
    books = post(Books(), [ledger.deposit("o", 1, "sandbox", 100, "CNY")])
    with pytest.raises(OutOfBalance):
        post(books, [ledger.refund("o", 1, "c", 101, "CNY")])


def test_the_postings_of_the_design() -> None:
    books = post(
        Books(),
        [
            ledger.deposit("o", 1, "sandbox", 50_000, "CNY"),
            ledger.refund("o", 1, "c", 10_000, "CNY"),
            ledger.refund_paid(1, "c", "sandbox", 10_000, "CNY"),
            ledger.release("o", 1, "w", 40_000, "CNY", 1_000, 600),
            ledger.refund_after_release(1, "w", "c", 1_000, "CNY", 1_000, 600),
            *ledger.payout("w", "sandbox", 30_000, "CNY"),
        ],
    )
    assert books.balances == {
        "psp:sandbox:cash": 10_000,
        "psp:sandbox:in_transit": 0,
        "escrow:o:1": 0,
        "customer:c:refund_due": -1_000,
        "worker:w:payable": -(35_760 - 894 - 30_000),
        "rev:commission": -3_900,
        "tax:commission_vat": -234,
    }
    assert (books.held, books.released, books.refunded, books.returned) == (
        {1: 50_000}, {1: 40_000}, {1: 10_000}, {1: 1_000},
    )  # fmt: skip


@given(st.lists(st.tuples(AMOUNTS, st.floats(0, 1), RATES), min_size=1, max_size=8))
def test_what_was_held_is_released_refunded_or_still_there(moves: list[tuple[int, float, int]]) -> None:
    books = Books()
    for n, (gross, part, rate) in enumerate(moves, 1):
        back = min(gross, int(gross * part))
        entries = [ledger.deposit("o", n, "sandbox", gross, "CNY"), ledger.refund("o", n, "c", back, "CNY")]
        if n % 2:
            entries.append(ledger.release("o", n, "w", gross - back, "CNY", rate, rate))
        books = post(books, entries)
        left = books.escrow("o", n)
        assert books.held[n] == books.released.get(n, 0) + books.refunded.get(n, 0) + left
        assert left >= 0
    assert sum(books.balances.values()) == 0
