"""A part of a run: the requests that were due in it, and what was going on in it."""

import math
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmbench.clock import seconds
from llmbench.errors import InputError
from llmbench.metrics import Trace

Floats = NDArray[np.float64]
Some = TypeVar("Some", bound=Trace)


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """From one second of the plan to another; a request that is due at `to_s` itself is no longer in it."""

    from_s: float
    to_s: float

    def __str__(self) -> str:
        return f"{self.from_s:g} s to {self.to_s:g} s"


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What went on between the two instants of a window, whichever requests it belonged to."""

    output_tokens_per_s: float
    """Tokens that arrived in the window / its length."""
    answers_per_s: float
    """Answers that ended in the window / its length."""
    mean_in_flight: float
    """Requests that were sent and not done, averaged over time."""


def window(from_s: float | None, to_s: float | None, whole: Window) -> Window:
    """The window between two seconds, or the ends of the whole run. Raises InputError when nothing is in it."""
    chosen = Window(
        from_s=whole.from_s if from_s is None else from_s,
        to_s=whole.to_s if to_s is None else to_s,
    )
    if chosen.from_s >= whole.to_s or chosen.to_s <= whole.from_s:
        raise InputError(f"--from {chosen.from_s:g} --to {chosen.to_s:g}: the run is from {whole}")
    if not chosen.from_s < chosen.to_s:
        raise InputError(f"--from {chosen.from_s:g} --to {chosen.to_s:g}: the window ends before it begins")
    return chosen


def whole(traces: Sequence[Trace], start_ns: int) -> Window:
    """From the first second of the plan until all is over, rounded up to a millisecond."""
    ends_ns = [trace.done_ns or trace.due_ns for trace in traces]
    return Window(from_s=0.0, to_s=math.ceil(seconds(start_ns, max(ends_ns, default=start_ns)) * 1e3 + 1) / 1e3)


def due_in(traces: Sequence[Some], start_ns: int, part: Window) -> list[Some]:
    """The requests that were due in a window."""
    return [trace for trace in traces if part.from_s <= seconds(start_ns, trace.due_ns) < part.to_s]


def traffic(traces: Sequence[Trace], start_ns: int, part: Window) -> Traffic:
    """What went on in a window."""
    length_s = part.to_s - part.from_s
    answered = [trace for trace in traces if trace.status == "answered"]
    done_s = [seconds(start_ns, trace.done_ns) for trace in answered if trace.done_ns is not None]
    tokens = sum(
        number
        for trace in answered
        for stamp_ns, number in zip(trace.stamps_ns, trace.tokens, strict=True)
        if part.from_s <= seconds(start_ns, stamp_ns) < part.to_s
    )
    return Traffic(
        output_tokens_per_s=tokens / length_s,
        answers_per_s=sum(part.from_s <= at_s < part.to_s for at_s in done_s) / length_s,
        mean_in_flight=float(in_flight(traces, start_ns, part, 1)[0]),
    )


def in_flight(traces: Sequence[Trace], start_ns: int, part: Window, num_bins: int) -> Floats:
    """How many requests were sent and not done, averaged over time within each of the equal parts of a window.

    A request that never ended counts until the window does.
    """
    sent = [trace for trace in traces if trace.sent_ns is not None]
    begins = np.array([seconds(start_ns, trace.sent_ns or 0) for trace in sent])
    ends = np.array([math.inf if trace.done_ns is None else seconds(start_ns, trace.done_ns) for trace in sent])
    edges = np.linspace(part.from_s, part.to_s, num_bins + 1)
    # the time that all requests together have spent in flight up to each edge: its differences are the bins
    spent = _time_since(begins, edges) - _time_since(ends, edges)
    means: Floats = np.diff(spent) / np.diff(edges)
    return np.maximum(means, 0.0)


def _time_since(instants: Floats, edges: Floats) -> Floats:
    """At each edge: the sum over the instants before it of the time since then."""
    ordered = np.sort(instants)
    before = np.searchsorted(ordered, edges)
    sums = np.concatenate(([0.0], np.cumsum(ordered[np.isfinite(ordered)])))
    passed: Floats = before * edges - sums[before]
    return passed
