"""The goodput curve of a search for the highest load, as a page."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Protocol

import numpy as np

from llmbench.report import html
from llmbench.report._charts import Layer, Scale, figure, scale


class Point(Protocol):
    """One rate of the curve: requests per second, the share of requests within all limits with its bounds."""

    @property
    def rate(self) -> float: ...

    @property
    def outcome(self) -> str: ...

    @property
    def share(self) -> float | None: ...

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...

    @property
    def goodput(self) -> float | None: ...


def page(
    title: str, headline: str, reason: str, points: Sequence[Point], head: Sequence[str], rows: Iterable[Sequence[str]]
) -> str:
    """The page as one HTML document: what was found, both curves, the table of all rates."""
    known = [point for point in points if point.share is not None and point.goodput is not None]
    x = Scale(low=0.0, high=1.05 * max((point.rate for point in known), default=1.0))
    charts = _within(known, x) + _goodput(known, x)
    note = f'<p class="note">{escape(reason)}</p>' if reason else ""
    body = (
        f"<header><h1>{escape(title)}</h1></header><p class='sentence'>{escape(headline)}</p>{note}"
        + html.section("Goodput", f'<div class="charts">{charts}</div>' if charts else "<p>No rate was measured.</p>")
        + html.section("Rates", html.table(head, rows))
    )
    return html.document(f"maxload · {title}", body)


def _within(points: Sequence[Point], x: Scale) -> str:
    rates = np.array([point.rate for point in points])
    bounds = [("share", [point.share for point in points], "a")]
    bounds += [("95 % bounds", [point.low for point in points], "e"), ("", [point.high for point in points], "e")]
    layers = [
        Layer(kind="line", colour=colour, name=name, x=rates, y=100 * np.array(values, dtype=np.float64))
        for name, values, colour in bounds
    ]
    y = Scale(low=0.0, high=104.0)
    return figure("within", "Requests within all limits, %", x, y, layers, over="requests per second", zooms=False)


def _goodput(points: Sequence[Point], x: Scale) -> str:
    rates, goodput = (np.array([getattr(p, name) for p in points], dtype=np.float64) for name in ("rate", "goodput"))
    layers = [
        Layer(kind="line", colour="c", name="within all limits", x=rates, y=goodput),
        Layer(kind="line", colour="e", name="offered", x=rates, y=rates),
    ]
    y = scale(rates) if len(rates) else Scale(low=0.0, high=1.0)
    return figure("goodput", "Requests per second", x, y, layers, over="requests per second offered", zooms=False)
