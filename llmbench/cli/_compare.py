"""From two groups of runs to a verdict: read, refused or compared, shown, written."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llmbench.cli import _plan, _results
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.metrics import compare as comparing
from llmbench.metrics.compare import Comparison, Pair, Primary, effects, select
from llmbench.report import files, junit, regression
from llmbench.report.terminal import Terminal


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the sides are compared."""

    metrics: list[str]
    delta: float
    alpha: float
    paired: bool | None = None
    allow_invalid: bool = False
    allow_different_plan: bool = False


class Outputs(msgspec.Struct, frozen=True, kw_only=True):
    """Where the verdict goes besides the screen."""

    json: Path | None = None
    junit: Path | None = None
    markdown: Path | None = None
    github: bool = False
    one_line: bool = False


def main(a: Path, b: Path, options: Options, outputs: Outputs) -> int:
    """Read both sides, compare, print, write; the exit status."""
    wanted = primaries(options.metrics, options.delta)
    side_a, side_b = (side(folder, options.allow_invalid) for folder in (a, b))
    paired = _paired(side_a, side_b, options)
    found = comparing.compare(pairs(wanted, side_a, side_b), effects.Settings(alpha=options.alpha), paired=paired)
    tell(found, _about(a, side_a), _about(b, side_b), outputs)
    return comparing.EXIT[found.verdict]


def primaries(named: Sequence[str], delta: float) -> list[Primary]:
    """The metrics that decide, from `NAME` and `NAME=DELTA`; a delta is a share or in percent. Raises InputError."""
    found = [_primary(text, delta) for text in named or select.DEFAULTS]
    twice = [name for name, times in Counter(each.metric for each in found).items() if times > 1]
    if twice:
        raise InputError(f"--metric {twice[0]}: named twice")
    return found


def _primary(text: str, delta: float) -> Primary:
    name, sign, share = text.partition("=")
    if sign:
        try:
            delta = float(share.removesuffix("%")) * (0.01 if share.endswith("%") else 1.0)
        except ValueError:
            raise InputError(f"--metric {text}: {share} is no share; write 0.03 or 3%") from None
    try:
        return select.primary(name, delta)
    except ValueError as error:
        raise InputError(f"--metric {text}: {error}") from error


def side(folder: Path, allow_invalid: bool) -> list[_results.Results]:
    """The runs in a folder, in the order of their names, or the run that it is.

    Raises InputError when there is none, InvalidMeasurement when one of them is INVALID.
    """
    if (folder / _plan.FILE).is_file():
        folders = [folder]
    else:
        folders = sorted(each.parent for each in folder.glob(f"*/{_plan.FILE}"))
    if not folders:
        raise InputError(f"{folder}: no run, and no folder of runs; a run has a {_plan.FILE}")
    runs = [_results.read(each) for each in folders]
    for run in runs:
        if run.verdict == "INVALID" and not allow_invalid:
            raise InvalidMeasurement(
                f"{run.folder} is INVALID ({', '.join(_wrong(run))}): repeat it, or see `llmbench report {run.folder}`;"
                " --allow-invalid takes it all the same"
            )
    return runs


def _wrong(run: _results.Results) -> list[str]:
    return [check.id for check in run.checks if check.verdict == "failed" and not check.allowed]


def _paired(a: Sequence[_results.Results], b: Sequence[_results.Results], options: Options) -> bool:
    """Whether runs are paired: as told, else when each plan occurs once on each side, in the same order.

    Raises InvalidMeasurement for sides with other plans.
    """
    plans_a, plans_b = ([run.plan.sha256 for run in each] for each in (a, b))
    if set(plans_a) != set(plans_b) and not options.allow_different_plan:
        raise InvalidMeasurement(
            f"the sides were sent different loads (plans {_short(plans_a)} and {_short(plans_b)}): repeat one with "
            "--plan of the other; --allow-different-plan compares them all the same"
        )
    if options.paired is not None:
        if options.paired and len(a) != len(b):
            raise InputError(f"--paired: {len(a)} and {len(b)} runs are no pairs")
        return options.paired
    return plans_a == plans_b and len(set(plans_a)) == len(plans_a) > 1


def _short(plans: Sequence[str]) -> str:
    return ", ".join(sorted({plan[:8] for plan in plans}))


def pairs(wanted: Sequence[Primary], a: Sequence[_results.Results], b: Sequence[_results.Results]) -> list[Pair]:
    """The metrics, measured on both sides. Raises InputError for one that some run has not."""
    found = []
    for primary in wanted:
        measured = [select.measured(primary.metric, [run.trail.records for run in each]) for each in (a, b)]
        if measured[0] is None or measured[1] is None:
            name = "A" if measured[0] is None else "B"
            raise InputError(f"metric {primary.metric}: a run of {name} has no such figure; leave it out")
        found.append(Pair(primary=primary, a=measured[0], b=measured[1]))
    return found


def tell(found: Comparison, a: str, b: str, outputs: Outputs) -> None:
    """Print and write. Raises InputError when a file cannot be written."""
    if outputs.one_line:
        print(regression.one_line(found))
    else:
        regression.show(Terminal(), found, a, b)
    if outputs.github:
        print(regression.annotations(found), end="")
    with files.wanted():
        if outputs.json is not None:
            files.write_json(outputs.json, {"a": a, "b": b, **msgspec.to_builtins(found)})
        if outputs.junit is not None:
            files.write(outputs.junit, junit.junit("llmbench compare", regression.cases(found)))
        if outputs.markdown is not None:
            files.write(outputs.markdown, regression.markdown(found, a, b).encode())


def _about(folder: Path, runs: Sequence[_results.Results]) -> str:
    """`results/base: 5 runs, 5 VALID`."""
    verdicts = Counter(run.verdict for run in runs)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    return f"{folder}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {counts}"
