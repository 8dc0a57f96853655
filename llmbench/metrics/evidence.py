"""What a run is judged by, and what a judgement is."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from llmbench.metrics import Trace, arrivals, per_request
from llmbench.metrics.instrument import InstrumentError
from llmbench.metrics.summary import percentile

FLOOR_S = 0.002
"""Errors of ours below it are those of the operating system's own scheduling."""
SHARE = 0.05
"""Of the median time to first token: what our own errors may be."""
TOLERANCE = 0.02
"""What rates and counts of tokens may be off by."""

Verdict = Literal["ok", "failed", "inconclusive", "not applicable"]
Cache = Literal["any", "cold", "warm"]


class Sample(Protocol):
    """What a measuring process did in the `span_s` seconds before an instant."""

    @property
    def at_ns(self) -> int: ...

    @property
    def span_s(self) -> float: ...

    @property
    def cpu_s(self) -> float: ...

    @property
    def waited_s(self) -> float: ...

    @property
    def lag_s(self) -> float: ...


class Scrape(Protocol):
    """The server's counters at an instant, by Prometheus name, summed over labels."""

    @property
    def at_ns(self) -> int: ...

    @property
    def values(self) -> Mapping[str, float]: ...


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a run; what is None or empty was not observed, and its checks are not applicable."""

    traces: Sequence[Trace]
    declared: arrivals.Declaration | None = None
    """The arrival process of the plan."""
    steady_rate: float | None = None
    """Requests per second that the plan offers from its first to its last second; None where answers pace it, where
    the rate changes, and in a burst."""
    seams_s: Sequence[float] = ()
    """The seconds of the plan at which the run was taken up again after it had broken off."""
    samples: Sequence[Sequence[Sample]] = ()
    """Of each measuring process."""
    scrapes: Sequence[Scrape] = ()
    instrument: InstrumentError | None = None
    """The client's own error, measured at this load before the run."""
    ceiling_share: float | None = None
    """The load that was planned over the most that this client sustains."""
    cache: Cache = "any"
    """What the plan declares of the server's prefix cache."""
    prompts: Mapping[int, Hashable] = {}
    """Of requests whose prompt is sent more than once: which one, by index of the request."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check's outcome; `remedy` says what to do when it is not ok. `id` is what `--allow` names."""

    id: str
    name: str
    value: float | None
    limit: float | None
    unit: str
    verdict: Verdict
    remedy: str = ""
    allowed: bool = False
    """Whether the user said that the run may count all the same."""


def up_to(value: float | None, limit: float, beyond: Verdict = "failed") -> Verdict:
    """The verdict on a value that may be as large as its limit; one that was not observed is not judged."""
    return "not applicable" if value is None else "ok" if value <= limit else beyond


def own_error_limit_s(traces: Sequence[Trace]) -> float:
    """What our own errors may be: 5 % of the median time to first token from sent, at least 2 ms.

    Where nothing is streamed, 5 % of the median time to the whole answer.
    """
    for metric in (per_request.ttft_from_sent, per_request.service_time):
        times = sorted(value for trace in traces if (value := metric.of(trace)) is not None)
        if times:
            return max(FLOOR_S, SHARE * (percentile(times, 50) or 0.0))
    return FLOOR_S


def held_back(traces: Sequence[Trace]) -> bool:
    """Whether any request waited for a slot."""
    return any(per_request.slot_wait.of(trace) for trace in traces)


def answered(traces: Sequence[Trace]) -> list[Trace]:
    """The requests that have an answer."""
    return [trace for trace in traces if trace.status == "answered"]
