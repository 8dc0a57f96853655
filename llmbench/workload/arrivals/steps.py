"""A Poisson process whose rate changes in steps; the last rate stays."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llmbench.workload.arrivals import Arrivals, _changing

Step = tuple[float, float]  # seconds, requests per second


class Arrival(Arrivals, frozen=True):
    """`rates` is SECONDSxRATE+SECONDSxRATE...: `30x1+30x5` is 30 s at 1 per second, then 30 s at 5; 0 is a pause."""

    rates: str

    def __post_init__(self) -> None:
        steps = self.steps
        if not all(math.isfinite(value) and value >= 0 for step in steps for value in step):
            raise ValueError(f"rates: seconds and rates must be finite and not below 0, got {self.rates!r}")
        if not all(seconds > 0 for seconds, _ in steps) or steps[-1][1] == 0:
            raise ValueError(f"rates: seconds, and the last rate, must be above 0, got {self.rates!r}")

    @property
    def steps(self) -> list[Step]:
        """Each step's seconds and its requests per second."""
        return [_step(text) for text in self.rates.split("+")]

    @property
    def rate(self) -> float:
        return self.steps[-1][1]

    @property
    def duration_s(self) -> float:
        return sum(seconds for seconds, _ in self.steps)

    def expected(self, time_s: float) -> float:
        """The integral of the rate from 0."""
        return float(np.interp(time_s, *_corners(self.steps))) + self.rate * max(0.0, time_s - self.duration_s)

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """A Poisson process in the integral of the rate."""
        return _changing.offsets(rng, partial(_instant, self.steps, *_corners(self.steps)))

    def unit_gaps(self, due_s: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Gaps in the integral of the rate."""
        integral = np.interp(due_s, *_corners(self.steps)) + self.rate * np.maximum(0.0, due_s - self.duration_s)
        return np.diff(integral, prepend=0.0)


def _step(text: str) -> Step:
    seconds, _, rate = text.partition("x")
    try:
        return float(seconds), float(rate)
    except ValueError:
        raise ValueError(f"rates: {text!r} is not SECONDSxRATE, as in steps:rates=30x1+30x5") from None


def _corners(steps: list[Step]) -> tuple[list[float], list[float]]:
    """Instants at which the rate changes, and the integral of the rate up to each."""
    instants, integrals = [0.0], [0.0]
    for seconds, rate in steps:
        instants.append(instants[-1] + seconds)
        integrals.append(integrals[-1] + seconds * rate)
    return instants, integrals


def _instant(steps: list[Step], instants: list[float], integrals: list[float], integral: float) -> float:
    """When the integral of the rate is this; in a pause it is nowhere."""
    step = min(bisect_right(integrals, integral), len(steps)) - 1
    return instants[step] + (integral - integrals[step]) / steps[step][1]
