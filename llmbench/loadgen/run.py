"""One run: a plan, a target, a folder; afterwards every planned request has its record in the journal."""

import asyncio
import gc
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from pathlib import Path

import msgspec

from llmbench.clock import now_ns
from llmbench.loadgen.client import Client, Target, Timeouts
from llmbench.loadgen.driver import Counts, Driver
from llmbench.loadgen.journal import Header, Journal
from llmbench.loadgen.record import Line, Record
from llmbench.protocols import Dialect
from llmbench.workload.plan import Plan

_LEAD_NS = 20_000_000  # so that the first request's instant is not over before the loop runs
_PROGRESS_EVERY_S = 0.5


Append = Callable[[Line], None]
Observer = Callable[[Append], AbstractAsyncContextManager[None]]
"""Something that watches a run from before its first request until after its last, and adds lines to its journal."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a run leaves in memory; `records` are in the order in which they ended."""

    header: Header
    records: list[Record]
    interrupted: bool


def run(
    plan: Plan,
    target: Target,
    dialect: Dialect,
    timeouts: Timeouts,
    journal: Path,
    concurrency: int | None = None,
    progress: Callable[[Counts], None] | None = None,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Send the plan and wait for the answers; Ctrl-C ends it early and keeps what there is."""
    _allow_many_sockets()
    loop = _new_loop()
    try:
        return loop.run_until_complete(_run(plan, target, dialect, timeouts, journal, concurrency, progress, observers))
    finally:
        loop.close()


async def _run(
    plan: Plan,
    target: Target,
    dialect: Dialect,
    timeouts: Timeouts,
    path: Path,
    concurrency: int | None,
    progress: Callable[[Counts], None] | None,
    observers: Sequence[Observer],
) -> Outcome:
    client = Client(target, dialect, timeouts)
    records: list[Record] = []

    def finished(record: Record) -> None:
        journal.append(record)
        records.append(record)

    driver = Driver(plan.requests, client, finished, concurrency)
    with _no_garbage_collection(), Journal(path) as journal:  # the last collection takes longer than the lead
        async with AsyncExitStack() as observed:
            for observer in observers:
                await observed.enter_async_context(observer(journal.append))
            header = _header(plan, target, dialect)
            journal.begin(header)
            with _interrupts(driver), _ticks(driver, progress):
                await driver.run(header.start_ns)
    await client.close()
    return Outcome(header=header, records=records, interrupted=driver.interrupted)


def _header(plan: Plan, target: Target, dialect: Dialect) -> Header:
    start_ns = now_ns() + _LEAD_NS
    return Header(
        plan_sha256=plan.sha256,
        num_requests=len(plan.requests),
        url=target.url,
        dialect=dialect.name,
        start_ns=start_ns,
        start_wall_s=time.time() + (start_ns - now_ns()) / 1e9,
    )


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it is installed: a read costs 11 us on it and 33 us on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _allow_many_sockets() -> None:
    """Raise the soft limit of open files to the hard one: an overloaded server means a socket per request."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """No collection while the load runs: one over a full heap stops the stamps for milliseconds."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


@contextmanager
def _interrupts(driver: Driver) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run in order, where signals can be caught at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, driver.interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def _ticks(driver: Driver, progress: Callable[[Counts], None] | None) -> Iterator[None]:
    """Call `progress` now and then while the load runs."""
    if progress is None:
        yield
        return
    loop = asyncio.get_running_loop()
    handle: asyncio.Handle

    def tick() -> None:
        nonlocal handle
        progress(driver.counts)
        handle = loop.call_later(_PROGRESS_EVERY_S, tick)

    handle = loop.call_soon(tick)
    try:
        yield
    finally:
        handle.cancel()
        progress(driver.counts)
