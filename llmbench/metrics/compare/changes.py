"""Where a series of builds changed for good: circular binary segmentation (Olshen et al. 2004).

Of all stretches of the series the one is taken whose mean is furthest from that of the rest, by
(m_in - m_out)^2 k (n - k) / n. Its ends are changes when at most a share `ALPHA` of the shuffled series has a stretch
as far off, and both means differ by delta or more; then the parts are looked at in turn. A stretch that begins or ends
with the series has one end only: the usual single cut.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec
import numpy as np

from llmbench.metrics.compare.effects import Float64, Intp

ALPHA = 0.01
NUM_SHUFFLES = 999
FEWEST = 3
"""Versions in a part: of two nobody knows how much they scatter."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """From `index` on values are others: their geometric mean over that of the part before, minus 1."""

    index: int
    change: float
    p: float
    """The share of shuffled series in which chance did as much."""


def changes(values: Sequence[float], delta: float, seed: int = 0) -> list[Change]:
    """The changes in a series of positive values, in its order."""
    logs = np.log(np.array(values, np.float64))
    cuts = dict(sorted(_cuts(logs, 0, np.random.default_rng(seed), math.log1p(delta))))
    edges = [0, *cuts, len(logs)]
    means = [float(logs[start:end].mean()) for start, end in pairwise(edges) if end > start]
    return [
        Change(index=cut, change=math.expm1(after - before), p=p)
        for (cut, p), before, after in zip(cuts.items(), means, means[1:], strict=False)
    ]


def _cuts(logs: Float64, first: int, rng: np.random.Generator, limit: float) -> Iterator[tuple[int, float]]:
    """Places and p-values of the changes in a part that begins at `first`."""
    if len(logs) < 2 * FEWEST:
        return
    (far,), (start,), (length,) = _furthest(logs[None])
    shuffled, _, _ = _furthest(rng.permuted(np.tile(logs, (NUM_SHUFFLES, 1)), axis=1))
    p = (1 + int((shuffled >= far).sum())) / (NUM_SHUFFLES + 1)
    inside = slice(start, start + length)
    if p > ALPHA or abs(logs[inside].mean() - np.delete(logs, np.r_[inside]).mean()) < limit:
        return
    edges = sorted({0, int(start), int(start + length), len(logs)})
    yield from ((first + edge, p) for edge in edges[1:-1])
    for begin, end in pairwise(edges):
        yield from _cuts(logs[begin:end], first + begin, rng, limit)


def _furthest(series: Float64) -> tuple[Float64, Intp, Intp]:
    """For each series [n, length]: how far off its furthest stretch is, where that begins, and how long it is."""
    num, total = series.shape
    sums = np.concatenate([np.zeros((num, 1)), (series - series.mean(axis=1, keepdims=True)).cumsum(axis=1)], axis=1)
    best, where, long = np.full(num, -1.0), np.zeros(num, np.intp), np.zeros(num, np.intp)
    for length in range(FEWEST, total - FEWEST + 1):
        starts = np.arange(total - length + 1)
        rest = total - starts - length
        allowed = starts[((starts == 0) | (starts >= FEWEST)) & ((rest == 0) | (rest >= FEWEST))]
        if not len(allowed):
            continue
        # the mean is 0, so that the rest's sum is minus the stretch's: (s/k + s/(n-k))^2 k (n-k)/n = s^2 n / k (n-k)
        far = (sums[:, allowed + length] - sums[:, allowed]) ** 2 * (total / (length * (total - length)))
        at = far.argmax(axis=1)
        value = far[np.arange(num), at]
        better = value > best
        best[better], where[better], long[better] = value[better], allowed[at[better]], length
    return best, where, long
