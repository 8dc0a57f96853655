"""The steady part of a run: without the filling of an empty server at its start and the emptying at its end.

What is looked at is the number of requests in flight, since by Little's law it moves with rate and latency alike. From
the first due request to the last one sent, which is as long as the load lasts, it is averaged in equal bins; the start
and the end are cut where MSER-5 says: in batches of five bins, leave out the first d for which the rest, of n - d
batches z, has the least squared standard error

    sum((z - mean(z))**2) / (n - d)**2.

White, "An effective truncation heuristic for bias reduction in simulation output", Simulation 69(6), 1997; five
heuristics compared in White, Cobb and Spratt, Winter Simulation Conference 2000. It has no threshold to choose, unlike
the longest stretch above a share of the peak, which at a light load is the peak of chance. A cut is looked for in the
first half of the data, as its authors advise, since few batches are even by chance; one at the end of that half means
that no steady part was found: a queue that grows throughout has none.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from llmbench.clock import seconds
from llmbench.metrics import Trace
from llmbench.metrics.windows import Floats, Window, in_flight

FEWEST = 50
"""Requests; with fewer, bins hold chance alone."""

_BATCH = 5
_MOST_BATCHES = 200


class Steady(msgspec.Struct, frozen=True, kw_only=True):
    """The steady part, or why there is none."""

    window: Window | None
    reason: str = ""


def steady(traces: Sequence[Trace], start_ns: int) -> Steady:
    """Find the steady part of a run."""
    sent_s = [seconds(start_ns, trace.sent_ns) for trace in traces if trace.sent_ns is not None]
    if len(sent_s) < FEWEST:
        return Steady(window=None, reason=f"{len(sent_s)} requests were sent; it takes {FEWEST}")
    load = Window(from_s=min(sent_s), to_s=max(sent_s))
    num_batches = min(_MOST_BATCHES, len(sent_s) // _BATCH)
    if not load.from_s < load.to_s:
        return Steady(window=None, reason="all requests were sent at once")
    batches = in_flight(traces, start_ns, load, num_batches * _BATCH).reshape(num_batches, _BATCH).mean(axis=1)
    start, end = cut(batches), cut(batches[::-1])
    if max(start, end) == num_batches // 2 or num_batches - start - end < num_batches / 3:
        return Steady(window=None, reason="the number of requests in flight did not settle within half of the load")
    width_s = (load.to_s - load.from_s) / num_batches
    first_s = 0.0 if start == 0 else load.from_s + start * width_s
    return Steady(window=Window(from_s=round(first_s, 3), to_s=round(load.to_s - end * width_s, 3)))


def cut(batches: Floats) -> int:
    """How many batches at the start are to be left out by MSER, half of them at most."""
    n = len(batches)
    errors = [float(np.square(batches[d:] - batches[d:].mean()).sum()) / (n - d) ** 2 for d in range(n // 2 + 1)]
    return int(np.argmin(errors))
