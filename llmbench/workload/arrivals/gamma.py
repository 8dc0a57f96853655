"""Gamma-distributed gaps: burstier than Poisson below shape 1, more regular above it, Poisson at 1."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincc

from llmbench.workload.arrivals import Arrivals

_BLOCK = 1024
_LEAST = 1e-300  # of a probability, so that its logarithm stays finite


class Arrival(Arrivals, frozen=True):
    """`shape` is what others call burstiness: the gaps have mean 1/qps and variance 1/(shape * qps**2)."""

    shape: float = 0.5

    def __post_init__(self) -> None:
        if not 0.01 <= self.shape <= 1e6:
            raise ValueError(f"shape: must be from 0.01 to 1e6, got {self.shape}; for equal gaps use constant")

    @property
    def rate(self) -> float:
        return self.qps

    @property
    def dispersion(self) -> float:
        """Variance over squared mean of the gaps, 1 / shape, as for any renewal process."""
        return 1 / self.shape

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """The running sum of gaps, the first request after one gap."""
        due_s = 0.0
        while True:
            for gap_s in rng.gamma(self.shape, 1 / (self.shape * self.qps), _BLOCK).tolist():
                due_s += gap_s
                yield due_s

    def unit_gaps(self, due_s: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """-log P(longer gap), P being the regularised upper incomplete gamma function."""
        gaps = np.maximum(np.diff(due_s, prepend=0.0), 0.0)
        longer = gammaincc(self.shape, gaps * self.shape * self.qps)
        return np.asarray(-np.log(np.maximum(longer, _LEAST)))
