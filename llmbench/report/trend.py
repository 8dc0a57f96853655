"""A page about how a metric went from build to build."""

from collections.abc import Sequence
from html import escape

import msgspec
import numpy as np

from llmbench.metrics.compare.changes import Change
from llmbench.report import html, words
from llmbench.report._charts import Layer, figure, scale


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """A metric in all versions of a baseline, oldest first; `runs` has the values of each one's runs."""

    metric: str
    labels: list[str]
    created: list[str]
    runs: list[list[float]]
    means: list[float]
    changes: list[Change]


def page(title: str, series: Sequence[Series]) -> str:
    """The page: a chart and a table for each metric."""
    body = f"<header><h1>History of {escape(title)}</h1></header>" + "".join(map(_section, series))
    return html.document(f"history · {title}", body)


def _section(series: Series) -> str:
    places = np.arange(1, len(series.means) + 1, dtype=np.float64)
    each = np.repeat(places, [len(values) for values in series.runs])
    all_runs = np.concatenate([np.array(values) for values in series.runs])
    cuts = np.array([change.index + 0.5 for change in series.changes], np.float64)
    layers = [
        Layer(kind="seam", colour="e", name="changed", x=cuts, y=np.zeros(0)),
        Layer(kind="dots", colour="b", name="runs", x=each, y=all_runs),
        Layer(kind="line", colour="a", name="geometric mean", x=places, y=np.array(series.means)),
    ]
    x = scale(np.array([0.5, len(places) + 0.5]), low=0.5, least=1.0)
    drawn = figure(
        series.metric.replace(":", "-"), series.metric, x, scale(all_runs), layers, over="version", zooms=False
    )
    marked = {change.index: change for change in series.changes}
    rows = "".join(
        f"<tr><td>{i + 1}</td><td>{escape(series.labels[i])}</td><td>{escape(series.created[i])}</td>"
        f"<td>{len(series.runs[i])}</td><td>{words.number(series.means[i])}</td><td>{_mark(marked.get(i))}</td></tr>"
        for i in range(len(series.means))
    )
    head = "".join(f"<th>{name}</th>" for name in ("version", "build", "created", "runs", "value", ""))
    return f"<section><h2>{escape(series.metric)}</h2>{drawn}<table><tr>{head}</tr>{rows}</table></section>"


def _mark(change: Change | None) -> str:
    return "" if change is None else f"changed by {change.change:+.1%}, p {change.p:.3f}"
