"""The load generator's own error: what it reported of answers whose true instants are known, minus the truth."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise, repeat
from typing import Protocol

import msgspec

from llmbench.clock import seconds
from llmbench.metrics import Trace, per_request
from llmbench.metrics.summary import percentile

_ENOUGH_FOR_P99 = 200


class Emissions(Protocol):
    """The true instants of one answer, in ns on the clock of the traces."""

    @property
    def received_ns(self) -> int:
        """The server had read the complete request."""
        ...

    @property
    def emitted_ns(self) -> Sequence[int]:
        """Each token was handed to the socket."""
        ...


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Errors in seconds, above 0 when too much was reported. All None when there was nothing to compare."""

    num: int
    mean_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    p999_s: float | None

    @property
    def high_s(self) -> float | None:
        """The 99th percentile; the 95th of fewer than 200 errors, whose 99th is little more than their maximum."""
        return self.p99_s if self.num >= _ENOUGH_FOR_P99 else self.p95_s


class InstrumentError(msgspec.Struct, frozen=True, kw_only=True):
    """What the client, the sockets and the system between two processes add to the truth.

    ttft      (first stamp - sent) - (first emission - request received), per request
    stamp     stamp of the read that brought a token - the token's emission, per token
    lateness  sent - released, per request
    *_shift   a percentile as reported - the same percentile of the truth: what a report is wrong by. ICL are the gaps
              between tokens, 0 within one read or one event
    """

    ttft: Spread
    stamp: Spread
    lateness: Spread
    ttft_p99_shift_s: float | None
    icl_p99_shift_s: float | None


def errors(traces: Sequence[Trace], truths: Sequence[Emissions]) -> InstrumentError:
    """The errors over answered requests, each trace with the truth of its own answer.

    Where reads cannot be matched with tokens (events of several tokens that do not say so) only the first one counts.
    """
    both = zip(traces, truths, strict=True)
    pairs = [(trace, truth) for trace, truth in both if per_request.ttft_from_sent.of(trace) is not None]
    reported = [per_request.ttft_from_sent.of(trace) or 0.0 for trace, _ in pairs]
    true = [seconds(truth.received_ns, truth.emitted_ns[0]) for _, truth in pairs]
    matched = [(trace, truth) for trace, truth in pairs if sum(trace.tokens) == len(truth.emitted_ns)]
    gaps = [seconds(*pair) for trace, _ in matched for pair in pairwise(_token_stamps(trace))]
    true_gaps = [seconds(*pair) for _, truth in matched for pair in pairwise(truth.emitted_ns)]
    late = (per_request.lateness.of(trace) for trace in traces)
    return InstrumentError(
        ttft=spread(mine - real for mine, real in zip(reported, true, strict=True)),
        stamp=spread(chain.from_iterable(_stamp_errors(trace, truth) for trace, truth in matched)),
        lateness=spread(value for value in late if value is not None),
        ttft_p99_shift_s=_shift(reported, true),
        icl_p99_shift_s=_shift(gaps, true_gaps),
    )


def spread(values_s: Iterable[float]) -> Spread:
    """Mean and percentiles, which interpolate linearly between neighbours."""
    ordered = sorted(values_s)
    return Spread(
        num=len(ordered),
        mean_s=math.fsum(ordered) / len(ordered) if ordered else None,
        p50_s=percentile(ordered, 50),
        p95_s=percentile(ordered, 95),
        p99_s=percentile(ordered, 99),
        p999_s=percentile(ordered, 99.9),
    )


def _stamp_errors(trace: Trace, truth: Emissions) -> Iterable[float]:
    return (seconds(*pair) for pair in zip(truth.emitted_ns, _token_stamps(trace), strict=True))


def _token_stamps(trace: Trace) -> Iterable[int]:
    """The stamp of each token: that of the read that brought it."""
    return chain.from_iterable(repeat(at, num) for at, num in zip(trace.stamps_ns, trace.tokens, strict=True))


def _shift(reported_s: Sequence[float], true_s: Sequence[float]) -> float | None:
    """p99 as reported - true p99."""
    mine, real = percentile(sorted(reported_s), 99), percentile(sorted(true_s), 99)
    return None if mine is None or real is None else mine - real
