"""Poisson processes whose rate changes with time, by the integral of the rate and its inverse."""

from collections.abc import Callable, Iterator

import numpy as np

_BLOCK = 1024


def offsets(rng: np.random.Generator, instant: Callable[[float], float]) -> Iterator[float]:
    """Due times whose integrated rate is a Poisson process of rate 1; `instant` undoes the integral.

    Exact for any rate (inversion), unlike a gap drawn with the rate at its beginning.
    """
    passed = 0.0
    while True:
        for gap in rng.exponential(1.0, _BLOCK).tolist():
            passed += gap
            yield instant(passed)
