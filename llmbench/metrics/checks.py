"""Whether a run may be believed. Each check is one function from the traces to a value, its limit and a way out."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from llmbench.metrics import Trace, arrivals, per_request, per_run
from llmbench.metrics.summary import percentile

_LATENESS_SHARE = 0.05  # of the median time to first token
_LATENESS_FLOOR_S = 0.002  # below it the operating system's own scheduling is the limit
_RATE_TOLERANCE = 0.02
_ENOUGH_FOR_P99 = 200

Verdict = Literal["ok", "failed", "not applicable"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check's outcome; `remedy` says what to do when it failed."""

    name: str
    value: float | None
    limit: float | None
    unit: str
    verdict: Verdict
    remedy: str = ""


def all_answered(traces: Sequence[Trace]) -> Check:
    """Requests without an answer; one lost request can hide the slowest one."""
    lost = sum(trace.status != "answered" for trace in traces)
    return Check(
        name="requests without an answer",
        value=lost,
        limit=0,
        unit="",
        verdict="failed" if lost else "ok",
        remedy="see the reasons; lower --qps, raise --timeout, or mend the server",
    )


def output_lengths(traces: Sequence[Trace]) -> Check:
    """Answered requests with another number of tokens than was asked, unless the model itself ended them."""
    asked = [trace for trace in traces if trace.status == "answered" and trace.expected_tokens is not None]
    wrong = sum(
        trace.num_tokens != trace.expected_tokens and trace.finish_reason not in ("eos", "stop") for trace in asked
    )
    return Check(
        name="answers of another length than asked",
        value=wrong if asked else None,
        limit=0,
        unit="",
        verdict=("failed" if wrong else "ok") if asked else "not applicable",
        remedy="the server cuts or stretches answers: its times are of other work than planned",
    )


def own_lateness(traces: Sequence[Trace]) -> Check:
    """A high percentile of sent - released, against 5 % of the median time to first token, at least 2 ms.

    It is the 99th with 200 requests or more, the 95th with fewer, whose 99th is little more than their maximum.
    A burst without slots has no schedule to be late for: nobody can send a thousand requests in one instant.
    """
    late = sorted(value for trace in traces if (value := per_request.lateness.of(trace)) is not None)
    first = sorted(value for trace in traces if (value := per_request.ttft_from_sent.of(trace)) is not None)
    limit_s = max(_LATENESS_FLOOR_S, _LATENESS_SHARE * (percentile(first, 50) or 0.0))
    burst = len(late) > 1 and per_run.offered_rate.of(traces) is None and not _held_back(traces)
    level = 99 if len(late) >= _ENOUGH_FOR_P99 else 95
    value_s = None if burst else percentile(late, level)
    return Check(
        name=f"own lateness, p{level}",
        value=value_s,
        limit=limit_s,
        unit="s",
        verdict="not applicable" if value_s is None else "ok" if value_s <= limit_s else "failed",
        remedy="the client's machine is too busy: run it on its own cores or host, or lower --qps",
    )


def rate_kept(traces: Sequence[Trace]) -> Check:
    """|achieved / offered - 1| of the request rate; without meaning where slots hold requests back, or in a burst."""
    offered, achieved = per_run.offered_rate.of(traces), per_run.achieved_rate.of(traces)
    off = None if _held_back(traces) or offered is None or achieved is None else abs(achieved / offered - 1)
    return Check(
        name="request rate off by",
        value=off,
        limit=_RATE_TOLERANCE,
        unit="",
        verdict="not applicable" if off is None else "ok" if off <= _RATE_TOLERANCE else "failed",
        remedy="the client could not keep up with the plan: lower --qps",
    )


def arrivals_as_declared(traces: Sequence[Trace], declared: arrivals.Declaration) -> Check:
    """The instants at which requests were sent, tested against the arrival process that the plan declares.

    The value is that of the test nearest to its limit, as a share of it. A clean run fails less than once in 1,000.
    """
    sent_s = {
        trace.index: declared.due_s[trace.index] + (trace.sent_ns - trace.due_ns) / 1e9
        for trace in traces
        if trace.sent_ns is not None and trace.index in declared.due_s
    }
    findings = [] if _held_back(traces) else arrivals.examine_sent(declared, sent_s)
    worst = max((finding for finding in findings if finding.ok is not None), key=lambda f: f.strain, default=None)
    if worst is None:
        return Check(name="arrivals as declared", value=None, limit=1.0, unit="", verdict="not applicable")
    return Check(
        name="arrivals as declared",
        value=worst.strain,
        limit=1.0,
        unit="",
        verdict="ok" if worst.ok else "failed",
        remedy=f"{worst.name} is {worst.value:.3g}, the declared process gives {worst.low:.3g} to {worst.high:.3g}: "
        "the load was another one; run the client on a quieter machine, or see `llmbench plan inspect`",
    )


def _held_back(traces: Sequence[Trace]) -> bool:
    """Whether any request waited for a slot."""
    return any(per_request.slot_wait.of(trace) for trace in traces)


CHECKS = (all_answered, output_lengths, own_lateness, rate_kept)


def check(traces: Sequence[Trace], declared: arrivals.Declaration | None = None) -> list[Check]:
    """All checks of a run; that of the arrivals only with the process that its plan declares."""
    outcomes = [function(traces) for function in CHECKS]
    return outcomes if declared is None else [*outcomes, arrivals_as_declared(traces, declared)]


def valid(checks: Sequence[Check]) -> bool:
    """Whether none has failed."""
    return all(outcome.verdict != "failed" for outcome in checks)
