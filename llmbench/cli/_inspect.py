"""Looking into a sealed plan: whether it is what it declares, and what is in it."""

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from llmbench.cli import _plan
from llmbench.errors import InputError
from llmbench.loadgen import journal
from llmbench.metrics import arrivals as tests
from llmbench.tokenizer import Tokenizer
from llmbench.workload import arrivals, prefixes
from llmbench.workload import plan as plans

_BAR = 40


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a plan; lengths in tokens, without the begin-of-sequence id. `ok` says that nothing contradicts it."""

    path: Path
    settings: plans.PlanSettings
    seeds: plans.Seeds
    sha256: str
    num_requests: int
    num_conversations: int
    duration_s: float
    """Until the last request that has an instant of its own."""
    prompt_tokens: list[int]
    output_tokens: list[int]
    num_shared_tokens: int
    dispersions: dict[str, float]
    """Variance over mean of the numbers of requests in windows of so many seconds, as they are."""
    declared_dispersion: float | None
    planned: list[tests.Finding]
    regenerated: bool | None
    """For a process without chance, or a closed loop: whether it gives the same due times. None where not asked."""
    sent: list[tests.Finding]
    """The same tests of the instants at which a run has sent the requests."""

    @property
    def ok(self) -> bool:
        return self.regenerated is not False and not tests.contradictions([*self.planned, *self.sent])


def inspect(path: Path, tokenizer: Tokenizer) -> Inspection:
    """Look into a plan, or into that of a run, and at the instants at which the run has sent it."""
    file = path / _plan.FILE if path.is_dir() else path
    plan = plans.load(file)
    due = np.array(sorted(_plan.due(plan).values()))
    declared = _plan.declaration(plan)
    gaps = declared.unit_gaps(due) if declared and len(due) > 1 else None
    prompts = [_ids(planned.request.prompt, tokenizer) for planned in plan.requests]
    return Inspection(
        path=file,
        settings=plan.settings,
        seeds=plan.settings.seeds or plans.seeds(plan.settings.seed),
        sha256=plan.sha256,
        num_requests=len(plan.requests),
        num_conversations=sum(not isinstance(planned.after, int) for planned in plan.requests),
        duration_s=float(due[-1]),
        prompt_tokens=[len(prompt) for prompt in prompts],
        output_tokens=[planned.expected_tokens for planned in plan.requests if planned.expected_tokens is not None],
        num_shared_tokens=prefixes.num_shared(prompts),
        dispersions={} if gaps is None else _dispersions(due),
        declared_dispersion=None if gaps is None else _process(plan).dispersion,
        planned=[] if gaps is None else tests.examine(gaps, tests.mean_rate(gaps, due)),
        regenerated=_regenerated(plan, due) if gaps is None else None,
        sent=_sent(plan, declared, path) if declared and path.is_dir() else [],
    )


def json(found: Inspection) -> str:
    """The inspection as JSON, with its verdict."""
    return msgspec.json.encode({**msgspec.structs.asdict(found), "ok": found.ok}, enc_hook=str).decode()


def show(console: Console, found: Inspection) -> None:
    """Print what an inspection has found."""
    settings, seeds = found.settings, found.seeds
    say = console.print
    say(f"plan {found.path}", soft_wrap=True)
    say(f"  sha256 {found.sha256}", soft_wrap=True)
    say(f"  dataset {settings.dataset}, dialect {settings.dialect or 'any'}", soft_wrap=True)
    say(
        f"  seeds: schedule {seeds.schedule}, prompts {seeds.prompts}, lengths {seeds.lengths}, "
        f"sampling {seeds.sampling} (of --seed {settings.seed})",
        soft_wrap=True,
    )
    say(_totals(found), soft_wrap=True)
    say(f"arrivals {settings.arrivals}, --qps {settings.qps:g}: {_word(found)}", soft_wrap=True)
    for title, findings in (("planned", found.planned), ("sent", found.sent)):
        if findings:
            console.print(_findings(title, findings))
    if found.dispersions:
        values = ", ".join(f"{value:.3g} in {window} s" for window, value in found.dispersions.items())
        declared = found.declared_dispersion
        long_run = "" if declared is None else f"; declared in the long run: {declared:.3g}"
        say(f"variance over mean of the counts, as they are: {values}{long_run}", soft_wrap=True)
    for title, lengths in (("prompt", found.prompt_tokens), ("answer asked for", found.output_tokens)):
        if lengths:
            say(f"{title}: tokens, without the begin-of-sequence id")
            say("\n".join(histogram(lengths)), highlight=False)


def histogram(lengths: Sequence[int]) -> list[str]:
    """`  64-127 |######   123`: how many lengths are in each range between powers of two."""
    counts = np.bincount([length.bit_length() for length in lengths])
    first = int(np.flatnonzero(counts)[0])
    ranges = [f"{(1 << bits) >> 1}-{(1 << bits) - 1}" if bits else "0" for bits in range(first, len(counts))]
    width = max(map(len, ranges))
    return [
        f"  {name:>{width}} |{'#' * math.ceil(_BAR * number / counts.max()):<{_BAR}} {number}"
        for name, number in zip(ranges, counts[first:].tolist(), strict=True)
    ]


def _process(plan: plans.Plan) -> arrivals.Arrivals:
    return arrivals.get(plan.settings.arrivals, plan.settings.qps or math.inf)  # a burst may have no rate


def _ids(prompt: str | tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    return prompt if isinstance(prompt, tuple) else tuple(tokenizer.encode(prompt, bos=False))


def _regenerated(plan: plans.Plan, due: tests.Floats) -> bool | None:
    """Whether the process gives these due times; None when its file is not there any more."""
    own = plan.settings.seeds or plans.seeds(plan.settings.seed)
    try:
        offsets = _process(plan).offsets(np.random.default_rng(own.schedule))
    except InputError:
        return None
    return bool(np.allclose(list(islice(offsets, len(due))), due, rtol=1e-9, atol=1e-9))


def _dispersions(due: tests.Floats) -> dict[str, float]:
    counts = {f"{width:g}": tests.window_counts(due, width) for width in tests.WINDOWS_S}
    return {width: tests.dispersion(found) for width, found in counts.items() if len(found) > 1 and found.any()}


def _sent(plan: plans.Plan, declared: tests.Declaration, folder: Path) -> list[tests.Finding]:
    """The tests of a run's sent instants; none when it has no journal, or requests waited for slots."""
    if not any(folder.glob("journal*.jsonl")):
        return []
    trail = journal.read_run(folder, plan)
    if any(record.released_ns is not None and record.released_ns > record.due_ns for record in trail.records):
        return []
    start_ns = trail.header.start_ns
    sent = {record.index: (record.sent_ns - start_ns) / 1e9 for record in trail.records if record.sent_ns is not None}
    return tests.examine_sent(declared, sent)


