"""What the server counts, and whether Prometheus can read it."""

import asyncio
import math
from typing import Any

import msgspec
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from llmbench import clock
from llmbench.errors import AgentDied, Overloaded, PromptEmpty, TimedOut
from llmbench.protocols import Status
from llmbench.serving.blocks import BlockPool
from llmbench.serving.frontend import Frontend, Mailbox
from llmbench.serving.observe import Histogram, Observer, averages, exposition
from llmbench.serving.scheduler import Limits, Scheduler
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.types import Request, Sampling

TOKENIZER = Tokenizer.from_file(embedded_path())
STATUS = Status(
    model_name="tiny",
    model_dtype="float32",
    vocab_size=2048,
    max_model_len=256,
    max_batch=4,
    max_tokens_per_step=64,
    max_waiting=5,
    num_running=3,
    num_waiting=2,
    num_blocks=64,
    num_free_blocks=48,
    block_size=16,
    ready=True,
)


def families(observer: Observer, status: Status = STATUS) -> dict[str, Metric]:
    """What Prometheus reads, by name."""
    found = list(text_string_to_metric_families(exposition(observer, status).decode()))
    assert len({family.name for family in found}) == len(found), "a family stands there twice"
    return {family.name: family for family in found}


def value(found: dict[str, Metric], family: str, sample: str = "", **labels: str) -> float:
    """One sample of a family; counters' have `_total` behind their name."""
    wanted = {"model_name": "tiny"} | labels
    (only,) = [each.value for each in found[family].samples if each.name == family + sample and each.labels == wanted]
    return float(only)


class Desk:
    """A frontend over a real scheduler, and an engine that gives every sequence the token 300."""

    def __init__(self) -> None:
        self.observer = Observer()
        self.scheduler = Scheduler(Limits(max_batch=4, max_waiting=5), BlockPool(64, 16), 256)
        self.frontend = Frontend(self.scheduler, TOKENIZER, frozenset({2}), 0, asyncio.Event(), self.observer)

    def submit(self, num_prompt: int, number: int, **sampling: Any) -> Mailbox:
        asked = Sampling(**sampling)
        return self.frontend.submit([Request(prompt=(5,) * num_prompt, max_new_tokens=number, sampling=asked)])

    def step(self, token_id: int = 300) -> bool:
        plan = self.scheduler.plan()
        if plan is None:
            return False
        self.frontend.admitted(plan.admitted)
        tokens = [token_id if work.wants_token else -1 for work in plan.works]
        self.frontend.deliver(self.scheduler.commit(plan, tokens, [0.0] * len(tokens)))
        return True

    def finish(self) -> None:
        while self.step():
            pass


# -- histograms -------------------------------------------------------------------------------------------------------


def test_a_value_counts_in_every_bucket_whose_bound_is_not_below_it() -> None:
    histogram = Histogram((1, 2.5, 10))
    for seen in (0.5, 1.0, 1.1, 2.5, 9.9, 10.0, 10.1, 1e9):
        histogram.observe(seen)
    assert histogram.buckets() == [("1.0", 2), ("2.5", 4), ("10.0", 6), ("+Inf", 8)]
    assert histogram.count == 8
    assert histogram.sum == pytest.approx(0.5 + 1 + 1.1 + 2.5 + 9.9 + 10 + 10.1 + 1e9)


def test_a_value_may_count_several_times() -> None:
    histogram = Histogram((1, 2))
    histogram.observe(1.5, times=3)
    histogram.observe(0.25, times=0)
    assert histogram.buckets() == [("1.0", 0), ("2.0", 3), ("+Inf", 3)]
    assert (histogram.count, histogram.sum) == (3, 4.5)


def test_an_empty_histogram_has_all_its_buckets() -> None:
    assert Histogram((1, 2)).buckets() == [("1.0", 0), ("2.0", 0), ("+Inf", 0)]


# -- the text -------------------------------------------------------------------------------------------------------


