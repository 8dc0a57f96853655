"""Arrival processes: when each request is due. One file each; the name of the file is the name users type.

A module has a frozen struct `Arrival` whose fields are its settings and whose `offsets(rng)` gives the due times in
seconds from the start, never decreasing. The same generator state gives the same offsets.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np


class Arrivals(Protocol):
    """When requests are due."""

    rate: float
    """Requests per second that the process offers in the long run; infinite for a burst."""

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """Due times in seconds from the start, without end."""
        ...
