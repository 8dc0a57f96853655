"""What flows into a linear, batch by batch: ranges for int8, and what tells where outliers are. A batch is one sample.

Sources: ascend-formats, section 4.2 (the observers), 4.3 (the score) and 4.4 (what smoothing is told).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Range = tuple[float, float]
Method: TypeAlias = Literal["min-max", "histogram", "auto"]

NUM_BINS = 2048
AUTO_LIMIT = 50.0
_SCORED = 5  # batches that the score is of
_LEVELS = 255  # steps between the 256 values of an int8


class Observer(Protocol):
    """Is shown one batch after another, float32 [T, width], and then says from where to where int8 is to reach."""

    def see(self, x: Float32) -> None:
        """One batch."""
        ...

    def range(self) -> Range:
        """The least and the greatest value that int8 stands for."""
        ...


class MinMax:
    """Of a tensor: the running mean of each batch's least and greatest value."""

    def __init__(self) -> None:
        self._num, self._low, self._high = 0, 0.0, 0.0

    def see(self, x: Float32) -> None:
        """One batch."""
        self._num += 1
        self._low += (float(x.min()) - self._low) / self._num
        self._high += (float(x.max()) - self._high) / self._num

    def range(self) -> Range:
        """The two means."""
        return self._low, self._high


class CacheRange:
    """Of each channel of keys or values, the least and the greatest of all: `low` and `high` float64 [width].

    Of a mean of batches' ends every second batch would be clipped. Keys of `head_dim` are turned by RoPE as far as
    their position says, also further than any sample is long: a channel and its partner reach as far as their radius.
    """

    def __init__(self, width: int, head_dim: int | None = None) -> None:
        self._head_dim = head_dim
        self.low: Float64 = np.full(width, np.inf)
        self.high: Float64 = np.full(width, -np.inf)

    def see(self, x: Float32) -> None:
        """One batch, float32 [T, width]."""
        if self._head_dim is not None:
            halves = x.reshape(len(x), -1, 2, self._head_dim // 2)
            radius = np.hypot(halves[:, :, :1], halves[:, :, 1:])
            x = np.broadcast_to(radius, halves.shape).reshape(x.shape)
            np.minimum(self.low, -x.max(axis=0), out=self.low)
        np.minimum(self.low, x.min(axis=0), out=self.low)
        np.maximum(self.high, x.max(axis=0), out=self.high)


class Histogram:
    """Of a tensor: 2048 bins over all that was seen, and the range that int8 renders with the least squared error.

    The first batch, and 0, give the bins their range. What lies outside makes it twice as wide, two bins becoming one,
    so that every count stays exact.
    """

    def __init__(self) -> None:
        self.counts: Int64 = np.zeros(NUM_BINS, np.int64)
        self.low, self.high = 0.0, 0.0

    def see(self, x: Float32) -> None:
        """One batch."""
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        if low == high:  # zeros, which every range has
            return
        if self.low == self.high:
            self.low, self.high = low, high
        while low < self.low:
            self.low -= self.high - self.low
            self._halve(slice(len(self.counts) // 2, None))
        while high > self.high:
            self.high += self.high - self.low
            self._halve(slice(None, len(self.counts) // 2))
        self.counts += np.histogram(x, len(self.counts), (self.low, self.high))[0]

    def _halve(self, where: slice) -> None:
        """Two bins become one; the half of the bins that has them from now on is `where`."""
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros_like(self.counts)
        self.counts[where] = pairs

    def range(self) -> Range:
        """The range with the least squared error."""
        return (self.low, self.high) if self.low == self.high else clip(self.counts, self.low, self.high)


class Auto:
    """The histogram's range where the range parameter is at most 50, else that of least and greatest value.

    The reference does not say what the range parameter is. Ours: the largest magnitude over the standard deviation, of
    all that was seen: it does not depend on the scale. Normal values have 4 to 6. Where it is hundreds, a few values
    are a thing of their own, which a model needs, and for which squared errors, of which they are few, care too little.
    """

    def __init__(self) -> None:
        self._min_max, self._histogram = MinMax(), Histogram()
        self._num, self._sum, self._squares, self._largest = 0, 0.0, 0.0, 0.0

    def see(self, x: Float32) -> None:
        """One batch."""
        self._min_max.see(x)
        self._histogram.see(x)
        self._num += x.size
        self._sum += float(x.sum(dtype=np.float64))
        self._squares += float(np.square(x, dtype=np.float64).sum())
        self._largest = max(self._largest, -float(x.min()), float(x.max()))

    def parameter(self) -> float:
        """max|x| / std(x); 0 where nothing varies."""
        std = math.sqrt(max(self._squares / self._num - (self._sum / self._num) ** 2, 0.0))
        return self._largest / std if std else 0.0

    def range(self) -> Range:
        """By the range parameter."""
        return self._histogram.range() if self.parameter() <= AUTO_LIMIT else self._min_max.range()


OBSERVERS: dict[Method, Callable[[], Observer]] = {"min-max": MinMax, "histogram": Histogram, "auto": Auto}


def clip(counts: Int64, low: float, high: float) -> Range:
    """Edges a <= 0 <= b of bins from `low` to `high` for which 256 equally spaced values from a to b are the best.

    The squared error of n values within is n * ((b - a) / 255)^2 / 12, that of one outside the squared distance of its
    bin's centre from the edge; of all pairs of edges the one with the least sum is taken, by cumulative sums.
    """
    width = (high - low) / len(counts)
    edges = low + width * np.arange(len(counts) + 1)
    edges[-1] = high
    centres = edges[:-1] + width / 2
    number, first, second = (np.concatenate([[0.0], np.cumsum(counts * centres**k)]) for k in range(3))
    below = edges**2 * number - 2 * edges * first + second  # of what lies left of each edge
    above = edges**2 * (number[-1] - number) - 2 * edges * (first[-1] - first) + second[-1] - second
    left, right = np.flatnonzero(edges <= 0), np.flatnonzero(edges >= 0)
    inside = number[right] - number[left, None]
    steps = (edges[right] - edges[left, None]) / _LEVELS
    error = below[left, None] + above[right] + inside * steps**2 / 12
    a, b = np.unravel_index(int(error.argmin()), error.shape)
    return float(edges[left[a]]), float(edges[right[b]])


class Channels(NamedTuple):
    """What smoothing is told of a point: of each channel the least, the greatest and the mean size of all values,
    float64 [width], and some rows, float32 [n, width].
    """

    low: Float64
    high: Float64
    size: Float64
    rows: Float32


class ChannelWatch:
    """Sees batches, and gives Channels."""

    def __init__(self, width: int) -> None:
        self._low: Float64 = np.full(width, np.inf)
        self._high: Float64 = np.full(width, -np.inf)
        self._total: Float64 = np.zeros(width)
        self._num = 0
        self._rows: list[Float32] = []

    def see(self, x: Float32, rows: npt.NDArray[np.intp]) -> None:
        """One batch, and which of its rows, intp [n], are kept."""
        np.minimum(self._low, x.min(axis=0), out=self._low)
        np.maximum(self._high, x.max(axis=0), out=self._high)
        self._total += np.abs(x).sum(axis=0, dtype=np.float64)
        self._num += len(x)
        self._rows.append(x[rows])

    def channels(self) -> Channels:
        """Of all batches."""
        return Channels(self._low, self._high, self._total / self._num, np.concatenate(self._rows))


class Score:
    """How much an input has outliers: max|x - z| / std(x - z), z the middle between each channel's ends.

    Of the first five batches only.
    """

    def __init__(self, width: int) -> None:
        self._left = _SCORED
        self._low: Float64 = np.full(width, np.inf)
        self._high: Float64 = np.full(width, -np.inf)
        self._sum: Float64 = np.zeros(width)
        self._squares: Float64 = np.zeros(width)
        self._num = 0

    def see(self, x: Float32) -> None:
        """One batch."""
        if not self._left:
            return
        self._left -= 1
        np.minimum(self._low, x.min(axis=0), out=self._low)
        np.maximum(self._high, x.max(axis=0), out=self._high)
        self._sum += x.sum(axis=0, dtype=np.float64)
        self._squares += np.square(x, dtype=np.float64).sum(axis=0)
        self._num += len(x)

    def score(self) -> float:
        """0 where nothing varies."""
        z = (self._low + self._high) / 2
        mean = float((self._sum - self._num * z).mean()) / self._num
        square = float((self._squares - 2 * z * self._sum + self._num * z**2).mean()) / self._num
        std = math.sqrt(max(square - mean**2, 0.0))
        return float((self._high - self._low).max()) / 2 / std if std else 0.0
