"""A Poisson process whose rate climbs (or falls) from one value to another, and then stays there."""

import math
from collections.abc import Iterator
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmbench.workload.arrivals import Arrivals, _changing


class Arrival(Arrivals, frozen=True):
    """From `from` to `to` requests per second in `seconds`, along a line, or by equal factors (`exponential`).

    `to` is --qps, and `from` a tenth of `to`, unless they are given.
    """

    start: float | None = msgspec.field(default=None, name="from")
    to: float | None = None
    seconds: float = 60.0
    shape: Literal["linear", "exponential"] = "linear"

    def __post_init__(self) -> None:
        for key, value in (("from", self.first), ("to", self.rate), ("seconds", self.seconds)):
            lowest_ok = key == "from" and self.shape == "linear" and value == 0
            if not (math.isfinite(value) and (value > 0 or lowest_ok)):
                raise ValueError(f"{key}: must be finite and above 0, got {value}")

    @property
    def first(self) -> float:
        """Requests per second at the start."""
        return self.rate / 10 if self.start is None else self.start

    @property
    def rate(self) -> float:
        return self.qps if self.to is None else self.to

    @property
    def duration_s(self) -> float:
        return self.seconds

    def expected(self, time_s: float) -> float:
        """The integral of the rate from 0."""
        inside_s, beyond_s = min(time_s, self.seconds), max(0.0, time_s - self.seconds)
        growth = self._growth
        if growth == 0:
            integral = self.first * inside_s
        elif self.shape == "linear":
            integral = self.first * inside_s + growth * inside_s**2 / 2
        else:
            integral = self.first / growth * math.expm1(growth * inside_s)
        return integral + self.rate * beyond_s

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """A Poisson process in the integral of the rate."""
        return _changing.offsets(rng, self._instant)

    def unit_gaps(self, due_s: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Gaps in the integral of the rate."""
        return np.diff([self.expected(instant) for instant in due_s.tolist()], prepend=0.0)

    @property
    def _growth(self) -> float:
        """Of the rate (linear), or of its logarithm (exponential), per second."""
        if self.shape == "linear":
            return (self.rate - self.first) / self.seconds
        return math.log(self.rate / self.first) / self.seconds

    def _instant(self, integral: float) -> float:
        """When the integral of the rate is this."""
        whole = self.expected(self.seconds)
        if integral >= whole:
            return self.seconds + (integral - whole) / self.rate
        growth = self._growth
        if growth == 0:
            return integral / self.first
        if self.shape == "linear":
            # the quadratic formula in the form that loses no digits; below 0 only by rounding, at the very end
            root = math.sqrt(max(0.0, self.first**2 + 2 * growth * integral))
            return 2 * integral / (self.first + root)
        return math.log1p(integral * growth / self.first) / growth
