"""Metrics of runs by name: `ttft:p99`, `tpot:mean`, `output_tokens_per_s`, as they are declared."""

import difflib
import math
import re
from collections.abc import Sequence

import numpy as np

from llmbench.errors import InputError
from llmbench.metrics import Metric, Trace, per_request, per_run
from llmbench.metrics.compare import Better, Primary
from llmbench.metrics.compare.effects import Float64, Measured, Statistic

DEFAULTS = ("ttft:mean", "tpot:mean", "e2el:p90", "output_tokens_per_s")
"""What decides unless somebody says otherwise: steady figures of what users wait for. A p99 of short runs is not."""

_OF_REQUESTS: dict[str, Metric[Trace, float | None]] = {metric.name: metric for metric in per_request.METRICS}
_OF_RUNS = {metric.name: metric for metric in per_run.METRICS}
_STATISTIC = re.compile(r"mean|p(\d+(?:\.\d+)?)")


def primary(name: str, delta: float, better: Better | None = None) -> Primary:
    """A metric that decides, with its declared direction unless another one is given. Raises InputError."""
    base, statistic = _split(name)
    declared: Better = (_OF_RUNS[base] if statistic is None else _OF_REQUESTS[base]).better
    return Primary(metric=name, better=better or declared, delta=delta)


def unit(name: str) -> str:
    """The declared unit; none of a name that is not ours."""
    base = name.partition(":")[0]
    declared = _OF_REQUESTS.get(base) or _OF_RUNS.get(base)
    return declared.unit if declared else ""


def measured(name: str, runs: Sequence[Sequence[Trace]]) -> Measured | None:
    """The metric in each run; None when a run has no such figure. Raises InputError for a name that is none.

    A request that was sent and has no answer makes a mean infinite here, since a build that loses its slowest requests
    is not faster.
    """
    base, statistic = _split(name)
    if statistic is None:
        found = [_OF_RUNS[base].of(traces) for traces in runs]
        values = tuple(value for value in found if value is not None)
        return Measured(values=values) if len(values) == len(runs) else None
    metric = _OF_REQUESTS[base]
    requests = tuple(_values(metric, traces) for traces in runs)
    if not all(len(each) for each in requests):
        return None
    return Measured(
        values=tuple(float(statistic(each[None])[0]) for each in requests), requests=requests, statistic=statistic
    )


def _values(metric: Metric[Trace, float | None], traces: Sequence[Trace]) -> Float64:
    """float64 [n], in the order the requests were due."""
    ordered = sorted(traces, key=lambda trace: trace.due_ns)
    return np.array([value for trace in ordered if (value := metric.of(trace)) is not None], np.float64)


def _split(name: str) -> tuple[str, Statistic | None]:
    """The declared name, and what is made of the values of requests; None for a metric of the run."""
    base, colon, rest = name.partition(":")
    if not colon and base in _OF_RUNS:
        return base, None
    if base not in _OF_REQUESTS:
        raise InputError(f"metric {name}: there is no {base}{_near(base)}")
    match = _STATISTIC.fullmatch(rest)
    percent = float(match[1]) if match and match[1] else math.nan
    if match is None or percent > 100:
        raise InputError(f"metric {name}: say of what, {base}:mean or {base}:p50 to p100")
    return base, _mean if match[1] is None else _percentile(percent)


def _near(base: str) -> str:
    known = [*_OF_REQUESTS, *_OF_RUNS]
    close = difflib.get_close_matches(base, known, n=1)
    return f", did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


def _mean(values: Float64) -> Float64:
    means: Float64 = values.mean(axis=-1)
    return means


def _percentile(percent: float) -> Statistic:
    def of(values: Float64) -> Float64:
        with np.errstate(invalid="ignore"):  # between two infinite neighbours
            found: Float64 = np.quantile(values, percent / 100, axis=-1)
        return np.where(np.isnan(found), np.inf, found)

    return of
