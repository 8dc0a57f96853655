"""What the order of some values says of a percentile, whatever their distribution: binomial arithmetic.

Of n independent values, the number below the true p-th percentile is binomial with n and p. So the k-th smallest value
lies above the true percentile unless k or more of them fell below it, and a value that few would exceed by chance is a
bound (Hahn and Meeker, Statistical Intervals, 1991, section 5.2; MLPerf LoadGen's early stopping is the same).
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


@cache
def ranks(n: int, percent: float, confidence: float = CONFIDENCE) -> tuple[int | None, int | None]:
    """Ranks (from 1) of the values that bound the percentile from below and from above, each with this confidence.

    The lower one is the largest l with P(B < l) <= 1 - confidence, the upper one the smallest u with P(B >= u) at most
    that, B being binomial(n, percent / 100). None where n values are too few for such a bound.
    """
    missed = 1 - confidence
    below = _cumulative(n, percent / 100)  # P(B <= k) for k = 0..n
    lower = int(np.searchsorted(below, missed, side="right"))
    upper = int(np.searchsorted(-_above(n, percent / 100), -missed, side="left"))
    return lower or None, upper if upper <= n else None


def fewest(percent: float, confidence: float = CONFIDENCE) -> int:
    """The fewest values of which even the largest bounds the percentile from above: p^n <= 1 - confidence.

    At 95 %: 5 for the median, 29 for p90, 59 for p95, 299 for p99.
    """
    return math.ceil(math.log(1 - confidence) / math.log(percent / 100) - 1e-9)


def tail(n: int, k: int, p: float) -> float:
    """P(B >= k) of a binomial(n, p)."""
    return float(_above(n, p)[k]) if k <= n else 0.0


def head(n: int, k: int, p: float) -> float:
    """P(B <= k) of a binomial(n, p)."""
    return float(_cumulative(n, p)[k]) if k >= 0 else 0.0


def _cumulative(n: int, p: float) -> NDArray[np.float64]:
    """P(B <= k) for k = 0..n."""
    chances: NDArray[np.float64] = np.minimum(np.cumsum(_probabilities(n, p)), 1.0)
    return chances


def _above(n: int, p: float) -> NDArray[np.float64]:
    """P(B >= k) for k = 0..n; summed from the far end, where the small ones are."""
    chances: NDArray[np.float64] = np.minimum(np.cumsum(_probabilities(n, p)[::-1])[::-1], 1.0)
    return chances


def _probabilities(n: int, p: float) -> NDArray[np.float64]:
    """P(B = k) for k = 0..n, each from the one before: P(k + 1) / P(k) = (n - k) / (k + 1) * p / (1 - p)."""
    k = np.arange(n, dtype=np.float64)
    steps = np.log((n - k) / (k + 1)) + math.log(p / (1 - p))
    logs = np.concatenate([np.zeros(1), np.cumsum(steps)]) + n * math.log1p(-p)
    chances: NDArray[np.float64] = np.exp(logs)
    return chances
