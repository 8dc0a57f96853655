"""GuideLLM: TPOT counts from the start of the request, so it has the first token's time in it; ITL is one mean for each
request, weighted by its gaps, so its percentiles are of means. A percentile is the smallest value that so much of the
weight does not pass. Its clock is the wall clock, which may be set while a run lasts; here it is ours.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from llmbench.metrics import Trace
from llmbench.metrics.definitions import Figure
from llmbench.metrics.definitions._streams import duration, per, streams, tpot_to

TOOL = "guidellm 0.8.1"
FORMULAS = {
    "Request latency": "end - sent (request_stats.py:111)",
    "TTFT": "first token - sent (request_stats.py:264)",
    "ITL": "(last token - first token) / (tokens - 1), one mean per request (request_stats.py:337-354), which counts "
    "tokens - 1 times (metrics.py:1466)",
    "TPOT": "(last token - sent) / tokens: it contains TTFT (request_stats.py:316-333); it counts as often as there "
    "are tokens (metrics.py:1457)",
    "Mdn, p95": "smallest value that half, 95 % of the weight does not pass (statistics.py:114-118)",
}

Weighted = tuple[float, float]
"""A value, and how much it counts."""


def figures(traces: Sequence[Trace]) -> list[Figure]:
    """The latencies and throughputs of successful requests."""
    found, took_s = streams(traces), duration(traces)
    outputs = sum(s.num_tokens for s in found)
    between = [(gap, s.num_tokens - 1.0) for s in found if (gap := tpot_to(s.last, s)) is not None]
    each = [(s.last / s.num_tokens, float(s.num_tokens)) for s in found if s.last is not None and s.num_tokens]
    return [
        Figure(name="Completed requests", value=len(found)),
        Figure(name="Errored or incomplete requests", value=len(traces) - len(found)),
        Figure(name="Requests per second, Mean", value=per(len(found), took_s), unit="req/s"),
        Figure(name="Concurrency, Mean", value=per(sum(s.end for s in found), took_s)),
        Figure(name="Output tokens per second, Mean", value=per(outputs, took_s), unit="tok/s"),
        *_spread("Request latency", ((s.end, 1.0) for s in found), "s"),
        *_spread("TTFT", ((s.first, 1.0) for s in found if s.first is not None), "ms"),
        *_spread("ITL", between, "ms"),
        *_spread("TPOT", each, "ms"),
    ]


def _spread(name: str, values: Iterable[Weighted], unit: str) -> list[Figure]:
    pairs = np.array(list(values), dtype=np.float64).reshape(-1, 2)
    factor = 1e3 if unit == "ms" else 1.0
    known: list[tuple[str, float | None]] = [("Mean", None), ("Mdn", None), ("p95", None)]
    if len(pairs):
        mean = float(np.average(pairs[:, 0], weights=pairs[:, 1]))
        known = [("Mean", mean), ("Mdn", _passed(pairs, 0.5)), ("p95", _passed(pairs, 0.95))]
    return [
        Figure(name=f"{name}, {word}", value=None if value is None else value * factor, unit=unit)
        for word, value in known
    ]


def _passed(pairs: NDArray[np.float64], share: float) -> float:
    """The first value up to which there is such a share of the weight.

    The shares are added up as floats, as there: ten times 1/20 is below a half, so that of 20 values the 11th is the
    median.
    """
    values, places = np.unique(pairs[:, 0], return_inverse=True)
    weights = np.bincount(places.ravel(), weights=pairs[:, 1])
    place = int(np.searchsorted(np.cumsum(weights / weights.sum()), share, side="left"))
    return float(values[min(place, len(values) - 1)])
