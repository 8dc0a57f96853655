"""Checks of the server's prefix cache against what the plan declares of it."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from llmbench.metrics import Trace, ledger, order, per_request
from llmbench.metrics.evidence import SHARE, Check, Evidence, Verdict, answered

_BLOCK = 16  # tokens; vLLM's, and ours. Whole blocks are kept, and the last token is always computed
_SURE = 0.5
_FEWEST_PAIRS = 10
_ALPHA = 1e-4
_TIMES_FASTER = 2.0


def as_declared(run: Evidence) -> Check:
    """The share of prompt tokens that the server had in its prefix cache, as it says itself.

    It says so in each answer's `usage`, or else in its counters. Declared *cold*: 5 % at most, for prefill takes time
    in proportion to tokens at most, and 5 % of TTFT is what other errors may be. Declared *warm*: of what whole blocks
    of 16 tokens can hold, half or more; less than 5 % of the prompts is not warm, in between cannot be told, because
    the blocks may be larger. Declared *any*, the share is shown.
    """
    value = _share(run)
    limit = {"cold": SHARE, "warm": _SURE * _blocks(run.traces), "any": None}[run.cache]
    return Check(
        id="cache",
        name=f"share of prompt tokens from the server's cache, declared {run.cache}",
        value=value,
        limit=limit,
        unit="",
        verdict=_verdict(run, value, limit),
        remedy=_REMEDY[run.cache],
    )


_REMEDY = {
    "cold": "prompts were found in the cache although each has a nonce: a template before them is shared, or the plan "
    "was sent before; switch the server's prefix cache off, or declare --cache any",
    "warm": "prompts were sent before the run and not found again: the cache is off or too small; declare --cache cold",
    "any": "",
}


def repeats(run: Evidence) -> Check:
    """TTFT from sent of a prompt's later requests over that of its first, median over prompts.

    The differential form of MLPerf's TEST04. Declared cold it fails when repeated prompts are answered twice as fast
    and so many of them faster as chance gives in one run of 10,000 (sign test); otherwise the ratio is shown.
    """
    ratios = _ratios(run)
    value = median(ratios) if len(ratios) >= _FEWEST_PAIRS else None
    faster = sum(ratio < 1 for ratio in ratios)
    cached = value is not None and value < 1 / _TIMES_FASTER and order.tail(len(ratios), faster, 0.5) < _ALPHA
    verdict: Verdict = "ok"
    if value is None:
        verdict = "not applicable"
    elif run.cache == "cold" and cached:
        verdict = "failed"
    return Check(
        id="repeats",
        name="first token of a repeated prompt / of its first request",
        value=value,
        limit=1 / _TIMES_FASTER if run.cache == "cold" else None,
        unit="",
        verdict=verdict,
        remedy="repeated prompts are answered from a cache: use --cache cold without --plan, or declare --cache any",
    )


def _share(run: Evidence) -> float | None:
    """Of all prompt tokens, those that the server says were in its cache."""
    said = [
        (trace.cached_tokens, counted)
        for trace in answered(run.traces)
        if trace.cached_tokens is not None and (counted := trace.server_prompt_tokens or trace.num_prompt_tokens)
    ]
    if said:
        return sum(cached for cached, _ in said) / sum(counted for _, counted in said)
    if run.seams_s or ledger.ledger(run.traces, run.scrapes) is None:
        return None
    scrapes = sorted(run.scrapes, key=lambda scrape: scrape.at_ns)
    queries, hits = ledger.increase(scrapes, "cache_queries"), ledger.increase(scrapes, "cache_hits")
    return hits / queries if hits is not None and queries else None


def _blocks(traces: Sequence[Trace]) -> float:
    """The share of prompt tokens that whole blocks hold, without the last token of each prompt."""
    lengths = [trace.server_prompt_tokens or trace.num_prompt_tokens or 0 for trace in answered(traces)]
    total = sum(lengths)
    return sum((length - 1) // _BLOCK * _BLOCK for length in lengths if length) / total if total else 0.0


def _verdict(run: Evidence, value: float | None, limit: float | None) -> Verdict:
    if value is None:
        return "not applicable"
    if limit is None:
        return "ok"
    if run.cache == "cold":
        return "ok" if value <= limit else "failed"
    return "ok" if value >= limit else "failed" if value < SHARE else "inconclusive"


def _ratios(run: Evidence) -> list[float]:
    """Of each repeated prompt, the median time of its later requests over that of its first one."""
    times: defaultdict[object, list[float]] = defaultdict(list)
    for trace in sorted(answered(run.traces), key=lambda trace: trace.sent_ns or 0):
        value = per_request.ttft_from_sent.of(trace)
        if trace.index in run.prompts and value is not None:
            times[run.prompts[trace.index]].append(value)
    return [median(later) / first for first, *later in times.values() if later and first > 0 and math.isfinite(first)]
