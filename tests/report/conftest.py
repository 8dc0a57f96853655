"""Runs to report on: two requests to work out by hand, and made-up ones of any size."""

from collections.abc import Sequence

import numpy as np

from llmbench.loadgen.record import Record, Sample, Scrape
from llmbench.metrics import checks
from llmbench.metrics.steady import steady
from llmbench.metrics.summary import summarise
from llmbench.metrics.windows import due_in
from llmbench.report.view import View

MS = 1_000_000
S = 1_000_000_000
START_NS = 10 * S


def records() -> list[Record]:
    """One answer and one failure."""
    good = Record(
        index=1,
        status="answered",
        due_ns=1000 * MS,
        released_ns=1000 * MS,
        sent_ns=1001 * MS,
        connected_ns=1001 * MS,
        stamps_ns=[1051 * MS, 1061 * MS],
        tokens=[1, 1],
        num_tokens=2,
        done_ns=1062 * MS,
        finish_reason="length",
    )
    bad = Record(index=0, status="failed", reason="HTTP 503: full, come back", due_ns=0, sent_ns=0, done_ns=5 * MS)
    return [good, bad]


def view(traces: Sequence[Record], prompt: str = "Say something.", observed: bool = False, start_ns: int = 0) -> View:
    """What a report shows of these, whole, with counters and samples where it was observed."""
    found = steady(traces, start_ns)
    span_s = int((max(trace.done_ns or trace.due_ns for trace in traces) - start_ns) / S) + 1 if traces else 0
    samples = [
        Sample(at_ns=start_ns + n * S // 2, span_s=0.5, cpu_s=0.1, lag_s=0.001, rss_bytes=1) for n in range(span_s)
    ]
    scrapes = [
        Scrape(at_ns=start_ns + n * S, values={"requests_running": n % 5, "tokens_total": n * n, "always": 1.0})
        for n in range(span_s)
    ]
    return View(
        title="20260131-154500-perf",
        numbers=summarise(traces),
        checks=checks.check(checks.Evidence(traces=traces)),
        traces=traces,
        start_ns=start_ns,
        load=f"{len(traces)} requests of alpaca_521, poisson arrivals, 5 per second, seed 0",
        target="contest at http://127.0.0.1:8835",
        plan_sha256="0123456789abcdef" * 4,
        steady=found,
        steady_numbers=None if found.window is None else summarise(due_in(traces, start_ns, found.window)),
        environment={"llmbench": "0.1", "packages": {"numpy": "2.0"}},
        prompts=[prompt] * len(traces),
        samples=[samples] if observed else [],
        scrapes=scrapes if observed else [],
    )


def load(
    num: int,
    *,
    rate: float = 5.0,
    num_tokens: int = 20,
    lost: float = 0.0,
    streamed: bool = True,
    reason: str = "HTTP 503: full",
) -> list[Record]:
    """Poisson arrivals, answers of up to so many tokens at about 10 ms, a share of them lost."""
    rng = np.random.default_rng(1)
    found = []
    for index, due_s in enumerate(np.cumsum(rng.exponential(1 / rate, num)).tolist()):
        due_ns = START_NS + round(due_s * S)
        sent_ns = due_ns + round(rng.exponential(0.2 * MS))
        record = Record(index=index, due_ns=due_ns, released_ns=due_ns, sent_ns=sent_ns, connected_ns=sent_ns)
        found.append(record)
        if rng.random() < lost:
            failed = rng.random() < 0.8
            record.status = "failed" if failed else "unfinished"
            record.reason = reason if failed else "the run ended before it did"
            record.done_ns = sent_ns + round(rng.exponential(0.3 * S)) if failed else None
            continue
        tokens = int(rng.integers(2, num_tokens + 1))
        gaps_ns = rng.gamma(8, 10 / 8 * MS, tokens)
        gaps_ns[0] = rng.gamma(4, 50 / 4 * MS)
        if tokens > 8 and rng.random() < 0.05:
            gaps_ns[4] += 300 * MS
        stamps_ns = (sent_ns + np.cumsum(gaps_ns)).astype(np.int64).tolist()
        record.status, record.finish_reason = "answered", "length"
        record.num_tokens = record.expected_tokens = tokens
        record.num_prompt_tokens = 30
        record.done_ns = stamps_ns[-1] + MS // 3
        if streamed:
            record.stamps_ns, record.tokens = stamps_ns, [1] * tokens
    return found
