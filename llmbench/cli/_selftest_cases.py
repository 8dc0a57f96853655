"""The cases of `llmbench selftest`: what is planted, and which checks must see it. A new case is one entry of CASES."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Literal

import msgspec
import numpy as np

from llmbench.clock import seconds
from llmbench.loadgen import doctored
from llmbench.loadgen.calibrate import Calibration
from llmbench.loadgen.doctored import Doctoring
from llmbench.loadgen.null_server import Faults, Settings, Truth
from llmbench.loadgen.record import Record
from llmbench.metrics import arrivals, per_request, per_run
from llmbench.metrics.checks import Check
from llmbench.metrics.evidence import own_error_limit_s
from llmbench.metrics.instrument import InstrumentError, errors
from llmbench.metrics.stalls import stalls
from llmbench.workload.plan import Plan

TTFT_S, GAP_S = 0.1, 0.005
_SLOWER = 0.1
_STALL_EVERY, _STALL_S = 5, 0.3


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent in a case."""

    qps: float = 100.0
    num_requests: int = 100
    num_tokens: int = 24
    num_prompts: int | None = None
    """Prompts that differ; None: all."""
    cache: Literal["any", "cold"] = "cold"
    timeout_s: float = 10.0


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run, and what was true."""

    plan: Plan
    records: Sequence[Record]
    answered: Sequence[Record]
    truths: Sequence[Truth]
    """Of the answered ones."""
    checks: Sequence[Check]
    stated: Calibration

    @property
    def error(self) -> InstrumentError:
        return errors(self.answered, self.truths)


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A number that must lie between two others; times in milliseconds."""

    what: str
    value: float
    low: float
    high: float
    unit: str = "ms"

    @property
    def ok(self) -> bool:
        return self.low <= self.value <= self.high

    @property
    def allowed(self) -> str:
        """The band in words."""
        if math.isinf(self.high):
            return f"{self.low:.3g} or more"
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return " ".join(([f"{middle:.3g}"] if middle else []) + ([f"± {half:.2g}"] if half else []))

    def __str__(self) -> str:
        shown = f"{self.value:.3g}{self.unit and f' {self.unit}'}"
        return f"{self.what} {shown} ({'' if self.ok else 'NOT '}{self.allowed})"


def _nothing_more(_: Measured) -> list[Figure]:
    return []


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A planted fault. All checks in `trips` must trip, those in `may` may, and no others."""

    name: str
    says: str
    trips: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset()
    server: Settings = Settings(ttft_s=TTFT_S, gap_s=GAP_S)
    work: Work = Work()
    client: Callable[[], Doctoring] = Doctoring
    figures: Callable[[Measured], list[Figure]] = _nothing_more
    calibrated: bool = False
    """Whether the check of the instrument's error is applied, too."""
    possible: Callable[[], bool] = lambda: True


# -- figures -----------------------------------------------------------------------------------------------------------


def _within(what: str, value_s: float | None, limit_s: float | None) -> Figure:
    """An error in ms that must be no larger than a limit, either way."""
    limit_ms = 1e3 * (limit_s or 0.0)
    return Figure(what=what, value=math.inf if value_s is None else 1e3 * value_s, low=-limit_ms, high=limit_ms)


def _as_stated(found: Measured) -> list[Figure]:
    """Mean errors within what the calibration stated, and p99 as reported within what the checks allow."""
    error, stated, most_s = found.error, found.stated.error, own_error_limit_s(found.answered)
    return [
        _within("TTFT - the truth, mean", error.ttft.mean_s, stated.ttft.high_s),
        _within("as p99", error.ttft_p99_shift_s, most_s),
        _within("a chunk's stamp, mean", error.stamp.mean_s, stated.stamp.high_s),
        _within("ICL, as p99", error.icl_p99_shift_s, most_s),
    ]


def _true_tpot(found: Measured) -> list[Figure]:
    """TPOT against the same formula over the true instants."""
    off = [
        per - seconds(truth.emitted_ns[0], truth.emitted_ns[-1]) / (len(truth.emitted_ns) - 1)
        for record, truth in zip(found.answered, found.truths, strict=True)
        if (per := per_request.tpot.of(record)) is not None
    ]
    return [_within("TPOT - the truth, mean", fmean(off) if off else None, _tpot_error_s(found))]


