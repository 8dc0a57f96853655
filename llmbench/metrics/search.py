"""The search for the highest rate at which objectives hold: bracket by doubling, then bisect on the log of the rate.

A probe of one rate ends in `pass`, `fail` or `unknown` (its load was too short to tell at the confidence that is asked
for). Probes are noisy, so they need not be monotone: the interval spans all rates about which they disagree. Pure: the
next rate is a function of the probes so far, so that a search that broke off goes on where it was.
"""

import math
from collections.abc import Sequence
from statistics import fmean, variance
from typing import Literal, TypeVar

import msgspec

from llmbench.metrics import Trace, slo

Timed = TypeVar("Timed", bound=Trace)
Outcome = Literal["pass", "fail", "unknown"]

WARM_SHARE = 0.1
"""Of a round: the requests due in it meet a server that fills up, and are left out."""

_GROWTH = 2.0
_BLOCKS = 20


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One rate, requests per second, and whether the objectives held at it."""

    rate: float
    outcome: Outcome


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """Where the highest sustained rate lies; None where no probe bounds it."""

    low: float | None
    """The highest rate that passed below every one that failed."""
    high: float | None
    """The lowest rate that failed above every one that passed."""

    @property
    def ratio(self) -> float:
        """high / low; infinite while one of them is open."""
        return self.high / self.low if self.low and self.high else math.inf


def interval(probes: Sequence[Probe]) -> Interval:
    """The bounds that the probes give."""
    passed = [probe.rate for probe in probes if probe.outcome == "pass"]
    failed = [probe.rate for probe in probes if probe.outcome == "fail"]
    return Interval(
        low=max((rate for rate in passed if rate < min(failed, default=math.inf)), default=None),
        high=min((rate for rate in failed if rate > max(passed, default=0.0)), default=None),
    )


def next_rate(
    probes: Sequence[Probe], start: float, precision: float, lowest: float = 0.0, highest: float = math.inf
) -> float | None:
    """The rate to probe next; None when the interval is as narrow as `precision` (0.05: 5 %), or cannot be narrowed.

    Rates stay within `lowest` and `highest`. Rates whose outcome is unknown are near the edge: the search goes on at
    both sides of them, and ends when they alone lie between the bounds.
    """
    if not probes:
        return min(max(start, lowest), highest)
    found = interval(probes)
    if found.low is None or found.high is None:
        return _outward(probes, found, lowest, highest)
    inside = sorted({probe.rate for probe in probes if found.low < probe.rate < found.high})
    edges = [found.low, *inside, found.high]
    gaps = [(high / low, low, high) for low, high in ((edges[0], edges[1]), (edges[-2], edges[-1]))]
    widest, low, high = max(gaps)
    return None if widest <= 1 + precision else math.sqrt(low * high)


def _outward(probes: Sequence[Probe], found: Interval, lowest: float, highest: float) -> float | None:
    """The next rate while one side is open: twice the highest, or half the lowest, that was probed."""
    rates = [probe.rate for probe in probes]
    if found.high is None and (found.low is not None or not any(probe.outcome == "fail" for probe in probes)):
        return None if max(rates) >= highest else min(max(rates) * _GROWTH, highest)
    return None if min(rates) <= lowest or min(rates) <= 0 else max(min(rates) / _GROWTH, lowest)


def settled(traces: Sequence[Timed]) -> list[Timed]:
    """The requests of one round in the order they were due, without those of its first tenth, which met a server that
    was filling up."""
    ordered = sorted(traces, key=lambda trace: trace.due_ns)
    if not ordered:
        return []
    from_ns = ordered[0].due_ns + WARM_SHARE * (ordered[-1].due_ns - ordered[0].due_ns)
    return [trace for trace in ordered if trace.due_ns >= from_ns]


def answer(
    objectives: Sequence[slo.Objective], rounds: Sequence[Sequence[Trace]], looks: int, confidence: float
) -> Outcome:
    """Whether all objectives hold, from all rounds so far at one rate.

    One is looked at after every round, `looks` times at most, so that each look is at confidence
    1 - (1 - confidence) / looks (Bonferroni). Requests that are slow together count as fewer: see `design_effect`.
    """
    each = 1 - (1 - confidence) / looks
    answers = [_decided(objective, objectives, rounds, each) for objective in objectives]
    return "fail" if "fail" in answers else "unknown" if "unknown" in answers else "pass"


def design_effect(kept: Sequence[bool]) -> float:
    """By how much requests that come in order are slow together: they tell as much as 1/effect of them would.

    The variance of the share that kept the limit in 20 blocks of neighbours, over that of independent requests,
    p (1 - p) / m for blocks of m; 1 at least (Kish 1965). 1 where all or none kept it.
    """
    size = len(kept) // _BLOCKS
    if size < 2:
        return 1.0
    shares = [fmean(kept[block * size : (block + 1) * size]) for block in range(_BLOCKS)]
    p = fmean(shares)
    return max(1.0, variance(shares) * size / (p * (1 - p))) if 0 < p < 1 else 1.0


def fewest(objectives: Sequence[slo.Objective], looks: int, confidence: float) -> int:
    """How many requests can show in one look that all objectives hold, if every one of them keeps the limits."""
    each = 1 - (1 - confidence) / looks
    return max(slo.fewest_more(0, 0, objective.percentile, each) or 1 for objective in objectives)


def _decided(
    objective: slo.Objective,
    objectives: Sequence[slo.Objective],
    rounds: Sequence[Sequence[Trace]],
    confidence: float,
) -> slo.Answer:
    kept = [slo.kept(objective, objectives, traces) for traces in rounds]
    num = sum(len(each) for each in kept)
    over = num - sum(sum(each) for each in kept)
    if not num:
        return "unknown"
    effect = sum(design_effect(each) * len(each) for each in kept) / num
    return slo.decide(round(num / effect), round(over / effect), objective.percentile, confidence)
