"""Saturation, drain and warm-up: seeded queues that keep up raise no alarm, those that do not are found."""

import heapq
import math

import numpy as np
import pytest

from llmbench.loadgen.record import Record
from llmbench.metrics.checks import Evidence, settled
from llmbench.metrics.windows import Floats

RATE = 6.0
S = 1_000_000_000


def queue(load: float, num: int, seed: int, servers: int = 4, gaps: str = "poisson", ttft_s: float = 0.05) -> Evidence:
    """A run against a queue: first come, first served, by so many servers."""
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1 / RATE, num) if gaps == "poisson" else rng.gamma(0.3, 1 / RATE / 0.3, num))
    work = rng.gamma(2, servers * load / RATE / 2, num)
    free = [0.0] * servers
    ends = []
    for at, takes in zip(due, work, strict=True):
        begins = max(float(at), heapq.heappop(free))
        heapq.heappush(free, begins + float(takes))
        ends.append(begins + float(takes))
    return evidence(due, np.array(ends), np.full(num, ttft_s))


def evidence(due: Floats, ends: Floats, ttft: Floats) -> Evidence:
    traces = [
        Record(
            index=i,
            status="answered",
            due_ns=round(at * S),
            released_ns=round(at * S),
            sent_ns=round(at * S),
            stamps_ns=[round((at + first) * S)],
            tokens=[1],
            num_tokens=1,
            done_ns=round(max(end, at + first) * S),
        )
        for i, (at, end, first) in enumerate(zip(due.tolist(), ends.tolist(), ttft.tolist(), strict=True))
    ]
    return Evidence(traces=traces, steady_rate=RATE)


@pytest.mark.parametrize("gaps", ["poisson", "bursty"])
@pytest.mark.parametrize("load", [0.5, 0.9])
def test_queues_that_keep_up_raise_no_alarm(load: float, gaps: str) -> None:
    runs = [queue(load, 120, seed, gaps=gaps) for seed in range(150)]
    assert {settled.keeps_up(run).verdict for run in runs} == {"ok"}
    assert {settled.warmed_up(run).verdict for run in runs} == {"ok"}


def test_a_queue_that_only_just_does_not_keep_up_is_not_found_in_a_short_run() -> None:
    assert sum(settled.keeps_up(queue(1.0, 120, seed)).verdict == "failed" for seed in range(150)) <= 1


@pytest.mark.parametrize(("load", "num", "share"), [(1.5, 300, 0.7), (3.0, 120, 0.9), (1.2, 1500, 0.7)])
def test_queues_that_grow_without_end_are_found(load: float, num: int, share: float) -> None:
    found = [settled.keeps_up(queue(load, num, seed)) for seed in range(20)]
    assert sum(outcome.verdict == "failed" for outcome in found) >= share * 20
    assert np.median([outcome.value or 0.0 for outcome in found]) == pytest.approx(1 - 1 / load, abs=0.05)
    assert "--qps" in found[0].remedy
    assert "--allow saturation" in found[0].remedy


def test_answers_that_are_merely_longer_than_the_run_are_no_backlog() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        due = np.cumsum(rng.exponential(1 / RATE, 60))
        run = evidence(due, due + rng.gamma(2, 4.0, 60), np.full(60, 0.05))
        assert settled.keeps_up(run).verdict == "ok"
    assert settled.under_load(run).verdict == "inconclusive"
    assert "--test-time" in settled.under_load(run).remedy


def test_bursts_closed_loops_and_handfuls_are_not_judged() -> None:
    run = queue(3.0, 120, 1)
    paced_by_answers = Evidence(traces=run.traces)
    few = Evidence(traces=run.traces[:30], steady_rate=RATE)
    for check in (settled.keeps_up, settled.under_load):
        assert check(paced_by_answers).verdict == check(few).verdict == "not applicable"


def test_a_run_whose_answers_mostly_come_under_load_is_no_drain() -> None:
    assert settled.under_load(queue(0.5, 120, 1)).verdict == "ok"


def first_tokens(first_s: float, seed: int, spread: float = 1.0) -> Evidence:
    rng = np.random.default_rng(seed)
    ttft = 0.03 * rng.lognormal(0, spread, 100)
    if first_s:
        ttft[0] = first_s
    due = np.arange(100) / RATE
    return evidence(due, due + ttft, ttft)


def test_a_server_that_compiles_at_its_first_request_is_found() -> None:
    outcome = settled.warmed_up(first_tokens(3.0, 1))
    assert outcome.verdict == "inconclusive"
    assert outcome.value is not None
    assert outcome.value > 10


def test_widely_spread_first_tokens_are_no_warm_up() -> None:
    assert {settled.warmed_up(first_tokens(0.0, seed)).verdict for seed in range(500)} == {"ok"}
    quick = first_tokens(0.2, 1, spread=0.0)  # seven times, but a quarter of a second it is not
    assert settled.warmed_up(quick).verdict == "ok"
    assert math.isfinite(settled.warmed_up(quick).value or 0.0)
