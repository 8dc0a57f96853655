import math
import random

import pytest

from llmbench.loadgen.record import Record
from llmbench.metrics import slo
from llmbench.metrics.search import (
    Interval,
    Outcome,
    Probe,
    answer,
    design_effect,
    fewest,
    interval,
    next_rate,
    settled,
)


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


def traces(ttft_s: list[float]) -> list[Record]:
    """Answered requests, one due every 10 ms, with these times to first token."""
    found = []
    for index, value_s in enumerate(ttft_s):
        due_ns = index * 10_000_000
        stamp_ns = due_ns + round(value_s * 1e9)
        found.append(
            Record(index=index, status="answered", due_ns=due_ns, sent_ns=due_ns, stamps_ns=[stamp_ns], tokens=[1])
        )
    return found


P99 = slo.parse("ttft:p99<100ms")


def test_what_holds_clearly_passes_and_what_does_not_fails() -> None:
    assert answer(P99, [traces([0.05] * 500)], looks=3, confidence=0.95) == "pass"
    assert answer(P99, [traces([0.05] * 450 + [0.2] * 50)], looks=3, confidence=0.95) == "fail"


def test_too_few_requests_tell_nothing_and_the_number_that_can_is_known() -> None:
    need = fewest(P99, looks=3, confidence=0.95)
    assert answer(P99, [traces([0.05] * need)], looks=3, confidence=0.95) == "pass"
    assert answer(P99, [traces([0.05] * (need - 1))], looks=3, confidence=0.95) == "unknown"


def test_rounds_add_up() -> None:
    half = traces([0.05] * 250)
    assert answer(P99, [half], looks=3, confidence=0.95) == "unknown"
    assert answer(P99, [half, half], looks=3, confidence=0.95) == "pass"


def test_slow_requests_that_come_together_prove_less_than_those_that_come_alone() -> None:
    alone = [index % 20 != 0 for index in range(400)]
    together = [index >= 20 for index in range(400)]
    assert design_effect(alone) == 1
    assert design_effect(together) > 10


def test_the_requests_that_met_a_filling_server_are_left_out() -> None:
    assert [trace.index for trace in settled(list(reversed(traces([0.05] * 100))))] == list(range(10, 100))
    assert settled([]) == []


def test_a_rate_at_the_edge_is_rarely_called_either_way() -> None:
    """Exactly 1 % over the limit: each call is one that is wrong with 5 % at most, here of 200 rates in three looks."""
    rng = random.Random(1)
    called = 0
    for _ in range(200):
        rounds: list[list[Record]] = []
        while len(rounds) < 3:
            rounds.append(traces([0.2 if rng.random() < 0.01 else 0.05 for _ in range(400)]))
            if answer(P99, rounds, looks=3, confidence=0.95) != "unknown":
                called += 1
                break
    assert called <= 20
