"""Several processes send one plan: each its own part, at the plan's instants, into a journal of its own.

A worker is told its job on its standard input (secrets must not show in a list of processes) and the instant to start
when all are ready; from then on nothing passes between the processes but counts for the progress line and an order to
stop. Whatever happens to one of them, the others' records stand.
"""

import asyncio
import contextlib
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from llmbench import protocols
from llmbench.clock import now_ns
from llmbench.errors import InputError, InvalidMeasurement, LlmbenchError
from llmbench.loadgen import journal as journals
from llmbench.loadgen.client import Target, Timeouts
from llmbench.loadgen.driver import Counts, Driver
from llmbench.loadgen.monitor import monitor
from llmbench.loadgen.record import Record
from llmbench.loadgen.run import Observer, Part, header_of, interrupts, new_loop, run, ticks
from llmbench.workload.plan import Plan

_LEAD_NS = 100_000_000  # until every worker has read the instant and its loop runs
_STREAMS_PER_WORKER = 500
_ANSWER_S = 10.0  # how long an answer is taken to last, where only the arrivals say how many are under way
_GOODBYE_S = 10.0  # a worker that was told twice to stop; it needs milliseconds


class Speech(msgspec.Struct, frozen=True, kw_only=True):
    """A dialect by name and options, so that every process can make its own."""

    name: str
    options: dict[str, Any] = {}

    def dialect(self) -> protocols.Dialect:
        """The dialect. Raises InputError."""
        return protocols.get(self.name, **self.options)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to do."""

    plan: Plan
    target: Target
    speech: Speech
    timeouts: Timeouts
    concurrency: int | None
    journal: str
    part: Part


class _Ready(msgspec.Struct, frozen=True, tag="ready"):
    """A worker can start."""


class _Done(msgspec.Struct, frozen=True, tag="done"):
    """A worker has written its last record."""

    interrupted: bool


class _Progress(msgspec.Struct, frozen=True, tag="progress"):
    counts: Counts


_Said = _Ready | _Progress | _Done


def num_workers(plan: Plan, concurrency: int | None = None) -> int:
    """One process for every 500 streams that the plan may have at once, but one core is left to others.

    In an open loop that is the most requests due within 10 s, as long as an answer is taken to last.
    """
    free_cores = max(1, (os.cpu_count() or 1) - 1)
    return min(free_cores, math.ceil(_most_streams(plan, concurrency) / _STREAMS_PER_WORKER))


def send(
    plan: Plan,
    target: Target,
    speech: Speech,
    timeouts: Timeouts,
    folder: Path,
    workers: int,
    concurrency: int | None = None,
    progress: Callable[[Counts], None] | None = None,
    observers: Sequence[Observer] = (),
    part: Part = Part(),  # noqa: B008 (frozen)
) -> bool:
    """Send the plan with so many processes; whether it was interrupted. The records are in the journals of `folder`.

    What `observers` see, and the requests of a worker that died, go into a journal of this process, the last one.
    Raises InvalidMeasurement when a worker cannot start.
    """
    plans = [one for one in plan.split(min(workers, concurrency or workers)) if one.requests]
    own = msgspec.structs.replace(part, worker=len(plans), num_workers=len(plans))
    jobs = [
        Job(
            plan=one,
            target=_warming(target, number, len(plans)),
            speech=speech,
            timeouts=timeouts,
            concurrency=_share(concurrency, number, len(plans)),
            journal=str(folder / journals.name(part.attempt, number)),
            part=msgspec.structs.replace(own, worker=number),
        )
        for number, one in enumerate(plans)
    ]
    fleet = _Fleet(jobs, progress)
    loop = new_loop()
    try:
        loop.run_until_complete(fleet.run(plan, target, own, folder, observers))
    finally:
        loop.close()
    return fleet.interrupted


class _Fleet:
    """The process that began the run, and its workers."""

    def __init__(self, jobs: Sequence[Job], progress: Callable[[Counts], None] | None) -> None:
        self.interrupted = False
        self._workers = [_Worker(job) for job in jobs]
        self._progress = progress
        self._at_work: asyncio.Task[None] | None = None

    async def run(self, plan: Plan, target: Target, own: Part, folder: Path, observers: Sequence[Observer]) -> None:
        """Start the workers together and wait for them; none is left behind."""
        with journals.Journal(folder / journals.name(own.attempt, own.worker)) as journal:
            async with AsyncExitStack() as observed:
                observed.push_async_callback(self._end)
                with interrupts(self._interrupt):
                    if not await self._unless_stopped(self._make_ready()):
                        journal.begin(header_of(plan, target, self._speech, now_ns(), own))
                        return
                    for observer in observers:
                        await observed.enter_async_context(observer(journal.append))
                    go_ns = now_ns() + _LEAD_NS
                    header = header_of(plan, target, self._speech, go_ns, own)
                    journal.begin(header)
                    with ticks(self._counts, self._progress):
                        await self._work(go_ns)
            for worker in self._workers:
                for record in worker.missing(header.start_ns):
                    journal.append(record)

    @property
    def _speech(self) -> str:
        return self._workers[0].job.speech.name

    async def _make_ready(self) -> None:
        await asyncio.gather(*(worker.make_ready() for worker in self._workers))

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether it came to its end before the user wanted no more of it."""
        self._at_work = asyncio.get_running_loop().create_task(work)
        try:
            await self._at_work
        except asyncio.CancelledError:
            return False
        finally:
            self._at_work = None
        return True

    async def _work(self, go_ns: int) -> None:
        for worker in self._workers:
            worker.tell(f"go {go_ns}")
        await asyncio.gather(*(worker.listen() for worker in self._workers))
        self.interrupted = self.interrupted or any(worker.interrupted for worker in self._workers)

    def _interrupt(self) -> None:
        """Once: the workers send nothing more. Twice: they do not wait for answers either."""
        if self._at_work is not None:
            self._at_work.cancel()
        for worker in self._workers:
            worker.tell("stop")
        if self.interrupted:
            asyncio.get_running_loop().call_later(_GOODBYE_S, self._kill)
        self.interrupted = True

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()

    async def _end(self) -> None:
        self._kill()
        await asyncio.gather(*(worker.reap() for worker in self._workers))

    def _counts(self) -> Counts:
        """Of all workers."""
        total: Counter[str] = Counter()
        for worker in self._workers:
            total.update(msgspec.structs.asdict(worker.counts))
        return Counts(**total)


