"""Charts as SVG and HTML, without a library: a page of them needs no network and can be read for ever.

The plot is an SVG that is stretched to the width of the page (lines and dots keep their own width), the labels around
it are HTML, so that they keep their size. All x coordinates are on 0..WIDTH of the whole axis: a page that zooms only
changes the part of it that is shown.
"""

import math
from collections.abc import Sequence
from html import escape

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
WIDTH, HEIGHT = 1000, 200

_ROOM = 1.04  # above the highest value


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """An axis from one number to another."""

    low: float
    high: float
    least: float = 0.0
    """The smallest step between ticks: 1 for counts."""

    def place(self, values: Floats, length: float) -> Floats:
        """Where values lie on an axis of that length."""
        return (values - self.low) / (self.high - self.low) * length

    def ticks(self, about: int) -> list[float]:
        """Round numbers within the axis: steps of 1, 2 or 5 times a power of ten."""
        step = max(self.least, nice((self.high - self.low) / about))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One drawing in a plot: its kind, its colour by name, and its points in the units of the axes."""

    kind: str
    """dots, line, steps, bars; lost: marks at the upper edge; seam: lines across."""
    colour: str
    name: str
    x: Floats
    y: Floats


def scale(values: Floats, low: float | None = 0.0, least: float = 0.0) -> Scale:
    """An axis that holds all finite values; from `low`, or from the lowest of them."""
    finite = values[np.isfinite(values)]
    high = float(finite.max()) if len(finite) else 1.0
    start = float(finite.min()) if low is None and len(finite) else low or 0.0
    return Scale(low=start, high=start + ((high - start) * _ROOM or 1.0), least=least)


def nice(width: float) -> float:
    """The next of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))


def figure(
    name: str,
    title: str,
    x: Scale,
    y: Scale,
    layers: Sequence[Layer],
    *,
    note: str = "",
    right: Scale | None = None,
    over: str = "seconds of the plan",
    zooms: bool = True,
    measured: bool = True,
) -> str:
    """One chart; `right` gives a second axis, in percent, for a layer named "share". Empty without a point.

    `measured` False leaves the labels of the y axis out: there are marks at its edge alone.
    """
    if not any(len(layer.x) for layer in layers):
        return ""
    drawn = "".join(_drawn(layer, x, right if right is not None and layer.name == "share" else y) for layer in layers)
    named = [layer for layer in layers if layer.name and len(layer.x)]
    keys = "".join(f'<span class="key {layer.colour} {layer.kind}">{escape(layer.name)}</span>' for layer in named)
    legend = f'<span class="keys">{keys}</span>' if len(named) > 1 else ""
    grid = "".join(f"M0 {HEIGHT - place:.1f}H{WIDTH}" for place in y.place(np.array(y.ticks(5)), HEIGHT))
    percent = "" if right is None else f'<div class="right">{_marks(right, 4, "bottom", "%")}</div>'
    return (
        f'<figure class="chart{"" if right is None else " two"}" id="chart-{name}" data-x="{x.low:g},{x.high:g}"'
        f"{' data-zooms' if zooms else ''}>"
        f"<figcaption><b>{escape(title)}</b>{legend}</figcaption>"
        f'<div class="plot"><div class="left">{_marks(y, 5, "bottom") if measured else ""}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f'<path class="grid" d="{grid}"/>{drawn}</svg>{percent}'
        f'<div class="below">{_marks(x, 5, "left")}</div></div>'
        f'<p class="over">{escape(over)}{escape("; " + note if note else "")}</p></figure>'
    )


def _marks(axis: Scale, about: int, side: str, suffix: str = "") -> str:
    """The labels of an axis, each at its place in percent."""
    ticks = axis.ticks(about)
    places = axis.place(np.array(ticks), 100)
    return "".join(
        f'<span style="{side}:{place:.2f}%">{label(tick)}{suffix}</span>'
        for tick, place in zip(ticks, places, strict=True)
    )


def label(value: float) -> str:
    """A tick without noise in its last digits."""
    return f"{0.0 if abs(value) < 1e-12 else value:.10g}"


def _drawn(layer: Layer, x: Scale, y: Scale) -> str:
    if not len(layer.x):
        return ""
    across = x.place(layer.x, WIDTH)
    up = np.clip(HEIGHT - y.place(layer.y, HEIGHT), -1, HEIGHT + 1) if len(layer.y) else layer.y
    path = {"dots": _dots, "lost": _lost, "line": _line, "steps": _steps, "bars": _bars, "seam": _seam}[layer.kind](
        across, up
    )
    return f'<path class="{layer.kind} {layer.colour}" d="{path}"/>'


def _dots(across: Floats, up: Floats) -> str:
    points = dict.fromkeys(zip(across.round(2).tolist(), up.round(1).tolist(), strict=True))
    return "".join(f"M{x:g} {y:g}h0" for x, y in points)


def _lost(across: Floats, up: Floats) -> str:
    """A short stroke at the upper edge for each."""
    return "".join(f"M{x:g} 0v12" for x in dict.fromkeys(across.round(2).tolist()))


def _seam(across: Floats, up: Floats) -> str:
    return "".join(f"M{x:g} 0V{HEIGHT}" for x in across.round(2).tolist())


def _line(across: Floats, up: Floats) -> str:
    points = " ".join(f"{x:g} {y:g}" for x, y in zip(across.round(2).tolist(), up.round(1).tolist(), strict=True))
    return f"M{points}"


def _steps(across: Floats, up: Floats) -> str:
    """A level for each of the parts between the edges: one x more than y."""
    levels = "".join(f"V{y:g}H{x:g}" for x, y in zip(across[1:].round(2).tolist(), up.round(1).tolist(), strict=True))
    return f"M{across[0]:.2f} {HEIGHT}{levels}V{HEIGHT}"


def _bars(across: Floats, up: Floats) -> str:
    """The same, closed and with gaps, for a histogram."""
    edges = across.round(2).tolist()
    return "".join(
        f"M{left:g} {HEIGHT}V{y:g}H{right:g}V{HEIGHT}Z"
        for left, right, y in zip(edges, edges[1:], up.round(1).tolist(), strict=False)
        if y < HEIGHT
    )
