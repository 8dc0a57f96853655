"""Arrival processes: when each request is due. One file each; the name of the file is the name users type.

A module has a frozen struct `Arrival` whose fields are its settings (`qps`, the rate that the user asked for, comes
first) and whose `offsets(rng)` gives the due times in seconds from the start, never decreasing. The same generator
state gives the same offsets.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from llmbench import plugins
from llmbench.errors import InputError


class Arrivals(Protocol):
    """When requests are due."""

    @property
    def rate(self) -> float:
        """Requests per second that the process offers in the long run; infinite for a burst."""
        ...

    @property
    def dispersion(self) -> float | None:
        """Variance over mean of the number of requests in a long window: 1 for Poisson; None where it has no sense."""
        ...

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """Due times in seconds from the start, without end."""
        ...


def get(name: str, qps: float) -> Arrivals:
    """An arrival process by name. Raises InputError for an unknown one, or a rate that is not above 0."""
    if not qps > 0:
        raise InputError(f"--qps: must be above 0, got {qps}; for all at once use --arrivals burst")
    arrivals: Arrivals = plugins.load("workload.arrivals", name).Arrival(qps)
    return arrivals
