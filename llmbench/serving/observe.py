"""What the server counts while it runs, for Prometheus: under vLLM's names and under MindIE's.

Counting is a few additions per step, not per token; the text is made when somebody asks for it.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from llmbench import clock
from llmbench.protocols import Status
from llmbench.types import FinishReason

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# upper bounds in seconds, and in tokens, as MindIE documents the ranges of its histograms
_TTFT_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_TPOT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_E2E_S = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 128000)

_MOVING = 1000  # requests that the moving averages of /metrics-json go over, as MindIE's
_RATE_WINDOW_S = 10.0


class Histogram:
    """Counts of values in buckets, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.count = 0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times
        self.count += times

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound and how many values are not above it."""
        total, buckets = 0, []
        names = [*map(str, map(float, self._bounds)), "+Inf"]
        for name, count in zip(names, self._counts, strict=True):
            total += count
            buckets.append((name, float(total)))
        return buckets


class Observer:
    """The counters of one server. Instants are nanoseconds of `clock.now_ns`."""

    def __init__(self) -> None:
        self.num_received = 0
        self.num_failed = 0
        self.num_finished: dict[FinishReason, int] = {"eos": 0, "length": 0, "stop": 0, "cancelled": 0}
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0
        self.num_preemptions = 0
        self.num_steps = 0
        # of the step loop: planning and committing, writing to the link, detokenising, waiting for the step's result
        # (detokenising overlaps it); of the agent since it started: all of its step, and the engine's part of that
        self.stages_ns = dict.fromkeys(("schedule", "link write", "detokenise", "step", "agent", "engine"), 0)
        self.num_cache_queries = 0
        self.num_cache_hits = 0
        self.ttft = Histogram(_TTFT_S)
        self.tpot = Histogram(_TPOT_S)
        self.e2e = Histogram(_E2E_S)
        self.queue = Histogram(_E2E_S)
        self.prompt_tokens = Histogram(_TOKENS)
        self.generated_tokens = Histogram(_TOKENS)
        self.recent_ttft_s: deque[float] = deque(maxlen=_MOVING)
        self.recent_tbt_s: deque[float] = deque(maxlen=_MOVING)
        self._rates: deque[tuple[int, int, int]] = deque()

    def step(self, num_decoded: int, gap_s: float) -> None:
        """A step gave `num_decoded` sequences their next token, `gap_s` after the step before."""
        if num_decoded:
            self.tpot.observe(gap_s, num_decoded)

    def first_token(self, ttft_s: float, num_prompt_tokens: int, num_hits: int) -> None:
        """A request got its first token."""
        self.ttft.observe(ttft_s)
        self.recent_ttft_s.append(ttft_s)
        self.num_prompt_tokens += num_prompt_tokens
        self.num_cache_queries += num_prompt_tokens
        self.num_cache_hits += num_hits
        self.prompt_tokens.observe(num_prompt_tokens)

    def finished(self, reason: FinishReason, e2e_s: float, ttft_s: float, num_tokens: int) -> None:
        """A request ended."""
        self.num_finished[reason] += 1
        if reason == "cancelled":
            return
        self.e2e.observe(e2e_s)
        self.generated_tokens.observe(num_tokens)
        if num_tokens > 1:
            self.recent_tbt_s.append((e2e_s - ttft_s) / (num_tokens - 1))

    def rates(self) -> tuple[float, float]:
        """Prompt and generated tokens per second since an earlier call, at most some ten seconds ago."""
        now_ns = clock.now_ns()
        while len(self._rates) > 1 and clock.seconds(self._rates[0][0], now_ns) > _RATE_WINDOW_S:
            self._rates.popleft()
        then_ns, prompts, generated = self._rates[0] if self._rates else (now_ns - 1, 0, 0)
        self._rates.append((now_ns, self.num_prompt_tokens, self.num_generated_tokens))
        past_s = max(1e-9, clock.seconds(then_ns, now_ns))
        if past_s < 1e-6:
            return 0.0, 0.0
        return (self.num_prompt_tokens - prompts) / past_s, (self.num_generated_tokens - generated) / past_s


def exposition(observer: Observer, status: Status) -> bytes:
    """The text of `/metrics`."""
    registry = CollectorRegistry()
    registry.register(_Metrics(observer, status))
    return generate_latest(registry)


def averages(observer: Observer, status: Status, instance: str) -> dict[str, object]:
    """The body of MindIE's `/metrics-json`: milliseconds, over the last thousand requests."""
    values = {
        "TTFT": _mean_ms(observer.recent_ttft_s),
        "TBT": _mean_ms(observer.recent_tbt_s),
        "waitingInferRequestNum": status.num_waiting,
        "processingInferRequestNum": status.num_running,
        "remainBlocks": status.num_free_blocks,
    }
    result = [
        {"metric": [{"__name__": name, "job": "node", "instance": instance}], "value": str(value)}
        for name, value in values.items()
    ]
    return {"resultType": "vector", "result": result}


