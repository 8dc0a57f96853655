"""A Poisson process: independent exponential gaps, the first request after one gap."""

from collections.abc import Iterator

import msgspec
import numpy as np

_BLOCK = 1024


class Arrival(msgspec.Struct, frozen=True):
    """Requests per second on average; counts in any window have variance equal to their mean."""

    qps: float
    dispersion = 1.0

    @property
    def rate(self) -> float:
        return self.qps

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """The running sum of gaps that are exponential with mean 1/qps seconds."""
        due_s = 0.0
        while True:
            for gap_s in rng.exponential(1 / self.qps, _BLOCK).tolist():
                due_s += gap_s
                yield due_s
