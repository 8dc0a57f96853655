"""A run in numbers: counts, run metrics, and the distribution of each per-request metric."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from llmbench.metrics import Trace, order, per_request, per_run

PERCENTS = (50, 90, 95, 99)


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Between which values a true percentile lies; None where there are too few values for such a bound."""

    low: float | None
    high: float | None


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """How values are spread. Infinite values (requests without an answer) count in the percentiles, not in the mean.

    Percentiles interpolate linearly between neighbours; one that touches an infinite value is infinite, and so is a
    maximum. JSON has no infinity: there it is null.

    `bounds` has the bounds of each percentile by name ("p99"): the true one lies below `low` in at most 5 % of cases,
    above `high` in at most 5 % (order statistics, see `order`). That holds for values that are independent of each
    other; requests that wait in one queue are less so, and two runs differ by more than the bounds of one say.
    `starred` names the percentiles for which the values are too few: their largest one may well be below the true
    percentile. The median needs 5 values, p90 29, p95 59, p99 299.
    """

    num: int
    num_infinite: int
    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None
    bounds: dict[str, Bounds] = {}
    starred: tuple[str, ...] = ()


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run. Times in seconds; names as declared in `per_run` and `per_request`."""

    num_planned: int
    num_answered: int
    num_failed: int
    num_unfinished: int
    reasons: dict[str, int]
    """Why requests have no answer, the commonest first."""
    num_output_tokens: int
    num_prompt_tokens: int | None
    run: dict[str, float | None]
    requests: dict[str, Distribution]


def summarise(traces: Sequence[Trace]) -> Summary:
    """The summary of all traces of a run."""
    status = Counter(trace.status for trace in traces)
    answered = [trace for trace in traces if trace.status == "answered"]
    prompts = [trace.num_prompt_tokens for trace in answered if trace.num_prompt_tokens is not None]
    distributions = {
        metric.name: distribution(value for trace in traces if (value := metric.of(trace)) is not None)
        for metric in per_request.METRICS
    }
    for metric in per_request.GAPS:
        gaps = [found for trace in traces if (found := metric.of(trace))]
        distributions[metric.name] = distribution((gap for found in gaps for gap in found), num_independent=len(gaps))
    return Summary(
        num_planned=len(traces),
        num_answered=status["answered"],
        num_failed=status["failed"],
        num_unfinished=status["unfinished"],
        reasons=dict(Counter(trace.reason for trace in traces if trace.status != "answered").most_common()),
        num_output_tokens=sum(trace.num_tokens for trace in answered),
        num_prompt_tokens=sum(prompts) if len(prompts) == len(answered) else None,
        run={metric.name: metric.of(traces) for metric in per_run.METRICS},
        requests=distributions,
    )


def distribution(values: Iterable[float], num_independent: int | None = None) -> Distribution:
    """The spread of some values, infinite ones among them or not.

    `num_independent` says that the values are only so many independent ones, the gaps of so many answers for example:
    the bounds are those of that number.
    """
    ordered = sorted(values)
    finite = [value for value in ordered if math.isfinite(value)]
    bounds = {f"p{percent}": bound(ordered, percent, num_independent) for percent in PERCENTS if ordered}
    return Distribution(
        num=len(ordered),
        num_infinite=len(ordered) - len(finite),
        mean=math.fsum(finite) / len(finite) if finite else None,
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        max=ordered[-1] if ordered else None,
        bounds=bounds,
        starred=tuple(name for name, found in bounds.items() if found.high is None),
    )


def bound(ordered: Sequence[float], percent: float, num_independent: int | None = None) -> Bounds:
    """The 95 % bounds of a percentile, from below and from above, of ascending values."""
    independent = min(num_independent or len(ordered), len(ordered))
    low, high = order.ranks(independent, percent)
    num = len(ordered)  # places are whole numbers: in floats the last one may come out behind the end
    return Bounds(
        low=None if low is None else ordered[-(-(low - 1) * num // independent)],
        high=None if high is None else ordered[-(-high * num // independent) - 1],
    )


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Linear interpolation at (n - 1) * percent / 100 in ascending values; None when there are none."""
    if not ordered:
        return None
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    share = position - low
    if share == 0 or ordered[low] == ordered[low + 1]:
        return ordered[low]
    if math.isinf(ordered[low + 1]):
        return math.inf
    return ordered[low] * (1 - share) + ordered[low + 1] * share