def _mean_ms(values: Iterable[float]) -> float:
    values = list(values)
    return round(1e3 * sum(values) / len(values), 3) if values else 0.0


class _Metrics(Collector):
    """The families, made from the counters when they are asked for."""

    def __init__(self, observer: Observer, status: Status) -> None:
        self._seen = observer
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        seen, status = self._seen, self._status
        used = 1 - status.num_free_blocks / status.num_blocks
        ended = seen.num_failed + sum(seen.num_finished.values())
        prompt_rate, generation_rate = seen.rates()
        gauges = {
            "num_requests_running": (status.num_running, "Requests that run.", True),
            "num_requests_waiting": (status.num_waiting, "Requests that wait.", True),
            "num_requests_swapped": (0, "Requests whose KV cache was moved away; this server computes it again.", True),
            "kv_cache_usage_perc": (used, "Used share of the KV blocks, 0 to 1.", True),
            "npu_cache_usage_perc": (used, "Used share of the KV blocks, 0 to 1.", False),
            "cpu_cache_usage_perc": (0, "There is no second KV pool.", False),
            "npu_prefix_cache_hit_rate": (
                seen.num_cache_hits / max(1, seen.num_cache_queries),
                "Share of prompt tokens found in the prefix cache.",
                False,
            ),
            "avg_prompt_throughput_toks_per_s": (prompt_rate, "Prompt tokens per second, lately.", False),
            "avg_generation_throughput_toks_per_s": (generation_rate, "New tokens per second, lately.", False),
            "failed_request_perc": (seen.num_failed / max(1, ended), "Share of ended requests that failed.", False),
        }
        for name, (value, text, in_vllm) in gauges.items():
            for full_name in (name, f"vllm:{name}") if in_vllm else (name,):
                family = GaugeMetricFamily(full_name, text, labels=["model_name"])
                family.add_metric([self._status.model_name], value)
                yield family

    def _counters(self) -> Iterator[Metric]:
        seen = self._seen
        answered = sum(count for reason, count in seen.num_finished.items() if reason != "cancelled")
        both = {
            "prompt_tokens": (seen.num_prompt_tokens, "Prompt tokens of requests that got a token."),
            "generation_tokens": (seen.num_generated_tokens, "New tokens."),
            "num_preemptions": (seen.num_preemptions, "How often a request gave its KV blocks back."),
        }
        mindie = {
            "request_received": (seen.num_received, "Requests that came."),
            "request_success": (answered, "Requests that were answered to the end."),
            "request_failed": (seen.num_failed, "Requests that ended with an error."),
        }
        vllm = {
            "vllm:prefix_cache_queries": (seen.num_cache_queries, "Prompt tokens looked up in the prefix cache."),
            "vllm:prefix_cache_hits": (seen.num_cache_hits, "Prompt tokens found in the prefix cache."),
        }
        stages = CounterMetricFamily(
            "llmbench:stage_seconds", "Time that the stages of steps took.", labels=["model_name", "stage"]
        )
        for stage, stage_ns in seen.stages_ns.items():
            stages.add_metric([self._status.model_name, stage], stage_ns / 1e9)
        yield stages
        steps = CounterMetricFamily("llmbench:steps", "Steps.", labels=["model_name"])
        steps.add_metric([self._status.model_name], seen.num_steps)
        yield steps
        for name, (value, text) in {**both, **{f"vllm:{n}": v for n, v in both.items()}, **mindie, **vllm}.items():
            family = CounterMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._status.model_name], value)
            yield family
        finished = CounterMetricFamily(
            "vllm:request_success", "Requests that ended, by reason.", labels=["model_name", "finished_reason"]
        )
        reasons = {"eos": "stop", "stop": "stop", "length": "length", "cancelled": "abort"}
        totals: dict[str, int] = {}
        for reason, count in seen.num_finished.items():
            totals[reasons[reason]] = totals.get(reasons[reason], 0) + count
        for reason_name, count in totals.items():
            finished.add_metric([self._status.model_name, reason_name], count)
        yield finished

    def _histograms(self) -> Iterator[Metric]:
        seen = self._seen
        histograms = {
            "time_to_first_token_seconds": (seen.ttft, "From the request's arrival to its first token."),
            "time_per_output_token_seconds": (seen.tpot, "Between two tokens of a request."),
            "e2e_request_latency_seconds": (seen.e2e, "From the request's arrival to its last token."),
            "request_queue_time_seconds": (seen.queue, "From the request's arrival to its first step."),
            "request_prompt_tokens": (seen.prompt_tokens, "Prompt tokens of a request."),
            "request_generation_tokens": (seen.generated_tokens, "New tokens of a request."),
        }
        for name, (histogram, text) in histograms.items():
            for full_name in (name, f"vllm:{name}"):
                family = HistogramMetricFamily(full_name, text, labels=["model_name"])
                family.add_metric([self._status.model_name], histogram.buckets(), histogram.sum)
                yield family