def _totals(found: Inspection) -> str:
    prompts, outputs = sum(found.prompt_tokens), sum(found.output_tokens)
    talks = "" if found.num_conversations == found.num_requests else f" in {found.num_conversations} conversations"
    unasked = found.num_requests - len(found.output_tokens)
    left = f", {unasked} answers left to the server" if unasked else ""
    return (
        f"{found.num_requests} requests{talks}, the last that waits for no other due after {found.duration_s:.1f} s; "
        f"{prompts} prompt tokens, {found.num_shared_tokens / max(prompts, 1):.1%} of them shared as a prefix; "
        f"{outputs} answer tokens asked for{left}"
    )


def _word(found: Inspection) -> str:
    wrong = [*tests.contradictions(found.planned), *tests.contradictions(found.sent)]
    if found.regenerated is False:
        return "CONTRADICTED, the process gives other due times"
    if wrong:
        return f"CONTRADICTED by {', '.join(finding.name for finding in wrong)}"
    if found.regenerated:
        return "the due times are those of the process"
    if any(finding.ok for finding in found.planned):
        return "as declared"
    return "not tested: too few requests, or the trace is not there"


def _findings(title: str, findings: Sequence[tests.Finding]) -> Table:
    table = Table(title, "value", "from", "to", "", box=None, pad_edge=False)
    for column in table.columns[1:4]:
        column.justify = "right"
    for finding in findings:
        numbers = ("-" if value is None else f"{value:.3f}" for value in (finding.value, finding.low, finding.high))
        verdict = {True: "ok", False: "CONTRADICTED", None: "too few to test"}[finding.ok]
        table.add_row(f"  {finding.name}", *numbers, verdict)
    return table
