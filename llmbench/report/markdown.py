"""A run as Markdown, for a pull request; and the list of all metrics, for the documentation."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from llmbench.metrics import Metric, per_request, per_run
from llmbench.metrics.checks import Check
from llmbench.metrics.summary import Summary
from llmbench.report import latencies, words
from llmbench.report.view import View

_PERCENTILES = ("mean", "p50", "p90", "p95", "p99", "max")


def page(view: View) -> str:
    """Verdict, checks that are not fine, numbers, the run in words."""
    parts = [f"## {plain(words.verdict(view))}", plain(words.sentence(view))]
    about = [("plan", view.plan_sha256[:16]), ("load", view.load), ("target", view.target)]
    if view.window is not None:
        about.append(("part", f"requests due from {view.window}; verdict and checks are of the whole run"))
    about += [("instrument", view.instrument.removeprefix("instrument "))]
    if view.captured is not None:
        about.append(("rows", words.captured(view.captured)))
    parts.append("\n".join(f"* {name}: {plain(value)}" for name, value in about if value))
    wrong = [_check(check) for check in view.checks if check.verdict in ("failed", "inconclusive")]
    if wrong:
        parts.append("\n".join(wrong))
    if view.numbers.reasons:
        reasons = [f"* {count} x {plain(reason)}" for reason, count in list(view.numbers.reasons.items())[:10]]
        parts.append("Without an answer:\n\n" + "\n".join(reasons))
    parts.append(_run(view.numbers))
    parts.append(_latencies(view.numbers))
    if view.steady is not None and view.steady.window is not None and view.steady_numbers is not None:
        parts.append(f"Steady part, requests due from {view.steady.window}:\n\n{_latencies(view.steady_numbers)}")
    parts += [plain(note) for note in words.notes(view)]
    return "\n\n".join(part for part in parts if part) + "\n"


def metrics() -> str:
    """Every declared metric: its name in files, unit, direction and formula."""
    tables = (
        ("Of one request", per_request.METRICS),
        ("Of the gaps in one answer", per_request.GAPS),
        ("Of a run", per_run.METRICS),
    )
    return "\n\n".join(f"### {title}\n\n{_declared(declared)}" for title, declared in tables)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text in which nothing is markup, on one line."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", one_line)


def _declared(metrics: Iterable[Metric[Any, Any]]) -> str:
    rows = [
        (
            f"`{metric.name}`",
            metric.label,
            metric.unit,
            metric.better,
            " ".join(metric.formula.split()).replace("|", "\\|"),
        )
        for metric in metrics
    ]
    return table(("name", "shown as", "unit", "better", "definition"), rows)


def _check(check: Check) -> str:
    value, limit = words.quantity(check.value, check.unit), words.quantity(check.limit, check.unit)
    way_out = f"allowed by `--allow {check.id}`" if check.allowed else plain(check.remedy)
    return f"* **{check.verdict}**: {plain(check.name)} {value} (limit {limit}): {way_out}"


def _run(numbers: Summary) -> str:
    rows = [
        (metric.label, f"{words.number(value)} {metric.unit}")
        for metric in per_run.METRICS
        if (value := numbers.run.get(metric.name)) is not None
    ]
    return table(("run", ""), [*rows, ("output tokens", str(numbers.num_output_tokens))])


def _latencies(numbers: Summary) -> str:
    names = latencies.shown(numbers)
    unit, factor = words.unit(numbers.requests[name].p50 for name in names)
    rows = []
    for name in names:
        spread = numbers.requests[name]
        values: list[float | None] = [getattr(spread, percentile) for percentile in _PERCENTILES]
        cells = [words.number(None if value is None else value * factor) for value in values]
        stars = ["\\*" if percentile in spread.starred else "" for percentile in _PERCENTILES]
        shown = [cell + star for cell, star in zip(cells, stars, strict=True)]
        rows.append([latencies.LABELS[name], *shown, str(spread.num)])
    star = any(numbers.requests[name].starred for name in names)
    note = "\n\n\\* too few requests for this percentile: the true one may be higher." if star else ""
    return table((unit, *_PERCENTILES, "n"), rows) + note if rows else ""
