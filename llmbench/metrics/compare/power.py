"""What a gate can find and how often it errs, from runs of one build against itself.

Of an A/A experiment the sign of each difference is chance. Gates are drawn from the differences with random signs,
shifted by an effect, and led through the looks as a real one is, with the t test.
"""

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from llmbench.metrics.compare.effects import Float64
from llmbench.metrics.compare.looks import Look

NUM_GATES = 4000
FOUND = 0.95
_MOST = math.log(2)


class Power(msgspec.Struct, frozen=True, kw_only=True):
    """What an A/A says of one metric."""

    metric: str
    delta: float
    deviation: float
    """Root mean square of log(B / A) between runs made side by side."""
    false_alarms: float
    """The share of gates that would call a build worse than itself."""
    smallest: float | None
    """The smallest slow-down that 95 of 100 gates find; None when it takes more than a doubling."""


def power(
    metric: str, delta: float, differences: Float64, looks: Sequence[Look], num_metrics: int, seed: int = 0
) -> Power:
    """From log(B / A) of A/A pairs, float64 [n]. Raises ValueError for fewer than two."""
    if len(differences) < 2:
        raise ValueError("at least two pairs")
    rng = np.random.default_rng(seed)
    shape = NUM_GATES, looks[-1].num_runs
    drawn = rng.choice(differences, shape) * rng.choice([-1.0, 1.0], shape)
    limit = math.log1p(delta)

    def share(effect: float) -> float:
        return _regressions(drawn + effect, limit, looks, num_metrics)

    return Power(
        metric=metric,
        delta=delta,
        deviation=float(np.sqrt(np.mean(differences**2))),
        false_alarms=share(0.0),
        smallest=_smallest(share, limit),
    )


def _regressions(drawn: Float64, limit: float, looks: Sequence[Look], num_metrics: int) -> float:
    """The share of gates [gates, runs] that end in a regression before they end in none."""
    from scipy.special import stdtr

    open_ones = np.ones(len(drawn), bool)
    regressions = 0
    for look in looks:
        seen = drawn[:, : look.num_runs]
        error = np.maximum(seen.std(axis=1, ddof=1) / math.sqrt(look.num_runs), 1e-12)
        t = (seen.mean(axis=1) - limit) / error
        worse = open_ones & (stdtr(look.num_runs - 1, -t) * num_metrics <= look.level)
        fine = open_ones & (stdtr(look.num_runs - 1, t) <= look.level)
        regressions += int(worse.sum())
        open_ones &= ~(worse | fine)
    return regressions / len(drawn)


def _smallest(share: Callable[[float], float], limit: float) -> float | None:
    """By bisection: more is found more often."""
    low, high = limit, _MOST
    if share(high) < FOUND:
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) >= FOUND else (middle, high)
    return math.expm1(high)
