"""A run's folder as results: read, judged, written, shown. `perf` ends with it, `report` is it."""

import sys
from collections.abc import Collection
from pathlib import Path

import msgspec

from llmbench.cli._evidence import evidence
from llmbench.loadgen import journal
from llmbench.metrics import checks as validity
from llmbench.metrics.summary import Summary, summarise
from llmbench.report import console as screen
from llmbench.report import contest, files
from llmbench.report.terminal import Terminal
from llmbench.workload import plan as plans

PLAN = "plan.jsonl.gz"


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's folder says; everything but the folder's plan and journals is computed from these."""

    folder: Path
    plan: plans.Plan
    trail: journal.Trail
    numbers: Summary
    checks: list[validity.Check]

    @property
    def verdict(self) -> validity.RunVerdict:
        return validity.verdict(self.checks)

    @property
    def exit_code(self) -> int:
        return validity.EXIT[self.verdict]


def read(folder: Path, allow: Collection[str] = ()) -> Results:
    """The results of the run in this folder. Raises InputError when it is none, or `allow` names no check."""
    plan = plans.load(folder / PLAN)
    trail = journal.read_run(folder, plan)
    return Results(
        folder=folder,
        plan=plan,
        trail=trail,
        numbers=summarise(trail.records),
        checks=validity.check(evidence(folder, plan, trail), allow),
    )


def write(results: Results, out_dir: Path | None = None) -> str:
    """The folder's files; the contest's result file in `out_dir` as well. The last line of the contest's log."""
    folder, plan, trail = results.folder, results.plan, results.trail
    files.summary(folder, results.numbers, results.checks)
    files.records(folder, trail.records)
    files.write(folder / "report.txt", screen.text(results.numbers, results.checks).encode())
    about = contest.Run(
        qps=plan.settings.qps,
        interval_s=round(1 / plan.settings.qps, 2),
        num_samples=plan.settings.num_samples,
        prompts=[str(planned.request.prompt) for planned in plan.requests],
        start_ns=trail.header.start_ns,
        start_wall_s=trail.header.start_wall_s,
    )
    log = contest.log(folder, about, trail.records)
    contest.result(folder, about, trail.records)
    if out_dir is not None:
        contest.result(out_dir, about, trail.records)
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-1]


def show(results: Results, last: str, json: bool, quiet: bool) -> None:
    """The screen, or the summary as JSON, or the verdict alone; then the contest's last line."""
    if json:
        print((results.folder / "summary.json").read_text(encoding="utf-8"), end="")
        print(last, file=sys.stderr)
        return
    if quiet:
        print(results.verdict)
    else:
        screen.show(Terminal(), results.numbers, results.checks)
        print(f"files: {results.folder}")
    print(last)
