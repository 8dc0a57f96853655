"""Checks of the streams: tokens counted once, one by one, and not all at the end."""

from llmbench.metrics import Trace, per_request
from llmbench.metrics.evidence import TOLERANCE, Check, Evidence, answered, up_to

_COALESCED = 0.5
_FEWEST_TOKENS = 8
_FEWEST_S = 0.05
_WHOLE = 0.5


def tokens_counted(run: Evidence) -> Check:
    """Tokens that the pieces of a stream say they bring, against those that the server says the answers have.

    The sum over answers of how far the two are apart, but for one token at the end of each, over the latter. TPOT and
    ITL are of the former, and off by that share; the limit is that of rates. Answers whose pieces do not say how many
    tokens they bring are left out: they have no ITL, and their TPOT is of the server's count.
    """
    known = [trace for trace in answered(run.traces) if trace.exact_tokens]
    streamed = [trace for trace in known if trace.stamps_ns and trace.num_tokens]
    total = sum(trace.num_tokens for trace in streamed)
    off = sum(max(0, abs(trace.num_tokens - sum(trace.tokens)) - 1) for trace in streamed)
    value = off / total if total else None
    return Check(
        id="ledger-tokens",
        name="tokens in the streams, off the server's count by",
        value=value,
        limit=TOLERANCE,
        unit="",
        verdict=up_to(value, TOLERANCE, "inconclusive"),
        remedy="the server contradicts itself: trust neither TPOT nor ITL, or --allow ledger-tokens",
    )


def not_coalesced(run: Evidence) -> Check:
    """The share of pieces of answers that came in one read with the piece before.

    The gap before such a piece is not the server's. With more than half of them the median of ICL is not.
    Answers that were there within 50 ms are left out: of these nobody reads the gaps.
    """
    streamed = [trace for trace in _slow(run) if trace.num_pieces > 1]
    gaps = sum(trace.num_pieces - 1 for trace in streamed)
    value = sum(trace.num_pieces - len(trace.stamps_ns) for trace in streamed) / gaps if gaps else None
    return Check(
        id="coalescing",
        name="pieces that came in one read with the one before",
        value=value,
        limit=_COALESCED,
        unit="",
        verdict=up_to(value, _COALESCED, "inconclusive"),
        remedy="a proxy, the server or a client that is late (see `stalls`) puts pieces together: TPOT holds, ICL does "
        "not; switch buffering off (nginx: proxy_buffering off), or --allow coalescing",
    )


def streams_at_all(run: Evidence) -> Check:
    """The share of answers of 8 tokens and more whose tokens all came in one read, though it took 50 ms or more."""
    long = [trace for trace in _slow(run) if trace.num_tokens >= _FEWEST_TOKENS]
    value = sum(len(trace.stamps_ns) == 1 for trace in long) / len(long) if long else None
    return Check(
        id="streaming",
        name="answers that came in one piece",
        value=value,
        limit=_WHOLE,
        unit="",
        verdict=up_to(value, _WHOLE),
        remedy="TTFT is the time to the whole answer: something between holds the stream back, or the server does not "
        "stream; --allow streaming if you read E2EL and throughput only",
    )


def _slow(run: Evidence) -> list[Trace]:
    """Answers that were streamed and took 50 ms or more."""
    streamed = (trace for trace in answered(run.traces) if trace.stamps_ns)
    return [trace for trace in streamed if (per_request.service_time.of(trace) or 0.0) >= _FEWEST_S]
