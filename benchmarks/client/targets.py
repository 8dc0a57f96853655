"""What llmbench is held to: in itself, beside the lower bound, beside the best peer."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.client.contenders import Load
from benchmarks.client.runs import BEARABLE_S, TTFT_S, Found

Values = Mapping[str, float | None]
"""A figure of each client."""
_OWN = ("llmbench", "raw")


class Target(NamedTuple):
    """A figure and how large it may be: in its unit, as a share of the best peer's, and of the lower bound's.

    `least` says that it is not to be smaller.
    """

    label: str
    limit: float
    of_peer: float | None
    of_raw: float | None
    unit: str
    scale: float = 1.0
    least: bool = False


class Figure(NamedTuple):
    """A target that is taken from the runs at one load."""

    load: str
    of: Callable[[Found], float | None]
    target: Target


FIGURES = (
    Figure("200/s", lambda f: f.ttft_mean, Target("TTFT mean", 0.25e-3, 0.20, 2.5, "ms", 1e3)),
    Figure("200/s", lambda f: f.ttft_p99, Target("TTFT p99", 1.5e-3, 0.33, 1.6, "ms", 1e3)),
    Figure("200/s", lambda f: f.icl_p99, Target("ICL p99", 0.5e-3, 0.33, 3.0, "ms", 1e3)),
    Figure("200/s", lambda f: f.cpu_s_per_1000, Target("CPU-s per 1,000 requests", 1.2, 0.45, 1.7, "s")),
    Figure("200/s", lambda f: f.offered, Target("offered rate, error", 0.002, 1.0, 1.0, "%", 100)),
    Figure("200/s", lambda f: f.late_p99, Target("send lag p99", 1.2e-3, None, None, "ms", 1e3)),
    Figure("600/s", lambda f: f.ttft_p99, Target("TTFT p99", BEARABLE_S, None, None, "ms", 1e3)),
    Figure("32 streams", lambda f: f.cpu_s_per_1000, Target("CPU-s per 1,000 requests", 0.36, 0.80, 1.3, "s")),
    Figure("32 streams", lambda f: f.rss_bytes, Target("peak RSS", 115e6, 0.25, 1.3, "MB", 1e-6)),
    Figure("50/s", lambda f: f.first_request_s, Target("launch to first request", 0.5, 0.10, 4.0, "s")),
)
HIGHEST = Target("highest load with TTFT p99 within 5 ms", 600, 3.0, 0.5, "/s", least=True)
LAG = Target("send lag p99, sender alone, 1,000/s", 0.3e-3, None, 1.5, "ms", 1e3)
HELP = Target("`--help`", 0.13, 0.25, 2.0, "s")
DISPERSION = (0.67, 1.39)
HEAD = (
    "| figure | llmbench | target | met | lower bound | of it | target | met | best peer | of it | target | met |\n"
    "|---|---:|---:|---|---:|---:|---:|---|---:|---:|---:|---|"
)


def medians(figure: Figure, runs: Mapping[tuple[str, str], Sequence[Found]], names: Sequence[str]) -> Values:
    """Of each client the median over its runs."""
    found: dict[str, float | None] = {}
    for name in names:
        values = [figure.of(run) for run in runs.get((name, figure.load), [])]
        known = [value for value in values if value is not None]
        found[name] = statistics.median(known) if known else None
    return found


def line(target: Target, where: str, values: Values) -> str:
    """A target's line of the table."""
    peers = [abs(value) for name, value in values.items() if name not in _OWN and value is not None]
    best = (max if target.least else min)(peers, default=None)
    mine, raw = values.get("llmbench"), values.get("raw")
    cells = [f"{target.label}{', ' if where else ''}{where}", _shown(mine, target), _wanted(target.limit, target)]
    cells.append(_met(mine, target.limit, target.least))
    for other, share in ((raw, target.of_raw), (best, target.of_peer)):
        ratio = None if mine is None or not other else mine / abs(other)
        sign = "≥" if target.least else "≤"
        cells += [_shown(other, target), "-" if ratio is None else f"{ratio:.2f}"]
        cells += ["-", "-"] if share is None else [f"{sign} {share:g}", _met(ratio, share, target.least)]
    return f"| {' | '.join(cells)} |"


def dispersion_lines(values: Values) -> list[str]:
    """Each client's index of dispersion, and whether it is that of a Poisson process."""
    low, high = DISPERSION
    lines = ["| arrivals of | index of dispersion | target | met |", "|---|---:|---:|---|"]
    for name, value in values.items():
        met = "-" if value is None else "yes" if low <= value <= high else "no"
        lines.append(f"| {name} | {'-' if value is None else f'{value:.2f}'} | {low} to {high} | {met} |")
    return lines


def detection_lines(log: Sequence[tuple[str, Load, Found]], faults: tuple[int, int] | None) -> list[str]:
    """Whether wrong runs were called so: those that were planted, and those that were measured here."""
    mine = [(load, found) for name, load, found in log if name == "llmbench" and load.ttft_s and found.ttft_p99]
    wrong = [found for _, found in mine if (found.ttft_p99 or 0.0) > max(2e-3, 0.05 * TTFT_S)]
    calm = [found for load, found in mine if load.name == "50/s"]
    rows = [
        ("runs here with TTFT p99 wrong by 2.5 ms or more: invalid", sum(one.status == 3 for one in wrong), len(wrong)),
        ("runs here at 50/s: valid", sum(one.status == 0 for one in calm), len(calm)),
    ]
    if faults is not None:
        rows.insert(0, ("planted faults (selftest): seen, and nothing else", *faults))
    lines = ["| detection | so | of | met |", "|---|---:|---:|---|"]
    return lines + [f"| {label} | {so} | {of} | {'yes' if so == of else 'no'} |" for label, so, of in rows if of]


def _shown(value: float | None, target: Target) -> str:
    return "-" if value is None else f"{value * target.scale:.3g}"


def _wanted(limit: float, target: Target) -> str:
    return f"{'≥' if target.least else '≤'} {limit * target.scale:g} {target.unit}"


def _met(value: float | None, limit: float, least: bool) -> str:
    if value is None or math.isnan(value):
        return "-"
    return "yes" if (value >= limit if least else value <= limit) else "no"
