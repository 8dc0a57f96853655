"""Equal gaps, the first request at once."""

from collections.abc import Iterator
from itertools import count

import msgspec
import numpy as np


class Arrival(msgspec.Struct, frozen=True):
    """Requests per second."""

    qps: float
    dispersion = 0.0

    @property
    def rate(self) -> float:
        return self.qps

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """0, 1/qps, 2/qps, ... seconds, each divided anew so that no rounding error adds up."""
        return (index / self.qps for index in count())
