"""Which hostile cases are tried: all with `RENOVEASY_CHAOS=full` (`make chaos`), else a sample of them (`make test`)."""

import os
from collections.abc import Iterable
from itertools import product
from typing import Final, TypeVar

T = TypeVar("T")
FULL: Final = os.environ.get("RENOVEASY_CHAOS") == "full"


def everywhere(cases: Iterable[str], doors: Iterable[str]) -> list[tuple[str, str]]:
    """Each case at each door; of those a sample in which every case and every door occurs."""
    cases, doors = list(cases), list(doors)
    if FULL:
        return list(product(cases, doors))
    return [(case, doors[n % len(doors)]) for n, case in enumerate(cases)] + [
        (cases[n % len(cases)], door) for n, door in enumerate(doors) if n >= len(cases)
    ]


def some(cases: Iterable[T], most: int, seed: int) -> list[T]:
    """Of the cases so many as follow one another from a place that the seed says; with the full form all of them.

    With seeds 0, 1, 2 and so on, as the numbers of routes are, every case occurs.
    """
    all_of_them = list(cases)
    if FULL:
        return all_of_them
    return [all_of_them[(seed * most + n) % len(all_of_them)] for n in range(min(most, len(all_of_them)))]
