"""Counts how often a part asks its database. Wired in by `PART_WIRING`, see `part.py`."""

from sqlalchemy import event
from sqlalchemy.pool import Pool

from tests.support.part import Numbers

VISITS = "database_visits"


def count(_role: str) -> None:
    """Every statement, however it is said, is said on a connection that was taken out of a pool for it."""

    def taken(*_: object) -> None:
        Numbers.values[VISITS] = Numbers.values.get(VISITS, 0.0) + 1

    event.listen(Pool, "checkout", taken)
