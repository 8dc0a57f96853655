"""What every arrival process promises; a new file in the room is tested the moment it exists."""

from itertools import islice, pairwise

import numpy as np
import pytest

from llmbench import plugins
from llmbench.errors import InputError
from llmbench.workload import arrivals

NAMES = plugins.names("workload.arrivals")
RATES = (0.5, 3.0, 20.0, 100.0)


def offsets(name: str, qps: float, number: int, seed: int = 7) -> list[float]:
    return list(islice(arrivals.get(name, qps).offsets(np.random.default_rng(seed)), number))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("qps", RATES)
def test_due_times_start_at_zero_or_later_and_never_decrease(name: str, qps: float) -> None:
    due = offsets(name, qps, 5000)
    assert due[0] >= 0
    assert all(before <= after for before, after in pairwise(due))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_offsets(name: str) -> None:
    assert offsets(name, 20.0, 3000) == offsets(name, 20.0, 3000)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("qps", RATES)
def test_the_long_run_rate_is_within_two_percent_of_the_declared_one(name: str, qps: float) -> None:
    process = arrivals.get(name, qps)
    due = offsets(name, qps, 50_001)
    if due[-1] == 0:
        assert process.rate == float("inf")
    else:
        assert 50_000 / due[-1] == pytest.approx(process.rate, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_index_of_dispersion_is_as_declared(name: str) -> None:
    """Variance over mean of the counts in windows of 50 mean gaps; a gap histogram would not see correlated gaps."""
    process = arrivals.get(name, 20.0)
    if process.dispersion is None:
        return
    window_s = 50 / process.rate
    counts = np.bincount((np.array(offsets(name, 20.0, 200_000)) / window_s).astype(int))[:-1]
    # a window's edge cuts a gap, which adds up to 1/6 of a request to the variance of a nearly regular process
    assert counts.var() / counts.mean() == pytest.approx(process.dispersion, rel=0.1, abs=0.25 / 50)


def test_the_contest_offers_what_its_rounding_makes_of_the_rate() -> None:
    rates = {qps: arrivals.get("contest", qps).rate for qps in (0.5, 3.0, 6.0, 100.0, 200.0, 201.0)}
    assert rates == pytest.approx({0.5: 0.5, 3.0: 1 / 0.33, 6.0: 1 / 0.17, 100.0: 100, 200.0: 100, 201.0: float("inf")})


def test_the_contests_gaps_are_whole_milliseconds_of_a_poisson_distribution() -> None:
    gaps_ms = np.diff(np.array(offsets("contest", 2.0, 50_001))) * 1000
    assert np.abs(gaps_ms - gaps_ms.round()).max() < 1e-6
    assert gaps_ms.mean() == pytest.approx(500, rel=0.01)
    assert gaps_ms.var() == pytest.approx(500, rel=0.05)  # the variance of a Poisson number is its mean


def test_the_contest_sends_the_first_request_at_once_and_poisson_after_a_gap() -> None:
    assert offsets("contest", 2.0, 1) == [0.0]
    assert offsets("poisson", 2.0, 1)[0] > 0


@pytest.mark.parametrize("qps", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_not_above_zero_is_refused(qps: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        arrivals.get("poisson", qps)


def test_a_wrong_name_is_answered_with_the_near_one() -> None:
    with pytest.raises(InputError, match="poisson"):
        arrivals.get("poison", 1.0)
