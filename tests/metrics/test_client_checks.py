"""The checks of the measuring processes: quiet for clean ones, loud for stalls, a full core, a wrong instrument."""

import msgspec
import numpy as np
import pytest

from llmbench.loadgen.record import Record, Sample
from llmbench.metrics import checks
from llmbench.metrics.checks import Evidence, client
from llmbench.metrics.instrument import InstrumentError, Spread

S = 1_000_000_000


def run(num_s: int = 30, ttft_s: float = 0.1) -> list[Record]:
    """A request every 100 ms."""
    return [
        Record(
            index=i,
            status="answered",
            due_ns=i * S // 10,
            released_ns=i * S // 10,
            sent_ns=i * S // 10,
            stamps_ns=[i * S // 10 + round(ttft_s * S)],
            tokens=[1],
            num_tokens=1,
            done_ns=i * S // 10 + round(ttft_s * S),
        )
        for i in range(num_s * 10)
    ]


def samples(lags_s: list[float], cpu: list[float] | float = 0.2) -> list[Sample]:
    """A sample a second."""
    shares = cpu if isinstance(cpu, list) else [cpu] * len(lags_s)
    return [
        Sample(at_ns=(i + 1) * S, span_s=1.0, cpu_s=share, lag_s=lag, rss_bytes=10**8)
        for i, (lag, share) in enumerate(zip(lags_s, shares, strict=True))
    ]


def test_a_process_that_waits_for_a_core_is_as_busy_as_one_that_has_it() -> None:
    starved = [msgspec.structs.replace(sample, waited_s=0.7) for sample in samples([0.001] * 6)]
    found = client.busy(evidence(starved))
    assert found.value == pytest.approx(0.9)
    assert found.verdict == "failed"


def evidence(*processes: list[Sample], ttft_s: float = 0.1) -> Evidence:
    return Evidence(traces=run(len(processes[0]), ttft_s), samples=processes)


def test_the_lags_of_a_quiet_loop_are_fine() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        lags = rng.exponential(0.0005, 30).tolist()
        assert client.stalled(evidence(samples(lags))).verdict == "ok"


def test_the_delay_is_the_one_that_one_instant_in_a_hundred_passes() -> None:
    lags = np.random.default_rng(2).gamma(2, 0.02, 60)
    value = client.stalled(evidence(samples(lags.tolist()))).value
    assert value is not None
    instants = np.random.default_rng(3).uniform(0, 60, 400_000)
    second, into = np.divmod(instants, 1.0)
    delays = np.maximum(0.0, lags[second.astype(int)] - into)  # a stall at the start of each second
    assert np.mean(delays > value) == pytest.approx(0.01, rel=0.05)


def test_a_stall_of_a_second_in_a_short_run_is_seen_and_in_a_long_one_is_no_matter_for_p99() -> None:
    assert client.stalled(evidence(samples([0.001] * 29 + [1.0]))).verdict == "failed"
    assert client.stalled(evidence(samples([0.001] * 299 + [1.0]))).verdict == "ok"


def test_a_stall_in_every_second_is_seen_unless_answers_are_so_slow_that_it_is_nothing() -> None:
    lags = [0.016] * 30  # 1.6 % of all instants, 6 ms for the most delayed hundredth
    assert client.stalled(evidence(samples(lags))).value == pytest.approx(0.006)
    assert client.stalled(evidence(samples(lags))).verdict == "failed"
    assert client.stalled(evidence(samples(lags), ttft_s=0.2)).verdict == "ok"


@pytest.mark.parametrize(("share", "verdict"), [(0.5, "ok"), (0.75, "inconclusive"), (0.85, "failed")])
def test_a_client_that_fills_its_core_makes_the_run_invalid(share: float, verdict: str) -> None:
    assert client.busy(evidence(samples([0.0] * 20, share))).verdict == verdict
    idle, own = samples([0.0] * 20, 0.1), samples([0.0] * 20, share)
    assert client.busy(evidence(idle, own)).verdict == verdict, "the busiest process counts"


def test_a_busy_second_is_no_busy_run_but_five_are() -> None:
    assert client.busy(evidence(samples([0.0] * 20, [1.0] + [0.2] * 19))).verdict == "ok"
    assert client.busy(evidence(samples([0.0] * 20, [0.2] * 10 + [0.9] * 5 + [0.2] * 5))).verdict == "failed"


def test_what_a_process_did_before_and_after_the_load_does_not_count() -> None:
    traces = run(10)
    late = [msgspec.structs.replace(sample, at_ns=sample.at_ns + 60 * S) for sample in samples([5.0] * 5, 1.0)]
    own = [*samples([0.001] * 10), *late]
    assert client.stalled(Evidence(traces=traces, samples=[own])).verdict == "ok"
    assert client.busy(Evidence(traces=traces, samples=[own])).verdict == "ok"


def test_without_samples_nothing_is_said() -> None:
    outcomes = checks.check(Evidence(traces=run(1)))
    unknown = {outcome.id for outcome in outcomes if outcome.verdict == "not applicable"}
    assert {"stalls", "client-cpu", "instrument", "ceiling"} <= unknown


def error(p99_s: float, num: int = 500) -> InstrumentError:
    spread = Spread(num=num, mean_s=0.0, p50_s=0.0, p95_s=p99_s, p99_s=p99_s, p999_s=p99_s)
    return InstrumentError(ttft=spread, stamp=spread, lateness=spread, ttft_p99_shift_s=p99_s, icl_p99_shift_s=p99_s)


@pytest.mark.parametrize(("p99_s", "verdict"), [(0.001, "ok"), (0.0049, "ok"), (0.0051, "failed")])
def test_an_instrument_that_adds_five_percent_of_a_ttft_of_100_ms_cannot_measure_it(p99_s: float, verdict: str) -> None:
    assert client.instrument_error(Evidence(traces=run(), instrument=error(p99_s))).verdict == verdict


@pytest.mark.parametrize(("share", "verdict"), [(0.5, "ok"), (1.2, "failed")])
def test_a_load_above_the_ceiling_is_not_measured(share: float, verdict: str) -> None:
    assert client.client_bound(Evidence(traces=run(), ceiling_share=share)).verdict == verdict
