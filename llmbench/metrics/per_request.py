"""Metrics of one request, in seconds. None means that the request has no such time; `GAPS` give many for one answer.

Two families: from the instant the request was *due*, which is what a user of an open system waits, our own lateness
included; and from the instant it was *sent*, which is what the server took.
"""

import math
from itertools import pairwise

from llmbench.clock import seconds
from llmbench.metrics import Trace, metric


@metric("TTFT", "s", "lower")
def ttft(trace: Trace) -> float | None:
    """First token - due; infinite for a request that was sent and has no whole answer."""
    if trace.status != "answered":
        return _lost(trace)
    return seconds(trace.due_ns, trace.stamps_ns[0]) if trace.stamps_ns else None


@metric("TTFOT", "s", "lower")
def ttfot(trace: Trace) -> float | None:
    """First token behind the reasoning - due; of answered requests whose model reasoned before its answer."""
    if trace.status != "answered" or trace.first_answer_ns is None:
        return None
    return seconds(trace.due_ns, trace.first_answer_ns)


@metric("E2EL", "s", "lower")
def e2el(trace: Trace) -> float | None:
    """Last byte - due; infinite for a request that was sent and has no whole answer."""
    if trace.status != "answered" or trace.done_ns is None:
        return _lost(trace)
    return seconds(trace.due_ns, trace.done_ns)


@metric("TPOT", "s", "lower")
def tpot(trace: Trace) -> float | None:
    """(last token - first token) / (tokens - 1); tokens as streamed, as the server counts where pieces do not say."""
    tokens = sum(trace.tokens)  # the end of an answer may count as one that is not streamed
    if not trace.exact_tokens and abs(trace.num_tokens - tokens) > 1:
        tokens = trace.num_tokens
    if trace.status != "answered" or tokens < 2 or not trace.stamps_ns:
        return None
    return seconds(trace.stamps_ns[0], trace.stamps_ns[-1]) / (tokens - 1)


@metric("TTFT from sent", "s", "lower")
def ttft_from_sent(trace: Trace) -> float | None:
    """First token - sent, of answered requests: what the server and the connection took."""
    if trace.status != "answered" or trace.sent_ns is None or not trace.stamps_ns:
        return None
    return seconds(trace.sent_ns, trace.stamps_ns[0])


@metric("service time", "s", "lower")
def service_time(trace: Trace) -> float | None:
    """Last byte - sent, of answered requests; the contest's `res_time`."""
    if trace.status != "answered" or trace.sent_ns is None or trace.done_ns is None:
        return None
    return seconds(trace.sent_ns, trace.done_ns)


@metric("connect", "s", "lower")
def connect(trace: Trace) -> float | None:
    """Connection ready - sent; 0 for a connection that was kept."""
    if trace.sent_ns is None or trace.connected_ns is None:
        return None
    return seconds(trace.sent_ns, trace.connected_ns)


@metric("own lateness", "s", "lower")
def lateness(trace: Trace) -> float | None:
    """Sent - released: how late we were, waiting for a free slot left out."""
    if trace.sent_ns is None or trace.released_ns is None:
        return None
    return seconds(trace.released_ns, trace.sent_ns)


@metric("client wait", "s", "lower")
def client_wait(trace: Trace) -> float | None:
    """Sent - due: slot wait and own lateness together; TTFT = client wait + TTFT from sent, and so for E2EL."""
    return None if trace.sent_ns is None else seconds(trace.due_ns, trace.sent_ns)


@metric("slot wait", "s", "lower")
def slot_wait(trace: Trace) -> float | None:
    """Released - due: how long the request waited for a free slot under a concurrency limit."""
    return None if trace.released_ns is None else seconds(trace.due_ns, trace.released_ns)


def _lost(trace: Trace) -> float | None:
    """Whoever sent it waits for ever; one that an interrupted run never sent has no time at all."""
    return None if trace.sent_ns is None else math.inf


@metric("ICL", "s", "lower")
def icl(trace: Trace) -> list[float]:
    """Gaps between one read that brought tokens and the next: what a reader sees, however many tokens each brought."""
    if trace.status != "answered":
        return []
    return [seconds(before, after) for before, after in pairwise(trace.stamps_ns)]


@metric("ITL", "s", "lower")
def itl(trace: Trace) -> list[float]:
    """Gaps between one token and the next, 0 within a read; of answers whose pieces say how many tokens they bring."""
    if trace.status != "answered" or not trace.exact_tokens:
        return []
    gaps: list[float] = []
    before_ns: int | None = None
    for stamp_ns, tokens in zip(trace.stamps_ns, trace.tokens, strict=True):
        if before_ns is not None:
            gaps.append(seconds(before_ns, stamp_ns))
        gaps += [0.0] * (tokens - 1)
        before_ns = stamp_ns
    return gaps


METRICS = (ttft, ttfot, ttft_from_sent, tpot, e2el, service_time, client_wait, connect, lateness, slot_wait)
GAPS = (icl, itl)
