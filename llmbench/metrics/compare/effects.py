"""How big an effect is, and how sure: Student's t over runs, and a bootstrap of runs and of blocks within them.

The t interval knows how much runs differ, but with few runs it may believe by chance that they differ little. The
bootstrap knows how much requests differ within them. Of each bound the wider one counts.
"""

import math
from bisect import bisect_left
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Intp = npt.NDArray[np.intp]
Statistic = Callable[[Float64], Float64]
"""From values [..., n] to [...]."""

_BLOCK_POWER = 0.5  # blocks of sqrt(n) requests: longer than what a queue remembers, short enough that there are many


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of one side, a value for each of its runs.

    `requests` has, for each run, the values of its requests in the order they were due, of which the run's value is the
    `statistic`; empty for metrics that are not of requests, a throughput for example.
    """

    values: tuple[float, ...]
    requests: tuple[Float64, ...] = ()
    statistic: Statistic | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How sure it must be: `alpha` is the share of errors allowed to each of the two definite verdicts, in all looks
    together. The bootstrap takes `num_resamples`; 0 leaves it out."""

    alpha: float = 0.05
    num_resamples: int = 2000
    seed: int = 0


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """An effect in logarithms, worse is positive. `fixed` is the part of the variance that more runs do not lessen."""

    effect: float
    variance: float
    degrees: float
    num: int
    method: str
    fixed: float = 0.0
    draws: Float64 | None = None
    """Ascending: the effect in resampled runs."""

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.variance + self.fixed)

    def p_above(self, limit: float) -> float:
        """The p-value of "the effect is `limit` or less"."""
        return max(_student(self.degrees, limit - self.effect, self.error), self._share(limit, above=True))

    def p_below(self, limit: float) -> float:
        """The p-value of "the effect is `limit` or more"."""
        return max(_student(self.degrees, self.effect - limit, self.error), self._share(limit, above=False))

    def bounds(self, level: float) -> tuple[float, float]:
        """Below the first and above the second lies the truth in a share of `level` each, at most."""
        reach = _quantile(self.degrees, level) * self.error
        low, high = self.effect - reach, self.effect + reach
        if self.draws is not None:
            low = min(low, float(np.quantile(self.draws, level)))
            high = max(high, float(np.quantile(self.draws, 1 - level)))
        return low, high

    def num_more(self, limit: float, level: float, most: int) -> int | None:
        """So many more runs like these bring the bound to `limit`'s own side; None when more than `most` would."""
        gap = abs(self.effect - limit)

        def reach(more: int) -> float:
            share = self.num / (self.num + more)
            return _quantile(self.degrees / share, level) * math.sqrt(self.variance * share + self.fixed)

        if reach(most) >= gap:
            return None
        return bisect_left(range(1, most), True, key=lambda more: reach(more) < gap) + 1  # it shrinks with each run

    def _share(self, limit: float, above: bool) -> float:
        """The share of resampled effects on the other side of the limit; one more of each, so that it is never 0."""
        if self.draws is None:
            return 0.0
        at_most = int(np.searchsorted(self.draws, limit, side="right"))
        others = at_most if above else len(self.draws) - int(np.searchsorted(self.draws, limit, side="left"))
        return (others + 1) / (len(self.draws) + 1)


def estimate(a: Measured, b: Measured, sign: int, paired: bool, band: float, settings: Settings) -> Estimate:
    """The effect of B against A from two runs or more on each side; `sign` 1 when more is worse.

    Paired: t of the differences, with n - 1 degrees of freedom, of the first n runs that both sides have. Else Welch's,
    with the degrees of Welch and Satterthwaite; `band` squared is added to its variance.
    """
    log_a, log_b = sign * np.log(np.array(a.values)), sign * np.log(np.array(b.values))
    num = min(len(log_a), len(log_b))
    if paired:
        differences = log_b[:num] - log_a[:num]
        effect, variance, degrees = float(differences.mean()), float(differences.var(ddof=1)) / num, float(num - 1)
    else:
        effect = float(log_b.mean() - log_a.mean())
        variance, degrees = _welch(float(log_a.var(ddof=1)), len(log_a), float(log_b.var(ddof=1)), len(log_b))
    draws = _draws(a, b, sign, paired, settings)
    return Estimate(
        effect=effect,
        variance=variance,
        degrees=degrees,
        num=num,
        method=("paired t" if paired else "Welch's t") + ("" if draws is None else " and bootstrap"),
        fixed=band**2,
        draws=draws,
    )


