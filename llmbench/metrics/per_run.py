"""Metrics of a whole run. None means that the run is too short to have one."""

from collections.abc import Iterable, Sequence

from llmbench.clock import seconds
from llmbench.metrics import Trace, metric

Traces = Sequence[Trace]


@metric("exec time", "s", "lower")
def exec_time(traces: Traces) -> float | None:
    """Last end of an answer - first sent; the contest's Exec Time."""
    sent = [trace.sent_ns for trace in traces if trace.sent_ns is not None]
    done = [trace.done_ns for trace in traces if trace.done_ns is not None]
    return seconds(min(sent), max(done)) if sent and done else None


@metric("request throughput", "1/s", "higher")
def requests_per_s(traces: Traces) -> float | None:
    """Answered requests / exec time."""
    return _per_second(traces, len(_answered(traces)))


@metric("output throughput", "tokens/s", "higher")
def output_tokens_per_s(traces: Traces) -> float | None:
    """Tokens of answered requests / exec time."""
    return _per_second(traces, sum(trace.num_tokens for trace in _answered(traces)))


@metric("total throughput", "tokens/s", "higher")
def total_tokens_per_s(traces: Traces) -> float | None:
    """Prompt and output tokens of answered requests / exec time; none when prompts were not counted."""
    answered = _answered(traces)
    prompts = [trace.num_prompt_tokens for trace in answered if trace.num_prompt_tokens is not None]
    if len(prompts) < len(answered):
        return None
    return _per_second(traces, sum(prompts) + sum(trace.num_tokens for trace in answered))


@metric("offered rate", "1/s", "higher")
def offered_rate(traces: Traces) -> float | None:
    """(n - 1) / (last due - first due) of the n requests that were sent."""
    return _rate(trace.due_ns for trace in traces if trace.sent_ns is not None)


@metric("achieved rate", "1/s", "higher")
def achieved_rate(traces: Traces) -> float | None:
    """(n - 1) / (last sent - first sent)."""
    return _rate(trace.sent_ns for trace in traces if trace.sent_ns is not None)


METRICS = (exec_time, requests_per_s, output_tokens_per_s, total_tokens_per_s, offered_rate, achieved_rate)


def _answered(traces: Traces) -> list[Trace]:
    return [trace for trace in traces if trace.status == "answered"]


def _per_second(traces: Traces, number: int) -> float | None:
    time_s = exec_time.of(traces)
    return number / time_s if time_s else None


def _rate(instants_ns: Iterable[int]) -> float | None:
    instants = list(instants_ns)
    span_s = seconds(min(instants), max(instants)) if instants else 0.0
    return (len(instants) - 1) / span_s if span_s > 0 else None
