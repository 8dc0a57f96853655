"""Two runs of the same questions, item by item: what flipped, and whether the new one is worse.

Definitions of accuracy-methods section 2. With N items, of which b were right before and are wrong now and c the other
way: difference = (c - b) / N, standard error = sqrt(b + c - (b - c)^2 / N) / N, McNemar's exact test is two-sided on
binomial(b; b + c, 1/2). Runs are the same when no answer is another one. The new run is not worse when the lower
one-sided 95 % bound of the difference is above minus the margin: both Tango's (1998) score bound, for which items are
independent, and the bootstrap's over whole subjects, for which they need not be.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.errors import InvalidMeasurement
from llmbench.evals import Marked
from llmbench.exam.journal import Header

Float64 = npt.NDArray[np.float64]
Verdict = Literal["the same answers", "not worse", "worse", "inconclusive"]
EXIT: dict[Verdict, int] = {"the same answers": 0, "not worse": 0, "worse": 1, "inconclusive": 4}

Z_95 = 1.6448536269514722  # the 95 % point of the normal distribution
SIGNIFICANT = 0.05
NUM_RESAMPLES = 10_000


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """An item that was right in one run and wrong in the other."""

    id: str
    group: str
    truth: str
    base: str
    new: str
    lost: bool
    """Right before, wrong now."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What two runs say together; shares are from 0 to 1, `difference` is new minus base."""

    verdict: Verdict
    base: Header
    new: Header
    num_items: int
    num_groups: int
    base_accuracy: float
    new_accuracy: float
    difference: float
    standard_error: float
    lower_bound: float
    """Tango's, one-sided 95 %."""
    clustered_lower_bound: float | None
    """The bootstrap's over subjects; None with fewer than two."""
    clustered_interval: tuple[float, float] | None
    """The same bootstrap's two-sided 95 % interval."""
    margin: float
    p_value: float
    num_lost: int
    num_gained: int
    flip_rate: float
    num_changed: int
    """Answers that are others now, right or wrong."""
    flips: list[Flip]


Run = tuple[Header, Sequence[Marked]]


