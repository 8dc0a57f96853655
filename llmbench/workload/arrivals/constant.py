"""Equal gaps, the first request at once."""

from collections.abc import Iterator
from itertools import count

import numpy as np

from llmbench.workload.arrivals import Arrivals


class Arrival(Arrivals, frozen=True):
    """Requests per second."""

    @property
    def rate(self) -> float:
        return self.qps

    @property
    def dispersion(self) -> float:
        return 0.0

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """0, 1/qps, 2/qps, ... seconds, each divided anew so that no rounding error adds up."""
        return (index / self.qps for index in count())
