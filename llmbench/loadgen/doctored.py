"""Clients with one fault each, made of the real one: what the checks of a client must not let pass.

They are what other load generators were found to be. Nothing here is used to measure anything but the checks.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from heapq import heappop

import msgspec
import numpy as np

from llmbench.clock import now_ns
from llmbench.loadgen.driver import Driver
from llmbench.loadgen.record import Line
from llmbench.loadgen.run import Observer
from llmbench.protocols import ClientHalf, Decoder, HttpRequest
from llmbench.types import Delta, Request
from llmbench.workload import plan as plans
from llmbench.workload.plan import Plan

_BUSY = "import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
_BUSY_S = 20.0  # a busy process that nobody has ended ends itself


class Doctoring(msgspec.Struct, frozen=True, kw_only=True):
    """Where the real client is changed; by default nowhere."""

    plan: Callable[[Plan], Plan] = lambda plan: plan
    dialect: Callable[[ClientHalf], ClientHalf] = lambda dialect: dialect
    driver: type[Driver] = Driver
    observers: tuple[Observer, ...] = ()
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    """Entered before the run, left after it."""


# -- it sleeps from one request to the next ----------------------------------------------------------------------------

_OVERSLEPT_NS = 650_000


class _Sleeper(Driver):
    """Sleeps for the gap after each request, not until the next one is due; every sleep is 0.65 ms too long.

    That is what asyncio's timers add at 200 requests per second, and SGLang's client offers 12 % too little by it.
    """

    def _tick(self) -> None:
        due_ns, index = heappop(self._ahead)
        self._release(index, due_ns)
        if self._ahead:
            self._alarm.set(now_ns() + self._ahead[0][0] - due_ns + _OVERSLEPT_NS)


def relative_sleeps() -> Doctoring:
    """A client that sleeps from one request to the next."""
    return Doctoring(driver=_Sleeper)


# -- its workers share a seed ------------------------------------------------------------------------------------------


def in_step(num_workers: int) -> Doctoring:
    """A client whose workers each draw their part of a Poisson process, all of them from the same seed.

    They do not start at the same instant, so the gaps look exponential; GuideLLM's ten workers do this.
    """

    def together(plan: Plan) -> Plan:
        rng = np.random.default_rng(plan.settings.seed)
        gap_s = num_workers / (plan.settings.rate or 1.0)
        turns = -(-len(plan.requests) // num_workers)
        own = np.cumsum(rng.exponential(gap_s, turns))
        starts = rng.uniform(0.0, gap_s, num_workers)
        due_s = np.sort(np.add.outer(own, starts).ravel())[: len(plan.requests)].tolist()
        moved = tuple(
            msgspec.structs.replace(planned, due_s=at_s) for planned, at_s in zip(plan.requests, due_s, strict=True)
        )
        return msgspec.structs.replace(plan, requests=moved, sha256=plans.hash_of(moved))

    return Doctoring(plan=together)


# -- it works for too long on every event, or now and then -------------------------------------------------------------


class _SlowDialect:
    """A dialect that takes its time over every piece of an answer."""

    def __init__(self, real: ClientHalf, piece_s: float) -> None:
        self._real = real
        self._piece_s = piece_s

    @property
    def name(self) -> str:
        return self._real.name

    def encode(self, request: Request) -> HttpRequest:
        return self._real.encode(request)

    def decoder(self, request: Request, headers: Mapping[str, str]) -> Decoder:
        return _SlowDecoder(self._real.decoder(request, headers), self._piece_s)


class _SlowDecoder:
    def __init__(self, real: Decoder, piece_s: float) -> None:
        self._real = real
        self._piece_s = piece_s

    def feed(self, data: bytes) -> list[Delta]:
        found = self._real.feed(data)
        _burn(self._piece_s * len(found))
        return found

    def close(self) -> list[Delta]:
        return self._real.close()


def slow_events(piece_s: float) -> Doctoring:
    """A client that computes for so long on every piece of every answer: from some load on it collapses."""
    return Doctoring(dialect=lambda dialect: _SlowDialect(dialect, piece_s))


def blocked(every_s: float, for_s: float) -> Doctoring:
    """A client whose event loop comes to nothing now and then, as by a collection of garbage or a table of numbers."""

    @asynccontextmanager
    async def block(append: Callable[[Line], None]) -> AsyncIterator[None]:
        task = asyncio.get_running_loop().create_task(_block(every_s, for_s))
        try:
            yield
        finally:
            task.cancel()

    return Doctoring(observers=(block,))


async def _block(every_s: float, for_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        _burn(for_s)


def _burn(for_s: float) -> None:
    end_ns = now_ns() + round(for_s * 1e9)
    while now_ns() < end_ns:
        pass


# -- it is given no CPU ------------------------------------------------------------------------------------------------


def starved(num_others: int) -> Doctoring:
    """A client that shares its one core with so many processes that never sleep. Linux only: see `can_starve`."""
    return Doctoring(around=lambda: _crowded(num_others))


def can_starve() -> bool:
    """Whether this system lets a process say on which core it runs."""
    return hasattr(os, "sched_setaffinity")


@contextlib.contextmanager
def _crowded(num_others: int) -> Iterator[None]:
    """This thread on the last of its cores, with the others there; afterwards as it was."""
    before = os.sched_getaffinity(0)
    core = {max(before)}
    command = [sys.executable, "-S", "-c", _BUSY.format(seconds=_BUSY_S)]
    with contextlib.ExitStack() as ended:
        ended.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, core)  # those that are started now inherit it
        for _ in range(num_others):
            process = ended.enter_context(subprocess.Popen(command))
            ended.callback(process.kill)
        time.sleep(0.1)
        yield