def _tpot_error_s(found: Measured) -> float:
    """Two stamps are in it, and all the gaps between them."""
    return 2 * (found.stated.error.stamp.high_s or 0.0) / (Work().num_tokens - 1)


def _true_first(found: Measured) -> list[Figure]:
    return [_within("TTFT - the truth, mean", found.error.ttft.mean_s, found.stated.error.ttft.high_s)]


def _slower(found: Measured) -> list[Figure]:
    """The median TTFT and TPOT over those of a server that is not slower, in per cent."""
    ttft = median(v for record in found.answered if (v := per_request.ttft_from_sent.of(record)) is not None)
    tpot = median(v for record in found.answered if (v := per_request.tpot.of(record)) is not None)
    return [
        _per_cent("TTFT", ttft / TTFT_S - 1, (found.stated.error.ttft.high_s or 0.0) / TTFT_S),
        _per_cent("TPOT", tpot / GAP_S - 1, _tpot_error_s(found) / GAP_S),
    ]


def _per_cent(what: str, value: float, within: float) -> Figure:
    low, high = 100 * (_SLOWER - within), 100 * (_SLOWER + within)
    return Figure(what=f"{what} is longer by", value=100 * value, low=low, high=high, unit="%")


def _frozen(found: Measured) -> list[Figure]:
    planted = len(range(0, len(found.records), _STALL_EVERY))
    num = stalls(found.answered).num_frozen
    return [Figure(what="answers that froze", value=num, low=planted, high=planted, unit="")]


def _collapsed(found: Measured) -> list[Figure]:
    error = found.error.ttft.mean_s or 0.0
    return [Figure(what="TTFT - the truth, mean", value=1e3 * error, low=50.0, high=math.inf)]


def _offers_less(found: Measured) -> list[Figure]:
    offered, achieved = per_run.offered_rate.of(found.records), per_run.achieved_rate.of(found.records)
    less = 0.0 if not offered or achieved is None else 1 - achieved / offered
    return [Figure(what="offers too little by", value=100 * less, low=8.0, high=math.inf, unit="%")]


def _dispersed(found: Measured) -> list[Figure]:
    """Of the whole plan in windows of 0.1 s."""
    due_s = sorted(planned.due_s for planned in found.plan.requests)
    counts = arrivals.window_counts(np.array(due_s), 0.1)
    return [Figure(what="index of dispersion", value=arrivals.dispersion(counts), low=4.0, high=math.inf, unit="")]


# -- cases -------------------------------------------------------------------------------------------------------------


def _faulty(**faults: float) -> Settings:
    """The usual server with these faults. Raises ConfigError for a fault that is none."""
    return Settings(ttft_s=TTFT_S, gap_s=GAP_S, faults=msgspec.convert(faults, Faults))


_BUSY_LOAD = Work(qps=200.0, num_requests=260, num_tokens=64)