def compare(base: Run, new: Run, margin: float = 0.01, seed: int = 0) -> Comparison:
    """Compare two runs. Raises InvalidMeasurement unless both asked the same, and both asked all of it."""
    pairs = _pairs(base, new)
    number = len(pairs)
    changed = sum(old.predicted != now.predicted for old, now in pairs)
    lost = [(old, now) for old, now in pairs if old.correct and not now.correct]
    gained = [(old, now) for old, now in pairs if now.correct and not old.correct]
    changes, sizes = _by_group(pairs)
    difference = (len(gained) - len(lost)) / number
    lower = tango_bound(len(lost), len(gained), number)
    clustered = Bootstrap(changes, sizes, seed) if len(sizes) > 1 else None
    clustered_lower = clustered.quantile(0.05) if clustered else None
    p_value = mcnemar(len(lost), len(gained))
    bound = lower if clustered_lower is None else min(lower, clustered_lower)
    return Comparison(
        verdict=_verdict(bound, margin, difference, p_value) if changed else "the same answers",
        base=base[0],
        new=new[0],
        num_items=number,
        num_groups=len(sizes),
        base_accuracy=sum(old.correct is True for old, _ in pairs) / number,
        new_accuracy=sum(now.correct is True for _, now in pairs) / number,
        difference=difference,
        standard_error=standard_error(len(lost), len(gained), number),
        lower_bound=lower,
        clustered_lower_bound=clustered_lower,
        clustered_interval=(clustered.quantile(0.025), clustered.quantile(0.975)) if clustered else None,
        margin=margin,
        p_value=p_value,
        num_lost=len(lost),
        num_gained=len(gained),
        flip_rate=(len(lost) + len(gained)) / number,
        num_changed=changed,
        flips=[_flip(old, now) for old, now in sorted(lost + gained, key=lambda pair: pair[0].number)],
    )


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact two-sided p-value: 2 P(X <= min(b, c)), X ~ binomial(b + c, 1/2), at most 1."""
    number, fewer = lost + gained, min(lost, gained)
    tail = sum(math.comb(number, i) for i in range(fewer + 1))
    return min(1.0, math.exp(math.log(2 * tail) - number * math.log(2)))  # the integers may pass any float


def standard_error(lost: int, gained: int, number: int) -> float:
    """sqrt(b + c - (b - c)^2 / N) / N."""
    return math.sqrt(lost + gained - (lost - gained) ** 2 / number) / number


def tango_bound(lost: int, gained: int, number: int, z: float = Z_95) -> float:
    """The lower bound of (c - b) / N by Tango's score test (1998, Statistics in Medicine 17:891): where T(d) is z.

    T(d) = (c - b - N d) / sqrt(N (2 q + d (1 - d))), q the likeliest share of lost items when the difference is d.
    Unlike the bound from the standard error it is below 0 when nothing flipped: -z^2 / (N + z^2).
    """
    low, high = -1.0, (gained - lost) / number
    for _ in range(100):  # T falls with d
        middle = (low + high) / 2
        low, high = (middle, high) if _tango(middle, lost, gained, number) > z else (low, middle)
    return low


def _tango(d: float, lost: int, gained: int, number: int) -> float:
    """T(d). q is the larger root of 2N q^2 + B q - b d (1 - d) = 0 with B = (2N + b - c) d - b - c."""
    linear = (2 * number + lost - gained) * d - lost - gained
    constant = -lost * d * (1 - d)
    share_lost = (math.sqrt(max(linear**2 - 8 * number * constant, 0.0)) - linear) / (4 * number)
    variance = number * (2 * share_lost + d * (1 - d))
    return (gained - lost - number * d) / math.sqrt(variance) if variance > 0 else math.inf


class Bootstrap:
    """Differences of whole groups drawn again with replacement (BCa, Efron 1987), the pairs kept together."""

    def __init__(self, changes: Float64, sizes: Float64, seed: int, num_resamples: int = NUM_RESAMPLES) -> None:
        """`changes` is gained minus lost of each group, `sizes` its number of items."""
        number = len(sizes)
        self._observed = float(changes.sum() / sizes.sum())
        weights = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=num_resamples)
        self._drawn = np.sort((weights @ changes) / (weights @ sizes))
        left_out = (changes.sum() - changes) / (sizes.sum() - sizes)
        deviations = left_out.mean() - left_out
        spread = float((deviations**2).sum())
        self._acceleration = float((deviations**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0

    def quantile(self, share: float) -> float:
        """The end of the BCa interval below which `share` of the distribution lies."""
        from scipy.special import ndtr, ndtri

        if self._drawn[0] == self._drawn[-1]:
            return self._observed
        below = float((self._drawn < self._observed).mean() + (self._drawn == self._observed).mean() / 2)
        bias = float(ndtri(min(max(below, 1e-9), 1 - 1e-9)))
        shifted = bias + float(ndtri(share))
        adjusted = float(ndtr(bias + shifted / (1 - self._acceleration * shifted)))
        return float(np.quantile(self._drawn, adjusted))


def _verdict(bound: float, margin: float, difference: float, p_value: float) -> Verdict:
    """Not worse by the margin; worse, when significantly so; else more questions are needed."""
    if bound > -margin:
        return "not worse"
    return "worse" if difference < 0 and p_value < SIGNIFICANT else "inconclusive"


def _pairs(base: Run, new: Run) -> list[tuple[Marked, Marked]]:
    """The items of both runs side by side. Raises InvalidMeasurement when they are not the same."""
    (base_header, base_items), (new_header, new_items) = base, new
    if base_header.protocol != new_header.protocol:
        raise InvalidMeasurement(f"other protocols: {base_header.protocol} before, {new_header.protocol} now")
    for header, items in (base, new):
        if len({one.id for one in items}) != header.num_items:
            raise InvalidMeasurement(
                f"{len(items)} of {header.num_items} questions were answered: finish with --resume"
            )
    theirs = {one.id: one for one in new_items}
    for one in base_items:
        if (
            one.id not in theirs
            or theirs[one.id].prompt_sha256 != one.prompt_sha256
            or one.truth != theirs[one.id].truth
        ):
            raise InvalidMeasurement(f"{one.id}: not the same question in both runs; other data, or other shots fitted")
        if one.correct is None or theirs[one.id].correct is None:
            raise InvalidMeasurement(f"{one.id}: was not marked right or wrong")
    if len(theirs) != len(base_items):
        raise InvalidMeasurement(f"{len(base_items)} questions before, {len(theirs)} now")
    return [(one, theirs[one.id]) for one in sorted(base_items, key=lambda one: one.number)]


def _by_group(pairs: Sequence[tuple[Marked, Marked]]) -> tuple[Float64, Float64]:
    """Of each group gained minus lost, and its number of items."""
    changes: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for old, now in pairs:
        changes[old.group] = changes.get(old.group, 0) + (now.correct is True) - (old.correct is True)
        sizes[old.group] = sizes.get(old.group, 0) + 1
    names = sorted(sizes)
    return np.array([changes[name] for name in names], np.float64), np.array(
        [sizes[name] for name in names], np.float64
    )


def _flip(old: Marked, now: Marked) -> Flip:
    return Flip(
        id=old.id, group=old.group, truth=old.truth, base=old.predicted, new=now.predicted, lost=old.correct is True
    )
