"""The figures of a sweep's case, worked out by hand from the formulas of the ATB speed test."""

import pytest

from llmbench.metrics.sweep import Case, Largest, Measured, Pass, Probe, Round, figures, median_round

CASE = Case(batch=4, input_len=32, output_len=5)


def a_round(first_s: float, steps_s: list[float], one_s: float) -> Round:
    whole = Pass(total_s=first_s + sum(steps_s), first_s=first_s, steps_s=steps_s)
    return Round(first=Pass(total_s=one_s, first_s=one_s, steps_s=[]), whole=whole)


def measured(*rounds: Round, case: Case = CASE) -> Measured:
    return Measured(case=case, outcome="measured", rounds=list(rounds))


def test_two_passes_give_the_eight_columns_and_the_steps_their_own() -> None:
    found = figures(measured(a_round(0.2, [0.05, 0.07, 0.05, 0.03], one_s=0.24)))
    assert found is not None
    assert found.total_s == pytest.approx(0.4)
    assert found.first_token_s == 0.24
    assert found.avg_token_s == pytest.approx((0.4 - 0.24) / 4)
    assert found.avg_tokens_per_s == pytest.approx(4 / 0.04)  # 1000 * batch / avg_token_time in ms
    assert found.e2e_tokens_per_s == pytest.approx(4 * 5 / 0.4)
    assert found.ttft_s == 0.2
    assert found.step_s == pytest.approx(0.05)
    assert found.step_p50_s == pytest.approx(0.05)
    assert found.step_max_s == 0.07
    assert found.decode_tokens_per_s == pytest.approx(80)


def test_one_new_token_has_no_average_and_no_steps() -> None:
    found = figures(measured(a_round(0.2, [], one_s=0.2), case=Case(batch=4, input_len=32, output_len=1)))
    assert found is not None
    assert (found.avg_token_s, found.avg_tokens_per_s) == (0.0, 0.0)
    assert (found.step_s, found.step_p50_s, found.step_max_s, found.decode_tokens_per_s) == (None, None, None, None)


def test_a_difference_of_two_passes_that_is_noise_is_told_as_it_is() -> None:
    found = figures(measured(a_round(0.2, [0.001] * 4, one_s=0.3)))
    assert found is not None
    assert found.avg_token_s < 0
    assert found.step_s == pytest.approx(0.001)


def test_the_middle_round_counts() -> None:
    rounds = [a_round(0.1 * n, [0.01] * 4, one_s=0.1) for n in (3, 1, 2, 4)]
    assert median_round(rounds[:3]).whole.first_s == pytest.approx(0.2)
    assert median_round(rounds).whole.first_s == pytest.approx(0.2)
    assert median_round(rounds[:1]) is rounds[0]


def test_a_case_that_was_not_measured_has_no_figures() -> None:
    assert figures(Measured(case=CASE, outcome="does not fit", reason="too long")) is None


def test_a_search_knows_the_steps_of_the_batches_that_were_tried() -> None:
    probes = [Probe(batch=4, step_s=0.02, within=True), Probe(batch=8, step_s=None, within=False, reason="full")]
    found = Largest(input_len=8, output_len=8, limit_s=0.03, batch=4, next=8, monotone=True, probes=probes)
    assert [found.step_s(batch) for batch in (4, 8, None)] == [0.02, None, None]
