"""Bounds of percentiles: against scipy's binomial, and against how often they miss."""

import math

import numpy as np
import pytest
from scipy import stats

from llmbench.metrics import order
from llmbench.metrics.summary import bound, distribution


@pytest.mark.parametrize(("percent", "n"), [(50, 5), (90, 29), (95, 59), (99, 299), (99.9, 2995)])
def test_the_fewest_values_are_those_of_the_table(percent: float, n: int) -> None:
    assert order.fewest(percent) == n
    assert order.ranks(n, percent)[1] == n
    assert order.ranks(n - 1, percent)[1] is None


@pytest.mark.parametrize("n", [1, 7, 100, 1500, 100_000])
@pytest.mark.parametrize("p", [0.01, 0.5, 0.95, 0.99])
def test_binomial_tails_are_scipys(n: int, p: float) -> None:
    for k in {0, n // 2, round(n * p), n}:
        assert order.tail(n, k, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-6, abs=1e-15)
        assert order.head(n, k, p) == pytest.approx(stats.binom.cdf(k, n, p), rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("n", [1, 4, 5, 28, 29, 298, 299, 1500])
@pytest.mark.parametrize("percent", [50, 90, 95, 99])
def test_ranks_are_the_tightest_that_hold_with_95_percent(n: int, percent: float) -> None:
    low, high = order.ranks(n, percent)
    below = stats.binom(n, percent / 100)
    if low is not None:
        assert below.cdf(low - 1) <= 0.05 < below.cdf(low)
    else:
        assert below.cdf(0) > 0.05
    if high is not None:
        assert below.sf(high - 1) <= 0.05 < below.sf(high - 2)
    else:
        assert below.sf(n - 1) > 0.05


def test_bounds_miss_the_true_percentile_in_five_percent_of_samples_at_most() -> None:
    rng = np.random.default_rng(1)
    for percent in (50, 99):
        truth = -math.log(1 - percent / 100)
        found = [bound(sorted(rng.exponential(size=400).tolist()), percent) for _ in range(1000)]
        assert sum(b.low is not None and b.low > truth for b in found) <= 65
        assert sum(b.high is not None and b.high < truth for b in found) <= 65


def test_percentiles_of_too_few_values_are_starred() -> None:
    assert distribution(range(60)).starred == ("p99",)
    assert distribution(range(300)).starred == ()
    few = distribution([1.0, 2.0, 3.0])
    assert few.starred == ("p50", "p90", "p95", "p99")
    assert few.bounds["p99"].high is None
    assert distribution([]).starred == ()


def test_infinite_values_bound_a_percentile_too() -> None:
    spread = distribution([*range(290), *[math.inf] * 10])
    assert spread.bounds["p99"].low == math.inf
    assert spread.bounds["p50"].high is not None
    assert spread.bounds["p50"].high < 180


def test_gaps_of_few_answers_count_as_few_however_many_they_are() -> None:
    gaps = np.random.default_rng(1).exponential(size=6000).tolist()
    pooled, honest = distribution(gaps), distribution(gaps, num_independent=60)
    assert honest.starred == ("p99",)
    assert pooled.starred == ()
    for name in ("p50", "p90"):
        wide, narrow = honest.bounds[name], pooled.bounds[name]
        assert wide.low is not None
        assert narrow.low is not None
        assert wide.high is not None
        assert narrow.high is not None
        assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(("num", "num_independent"), [(29, 7), (58, 7), (123, 7), (1503, 49), (6000, 61)])
def test_bounds_of_gaps_that_are_no_multiple_of_their_answers_are_among_them(num: int, num_independent: int) -> None:
    spread = distribution([float(i) for i in range(num)], num_independent=num_independent)
    high = spread.bounds["p50"].high
    assert high is not None
    assert num / 2 < high <= num - 1
