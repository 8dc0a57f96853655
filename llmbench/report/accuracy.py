"""A comparison of logits as one page, from its files: the comparison as in its JSON, and the rows' figures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files as resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmbench import __version__
from llmbench.report import _charts

Floats = NDArray[np.float64]
Told = Mapping[str, Any]

_FLOOR = 1e-16  # a KLD of 0 has no logarithm
_MOST_DOTS = 4000
_COLOURS = {"passed": "valid", "failed": "invalid", "not comparable": "invalid", "inconclusive": "inconclusive"}


def page(told: Told, rows: Mapping[str, NDArray[Any]], looks: Sequence[Told]) -> str:
    """The page. `rows` has columns of one length: kld, place, batch, request, flip; `looks` are single rows."""
    css = resources("llmbench.report").joinpath("page.css").read_text(encoding="utf-8")
    verdict = str(told["verdict"])
    title = f"{told['base']['path']} against {told['new']['path']}"
    body = "".join(
        (
            f'<h1><span class="verdict {_COLOURS[verdict]}">{verdict.upper()}</span> {escape(title)}</h1>',
            "".join(f'<p class="first">{escape(reason)}</p>' for reason in told["reasons"]),
            "".join(f'<p class="note">{escape(note)}</p>' for note in told["notes"]),
            _section("Gates", _gates(told)),
            _section("Rows", _facts(told)),
            _section("Where", _charts_of(rows)),
            _section("By batch size", _groups(told["by_batch"], "batch")),
            _section("By position", _groups(told["by_position"], "step")),
            _section("Worst requests", _groups(told["worst_requests"], "request")),
            _section("Worst rows", _worst(told["worst_rows"]) + "".join(_look(look) for look in looks)),
            _section("Findings", _table(("kind", "where", "what"), _findings(told["findings"]))),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(verdict)} · {escape(title)}</title><style>{css}</style></head><body><main>{body}"
        f"<footer>llmbench {escape(__version__)}</footer></main></body></html>\n"
    )


def _gates(told: Told) -> str:
    rows = [
        (
            gate["verdict"],
            gate["what"],
            _range(gate["low"], gate["high"]),
            f"{gate['bound']} {gate['limit']:g}",
            gate["source"],
        )
        for gate in told["gates"]
    ]
    return f"<p>profile {escape(told['profile'])}</p>" + _table(("", "figure", "value", "limit", "source"), rows)


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return "not asked for"
    if low == high:
        return _number(low)
    return f"{_number(low)} to {'?' if high is None else _number(high)}"


def _facts(told: Told) -> str:
    facts = [
        ("joined by", told["joined_by"]),
        ("rows on both sides", str(told["num_joined"])),
        ("scored", str(told["num_compared"])),
        ("after a split, not scored", str(told["num_after_divergence"])),
        ("equal bit by bit", str(told["num_equal"])),
        ("outside the contest's tolerance", str(told["num_failed"])),
        (f"an atol that passes{' what is known' if told['num_not_whole'] else ''}", _number(told["tolerance"])),
        ("changed top tokens", f"{told['num_flips']}, {told['num_flips_explained']} of them explained by rounding"),
    ]
    spreads = [
        (name, *(_number(spread[key]) for key in ("mean", "standard_error", "median", "p01", "p99", "p999", "max")))
        for name, spread in told["distributions"].items()
    ]
    head = ("figure", "mean", "±", "median", "1 %", "99 %", "99.9 %", "max")
    return _table(("", ""), facts) + _table(head, spreads)


def _charts_of(rows: Mapping[str, NDArray[Any]]) -> str:
    """KLD by position, by batch size, and by request in the order of the base; flips are marked."""
    if not len(rows["kld"]):
        return ""
    picked = _picked(rows["kld"], rows["flip"])
    kld = np.log10(np.maximum(rows["kld"].astype(np.float64), _FLOOR))[picked]
    flip = rows["flip"][picked]
    _, requests = np.unique(rows["request"], return_inverse=True)
    axes = (
        ("position", "by position", rows["place"][picked], "step of the answer"),
        ("batch", "by batch size", rows["batch"][picked], "sequences in the step"),
        ("request", "by request", requests.reshape(-1)[picked], "request, in the order of names"),
    )
    y = _charts.Scale(low=math.floor(kld.min()), high=math.ceil(kld.max()) + 0.5)
    figures = []
    for name, title, values, over in axes:
        across = values.astype(np.float64)
        layers = [
            _charts.Layer(kind="dots", colour="a", name="same top token", x=across[~flip], y=kld[~flip]),
            _charts.Layer(kind="dots", colour="bad", name="another top token", x=across[flip], y=kld[flip]),
        ]
        x = _charts.Scale(low=0.0, high=float(across.max()) * 1.02 + 0.5)
        figures.append(_charts.figure(name, f"log10 of KLD, {title}", x, y, layers, over=over, zooms=False))
    return f'<div class="charts">{"".join(figures)}</div>'


def _picked(kld: Floats, flip: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The rows that are drawn: all, or the worst ones, every flip, and evenly some of the rest."""
    if len(kld) <= _MOST_DOTS:
        return np.arange(len(kld))
    worst = np.argsort(-kld)[: _MOST_DOTS // 4]
    some = np.linspace(0, len(kld) - 1, _MOST_DOTS // 2).astype(np.int64)
    places: NDArray[np.int64] = np.unique(np.concatenate([worst, some, np.flatnonzero(flip)[: _MOST_DOTS // 4]]))
    return places


def _groups(groups: Sequence[Told], name: str) -> str:
    names = ("kld_mean", "kld_max", "max_abs")
    rows = [
        (group["name"], str(group["num_rows"]), str(group["num_flips"]), *(_number(group[key]) for key in names))
        for group in groups
    ]
    return _table((name, "rows", "changed tokens", "mean KLD", "largest KLD", "largest |d|"), rows)


def _worst(worst: Sequence[Told]) -> str:
    rows = [
        (
            str(row["request_id"] or row["file"]),
            str(row["index"]),
            str(row["batch_size"]),
            _number(row["kld"]),
            _number(row["max_abs"]),
            str(row["vocab_id"]),
            f"{row['base']:.7g} → {row['new']:.7g}",
            f"{row['base_token']} → {row['new_token']}",
        )
        for row in worst
    ]
    return _table(("request", "index", "batch", "KLD", "|d|", "at id", "logit", "top token"), rows)


def _look(look: Told) -> str:
    """One row, folded away."""
    rows = [
        (
            str(entry["vocab_id"]) + (" (differs most)" if entry["vocab_id"] == look["worst"] else ""),
            *(_maybe(entry[key]) for key in ("base", "new", "p", "q")),
        )
        for entry in look["entries"]
    ]
    where = f"{look['request_id']}, index {look['index']}, batch {look['batch_size']}"
    return (
        f"<details><summary>{escape(where)}</summary>"
        f"{_table(('id', 'base logit', 'new logit', 'p', 'q'), rows)}</details>"
    )


def _findings(findings: Sequence[Told]) -> Iterable[tuple[str, str, str]]:
    return [(finding["kind"], finding["file"], finding["message"]) for finding in findings[:200]]


def _maybe(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.7g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text; empty without a row."""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    top = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    body = "".join(f"<tr>{line}</tr>" for line in ([top] if top else []) + lines)
    return f'<div class="wide"><table class="text">{body}</table></div>'


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>" if inside else ""