class _Worker:
    """A worker seen from the process that began the run."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.counts = Counts(planned=len(job.plan.requests))
        self.interrupted = False
        self._done = False
        self._process: asyncio.subprocess.Process | None = None

    async def make_ready(self) -> None:
        """Start it, and wait until it could send. Raises InvalidMeasurement when it ends before that."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "llmbench.loadgen.fleet",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for us; we tell the workers
        )
        with contextlib.suppress(OSError):  # it is gone already; the end of its output says so too
            assert self._process.stdin is not None
            self._process.stdin.write(msgspec.json.encode(self.job) + b"\n")
            await self._process.stdin.drain()
        if not isinstance(await self._hear(), _Ready):
            raise InvalidMeasurement(f"measuring process {self.job.part.worker} did not start ({await self._how()})")

    def tell(self, order: str) -> None:
        """Say something to it, if it is there."""
        stdin = None if self._process is None else self._process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(f"{order}\n".encode())

    async def listen(self) -> None:
        """Take in what it says until it ends."""
        while (said := await self._hear()) is not None:
            if isinstance(said, _Progress):
                self.counts = said.counts
            elif isinstance(said, _Done):
                self._done, self.interrupted = True, said.interrupted
        self._ended = await self._how()

    def missing(self, start_ns: int) -> list[Record]:
        """Unfinished records for the requests that it would have written, had it lived."""
        if self._done:
            return []
        path, part = Path(self.job.journal), self.job.part
        try:
            found = journals.read(path).records
        except InputError:  # not even its first line
            found = []
        seen = {record.index for record in found}
        reason = f"measuring process {part.worker} died before it ended ({self._ended})"
        left = (planned for planned in self.job.plan.requests if planned.index not in seen)
        return [journals.unfinished(planned, start_ns, reason) for planned in left]

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def reap(self) -> None:
        """Wait until it is gone."""
        if self._process is not None:
            await self._process.wait()

    async def _hear(self) -> _Said | None:
        """The next thing it says; None at its end, or at a line that its death has cut off."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return msgspec.json.decode(line, type=_Said) if line.endswith(b"\n") else None

    async def _how(self) -> str:
        assert self._process is not None
        status = await self._process.wait()
        return f"exit status {status}" if status >= 0 else signal.Signals(-status).name


def _share(number: int | None, worker: int, workers: int) -> int | None:
    """The part of one worker of something that is counted; all of them together have as many as there are."""
    return None if number is None else number // workers + (worker < number % workers)


def _warming(target: Target, worker: int, workers: int) -> Target:
    """The target with one worker's part of the connections that are opened before."""
    warm = _share(target.way.warm_connections, worker, workers) or 0
    return msgspec.structs.replace(target, way=msgspec.structs.replace(target.way, warm_connections=warm))


