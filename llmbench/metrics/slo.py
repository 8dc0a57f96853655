"""Service-level objectives: what a user demands of a run, and whether the run has shown it.

`ttft:p99<500ms,tpot:p95<40ms` asks for percentiles of the metrics in `per_request`; `e2el<2s` for every single request,
and `goodput>=95%` for the share of requests that keep all limits of the list.
"""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from llmbench.errors import InputError
from llmbench.metrics import Metric, Trace, order, per_request

FLAG = "--slo"
GOODPUT = "goodput"

Answer = Literal["pass", "fail", "unknown"]

_METRICS: dict[str, Metric[Trace, float | None]] = {metric.name: metric for metric in per_request.METRICS}
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_LIMIT = re.compile(r"(\w+)\s*(?::\s*p([\d.]+))?\s*<=?\s*([\d.]+)\s*([a-z]*)")
_SHARE = re.compile(r"goodput\s*>=?\s*([\d.]+)\s*%")


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """One demand: a percentile of a metric below a limit; with percentile 100 that of every request.

    The metric `goodput` has no limit of its own: so many percent of all requests keep every limit of the list.
    """

    metric: str
    percentile: float
    limit_s: float | None

    def __str__(self) -> str:
        if self.limit_s is None:
            return f"{self.metric}>={self.percentile:g}%"
        percentile = "" if self.percentile == 100 else f":p{self.percentile:g}"
        limit = f"{self.limit_s * 1e3:g}ms" if self.limit_s < 1 else f"{self.limit_s:g}s"
        return f"{self.metric}{percentile}<{limit}"

    def kept_by(self, trace: Trace) -> bool | None:
        """Whether a request keeps the limit; one without an answer does not. None where it has no such time.

        An answer of one token has no TPOT, and a request that was never sent no time at all.
        """
        if self.limit_s is None or trace.sent_ns is None:
            return None
        if trace.status != "answered":
            return False
        value = _METRICS[self.metric].of(trace)
        return None if value is None else value < self.limit_s

    def holds(self, traces: Sequence[Trace]) -> bool | None:
        """Whether it is so in this run, without asking what chance has to do with it; None where there is nothing."""
        each = [found for trace in traces if (found := self.kept_by(trace)) is not None]
        return sum(each) >= len(each) * self.percentile / 100 if each else None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has shown of one objective: of `num` requests `num_over` did not keep it.

    `share` is that of requests that kept it, between `low` and `high` at 95 % each.
    """

    objective: str
    answer: Answer
    num: int
    num_over: int
    share: float | None
    low: float | None
    high: float | None
    remedy: str = ""


def parse(text: str) -> list[Objective]:
    """Objectives from `metric:pNN<limit,...`. Raises InputError that says what is wrong, and what there is."""
    found = [_objective(part.strip()) for part in text.split(",")]
    if any(each.limit_s is None for each in found) and all(each.limit_s is None for each in found):
        raise InputError(f"{FLAG} {text}: goodput is of limits; add some, as in e2el<2s,goodput>=95%")
    return found


def judge(objectives: Sequence[Objective], traces: Sequence[Trace]) -> list[Outcome]:
    """What a run has shown of each. A limit that is only there for goodput is not judged by itself."""
    with_goodput = any(each.limit_s is None for each in objectives)
    return [_judged(each, objectives, traces) for each in objectives if not (with_goodput and _every_request(each))]


def kept(objective: Objective, objectives: Sequence[Objective], traces: Sequence[Trace]) -> list[bool]:
    """Of each request that counts for an objective of a list, in their order: whether it keeps it."""
    if objective.limit_s is None:
        return _keeps_all(objectives, traces)
    return [found for trace in traces if (found := objective.kept_by(trace)) is not None]


def goodput(objectives: Sequence[Objective], traces: Sequence[Trace]) -> float | None:
    """The share of the requests that were sent which keep all limits, as vLLM has it; None when none was sent."""
    each = _keeps_all(objectives, traces)
    return sum(each) / len(each) if each else None


def decide(num: int, num_over: int, percentile: float, confidence: float = order.CONFIDENCE) -> Answer:
    """Whether the p-th percentile is below a limit that `num_over` of `num` requests did not keep.

    It is when so few would be over by chance with probability 1 - confidence at most, were the share of requests over
    the limit 1 - p; it is not when so many would be. That is the test of MLPerf LoadGen's early stopping, both ways,
    for a number of requests that was set before. "Every request" (100) fails with the first one over the limit.
    """
    if percentile >= 100:
        return "fail" if num_over else "pass" if num else "unknown"
    allowed = 1 - percentile / 100
    if num and order.head(num, num_over, allowed) <= 1 - confidence:
        return "pass"
    if num and order.tail(num, num_over, allowed) <= 1 - confidence:
        return "fail"
    return "unknown"


def decide_any_time(num: int, num_over: int, percentile: float, confidence: float = order.CONFIDENCE) -> Answer:
    """The same when one looks again and again, and stops as soon as there is an answer.

    The likelihood of what was seen, averaged over all shares that are possible, over that for a share of 1 - p over the
    limit is a martingale if the latter is true: it passes 1 / (1 - confidence) with probability 1 - confidence at most,
    however often one looks (Ville 1939; Robbins 1970). Beta(num_over + 1, num - num_over + 1) / (q^k (1 - q)^(n - k)).
    """
    if percentile >= 100:
        return "fail" if num_over else "unknown"
    allowed = 1 - percentile / 100
    kept = num - num_over
    mixture = math.lgamma(num_over + 1) + math.lgamma(kept + 1) - math.lgamma(num + 2)
    if mixture - num_over * math.log(allowed) - kept * math.log1p(-allowed) < -math.log(1 - confidence):
        return "unknown"
    return "pass" if num_over < allowed * num else "fail"


def fewest_more(num: int, num_over: int, percentile: float, confidence: float = order.CONFIDENCE) -> int | None:
    """How many more requests within the limit would show that it holds; None when it is not a matter of number."""
    if percentile >= 100:
        return None
    low, high = 0, 1
    while decide(num + high, num_over, percentile, confidence) != "pass":
        low, high = high, high * 2
        if high > 10_000_000:
            return None
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if decide(num + middle, num_over, percentile, confidence) == "pass" else (middle, high)
        )
    return high


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """1 when an objective was not kept, 4 when one cannot be told, else 0."""
    answers = {outcome.answer for outcome in outcomes}
    return 1 if "fail" in answers else 4 if "unknown" in answers else 0


def _objective(text: str) -> Objective:
    share = _SHARE.fullmatch(text)
    if share is not None:
        return Objective(metric=GOODPUT, percentile=_percent(text, share[1]), limit_s=None)
    limit = _LIMIT.fullmatch(text)
    if limit is None:
        raise InputError(
            f"{FLAG} {text}: write METRIC:pNN<LIMIT, as in ttft:p99<500ms, or METRIC<LIMIT for every request"
        )
    name, percentile, number, unit = limit.groups()
    if name not in _METRICS:
        near = difflib.get_close_matches(name, _METRICS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_METRICS)}"
        raise InputError(f"{FLAG} {text}: there is no metric {name}; {hint}")
    if unit not in _UNITS:
        raise InputError(f"{FLAG} {text}: the limit needs a unit: {', '.join(_UNITS)}")
    limit_s = _number(text, number) * _UNITS[unit]
    return Objective(metric=name, percentile=100 if percentile is None else _percent(text, percentile), limit_s=limit_s)


def _percent(text: str, number: str) -> float:
    percent = _number(text, number)
    if not 0 < percent <= 100:
        raise InputError(f"{FLAG} {text}: {number} is not between 0 and 100")
    return percent


def _number(text: str, number: str) -> float:
    try:
        return float(number)
    except ValueError as error:
        raise InputError(f"{FLAG} {text}: {number} is no number") from error


def _every_request(objective: Objective) -> bool:
    return objective.limit_s is not None and objective.percentile == 100


def _keeps_all(objectives: Sequence[Objective], traces: Sequence[Trace]) -> list[bool]:
    """Of each request that was sent, whether it keeps all limits; one without such a time does not break it."""
    return [
        all(each.kept_by(trace) is not False for each in objectives) for trace in traces if trace.sent_ns is not None
    ]


def _judged(objective: Objective, objectives: Sequence[Objective], traces: Sequence[Trace]) -> Outcome:
    each = kept(objective, objectives, traces)
    num, over = len(each), len(each) - sum(each)
    answer = decide(num, over, objective.percentile)
    low, high = share_bounds(num, num - over)
    return Outcome(
        objective=str(objective),
        answer=answer,
        num=num,
        num_over=over,
        share=(num - over) / num if num else None,
        low=low,
        high=high,
        remedy=_remedy(answer, num, over, objective.percentile),
    )


def share_bounds(num: int, kept: int, confidence: float = order.CONFIDENCE) -> tuple[float | None, float | None]:
    """Clopper and Pearson 1934: the shares below and above which `kept` of `num` has probability 1 - confidence."""
    if not num:
        return None, None
    missed = 1 - confidence
    low = 0.0 if kept == 0 else _solve(lambda share: order.tail(num, kept, share) <= missed)
    high = 1.0 if kept == num else _solve(lambda share: order.head(num, kept, share) > missed)
    return low, high


def _solve(below: Callable[[float], bool]) -> float:
    """The share at which a statement that holds for small ones ceases to."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def _remedy(answer: Answer, num: int, over: int, percentile: float) -> str:
    if answer == "pass":
        return ""
    if answer == "fail":
        return "lower --qps, or make the server faster"
    more = fewest_more(num, over, percentile)
    return "too few requests to tell" + (f": send {more} more, if all keep it" if more else "")
