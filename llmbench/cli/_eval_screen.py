"""What `llmbench eval` shows: the progress, one screen for a run, one for a comparison."""

import sys
from collections.abc import Callable, Sequence

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmbench.clock import now_ns
from llmbench.exam.compare import Comparison
from llmbench.exam.journal import Header
from llmbench.exam.sitting import Failure, Progress
from llmbench.exam.tally import Results, Tally

_WORST = 5
_FLIPS = 20
_EVERY_NS = 200_000_000


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `summary.json` holds."""

    verdict: str
    header: Header
    results: Results
    failures: list[Failure]
    min_accuracy: float | None


def progress() -> Callable[[Progress], None] | None:
    """A line on stderr that overwrites itself; None where nobody looks."""
    if not sys.stderr.isatty():
        return None
    shown_ns = 0

    def overwrite(counts: Progress) -> None:
        nonlocal shown_ns
        over = counts.marked + counts.failed == counts.planned
        if over or now_ns() - shown_ns > _EVERY_NS:
            shown_ns = now_ns()
            text = f"\ranswered {counts.marked}/{counts.planned}, right {counts.right}, failed {counts.failed} "
            print(text, end="\n" if over else "", file=sys.stderr, flush=True)

    return overwrite


def show(console: Console, report: Report) -> None:
    """The verdict, the accuracy with its interval, categories, the worst groups, what was not answered."""
    header, found = report.header, report.results
    protocol = header.protocol
    style = "bold green" if report.verdict == "passed" else "bold red"
    console.print(Text(f"{protocol['eval']} {report.verdict.upper()}", style=style))
    if found.micro is None:
        console.print(f"{found.num_marked} answers are kept; whether they are right was not determined")
    else:
        console.print(_overall(found.micro, found, report.min_accuracy), soft_wrap=True)
    for name, value in found.metrics.items():
        console.print(f"{name}: {value:.4f} on average")
    console.print(
        f"protocol: {protocol['mode']}, split {protocol['split']}, {_shots(found, protocol['shots'])}, "
        f"at most {protocol['max_new_tokens']} new tokens",
        soft_wrap=True,
    )
    console.print(f"model: {_who(header)}; data: {header.data}", soft_wrap=True, markup=False)
    if len(found.categories) > 1:
        _tallies(console, "category", found.categories)
    if len(found.groups) > 1:
        worst = sorted(found.groups, key=lambda group: (group.accuracy, group.name))[:_WORST]
        _tallies(console, "worst subjects", worst)
    if found.num_without_answer:
        console.print(f"no answer could be read from {found.num_without_answer} replies; they count as wrong")
    _failures(console, report.failures, found.num_unanswered)


def _who(header: Header) -> str:
    return f"{header.model} ({header.fingerprint[:19]}), {header.via}"


def _overall(micro: Tally, found: Results, wanted: float | None) -> str:
    limit = "" if wanted is None else f", wanted {wanted:.2%}"
    mean = f"; mean of the {len(found.groups)} subjects {found.macro:.2%}" if len(found.groups) > 1 else ""
    return (
        f"right: {micro.accuracy:.2%}{limit}  [{micro.low:.2%}, {micro.high:.2%}] 95 % Wilson; "
        f"{micro.num_right} of {micro.num_items}{mean}"
    )


def _shots(found: Results, wanted: int) -> str:
    """How many shots the prompts have; those that had to be shortened are named."""
    fewer = sum(number for shots, number in found.shots.items() if shots < wanted)
    return f"{wanted} shots" + (f" (fewer in {fewer} prompts that were too long)" if fewer else "")


def _tallies(console: Console, title: str, tallies: Sequence[Tally]) -> None:
    table = Table(title, "right", "n", "95 %", box=None, pad_edge=False)
    for one in tallies:
        table.add_row(one.name, f"{one.accuracy:.2%}", str(one.num_items), f"{one.low:.1%} to {one.high:.1%}")
    console.print(table)


def _failures(console: Console, failures: Sequence[Failure], number: int) -> None:
    if failures:
        first = failures[0]
        console.print(
            Text(f"{number} questions were not answered and are not counted; the first, {first.id}: {first.reason}"),
            soft_wrap=True,
        )


def comparison(console: Console, found: Comparison) -> None:
    """The verdict, the difference with its bounds, the flips."""
    style = {"the same answers": "bold green", "not worse": "bold green", "inconclusive": "bold yellow"}.get(
        found.verdict, "bold red"
    )
    console.print(Text(f"eval {found.verdict.upper()}", style=style))
    for which, header in (("before", found.base), ("now", found.new)):
        console.print(f"{which}: {_who(header)}", soft_wrap=True, markup=False)
    console.print(
        f"right: {found.base_accuracy:.2%} before, {found.new_accuracy:.2%} now; difference "
        f"{_points(found.difference)} ± {100 * found.standard_error:.2f} points, {found.num_items} questions",
        soft_wrap=True,
    )
    bounds = f"Tango {_points(found.lower_bound)}"
    if found.clustered_lower_bound is not None:
        bounds += f", bootstrap over {found.num_groups} subjects {_points(found.clustered_lower_bound)}"
    console.print(f"lower 95 % bound: {bounds}; the loss must stay under {100 * found.margin:g} points", soft_wrap=True)
    console.print(
        f"flips: {found.num_lost} right before and wrong now, {found.num_gained} the other way "
        f"({found.flip_rate:.2%}); {found.num_changed} answers changed; McNemar p = {found.p_value:.3g}",
        soft_wrap=True,
    )
    for flip in found.flips[:_FLIPS]:
        console.print(f"  {flip.id}: {flip.truth} is right; before {flip.base}, now {flip.new}", markup=False)
    if len(found.flips) > _FLIPS:
        console.print(f"  and {len(found.flips) - _FLIPS} more; all of them with --json")


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"
