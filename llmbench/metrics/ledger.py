"""Double entry: what the server has counted during a run beside what we have.

Servers name their counters differently; `NAMES` says under which names each is looked for, the first found counts.
Sums are of all labels: a server of two models counts both.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from llmbench.metrics import Trace, per_request
from llmbench.metrics.evidence import Scrape, answered

NAMES: Mapping[str, tuple[str, ...]] = {
    # vLLM (and llmbench serve), SGLang, TGI, MindIE
    "finished": (
        "vllm:request_success_total",
        "sglang:num_requests_total",
        "tgi_request_success",
        "tgi_request_success_total",
        "request_success_total",
    ),
    "prompt_tokens": (
        "vllm:prompt_tokens_total",
        "sglang:prompt_tokens_total",
        "tgi_request_input_length_sum",
        "prompt_tokens_total",
    ),
    "generation_tokens": (
        "vllm:generation_tokens_total",
        "sglang:generation_tokens_total",
        "tgi_request_generated_tokens_sum",
        "generation_tokens_total",
    ),
    "ttft_sum": (
        "vllm:time_to_first_token_seconds_sum",
        "sglang:time_to_first_token_seconds_sum",
        "time_to_first_token_seconds_sum",
    ),
    "ttft_count": (
        "vllm:time_to_first_token_seconds_count",
        "sglang:time_to_first_token_seconds_count",
        "time_to_first_token_seconds_count",
    ),
    "e2e_sum": (
        "vllm:e2e_request_latency_seconds_sum",
        "sglang:e2e_request_latency_seconds_sum",
        "tgi_request_duration_sum",
        "e2e_request_latency_seconds_sum",
    ),
    "e2e_count": (
        "vllm:e2e_request_latency_seconds_count",
        "sglang:e2e_request_latency_seconds_count",
        "tgi_request_duration_count",
        "e2e_request_latency_seconds_count",
    ),
    "running": (
        "vllm:num_requests_running",
        "sglang:num_running_reqs",
        "tgi_batch_current_size",
        "num_requests_running",
    ),
    "steps": ("llmbench:steps_total",),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "tgi_queue_size", "num_requests_waiting"),
    "cache_queries": (
        "vllm:prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_queries_total",
        "sglang:prompt_tokens_total",
    ),
    "cache_hits": (
        "vllm:prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_hits_total",
        "sglang:cached_tokens_total",
    ),
}


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """The server's book and ours; None where the server does not count it. Means in seconds."""

    server_finished: float | None
    num_answered: int
    num_lost: int
    """Requests that were sent and have no answer: the server may have counted them."""
    server_generation_tokens: float | None
    generation_tokens: int
    server_prompt_tokens: float | None
    prompt_tokens: int | None
    server_ttft_s: float | None
    ttft_s: float | None
    """From sent, of answers that were streamed."""
    server_e2el_s: float | None
    e2el_s: float | None
    """From sent to the last byte."""
    in_flight: list[tuple[float, int]]
    """At each reading during the load: running and waiting requests as the server says, and ours."""

    @property
    def num_others(self) -> float | None:
        """Requests that the server has finished and that can be none of ours; below 0 those that it has not seen."""
        if self.server_finished is None:
            return None
        over = self.server_finished - self.num_answered
        return max(0.0, over - self.num_lost) if over > 0 else over


def ledger(traces: Sequence[Trace], scrapes: Sequence[Scrape]) -> Ledger | None:
    """Both books; None when the server was not read before the first request and after the last answer."""
    sent = [trace.sent_ns for trace in traces if trace.sent_ns is not None]
    done = [trace.done_ns for trace in traces if trace.done_ns is not None]
    ordered = sorted(scrapes, key=lambda scrape: scrape.at_ns)
    if not sent or not done or len(ordered) < 2 or ordered[0].at_ns > min(sent) or ordered[-1].at_ns < max(done):
        return None
    ours = answered(traces)
    prompts = [trace.num_prompt_tokens for trace in ours if trace.num_prompt_tokens is not None]
    return Ledger(
        server_finished=increase(ordered, "finished"),
        num_answered=len(ours),
        num_lost=len(sent) - len(ours),
        server_generation_tokens=increase(ordered, "generation_tokens"),
        generation_tokens=sum(trace.num_tokens for trace in ours),
        server_prompt_tokens=increase(ordered, "prompt_tokens"),
        prompt_tokens=sum(prompts) if len(prompts) == len(ours) else None,
        server_ttft_s=_server_mean(ordered, "ttft"),
        ttft_s=_mean([v for trace in ours if (v := per_request.ttft_from_sent.of(trace)) is not None]),
        server_e2el_s=_server_mean(ordered, "e2e"),
        e2el_s=_mean([v for trace in ours if (v := per_request.service_time.of(trace)) is not None]),
        in_flight=_in_flight(traces, [scrape for scrape in ordered if min(sent) < scrape.at_ns < max(sent)]),
    )


def increase(scrapes: Sequence[Scrape], counter: str) -> float | None:
    """By how much a counter of NAMES has grown; one that fell began anew at 0, as Prometheus has it."""
    if not scrapes or found(scrapes[-1], counter) is None:
        return None
    values = [found(scrape, counter) or 0.0 for scrape in scrapes]  # one with labels is not there before it counts
    return sum(after - before if after >= before else after for before, after in pairwise(values))


def found(scrape: Scrape, counter: str) -> float | None:
    """The value of the first name under which this server has it."""
    return next((scrape.values[name] for name in NAMES[counter] if name in scrape.values), None)


def _server_mean(scrapes: Sequence[Scrape], histogram: str) -> float | None:
    total, count = increase(scrapes, f"{histogram}_sum"), increase(scrapes, f"{histogram}_count")
    return total / count if total is not None and count else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _in_flight(traces: Sequence[Trace], scrapes: Sequence[Scrape]) -> list[tuple[float, int]]:
    sent = sorted(trace.sent_ns for trace in traces if trace.sent_ns is not None)
    done = sorted(trace.done_ns for trace in traces if trace.sent_ns is not None and trace.done_ns is not None)
    pairs = []
    for scrape in scrapes:
        running, waiting = found(scrape, "running"), found(scrape, "waiting")
        if running is not None and waiting is not None:
            ours = bisect_right(sent, scrape.at_ns) - bisect_right(done, scrape.at_ns)
            pairs.append((running + waiting, ours))
    return pairs


def mean_difference(pairs: Sequence[tuple[float, int]]) -> tuple[float, float] | None:
    """Mean of server - ours and its standard error, of five readings or more."""
    if len(pairs) < 5:
        return None
    differences = [server - ours for server, ours in pairs]
    mean = math.fsum(differences) / len(differences)
    variance = math.fsum((value - mean) ** 2 for value in differences) / (len(differences) - 1)
    return mean, math.sqrt(variance / len(differences))


def network_s(book: Ledger) -> float | None:
    """What lies between the server's first token and ours, on average: network, HTTP on both sides, and the client."""
    if book.server_ttft_s is None or book.ttft_s is None:
        return None
    return book.ttft_s - book.server_ttft_s
