"""One monotonic nanosecond clock for everything that is measured, and wall time for people only."""

import time
from datetime import datetime

now_ns = time.monotonic_ns
"""Nanoseconds on CLOCK_MONOTONIC: the only clock that instants are taken from."""


def seconds(start_ns: int, end_ns: int) -> float:
    """The time between two instants of `now_ns`, in seconds."""
    return (end_ns - start_ns) / 1e9


def stamp() -> str:
    """The wall time as `20260131-154500`, for folder names."""
    return datetime.now().strftime("%Y%m%d-%H%M%S")
