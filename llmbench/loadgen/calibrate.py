"""Calibration: the real client against the null server, so that a run can say how wrong its own numbers may be.

The null server and the client are the two processes of this machine that a measurement on it would be; what comes out
is the error of the instrument on this machine, at this load, now.
"""

import math
import os
import platform
import resource
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import numpy as np

from llmbench import protocols
from llmbench.clock import now_ns, seconds
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.loadgen.client import Timeouts, locate
from llmbench.loadgen.driver import Counts
from llmbench.loadgen.null_server import NullServer, Settings, launched, truth
from llmbench.loadgen.run import Outcome, run
from llmbench.metrics.instrument import InstrumentError, errors
from llmbench.types import Request
from llmbench.workload import plan as plans
from llmbench.workload.plan import Plan, PlannedRequest, PlanSettings

MAX_ERROR_S = 0.005
"""A load at which 1 % of TTFT are wrong by more than this, or 1 % of requests later, is not measured."""

_PROMPT = "say " * 32
_TIMEOUT_S = 20.0
_SERVER_LAG_SHARE = 0.2  # of an answer; more means that the null server offers less than was planned
_CLOSE_ENOUGH = 1.15  # between what was sustained and what was not
_MOST_REQUESTS = 20_000
_PREFLIGHT_TOKENS = 40
_PREFLIGHT_REQUESTS = 20
_PREFLIGHT_EVENTS_PER_S = 40_000.0  # no more than this is tried in the time there is
_LAUNCH_S = 0.4
_BUSIEST_S = 5.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent: requests as a Poisson process, or `streams` answers at once when there is no rate."""

    requests_per_s: float | None
    num_tokens: int
    streams: int | None = None
    """At most so many requests at once."""
    ttft_s: float = 0.05
    gap_s: float = 0.01
    send_s: float = 1.5
    """How long requests are sent; the last answers come after that."""

    @property
    def answer_s(self) -> float:
        """How long the null server takes for one answer."""
        return self.ttft_s + self.gap_s * (self.num_tokens - 1)

    @property
    def rate(self) -> float:
        """Requests per second: the one asked for, or as many as the streams can take."""
        most = self.streams / self.answer_s if self.streams else float("inf")
        return most if self.requests_per_s is None else min(self.requests_per_s, most)

    @property
    def events_per_s(self) -> float:
        """Tokens per second over all streams, each an event of its own."""
        return self.rate * self.num_tokens

    @property
    def num_requests(self) -> int:
        """Of one calibration."""
        return max(1, round(self.rate * self.send_s))


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """The most that was sustained with TTFT wrong by at most MAX_ERROR_S at the 99th percentile, and sent in time."""

    events_per_s: float
    """With answers of `num_tokens` tokens."""
    num_tokens: int
    requests_per_s: float
    """With answers of one token."""
    bound_by: str
    """What ended the search: the error, or that there was no time to go further up."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What the instrument adds on one machine at one load. CPU is the client's process', while its loop runs."""

    kind: str = "llmbench calibration 1"
    when: str
    """Local time, ISO 8601."""
    machine: str
    num_cpus: int
    """That this process may use."""
    software: str
    dialect: str
    load: Load
    num_requests: int
    num_answered: int
    events_per_s: float
    """Tokens that were emitted per second between the first and the last."""
    server_lag_s: float
    """How much later than it should the null server sent the last token, on average: it shares the machine."""
    error: InstrumentError
    cpu_s_per_1000_requests: float
    cpu_utilisation: float
    """CPU time / (last byte - first request due); 1 is a core."""
    ceiling: Ceiling | None = None

    @property
    def good(self) -> bool:
        """Whether this load is measured: everything answered, TTFT right and requests in time within MAX_ERROR_S."""
        worst = max(self.error.ttft.high_s or 0.0, self.error.lateness.high_s or 0.0)
        return self.num_answered == self.num_requests and worst <= MAX_ERROR_S


Say = Callable[[str], None]


def calibrate(load: Load, dialect_name: str = "openai_completions") -> Calibration:
    """Measure the instrument at a load; takes `load.send_s`, one answer and half a second.

    Raises InvalidMeasurement when nothing was answered, KeyboardInterrupt when it was interrupted.
    """
    with launched(_settings(load)) as server:
        return measure(load, dialect_name, server)


def preflight(plan: Plan, dialect_name: str, budget_s: float = 2.0, concurrency: int | None = None) -> Calibration:
    """The instrument's error at the load that a plan will offer, in `budget_s` seconds and little more.

    How fast the server to be measured answers is not known: the calibration has the plan's tokens per second in its
    busiest five seconds, in answers of at most 40 tokens 10 ms apart, 20 requests or more. Raises as `calibrate`.
    """
    return calibrate(planned_load(plan, budget_s, concurrency), dialect_name)


