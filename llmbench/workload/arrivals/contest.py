"""The arrivals of the 2024 contest's load client: gaps of a Poisson-distributed number of milliseconds.

Not a Poisson process: a gap of mean m ms has a standard deviation of only sqrt(m) ms. The mean is 1/qps rounded to
10 ms, so that 6 per second are offered as 5.88 and everything from 67 to 200 per second as 100.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import pdtr

from llmbench.workload.arrivals import Arrivals

_BLOCK = 1024
_GOLDEN = (math.sqrt(5) - 1) / 2
_LEAST = 1e-300  # of a probability, so that its logarithm stays finite


class Arrival(Arrivals, frozen=True):
    """What the contest's client calls `-X`."""

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

    def unit_gaps(self, due_s: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """-log P(longer gap), where each whole number of ms is spread evenly over the ms around it.

        The places in that ms are those of the golden-ratio sequence, which is even and never the same twice.
        """
        if not self.interval_s:
            return None
        mean_ms = self.interval_s * 1000
        gaps_ms = np.diff(due_s) * 1000 + np.arange(1, len(due_s)) * _GOLDEN % 1 - 0.5
        below = np.floor(gaps_ms + 0.5)  # P is linear between below - 0.5 and below + 0.5
        low = np.where(below > 0, pdtr(np.maximum(below - 1, 0), mean_ms), 0.0)
        high = np.where(below >= 0, pdtr(np.maximum(below, 0), mean_ms), 0.0)
        chance = low + (high - low) * (gaps_ms + 0.5 - below)
        return np.asarray(-np.log(np.maximum(1 - chance, _LEAST)))
