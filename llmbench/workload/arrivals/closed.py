"""A closed loop: so many users, each of whom waits for the answer, thinks, and asks again.

The next request of the plan goes to whichever user is free first, so that none is left with more work than the others.
"""

import math
from collections.abc import Iterator
from itertools import chain, islice, repeat

import numpy as np

from llmbench.workload import spread
from llmbench.workload.arrivals import Arrivals

_BLOCK = 1024


class Arrival(Arrivals, frozen=True):
    """`users` ask at the same time; `think` is a number of seconds or a spread of them, such as `exponential:2`.

    A user's first request is due after a think time as well, so that they do not all start at once.
    """

    users: int = 1
    think: str = "0"

    def __post_init__(self) -> None:
        if self.users < 1:
            raise ValueError(f"users: must be 1 or more, got {self.users}")
        spread.check("think", self.think)

    @property
    def rate(self) -> float:
        """Infinite: the server's answers say when requests are due."""
        return math.inf

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """When each user begins; behind them, nothing is due before the last of these."""
        starts = sorted(islice(self.thinks(rng), self.users))
        return chain(starts, repeat(starts[-1]))

    def thinks(self, rng: np.random.Generator) -> Iterator[float]:
        """Independent think times in seconds."""
        spread_ = spread.parse(self.think)
        while True:
            yield from spread_.draw(rng, _BLOCK).tolist()
