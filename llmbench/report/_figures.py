"""The charts of a run: what is drawn in each of them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from llmbench.clock import seconds
from llmbench.metrics import Trace, per_request
from llmbench.metrics.evidence import Sample, Scrape
from llmbench.metrics.windows import Window, in_flight
from llmbench.report import words
from llmbench.report._charts import Floats, Layer, Scale, figure, nice, scale
from llmbench.report.view import View

_BINS = 160
_COARSE_BINS = 60
_POINTS = 120
_FEWEST_BARS, _MOST_BARS = 8, 60  # the square root of the number of values, between these
_MOST_COUNTERS = 12
_LAG = "Longest pause of its event loop, ms"


class Figures(msgspec.Struct, kw_only=True):
    """Charts as HTML, and what their tooltips show, by the name of the chart."""

    html: list[str] = []
    tips: dict[str, Any] = {}

    def add(self, name: str, html: str, tips: Any) -> None:
        """Keep a chart that has something in it."""
        if html:
            self.html.append(html)
            self.tips[name] = tips


def over_time(view: View, span: Window) -> Figures:
    """Latencies of the requests by the instant at which they were due, then what went on in each bin of time."""
    found = Figures()
    x = Scale(low=span.from_s, high=span.to_s)
    due = {trace.index: seconds(view.start_ns, trace.due_ns) for trace in view.traces}
    for metric, colour in ((per_request.ttft, "a"), (per_request.e2el, "b")):
        _latencies(found, view, x, metric.name, metric.label, colour, due)
    edges, coarse = _edges(span, _BINS), _edges(span, _COARSE_BINS)
    around = Window(from_s=float(edges[0]), to_s=float(edges[-1]))
    everything = view.around or view.traces
    flying = in_flight(everything, view.start_ns, around, len(edges) - 1)
    _bands(found, "in-flight", "Requests in flight", x, edges, [("in flight", "a", flying)])
    _bands(found, "rate", "Requests per second", x, coarse, _rates(view, everything, coarse))
    tokens = _tokens(view, everything, edges) / (edges[1] - edges[0])
    _bands(found, "tokens", "Output tokens per second", x, edges, [("tokens/s", "c", tokens)])
    return found


def distributions(view: View) -> Figures:
    """Histograms with the share of requests below each value."""
    found = Figures()
    for metric, colour in ((per_request.ttft, "a"), (per_request.e2el, "b"), (per_request.tpot, "c")):
        values = [value for trace in view.traces if (value := metric.of(trace)) is not None]
        _histogram(found, metric.name, metric.label, colour, np.array(values, dtype=np.float64), "requests")
    _histogram(found, "icl", "ICL, gaps between reads", "d", _gaps(view.traces), "gaps")
    return found


def counters(view: View, span: Window) -> Figures:
    """The server's own counters: levels as they are, totals as their rate. Those that never change are left out."""
    found = Figures()
    x = Scale(low=span.from_s, high=span.to_s)
    for name in _changing(view.scrapes):
        instants, values = _counter(view, name, span)
        if name.endswith("_total") and len(values) > 1:
            values = np.diff(values) / np.maximum(np.diff(instants), 1e-9)
            instants = instants[1:]
        if len(values) < 2:
            continue
        title = f"{name} per second" if name.endswith("_total") else name
        layer = Layer(kind="line", colour="a", name="", x=instants, y=values)
        key = f"counter-{len(found.html)}"
        html = figure(key, title, x, scale(values), [layer])
        found.add(key, html, _line_tips(instants, [(title, values)]))
        if len(found.html) == _MOST_COUNTERS:
            break
    return found


def client(view: View, span: Window) -> Figures:
    """What the measuring processes did themselves."""
    found = Figures()
    x = Scale(low=span.from_s, high=span.to_s)
    for name, title, of in (("cpu", "CPU of the measuring process, percent of a core", _cpu), ("lag", _LAG, _lag_ms)):
        layers: list[Layer] = []
        for number, samples in enumerate(view.samples[:4]):
            inside = [s for s in samples if span.from_s <= seconds(view.start_ns, s.at_ns) <= span.to_s]
            instants = np.array([seconds(view.start_ns, s.at_ns) for s in inside])
            values = np.array([of(s) for s in inside], dtype=np.float64)
            if len(instants) > 1:
                layers.append(
                    Layer(kind="line", colour="abcd"[number], name=f"process {number + 1}", x=instants, y=values)
                )
        if layers:
            html = figure(name, title, x, scale(np.concatenate([layer.y for layer in layers])), layers)
            found.add(name, html, _line_tips(layers[0].x, [(layers[0].name, layers[0].y)]))
    return found


