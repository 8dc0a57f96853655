"""The contest's headline: the organisers' settings against tuned ones on the same 1,500 requests.

    python benchmarks/contest.py [--model embedded] [--requests 1500] [--tokenizer tokenizer.model]

Both settings files are llm-serving's, `configs/serve/llama2_7b_baseline.yaml` and `llama2_7b_tuned.yaml`; every request
is there from the start, so that the total time is what the stack makes of it and not what the arrivals allow. Anchor:
the Sunflower team went from 3551.9 s to 790.9 s, 4.49 times faster, on the contest's hardware.
"""

import argparse
import tempfile
from pathlib import Path

from llmbench import protocols
from llmbench.cli._progress import overwrite
from llmbench.loadgen.client import Timeouts, locate
from llmbench.loadgen.run import run
from llmbench.serving.launch import launched
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload import datasets
from llmbench.workload.arrivals.burst import Arrival
from llmbench.workload.plan import Plan, PlanSettings, make_plan

CONFIGS = Path(__file__).parents[1] / "configs" / "serve"
TARGET = 4.49


def total_s(config: str, plan: Plan, flags: list[str]) -> float:
    """Seconds from the first request to the last answer; every request must be answered."""
    timeouts = Timeouts(head_s=7200, total_s=7200)
    with launched([str(CONFIGS / config), *flags]) as server, tempfile.TemporaryDirectory() as scratch:
        journal = Path(scratch) / "journal.jsonl"
        outcome = run(plan, locate(server.url), protocols.get("contest"), timeouts, journal, progress=overwrite)
    if outcome.interrupted:
        raise KeyboardInterrupt
    lost = [record for record in outcome.records if record.status != "answered"]
    assert not lost, f"{len(lost)} requests were not answered, the first: {lost[0].reason}"
    start_ns = min(record.sent_ns or 0 for record in outcome.records)
    return (max(record.done_ns or 0 for record in outcome.records) - start_ns) / 1e9


def main() -> None:
    """Run both, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--tokenizer", type=Path, help="for models that bring none")
    args = parser.parse_args()
    dataset = datasets.load("alpaca_5010")
    settings = PlanSettings(
        dataset=dataset.name, num_samples=len(dataset.samples), arrivals="burst", qps=0.0, rate=None, seed=0
    )
    tokenizer = Tokenizer.from_file(args.tokenizer or embedded_path())
    plan = make_plan(dataset.samples, Arrival(), args.requests, settings, tokenizer)
    flags = ["--model", args.model, *(["--tokenizer", str(args.tokenizer.absolute())] if args.tokenizer else [])]
    print(f"{args.requests} requests of {dataset.path.name}, plan {plan.sha256[:16]}, model {args.model}")
    seconds = {}
    for name in ("baseline", "tuned"):
        seconds[name] = total_s(f"llama2_7b_{name}.yaml", plan, flags)
        print(f"{name}: {seconds[name]:.1f} s")
    print(f"ratio: {seconds['baseline'] / seconds['tuned']:.2f}  target >= {TARGET}")


if __name__ == "__main__":
    main()
