"""The search for the highest rate at which objectives hold: bracket by doubling, then bisect on the log of the rate.

A probe of one rate ends in `pass`, `fail` or `unknown` (its load was too short to tell at the confidence that is asked
for). Probes are noisy, so they need not be monotone: the interval spans all rates about which they disagree. Pure: the
next rate is a function of the probes so far, so that a search that broke off goes on where it was.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

Outcome = Literal["pass", "fail", "unknown"]

_GROWTH = 2.0


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
