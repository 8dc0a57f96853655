"""One screen about a run: the verdict first, then what it rests on, the numbers, and the run in words."""

import io
from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmbench.metrics import per_run
from llmbench.metrics.checks import Check
from llmbench.metrics.definitions import Figure
from llmbench.metrics.summary import Distribution, Summary
from llmbench.report import latencies, words
from llmbench.report.view import View

_STYLES = {"VALID": "bold green", "INVALID": "bold red", "INCONCLUSIVE": "bold yellow"}
_MARKS = {"failed": ("FAILED", "bold red"), "inconclusive": ("UNSURE", "bold yellow")}
_MOST_CHECKS = 5
_MOST_REASONS = 3


def show(console: Console, view: View, steadily: bool = False) -> None:
    """Print the summary of one run; `steadily` says that its steady part was asked for."""
    say = partial(console.print, soft_wrap=True, highlight=False)  # a line that is cut cannot be searched for
    first = words.verdict(view)
    say(Text(first, style=_STYLES[view.verdict] if view.verdict else "bold"))
    for line in _about(view):
        say(line, markup=False)
    for text in _checks(view.checks):
        say(text)
    if view.numbers.reasons:
        say(_reasons(view.numbers), markup=False)
    if totals := _run(view.numbers):
        say(totals, markup=False)
    if view.captured is not None:
        say(words.captured(view.captured), markup=False)
    console.print(_latencies(view.numbers))
    if steadily:
        _steady(console, view)
    for line in (*_notes(view), words.sentence(view)):
        say(line, markup=False)


def text(view: View) -> str:
    """The same as plain text."""
    lines = io.StringIO()
    show(Console(file=lines, width=120, color_system=None), view)
    return lines.getvalue()


def _latencies(numbers: Summary) -> Table:
    """The times that users wait, then what the server took and what the client added; one unit for all."""
    names = latencies.shown(numbers)
    unit, factor = words.unit(numbers.requests[name].p50 for name in names)
    table = Table(unit, box=None, pad_edge=False)
    for name in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(name, justify="right")
    for name in names:
        table.add_row(latencies.LABELS[name], *_cells(numbers.requests[name], factor))
    return table


def _about(view: View) -> list[str]:
    """The plan and the load; then which part is shown, if it is not the whole run."""
    plan = f"plan {view.plan_sha256[:16]}: " if view.plan_sha256 else ""
    target = f"; {view.target}" if view.target else ""
    lines = [f"{plan}{view.load}{target}"] if plan or view.load or target else []
    if view.window is not None:
        lines.append(
            f"only the {view.numbers.num_planned} requests due from {view.window}; verdict and checks are of all"
        )
        lines += _traffic(view)
    return lines


def _traffic(view: View) -> list[str]:
    if view.traffic is None:
        return []
    traffic = view.traffic
    rates = (
        f"{words.number(traffic.output_tokens_per_s)} output tokens/s, {words.number(traffic.answers_per_s)} answers/s"
    )
    return [f"in that time: {rates}, {words.number(traffic.mean_in_flight)} requests in flight"]


def _checks(checks: Sequence[Check]) -> list[Text]:
    """A line for each that is not fine, with the way out; the ids of the others in one line."""
    wrong = sorted((check for check in checks if check.verdict in _MARKS), key=lambda check: check.allowed)
    lines = [_check(check) for check in wrong[:_MOST_CHECKS]]
    if len(wrong) > _MOST_CHECKS:
        lines.append(Text(f"  and {len(wrong) - _MOST_CHECKS} more, see summary.json"))
    fine = [check.id for check in checks if check.verdict == "ok"]
    open_ones = [check.id for check in checks if check.verdict == "not applicable"]
    others = [f"ok: {', '.join(fine)}"] if fine else []
    others += [f"not applicable: {', '.join(open_ones)}"] if open_ones else []
    return [*lines, Text(f"  {'; '.join(others)}")] if others else lines


