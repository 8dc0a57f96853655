"""Arrival processes: when each request is due. One file each; the name of the file is the name users type.

A module has a frozen struct `Arrival` whose fields are its settings (`qps`, the rate that the user asked for, comes
first) and whose `offsets(rng)` gives the due times in seconds from the start, never decreasing. The same generator
state gives the same offsets.
"""

from collections.abc import Iterator
from itertools import repeat

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmbench import plugins
from llmbench.errors import InputError
from llmbench.workload import spec

FLAG = "--arrivals"


class Arrivals(msgspec.Struct, frozen=True):
    """When requests are due. What a process leaves out below is as here."""

    qps: float

    @property
    def rate(self) -> float:
        """Requests per second that the process offers in the long run; infinite for a burst."""
        raise NotImplementedError

    @property
    def dispersion(self) -> float | None:
        """Variance over mean of the number of requests in a long window: 1 for Poisson; None where it has no sense."""
        return None

    @property
    def duration_s(self) -> float | None:
        """How long the process lasts by its own settings; None: as long as anybody wants."""
        return None

    @property
    def users(self) -> int | None:
        """In a closed loop, how many requests are under way or thought about at once; None in an open loop."""
        return None

    def expected(self, time_s: float) -> float:
        """How many requests are due in the first seconds, on average."""
        return self.rate * time_s

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """Due times in seconds from the start, without end."""
        raise NotImplementedError

    def thinks(self, rng: np.random.Generator) -> Iterator[float]:
        """In a closed loop, seconds between the end of a slot's request and the next one's due time, without end."""
        return repeat(0.0)

    def unit_gaps(self, due_s: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The gaps with the process taken out of them; None where no gap is random.

        When the due times are of this process, what is left are independent exponential numbers of mean 1, whatever
        the process (time rescaling: -log of the chance of a longer gap, given everything before).
        """
        return None


def get(text: str, qps: float) -> Arrivals:
    """An arrival process from `name[:key=value,...]`. Raises InputError for a wrong name, key, value or rate."""
    if not qps > 0:
        raise InputError(f"--qps: must be above 0, got {qps}; for all at once use --arrivals burst")
    process: Arrivals = spec.build(FLAG, text, plugins.load("workload.arrivals", spec.name(text)).Arrival, qps=qps)
    return process
