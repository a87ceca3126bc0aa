"""The interpreter, set for processes that keep many objects for long, make many that die at once, and are always busy."""

import gc
import sys
from typing import Final

YOUNG: Final = 20_000
"""Objects made before the youngest are looked through; nearly all are gone by reference count long before."""
MIDDLE: Final = 5
"""What has survived that often is looked through together: 100,000 objects, some 70 ms at most."""
OLD: Final = 400
SWITCH_S: Final = 0.000_5
"""How long a thread that has something to do waits for the interpreter while another one has it."""


def calm() -> None:
    """Look for cycles seldom, and never among what is there already; let the threads of SQLite's connections have their turn.

    At the defaults a busy host spends a fifth of its time looking through live activations (docs/benchmarks.md), and in a
    gateway that has more to do than it can a read waits half a second: up to 5 ms at each step of its thread.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
    sys.setswitchinterval(SWITCH_S)
