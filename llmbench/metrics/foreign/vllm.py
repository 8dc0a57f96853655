"""`vllm bench serve --save-result` and `sglang.bench_serving`: with details an instant of sending and every chunk gap.

An answer ends with its last chunk there (the end of the stream is not in the file), and nothing tells when a request
was due. Without details there are only means and percentiles. SGLang leaves the instants of sending out.
"""

import math
from typing import Any

import msgspec

from llmbench.metrics import per_run
from llmbench.metrics.foreign import Told, without
from llmbench.metrics.foreign._answer import Answer, ns
from llmbench.metrics.summary import Distribution, Summary, distribution, summarise

_FROM_DUE = ("ttft", "e2el", "client_wait", "lateness", "slot_wait", "connect")
_NAMES = {"ttft_from_sent": ("ttft",), "tpot": ("tpot",), "icl": ("itl",), "service_time": ("e2el", "e2e_latency")}
_NOT_JUDGED = "the file does not tell when requests were due"


class _Result(msgspec.Struct):
    completed: int
    duration: float
    total_input_tokens: int = 0
    total_output_tokens: int = 0
    failed: int | None = None
    num_prompts: int | None = None
    request_rate: float | str | None = None
    request_throughput: float | None = None
    output_throughput: float | None = None
    total_token_throughput: float | None = None
    total_throughput: float | None = None
    """What SGLang calls the same."""
    model_id: str | None = None
    backend: str | None = None
    input_lens: list[int] | None = None
    output_lens: list[int] | None = None
    ttfts: list[float] | None = None
    itls: list[list[float]] | None = None
    start_times: list[float] | None = None
    errors: list[str | None] | None = None


def recognises(value: Any) -> bool:
    """An object with `completed`, `duration` and times to first token."""
    known = isinstance(value, dict) and "completed" in value and "duration" in value
    return known and ("ttfts" in value or "mean_ttft_ms" in value)


def read(value: Any, name: str) -> list[Told]:
    """Traces from the details; the means and percentiles where there are none."""
    found = msgspec.convert(value, _Result)
    parts = [found.backend, found.model_id, f"{found.request_rate} requests per second" if found.request_rate else ""]
    load = ", ".join(part for part in parts if part)
    if not (found.ttfts and found.itls is not None and found.output_lens):
        numbers = _numbers(found, value)
        note = "only means and percentiles are in the file (--save-detailed keeps the rest)"
        return [Told(tool=_tool(found), numbers=numbers, load=load, not_judged=_NOT_JUDGED, notes=[note])]
    return [_detailed(found, load)]


def _tool(found: _Result) -> str:
    """SGLang counts the tokens of the whole load under a name of its own."""
    return "vllm bench serve" if found.total_throughput is None else "sglang.bench_serving"


def _detailed(found: _Result, load: str) -> Told:
    answers = [_answer(found, index) for index in range(len(found.ttfts or []))]
    timed = found.start_times is not None
    numbers = without(summarise(answers), *_FROM_DUE, "offered_rate", *(() if timed else ("achieved_rate",)))
    notes = ["unknown: when requests were due, so times are from sending; an answer ends with its last chunk"]
    if not all(answer.exact_tokens for answer in answers):
        notes.append("some chunks brought several tokens: there are gaps between chunks (ICL), not between tokens")
    if not timed:
        notes.append("unknown: when requests were sent; rates and throughput are those that the file states")
        numbers = msgspec.structs.replace(numbers, run=_stated(found))
    return Told(
        tool=_tool(found),
        numbers=numbers,
        traces=answers if timed else (),
        start_ns=min((a.due_ns for a in answers), default=0),
        load=load,
        not_judged=_NOT_JUDGED,
        notes=notes,
    )


def _answer(found: _Result, index: int) -> Answer:
    """Due is taken for sent, since nothing else is known; metrics from due are left out of the numbers."""
    ttfts, itls, lengths = found.ttfts or [], found.itls or [], found.output_lens or []
    sent_ns = ns(found.start_times[index]) if found.start_times else 0
    prompt = found.input_lens[index] if found.input_lens else None
    error = (found.errors[index] or "") if found.errors and index < len(found.errors) else ""
    if error or not lengths[index]:
        reason = error.strip().splitlines()[-1][:200] if error.strip() else "no token"
        return Answer(index=index, status="failed", reason=reason, due_ns=sent_ns, sent_ns=sent_ns)
    stamps_ns, at_s = [], ttfts[index]
    for gap_s in [0.0, *itls[index]]:
        at_s += gap_s
        stamps_ns.append(sent_ns + ns(at_s))
    return Answer(
        index=index,
        due_ns=sent_ns,
        sent_ns=sent_ns,
        stamps_ns=stamps_ns,
        tokens=[1] * len(stamps_ns),
        num_pieces=len(stamps_ns),
        exact_tokens=lengths[index] == len(stamps_ns),
        num_tokens=lengths[index],
        num_prompt_tokens=prompt,
        done_ns=stamps_ns[-1],
    )


def _numbers(found: _Result, value: dict[str, Any]) -> Summary:
    """What is stated, as far as there is a place for it."""
    lost = found.failed if found.failed is not None else max(0, (found.num_prompts or 0) - found.completed)
    nothing = summarise([])
    return msgspec.structs.replace(
        nothing,
        num_planned=found.completed + lost,
        num_answered=found.completed,
        num_failed=lost,
        reasons={"not told in the file": lost} if lost else {},
        num_output_tokens=found.total_output_tokens,
        num_prompt_tokens=found.total_input_tokens,
        run=_stated(found),
        requests=nothing.requests | {name: _spread(value, found.completed, known) for name, known in _NAMES.items()},
    )


def _stated(found: _Result) -> dict[str, float | None]:
    stated = {
        "exec_time": found.duration,
        "requests_per_s": found.request_throughput,
        "output_tokens_per_s": found.output_throughput,
        "total_tokens_per_s": found.total_throughput
        if found.total_token_throughput is None
        else found.total_token_throughput,
    }
    return {metric.name: stated.get(metric.name) for metric in per_run.METRICS}


def _spread(value: dict[str, Any], num: int, names: tuple[str, ...]) -> Distribution:
    """`mean_ttft_ms`, `median_ttft_ms`, `p99_ttft_ms`, …"""

    def seconds(statistic: str) -> float | None:
        stated = (value.get(f"{statistic}_{name}_ms") for name in names)
        known = next((x for x in stated if isinstance(x, int | float) and math.isfinite(x)), None)
        return None if known is None else known / 1e3

    if seconds("mean") is None:
        return distribution([])
    return Distribution(
        num=num,
        num_infinite=0,
        mean=seconds("mean"),
        p50=seconds("median"),
        p90=seconds("p90"),
        p95=seconds("p95"),
        p99=seconds("p99"),
        max=seconds("max"),
    )
