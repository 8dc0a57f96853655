"""How many are right: over all, by category, by group, with intervals."""

import math
from collections.abc import Iterable, Sequence

import msgspec

from llmbench.evals import NO_ANSWER, Marked

Z_95 = 1.959963984540054  # the 97.5 % point of the normal distribution


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Of so many items so many are right."""

    name: str
    num_items: int
    num_right: int
    accuracy: float
    low: float
    high: float
    """Wilson's 95 % interval of the accuracy, items taken as independent."""


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a run. Shares are from 0 to 1; None where nothing was marked right or wrong.

    `micro` counts every item alike, `macro` every group. `metrics` are the means of the set's further numbers.
    `shots` counts the items by how many shots their prompts had.
    """

    num_items: int
    """Planned."""
    num_marked: int
    num_unanswered: int
    """Not answered by the model at all, so not counted; there must be none."""
    num_without_answer: int
    """Answered, but no answer could be read from it: these count as wrong."""
    micro: Tally | None
    macro: float | None
    categories: list[Tally]
    groups: list[Tally]
    metrics: dict[str, float]
    shots: dict[int, int]


def results(marked: Sequence[Marked], num_items: int) -> Results:
    """The numbers of the items that were marked, of so many that were planned."""
    judged = [one for one in marked if one.correct is not None]
    groups = _by((one.group, one) for one in judged)
    return Results(
        num_items=num_items,
        num_marked=len(marked),
        num_unanswered=num_items - len(marked),
        num_without_answer=sum(one.predicted == NO_ANSWER for one in judged),
        micro=tally("all", judged) if judged else None,
        macro=math.fsum(one.accuracy for one in groups) / len(groups) if groups else None,
        categories=_by((one.category, one) for one in judged),
        groups=groups,
        metrics=_means(marked),
        shots=_counted(marked),
    )


def tally(name: str, marked: Sequence[Marked]) -> Tally:
    """How many of these are right."""
    right = sum(one.correct is True for one in marked)
    low, high = wilson(right, len(marked))
    accuracy = right / len(marked)
    return Tally(name=name, num_items=len(marked), num_right=right, accuracy=accuracy, low=low, high=high)


def wilson(right: int, number: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's (1927) interval: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    share, square = right / number, z * z
    middle = share + square / (2 * number)
    half = z * math.sqrt(share * (1 - share) / number + square / (4 * number * number))
    scale = 1 + square / number
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _by(named: Iterable[tuple[str, Marked]]) -> list[Tally]:
    """Tallies by name, in the order of the names."""
    parts: dict[str, list[Marked]] = {}
    for name, one in named:
        parts.setdefault(name, []).append(one)
    return [tally(name, parts[name]) for name in sorted(parts)]


def _means(marked: Sequence[Marked]) -> dict[str, float]:
    names = marked[0].metrics if marked else ()
    return {name: math.fsum(one.metrics[name] for one in marked) / len(marked) for name in names}


def _counted(marked: Sequence[Marked]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for one in marked:
        counts[one.shots] = counts.get(one.shots, 0) + 1
    return dict(sorted(counts.items(), reverse=True))
