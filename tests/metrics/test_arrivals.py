"""The tests of arrival instants: silent for the declared process, loud for another one."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from llmbench.loadgen.record import Record
from llmbench.metrics import arrivals, checks
from llmbench.metrics.checks import pace

Floats = NDArray[np.float64]
RATE = 20.0


def poisson(n: int = 1200, rate: float = RATE, seed: int = 1) -> Floats:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))


def unit_gaps(instants: Floats) -> Floats:
    return np.diff(instants, prepend=0.0) * RATE


def declared(due: Floats) -> arrivals.Declaration:
    return arrivals.Declaration(unit_gaps=unit_gaps, due_s=dict(enumerate(due.tolist())))


def contradicted(sent: Floats, due: Floats | None = None) -> set[str]:
    """The names of the tests that fail when these are the sent instants."""
    findings = arrivals.examine_sent(
        declared(poisson(len(sent)) if due is None else due), dict(enumerate(sent.tolist()))
    )
    assert findings
    return {finding.name for finding in arrivals.contradictions(findings)}


def traces(sent: Floats, due: Floats) -> list[Record]:
    """Answered requests; second 0 is at an arbitrary instant."""
    zero_ns = 10**15
    return [
        Record(
            index=i,
            status="answered",
            due_ns=zero_ns + round(due_s * 1e9),
            released_ns=zero_ns + round(due_s * 1e9),
            sent_ns=zero_ns + round(sent_s * 1e9),
        )
        for i, (sent_s, due_s) in enumerate(zip(sent, due, strict=True))
    ]


@pytest.mark.parametrize("n", [50, 300, 5000])
def test_the_limit_of_the_ks_distance_is_that_of_its_exact_distribution(n: int) -> None:
    assert arrivals.ks_limit(n) == pytest.approx(stats.kstwo.isf(1e-4, n), rel=0.003)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_the_ks_distance_is_scipys(values: list[float]) -> None:
    assert arrivals.ks_distance(np.array(values)) == pytest.approx(stats.kstest(values, "uniform").statistic)


@pytest.mark.parametrize("degrees", [11, 59, 2000])
@pytest.mark.parametrize("p", [0.01, 0.5, 0.99, 1 - 5e-5])
def test_chi_square_quantiles_are_near_the_exact_ones(degrees: int, p: float) -> None:
    assert arrivals.chi_square_quantile(p, degrees) == pytest.approx(stats.chi2.ppf(p, degrees), rel=0.02)


def test_dispersion_is_variance_over_mean_and_autocorrelation_that_of_neighbours() -> None:
    assert arrivals.dispersion(np.array([1.0, 3.0, 5.0])) == pytest.approx(4 / 3)
    assert arrivals.lag_one(np.array([1.0, -1.0] * 50)) == pytest.approx(-0.99)


def test_windows_count_what_is_in_whole_ones_only() -> None:
    assert arrivals.window_counts(np.array([0.1, 0.2, 1.5, 3.5]), 1.0).tolist() == [2, 1, 0]


def test_hundreds_of_true_poisson_plans_contradict_nothing() -> None:
    found = [arrivals.contradictions(arrivals.examine(unit_gaps(poisson(600, seed=seed)), RATE)) for seed in range(300)]
    assert sum(map(len, found)) <= 1


def test_windows_that_are_few_or_nearly_empty_are_shown_but_not_tested() -> None:
    findings = {f.name: f for f in arrivals.examine(unit_gaps(poisson(1200)), RATE)}
    assert findings["index of dispersion, 1 s"].ok
    assert findings["index of dispersion, 5 s"].ok
    assert findings["index of dispersion, 30 s"].ok is None


def in_step(workers: int) -> Floats:
    """Workers with the same seed: what guidellm sends (client-bench: dispersion about the number of workers)."""
    stream = poisson(1200 // workers, RATE / workers)
    return np.sort(np.concatenate([stream + 0.0005 * worker for worker in range(workers)]))


def relative_sleeps() -> Floats:
    """Each gap a little longer than drawn: what SGLang sends is 12 % too little."""
    return poisson() * 1.12


@pytest.mark.parametrize("workers", [4, 10])
def test_workers_that_run_in_step_are_seen_by_the_dispersion(workers: int) -> None:
    assert "index of dispersion, 1 s" in contradicted(in_step(workers))


def test_workers_in_step_are_seen_in_seconds_even_when_their_gaps_look_exponential() -> None:
    stream = poisson(40, 20.0)
    starts = np.random.default_rng(5).uniform(0.0, 0.05, 10)  # each worker begins at another instant
    sent = np.sort(np.add.outer(stream, starts).ravel())
    declaration = arrivals.Declaration(
        unit_gaps=lambda instants: np.diff(instants, prepend=0.0) * 200.0, due_s=dict(enumerate(sent.tolist()))
    )
    wrong = arrivals.contradictions(arrivals.examine_sent(declaration, declaration.due_s))
    assert {finding.name for finding in wrong} == {"index of dispersion, 0.1 s"}


@pytest.mark.parametrize(
    "sent",
    [
        lambda: np.arange(1, 1201) / RATE,  # constant gaps
        lambda: np.cumsum(np.random.default_rng(2).gamma(0.3, 1 / (0.3 * RATE), 1200)),  # burstier
        lambda: np.ceil(poisson() * 10) / 10,  # ticks of 100 ms
        lambda: poisson() * 1.3,
    ],
)
def test_another_process_is_contradicted(sent: Callable[[], Floats]) -> None:
    assert contradicted(sent())


def test_a_plan_is_held_to_the_process_more_strictly_than_what_was_sent() -> None:
    late = relative_sleeps()
    assert not contradicted(late)  # the check of the rate sees it
    gaps = unit_gaps(late)
    found = arrivals.contradictions(arrivals.examine(gaps, arrivals.mean_rate(gaps, late)))
    assert "mean gap / declared" in {finding.name for finding in found}


@pytest.mark.parametrize("rate", [5.0, 20.0, 200.0])
def test_the_lateness_of_a_good_client_is_not_held_against_it(rate: float) -> None:
    rng = np.random.default_rng(9)
    for seed in range(30):
        due = poisson(int(60 * rate), rate, seed)
        sent = np.maximum.accumulate(due + rng.exponential(0.0004, len(due)))
        sent[len(sent) // 2 : len(sent) // 2 + 3] = sent[len(sent) // 2 + 3]  # a stall
        declaration = arrivals.Declaration(
            unit_gaps=lambda instants: np.diff(instants, prepend=0.0) * rate, due_s=dict(enumerate(due.tolist()))
        )
        findings = arrivals.examine_sent(declaration, dict(enumerate(sent.tolist())))
        assert not arrivals.contradictions(findings)


def test_the_check_passes_a_clean_run_and_fails_workers_in_step() -> None:
    due = poisson()
    good = pace.arrivals_as_declared(checks.Evidence(traces=traces(due + 0.0003, due), declared=declared(due)))
    assert good.verdict == "ok"
    assert good.value is not None
    assert good.value < 1
    bad = pace.arrivals_as_declared(checks.Evidence(traces=traces(in_step(10), due), declared=declared(due)))
    assert bad.verdict == "failed"
    assert "index of dispersion, 1 s" in bad.remedy or "KS" in bad.remedy


def test_the_check_does_not_apply_to_few_requests_to_slots_or_to_processes_without_chance() -> None:
    due = poisson()
    few = pace.arrivals_as_declared(checks.Evidence(traces=traces(due[:40], due[:40]), declared=declared(due)))
    held = traces(due, due)
    held[5].released_ns = held[5].due_ns + 1
    waited = pace.arrivals_as_declared(checks.Evidence(traces=held, declared=declared(due)))
    nothing_random = arrivals.Declaration(unit_gaps=lambda _: None, due_s=dict(enumerate(due.tolist())))
    burst = pace.arrivals_as_declared(checks.Evidence(traces=traces(due, due), declared=nothing_random))
    assert {outcome.verdict for outcome in (few, waited, burst)} == {"not applicable"}


def test_requests_that_wait_for_an_answer_are_no_arrivals() -> None:
    due = poisson()
    turns = traces(due, due)
    turns.append(Record(index=9999, due_ns=turns[-1].due_ns, released_ns=turns[-1].due_ns, sent_ns=turns[-1].due_ns))
    assert pace.arrivals_as_declared(checks.Evidence(traces=turns, declared=declared(due))).verdict == "ok"


def test_arrivals_are_checked_where_their_process_is_known() -> None:
    due = poisson()

    def verdict(declaration: arrivals.Declaration | None) -> str:
        outcomes = checks.check(checks.Evidence(traces=traces(due, due), declared=declaration))
        return next(outcome.verdict for outcome in outcomes if outcome.id == "arrivals")

    assert verdict(declared(due)) == "ok"
    assert verdict(None) == "not applicable"