def _latencies(found: Figures, view: View, x: Scale, name: str, label: str, colour: str, due: dict[int, float]) -> None:
    metric = next(metric for metric in per_request.METRICS if metric.name == name)
    values = [(trace.index, value) for trace in view.traces if (value := metric.of(trace)) is not None]
    kept = [(due[index], value) for index, value in values if math.isfinite(value)]
    lost = np.array([due[trace.index] for trace in view.traces if trace.status != "answered"], dtype=np.float64)
    if not kept and (name != per_request.e2el.name or not len(lost)):
        return
    unit, factor = words.unit(value for _, value in kept)
    points = np.array(kept, dtype=np.float64).reshape(-1, 2) * (1, factor)
    layers = [
        Layer(kind="dots", colour=colour, name=label, x=points[:, 0], y=points[:, 1]),
        Layer(kind="lost", colour="bad", name="no answer", x=lost, y=lost),
        Layer(kind="seam", colour="e", name="resumed", x=np.array(view.seams_s), y=np.zeros(len(view.seams_s))),
    ]
    y = scale(points[:, 1])
    title = f"{label} by the instant at which the request was due, {unit}" if kept else "Requests without an answer"
    html = figure(name, title, x, y, layers, measured=bool(kept))
    found.add(name, html, {"kind": "requests", "metric": name, "factor": factor, "high": y.high})


def _bands(
    found: Figures,
    name: str,
    title: str,
    x: Scale,
    edges: Floats,
    levels: Sequence[tuple[str, str, Floats]],
) -> None:
    """Levels in bins of time; a chart in which all are 0 is left out."""
    if not any(values.any() for _, _, values in levels):
        return
    layers = [Layer(kind="steps", colour=colour, name=label, x=edges, y=values) for label, colour, values in levels]
    y = scale(np.concatenate([values for _, _, values in levels]))
    tips = {
        "kind": "bins",
        "edges": _rounded(edges, 4),
        "series": [[label, _rounded(values, 3)] for label, _, values in levels],
    }
    found.add(name, figure(name, title, x, y, layers, note=f"bins of {words.time(float(edges[1] - edges[0]))}"), tips)


def _rates(view: View, traces: Sequence[Trace], edges: Floats) -> list[tuple[str, str, Floats]]:
    """Requests that were due, sent, and answered in each bin, per second."""
    instants = (
        ("due", "d", [trace.due_ns for trace in traces]),
        ("sent", "a", [trace.sent_ns for trace in traces]),
        ("answered", "c", [trace.done_ns for trace in traces if trace.status == "answered"]),
    )
    return [(name, colour, _counted(view, at_ns, edges) / (edges[1] - edges[0])) for name, colour, at_ns in instants]


def _counted(view: View, at_ns: Iterable[int | None], edges: Floats) -> Floats:
    instants = np.array([at for at in at_ns if at is not None], dtype=np.int64)
    counts: Floats = np.histogram((instants - view.start_ns) / 1e9, edges)[0].astype(np.float64)
    return counts


def _tokens(view: View, traces: Sequence[Trace], edges: Floats) -> Floats:
    """Tokens that arrived in each bin; an answer in one piece brings all of them when it is done."""
    answered = [trace for trace in traces if trace.status == "answered"]
    stamps = np.array([stamp for trace in answered for stamp in trace.stamps_ns], dtype=np.int64)
    numbers = np.array([number for trace in answered for number in trace.tokens], dtype=np.float64)
    whole = [(trace.done_ns, trace.num_tokens) for trace in answered if not trace.stamps_ns and trace.done_ns]
    at = np.concatenate((stamps, np.array([done for done, _ in whole], dtype=np.int64)))
    weights = np.concatenate((numbers, np.array([number for _, number in whole], dtype=np.float64)))
    sums: Floats = np.histogram((at - view.start_ns) / 1e9, edges, weights=weights)[0].astype(np.float64)
    return sums


