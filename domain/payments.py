"""The ledger of an order: double entry in integer minor units, one currency per transaction, every transaction sums to 0.

Debits are positive, credits negative. Accounts: `psp:{rail}:cash` and `psp:{rail}:in_transit` (assets),
`escrow:{order}:{milestone}`, `worker:{id}:payable`, `customer:{id}:refund_due` (liabilities), `rev:commission` and
`tax:commission_vat`. What a payment stands at is always derived from here, never stored beside it.
"""

from collections.abc import Iterable

import msgspec


class Posting(msgspec.Struct, frozen=True):
    """One line of a transaction: debit positive, credit negative."""

    account: str
    amount: int


class Transaction(msgspec.Struct, frozen=True):
    """A balanced set of postings. `kind` is L1 … L6, `milestone` the one whose money moves."""

    kind: str
    milestone: int
    currency: str
    postings: tuple[Posting, ...]


class Books(msgspec.Struct, frozen=True):
    """Balances of one order's accounts, and per milestone how much was ever held, released and refunded."""

    balances: dict[str, int] = {}
    held: dict[int, int] = {}
    released: dict[int, int] = {}
    refunded: dict[int, int] = {}
    returned: dict[int, int] = {}
    """Given back after it had been released (L6)."""

    def balance(self, account: str) -> int:
        """Debits minus credits."""
        return self.balances.get(account, 0)

    def escrow(self, order_id: str, milestone: int) -> int:
        """What is held for a milestone now; never negative."""
        return -self.balance(escrow_account(order_id, milestone))


class Split(msgspec.Struct, frozen=True):
    """How a released gross amount is shared: `net + commission + vat` is the gross, exactly."""

    net: int
    commission: int
    vat: int


class OutOfBalance(Exception):
    """A transaction does not sum to zero, or would overdraw an escrow account: a bug, never a user's mistake."""


def escrow_account(order_id: str, milestone: int) -> str:
    return f"escrow:{order_id}:{milestone}"


def payable_account(worker_id: str) -> str:
    return f"worker:{worker_id}:payable"


def refund_account(customer_id: str) -> str:
    return f"customer:{customer_id}:refund_due"


def cash_account(rail: str) -> str:
    return f"psp:{rail}:cash"


def transit_account(rail: str) -> str:
    return f"psp:{rail}:in_transit"


def share(amount: int, basis_points: int) -> int:
    """That many basis points of an amount, rounded half up to a minor unit."""
    return (amount * basis_points + 5_000) // 10_000


def split(gross: int, commission_bp: int, vat_bp: int) -> Split:
    """Commission on the gross, VAT on the commission, the rest to the worker; nothing is lost to rounding."""
    commission = share(gross, commission_bp)
    vat = min(share(commission, vat_bp), gross - commission)
    return Split(gross - commission - vat, commission, vat)


def transaction(kind: str, milestone: int, currency: str, *postings: tuple[str, int]) -> Transaction:
    """A transaction of the postings that are not zero.

    Raises:
        OutOfBalance: they do not sum to zero.
    """
    if sum(amount for _, amount in postings) != 0:
        raise OutOfBalance(f"{kind} of milestone {milestone}: {postings}")
    return Transaction(kind, milestone, currency, tuple(Posting(a, x) for a, x in postings if x != 0))


def deposit(order_id: str, milestone: int, rail: str, gross: int, currency: str) -> Transaction:
    """L1: a milestone's money has come in and is held."""
    return transaction(
        "L1", milestone, currency, (cash_account(rail), gross), (escrow_account(order_id, milestone), -gross)
    )


def release(
    order_id: str, milestone: int, worker_id: str, gross: int, currency: str, commission_bp: int, vat_bp: int
) -> Transaction:
    """L3: held money becomes the worker's, less commission and the VAT on it."""
    parts = split(gross, commission_bp, vat_bp)
    return transaction(
        "L3",
        milestone,
        currency,
        (escrow_account(order_id, milestone), gross),
        (payable_account(worker_id), -parts.net),
        ("rev:commission", -parts.commission),
        ("tax:commission_vat", -parts.vat),
    )


def payout(worker_id: str, rail: str, amount: int, currency: str) -> list[Transaction]:
    """L4: a payout was submitted, and paid."""
    return [
        transaction("L4", 0, currency, (payable_account(worker_id), amount), (transit_account(rail), -amount)),
        transaction("L4", 0, currency, (transit_account(rail), amount), (cash_account(rail), -amount)),
    ]


def refund(order_id: str, milestone: int, customer_id: str, amount: int, currency: str) -> Transaction:
    """L5, first half: held money is owed to the customer again."""
    return transaction(
        "L5", milestone, currency, (escrow_account(order_id, milestone), amount), (refund_account(customer_id), -amount)
    )


def refund_paid(milestone: int, customer_id: str, rail: str, amount: int, currency: str) -> Transaction:
    """L5, second half: the provider has paid the refund."""
    return transaction("L5", milestone, currency, (refund_account(customer_id), amount), (cash_account(rail), -amount))


def refund_after_release(
    milestone: int, worker_id: str, customer_id: str, amount: int, currency: str, commission_bp: int, vat_bp: int
) -> Transaction:
    """L6: released money goes back: the worker's share from what is payable to them, commission and VAT from ours."""
    parts = split(amount, commission_bp, vat_bp)
    return transaction(
        "L6",
        milestone,
        currency,
        (payable_account(worker_id), parts.net),
        ("rev:commission", parts.commission),
        ("tax:commission_vat", parts.vat),
        (refund_account(customer_id), -amount),
    )


def post(books: Books, transactions: Iterable[Transaction]) -> Books:
    """The books after the transactions.

    Raises:
        OutOfBalance: one does not sum to zero, or an escrow account would go below zero.
    """
    balances = dict(books.balances)
    moved = {"L1": dict(books.held), "L3": dict(books.released), "L5": dict(books.refunded)}
    returned = dict(books.returned)
    for item in transactions:
        if sum(p.amount for p in item.postings) != 0:
            raise OutOfBalance(f"{item.kind} of milestone {item.milestone}")
        if item.kind == "L6":
            given = -sum(p.amount for p in item.postings if p.account.startswith("customer:"))
            returned[item.milestone] = returned.get(item.milestone, 0) + given
        for posting in item.postings:
            balances[posting.account] = balances.get(posting.account, 0) + posting.amount
            if posting.account.startswith("escrow:"):
                if balances[posting.account] > 0:
                    raise OutOfBalance(f"{posting.account} is overdrawn by {item.kind}")
                if item.kind in moved:
                    by_milestone = moved[item.kind]
                    by_milestone[item.milestone] = by_milestone.get(item.milestone, 0) + abs(posting.amount)
    return Books(balances, moved["L1"], moved["L3"], moved["L5"], returned)
