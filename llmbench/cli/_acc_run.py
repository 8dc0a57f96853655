"""What `acc run` does: measure, compare, one verdict on both."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import typer
from typer.main import get_command

from llmbench.accuracy import describe, profiles
from llmbench.accuracy.compare import Options
from llmbench.cli import _acc, _acc_files, _perf, _results
from llmbench.cli._typed import typed
from llmbench.cli.perf import perf
from llmbench.errors import InputError
from llmbench.logits import policy
from llmbench.logits.store import Store, located
from llmbench.report.terminal import Terminal
from llmbench.workload.plan import Plan

_INTERRUPTED = 130
_NOT_HERE = ("url", "resume", "json", "audit")
_OURS = ("capture", "force")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for beside the load."""

    base: Path
    force: bool
    profile: str | None
    allow_missing: int
    junit: Path | None
    markdown: Path | None


def command(wanted: Wanted, perf_arguments: Sequence[str]) -> int:
    """From the flags, and those that are perf's, to the exit status. Raises LlmbenchError."""
    if wanted.profile is not None:
        profiles.get(wanted.profile)  # a wrong name is wrong now, not after the load
    base = Store(located(wanted.base))
    known = frozenset(request.id for request in base.requests)
    values, given = _perf_flags(perf_arguments)
    how = _perf.how_of(values)
    own = {"capture": True, "force": wanted.base if wanted.force else None, **_as_in(base, given)}
    values |= own
    settings = _perf.asked(values, given | own.keys())
    folder, interrupted = _perf.measure(settings, how, lambda plan: _check_requests(plan, known, wanted.base))
    results = _results.read(folder, settings.allow)
    _results.show(results, _results.write(results, settings.out_dir), how.json, how.quiet)
    if interrupted:
        return _INTERRUPTED
    options = Options(profile=wanted.profile, allow_missing=wanted.allow_missing)
    found, rows = _acc.compared(wanted.base, folder, options)
    if not how.quiet:
        print()
        _acc.show(Terminal(), found)
    outputs = _acc_files.Outputs(
        json=folder / "accuracy.json", html=folder / "accuracy.html", junit=wanted.junit, markdown=wanted.markdown
    )
    _acc_files.write(outputs, found, rows)
    print(f"run {results.verdict}, accuracy {found.verdict.upper()}")
    return exit_code(results.exit_code, describe.EXIT[found.verdict])


def _as_in(base: Store, given: set[str]) -> dict[str, object]:
    """What perf captures, where it was not told: what the base has. Raises InputError when that cannot be."""
    there = policy.read(base.folder) or policy.Policy()
    if there.every != 1:
        raise InputError(
            f"--base {base.folder}: it has every {there.every}th row only; make one with every row, or a share"
        )
    found = {"capture_tier": base.manifest.tier, "capture_rate": there.rate, "capture_seed": there.seed}
    return {name: value for name, value in found.items() if name not in given}


def exit_code(run: int, accuracy: int) -> int:
    """1 for rows that fail, whatever the run is; else the worse of both: 3, then 4; then the objectives' 1."""
    if accuracy == 1:
        return 1
    return next((code for code in (3, 4, 1) if code in (accuracy, run)), 0)


def _perf_flags(arguments: Sequence[str]) -> tuple[dict[str, object], set[str]]:
    """The values of perf's own options, and which of them were given, as its own command line has them."""
    app = typer.Typer(add_completion=False)
    app.command()(perf)
    with get_command(app).make_context("llmbench acc run", list(arguments)) as context:
        values, given = dict(context.params), typed(context)
    for name in (*_NOT_HERE, *_OURS):
        if name in given:
            raise InputError(f"--{name}: not with `acc run`, which launches the stack, captures and compares by itself")
    del values["resume"]
    return values, given


def _check_requests(plan: Plan, known: frozenset[str], base: Path) -> None:
    """Raise InputError when the base lacks requests that are to be sent: before the load, and not after it."""
    lacking = [planned.request.request_id for planned in plan.requests if planned.request.request_id not in known]
    if lacking:
        raise InputError(
            f"--base {base}: it lacks {len(lacking)} of the {len(plan.requests)} requests, {lacking[0]} first; make "
            "one of the same requests: `acc dump --tier`, or `perf --capture` with the same plan"
        )