def _welch(variance_a: float, num_a: int, variance_b: float, num_b: int) -> tuple[float, float]:
    """The variance of the difference of means, and its degrees of freedom."""
    part_a, part_b = variance_a / num_a, variance_b / num_b
    total = part_a + part_b
    if not total:
        return 0.0, float(num_a + num_b - 2)
    return total, total**2 / (part_a**2 / (num_a - 1) + part_b**2 / (num_b - 1))


def _draws(a: Measured, b: Measured, sign: int, paired: bool, settings: Settings) -> Float64 | None:
    """Effects of resampled runs of resampled blocks of requests, ascending; None where there are no requests."""
    count = settings.num_resamples
    if not count or not a.requests or not b.requests:
        return None
    rng = np.random.default_rng(settings.seed)
    if paired:
        pairs = zip(a.requests, b.requests, strict=False)
        pools = np.array([_paired_pool(one, other, a, b, count, rng) for one, other in pairs])
        found = _of_runs(pools, rng)
    else:
        found = _of_runs(_pools(b, count, rng), rng) - _of_runs(_pools(a, count, rng), rng)
    return np.sort(sign * found)


def _pools(side: Measured, count: int, rng: np.random.Generator) -> Float64:
    """[runs, count]: the logarithm of each run's value, in as many resamples of its blocks."""
    return np.array([_logs(side, requests, _blocks(len(requests), count, rng)) for requests in side.requests])


def _paired_pool(
    one: Float64, other: Float64, a: Measured, b: Measured, count: int, rng: np.random.Generator
) -> Float64:
    """[count]: log(B / A) of two runs made side by side; requests with the same place in the plan stay together."""
    chosen = _blocks(len(one), count, rng)
    same = chosen if len(other) == len(one) else _blocks(len(other), count, rng)
    return _logs(b, other, same) - _logs(a, one, chosen)


def _logs(side: Measured, requests: Float64, chosen: Intp) -> Float64:
    assert side.statistic is not None, "requests come with the statistic that makes the run's value of them"
    logs: Float64 = np.log(side.statistic(requests[chosen]))
    return logs


def _blocks(num: int, count: int, rng: np.random.Generator) -> Intp:
    """[count, num]: places of requests, in blocks of neighbours drawn with replacement; the last is followed by the
    first (the circular block bootstrap of Politis and Romano, 1992)."""
    length = max(1, round(num**_BLOCK_POWER))
    starts = rng.integers(num, size=(count, -(-num // length)))
    places: Intp = (starts[:, :, None] + np.arange(length)).reshape(count, -1)[:, :num] % num
    return places


def _of_runs(pools: Float64, rng: np.random.Generator) -> Float64:
    """[count]: the mean over runs drawn with replacement, each as one of its resamples."""
    num, count = pools.shape
    runs, draws = rng.integers(num, size=(num, count)), rng.integers(count, size=(num, count))
    means: Float64 = pools[runs, draws].mean(axis=0)
    return means


def _student(degrees: float, difference: float, error: float) -> float:
    """P(T <= difference / error)."""
    from scipy.special import stdtr  # 0.1 s to load

    if not error:
        return 0.0 if difference < 0 else 1.0
    return float(stdtr(degrees, difference / error))


def _quantile(degrees: float, level: float) -> float:
    """What T passes with a probability of `level`."""
    from scipy.special import stdtrit

    return -float(stdtrit(degrees, level))
