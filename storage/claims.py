"""Claims: keys such as a worker's quarter of an hour, of which each has one holder at most."""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from domain.ports import StoreUnavailable
from storage import tables as t
from storage.commit_plan import CommitPlan, Overtaken
from storage.engine import Contended, Database
from storage.statements import Ask, Preparer, Script, numbered, play, wide

_ATTEMPTS: Final = 8
Held = dict[str, tuple[str, int | None]]


async def reserve(database: Database, holder: str, keys: Sequence[str], now_ms: int, until_ms: int) -> str | None:
    """Reserve all keys for the holder, or none: then the first key that somebody else holds."""
    clash: Exception | None = None
    for _ in range(_ATTEMPTS):
        try:
            async with database.write() as connection:
                held = await play(connection, _held(database.sql, keys))
                for key in keys:
                    if not free(held.get(key), (holder,), now_ms):
                        return key
                wanted = [(key, holder, until_ms) for key in sorted(set(keys)) if held.get(key) != (holder, None)]
                await play(connection, _write(database.sql, wanted, held))
            return None
        except (IntegrityError, Contended) as error:
            clash = error
    raise StoreUnavailable(f"claims of {holder} are contended") from clash


def keep_and_release(sql: Preparer, plan: CommitPlan) -> Script[None]:
    """Keep the plan's claims for good and delete what it releases.

    Raises:
        Overtaken: a reservation ran out and somebody else has the key; the turn's streams count as stale.
    """
    keys = [key for key, _, _ in plan.claims] + [key for key, _, _ in plan.releases]
    if not keys:
        return
    held = yield from _held(sql, keys)
    lost = [streams for key, streams, at in plan.claims if not free(held.get(key), streams, at)]
    if lost:
        raise Overtaken(set(), {stream for streams in lost for stream in streams})
    kept = {key: (key, holder(held.get(key), streams), None) for key, streams, _ in plan.claims}
    yield from _write(sql, list(kept.values()), held)
    gone = [key for key, streams, _ in plan.releases if key not in kept and key in held and held[key][0] in streams]
    yield sql.prepare(_release), [(key,) for key in sorted(set(gone))]


def free(held: tuple[str, int | None] | None, holders: tuple[str, ...], now_ms: int) -> bool:
    """Whether one of these holders may have the key now."""
    return held is None or held[0] in holders or (held[1] is not None and held[1] <= now_ms)


def holder(held: tuple[str, int | None] | None, streams: tuple[str, ...]) -> str:
    """Who of a turn's streams keeps the key: the one that reserved it, else the one that the turn is about."""
    return held[0] if held is not None and held[0] in streams else streams[0]


def _held(sql: Preparer, keys: Sequence[str]) -> Script[Held]:
    # In key order, and locked (SQLite's write transaction is a lock already): nobody reserves them in between.
    held: Held = {}
    for piece in wide(sorted(set(keys))):
        rows = yield Ask(sql.prepare(_locked, len(piece)), numbered(k=piece))
        held.update((key, (holder, until)) for key, holder, until in rows)
    return held


def _write(sql: Preparer, rows: Sequence[tuple[Any, ...]], held: Held) -> Script[None]:
    # A key that nobody held may have been inserted meanwhile, and only a plain insert notices.
    yield sql.insert(t.claim), [row for row in rows if row[0] not in held]
    yield sql.upsert(t.claim, _take_over), [row for row in rows if row[0] in held]


def _locked(width: int) -> Any:
    c = t.claim.c
    query = sa.select(c.key, c.holder, c.reserved_until).where(c.key.in_([sa.bindparam(f"k{n}") for n in range(width)]))
    return query.order_by(c.key).with_for_update()


def _release(width: int) -> Any:
    return sa.delete(t.claim).where(t.claim.c.key == sa.bindparam("key"))


def _take_over(new: Any, old: Any) -> list[tuple[str, Any]]:
    return [("holder", new.holder), ("reserved_until", new.reserved_until)]
