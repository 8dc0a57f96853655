"""Two builds by their repeated runs: by how much each metric got worse, how sure that is, and what follows.

The unit of replication is the run: requests of one run share its machine, its moment and its queue, so that many of
them say little about the next run. All is done on logarithms: an effect is log(B / A), turned so that worse is
positive, and held against log(1 + delta), the least change that matters.

Three verdicts. Regression: that the effect is delta or less is rejected. No regression: that it is delta or more is
rejected. Inconclusive: neither, more runs are needed. A regression of one among several primary metrics must hold after
Holm's correction (1979); that nothing regressed must hold for each of them, which needs none.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from llmbench.errors import InvalidMeasurement
from llmbench.metrics.compare import effects
from llmbench.metrics.compare.effects import Measured, Settings

Verdict = Literal["regression", "no regression", "inconclusive"]
Better = Literal["lower", "higher"]
EXIT: dict[Verdict, int] = {"no regression": 0, "regression": 1, "inconclusive": 4}

_MOST_MORE = 100


class Primary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A metric that decides: its name, which way is better, and the least change that matters, as a share."""

    metric: str
    better: Better
    delta: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.delta < 1:
            raise ValueError(f"delta: a share from 0 to below 1, got {self.delta}")

    @property
    def sign(self) -> int:
        """1 when more is worse."""
        return 1 if self.better == "lower" else -1

    @property
    def limit(self) -> float:
        """log(1 + delta): a time longer by delta, or a rate of 1 / (1 + delta)."""
        return math.log1p(self.delta)


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """One metric on both sides. `a` and `b` are geometric means over runs; `change` is b / a - 1, `low` and `high` its
    bounds, each one-sided at `level`; None where there is no such number."""

    metric: str
    better: Better
    delta: float
    num_a: int
    num_b: int
    a: float | None
    b: float | None
    change: float | None
    low: float | None
    high: float | None
    level: float
    method: str
    p_worse: float | None
    """How probable effects like this are, if the truth is delta; small when it is worse. After Holm's correction."""
    p_fine: float | None
    """The same; small when it is not as bad as delta."""
    verdict: Verdict
    num_more: int | None
    """How many more runs on each side would decide, if they were like these; None when decided, or beyond 100."""
    improved: bool
    """Better by more than delta."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What all metrics say together; `method` "threshold" where a side has one run only, and nothing can be sure."""

    verdict: Verdict
    effects: tuple[Effect, ...]
    method: Literal["runs", "threshold"]

    @property
    def num_more(self) -> int | None:
        """How many more runs on each side would decide them all; None without such a number."""
        needed = [each.num_more for each in self.effects if each.verdict == "inconclusive"]
        known = [number for number in needed if number is not None]
        return max(known) if known and len(known) == len(needed) else None


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A primary metric, measured on both sides."""

    primary: Primary
    a: Measured
    b: Measured


def compare(
    pairs: Sequence[Pair],
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    *,
    level: float | None = None,
    paired: bool = False,
    band: float = 0.0,
) -> Comparison:
    """Compare side B with side A in all primary metrics.

    `level` is what this look may spend of alpha (`looks`), all of it by default. `paired`: the i-th run of A was made
    beside the i-th of B, with the same plan. `band` is the standard deviation of log(B / A) between sessions of one
    build, for sides that were not measured together. With one run on a side the change itself is held against delta.

    Raises InvalidMeasurement for values of which there are no ratios.
    """
    for pair in pairs:
        _check(pair)
    if any(min(len(pair.a.values), len(pair.b.values)) < 2 for pair in pairs):
        judged = tuple(_threshold(pair) for pair in pairs)
        return Comparison(verdict=overall(judged), effects=judged, method="threshold")
    level = settings.alpha if level is None else level
    found = [
        None if _lost(pair) else effects.estimate(pair.a, pair.b, pair.primary.sign, paired, band, settings)
        for pair in pairs
    ]
    raw = [1.0 if each is None else each.p_above(pair.primary.limit) for each, pair in zip(found, pairs, strict=True)]
    judged = tuple(
        _without_answers(pair, level) if each is None else _effect(pair, each, p, level)
        for pair, each, p in zip(pairs, found, holm(raw), strict=True)
    )
    return Comparison(verdict=overall(judged), effects=judged, method="runs")


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, in the order given (Holm 1979): the k-th smallest times n - k + 1, never
    below a smaller one's, at most 1."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = highest
    return adjusted


def overall(judged: Sequence[Effect]) -> Verdict:
    """A regression of any; else no regression when each says so."""
    verdicts = {each.verdict for each in judged}
    if "regression" in verdicts:
        return "regression"
    return "no regression" if verdicts == {"no regression"} else "inconclusive"


def _check(pair: Pair) -> None:
    for side, measured in (("A", pair.a), ("B", pair.b)):
        for number, value in enumerate(measured.values, 1):
            if math.isnan(value) or value <= 0:
                raise InvalidMeasurement(
                    f"{pair.primary.metric}: {value:g} in run {number} of {side} gives no ratio; leave the metric out"
                )


def _lost(pair: Pair) -> bool:
    """Whether requests without an answer made the metric infinite."""
    return any(math.isinf(value) for measured in (pair.a, pair.b) for value in measured.values)


def _effect(pair: Pair, found: effects.Estimate, p_worse: float, level: float) -> Effect:
    primary = pair.primary
    p_fine = found.p_below(primary.limit)
    low, high = found.bounds(level)
    verdict: Verdict = "regression" if p_worse <= level else "no regression" if p_fine <= level else "inconclusive"
    return Effect(
        metric=primary.metric,
        better=primary.better,
        delta=primary.delta,
        num_a=len(pair.a.values),
        num_b=len(pair.b.values),
        a=_mean(pair.a),
        b=_mean(pair.b),
        change=_change(found.effect, primary.sign),
        low=_change(low if primary.sign > 0 else high, primary.sign),
        high=_change(high if primary.sign > 0 else low, primary.sign),
        level=level,
        method=found.method,
        p_worse=p_worse,
        p_fine=p_fine,
        verdict=verdict,
        num_more=found.num_more(primary.limit, level, _MOST_MORE) if verdict == "inconclusive" else None,
        improved=high < -primary.limit,
    )


def _without_answers(pair: Pair, level: float) -> Effect:
    """Where requests were lost on one side only, that side is the worse one."""
    lost_a, lost_b = (any(math.isinf(value) for value in side.values) for side in (pair.a, pair.b))
    verdict: Verdict = "inconclusive" if lost_a and lost_b else "regression" if lost_b else "no regression"
    return _bare(pair, verdict, "infinite: requests without an answer", level, improved=lost_a and not lost_b)


def _threshold(pair: Pair) -> Effect:
    """One run on a side: the change of the geometric means against delta, whatever chance has to do with it."""
    if _lost(pair):
        return _without_answers(pair, 0.0)
    a, b = _mean(pair.a), _mean(pair.b)
    effect = pair.primary.sign * math.log(b / a)
    verdict: Verdict = "regression" if effect > pair.primary.limit else "no regression"
    change = _change(effect, pair.primary.sign)
    return _bare(pair, verdict, "threshold", 0.0, a=a, b=b, change=change, improved=effect < -pair.primary.limit)


def _bare(
    pair: Pair,
    verdict: Verdict,
    method: str,
    level: float,
    *,
    a: float | None = None,
    b: float | None = None,
    change: float | None = None,
    improved: bool = False,
) -> Effect:
    """An effect without statistics."""
    return Effect(
        metric=pair.primary.metric,
        better=pair.primary.better,
        delta=pair.primary.delta,
        num_a=len(pair.a.values),
        num_b=len(pair.b.values),
        a=a,
        b=b,
        change=change,
        low=None,
        high=None,
        level=level,
        method=method,
        p_worse=None,
        p_fine=None,
        verdict=verdict,
        num_more=None,
        improved=improved,
    )


def _mean(measured: Measured) -> float:
    """The geometric mean over runs."""
    return math.exp(float(np.log(measured.values).mean()))


def _change(effect: float, sign: int) -> float:
    return math.expm1(sign * effect)