def planned_load(plan: Plan, budget_s: float = 2.0, concurrency: int | None = None) -> Load:
    """The load of a plan as `preflight` tries it. Raises InputError for a plan without requests."""
    if not plan.requests:
        raise InputError("a plan without requests cannot be calibrated for")
    tokens = [each.expected_tokens or each.request.max_new_tokens or 64 for each in plan.requests]
    own = max(1, round(float(np.mean(tokens))))
    num_tokens = min(own, _PREFLIGHT_TOKENS)
    load = Load(requests_per_s=None, num_tokens=num_tokens)
    send_s = max(0.5, budget_s - _LAUNCH_S - load.answer_s)
    rate = min(_busiest(plan.requests), _most(plan.requests, concurrency) / load.answer_s)
    rate = max(rate * own / num_tokens, _PREFLIGHT_REQUESTS / send_s)
    rate = min(rate, _PREFLIGHT_EVENTS_PER_S / num_tokens)
    return msgspec.structs.replace(load, requests_per_s=rate, send_s=send_s)


def measure(load: Load, dialect_name: str, server: NullServer) -> Calibration:
    """One run against a null server that behaves as the load says. Raises as `calibrate`."""
    used_s: list[float] = []  # CPU time at the start of the loop, now and then, and at its end
    with tempfile.TemporaryDirectory() as folder:
        outcome = _run(load, dialect_name, server, Path(folder) / "journal.jsonl", lambda _: used_s.append(_cpu_s()))
    cpu_s = used_s[-1] - used_s[0]
    answered = [record for record in outcome.records if record.status == "answered"]
    if not answered:
        reasons = {record.reason for record in outcome.records}
        raise InvalidMeasurement(f"calibration: the null server answered nothing ({'; '.join(sorted(reasons))})")
    truths = [truth(record.text) for record in answered]
    emitted = [instant for one in truths for instant in one.emitted_ns]
    due = min(record.due_ns for record in outcome.records)
    return Calibration(
        when=datetime.now().astimezone().isoformat(timespec="seconds"),
        machine=machine(),
        num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        software=software(),
        dialect=dialect_name,
        load=load,
        num_requests=len(outcome.records),
        num_answered=len(answered),
        events_per_s=len(emitted) / max(seconds(min(emitted), max(emitted)), load.gap_s, 1e-3),
        server_lag_s=float(np.mean([seconds(t.received_ns, t.emitted_ns[-1]) for t in truths])) - load.answer_s,
        error=errors(answered, truths),
        cpu_s_per_1000_requests=1000 * cpu_s / len(outcome.records),
        cpu_utilisation=cpu_s / max(seconds(due, max(record.done_ns or due for record in answered)), 1e-3),
    )


def ceiling(
    dialect_name: str = "openai_completions", num_tokens: int = 64, budget_s: float = 8.0, say: Say = lambda _: None
) -> Ceiling:
    """Find the most events per second and the most requests per second that this machine sustains, in about `budget_s`.

    Loads are doubled until one is too much, tried twice so that one disturbance does not decide; then the last step is
    halved while there is time. Two thirds of the time go to long answers, a third to answers of one token.
    """
    long = Load(requests_per_s=100.0, num_tokens=num_tokens, gap_s=0.004, send_s=budget_s / 10)
    short = Load(requests_per_s=400.0, num_tokens=1, ttft_s=0.02, send_s=budget_s / 16)
    events, bound_by = _climb(long, dialect_name, budget_s * 0.65, say)
    requests, _ = _climb(short, dialect_name, budget_s * 0.35, say)
    return Ceiling(events_per_s=events * num_tokens, num_tokens=num_tokens, requests_per_s=requests, bound_by=bound_by)


def share_of_ceiling(found: Calibration, requests_per_s: float, num_tokens: float) -> float:
    """What share of what this machine sustains a load would use, at most.

    With a ceiling: requests / most requests + events / most events, which counts the requests of the long answers
    twice. Without: CPU utilisation, scaled by events.
    """
    events = requests_per_s * num_tokens
    if found.ceiling is None:
        return found.cpu_utilisation * events / max(found.load.events_per_s, 1e-9)
    most = found.ceiling
    if not most.requests_per_s or not most.events_per_s:  # not even the lowest load was sustained
        return math.inf
    return requests_per_s / most.requests_per_s + events / most.events_per_s


def plus_minus(found: Calibration) -> str:
    """The error in words, for beside results: `instrument error: TTFT ± 0.4 ms, a chunk's stamp ± 0.1 ms`."""
    errors_s = {"TTFT": found.error.ttft.high_s, "a chunk's stamp": found.error.stamp.high_s}
    shown = [f"{name} ± {1e3 * value:.2g} ms" for name, value in errors_s.items() if value is not None]
    return f"instrument error: {', '.join(shown) or 'unknown'}"


