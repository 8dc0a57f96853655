"""One self-contained page about a run. It asks the network for nothing, and nothing in it is taken for markup."""

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files as resources
from typing import Any

from llmbench import __version__
from llmbench.clock import seconds
from llmbench.metrics import Trace, per_request, per_run
from llmbench.metrics.captured import Captured
from llmbench.metrics.checks import Check
from llmbench.metrics.stalls import FREEZE_S, TIMES_THE_MEDIAN, Stalls, stalls
from llmbench.metrics.summary import Distribution, Summary
from llmbench.metrics.windows import whole
from llmbench.report import _figures, latencies, words
from llmbench.report.view import View

_ROWS = 10
_EXCERPT = 160


def page(view: View) -> str:
    """The page as one HTML document."""
    span = view.window or whole(view.traces, view.start_ns)
    figures = [
        (
            "Over time",
            "Drag across a chart, or use the buttons, to look closer.",
            _figures.over_time(view, span),
        ),
        ("Distributions", "", _figures.distributions(view)),
        ("The server's own counters", "", _figures.counters(view, span)),
        ("The measuring process", "", _figures.client(view, span)),
    ]
    tips = {name: tip for _, _, found in figures for name, tip in found.tips.items()}
    data = {"span": [span.from_s, span.to_s], "tips": tips, "requests": _requests(view)}
    time_charts, spreads, counters, client = (_charts(*group) for group in figures)
    body = "".join(
        (
            _head(view),
            _checks(view.checks),
            _numbers(view),
            _captured(view.captured),
            time_charts,
            spreads,
            _lanes(view.traces),
            _stalls(stalls(view.traces), view.start_ns),
            _reasons(view.numbers),
            _slowest(view),
            counters,
            client,
            _definitions(),
            _environment(view),
        )
    )
    return document(f"{view.verdict or 'not judged'} · {view.title}", body, data)


def document(title: str, body: str, data: Any = None) -> str:
    """A whole page around a body of markup; `data` is what its script shows on demand, None for a page without one."""
    css, js = _file("page.css"), _file("page.js") if data is not None else ""
    scripts = f"script-src 'sha256-{_hash(js)}'; " if js else ""
    policy = (  # the places of labels are style attributes
        f"default-src 'none'; style-src 'unsafe-inline'; {scripts}img-src data:; base-uri 'none'; form-action 'none'"
    )
    script = f'<script type="application/json" id="data">{_embedded(data)}</script><script>{js}</script>' if js else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title>"
        f"<style>{css}</style></head><body><main>{body}"
        f"<footer>llmbench {escape(__version__)}</footer></main>{script}</body></html>\n"
    )


def _head(view: View) -> str:
    word = view.verdict or "NOT JUDGED"
    facts = [("plan", view.plan_sha256), ("load", view.load), ("target", view.target)]
    if view.window is not None:
        facts.append(("window", f"only requests due from {view.window}"))
    if view.instrument:
        facts.append(("instrument", view.instrument.removeprefix("instrument ")))
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts if value)
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in words.notes(view))
    return (
        f'<header><h1><span class="verdict {word.split()[0].lower()}">{word}</span> {escape(view.title)}</h1>'
        '<button id="theme" type="button" hidden>light / dark</button></header>'
        f'<p class="first">{escape(words.verdict(view).removeprefix(word).strip())}.</p>'
        f'<p class="sentence">{escape(words.sentence(view))}</p>{notes}<dl class="facts">{lines}</dl>'
    )


def _checks(checks: Sequence[Check]) -> str:
    if not checks:
        return ""
    order = {"failed": 0, "inconclusive": 1, "ok": 2}
    judged = sorted((check for check in checks if check.verdict in order), key=lambda check: order[check.verdict])
    rows = "".join(_check(check) for check in judged)
    others = [check.name for check in checks if check.verdict not in order]
    rest = f'<p class="note">Not applicable here: {escape("; ".join(others))}.</p>' if others else ""
    return section("Checks", f'<ul class="checks">{rows}</ul>{rest}')


def _check(check: Check) -> str:
    marks = {"ok": "ok", "failed": "FAILED", "inconclusive": "UNSURE"}
    value, limit = words.quantity(check.value, check.unit), words.quantity(check.limit, check.unit)
    text = f"<b>{escape(check.name)}</b> {escape(value)} <small>(limit {escape(limit)})</small>"
    if check.verdict != "ok":
        way_out = f"allowed by --allow {check.id}" if check.allowed else check.remedy
        text += f'<span class="remedy">{escape(way_out)}</span>'
    return f'<li class="{check.verdict}"><span class="mark">{marks[check.verdict]}</span><span>{text}</span></li>'


