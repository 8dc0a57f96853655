"""A run's folder as results: read, judged, written, shown. `perf` ends with it, `report` is it."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from llmbench.cli import _formats, _plan, _rows, _slo
from llmbench.cli._evidence import CALIBRATION, evidence
from llmbench.loadgen import calibrate, journal
from llmbench.loadgen.record import Record
from llmbench.metrics import checks as validity
from llmbench.metrics import slo, steady, windows
from llmbench.metrics.summary import Summary, summarise
from llmbench.report import console as screen
from llmbench.report import contest
from llmbench.report.terminal import Terminal
from llmbench.report.view import View
from llmbench.workload import plan as plans


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's folder says; everything but the folder's plan and journals is computed from these."""

    folder: Path
    plan: plans.Plan
    trail: journal.Trail
    numbers: Summary
    checks: list[validity.Check]
    objectives: list[slo.Outcome] = []

    @property
    def verdict(self) -> validity.RunVerdict:
        return validity.verdict(self.checks)

    @property
    def exit_code(self) -> int:
        """3 or 4 when the run cannot be trusted, else 1 or 4 for an objective that was not kept or cannot be told."""
        return validity.EXIT[self.verdict] or slo.exit_code(self.objectives)


def read(folder: Path, allow: Collection[str] = (), objectives: str | None = None) -> Results:
    """The results of the run in this folder, with these objectives or those that it was begun with.

    Raises InputError when it is none, when `allow` names no check, or an objective is wrong.
    """
    plan = plans.load(folder / _plan.FILE)
    trail = journal.read_run(folder, plan)
    return Results(
        folder=folder,
        plan=plan,
        trail=trail,
        numbers=summarise(trail.records),
        checks=validity.check(evidence(folder, plan, trail), allow),
        objectives=_slo.judged(objectives or _slo.asked(folder), trail.records),
    )


def view(results: Results, part: windows.Window | None = None, steadily: bool = False) -> View:
    """What is to be shown: the whole run, with its steady part or without, or the requests due in a part of it."""
    folder, plan, trail = results.folder, results.plan, results.trail
    start_ns = trail.header.start_ns
    found = steady.steady(trail.records, start_ns) if steadily and part is None else None
    settled = found.window if found else None
    calibration = folder / CALIBRATION
    return View(
        title=folder.resolve().name,
        numbers=results.numbers if part is None else summarise(_records(results, part)),
        whole=None if part is None else results.numbers,
        checks=results.checks,
        traces=_records(results, part),
        around=() if part is None else trail.records,
        start_ns=start_ns,
        load=_load(plan),
        target=f"{trail.header.dialect} at {trail.header.url}",
        plan_sha256=plan.sha256,
        window=part,
        traffic=None if part is None else windows.traffic(trail.records, start_ns, part),
        steady=found,
        steady_numbers=None if settled is None else summarise(_records(results, settled)),
        steady_traffic=None if settled is None else windows.traffic(trail.records, start_ns, settled),
        instrument=calibrate.plus_minus(calibrate.read(calibration)) if calibration.is_file() else "",
        environment=_environment(folder),
        prompts=_prompts(plan),
        samples=trail.samples,
        scrapes=trail.scrapes,
        seams_s=trail.seams_s,
        captured=_rows.of_run(folder, plan, trail) if part is None else None,
    )


def part(results: Results, from_s: float | None, to_s: float | None) -> windows.Window:
    """The part of a run between two seconds of its plan. Raises InputError when nothing is in it."""
    start_ns = results.trail.header.start_ns
    return windows.window(from_s, to_s, windows.whole(results.trail.records, start_ns))


def export(results: Results, shown: View) -> _formats.Export:
    """What is shown, as all formats want it."""
    plan, header = results.plan, results.trail.header
    about = contest.Run(
        qps=plan.settings.qps,
        interval_s=round(1 / plan.settings.qps, 2),
        num_samples=plan.settings.num_samples,
        prompts=shown.prompts,
        start_ns=header.start_ns,
        start_wall_s=header.start_wall_s,
    )
    return _formats.Export(view=shown, answers=_records(results, shown.window), about=about)


def write(results: Results, out_dir: Path | None = None) -> str:
    """The folder's files; the contest's result file in `out_dir` as well. The last line of the contest's log."""
    found = export(results, view(results, steadily=True))
    _formats.write(_formats.ALWAYS, found, results.folder)
    _slo.write(results.folder, results.objectives)
    if out_dir is not None:
        _formats.write(["contest"], found, out_dir)
    log = contest.log(results.folder, found.about, found.answers)
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
        screen.show(Terminal(), view(results))
        print(*_slo.lines(results.objectives), sep="\n", end="\n" if results.objectives else "")
        print(f"files: {results.folder}")
    print(last)


def _records(results: Results, part: windows.Window | None) -> list[Record]:
    records = results.trail.records
    return records if part is None else windows.due_in(records, results.trail.header.start_ns, part)


def _load(plan: plans.Plan) -> str:
    """What was sent: `60 requests of alpaca_521, poisson arrivals, 6 per second, seed 0`."""
    settings = plan.settings
    rate = f", {settings.rate:.4g} per second" if settings.rate else ""
    return (
        f"{len(plan.requests)} requests of {settings.dataset}, {settings.arrivals} arrivals{rate}, seed {settings.seed}"
    )


def _prompts(plan: plans.Plan) -> list[str]:
    """By index, which need not be the order of the plan."""
    prompts = {planned.index: str(planned.request.prompt) for planned in plan.requests}
    return [prompts.get(index, "") for index in range(max(prompts, default=-1) + 1)]


def _environment(folder: Path) -> dict[str, Any]:
    """What the run says that it was measured with; nothing when it does not say so."""
    try:
        found = msgspec.json.decode((folder / "environment.json").read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return found if isinstance(found, dict) else {}
