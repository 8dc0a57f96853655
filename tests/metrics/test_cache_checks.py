"""What a plan declares of the prefix cache, against what the server says and how fast it is."""

import numpy as np
import pytest

from llmbench.loadgen.record import Record, Scrape
from llmbench.metrics.checks import Evidence, cache
from llmbench.metrics.evidence import Cache

S = 1_000_000_000


def record(index: int, cached: int | None = None, ttft_s: float = 0.1, prompt: int = 100) -> Record:
    at = index * S
    return Record(
        index=index,
        status="answered",
        due_ns=at,
        sent_ns=at,
        stamps_ns=[at + round(ttft_s * S)],
        tokens=[1],
        num_tokens=1,
        done_ns=at + round(ttft_s * S),
        num_prompt_tokens=prompt,
        cached_tokens=cached,
    )


def says(declared: Cache, cached: int | None) -> str:
    return cache.as_declared(Evidence(traces=[record(i, cached) for i in range(50)], cache=declared)).verdict


def counts(declared: Cache, hits: int) -> str:
    """The same from the server's counters."""
    name = "vllm:prefix_cache_{}_total"
    scrapes = [
        Scrape(at_ns=at, values={name.format("queries"): 7 + queries, name.format("hits"): 3 + found})
        for at, queries, found in ((-S, 0, 0), (60 * S, 5000, 50 * hits))
    ]
    run = Evidence(traces=[record(i) for i in range(50)], cache=declared, scrapes=scrapes)
    return cache.as_declared(run).verdict


@pytest.mark.parametrize(
    ("declared", "cached", "verdict"),
    [
        ("any", 90, "ok"),
        ("any", 0, "ok"),
        ("cold", 0, "ok"),
        ("cold", 4, "ok"),
        ("cold", 90, "failed"),
        ("warm", 96, "ok"),
        ("warm", 64, "ok"),
        ("warm", 20, "inconclusive"),
        ("warm", 0, "failed"),
    ],
)
def test_the_cache_is_as_declared_or_not(declared: Cache, cached: int, verdict: str) -> None:
    assert says(declared, cached) == verdict
    assert counts(declared, cached) == verdict


@pytest.mark.parametrize("declared", ["any", "cold", "warm"])
def test_a_server_that_says_nothing_of_its_cache_is_not_judged(declared: Cache) -> None:
    assert says(declared, None) == "not applicable"


def repeated(gain: float, declared: Cache, seed: int = 1) -> Evidence:
    """Forty prompts, each sent three times; repeats take so much of the time."""
    rng = np.random.default_rng(seed)
    order = [prompt for _ in range(3) for prompt in range(40)]
    times = rng.lognormal(-2, 0.5, len(order))
    times[40:] *= gain
    traces = [record(i, ttft_s=float(time_s)) for i, time_s in enumerate(times)]
    return Evidence(traces=traces, cache=declared, prompts=dict(enumerate(order)))


def test_answers_from_a_cache_are_seen_in_repeated_prompts() -> None:
    assert cache.repeats(repeated(0.2, "cold")).verdict == "failed"
    shown = cache.repeats(repeated(0.2, "any"))
    assert shown.verdict == "ok"
    assert shown.value == pytest.approx(0.2, rel=0.3)


def test_repeated_prompts_without_a_cache_raise_no_alarm() -> None:
    assert {cache.repeats(repeated(1.0, "cold", seed)).verdict for seed in range(300)} == {"ok"}


def test_prompts_that_are_sent_once_say_nothing() -> None:
    assert cache.repeats(Evidence(traces=[record(i) for i in range(50)], cache="cold")).verdict == "not applicable"
