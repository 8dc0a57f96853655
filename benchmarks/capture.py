"""What the capture of logits costs the embedded model's throughput, both sides in one run.

    python benchmarks/capture.py [--requests 128] [--concurrency 16] [--repeats 40] [--tiers topk]

A stack without capture and one that captures every row stand side by side and take turns, one waiting while the other
is loaded; of each pair of turns the ratio of their tokens per second is taken, so that what else the machine does
meanwhile hits both. The figure is the median of the ratios. LLMBENCH_ENGINE names another engine than the default.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from llmbench import protocols
from llmbench.accuracy import replay
from llmbench.logits.store import Store
from llmbench.serving.launch import capturing, launched
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload import datasets
from llmbench.workload.plan import Plan

LIMIT = 0.05


def tokens_per_s(plan: Plan, concurrency: int, url: str) -> float:
    """Answer tokens per second, from the first request sent to the last token."""
    with tempfile.TemporaryDirectory() as scratch:
        outcome = replay.replay(plan, url, protocols.get("contest"), concurrency, Path(scratch) / "turn.jsonl")
    start_ns = min(record.sent_ns or 0 for record in outcome.records)
    end_ns = max(record.done_ns or 0 for record in outcome.records)
    return sum(record.num_tokens or 0 for record in outcome.records) / ((end_ns - start_ns) / 1e9)


def ratios(plan: Plan, concurrency: int, repeats: int, tier: str) -> list[float]:
    """Throughput with capture over that without, of each pair of turns."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "capture"
        with launched([]) as without, launched(capturing(folder, tier)) as capture:
            sides = {"without": without.url, "with": capture.url}
            for url in sides.values():
                tokens_per_s(plan, concurrency, url)  # to warm up
            for i in range(repeats):
                order = list(sides)[:: 1 if i % 2 else -1]
                rates = {name: tokens_per_s(plan, concurrency, sides[name]) for name in order}
                found.append(rates["with"] / rates["without"])
                print(f"{tier}: {rates['without']:,.0f} tokens/s without, {rates['with']:,.0f} with", flush=True)
        print(f"{tier}: {len(Store(folder))} rows captured")
    return found


def main() -> None:
    """Take turns, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--tiers", nargs="+", default=["topk"])
    given = parser.parse_args()
    dataset = datasets.load("alpaca_521")
    tokenizer = Tokenizer.from_file(embedded_path())
    plan = replay.plan(dataset.samples, dataset.name, given.requests, tokenizer)
    for tier in given.tiers:
        low, middle, high = statistics.quantiles(ratios(plan, given.concurrency, given.repeats, tier), n=4)
        print(
            f"{tier}: costs {1 - middle:.1%}, the middle half of {given.repeats} pairs {1 - high:.1%} to {1 - low:.1%}"
            f" (limit {LIMIT:.0%})"
        )


if __name__ == "__main__":
    main()
