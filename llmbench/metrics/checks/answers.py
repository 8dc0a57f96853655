"""Checks of what came back: an answer to every request, of the length that was asked for, each token counted once."""

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
