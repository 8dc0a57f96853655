import math
import random

import pytest

from llmbench.metrics.search import Interval, Outcome, Probe, interval, next_rate


def found(*outcomes: tuple[float, Outcome]) -> list[Probe]:
    return [Probe(rate=rate, outcome=outcome) for rate, outcome in outcomes]


def searched(edge: float, start: float, precision: float = 0.05, blur: float = 0.0, wrong: float = 0.0) -> list[Probe]:
    """A search over a server that holds below `edge`; unknown within `blur` of it, the wrong outcome now and then."""
    rng, probes = random.Random(7), list[Probe]()
    while (rate := next_rate(probes, start, precision, lowest=1e-3, highest=1e4)) is not None:
        assert len(probes) < 60, "the search does not end"
        outcome: Outcome = "unknown" if abs(math.log(rate / edge)) < blur else "pass" if rate < edge else "fail"
        if rng.random() < wrong and outcome != "unknown":
            outcome = "fail" if outcome == "pass" else "pass"
        probes.append(Probe(rate=rate, outcome=outcome))
    return probes


@pytest.mark.parametrize("start", [0.01, 1.0, 12.0, 500.0])
@pytest.mark.parametrize("edge", [0.3, 12.4, 800.0])
def test_the_edge_is_found_to_the_precision_from_any_start(edge: float, start: float) -> None:
    bounds = interval(searched(edge, start))
    assert bounds.low is not None
    assert bounds.high is not None
    assert bounds.low <= edge <= bounds.high
    assert bounds.ratio <= 1.05


def test_rates_about_which_nothing_can_be_said_are_left_inside_the_interval() -> None:
    bounds = interval(searched(12.4, 1.0, blur=0.1))
    assert bounds.low is not None
    assert bounds.high is not None
    assert bounds.low < 12.4 * math.exp(-0.1)
    assert bounds.high > 12.4 * math.exp(0.1)
    assert bounds.ratio <= math.exp(0.2) * 1.05**2


def test_probes_that_contradict_each_other_widen_the_interval() -> None:
    assert interval(found((1, "pass"), (2, "fail"), (3, "pass"), (4, "fail"))) == Interval(low=1, high=4)


def test_a_search_among_wrong_outcomes_ends() -> None:
    searched(12.4, 1.0, wrong=0.2)


def test_a_server_that_holds_everything_is_searched_up_to_the_highest_rate_allowed() -> None:
    probes = searched(1e9, 1.0)
    assert probes[-1].rate == 1e4
    assert interval(probes) == Interval(low=1e4, high=None)


def test_a_server_that_holds_nothing_is_searched_down_to_the_lowest_rate_allowed() -> None:
    probes = searched(1e-9, 1.0)
    assert probes[-1].rate == 1e-3
    assert interval(probes) == Interval(low=None, high=1e-3)
