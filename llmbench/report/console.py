"""One screen about a run: the verdict first, then what it rests on, then the numbers."""

import io
import math
from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmbench.metrics import per_request, per_run
from llmbench.metrics.checks import Check, verdict
from llmbench.metrics.summary import Distribution, Summary

_ITL = "ITL"
_MARKS = {
    "ok": ("ok    ", "green"),
    "failed": ("FAILED", "bold red"),
    "inconclusive": ("UNSURE", "bold yellow"),
    "not applicable": ("-     ", "dim"),
}


def show(console: Console, numbers: Summary, checks: Sequence[Check]) -> None:
    """Print the summary of one run."""
    say = partial(console.print, soft_wrap=True)  # a line that is cut cannot be searched for
    word = verdict(checks)
    say(Text(word, style={"VALID": "bold green", "INVALID": "bold red", "INCONCLUSIVE": "bold yellow"}[word]))
    for outcome in checks:
        say(_check(outcome))
    say(_counts(numbers))
    for reason, number in list(numbers.reasons.items())[:5]:
        say(Text(f"  {number} x {reason}"))
    say(_run(numbers))
    console.print(_latencies(numbers))
    if numbers.num_answered < numbers.num_planned:
        say("TTFT and E2EL: percentiles count requests without an answer as infinite, means leave them out.")


def text(numbers: Summary, checks: Sequence[Check]) -> str:
    """The same as plain text."""
    lines = io.StringIO()
    show(Console(file=lines, width=120, color_system=None), numbers, checks)
    return lines.getvalue()


def _check(outcome: Check) -> Text:
    """`ok  own lateness, p99: 0.31 ms (limit 2.00 ms)`, with the way out where it failed."""
    mark, style = _MARKS[outcome.verdict]
    line = Text.assemble("  ", (mark, style), f"  {outcome.name}")
    if outcome.verdict == "not applicable":
        return line.append(": not applicable here")
    line.append(f": {_quantity(outcome.value, outcome.unit)} (limit {_quantity(outcome.limit, outcome.unit)})")
    if outcome.verdict != "ok":
        line.append(f" -> {outcome.remedy}" if not outcome.allowed else f" (allowed by --allow {outcome.id})")
    return line


def _counts(numbers: Summary) -> Text:
    tokens = f"{numbers.num_output_tokens} output tokens"
    if numbers.num_prompt_tokens is not None:
        tokens = f"{numbers.num_prompt_tokens} prompt tokens, {tokens}"
    return Text(
        f"requests: {numbers.num_answered} answered, {numbers.num_failed} failed, {numbers.num_unfinished} unfinished "
        f"of {numbers.num_planned}; {tokens}"
    )


def _run(numbers: Summary) -> Text:
    parts = []
    for metric in per_run.METRICS:
        value = numbers.run[metric.name]
        if value is not None:
            parts.append(f"{metric.label} {value:.3f} {metric.unit}")
    return Text("; ".join(parts))


def _latencies(numbers: Summary) -> Table:
    """Milliseconds; the rows that users know first."""
    table = Table("ms", box=None, pad_edge=False)
    for name in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(name, justify="right")
    rows = {metric.name: metric.label for metric in per_request.METRICS}
    if not numbers.requests[per_request.slot_wait.name].max:
        del rows[per_request.slot_wait.name]
    order = ["ttft", "tpot", "icl", "itl", "e2el"]
    labels = rows | {"itl": _ITL, "icl": "ICL"}
    for name in [*order, *(name for name in rows if name not in order)]:
        table.add_row(labels[name], *_cells(numbers.requests[name]))
    return table


def _cells(spread: Distribution) -> list[str]:
    values = (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.max)
    return [_milliseconds(value) for value in values]


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return "inf" if math.isinf(value) else f"{value * 1e3:.2f}"


def _quantity(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{_milliseconds(value)} ms" if unit == "s" else f"{value:.4g}{unit and ' ' + unit}"
