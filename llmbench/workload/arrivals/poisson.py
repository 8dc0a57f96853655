"""A Poisson process: independent exponential gaps, the first request after one gap."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llmbench.workload.arrivals import Arrivals

_BLOCK = 1024


class Arrival(Arrivals, frozen=True):
    """Requests per second on average; counts in any window have variance equal to their mean."""

    @property
    def rate(self) -> float:
        return self.qps

    @property
    def dispersion(self) -> float:
        return 1.0

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """The running sum of gaps that are exponential with mean 1/qps seconds."""
        due_s = 0.0
        while True:
            for gap_s in rng.exponential(1 / self.qps, _BLOCK).tolist():
                due_s += gap_s
                yield due_s

    def unit_gaps(self, due_s: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Gap * qps."""
        return np.diff(due_s, prepend=0.0) * self.qps
