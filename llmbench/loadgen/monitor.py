"""The measuring process watches itself: its CPU time, its memory, and how long its event loop came to nothing.

Numbers that were taken by a process that had no time to take them are wrong, and nothing else in them shows it.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psutil

from llmbench.clock import now_ns, seconds
from llmbench.loadgen._pacer import alarm
from llmbench.loadgen.record import Line, Sample

_TICK_NS = 20_000_000  # waking for a ring costs about 0.1 ms on a virtual machine: 0.5 % of a core
_SAMPLE_EVERY_NS = 1_000_000_000


@asynccontextmanager
async def monitor(append: Callable[[Line], None]) -> AsyncIterator[None]:
    """An observer of a run (see `run.Observer`): a Sample every second, and one of the rest at the end."""
    watch = _Watch(append)
    try:
        yield
    finally:
        watch.close()


class _Watch:
    """A timer that says how late it rings. The next tick counts from this one, so that a stall is one stall."""

    def __init__(self, append: Callable[[Line], None]) -> None:
        self._append = append
        self._process = psutil.Process()
        self._lag_ns = 0
        self._sampled_ns = now_ns()
        self._cpu_s = time.process_time()
        self._schedule = _schedule()
        self._waited_s = self._waited()
        self._alarm = alarm(asyncio.get_running_loop(), self._tick)
        self._wind(self._sampled_ns)

    def close(self) -> None:
        """Stop, with a last sample."""
        self._alarm.close()
        self._sample(now_ns())
        if self._schedule is not None:
            os.close(self._schedule)

    def _tick(self) -> None:
        at_ns = now_ns()
        self._lag_ns = max(self._lag_ns, at_ns - self._due_ns)
        if at_ns - self._sampled_ns >= _SAMPLE_EVERY_NS:
            self._sample(at_ns)
        self._wind(at_ns)

    def _wind(self, at_ns: int) -> None:
        self._due_ns = at_ns + _TICK_NS
        self._alarm.set(self._due_ns)

    def _sample(self, at_ns: int) -> None:
        cpu_s, waited_s = time.process_time(), self._waited()
        self._append(
            Sample(
                at_ns=at_ns,
                span_s=seconds(self._sampled_ns, at_ns),
                cpu_s=cpu_s - self._cpu_s,
                lag_s=self._lag_ns / 1e9,
                rss_bytes=self._process.memory_info().rss,
                waited_s=waited_s - self._waited_s,
            )
        )
        self._sampled_ns, self._cpu_s, self._waited_s, self._lag_ns = at_ns, cpu_s, waited_s, 0

    def _waited(self) -> float:
        """How long this thread has waited for a core since it began."""
        return 0.0 if self._schedule is None else int(os.pread(self._schedule, 80, 0).split()[1]) / 1e9


def _schedule() -> int | None:
    """Where Linux tells how long this thread has run, and how long it has waited to; None elsewhere."""
    try:
        return os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return None
