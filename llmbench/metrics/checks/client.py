"""Checks of the instrument: whether the measuring processes had the time to measure."""

from collections.abc import Sequence

from llmbench.metrics import Trace
from llmbench.metrics.checks.pace import OWN_CORES
from llmbench.metrics.evidence import Check, Evidence, Sample, own_error_limit_s, up_to

_DISTURBED = 0.01  # the share of stamps that p99, the highest percentile that is printed, leaves out
_BUSY = 0.8
_RATHER_BUSY = 0.7
_BUSIEST_S = 5.0  # of so many seconds
_FEWEST_S = 1.0


def stalled(run: Evidence) -> Check:
    """By how much the event loop's stalls delay the most delayed hundredth of all stamps.

    An instant that falls into a stall of length L is stamped when the stall ends. Instants that come at any time are
    so delayed by more than x with probability sum(max(0, L - x)) / T over all stalls of a run of length T. The value
    is the x for which that is 1 %: a stamp's delay passes it in 1 % of cases, so p99 of TTFT and ICL may be wrong by
    it. The limit is that of our other errors. Of each sample only the longest stall is known, so it is a lower bound.
    """
    samples = [sample for own in run.samples for sample in _loaded(own, run.traces)]
    span_s = sum(sample.span_s for sample in samples)
    value_s = _delay_s([sample.lag_s for sample in samples], _DISTURBED * span_s) if span_s >= _FEWEST_S else None
    limit_s = own_error_limit_s(run.traces)
    return Check(
        id="stalls",
        name="stamps delayed by the client's own stalls, p99",
        value=value_s,
        limit=limit_s,
        unit="s",
        verdict=up_to(value_s, limit_s),
        remedy=f"the client came to nothing for a while: {OWN_CORES}",
    )


def busy(run: Evidence) -> Check:
    """Time in which the busiest measuring process computed or waited for a core, as a share of its busiest 5 s.

    A loop that is busy for a share u of the time keeps an event waiting for u / (2 * (1 - u)) times what it takes for
    one, on average (M/D/1 queue): 1.2 times at 70 %, 2 at 80 %, 4.5 at 90 %. Above 80 % the run is bound by its client.
    """
    shares = [share for own in run.samples if (share := _busiest(_loaded(own, run.traces))) is not None]
    value = max(shares, default=None)
    return Check(
        id="client-cpu",
        name="busiest measuring process, computing or waiting for a core",
        value=value,
        limit=_BUSY,
        unit="",
        verdict="not applicable"
        if value is None
        else "failed"
        if value > _BUSY
        else "inconclusive"
        if value > _RATHER_BUSY
        else "ok",
        remedy="the client is what limits this run: use more --workers or a faster machine, or lower --qps",
    )


def instrument_error(run: Evidence) -> Check:
    """p99 of what the client adds to TTFT at this load, as measured against the null server before the run.

    The 95th percentile of fewer than 200 requests. The limit is that of our other errors.
    """
    value_s = None if run.instrument is None else run.instrument.ttft.high_s
    limit_s = own_error_limit_s(run.traces)
    return Check(
        id="instrument",
        name="instrument error of TTFT, p99",
        value=value_s,
        limit=limit_s,
        unit="s",
        verdict=up_to(value_s, limit_s),
        remedy=f"this machine cannot measure this load (see `llmbench doctor`): {OWN_CORES}",
    )


def client_bound(run: Evidence) -> Check:
    """The planned load over the most that this client sustains on this machine, as the calibration found it."""
    value = run.ceiling_share
    return Check(
        id="ceiling",
        name="planned load / the client's ceiling",
        value=value,
        limit=1.0,
        unit="",
        verdict=up_to(value, 1),
        remedy="the client cannot take so many answers at once: use more --workers or a faster machine, or lower --qps",
    )


def _loaded(samples: Sequence[Sample], traces: Sequence[Trace]) -> list[Sample]:
    """The samples that end between the first request and the last answer; the last sample of all too."""
    sent = [trace.sent_ns for trace in traces if trace.sent_ns is not None]
    done = [trace.done_ns for trace in traces if trace.done_ns is not None]
    if not sent or not done:
        return []
    first_ns, last_ns = min(sent), max(done)
    return [each for each in samples if each.at_ns > first_ns and each.at_ns - each.span_s * 1e9 < last_ns]


def _delay_s(lags_s: Sequence[float], disturbed_s: float) -> float:
    """The x for which sum(max(0, L - x)) is so many seconds: of the k longest stalls it is (their sum - that) / k."""
    found = total_s = 0.0
    for number, lag_s in enumerate(sorted(lags_s, reverse=True), 1):
        total_s += lag_s
        found = max(found, (total_s - disturbed_s) / number)
    return found


def _busiest(samples: Sequence[Sample]) -> float | None:
    """Time with something to do over time in the busiest 5 s, or in all of a shorter run."""
    if sum(sample.span_s for sample in samples) < _FEWEST_S:
        return None
    shares, first, span_s, busy_s = [], 0, 0.0, 0.0
    for number, last in enumerate(samples):
        span_s, busy_s = span_s + last.span_s, busy_s + last.cpu_s + last.waited_s
        while span_s - samples[first].span_s >= _BUSIEST_S * 0.99:  # samples are a second, and a little more
            gone = samples[first]
            span_s, busy_s = span_s - gone.span_s, busy_s - gone.cpu_s - gone.waited_s
            first += 1
        if span_s >= _BUSIEST_S * 0.99 or number == len(samples) - 1:
            shares.append(busy_s / span_s)
    return max(shares)