def save(found: Calibration, path: Path) -> None:
    """Write it as JSON. Raises InputError."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot write the calibration ({error.strerror})") from error


def read(path: Path) -> Calibration:
    """Read a saved calibration. Raises InputError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except OSError as error:
        raise InputError(f"{path}: cannot read the calibration ({error.strerror})") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a calibration of llmbench ({error})") from error


def machine() -> str:
    """The processor and the system, for people."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(models, platform.machine())}, {platform.system()} {platform.release()}"


def software() -> str:
    """The interpreter and the event loop."""
    try:
        loop = f"uvloop {version('uvloop')}"
    except PackageNotFoundError:
        loop = "asyncio"
    return f"Python {platform.python_version()}, {loop}"


class _Step(msgspec.Struct, frozen=True):
    rate: float
    good: bool
    server_bound: bool


def _climb(load: Load, dialect_name: str, budget_s: float, say: Say) -> tuple[float, str]:
    """The highest rate that was sustained, 0 when none was, and what ended the search."""
    end_ns = now_ns() + round(budget_s * 1e9)
    best, bad, rate, bound_by = 0.0, float("inf"), load.rate, "time"
    with launched(_settings(load)) as server:
        while True:
            step = _step(msgspec.structs.replace(load, requests_per_s=rate), dialect_name, server)
            say(f"{rate * load.num_tokens:8,.0f} tokens/s, {rate:6,.0f} requests/s: {'yes' if step.good else 'no'}")
            if step.good:
                best = rate
            else:
                bad, bound_by = rate, "the null server" if step.server_bound else "the error"
            rate = best * 2 if bad == float("inf") else (best + bad) / 2
            step_s = load.send_s + load.answer_s + rate * load.send_s * load.num_tokens * 10e-6
            if seconds(now_ns(), end_ns) < step_s or bad < best * _CLOSE_ENOUGH or rate * load.send_s > _MOST_REQUESTS:
                return best, bound_by


def _step(load: Load, dialect_name: str, server: NullServer) -> _Step:
    """Whether a load is sustained, in one of two attempts."""
    for _ in range(2):
        found = measure(load, dialect_name, server)
        server_bound = found.server_lag_s > _SERVER_LAG_SHARE * load.answer_s
        if found.good and not server_bound:
            break
    return _Step(load.rate, found.good and not server_bound, server_bound)


def _settings(load: Load) -> Settings:
    return Settings(ttft_s=load.ttft_s, gap_s=load.gap_s)


def _run(
    load: Load, dialect_name: str, server: NullServer, journal: Path, progress: Callable[[Counts], None]
) -> Outcome:
    timeouts = Timeouts(head_s=_TIMEOUT_S, total_s=_TIMEOUT_S)
    dialect = protocols.get(dialect_name)
    outcome = run(_plan(load, dialect_name), locate(server.url), dialect, timeouts, journal, load.streams, progress)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return outcome


def _plan(load: Load, dialect_name: str) -> Plan:
    """A Poisson process, the same every time; all at once where only the streams limit it."""
    number = load.num_requests
    gaps = np.random.default_rng(0).exponential(1 / load.rate, number) if load.requests_per_s else np.zeros(number)
    requests = tuple(
        PlannedRequest(
            index=index,
            due_s=due_s,
            request=Request(prompt=_PROMPT, max_new_tokens=load.num_tokens, request_id=f"calibrate-{index:05d}"),
            expected_tokens=load.num_tokens,
        )
        for index, due_s in enumerate(np.cumsum(gaps).tolist())
    )
    settings = PlanSettings(
        dataset="calibration",
        num_samples=1,
        arrivals="poisson" if load.requests_per_s else "burst",
        qps=load.rate,
        rate=load.requests_per_s,
        seed=0,
        dialect=dialect_name,
    )
    return Plan(settings=settings, requests=requests, sha256=plans.hash_of(requests))


def _busiest(requests: Sequence[PlannedRequest]) -> float:
    """Requests per second in the busiest five seconds of those with an instant; without limit in a closed loop."""
    if any(each.after == "slot" for each in requests):
        return math.inf
    due_s = np.sort([each.due_s for each in requests if each.after is None])
    within = np.searchsorted(due_s, due_s + _BUSIEST_S) - np.arange(len(due_s))
    return float(within.max() / min(_BUSIEST_S, max(float(due_s[-1]), 1.0)))


def _most(requests: Sequence[PlannedRequest], concurrency: int | None) -> float:
    """At most so many answers at once: the users of a closed loop, or the slots."""
    closed = any(each.after == "slot" for each in requests)
    users = sum(each.after is None for each in requests) if closed else math.inf
    return min(users, concurrency or math.inf)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
