"""The arrivals of the 2024 contest's load client: gaps of a Poisson-distributed number of milliseconds.

Not a Poisson process: a gap of mean m ms has a standard deviation of only sqrt(m) ms. The mean is 1/qps rounded to
10 ms, so that 6 per second are offered as 5.88 and everything from 67 to 200 per second as 100.
"""

import math
from collections.abc import Iterator

import msgspec
import numpy as np

_BLOCK = 1024


class Arrival(msgspec.Struct, frozen=True):
    """What the contest's client calls `-X`."""

    qps: float

    @property
    def interval_s(self) -> float:
        """The mean gap: round(1 / qps, 2); above 200 per second it is 0."""
        return round(1 / self.qps, 2)

    @property
    def rate(self) -> float:
        return 1 / self.interval_s if self.interval_s else math.inf

    @property
    def dispersion(self) -> float | None:
        """Variance over squared mean of the gaps: 1 / (mean gap in ms); undefined for a burst."""
        return 1 / (self.interval_s * 1000) if self.interval_s else None

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """0, then the running sum of poisson(interval in ms) milliseconds, summed as whole numbers."""
        due_ms = 0
        while True:
            for gap_ms in rng.poisson(self.interval_s * 1000, _BLOCK).tolist():
                yield due_ms / 1000
                due_ms += gap_ms
