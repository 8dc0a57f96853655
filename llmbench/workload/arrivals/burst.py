"""Everything at once: offline throughput, or closed-loop load when the number of slots is limited."""

import math
from collections.abc import Iterator
from itertools import repeat

import numpy as np

from llmbench.workload.arrivals import Arrivals


class Arrival(Arrivals, frozen=True):
    """`qps` changes nothing here; it only says, with the test time, how many requests there are."""

    qps: float = math.inf

    @property
    def rate(self) -> float:
        return math.inf

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """0 seconds for ever."""
        return repeat(0.0)
