"""Answers that stop for a while: gaps between reads that are far longer than the usual gap of the same answer."""

from collections.abc import Sequence
from statistics import median

import msgspec

from llmbench.metrics import Trace, per_request

TIMES_THE_MEDIAN = 5
FREEZE_S = 0.25
"""From here on a reader sees it."""

_FEWEST_GAPS = 5  # fewer have no usual gap
_FLOOR_S = 0.001  # a "stall" below it is the operating system's


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """One gap of one answer."""

    index: int
    from_ns: int
    gap_s: float


class Stalls(msgspec.Struct, frozen=True, kw_only=True):
    """All stalls of a run, and the share of streamed answers that a reader saw freeze."""

    found: list[Stall]
    num_streams: int
    """Answers of two reads or more."""
    num_frozen: int
    """Of them, those with a gap above FREEZE_S."""


def stalls(traces: Sequence[Trace]) -> Stalls:
    """Gaps longer than 5 times the median gap of their answer (of five gaps or more), and 1 ms at least."""
    found: list[Stall] = []
    streams = frozen = 0
    for trace in traces:
        gaps = per_request.icl.of(trace)
        if not gaps:
            continue
        streams += 1
        longest = max(gaps)
        frozen += longest > FREEZE_S
        if len(gaps) < _FEWEST_GAPS or longest <= _FLOOR_S:
            continue
        limit = max(_FLOOR_S, TIMES_THE_MEDIAN * median(gaps))
        if longest > limit:
            found += [
                Stall(index=trace.index, from_ns=stamp_ns, gap_s=gap)
                for stamp_ns, gap in zip(trace.stamps_ns, gaps, strict=False)
                if gap > limit
            ]
    return Stalls(found=found, num_streams=streams, num_frozen=frozen)