def _gaps(traces: Sequence[Trace]) -> Floats:
    parts = [np.diff(trace.stamps_ns) for trace in traces if trace.status == "answered" and len(trace.stamps_ns) > 1]
    return np.concatenate(parts) / 1e9 if parts else np.zeros(0)


def _histogram(found: Figures, name: str, label: str, colour: str, values: Floats, what: str) -> None:
    """Up to the value that 99.5 % do not pass, where the rest is far away."""
    finite = np.sort(values[np.isfinite(values)])
    if len(finite) < 2:
        return
    top = float(finite[-1])
    usual = float(np.quantile(finite, 0.995))
    shown_to = usual if top > 3 * usual else top
    unit, factor = words.unit([float(finite[len(finite) // 2]), shown_to])
    low = float(finite[0]) if finite[0] > shown_to / 2 else 0.0
    x = Scale(low=low * factor, high=(shown_to if shown_to > low else low + 1e-6) * factor)
    edges = np.linspace(x.low, x.high, min(_MOST_BARS, max(_FEWEST_BARS, math.isqrt(len(finite)))) + 1)
    counts = np.histogram(finite * factor, edges)[0].astype(np.float64)
    fine = np.linspace(x.low, x.high, _POINTS)
    shares, fine_shares = (
        100 * np.searchsorted(finite * factor, at, side="right") / len(values) for at in (edges, fine)
    )
    beyond = len(values) - int(np.searchsorted(finite, shown_to, side="right"))
    note = f"{beyond} of {len(values)} {what} lie beyond" if beyond else f"{len(values)} {what}"
    name = f"spread-{name}"
    html = figure(
        name,
        f"{label}, {unit}",
        x,
        scale(counts, least=1),
        [
            Layer(kind="bars", colour=colour, name=what, x=edges, y=counts),
            Layer(kind="line", colour="e", name="share", x=fine, y=fine_shares),
        ],
        note=note,
        right=Scale(low=0, high=104),
        over=f"{label} in {unit}; right: share at or below",
        zooms=False,
    )
    tips = {
        "kind": "bins",
        "unit": unit,
        "edges": _rounded(edges, 4),
        "series": [[what, _rounded(counts, 0)], ["% at or below", _rounded(shares[1:], 2)]],
    }
    found.add(name, html, tips)


def _cpu(sample: Sample) -> float:
    return 100 * sample.cpu_s / max(sample.span_s, 1e-9)


def _lag_ms(sample: Sample) -> float:
    return sample.lag_s * 1e3


def _changing(scrapes: Sequence[Scrape]) -> list[str]:
    """Names of counters that do change, queues and caches first."""
    names = dict.fromkeys(name for scrape in scrapes for name in scrape.values)
    known = {name: {scrape.values.get(name) for scrape in scrapes} - {None} for name in names}
    changing = [name for name in names if len(known[name]) > 1 and not name.endswith(("_bucket", "_created"))]
    first = ("running", "waiting", "queue", "cache", "tokens")
    return sorted(changing, key=lambda name: next((n for n, word in enumerate(first) if word in name), len(first)))


def _counter(view: View, name: str, span: Window) -> tuple[Floats, Floats]:
    pairs = [
        (at_s, scrape.values[name])
        for scrape in view.scrapes
        if name in scrape.values and span.from_s <= (at_s := seconds(view.start_ns, scrape.at_ns)) <= span.to_s
    ]
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    points = points[:: max(1, len(points) // 500)]
    return points[:, 0], points[:, 1]


def _line_tips(instants: Floats, series: Sequence[tuple[str, Floats]]) -> dict[str, Any]:
    named = [[name, _rounded(values, 3)] for name, values in series]
    return {"kind": "line", "x": _rounded(instants, 3), "series": named}


def _edges(span: Window, most: int) -> Floats:
    """Bins of a round width, at most so many and one, from the start of a span to its end or just beyond it."""
    width_s = nice((span.to_s - span.from_s) / most)
    number = math.ceil((span.to_s - span.from_s) / width_s)
    edges: Floats = span.from_s + width_s * np.arange(number + 1, dtype=np.float64)
    return edges


def _rounded(values: Floats, digits: int) -> list[float]:
    rounded: list[float] = values.round(digits).tolist()
    return rounded
