"""Whether instants come from the process that was declared: the process is taken out of them, the rest is tested.

What is left (`unit_gaps` of an arrival process) must be independent exponential numbers of mean 1. Four questions are
put to them: is their mean 1 (the rate), is their distribution exponential (Kolmogorov-Smirnov), does a gap not depend
on the one before (lag-1 autocorrelation), and are the counts in windows as even as chance makes them (index of
dispersion, which alone sees streams that run in step). Each is answered wrongly for one true process in 10,000.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import NDArray

WINDOWS_S = (0.1, 1.0, 5.0, 30.0)  # the first for runs of some seconds at 50 requests per second and more
FEWEST = 50  # gaps; below it the limits are too wide to contradict anything

_ALPHA = 1e-4  # of each test, both sides together
_SIGMA = NormalDist().inv_cdf(1 - _ALPHA / 2)
_FEWEST_WINDOWS = 10
_FEWEST_IN_A_WINDOW = 5  # on average; below it the chi-square distribution is not that of the dispersion
# What sending itself may change without being called another process. Lateness up to 2 ms is not held against a
# client, so a gap may be off by 2 ms either way.
_JITTER_S = 0.002
_RATE_SLACK = 0.02
_SHARE_SLACK = 0.02
_DISPERSION_SLACK = 0.1

Floats = NDArray[np.float64]
UnitGaps = Callable[[Floats], Floats | None]


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan says of its requests: when those are due that arrive by the process, and the process."""

    unit_gaps: UnitGaps
    due_s: Mapping[int, float]
    """By index; turns that wait for an answer are left out."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One statistic and the band in which it lies for the declared process; `ok` None where it cannot be tested."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    ok: bool | None

    @property
    def strain(self) -> float:
        """How far from the middle of the band, 1 at its ends; 0 where it cannot be tested."""
        if self.ok is None or self.value is None or self.low is None or self.high is None:
            return 0.0
        return abs(2 * self.value - self.low - self.high) / (self.high - self.low)


def examine(unit_gaps: Floats, rate: float, slack: float = 0.0) -> list[Finding]:
    """All tests of gaps with the process taken out, `rate` being its mean number of requests per second.

    `slack` is the share of gaps that sending may have moved: 0 for a plan, which must be exact.
    """
    loose = slack > 0
    return [
        _mean(unit_gaps, _RATE_SLACK + slack / 4 if loose else 0.0),
        _distribution(unit_gaps, slack + _SHARE_SLACK if loose else 0.0),
        _autocorrelation(unit_gaps, 0.75 * slack**2 + _SHARE_SLACK if loose else 0.0),
        *(
            _dispersion(unit_gaps, window_s, rate, _DISPERSION_SLACK + slack / 4 if loose else 0.0)
            for window_s in WINDOWS_S
        ),
    ]


def examine_sent(declared: Declaration, sent_s: Mapping[int, float]) -> list[Finding]:
    """All tests of the instants at which the declared requests were really sent, in seconds from the start."""
    due = np.array(sorted(declared.due_s[index] for index in sent_s if index in declared.due_s))
    sent = np.array(sorted(instant for index, instant in sent_s.items() if index in declared.due_s))
    gaps = declared.unit_gaps(sent) if len(sent) > FEWEST else None
    if gaps is None or not sent[-1] > 0:
        return []
    rate = mean_rate(gaps, sent)
    # one stall is one gap that the process never makes: it must not outweigh thousands of others
    gaps = np.minimum(gaps, math.log(len(gaps) / _ALPHA))
    return examine(gaps, rate, close_gaps(due, 2 * _JITTER_S))


def mean_rate(unit_gaps: Floats, instants_s: Floats) -> float:
    """Requests per second that the process offers on average over these instants."""
    return float(unit_gaps.sum() / (instants_s[-1] - (instants_s[0] if len(unit_gaps) < len(instants_s) else 0.0)))


def close_gaps(due_s: Floats, width_s: float) -> float:
    """The largest share of gaps within `width_s` of each other: how far an error of that size can move their shares."""
    gaps = np.sort(np.diff(due_s))
    if not len(gaps):
        return 1.0
    return float((np.searchsorted(gaps, gaps + width_s, side="right") - np.arange(len(gaps))).max() / len(gaps))


def ks_distance(uniform: Floats) -> float:
    """Largest distance between the distribution function of numbers and that of the uniform ones on 0..1."""
    ordered, n = np.sort(uniform), len(uniform)
    above = np.arange(1, n + 1) / n - ordered
    return float(max(above.max(), (1 / n - above).max()))


def ks_limit(n: int, alpha: float = _ALPHA) -> float:
    """The distance that n numbers of the right distribution pass with probability alpha.

    sqrt(-log(alpha / 2) / 2) / (sqrt(n) + 0.12 + 0.11 / sqrt(n)): Kolmogorov's series for small alpha, Stephens 1970.
    """
    return math.sqrt(-math.log(alpha / 2) / 2) / (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))


def lag_one(values: Floats) -> float:
    """Correlation of each value with the one before."""
    centred = values - values.mean()
    return float(centred[1:] @ centred[:-1] / (centred @ centred))


def dispersion(counts: Floats) -> float:
    """Variance over mean of counts, 1 for a Poisson process whatever its rate."""
    return float(counts.var(ddof=1) / counts.mean())


def chi_square_quantile(p: float, degrees: int) -> float:
    """Wilson and Hilferty 1931: within 1.5 % for 9 degrees and more; lower (so wider) far below the mean."""
    spread = 2 / (9 * degrees)
    return degrees * max(0.0, 1 - spread + NormalDist().inv_cdf(p) * math.sqrt(spread)) ** 3


def window_counts(instants: Floats, width: float) -> Floats:
    """How many instants are in each whole window before the last instant."""
    whole = int(instants[-1] / width)
    return np.bincount((instants / width).astype(np.int64), minlength=whole)[:whole].astype(np.float64)


def _mean(gaps: Floats, slack: float) -> Finding:
    """Mean gap over the declared one; the mean of n exponential numbers is a chi-square of 2n over 2n."""
    n = len(gaps)
    low, high = (chi_square_quantile(p, 2 * n) / (2 * n) for p in (_ALPHA / 2, 1 - _ALPHA / 2))
    return _finding("mean gap / declared", float(gaps.mean()), low - slack, high + slack, n >= FEWEST)


def _distribution(gaps: Floats, slack: float) -> Finding:
    n = len(gaps)
    return _finding("KS distance of the gaps", ks_distance(-np.expm1(-gaps)), 0.0, ks_limit(n) + slack, n >= FEWEST)


def _autocorrelation(gaps: Floats, slack: float) -> Finding:
    """Of the gaps' places in their distribution: bounded numbers, so that the limit of 1/sqrt(n) holds early."""
    limit = _SIGMA / math.sqrt(len(gaps)) + slack
    places = -np.expm1(-gaps)
    value = lag_one(places) if np.ptp(places) > 0 else 1.0
    return _finding("lag-1 autocorrelation", value, -limit, limit, len(gaps) >= FEWEST)


def _dispersion(gaps: Floats, window_s: float, rate: float, slack: float) -> Finding:
    """Of counts in windows of the process's own time, in which it is a Poisson process of rate 1."""
    name = f"index of dispersion, {window_s:g} s"
    counts = window_counts(np.cumsum(gaps), window_s * rate)
    if len(counts) < _FEWEST_WINDOWS or counts.mean() < _FEWEST_IN_A_WINDOW:
        value = dispersion(counts) if len(counts) > 1 and counts.any() else None
        return Finding(name=name, value=value, low=None, high=None, ok=None)
    degrees = len(counts) - 1
    low, high = (chi_square_quantile(p, degrees) / degrees for p in (_ALPHA / 2, 1 - _ALPHA / 2))
    return _finding(name, dispersion(counts), low / (1 + slack), high * (1 + slack), True)


def _finding(name: str, value: float, low: float, high: float, enough: bool) -> Finding:
    return Finding(name=name, value=value, low=low, high=high, ok=low <= value <= high if enough else None)


def contradictions(findings: Sequence[Finding]) -> list[Finding]:
    """Those that lie outside of their band."""
    return [finding for finding in findings if finding.ok is False]