def _numbers(view: View) -> str:
    numbers = view.numbers
    tiles = [
        ("answered", f"{numbers.num_answered} of {numbers.num_planned}"),
        ("failed", str(numbers.num_failed)),
        ("unfinished", str(numbers.num_unfinished)),
        ("output tokens", str(numbers.num_output_tokens)),
    ]
    if numbers.num_prompt_tokens is not None:
        tiles.append(("prompt tokens", str(numbers.num_prompt_tokens)))
    for metric in per_run.METRICS:
        value = numbers.run.get(metric.name)
        if value is not None:
            tiles.append((metric.label, f"{words.number(value)} {metric.unit}"))
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
    tables = _latencies("Whole run" if view.window is None else f"Due from {view.window}", numbers)
    if view.steady_numbers is not None and view.steady is not None and view.steady.window is not None:
        tables += _latencies(f"Steady part: due from {view.steady.window}", view.steady_numbers)
    elif view.steady is not None:
        tables += f'<p class="note">No steady part was found: {escape(view.steady.reason)}.</p>'
    return section("Numbers", f'<dl class="tiles">{shown}</dl>{tables}{_legend(numbers)}')


def _latencies(title: str, numbers: Summary) -> str:
    """Each percentile with the bounds between which the true one lies."""
    names = latencies.shown(numbers)
    if not names:
        return ""
    unit, factor = words.unit(numbers.requests[name].p50 for name in names)
    head = "".join(f"<th>{text}</th>" for text in ("mean", "p50", "p90", "p95", "p99", "max", "n"))
    rows = "".join(
        f"<tr><th>{escape(latencies.LABELS[name])}</th>{_cells(numbers.requests[name], factor)}</tr>" for name in names
    )
    return (
        f'<div class="wide"><table><caption>{escape(title)}, {unit}</caption>'
        f"<tr><th></th>{head}</tr>{rows}</table></div>"
    )


def _legend(numbers: Summary) -> str:
    """What the marks in the tables mean."""
    text = (
        "TTFT and E2EL count from the instant at which the request was due; the rows from sent are what the server "
        "took; client wait is the difference. Small: 95 % bounds."
    )
    if any(spread.starred for spread in numbers.requests.values()):
        text += " * too few requests for this percentile: the true one may be higher."
    if numbers.num_planned > numbers.num_answered:
        text += " Requests without an answer count as infinite in TTFT and E2EL, not in means."
    return f'<p class="note">{text}</p>'


def _cells(spread: Distribution, factor: float) -> str:
    cells = [f"<td>{_cell(spread.mean, factor)}</td>"]
    for name in ("p50", "p90", "p95", "p99"):
        value: float | None = getattr(spread, name)
        bounds = spread.bounds.get(name)
        small = ""
        if bounds is not None and value is not None and math.isfinite(value):
            high = "?" if bounds.high is None else _cell(bounds.high, factor)
            small = f"<small>{_cell(bounds.low, factor)} … {high}</small>"
        star = "*" if name in spread.starred else ""
        cells.append(f"<td>{_cell(value, factor)}{star}{small}</td>")
    return "".join([*cells, f"<td>{_cell(spread.max, factor)}</td><td>{spread.num}</td>"])


def _cell(value: float | None, factor: float) -> str:
    return words.number(None if value is None else value * factor)


def _charts(title: str, note: str, found: _figures.Figures) -> str:
    if not found.html:
        return ""
    tools = ""
    if note:
        buttons = "".join(
            f'<button type="button" data-zoom="{what}" aria-label="{label}">{sign}</button>'
            for what, label, sign in (
                ("left", "earlier", "◀"),
                ("right", "later", "▶"),
                ("in", "closer", "+"),
                ("out", "farther", "&minus;"),
                ("all", "whole run", "all"),
            )
        )
        tools = f'<p class="tools" hidden>{escape(note)} {buttons}</p>'
    return section(title, f'{tools}<div class="charts">{"".join(found.html)}</div>')


