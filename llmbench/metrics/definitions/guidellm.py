"""GuideLLM: TPOT counts from the start of the request, so it has the first token's time in it; ITL is one mean for each
request, so its percentiles are of means. A percentile is the smallest value that so many do not pass. Its clock is the
wall clock, which may be set while a run lasts; here it is ours.
"""

from collections.abc import Sequence

from llmbench.metrics import Trace
from llmbench.metrics.definitions import Figure
from llmbench.metrics.definitions._streams import duration, mean, per, spread, stepped, streams, tpot_to

TOOL = "guidellm 0.8.1"
FORMULAS = {
    "Request latency": "end - sent (request_stats.py:111)",
    "TTFT": "first token - sent (request_stats.py:264)",
    "TPOT": "(last token - sent) / tokens: it contains TTFT (request_stats.py:316-333)",
    "ITL": "(last token - first token) / (tokens - 1), one mean per request (request_stats.py:337-354)",
}

_STATISTICS = (("mean", mean), *((f"p{p}", lambda values, p=p: stepped(values, p)) for p in (50, 95, 99)))


def figures(traces: Sequence[Trace]) -> list[Figure]:
    """The latencies and throughputs of successful requests."""
    found, took_s = streams(traces), duration(traces)
    outputs = sum(s.num_tokens for s in found)
    with_tokens = [s for s in found if s.last is not None and s.num_tokens]
    return [
        Figure(name="Completed requests", value=len(found)),
        Figure(name="Errored or incomplete requests", value=len(traces) - len(found)),
        Figure(name="Requests per second, mean", value=per(len(found), took_s), unit="req/s"),
        Figure(name="Concurrency, mean", value=per(sum(s.end for s in found), took_s)),
        Figure(name="Output tokens per second, mean", value=per(outputs, took_s), unit="tok/s"),
        *spread("Request latency, {}", (s.end for s in found), "s", _STATISTICS),
        *spread("TTFT, {}", (s.first for s in found), "ms", _STATISTICS),
        *spread("ITL, {}", (tpot_to(s.last, s) for s in found), "ms", _STATISTICS),
        *spread("TPOT, {}", ((s.last or 0.0) / s.num_tokens for s in with_tokens), "ms", _STATISTICS),
    ]
