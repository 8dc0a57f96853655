"""What the capture of logits costs the embedded model's throughput, both sides in one run.

    python benchmarks/capture.py [--requests 128] [--concurrency 16] [--repeats 5] [--tiers topk]

A stack without capture and one that captures every row take turns; of each pair the ratio of their tokens per second
is taken, so that what else the machine does meanwhile hits both. The figure is the median of the ratios.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from llmbench import protocols
from llmbench.accuracy import replay
from llmbench.logits.store import Store
from llmbench.serving.launch import launched
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload import datasets
from llmbench.workload.plan import Plan

LIMIT = 0.05


def tokens_per_s(plan: Plan, concurrency: int, flags: list[str]) -> float:
    """Answer tokens per second of a fresh stack, from the first request sent to the last token."""
    with launched(flags) as server, tempfile.TemporaryDirectory() as scratch:
        for name in ("warm", "timed"):
            outcome = replay.replay(
                plan, server.url, protocols.get("contest"), concurrency, Path(scratch) / f"{name}.jsonl"
            )
    start_ns = min(record.sent_ns or 0 for record in outcome.records)
    end_ns = max(record.done_ns or 0 for record in outcome.records)
    return sum(record.num_tokens or 0 for record in outcome.records) / ((end_ns - start_ns) / 1e9)


def main() -> None:
    """Take turns, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiers", nargs="+", default=["topk"])
    given = parser.parse_args()
    dataset = datasets.load("alpaca_521")
    tokenizer = Tokenizer.from_file(embedded_path())
    plan = replay.plan(dataset.samples, dataset.name, given.requests, tokenizer)
    for tier in given.tiers:
        ratios = []
        for i in range(given.repeats):
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "capture"
                sides = {"without": [], "with": ["--capture", str(folder), "--capture-tier", tier]}
                order = list(sides)[:: 1 if i % 2 else -1]
                rates = {name: tokens_per_s(plan, given.concurrency, sides[name]) for name in order}
                num_rows = len(Store(folder))
            ratios.append(rates["with"] / rates["without"])
            print(
                f"{tier}: {rates['without']:,.0f} tokens/s without, {rates['with']:,.0f} with, {num_rows} rows captured"
            )
        cost = 1 - statistics.median(ratios)
        print(f"{tier}: costs {cost:.1%} (median of {given.repeats}; limit {LIMIT:.0%})")


if __name__ == "__main__":
    main()