def test_prometheus_reads_every_family_of_a_fresh_server_and_no_value_is_missing() -> None:
    found = families(Observer())
    assert len(found) > 30
    for family in found.values():
        assert family.documentation
        assert family.samples
        for sample in family.samples:
            assert sample.labels["model_name"] == "tiny"
            assert math.isfinite(sample.value)


def test_the_gauges_are_the_servers_status() -> None:
    found = families(Observer())
    for name in ("num_requests_running", "vllm:num_requests_running"):
        assert value(found, name) == 3
    assert value(found, "vllm:num_requests_waiting") == 2
    for name in ("kv_cache_usage_perc", "vllm:kv_cache_usage_perc", "npu_cache_usage_perc"):
        assert value(found, name) == 0.25
    full = families(Observer(), msgspec.structs.replace(STATUS, num_free_blocks=0))
    assert value(full, "vllm:kv_cache_usage_perc") == 1


@pytest.mark.parametrize("name", ['a"b', "back\\slash", "two\nlines", "世界", "{x=1}", ""])
def test_any_model_name_can_be_a_label(name: str) -> None:
    status = msgspec.structs.replace(STATUS, model_name=name)
    for family in families(Observer(), status).values():
        assert {sample.labels["model_name"] for sample in family.samples} == {name}


def test_the_buckets_of_every_histogram_rise_to_its_count() -> None:
    desk = Desk()
    for number in (1, 3, 20):
        desk.submit(10 * number, number)
    desk.finish()
    histograms = [family for family in families(desk.observer).values() if family.type == "histogram"]
    assert len(histograms) == 12
    for family in histograms:
        buckets = [sample.value for sample in family.samples if sample.name == f"{family.name}_bucket"]
        (count,) = [sample.value for sample in family.samples if sample.name == f"{family.name}_count"]
        bounds = [float(each.labels["le"]) for each in family.samples if each.name == f"{family.name}_bucket"]
        assert buckets == sorted(buckets)
        assert bounds == sorted(bounds)
        assert (bounds[-1], buckets[-1]) == (math.inf, count)


# -- counters after a known load --------------------------------------------------------------------------------------


def test_after_a_known_load_every_counter_is_what_was_done() -> None:
    desk = Desk()
    desk.submit(10, 4)  # to its length
    desk.submit(20, 50, stop_token_ids=(300,))  # ends with its first token
    cancelled = desk.submit(30, 100)
    lost = desk.submit(7, 100)
    desk.step()
    desk.step()
    desk.frontend.cancel(cancelled)
    (sequence,) = lost.sequences
    desk.scheduler.cancel(sequence)
    desk.frontend.fail([sequence], AgentDied("gone"))
    desk.finish()
    ending = desk.submit(1, 9)
    desk.step()
    desk.step(token_id=2)
    assert not ending.sequences[0].running
    with pytest.raises(PromptEmpty):
        desk.submit(0, 5)

    found = families(desk.observer)
    assert value(found, "request_received", "_total") == 6
    assert value(found, "request_success", "_total") == 3
    assert value(found, "request_failed", "_total") == 1
    reasons = {reason: value(found, "vllm:request_success", "_total", finished_reason=reason) for reason in REASONS}
    assert reasons == {"stop": 2, "length": 1, "abort": 1}
    for prefix in ("", "vllm:"):
        assert value(found, f"{prefix}prompt_tokens", "_total") == 10 + 20 + 30 + 7 + 1
        assert value(found, f"{prefix}generation_tokens", "_total") == 4 + 1 + 2 + 2 + 2
    assert value(found, "failed_request_perc") == 1 / 5
    assert value(found, "vllm:request_prompt_tokens", "_sum") == 68
    assert value(found, "vllm:request_prompt_tokens", "_bucket", le="10.0") == 3
    assert value(found, "vllm:request_generation_tokens", "_sum") == 4 + 1 + 2, "of those that were answered"
    for name in ("time_to_first_token_seconds", "request_queue_time_seconds", "request_prompt_tokens"):
        assert value(found, f"vllm:{name}", "_count") == 5
    assert value(found, "vllm:e2e_request_latency_seconds", "_count") == 3