CASES: tuple[Case, ...] = (
    Case(
        name="clean",
        says="nothing is wrong: no check trips, and what is measured is what was true",
        work=Work(num_requests=300),
        figures=_as_stated,
        calibrated=True,
    ),
    Case(
        name="merged-tokens",
        says="four tokens come in one event",
        server=_faulty(tokens_per_event=4),
        figures=_true_tpot,
    ),
    Case(
        name="buffered",
        says="a proxy writes what has gathered every 30 ms",
        trips=frozenset({"coalescing"}),
        server=_faulty(flush_s=0.03),
    ),
    Case(
        name="one-piece",
        says="a proxy keeps every stream until its end",
        trips=frozenset({"streaming", "coalescing"}),
        server=_faulty(flush_s=0.35),
    ),
    Case(
        name="drip",
        says="every event comes in writes of 48 bytes",
        server=_faulty(drip_bytes=48),
        figures=_true_first,
    ),
    Case(
        name="stalls",
        says="every fifth answer stops for 0.3 s",
        server=_faulty(stall_every=_STALL_EVERY, stall_after=5, stall_s=_STALL_S),
        figures=_frozen,
    ),
    Case(
        name="errors",
        says="5 % of the requests are answered with 503",
        trips=frozenset({"answered"}),
        server=_faulty(error_share=0.05),
    ),
    Case(
        name="broken-off",
        says="5 % of the answers end in the middle with a reset connection",
        trips=frozenset({"answered"}),
        server=_faulty(abort_share=0.05, abort_after=12),
    ),
    Case(
        name="lossy",
        says="connections are refused, and closed without an answer",
        trips=frozenset({"answered"}),
        server=_faulty(drop_share=0.05, refuse_share=0.1),
    ),
    Case(
        name="hanging",
        says="3 % of the answers stop and never go on",
        trips=frozenset({"answered"}),
        server=_faulty(hang_share=0.03, hang_after=3),
        work=Work(timeout_s=0.8),
    ),
    Case(
        name="truncated",
        says="5 % of the answers have half of the tokens that were asked for",
        trips=frozenset({"lengths"}),
        server=_faulty(truncate_share=0.05),
    ),
    Case(
        name="wrong-usage",
        says="usage counts 8 tokens more than were generated",
        trips=frozenset({"lengths", "ledger-tokens-server"}),
        server=_faulty(usage_off_by=8),
    ),
    Case(
        name="prefix-cache",
        says="prompts declared cold are found in the prefix cache",
        trips=frozenset({"cache"}),
        server=_faulty(cache_counted=True),
        work=Work(num_prompts=30),
    ),
    Case(
        name="answer-cache",
        says="repeated prompts are answered four times as fast, from a cache that nobody speaks of",
        trips=frozenset({"repeats"}),
        server=_faulty(cache_speed=0.25),
        work=Work(num_prompts=30),
    ),
    Case(
        name="slow-down",
        says="everything takes 10 % longer: that is the server's, and must be measured",
        server=_faulty(slow_down=_SLOWER),
        figures=_slower,
    ),
    Case(
        name="tenants",
        says="other clients send 5 requests per second to the same server",
        trips=frozenset({"ledger-requests"}),
        server=_faulty(tenant_rate=5.0),
    ),
    Case(
        name="clock-jump",
        says="the server's wall clock jumps back by a day",
        server=_faulty(clock_jump_after=40, clock_jump_s=-86_400.0),
        figures=_true_first,
    ),
    Case(
        name="overload",
        says="the server answers 8 at once, a third of what it is sent",
        trips=frozenset({"saturation"}),
        server=Settings(ttft_s=TTFT_S, gap_s=GAP_S, slots=8),
    ),
    Case(
        name="collapsing",
        says="a client that computes for 0.13 ms on every token collapses at 200 requests per second",
        trips=frozenset({"client-cpu", "lateness", "stalls"}),
        may=frozenset({"rate", "arrivals", "saturation", "drain", "coalescing", "streaming"}),
        server=Settings(ttft_s=0.05, gap_s=GAP_S),
        work=_BUSY_LOAD,
        client=lambda: doctored.slow_events(0.00013),
        figures=_collapsed,
    ),
    Case(
        name="relative-sleeps",
        says="a client that sleeps from one request to the next offers too little",
        trips=frozenset({"lateness", "rate"}),
        may=frozenset({"arrivals", "saturation"}),
        work=Work(qps=200.0, num_requests=240, num_tokens=8),
        client=doctored.relative_sleeps,
        figures=_offers_less,
    ),
    Case(
        name="same-seed",
        says="a client whose ten workers draw their arrivals from one seed",
        trips=frozenset({"arrivals"}),
        work=Work(qps=200.0, num_requests=300, num_tokens=8),
        client=lambda: doctored.in_step(10),
        figures=_dispersed,
    ),
    Case(
        name="blocked",
        says="a client whose event loop does something else for 60 ms, twice a second",
        trips=frozenset({"stalls"}),
        may=frozenset({"lateness", "arrivals"}),
        client=lambda: doctored.blocked(0.4, 0.06),
    ),
    Case(
        name="starved",
        says="a client that shares its core with five processes that never sleep, and would need a third of it",
        trips=frozenset({"lateness"}),
        may=frozenset({"stalls", "client-cpu", "rate", "arrivals", "saturation", "drain", "coalescing", "streaming"}),
        work=_BUSY_LOAD,
        client=lambda: doctored.starved(5),
        possible=doctored.can_starve,
    ),
)
