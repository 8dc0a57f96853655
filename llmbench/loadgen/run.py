"""One run: a plan, a target, a folder; afterwards every planned request has its record in the journal."""

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from pathlib import Path

import msgspec

from llmbench.clock import now_ns
from llmbench.loadgen.client import Client, Sender, Target, Timeouts
from llmbench.loadgen.driver import Counts, Driver
from llmbench.loadgen.journal import Header, Journal
from llmbench.loadgen.record import Line, Record
from llmbench.processes import allow_many_sockets
from llmbench.protocols import ClientHalf
from llmbench.workload.plan import Plan, PlannedRequest

_LEAD_NS = 20_000_000  # so that the first request's instant is not over before the loop runs
_PROGRESS_EVERY_S = 0.5


Start = Callable[[Driver], Awaitable[int]]
"""Gives the instant at which the plan is taken up, asked when everything is ready to send."""
Append = Callable[[Line], None]
Observer = Callable[[Append], AbstractAsyncContextManager[None]]
"""Something that watches a run from before its first request until after its last, and adds lines to its journal."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Which journal of a run this is: of which attempt, of which of its processes.

    An attempt takes the plan up at its second `from_s`.
    """

    attempt: int = 1
    worker: int = 0
    num_workers: int = 1
    from_s: float = 0.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a run leaves in memory; `records` are in the order in which they ended."""

    header: Header
    records: list[Record]
    interrupted: bool


async def soon(driver: Driver) -> int:
    """As soon as the loop can be there."""
    return now_ns() + _LEAD_NS


def run(
    plan: Plan,
    target: Target,
    dialect: ClientHalf,
    timeouts: Timeouts,
    journal: Path,
    concurrency: int | None = None,
    progress: Callable[[Counts], None] | None = None,
    observers: Sequence[Observer] = (),
    part: Part = Part(),  # noqa: B008 (frozen)
    start: Start = soon,
    driven_by: type[Driver] = Driver,
) -> Outcome:
    """Send the plan and wait for the answers; Ctrl-C ends it early and keeps what there is."""
    allow_many_sockets()
    client = sender(target, dialect, timeouts)
    loop = new_loop()
    try:
        return loop.run_until_complete(
            _run(plan, client, journal, concurrency, progress, observers, part, start, driven_by)
        )
    finally:
        loop.close()


def sender(target: Target, dialect: ClientHalf, timeouts: Timeouts) -> Sender:
    """The client for this target: our own, or one through a proxy."""
    if target.way.proxy is None:
        return Client(target, dialect, timeouts)
    from llmbench.loadgen._proxied import ProxiedClient  # aiohttp is loaded for it alone

    return ProxiedClient(target, dialect, timeouts)


async def _run(
    plan: Plan,
    client: Sender,
    path: Path,
    concurrency: int | None,
    progress: Callable[[Counts], None] | None,
    observers: Sequence[Observer],
    part: Part,
    start: Start,
    driven_by: type[Driver],
) -> Outcome:
    records: list[Record] = []

    def finished(record: Record) -> None:
        journal.append(record)
        records.append(record)

    driver = driven_by(plan.requests, client, finished, concurrency)
    with _no_garbage_collection(), Journal(path) as journal:  # the last collection takes longer than the lead
        async with AsyncExitStack() as observed:
            for observer in observers:
                await observed.enter_async_context(observer(journal.append))
            await client.warm()
            header = header_of(plan, client.target, client.dialect.name, await start(driver), part)
            journal.begin(header)
            with interrupts(driver.interrupt), ticks(lambda: driver.counts, progress):
                await driver.run(header.start_ns)
    await client.close()
    return Outcome(header=header, records=records, interrupted=driver.interrupted)


async def drive(
    planned: Sequence[PlannedRequest],
    target: Target,
    dialect: ClientHalf,
    timeouts: Timeouts,
    finished: Callable[[Record], None],
    concurrency: int | None = None,
) -> None:
    """Send requests without a journal; `finished` gets the record of each when it has ended."""
    client = sender(target, dialect, timeouts)
    try:
        await Driver(planned, client, finished, concurrency).run()
    finally:
        await client.close()


def header_of(plan: Plan, target: Target, dialect: str, taken_up_ns: int, part: Part) -> Header:
    """The first line of a journal."""
    start_ns = taken_up_ns - round(part.from_s * 1e9)
    return Header(
        plan_sha256=plan.sha256,
        num_requests=len(plan.requests),
        url=target.url,
        dialect=dialect,
        transport=target.transport,
        start_ns=start_ns,
        start_wall_s=time.time() + (start_ns - now_ns()) / 1e9,
        attempt=part.attempt,
        worker=part.worker,
        num_workers=part.num_workers,
    )


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it is installed: a read costs 11 us on it and 33 us on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


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
def interrupts(interrupt: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `interrupt`, where signals can be caught at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def ticks(counts: Callable[[], Counts], progress: Callable[[Counts], None] | None) -> Iterator[None]:
    """Call `progress` now and then while the load runs."""
    if progress is None:
        yield
        return
    loop = asyncio.get_running_loop()
    handle: asyncio.Handle

    def tick() -> None:
        nonlocal handle
        progress(counts())
        handle = loop.call_later(_PROGRESS_EVERY_S, tick)

    handle = loop.call_soon(tick)
    try:
        yield
    finally:
        handle.cancel()
        progress(counts())