REASONS = ("stop", "length", "abort")


def test_those_that_are_refused_are_received_and_neither_answered_nor_failed() -> None:
    desk = Desk()
    for _ in range(5):
        desk.submit(5, 5)
    with pytest.raises(Overloaded):
        desk.submit(5, 5)
    desk.finish()
    found = families(desk.observer)
    assert value(found, "request_received", "_total") == 6
    assert value(found, "request_success", "_total") == 5
    assert value(found, "request_failed", "_total") == 0


def test_a_request_that_takes_too_long_has_failed() -> None:
    desk = Desk()
    mailbox = desk.submit(5, 50)
    desk.step()
    desk.frontend.expire(older_than_s=-1)
    asyncio.run(mailbox.next())
    with pytest.raises(TimedOut):
        asyncio.run(mailbox.next())
    assert value(families(desk.observer), "request_failed", "_total") == 1


def test_the_prefix_caches_hits_are_counted_in_tokens() -> None:
    observer = Observer()
    observer.first_token(0.1, num_prompt_tokens=100, num_hits=0)
    observer.first_token(0.1, num_prompt_tokens=100, num_hits=64)
    found = families(observer)
    assert value(found, "vllm:prefix_cache_queries", "_total") == 200
    assert value(found, "vllm:prefix_cache_hits", "_total") == 64
    assert value(found, "npu_prefix_cache_hit_rate") == 0.32


def test_a_gap_between_tokens_counts_for_every_sequence_that_got_one() -> None:
    observer = Observer()
    observer.step(num_decoded=3, gap_s=0.02)
    observer.step(num_decoded=0, gap_s=5.0)
    found = families(observer)
    assert value(found, "vllm:time_per_output_token_seconds", "_count") == 3
    assert value(found, "vllm:time_per_output_token_seconds", "_sum") == pytest.approx(0.06)
    assert value(found, "vllm:time_per_output_token_seconds", "_bucket", le="0.025") == 3


def test_rates_are_what_was_added_within_the_last_ten_seconds() -> None:
    observer = Observer()
    assert observer.rates() == (0.0, 0.0)
    observer.num_prompt_tokens, observer.num_generated_tokens = 1000, 100
    now_ns = clock.now_ns()
    observer._rates.clear()
    observer._rates += [(now_ns - 30 * 10**9, 0, 0), (now_ns - 8 * 10**9, 920, 96), (now_ns - 10**9, 1000, 100)]
    assert observer.rates() == pytest.approx((10, 0.5), rel=0.05)
    assert observer.rates() == pytest.approx((10, 0.5), rel=0.05), "asking does not change them"


def test_the_averages_of_mindie_are_milliseconds_as_text() -> None:
    observer = Observer()
    empty = averages(observer, STATUS, "localhost:8835")
    observer.first_token(0.1, 5, 0)
    observer.first_token(0.3, 5, 0)
    observer.finished("length", e2e_s=1.3, ttft_s=0.3, num_tokens=11)
    observer.finished("length", e2e_s=9.0, ttft_s=9.0, num_tokens=1)
    observer.finished("cancelled", e2e_s=99.0, ttft_s=0.3, num_tokens=11)
    told = averages(observer, STATUS, "localhost:8835")
    assert [values(each) for each in (empty, told)] == [
        {"TTFT": "0.0", "TBT": "0.0", **COUNTS},
        {"TTFT": "200.0", "TBT": "100.0", **COUNTS},
    ]
    assert told["resultType"] == "vector"


COUNTS = {"waitingInferRequestNum": "2", "processingInferRequestNum": "3", "remainBlocks": "48"}


def values(told: Any) -> dict[str, str]:
    return {each["metric"][0]["__name__"]: each["value"] for each in told["result"]}
