"""What the events of orders change in their read models: who takes part in which order, and the ledger's lines."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from domain.payments import Transaction
from domain.ports import Entry, Snapshot
from storage import tables as t
from storage.commit_plan import CommitPlan, Overtaken
from storage.statements import Ask, Preparer, Script, Step, numbered, wide

ORDER: Final = "order:"
RATED: Final = "order.rated"
OVER: Final = ("closed", "cancelled", "expired")
"""The states in which nothing happens any more."""


class _Quote(msgspec.Struct):
    worker_id: str


class _OrderState(msgspec.Struct):
    """As much of a stored order as lists need."""

    state: str = ""
    customer_id: str = ""
    worker_id: str | None = None
    quotes: tuple[_Quote, ...] = ()


class _Private(msgspec.Struct):
    ledger: tuple[Transaction, ...] = ()


class _Rating(msgspec.Struct):
    to: str
    stars: int


class _Event(msgspec.Struct):
    private: _Private | None = None
    ratings: tuple[_Rating, ...] = ()


_state_decoder = msgspec.json.Decoder(_OrderState)
_event_decoder = msgspec.json.Decoder(_Event)


class Party(NamedTuple):
    """Somebody's part in an order, in the order of the table's columns. Whoever has quoted is a `worker`."""

    order_id: str
    user_id: str
    role: str
    hired: bool
    state: str
    offset: int
    updated_at: int


class Line(NamedTuple):
    """A line of the ledger, in the order of the table's columns; minor units, one of debit and credit is 0."""

    order_id: str
    offset: int
    n: int
    account: str
    debit: int
    credit: int
    currency: str
    posting: str
    at: int


class OrderChanges(NamedTuple):
    """`stars`: (user id, stars) of every rating that has become known."""

    parties: list[Party]
    lines: list[Line]
    stars: list[tuple[str, int]]


def order_changes(entries: Iterable[Entry], snapshots: Iterable[Snapshot]) -> OrderChanges:
    """What these events change; the state is taken from the newest snapshot of an order that has events among them."""
    moved: dict[str, int] = {}
    lines: list[Line] = []
    stars: list[tuple[str, int]] = []
    for entry in entries:
        if entry.stream.startswith(ORDER):
            moved[entry.stream] = entry.at
            if b'"ledger"' in entry.body:
                lines.extend(_lines(entry))
            if entry.type == RATED:
                stars.extend((rating.to, rating.stars) for rating in _event_decoder.decode(entry.body).ratings)
    newest: dict[str, Snapshot] = {}
    for snapshot in snapshots if moved else ():
        if snapshot.stream in moved:
            newest[snapshot.stream] = snapshot
    parties = [party for snapshot in newest.values() for party in _parties(snapshot, moved[snapshot.stream])]
    return OrderChanges(sorted(parties), lines, sorted(stars))


def _lines(entry: Entry) -> list[Line]:
    event = _event_decoder.decode(entry.body)
    postings = [(tx, p) for tx in (event.private.ledger if event.private else ()) for p in tx.postings]
    order_id = entry.stream[len(ORDER) :]
    return [
        Line(order_id, entry.offset, n, p.account, max(p.amount, 0), max(-p.amount, 0), tx.currency, tx.kind, entry.at)
        for n, (tx, p) in enumerate(postings)
    ]


def _parties(snapshot: Snapshot, at: int) -> list[Party]:
    order, order_id = _state_decoder.decode(snapshot.body), snapshot.stream[len(ORDER) :]
    workers = {quote.worker_id for quote in order.quotes} | ({order.worker_id} if order.worker_id else set())
    parties = [Party(order_id, order.customer_id, "customer", False, order.state, snapshot.offset, at)]
    parties += [
        Party(order_id, worker, "worker", worker == order.worker_id, order.state, snapshot.offset, at)
        for worker in workers
    ]
    return parties


def follows(party: Party) -> bool:
    """Whether the order is on the person's mind: not over, and theirs, or still to be won."""
    return party.state not in OVER and (party.role == "customer" or party.hired or party.state == "open")


def too_many(plan: CommitPlan, open_orders: Mapping[str, int]) -> set[str]:
    """The streams of those turns that would give a customer more open orders than they may have, of so many now."""
    standing = dict(open_orders)
    over: set[str] = set()
    for opening, streams in plan.openings:
        found = standing.get(opening.customer_id, 0)
        if found >= opening.most:
            over.update(streams)
        else:
            standing[opening.customer_id] = found + 1
    return over


# --- SQL ---------------------------------------------------------------------------------------------------------


def _party_upsert(new: Any, old: Any) -> list[tuple[str, Any]]:
    newer = new.offset >= old.offset
    return [(name, sa.case((newer, new[name]), else_=old[name])) for name in ("hired", "state", "updated_at", "offset")]


def rows(sql: Preparer, changes: OrderChanges) -> list[Step]:
    """The rows of one flush; an older state never replaces a newer one, and ratings that have become known count."""
    rated = sql.prepare(_rate)
    return [
        (sql.upsert(t.order_party, _party_upsert), _last_of_each(changes.parties)),
        (sql.insert(t.ledger_posting), changes.lines),
        (rated, [rated.row({"rated": user_id, "stars": stars}) for user_id, stars in changes.stars]),
    ]


def check_openings(sql: Preparer, plan: CommitPlan) -> Script[None]:
    """Nothing where no order is opened; else count the customers' open orders while nobody else can open any.

    Raises:
        Overtaken: there would be too many; those turns' streams count as stale, and are decided anew.
    """
    customers = sorted({opening.customer_id for opening, _ in plan.openings})
    standing: dict[str, int] = {}
    for piece in wide(customers):
        # Whoever opens one locks the customer's row first. What is counted afterwards is what is committed, because
        # every statement reads anew (READ COMMITTED); SQLite's write transaction is a lock already.
        yield Ask(sql.prepare(_lock_customers, len(piece)), numbered(c=piece))
        rows = yield Ask(sql.prepare(_count_open, len(piece)), numbered(c=piece))
        standing.update((customer, count) for customer, count in rows)
    over = too_many(plan, standing)
    if over:
        raise Overtaken(set(), over)


def _lock_customers(width: int) -> Any:
    c = t.user.c
    return sa.select(c.id).where(c.id.in_(_customers(width))).order_by(c.id).with_for_update()


def _count_open(width: int) -> Any:
    p = t.order_party.c
    query = sa.select(p.user_id, sa.func.count()).where(p.user_id.in_(_customers(width))).group_by(p.user_id)
    return query.where(p.role == sa.literal_column("'customer'"), p.state == sa.literal_column("'open'"))


def _customers(width: int) -> list[Any]:
    return [sa.bindparam(f"c{n}") for n in range(width)]


def _rate(width: int) -> Any:
    c = t.user.c
    better = {
        c.rating_sum: c.rating_sum + sa.bindparam("stars"),
        c.rating_count: c.rating_count + sa.literal_column("1"),
    }
    return sa.update(t.user).where(c.id == sa.bindparam("rated")).values(better)


def _last_of_each(parties: Sequence[Party]) -> list[tuple[Any, ...]]:
    return list({party[:3]: tuple(party) for party in parties}.values())