def _most_streams(plan: Plan, concurrency: int | None) -> int:
    """How many requests may be under way at once."""
    due_s = sorted(planned.due_s for planned in plan.requests if planned.after is None)
    most, first = 1, 0
    for last, at_s in enumerate(due_s):
        while due_s[first] < at_s - _ANSWER_S:
            first += 1
        most = max(most, last - first + 1)
    return min(most, concurrency or most)


# -- a worker's side ----------------------------------------------------------------------------------------------


class _Orders:
    """What the worker is told after its job: `go INSTANT_NS` once, `stop` when the user wants no more.

    When nobody can tell it anything any more it stops at once: no worker outlives the process that began the run.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self.go: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(sys.stdin.fileno(), self._read)

    def _read(self) -> None:
        data = os.read(sys.stdin.fileno(), 4096)
        if not data:
            self._loop.remove_reader(sys.stdin.fileno())
            self._stop()
            self._stop()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            order, _, number = line.partition(b" ")
            if order == b"go":
                self.go.set_result(int(number))
            else:
                self._stop()

    def _stop(self) -> None:
        if not self.go.done():
            self.go.set_exception(InvalidMeasurement("stopped before the run began"))
        elif self.go.exception() is None:
            self._driver.interrupt()


def _say(what: _Said) -> None:
    """Tell the process that began the run; a count that it does not take, or a parent that is gone, is no matter."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), msgspec.json.encode(what) + b"\n")


async def _together(driver: Driver) -> int:
    """When all workers are ready."""
    orders = _Orders(driver)
    _say(_Ready())
    return await orders.go


def _work(job: Job) -> None:
    """Be a worker."""
    outcome = run(
        job.plan,
        job.target,
        job.speech.dialect(),
        job.timeouts,
        Path(job.journal),
        job.concurrency,
        lambda counts: _say(_Progress(counts)),
        [monitor],
        job.part,
        _together,
    )
    os.set_blocking(sys.stdout.fileno(), True)
    _say(_Done(outcome.interrupted))


def main() -> None:
    """The entry point of a worker process."""
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):  # the process that began the run is gone
        raise SystemExit(InvalidMeasurement.exit_code)
    os.set_blocking(sys.stdout.fileno(), False)  # a parent that is stopped must not stop the load
    try:
        _work(msgspec.json.decode(line, type=Job))
    except LlmbenchError as error:
        print(f"llmbench: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