def _lanes(traces: Sequence[Trace]) -> str:
    if not any(trace.sent_ns is not None for trace in traces):
        return ""
    keys = "".join(
        f'<span class="key {colour} bars">{name}</span>'
        for colour, name in (
            ("wait", "waiting in our client"),
            ("a", "until the first token, or the whole of an answer in one piece"),
            ("c", "tokens"),
            ("bad", "no answer"),
        )
    )
    return section(
        "Requests",
        f'<p class="keys">{keys}</p><p class="tools" hidden>'
        '<button type="button" data-page="-1">earlier</button> <span id="lanes-shown"></span> '
        '<button type="button" data-page="1">later</button></p>'
        '<figure class="chart lanes"><div class="plot"><div class="left"></div>'
        f'<svg id="lanes" preserveAspectRatio="none" role="img" aria-label="One lane for each request"></svg>'
        '<div class="below"></div></div><p class="over">seconds of the plan</p></figure>'
        "<noscript><p>The lanes are drawn by the page's script.</p></noscript>",
    )


def _captured(found: Captured | None) -> str:
    """In how large batches the captured rows were computed, beside the load."""
    if found is None:
        return ""
    rows = [(str(size), str(count), f"{count / found.num_rows:.1%}") for size, count in found.batches]
    shown = table(("batch", "rows", "share"), rows)
    return section("Rows of logits", f"<p>{escape(words.captured(found))}</p>{shown}")


def _stalls(found: Stalls, start_ns: int) -> str:
    if not found.num_streams:
        return ""
    text = (
        f"{len(found.found)} gaps longer than {TIMES_THE_MEDIAN} times the median gap of their answer; "
        f"{found.num_frozen} of {found.num_streams} streams froze for more than {words.time(FREEZE_S)}."
    )
    worst = sorted(found.found, key=lambda stall: -stall.gap_s)[:_ROWS]
    rows = [(str(stall.index), f"{seconds(start_ns, stall.from_ns):.3f} s", words.time(stall.gap_s)) for stall in worst]
    return section("Stalls", f"<p>{text}</p>{table(('request', 'from', 'longest gaps'), rows)}")


def _reasons(numbers: Summary) -> str:
    rows = [(str(count), reason) for reason, count in list(numbers.reasons.items())[: 2 * _ROWS]]
    more = len(numbers.reasons) - len(rows)
    rest = f"<p>and {more} more reasons, see records.csv</p>" if more > 0 else ""
    return section("Without an answer", table(("requests", "reason"), rows) + rest) if rows else ""


def _slowest(view: View) -> str:
    answered = [trace for trace in view.traces if trace.status == "answered"]
    slow = sorted(answered, key=lambda trace: -(per_request.e2el.of(trace) or 0.0))[:_ROWS]
    rows = [
        (
            str(trace.index),
            f"{seconds(view.start_ns, trace.due_ns):.3f} s",
            words.time(per_request.ttft.of(trace)),
            words.time(per_request.e2el.of(trace)),
            str(trace.num_tokens),
            _excerpt(view.prompts, trace.index),
        )
        for trace in slow
    ]
    head = ("request", "due", "TTFT", "E2EL", "tokens", "prompt")
    return section("Slowest answers", table(head, rows)) if rows else ""


def _excerpt(prompts: Sequence[str], index: int) -> str:
    text = " ".join(prompts[index].split()) if index < len(prompts) else ""
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…"


def _definitions() -> str:
    metrics: list[tuple[str, str, str]] = [
        (metric.label, metric.unit, metric.formula) for metric in (*per_request.METRICS, *per_request.GAPS)
    ]
    metrics += [(metric.label, metric.unit, metric.formula) for metric in per_run.METRICS]
    return f"<details><summary>Definitions</summary>{table(('metric', 'unit', 'formula'), metrics)}</details>"


def _environment(view: View) -> str:
    if not view.environment:
        return ""
    rows = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in view.environment.items()]
    return f"<details><summary>Environment</summary>{table(('', ''), rows)}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "text") -> str:
    """A table of plain text; of kind "" for numbers, which stand at the right of their columns."""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    top = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    body = "".join(f"<tr>{line}</tr>" for line in ([top] if top else []) + lines)
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>"


def _requests(view: View) -> dict[str, Any]:
    """What lanes and tooltips need, in µs from the start: due, then each instant after the one before it, or null."""
    rows = []
    for trace in sorted(view.traces, key=lambda trace: trace.due_ns):
        first_ns = trace.stamps_ns[0] if trace.stamps_ns else None
        instants = [
            None if at is None else (at - trace.due_ns) // 1000 for at in (trace.sent_ns, first_ns, trace.done_ns)
        ]
        rows.append([trace.index, (trace.due_ns - view.start_ns) // 1000, *instants, trace.num_tokens])
    kinds = sorted(view.traces, key=lambda trace: trace.due_ns)
    return {"rows": rows, "status": "".join(trace.status[0] for trace in kinds)}


def _embedded(value: Any) -> str:
    """JSON that cannot end the element in which it stands."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return resources("llmbench.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
