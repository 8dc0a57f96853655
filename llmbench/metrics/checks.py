"""Whether a run may be believed. Each check is one function from the traces to a value, its limit and a way out."""

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import msgspec

from llmbench.errors import InputError
from llmbench.metrics import Trace, arrivals, per_request, per_run
from llmbench.metrics.summary import percentile

_LATENESS_SHARE = 0.05  # of the median time to first token
_LATENESS_FLOOR_S = 0.002  # below it the operating system's own scheduling is the limit
_RATE_TOLERANCE = 0.02
_ENOUGH_FOR_P99 = 200

Verdict = Literal["ok", "failed", "inconclusive", "not applicable"]
RunVerdict = Literal["VALID", "INVALID", "INCONCLUSIVE"]
EXIT: dict[RunVerdict, int] = {"VALID": 0, "INVALID": 3, "INCONCLUSIVE": 4}


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a run; what is None or empty was not observed, and its checks are not applicable."""

    traces: Sequence[Trace]
    declared: arrivals.Declaration | None = None
    """The arrival process of the plan."""
    seams_s: Sequence[float] = ()
    """The seconds of the plan at which the run was taken up again after it had broken off."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check's outcome; `remedy` says what to do when it is not ok. `id` is what `--allow` names."""

    id: str
    name: str
    value: float | None
    limit: float | None
    unit: str
    verdict: Verdict
    remedy: str = ""
    allowed: bool = False
    """Whether the user said that the run may count all the same."""


def all_answered(run: Evidence) -> Check:
    """Requests without an answer; one lost request can hide the slowest one."""
    lost = sum(trace.status != "answered" for trace in run.traces)
    return Check(
        id="answered",
        name="requests without an answer",
        value=lost,
        limit=0,
        unit="",
        verdict="failed" if lost else "ok",
        remedy="see the reasons; lower --qps, raise --timeout, or mend the server",
    )


def output_lengths(run: Evidence) -> Check:
    """Answered requests with another number of tokens than was asked, unless the model itself ended them."""
    asked = [trace for trace in run.traces if trace.status == "answered" and trace.expected_tokens is not None]
    wrong = sum(
        trace.num_tokens != trace.expected_tokens and trace.finish_reason not in ("eos", "stop") for trace in asked
    )
    return Check(
        id="lengths",
        name="answers of another length than asked",
        value=wrong if asked else None,
        limit=0,
        unit="",
        verdict=("failed" if wrong else "ok") if asked else "not applicable",
        remedy="the server cuts or stretches answers: its times are of other work than planned",
    )


def own_lateness(run: Evidence) -> Check:
    """A high percentile of sent - released, against 5 % of the median time to first token, at least 2 ms.

    It is the 99th with 200 requests or more, the 95th with fewer, whose 99th is little more than their maximum.
    A burst without slots has no schedule to be late for: nobody can send a thousand requests in one instant.
    """
    traces = run.traces
    late = sorted(value for trace in traces if (value := per_request.lateness.of(trace)) is not None)
    first = sorted(value for trace in traces if (value := per_request.ttft_from_sent.of(trace)) is not None)
    limit_s = max(_LATENESS_FLOOR_S, _LATENESS_SHARE * (percentile(first, 50) or 0.0))
    burst = len(late) > 1 and per_run.offered_rate.of(traces) is None and not _held_back(traces)
    level = 99 if len(late) >= _ENOUGH_FOR_P99 else 95
    value_s = None if burst else percentile(late, level)
    return Check(
        id="lateness",
        name=f"own lateness, p{level}",
        value=value_s,
        limit=limit_s,
        unit="s",
        verdict="not applicable" if value_s is None else "ok" if value_s <= limit_s else "failed",
        remedy="the client's machine is too busy: run it on its own cores or host, or lower --qps",
    )


def rate_kept(run: Evidence) -> Check:
    """|achieved / offered - 1| of the request rate; without meaning where slots hold requests back, or in a burst."""
    traces = run.traces
    offered, achieved = per_run.offered_rate.of(traces), per_run.achieved_rate.of(traces)
    off = None if _held_back(traces) or offered is None or achieved is None else abs(achieved / offered - 1)
    return Check(
        id="rate",
        name="request rate off by",
        value=off,
        limit=_RATE_TOLERANCE,
        unit="",
        verdict="not applicable" if off is None else "ok" if off <= _RATE_TOLERANCE else "failed",
        remedy="the client could not keep up with the plan: lower --qps",
    )


def arrivals_as_declared(run: Evidence) -> Check:
    """The instants at which requests were sent, tested against the arrival process that the plan declares.

    The value is that of the test nearest to its limit, as a share of it. A clean run fails less than once in 1,000.
    """
    findings = [] if run.declared is None or _held_back(run.traces) else _sent(run.traces, run.declared)
    worst = max((finding for finding in findings if finding.ok is not None), key=lambda f: f.strain, default=None)
    remedy = (
        ""
        if worst is None
        else (
            f"{worst.name} is {worst.value:.3g}, the declared process gives {worst.low:.3g} to {worst.high:.3g}: "
            "the load was another one; run the client on a quieter machine, or see `llmbench plan inspect`"
        )
    )
    return Check(
        id="arrivals",
        name="arrivals as declared",
        value=None if worst is None else worst.strain,
        limit=1.0,
        unit="",
        verdict="not applicable" if worst is None else "ok" if worst.ok else "failed",
        remedy=remedy,
    )


def in_one_piece(run: Evidence) -> Check:
    """How often the run was taken up again: the server had time to rest at each seam, so its load was another one."""
    return Check(
        id="resumed",
        name="times the run was resumed",
        value=len(run.seams_s),
        limit=0,
        unit="",
        verdict="inconclusive" if run.seams_s else "ok",
        remedy="latencies around a seam are those of an idle server: repeat the whole run, or --allow resumed",
    )


def _sent(traces: Sequence[Trace], declared: arrivals.Declaration) -> list[arrivals.Finding]:
    """The tests of the instants at which the requests were sent."""
    sent_s = {
        trace.index: declared.due_s[trace.index] + (trace.sent_ns - trace.due_ns) / 1e9
        for trace in traces
        if trace.sent_ns is not None and trace.index in declared.due_s
    }
    return arrivals.examine_sent(declared, sent_s)


def _held_back(traces: Sequence[Trace]) -> bool:
    """Whether any request waited for a slot."""
    return any(per_request.slot_wait.of(trace) for trace in traces)


CHECKS: tuple[Callable[[Evidence], Check], ...] = (
    all_answered,
    output_lengths,
    own_lateness,
    rate_kept,
    arrivals_as_declared,
    in_one_piece,
)


def check(run: Evidence, allow: Collection[str] = ()) -> list[Check]:
    """All checks of a run; those whose ids are in `allow` are marked so. Raises InputError for an id that is none."""
    outcomes = [function(run) for function in CHECKS]
    unknown = set(allow) - {outcome.id for outcome in outcomes}
    if unknown:
        known = ", ".join(outcome.id for outcome in outcomes)
        raise InputError(f"--allow {min(unknown)}: there is no such check; the checks are {known}")
    return [msgspec.structs.replace(outcome, allowed=True) if outcome.id in allow else outcome for outcome in outcomes]


def verdict(checks: Sequence[Check]) -> RunVerdict:
    """INVALID when a check failed, else INCONCLUSIVE when one could not tell; allowed ones do not count."""
    found = {outcome.verdict for outcome in checks if not outcome.allowed}
    return "INVALID" if "failed" in found else "INCONCLUSIVE" if "inconclusive" in found else "VALID"
