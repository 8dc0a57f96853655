"""What `llmbench layers` does: one server for each stub level, the same load on each, a table."""

import re
import sys
import tempfile
import urllib.request
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from llmbench import protocols
from llmbench.errors import InvalidMeasurement
from llmbench.loadgen.client import Timeouts, locate
from llmbench.loadgen.run import run
from llmbench.report.terminal import Terminal
from llmbench.serving.launch import flags, launched
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.types import Sampling
from llmbench.workload.arrivals.burst import Arrival
from llmbench.workload.datasets.alpaca import Sample
from llmbench.workload.plan import Plan, PlanSettings, make_plan

LEVELS = {
    "http": "HTTP server and client",
    "link": "+ queue, scheduler, detokeniser",
    "agent": "+ TCP, shared memory, agent process",
    "model": "+ the agent's work around the engine",
    "none": "+ the model",
}


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent to each level."""

    concurrency: int
    num_requests: int
    max_new_tokens: int


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """What is launched."""

    model: str
    engine: str | None
    tokenizer: Path | None
    step_time_s: float


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """What came out at a level. `stages_ms` is empty where no step loop runs."""

    level: str
    what: str
    tokens_per_s: float
    step_ms: float
    """Time per token of one stream: wall time * concurrency / tokens."""
    ttft_ms: float
    stages_ms: dict[str, float]
    """Per step, as the server counted them."""


def main(load: Load, stack: Stack, json: bool) -> None:
    """Measure every level, print the table."""
    requests = plan(load)
    levels = []
    for name in LEVELS:
        print(f"level {name}: {LEVELS[name]}", file=sys.stderr)
        levels.append(measure(name, requests, load, stack))
    if json:
        print(msgspec.json.format(msgspec.json.encode(levels), indent=2).decode())
    else:
        show(Terminal(), levels, load)


def measure(name: str, requests: Plan, load: Load, stack: Stack) -> Level:
    """One level. Raises InvalidMeasurement when a request was not answered."""
    given = {
        "--model": stack.model,
        "--engine": stack.engine,
        "--tokenizer": stack.tokenizer and stack.tokenizer.absolute(),
        "--max-batch": load.concurrency,
        "--stub": name,
        "--step-time": stack.step_time_s,
    }
    dialect = protocols.get("openai_completions")  # the contest's cannot ask a real model to go on behind eos
    with launched(flags(given)) as server, tempfile.TemporaryDirectory() as scratch:
        target = locate(server.url)
        warm_up = msgspec.structs.replace(requests, requests=requests.requests[: load.concurrency])
        run(warm_up, target, dialect, Timeouts(), Path(scratch) / "warm-up.jsonl", load.concurrency)
        before = _stages(server.url)
        outcome = run(requests, target, dialect, Timeouts(), Path(scratch) / "journal.jsonl", load.concurrency)
        after = _stages(server.url)
    if outcome.interrupted:
        raise KeyboardInterrupt
    answered = [record for record in outcome.records if record.status == "answered"]
    if len(answered) < len(requests.requests):
        raise InvalidMeasurement(f"level {name}: {len(requests.requests) - len(answered)} requests were not answered")
    wall_s = (max(r.done_ns or 0 for r in answered) - min(r.sent_ns or 0 for r in answered)) / 1e9
    num_tokens = sum(record.num_tokens for record in answered)
    num_steps = after.pop("steps") - before.pop("steps")
    ttfts = sorted(record.stamps_ns[0] - (record.sent_ns or 0) for record in answered if record.stamps_ns)
    return Level(
        level=name,
        what=LEVELS[name],
        tokens_per_s=num_tokens / wall_s,
        step_ms=1e3 * wall_s * load.concurrency / num_tokens,
        ttft_ms=ttfts[len(ttfts) // 2] / 1e6,
        stages_ms={stage: 1e3 * (after[stage] - before[stage]) / num_steps for stage in after} if num_steps else {},
    )


def show(console: Console, levels: list[Level], load: Load) -> None:
    """The table of levels, and where a step of the full stack goes."""
    table = Table(
        title=f"{load.concurrency} streams, {load.num_requests} requests of {load.max_new_tokens} tokens at each level",
        title_justify="left",
    )
    for heading in ("what is in the path", "tokens/s", "ms per token", "this part, ms", "TTFT p50, ms"):
        table.add_column(heading, justify="left" if heading.startswith("what") else "right")
    before = 0.0
    for level in levels:
        added = level.step_ms - before
        table.add_row(
            level.what, f"{level.tokens_per_s:,.0f}", f"{level.step_ms:.3f}", f"{added:+.3f}", f"{level.ttft_ms:.2f}"
        )
        before = level.step_ms
    console.print(table)
    stages = levels[-1].stages_ms
    if stages:
        console.print("A step of the full stack, ms, as the server counts it (detokenising overlaps the agent):")
        console.print("  " + ", ".join(f"{name} {value:.3f}" for name, value in step_parts(stages).items()))


def step_parts(stages_ms: dict[str, float]) -> dict[str, float]:
    """A step's stages by what they are for; what the server does meanwhile for HTTP is in the link's wait."""
    return {
        "schedule": stages_ms["schedule"],
        "link": stages_ms["link write"] + max(0.0, stages_ms["step"] - stages_ms["agent"] - stages_ms["detokenise"]),
        "agent": stages_ms["agent"] - stages_ms["engine"],
        "model": stages_ms["engine"],
        "detokenise": stages_ms["detokenise"],
    }


def plan(load: Load) -> Plan:
    """One prompt for everybody, every answer as long as asked."""
    tokenizer = Tokenizer.from_file(embedded_path())
    sample = Sample(prompt="Name three colors", output="", index=0)
    settings = PlanSettings(dataset="one prompt", num_samples=1, arrivals="burst", qps=0.0, rate=None, seed=0)
    return make_plan(
        [sample],
        Arrival(),
        load.num_requests,
        settings,
        tokenizer,
        load.max_new_tokens,
        sampling=Sampling(ignore_eos=True),
    )


def _stages(url: str) -> dict[str, float]:
    """Seconds by stage, and the number of steps, from the server's metrics."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        text = response.read().decode()
    stages = {name: float(value) for name, value in re.findall(r'stage="([^"]+)"} (\S+)', text)}
    found = re.search(r"llmbench:steps_total{[^}]*} (\S+)", text)
    return {**stages, "steps": float(found[1]) if found else 0.0}
