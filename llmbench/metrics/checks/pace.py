"""Checks of the load that was offered: on time, at the planned rate, by the declared process, in one piece."""

from collections.abc import Sequence

from llmbench.metrics import Trace, arrivals, order, per_request, per_run
from llmbench.metrics.evidence import FLOOR_S, TOLERANCE, Check, Evidence, held_back, own_error_limit_s, up_to

OWN_CORES = "run it on its own cores or host, or lower --qps"
_SURE = 0.999


def own_lateness(run: Evidence) -> Check:
    """What the 99th percentile of sent - released is at least, against 5 % of the median TTFT, at least 2 ms.

    At least: with few requests their own 99th is their maximum, which one moment decides; so it is the order statistic
    that lies above the true one in 1 of 1,000 runs, with 60 requests the fifth largest. A burst without slots has no
    schedule to be late for: nobody can send a thousand requests in one instant.
    """
    traces = run.traces
    late = sorted(value for trace in traces if (value := per_request.lateness.of(trace)) is not None)
    limit_s = own_error_limit_s(traces)
    burst = len(late) > 1 and per_run.offered_rate.of(traces) is None and not held_back(traces)
    value_s = None if burst or not late else late[(order.ranks(len(late), 99, _SURE)[0] or 1) - 1]
    return Check(
        id="lateness",
        name="own lateness, p99 at least",
        value=value_s,
        limit=limit_s,
        unit="s",
        verdict=up_to(value_s, limit_s),
        remedy=f"the client's machine is too busy: {OWN_CORES}",
    )


def rate_kept(run: Evidence) -> Check:
    """|achieved / offered - 1| of the request rate; without meaning where slots hold requests back, or in a burst.

    Both are of the same due instants, so that chance does not enter. They differ by how late the first and the last
    request were: the limit is 2 %, and 2 ms at each end of the run.
    """
    traces = run.traces
    offered, achieved = per_run.offered_rate.of(traces), per_run.achieved_rate.of(traces)
    off = None if held_back(traces) or offered is None or achieved is None else abs(achieved / offered - 1)
    num_sent = sum(trace.sent_ns is not None for trace in traces)
    limit = TOLERANCE + (0.0 if offered is None else 2 * FLOOR_S * offered / max(1, num_sent - 1))
    return Check(
        id="rate",
        name="request rate off by",
        value=off,
        limit=limit,
        unit="",
        verdict=up_to(off, limit),
        remedy=f"the client could not keep up with the plan: {OWN_CORES}",
    )


def arrivals_as_declared(run: Evidence) -> Check:
    """The instants at which requests were sent, tested against the arrival process that the plan declares.

    The value is that of the test nearest to its limit, as a share of it. A clean run fails less than once in 1,000.
    """
    findings = [] if run.declared is None or held_back(run.traces) else _sent(run.traces, run.declared)
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
