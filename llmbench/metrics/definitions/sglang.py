"""`sglang.bench_serving`: as vLLM's, but an answer ends with the end of its stream, and so does TPOT."""

from collections.abc import Sequence

from llmbench.metrics import Trace
from llmbench.metrics.definitions import Figure
from llmbench.metrics.definitions._streams import (
    duration,
    linear,
    mean,
    middle,
    per,
    spread,
    streams,
    tpot_to,
)
from llmbench.metrics.definitions.vllm import peak_chunks, peak_requests

TOOL = "sglang.bench_serving 0.5.23"
FORMULAS = {
    "E2E Latency": "end of the stream - sent (serving.py:356,391)",
    "TTFT": "first non-empty text - sent (serving.py:370)",
    "TPOT": "(end of the stream - first token) / (tokens - 1) (serving.py:1172)",
    "ITL": "every gap between chunks, pooled over all requests (serving.py:380)",
    "Concurrency": "sum of all E2E latencies / duration",
}

_PERCENTILES = tuple((f"P{p}", lambda values, p=p: linear(values, p)) for p in (90, 95, 99))
_STATISTICS = (("Mean", mean), ("Median", middle), *_PERCENTILES)


def figures(traces: Sequence[Trace]) -> list[Figure]:
    """What the table of results prints."""
    found, took_s = streams(traces), duration(traces)
    prompts, outputs = sum(s.num_prompt_tokens for s in found), sum(s.num_tokens for s in found)
    gaps = [gap for s in found for gap in s.gaps]
    return [
        Figure(name="Successful requests", value=len(found)),
        Figure(name="Benchmark duration", value=took_s, unit="s"),
        Figure(name="Total input tokens", value=prompts),
        Figure(name="Total generated tokens", value=outputs),
        Figure(name="Request throughput", value=per(len(found), took_s), unit="req/s"),
        Figure(name="Input token throughput", value=per(prompts, took_s), unit="tok/s"),
        Figure(name="Output token throughput", value=per(outputs, took_s), unit="tok/s"),
        Figure(name="Peak output token throughput", value=peak_chunks(found), unit="tok/s"),
        Figure(name="Peak concurrent requests", value=peak_requests(found)),
        Figure(name="Total token throughput", value=per(prompts + outputs, took_s), unit="tok/s"),
        Figure(name="Concurrency", value=per(sum(s.end for s in found), took_s)),
        *spread("{} E2E Latency", (s.end for s in found), "ms", _STATISTICS),
        *spread("{} TTFT", (s.first for s in found), "ms", _STATISTICS),
        *spread("{} TPOT", (tpot_to(s.end, s) for s in found), "ms", _STATISTICS),
        *spread("{} ITL", gaps, "ms", (*_STATISTICS, ("Max", lambda values: values[-1] if values else None))),
    ]
