"""GuideLLM's `benchmarks.json` (report version 2, guidellm 0.8): of each request its instants on the wall clock.

Of the tokens only the first and the last are in it, so there are no gaps between them. A request is due at its
`targeted_start`. Clocks that are set during a run move these instants.
"""

from typing import Any

import msgspec

from llmbench.metrics.foreign import Told, without
from llmbench.metrics.foreign._answer import Answer, ns
from llmbench.metrics.summary import summarise

_UNKNOWN = ("icl", "itl", "connect", "lateness", "slot_wait")


class _Timings(msgspec.Struct):
    targeted_start: float | None = None
    request_start: float | None = None
    first_token_iteration: float | None = None
    last_token_iteration: float | None = None
    request_end: float | None = None
    resolve_end: float | None = None


class _Info(msgspec.Struct):
    timings: _Timings
    error: str | None = None


class _Request(msgspec.Struct):
    info: _Info
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class _Requests(msgspec.Struct):
    successful: list[_Request] = []
    errored: list[_Request] = []
    incomplete: list[_Request] = []


class _Counts(msgspec.Struct):
    successful: int = 0
    errored: int = 0
    incomplete: int = 0


class _Metrics(msgspec.Struct):
    request_totals: _Counts | None = None


class _Strategy(msgspec.Struct):
    type_: str = ""
    rate: float | None = None
    streams: int | None = None


class _Config(msgspec.Struct):
    strategy: _Strategy | None = None


class _Benchmark(msgspec.Struct):
    requests: _Requests
    metrics: _Metrics | None = None
    config: _Config | None = None


class _Report(msgspec.Struct):
    benchmarks: list[_Benchmark]


def recognises(value: Any) -> bool:
    """An object with a list of benchmarks."""
    return isinstance(value, dict) and isinstance(value.get("benchmarks"), list)


def read(value: Any, name: str) -> list[Told]:
    """Each benchmark of the report: they have different loads and must not be put together."""
    return [_told(benchmark) for benchmark in msgspec.convert(value, _Report).benchmarks]


def _told(benchmark: _Benchmark) -> Told:
    requests = benchmark.requests
    kinds = (
        ("answered", requests.successful),
        ("failed", requests.errored),
        ("unfinished", requests.incomplete),
    )
    answers: list[Answer] = []
    for status, found in kinds:
        for request in found:
            answers.append(_answer(request, status, len(answers)))
    targeted = all(request.info.timings.targeted_start is not None for request in requests.successful)
    notes = ["unknown: the gaps between tokens; instants are of the wall clock"]
    if not targeted:
        notes.append("unknown: when requests were due; they are taken as due when they were sent")
    notes += _sampled(benchmark)
    return Told(
        tool="guidellm",
        numbers=without(summarise(answers), *_UNKNOWN, *(() if targeted else ("ttft", "e2el", "client_wait"))),
        traces=answers,
        start_ns=min((answer.due_ns for answer in answers if answer.due_ns), default=0),
        load=_load(benchmark.config),
        not_judged="the file has neither a plan nor all instants",
        notes=notes,
    )


def _answer(request: _Request, status: str, index: int) -> Answer:
    """First and last token as two reads: the second brings all but one of the tokens."""
    timings, tokens = request.info.timings, request.output_tokens or 0
    sent, due = timings.request_start, timings.targeted_start
    if status != "answered" or sent is None:
        lost = "failed" if status == "failed" else "unfinished"
        reason = (request.info.error or "not told in the file").strip().splitlines()[-1][:200]
        at = due if due is not None else sent
        answer = Answer(index=index, status="failed" if lost == "failed" else "unfinished", reason=reason)
        answer.due_ns = 0 if at is None else ns(at)
        answer.sent_ns = None if sent is None else ns(sent)
        return answer
    first, last = timings.first_token_iteration, timings.last_token_iteration
    done = next((at for at in (timings.request_end, timings.resolve_end, last) if at is not None), sent)
    stamps = [] if first is None else [first] if last is None or tokens < 2 else [first, last]
    return Answer(
        index=index,
        due_ns=ns(sent if due is None else due),
        sent_ns=ns(sent),
        stamps_ns=[ns(at) for at in stamps],
        tokens=[tokens] if len(stamps) == 1 else [1, tokens - 1][: len(stamps)],
        num_pieces=len(stamps),
        exact_tokens=False,
        num_tokens=tokens,
        num_prompt_tokens=request.prompt_tokens,
        done_ns=ns(done),
    )


def _sampled(benchmark: _Benchmark) -> list[str]:
    """GuideLLM can keep a sample of its requests."""
    totals = benchmark.metrics.request_totals if benchmark.metrics else None
    kept = len(benchmark.requests.successful)
    if totals is None or totals.successful <= kept:
        return []
    return [f"a sample: {kept} of {totals.successful} answered requests are in the file"]


def _load(config: _Config | None) -> str:
    if config is None or config.strategy is None:
        return ""
    strategy = config.strategy
    rate = f", {strategy.rate:g} per second" if strategy.rate else ""
    streams = f", {strategy.streams} at once" if strategy.streams else ""
    return f"{strategy.type_}{rate}{streams}"
