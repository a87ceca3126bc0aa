"""Whether two samples are told apart by their ranks (Mann and Whitney's U test)."""

import math
from collections import Counter
from collections.abc import Sequence


def mann_whitney(one: Sequence[float], two: Sequence[float]) -> float:
    """The two-sided p-value: how often two samples of one distribution differ at least so much.

    By the normal approximation with its correction for ties, good for some twenty values and more in each.
    """
    n, m = len(one), len(two)
    seen, rank, ranks = 0, 0.0, {}
    ties = sorted(Counter((*one, *two)).items())
    for value, times in ties:
        ranks[value] = seen + (times + 1) / 2
        seen += times
    rank = sum(ranks[value] for value in one)
    u = rank - n * (n + 1) / 2
    spread = math.sqrt(n * m / 12 * ((n + m + 1) - sum(t**3 - t for _, t in ties) / ((n + m) * (n + m - 1))))
    return math.erfc(abs(u - n * m / 2) / spread / math.sqrt(2)) if spread else 1.0
