"""What the serving stack costs by itself: the whole path with a stub engine whose steps take 0 ms.

    python benchmarks/stack_overhead.py [--repeats 3]

Prints tokens per second and milliseconds per step at batch 1, 16 and 128, streaming to a client in its own process,
and how the server's step loop spends its time; medians over the repeats, beside the targets. Anchor: the contest's
stack costs 0.34-0.37 ms per token at batch 1 with a stubbed agent, on a machine with two such cores.
"""

import argparse
import statistics

import msgspec
from rich.console import Console
from rich.table import Table

from llmbench.cli import _layers

BATCHES = (1, 16, 128)
TOKENS = 256


def measure(batch: int, repeats: int) -> list[_layers.Level]:
    """The stack with the stub engine, `repeats` times, each on a fresh server."""
    load = _layers.Load(concurrency=batch, num_requests=max(16, 3 * batch), max_new_tokens=TOKENS)
    stack = _layers.Stack(model="random:tiny", engine="stub", tokenizer=None, step_time_s=0.0)
    plan = _layers.plan(load)
    return [_layers.measure("model", plan, load, stack) for _ in range(repeats)]


def median(levels: list[_layers.Level]) -> _layers.Level:
    """Each figure's median over the repeats."""
    stages = {stage: statistics.median(level.stages_ms[stage] for level in levels) for stage in levels[0].stages_ms}
    return msgspec.structs.replace(
        levels[0],
        tokens_per_s=statistics.median(level.tokens_per_s for level in levels),
        step_ms=statistics.median(level.step_ms for level in levels),
        stages_ms=stages,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    table = Table(title=f"stub engine, 0 ms steps, {TOKENS} tokens per answer, median of {repeats}")
    for heading in ("batch", "tokens/s", "ms/step", "schedule", "link", "agent", "detokenise", "HTTP and the rest"):
        table.add_column(heading, justify="right")
    results = {batch: median(measure(batch, repeats)) for batch in BATCHES}
    for batch, level in results.items():
        parts = _layers.step_parts(level.stages_ms)
        loop = parts["schedule"] + parts["link"] + parts["agent"] + parts["model"] + parts["detokenise"]
        shown = (parts["schedule"], parts["link"], parts["agent"] + parts["model"], parts["detokenise"])
        rest = max(0.0, level.step_ms - loop)
        table.add_row(
            str(batch),
            f"{level.tokens_per_s:,.0f}",
            f"{level.step_ms:.3f}",
            *(f"{part:.3f}" for part in (*shown, rest)),
        )
    Console().print(table)
    most = max(level.tokens_per_s for level in results.values())
    big = results[128].stages_ms["schedule"] + results[128].stages_ms["link write"]
    print(f"batch 1:   {results[1].step_ms:.3f} ms per token          target <= 0.15")
    print(f"batch 128: {big:.3f} ms per step to schedule, write to the link, commit  target <= 1")
    print(f"highest:   {most:,.0f} streamed tokens per second  target >= 20,000")


if __name__ == "__main__":
    main()
