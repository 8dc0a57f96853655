"""`vllm bench serve`: every answer ends with its last token, and ITL pools the gaps between chunks of all answers.

Peaks count in seconds from the first request: chunks (not tokens) that arrived in one, and requests that overlap it.
"""

from collections import Counter
from collections.abc import Sequence

from llmbench.metrics import Trace
from llmbench.metrics.definitions import Figure
from llmbench.metrics.definitions._streams import (
    Stream,
    duration,
    linear,
    mean,
    middle,
    per,
    spread,
    streams,
    tpot_to,
)

TOOL = "vllm bench serve 0.33.0"
FORMULAS = {
    "TTFT": "first token - sent (serve.py:290)",
    "TPOT": "(last token - first token) / (tokens - 1), tokens as the server counts them (serve.py:654-657)",
    "ITL": "every gap between chunks, pooled over all requests (endpoint_request_func.py:290)",
    "E2EL": "last token - sent (endpoint_request_func.py:307)",
    "Peak output token throughput": "most chunks that arrived in one second (serve.py:730-738)",
    "Peak concurrent requests": "most requests that overlap one second (serve.py:740-747)",
}

_STATISTICS = (("Mean", mean), ("Median", middle), ("P99", lambda values: linear(values, 99)))


def figures(traces: Sequence[Trace]) -> list[Figure]:
    """What the table of results prints; without choice only the 99th percentile."""
    found, took_s = streams(traces), duration(traces)
    prompts, outputs = sum(s.num_prompt_tokens for s in found), sum(s.num_tokens for s in found)
    return [
        Figure(name="Successful requests", value=len(found)),
        Figure(name="Failed requests", value=len(traces) - len(found)),
        Figure(name="Benchmark duration", value=took_s, unit="s"),
        Figure(name="Total input tokens", value=prompts),
        Figure(name="Total generated tokens", value=outputs),
        Figure(name="Request throughput", value=per(len(found), took_s), unit="req/s"),
        Figure(name="Output token throughput", value=per(outputs, took_s), unit="tok/s"),
        Figure(name="Peak output token throughput", value=peak_chunks(found), unit="tok/s"),
        Figure(name="Peak concurrent requests", value=peak_requests(found)),
        Figure(name="Total token throughput", value=per(prompts + outputs, took_s), unit="tok/s"),
        *spread("{} TTFT", (s.first for s in found), "ms", _STATISTICS),
        *spread("{} TPOT", (tpot_to(s.last, s) for s in found), "ms", _STATISTICS),
        *spread("{} ITL", (gap for s in found for gap in s.gaps), "ms", _STATISTICS),
        *spread("{} E2EL", (s.last for s in found), "ms", _STATISTICS),
    ]


def peak_chunks(found: Sequence[Stream]) -> float | None:
    """Most chunks in one second from the first request."""
    seconds = Counter[int]()
    for stream in found:
        at_s = stream.sent_s + (stream.first or 0.0)
        if stream.first is not None:
            seconds[int(at_s)] += 1
        for gap in stream.gaps:
            at_s += gap
            seconds[int(at_s)] += 1
    return max(seconds.values(), default=None)


def peak_requests(found: Sequence[Stream]) -> float | None:
    """Most requests that overlap one second from the first request, however little."""
    seconds = Counter(
        second
        for stream in found
        for second in range(int(stream.sent_s), int(stream.sent_s + (stream.last or stream.end)) + 1)
    )
    return max(seconds.values(), default=None)
