"""GuideLLM: TPOT counts from the start of the request, so it has the first token's time in it; ITL is one mean for each
request, weighted by its gaps, so its percentiles are of means. A percentile is the smallest value that so much of the
weight does not pass. Its clock is the wall clock, which may be set while a run lasts; here it is ours.
"""

from collections.abc import Iterable, Sequence

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
    ordered = sorted(values)
    factor = 1e3 if unit == "ms" else 1.0
    weight = sum(weight for _, weight in ordered)
    mean = sum(value * weight for value, weight in ordered) / weight if weight else None
    known = (("Mean", mean), ("Mdn", _passed(ordered, 0.5 * weight)), ("p95", _passed(ordered, 0.95 * weight)))
    return [
        Figure(name=f"{name}, {word}", value=None if value is None else value * factor, unit=unit)
        for word, value in known
    ]


def _passed(ordered: Sequence[Weighted], weight: float) -> float | None:
    """The first value at which the weights before it and its own reach a sum."""
    reached = 0.0
    for value, its_weight in ordered:
        reached += its_weight
        if reached >= weight * (1 - 1e-12):
            return value
    return None
