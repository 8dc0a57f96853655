"""What the server counts, as Prometheus text under vLLM's names."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Literal

from llmbench.clock import now_ns, seconds

Ending = Literal["stop", "length", "abort"]

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_E2E_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
_TENANT_PROMPT, _TENANT_TOKENS, _TENANT_TTFT_S, _TENANT_E2E_S = 32, 64, 0.1, 1.0  # of a request of somebody else


class Histogram:
    """Counts of seconds in buckets, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value_s: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value_s)] += 1
        self._sum += value_s

    def lines(self, name: str, others: int, other_s: float) -> Iterator[str]:
        """The family; `others` values of `other_s` are added to what was observed."""
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            more = others if other_s <= float(bound) else 0
            yield f'{name}_bucket{{model_name="null",le="{bound}"}} {total + more}'
        yield f'{name}_sum{{model_name="null"}} {self._sum + others * other_s}'
        yield f'{name}_count{{model_name="null"}} {total + others}'


class Counts:
    """The counters of a null server; `tenant_rate` requests per second of nobody are counted in."""

    def __init__(self, tenant_rate: float) -> None:
        self.num_running = 0
        self.num_waiting = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0
        self.ended: dict[Ending, int] = {"stop": 0, "length": 0, "abort": 0}
        self.ttft = Histogram(_TTFT_S)
        self.queue = Histogram(_TTFT_S)
        self.e2e = Histogram(_E2E_S)
        self._tenant_rate = tenant_rate
        self._start_ns = now_ns()

    def text(self) -> str:
        """The body of `/metrics`."""
        others = int(self._tenant_rate * seconds(self._start_ns, now_ns()))
        lines = [
            *_family("gauge", "num_requests_running", self.num_running),
            *_family("gauge", "num_requests_waiting", self.num_waiting),
            *_family("counter", "prompt_tokens_total", self.num_prompt_tokens + others * _TENANT_PROMPT),
            *_family("counter", "generation_tokens_total", self.num_generated_tokens + others * _TENANT_TOKENS),
            *_family("counter", "prefix_cache_queries_total", self.num_prompt_tokens),
            *_family("counter", "prefix_cache_hits_total", self.num_cached_tokens),
            "# TYPE vllm:request_success_total counter",
        ]
        for reason, count in self.ended.items():
            count += others if reason == "length" else 0
            lines.append(f'vllm:request_success_total{{finished_reason="{reason}",model_name="null"}} {count}')
        lines += self.ttft.lines("vllm:time_to_first_token_seconds", others, _TENANT_TTFT_S)
        lines += self.queue.lines("vllm:request_queue_time_seconds", others, 0.0)
        lines += self.e2e.lines("vllm:e2e_request_latency_seconds", others, _TENANT_E2E_S)
        return "\n".join(lines) + "\n"


def _family(kind: str, name: str, value: float) -> Iterator[str]:
    yield f"# TYPE vllm:{name} {kind}"
    yield f'vllm:{name}{{model_name="null"}} {value}'
