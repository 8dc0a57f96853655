"""llmperf: what it calls inter-token latency is the whole latency over the tokens, the first one's time included."""

from collections.abc import Sequence

from llmbench.metrics import Trace
from llmbench.metrics.definitions import Figure
from llmbench.metrics.definitions._streams import duration, linear, mean, per, spread, streams

TOOL = "llmperf, git 2024-12-08"
FORMULAS = {
    "inter_token_latency_s": "(last token - sent) / tokens: the mean of all gaps and TTFT "
    "(openai_chat_completions_client.py:95,112; token_benchmark_ray.py:63-66)",
    "ttft_s": "first token - sent",
    "end_to_end_latency_s": "end - sent",
    "request_output_throughput_token_per_s": "tokens / end-to-end latency",
}

_STATISTICS = (*((f"p{p}", lambda values, p=p: linear(values, p)) for p in (25, 50, 75, 90, 95, 99)), ("mean", mean))


def figures(traces: Sequence[Trace]) -> list[Figure]:
    """The rows of its summary."""
    found, took_s = streams(traces), duration(traces)
    tokens = sum(s.num_tokens for s in found)
    between = [(s.last if s.last is not None else s.end) / s.num_tokens for s in found if s.num_tokens]
    rates = [s.num_tokens / s.end for s in found if s.end > 0]
    completed_per_min = per(60 * len(found), took_s)
    return [
        *spread("inter_token_latency_s {}", between, "s", _STATISTICS),
        *spread("ttft_s {}", (s.first for s in found), "s", _STATISTICS),
        *spread("end_to_end_latency_s {}", (s.end for s in found), "s", _STATISTICS),
        *spread("request_output_throughput_token_per_s {}", rates, "", _STATISTICS),
        Figure(name="mean_output_throughput_token_per_s", value=per(tokens, took_s)),
        Figure(name="num_completed_requests", value=len(found)),
        Figure(name="num_completed_requests_per_min", value=completed_per_min),
    ]
