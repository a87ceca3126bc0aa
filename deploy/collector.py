"""Python's garbage collector, set for processes that keep many objects for long and make many that die at once."""

import gc
from typing import Final

YOUNG: Final = 20_000
"""Objects made before the youngest are looked through; nearly all are gone by reference count long before."""
MIDDLE: Final = 5
"""What has survived that often is looked through together: 100,000 objects, some 70 ms at most."""
OLD: Final = 400


def calm() -> None:
    """Look for cycles seldom, and never among what is there already.

    At the defaults a busy host spends a fifth of its time looking through live activations (docs/benchmarks.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
