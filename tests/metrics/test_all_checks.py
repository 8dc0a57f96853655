"""All checks together: documented, with ids of their own, and silent on clean runs."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from llmbench.loadgen.record import Record, Sample, Scrape
from llmbench.metrics import arrivals, checks
from llmbench.metrics.windows import Floats

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "checks.md"
S = 1_000_000_000
TOKENS = 30


def test_every_check_is_in_the_documentation_and_nothing_else_is() -> None:
    ids = [outcome.id for outcome in checks.check(checks.Evidence(traces=[]))]
    documented = re.findall(r"^\| `([\w-]+)` \|", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_every_flag_that_a_remedy_or_the_documentation_names_is_one_of_perf() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "llmbench/metrics/checks").glob("*.py")]
    named = set(re.findall(r"--[a-z][a-z-]+", " ".join([*texts, DOC.read_text(encoding="utf-8")])))
    command = [sys.executable, "-m", "llmbench", "perf", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert named <= set(re.findall(r"--[a-z][a-z-]+", shown)), "a way out that is none"


def test_a_run_of_nothing_breaks_no_check() -> None:
    never = [Record(index=i, due_ns=i) for i in range(3)]
    for traces in ([], never):
        assert checks.verdict(checks.check(checks.Evidence(traces=traces))) in ("VALID", "INVALID")


def clean(seed: int, num: int, rate: float) -> checks.Evidence:
    """A run against a batching server that keeps up, measured by a good client, with the server's counters."""
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1 / rate, num)) + 1.0
    sent = np.maximum.accumulate(due + rng.exponential(0.0002, num))
    ttft = 0.05 * rng.lognormal(0, 0.6, num)
    traces = [_answer(i, *times, rng) for i, times in enumerate(zip(due, sent, ttft, strict=True))]
    end_s = max((trace.done_ns or 0) for trace in traces) / S
    samples = [
        Sample(at_ns=round((at + 1) * S), span_s=1.0, cpu_s=0.1, lag_s=float(rng.exponential(0.001)), rss_bytes=10**8)
        for at in np.arange(0.0, end_s, 1.0)
    ]
    declared = arrivals.Declaration(
        unit_gaps=lambda instants: np.diff(instants, prepend=0.0) * rate, due_s=dict(enumerate((due - 1.0).tolist()))
    )
    return checks.Evidence(
        traces=traces, declared=declared, steady_rate=rate, samples=[samples], scrapes=_scrapes(traces, end_s)
    )


def _answer(index: int, due: float, sent: float, ttft: float, rng: np.random.Generator) -> Record:
    stamps: Floats = sent + ttft + np.cumsum(np.r_[0.0, 0.01 * rng.lognormal(0, 0.3, TOKENS - 1)])
    return Record(
        index=index,
        status="answered",
        due_ns=round(due * S),
        released_ns=round(due * S),
        sent_ns=round(sent * S),
        connected_ns=round(sent * S),
        stamps_ns=[round(at * S) for at in stamps.tolist()],
        tokens=[1] * TOKENS,
        num_pieces=TOKENS,
        num_tokens=TOKENS,
        expected_tokens=TOKENS,
        num_prompt_tokens=20,
        done_ns=round((stamps[-1] + 0.0002) * S),
        finish_reason="length",
    )


def _scrapes(traces: list[Record], end_s: float) -> list[Scrape]:
    readings = []
    for at in (0.5, *np.arange(5.0, end_s, 5.0).tolist(), end_s + 0.2):
        sent = sum((trace.sent_ns or 0) < (at - 0.002) * S for trace in traces)
        done = sum((trace.done_ns or 0) < (at - 0.003) * S for trace in traces)
        values = {
            "vllm:request_success_total": float(done),
            "vllm:generation_tokens_total": float(done * TOKENS),
            "vllm:prompt_tokens_total": float(done * 20),
            "vllm:num_requests_running": float(sent - done),
            "vllm:num_requests_waiting": 0.0,
        }
        readings.append(Scrape(at_ns=round(at * S), values=values))
    return readings


def test_hundreds_of_clean_short_runs_are_valid_but_for_one_at_most() -> None:
    alarms: Counter[str] = Counter()
    for seed in range(300):
        outcomes = checks.check(clean(seed, num=(60, 150, 300)[seed % 3], rate=(6.0, 20.0)[seed % 2]))
        alarms.update(outcome.id for outcome in outcomes if outcome.verdict in ("failed", "inconclusive"))
    assert alarms.total() <= 1, alarms
