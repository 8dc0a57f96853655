"""AIPerf: what it calls inter token latency is one mean for each request, others' TPOT; the gaps between chunks are
inter chunk latency. Time to second token is the first of these gaps.
"""

from collections.abc import Sequence

from llmbench.metrics import Trace
from llmbench.metrics.definitions import Figure
from llmbench.metrics.definitions._streams import (
    deviation,
    duration,
    known,
    linear,
    mean,
    per,
    spread,
    streams,
    tpot_to,
)

TOOL = "aiperf 0.13.0"
FORMULAS = {
    "Time to First Token": "first token - sent",
    "Time to Second Token": "second chunk - first chunk",
    "Request Latency": "last chunk - sent",
    "Inter Token Latency": "(request latency - time to first token) / (tokens - 1), one mean per request, without "
    "--per-chunk-usage (inter_token_latency_metric.py)",
    "Inter Chunk Latency": "gaps between chunks",
    "Output Token Throughput Per User": "1 / inter token latency",
}

_STATISTICS = (
    ("avg", mean),
    ("min", lambda values: values[0] if values else None),
    ("max", lambda values: values[-1] if values else None),
    *((f"p{p}", lambda values, p=p: linear(values, p)) for p in (99, 90, 75)),
    ("std", deviation),
)


def figures(traces: Sequence[Trace]) -> list[Figure]:
    """The latency rows of its table, then the throughputs."""
    found, took_s = streams(traces), duration(traces)
    outputs = sum(s.num_tokens for s in found)
    between = known(tpot_to(s.last, s) for s in found)
    return [
        *spread("Time to First Token, {}", (s.first for s in found), "ms", _STATISTICS),
        *spread("Time to Second Token, {}", (s.gaps[0] for s in found if s.gaps), "ms", _STATISTICS),
        *spread("Request Latency, {}", (s.last for s in found), "ms", _STATISTICS),
        *spread("Inter Token Latency, {}", between, "ms", _STATISTICS),
        *spread("Inter Chunk Latency, {}", (gap for s in found for gap in s.gaps), "ms", _STATISTICS),
        Figure(
            name="Output Token Throughput Per User, avg",
            value=mean([1 / value for value in between if value > 0]),
            unit="tokens/sec/user",
        ),
        Figure(name="Output Token Throughput", value=per(outputs, took_s), unit="tokens/sec"),
        Figure(name="Request Throughput", value=per(len(found), took_s), unit="requests/sec"),
        Figure(name="Request Count", value=len(found)),
    ]
