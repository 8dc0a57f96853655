"""inference-perf: a chunk of K tokens gives K - 1 gaps of zero and a real one; NTPOT is the whole latency per token."""

from collections.abc import Sequence

from llmbench.metrics import Trace
from llmbench.metrics.definitions import Figure
from llmbench.metrics.definitions._streams import (
    Stream,
    duration,
    linear,
    mean,
    per,
    spread,
    streams,
    tpot_to,
)

TOOL = "inference-perf, git 2026-08-19"
FORMULAS = {
    "request_latency": "last chunk - sent",
    "time_to_first_token": "first token - sent",
    "time_per_output_token": "(last token - first token) / (tokens - 1)",
    "normalized_time_per_output_token": "request latency / tokens",
    "inter_token_latency": "gaps between tokens, 0 within a chunk (streaming_parser.py:84-109)",
}

_STATISTICS = (("mean", mean), *((f"p{p}", lambda values, p=p: linear(values, p)) for p in (50, 90, 95, 99)))


def figures(traces: Sequence[Trace]) -> list[Figure]:
    """The successes of its summary."""
    found, took_s = streams(traces), duration(traces)
    outputs = sum(s.num_tokens for s in found)
    whole = [(s.last if s.last is not None else s.end) / s.num_tokens for s in found if s.num_tokens]
    return [
        Figure(name="successes count", value=len(found)),
        Figure(name="failures count", value=len(traces) - len(found)),
        Figure(name="requests_per_sec", value=per(len(found), took_s), unit="1/s"),
        Figure(name="output_tokens_per_sec", value=per(outputs, took_s), unit="1/s"),
        *spread("request_latency {}", (s.last if s.last is not None else s.end for s in found), "s", _STATISTICS),
        *spread("time_to_first_token {}", (s.first for s in found), "s", _STATISTICS),
        *spread("time_per_output_token {}", (tpot_to(s.last, s) for s in found), "s", _STATISTICS),
        *spread("normalized_time_per_output_token {}", whole, "s", _STATISTICS),
        *spread("inter_token_latency {}", (gap for s in found for gap in _zero_filled(s)), "s", _STATISTICS),
    ]


def _zero_filled(stream: Stream) -> list[float]:
    gaps: list[float] = []
    for number, tokens in enumerate(stream.chunks):
        gaps += ([stream.gaps[number - 1]] if number else []) + [0.0] * (tokens - 1)
    return gaps
