"""When to look at a comparison that grows run by run, and what each look may spend of the errors allowed in all.

By the look after n of N runs, alpha (n / N)^2 is spent (the power family of Kim and DeMets, 1987): little early, when a
lucky few could decide. Each look tests at what it adds; the sum of the errors is at most alpha whatever the looks have
in common (Bonferroni's inequality), so that no assumption about how the figures grow is needed.
"""

from collections.abc import Iterator

import msgspec

_POWER = 2.0
FEWEST = 3


class Look(msgspec.Struct, frozen=True):
    """After so many runs on each side, test at this level."""

    num_runs: int
    level: float


def looks(most: int, alpha: float) -> Iterator[Look]:
    """The looks of an experiment with `most` runs on each side at most: after 3, 4, 5, 6, 7, 8, 10, 12, …, `most`."""
    spent = 0.0
    for num_runs in _sizes(most):
        total = alpha * (num_runs / most) ** _POWER
        yield Look(num_runs, total - spent)
        spent = total


def _sizes(most: int) -> Iterator[int]:
    size = min(FEWEST, most)
    while size < most:
        yield size
        size = min(most, max(size + 1, size * 5 // 4))
    yield most