def _check(outcome: Check) -> Text:
    """`FAILED  own lateness, p99: 3.1 ms (limit 2 ms) -> the way out`."""
    mark, style = _MARKS[outcome.verdict]
    value, limit = words.quantity(outcome.value, outcome.unit), words.quantity(outcome.limit, outcome.unit)
    line = Text.assemble("  ", (mark, style), f"  {outcome.name}: {value} (limit {limit})")
    return line.append(f" (allowed by --allow {outcome.id})" if outcome.allowed else f" -> {outcome.remedy}")


def _reasons(numbers: Summary) -> str:
    reasons = [f"{number} x {reason}" for reason, number in numbers.reasons.items()]
    more = len(reasons) - _MOST_REASONS
    return f"without an answer: {'; '.join(reasons[:_MOST_REASONS])}" + (f"; and {more} more" if more > 0 else "")


def _run(numbers: Summary) -> str:
    parts = [
        f"{metric.label} {words.number(value)} {metric.unit}"
        for metric in per_run.METRICS
        if (value := numbers.run.get(metric.name)) is not None
    ]
    if not parts and not numbers.num_output_tokens:
        return ""  # nothing of it is known
    prompts = "" if numbers.num_prompt_tokens is None else f"{numbers.num_prompt_tokens} prompt and "
    return "; ".join([f"{prompts}{numbers.num_output_tokens} output tokens", *parts])


def _steady(console: Console, view: View) -> None:
    """The same numbers of the steady part, or why there is none."""
    if view.steady is None or view.steady.window is None or view.steady_numbers is None:
        console.print(f"no steady part: {view.steady.reason if view.steady else ''}", soft_wrap=True, highlight=False)
        return
    rates = ""
    if view.steady_traffic is not None:
        rates = f": {words.number(view.steady_traffic.output_tokens_per_s)} output tokens/s"
    console.print(
        f"steady part, the {view.steady_numbers.num_planned} requests due from {view.steady.window}{rates}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(_latencies(view.steady_numbers))


def _notes(view: View) -> list[str]:
    """What the marks in the table mean, on one line; then what the measuring itself may be wrong by."""
    numbers = view.numbers
    marks = []
    if any(numbers.requests[name].starred for name in latencies.shown(numbers)):
        marks.append("* too few requests for this percentile: the true one may be higher")
    if numbers.num_answered < numbers.num_planned:
        marks.append("TTFT and E2EL: requests without an answer count as infinite, but not in the mean")
    lines = ["; ".join(marks)] if marks else []
    return [*lines, *words.notes(view), *([view.instrument] if view.instrument else [])]


def _cells(spread: Distribution, factor: float) -> list[str]:
    values = (("", spread.mean), ("p50", spread.p50), ("p90", spread.p90), ("p95", spread.p95), ("p99", spread.p99))
    cells = [_cell(value, factor) + ("*" if name in spread.starred else "") for name, value in values]
    return [*cells, _cell(spread.max, factor)]


def _cell(value: float | None, factor: float) -> str:
    return words.number(None if value is None else value * factor)


def show_figures(console: Console, view: View, tool: str, figures: Sequence[Figure], about: str) -> None:
    """What another tool would have printed: its own names and units, and what is peculiar to it."""
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    say(words.verdict(view))
    for line in _about(view):
        say(line)
    say(f"in the definitions of {tool}: {' '.join(about.split())}")
    table = Table("", "", "", box=None, pad_edge=False, show_header=False)
    table.columns[1].justify = "right"
    for figure in figures:
        table.add_row(figure.name, _figure(figure), figure.unit)
    console.print(table)


def _figure(figure: Figure) -> str:
    """Counts whole, seconds with four digits behind the point, the rest with two."""
    if figure.value is None:
        return words.DASH
    whole = not figure.unit and figure.value == round(figure.value)
    return f"{figure.value:.{0 if whole else 4 if figure.unit == 's' else 2}f}"
