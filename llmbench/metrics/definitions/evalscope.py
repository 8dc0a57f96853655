"""evalscope perf: TPOT ends with the last message of the stream, the one with the usage included."""

from collections.abc import Sequence

from llmbench.metrics import Trace
from llmbench.metrics.definitions import Figure
from llmbench.metrics.definitions._streams import duration, linear, mean, per, spread, streams, tpot_to

TOOL = "evalscope perf 1.14.1"
FORMULAS = {
    "Latency": "last message - sent",
    "TTFT": "first non-empty chunk - sent",
    "TPOT": "(last message - first token) / (tokens - 1)",
    "ITL": "gaps between non-empty chunks",
}

_STATISTICS = (("mean", mean), *((f"p{p}", lambda values, p=p: linear(values, p)) for p in (50, 90, 95, 99)))


def figures(traces: Sequence[Trace]) -> list[Figure]:
    """The rows of its summary."""
    found, took_s = streams(traces), duration(traces)
    prompts, outputs = sum(s.num_prompt_tokens for s in found), sum(s.num_tokens for s in found)
    return [
        Figure(name="Time taken for tests", value=took_s, unit="s"),
        Figure(name="Succeed requests", value=len(found)),
        Figure(name="Failed requests", value=len(traces) - len(found)),
        Figure(name="Output token throughput", value=per(outputs, took_s), unit="tok/s"),
        Figure(name="Total token throughput", value=per(prompts + outputs, took_s), unit="tok/s"),
        Figure(name="Request throughput", value=per(len(found), took_s), unit="req/s"),
        *spread("Latency {}", (s.end for s in found), "s", _STATISTICS),
        *spread("TTFT {}", (s.first for s in found), "s", _STATISTICS),
        *spread("TPOT {}", (tpot_to(s.end, s) for s in found), "s", _STATISTICS),
        *spread("ITL {}", (gap for s in found for gap in s.gaps), "s", _STATISTICS),
    ]
