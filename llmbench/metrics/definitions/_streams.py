"""Answers as load clients see them: seconds from the instant of sending."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median, pstdev

import msgspec

from llmbench.clock import seconds
from llmbench.metrics import Trace
from llmbench.metrics.definitions import Figure
from llmbench.metrics.summary import percentile


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """One answered request. `first` and `last` are of reads that brought tokens; None where it was not streamed."""

    sent_s: float
    """From the first request sent."""
    first: float | None
    last: float | None
    end: float
    gaps: list[float]
    chunks: list[int]
    """Tokens that each read brought."""
    num_tokens: int
    num_prompt_tokens: int


def streams(traces: Sequence[Trace]) -> list[Stream]:
    """The answered requests, in the order in which they were sent."""
    start_ns = min((trace.sent_ns for trace in traces if trace.sent_ns is not None), default=0)
    answered = (trace for trace in traces if trace.status == "answered")
    found = [_stream(trace, trace.sent_ns, trace.done_ns, start_ns) for trace in answered if trace.sent_ns is not None]
    return sorted(found, key=lambda stream: stream.sent_s)


def _stream(trace: Trace, sent_ns: int, done_ns: int | None, start_ns: int) -> Stream:
    last_ns = trace.stamps_ns[-1] if trace.stamps_ns else None
    return Stream(
        sent_s=seconds(start_ns, sent_ns),
        first=seconds(sent_ns, trace.stamps_ns[0]) if trace.stamps_ns else None,
        last=None if last_ns is None else seconds(sent_ns, last_ns),
        end=seconds(sent_ns, done_ns if done_ns is not None else last_ns if last_ns is not None else sent_ns),
        gaps=[seconds(before, after) for before, after in pairwise(trace.stamps_ns)],
        chunks=list(trace.tokens),
        num_tokens=trace.num_tokens,
        num_prompt_tokens=trace.num_prompt_tokens or 0,
    )


def duration(traces: Sequence[Trace]) -> float | None:
    """First sent to the last end of anything, failed requests included: the tools' wall time around the load."""
    sent = [trace.sent_ns for trace in traces if trace.sent_ns is not None]
    done = [trace.done_ns for trace in traces if trace.done_ns is not None]
    return seconds(min(sent), max(done)) if sent and done else None


def per(number: float, time_s: float | None) -> float | None:
    """A number per second; None where no time passed."""
    return number / time_s if time_s else None


def known(values: Iterable[float | None]) -> list[float]:
    """Those that there are, ascending."""
    return sorted(value for value in values if value is not None)


def mean(values: Sequence[float]) -> float | None:
    """None for no values."""
    return fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of the values as a whole population, as NumPy takes it."""
    return pstdev(values) if values else None


def middle(values: Sequence[float]) -> float | None:
    """The median, None for no values."""
    return median(values) if values else None


def linear(values: Sequence[float], percent: float) -> float | None:
    """A percentile as NumPy takes it: linear between neighbours."""
    return percentile(values, percent)


Statistic = tuple[str, Callable[[Sequence[float]], float | None]]


def spread(pattern: str, values: Iterable[float | None], unit: str, statistics: Sequence[Statistic]) -> list[Figure]:
    """A figure for each statistic of values in seconds, in ms or s; `{}` in the pattern is its name."""
    ordered = known(values)
    factor = 1e3 if unit == "ms" else 1.0
    return [
        Figure(name=pattern.format(name), value=None if (value := of(ordered)) is None else value * factor, unit=unit)
        for name, of in statistics
    ]


def tpot_to(end: float | None, stream: Stream) -> float | None:
    """(end - first token) / (tokens - 1), of answers of two tokens or more."""
    if stream.first is None or end is None or stream.num_tokens < 2:
        return None
    return (end - stream.first) / (stream.num_tokens - 1)
