"""Checks of what came back: an answer to every request, of the length that was asked for, each token counted once."""

from itertools import pairwise

from llmbench.metrics import Trace
from llmbench.metrics.evidence import Check, Evidence


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


def instants_in_order(run: Evidence) -> Check:
    """Requests whose instants are not in the order in which things happen: clocks of two machines, or a fault of ours.

    released <= sent <= connected <= each read that brought tokens <= done. Where this holds, mean in flight =
    throughput * mean time from sent to done over the whole run (Little's law), since both are sums of the same times.
    """
    wrong = sum(any(before > after for before, after in pairwise(_instants(trace))) for trace in run.traces)
    return Check(
        id="instants",
        name="requests whose instants are out of order",
        value=wrong if run.traces else None,
        limit=0,
        unit="",
        verdict=("failed" if wrong else "ok") if run.traces else "not applicable",
        remedy="the journal is not of one clock: do not join journals of several machines",
    )


def _instants(trace: Trace) -> list[int]:
    known = [trace.released_ns, trace.sent_ns, trace.connected_ns, *trace.stamps_ns, trace.done_ns]
    return [at_ns for at_ns in known if at_ns is not None]
