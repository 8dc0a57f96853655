"""What is left of an engine's speed behind the whole server: the same load served and computed bare, in turns.

    python -m benchmarks.served --engine numba_llama --model random:110m --concurrency 16

Served: `llmbench serve` with HTTP, scheduler, link and agent, and a client beside it on the same cores; so many streams
of equally long answers. Bare: the engine alone in this process with a batch of as many sequences, prompts included.
Both are tokens per second of wall time; the ratio is the median over the rounds, each from the same round. On a machine
with other work the ratio means little.
"""

import argparse
import statistics
import time

import numpy as np

from benchmarks.engines import ours
from llmbench.cli import _layers
from llmbench.tokenizer import embedded_path
from llmbench.weights.model import open_model

TARGET = 0.8


def main() -> None:
    """Measure in turns and print."""
    options = _options()
    load = _layers.Load(
        concurrency=options.concurrency, num_requests=3 * options.concurrency, max_new_tokens=options.tokens
    )
    stack = _layers.Stack(model=options.model, engine=options.engine, tokenizer=embedded_path(), step_time_s=0.0)
    plan = _layers.plan(load)
    model = open_model(options.model)
    length = plan.requests[0].num_prompt_tokens or 1
    prompts = np.random.default_rng(0).integers(3, model.config.vocab_size, (load.concurrency, length), np.int32)
    ratios = []
    for number in range(1, options.rounds + 1):
        generate = ours(options.engine, model, options.threads, time.perf_counter)
        generate(prompts, 2)
        bare = load.concurrency * load.max_new_tokens / generate(prompts, load.max_new_tokens)
        del generate
        served = _layers.measure("none", plan, load, stack).tokens_per_s
        ratios.append(served / bare)
        print(f"round {number}: bare {bare:.0f}, served {served:.0f} tokens/s, ratio {ratios[-1]:.2f}", flush=True)
    ratio = statistics.median(ratios)
    verdict = "met" if ratio >= TARGET else "missed"
    print(f"{options.engine}, {load.concurrency} streams: {ratio:.2f}; target {TARGET}: {verdict}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:110m")
    parser.add_argument("--engine", default="numba_llama")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
