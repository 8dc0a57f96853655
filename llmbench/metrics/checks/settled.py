"""Checks of a load that goes on as it began: whether the server keeps up, was warm, and answered under that load."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from llmbench.clock import seconds
from llmbench.metrics import Trace, per_request
from llmbench.metrics.evidence import Check, Evidence, Verdict, answered, up_to
from llmbench.metrics.summary import percentile
from llmbench.metrics.windows import Floats

_FEWEST = 40
_BATCHES = 16
_T = 4.88  # the 1 - 1e-4 quantile of Student's t with 15 degrees of freedom
_GROWTH = 0.05
_TIMES_SLOWER = 1.5
_SIGMA = 3.1
_DRAIN = 0.5
_FIRST_TIMES = 10.0
_FIRST_S = 0.25
_ENOUGH_TO_COMPARE = 20


def keeps_up(run: Evidence) -> Check:
    """The share of the requests that came and were left over, while they came.

    Requests due and not done are counted at 17 instants over the last three quarters of the load. The backlog grows
    without end when all of this holds:

    * It grew by at least 5 % of the arrivals, and in the second half by at least half as much as in the first: an empty
      server fills up and stops.
    * In 16 equal parts of that time the mean number of answers that ended is below rate * length, by Student's t, as
      happens by chance in one run of 10,000. The queue itself is correlated over the whole run, so that a t-test of its
      slope finds one where there is none; departures are not, for a queue that keeps up they are those of the arrivals
      (Burke 1956: of M/M/c they are a Poisson process too), and of a server that is always busy they scatter less.
    * Requests of the third quarter took 1.5 times as long as those of the first, beyond chance: answers that are merely
      long do not.

    In simulated queues that keep up (load up to 0.95) there was no false alarm in thousands of runs.
    """
    backlog = _backlog(run) if run.steady_rate is not None and len(run.traces) >= _FEWEST else None
    value = None if backlog is None else _unserved(backlog)
    rate = run.steady_rate or 0.0
    grows = (
        backlog is not None
        and value is not None
        and value > _GROWTH
        and _goes_on(backlog)
        and _falls_behind(backlog, rate)
        and _slower(run.traces)
    )
    served = rate * (1 - (value or 0.0))
    return Check(
        id="saturation",
        name="share of the offered load that the server leaves over",
        value=value,
        limit=_GROWTH,
        unit="",
        verdict="not applicable" if value is None else "failed" if grows else "ok",
        remedy=f"the backlog grows without end, latencies say how long the run was: use --qps {served:.2g} or less; "
        "--allow saturation when it is the highest throughput that you want",
    )


def under_load(run: Evidence) -> Check:
    """The share of answers that ended when no more requests came: beyond a half, most of the run is its end.

    Where the backlog grows without end that is why.
    """
    done = answered(run.traces) if run.steady_rate is not None and keeps_up(run).verdict == "ok" else []
    last_ns = max((trace.sent_ns for trace in run.traces if trace.sent_ns is not None), default=0)
    value = None
    if len(done) >= _FEWEST:
        value = sum((trace.done_ns or 0) > last_ns for trace in done) / len(done)
    longest_s = max((v for trace in done if (v := per_request.service_time.of(trace)) is not None), default=0.0)
    return Check(
        id="drain",
        name="answers that ended after the last request was sent",
        value=value,
        limit=_DRAIN,
        unit="",
        verdict=up_to(value, _DRAIN, "inconclusive"),
        remedy=f"the load lasted too short to be measured: send for 10 times as long as an answer takes, "
        f"--test-time {math.ceil(10 * longest_s)}",
    )


def warmed_up(run: Evidence) -> Check:
    """TTFT of the first request over p90 of those of the last three quarters.

    The first request meets an empty server: it is the fastest unless something is done for the first time, such as
    compiling. It is held to be that when it took ten times p90 of the later ones, more than any of them, and 0.25 s
    more than p90. Were it one like the others, with times as widely spread as a lognormal of sigma 1, that would come
    in one run of 6,000.
    """
    first, later = _first_and_later(run)
    high = percentile(later, 90) if len(later) >= _ENOUGH_TO_COMPARE else None
    value = None if first is None or not high else first / high
    verdict: Verdict = "not applicable"
    if value is not None and first is not None and high is not None:
        cold = value > _FIRST_TIMES and first > max(later) and first - high > _FIRST_S
        verdict = "inconclusive" if cold else "ok"
    return Check(
        id="warm-up",
        name="first token of the first request / p90 of the later ones",
        value=value,
        limit=_FIRST_TIMES,
        unit="",
        verdict=verdict,
        remedy="the server did something for the first time while it was measured: repeat the run now that it has",
    )


class Backlog(msgspec.Struct, frozen=True):
    """At 17 instants over the last three quarters of the load: requests due so far, and of these those not done."""

    arrived: Floats
    waiting: Floats
    part_s: float


def _backlog(run: Evidence) -> Backlog | None:
    due = np.sort(np.array([trace.due_ns for trace in run.traces], dtype=np.int64))
    ends = np.sort(np.array([trace.done_ns for trace in run.traces if trace.done_ns is not None], dtype=np.int64))
    first, last = int(due[0]), int(due[-1])
    if first == last:
        return None
    edges = np.linspace(first + (last - first) / 4, last, _BATCHES + 1)
    arrived = np.searchsorted(due, edges, side="right").astype(np.float64)
    waiting = arrived - np.searchsorted(ends, edges, side="right")
    return Backlog(arrived, waiting, (last - first) * 0.75 / _BATCHES / 1e9)


def _unserved(backlog: Backlog) -> float | None:
    """Growth of the backlog over the arrivals."""
    came = backlog.arrived[-1] - backlog.arrived[0]
    return float((backlog.waiting[-1] - backlog.waiting[0]) / came) if came > 0 else None


def _goes_on(backlog: Backlog) -> bool:
    """Whether the second half of the growth is at least half of the first."""
    waiting = backlog.waiting
    middle = len(waiting) // 2
    return bool(waiting[-1] - waiting[middle] >= 0.5 * (waiting[middle] - waiting[0]))


def _falls_behind(backlog: Backlog, rate: float) -> bool:
    """Whether fewer answers ended than requests are offered, beyond chance."""
    ended = np.diff(backlog.arrived - backlog.waiting)
    spread = float(ended.std(ddof=1)) / math.sqrt(len(ended))
    return rate * backlog.part_s - float(ended.mean()) > _T * spread


def _slower(traces: Sequence[Trace]) -> bool:
    """Whether requests due in the third quarter took 1.5 times as long as those of the first (medians), beyond chance.

    By the rank sum of both (Mann and Whitney 1947), at 3.1 of its standard deviations.
    """
    first_ns = min(trace.due_ns for trace in traces)
    quarter_ns = (max(trace.due_ns for trace in traces) - first_ns) / 4
    quarters: list[list[float]] = [[], [], [], [], []]
    for trace in traces:
        took_s = math.inf if trace.done_ns is None else seconds(trace.due_ns, trace.done_ns)
        quarters[int((trace.due_ns - first_ns) / quarter_ns)].append(took_s)
    early, late = np.sort(quarters[0]), np.sort(quarters[2])
    if not len(early) or not len(late):
        return False
    m, n = len(early), len(late)
    above = float(np.searchsorted(early, late).sum()) - m * n / 2
    return bool(np.median(late) > _TIMES_SLOWER * np.median(early)) and above > _SIGMA * math.sqrt(
        m * n * (m + n + 1) / 12
    )


def _first_and_later(run: Evidence) -> tuple[float | None, list[float]]:
    """TTFT from sent of the first request, and sorted those of the last three quarters."""
    sent = sorted((trace for trace in answered(run.traces) if trace.sent_ns is not None), key=lambda t: t.sent_ns or 0)
    times = [value for trace in sent if (value := per_request.ttft_from_sent.of(trace)) is not None]
    return (times[0], sorted(times[len(times) // 4 :])) if times else (None, [])
