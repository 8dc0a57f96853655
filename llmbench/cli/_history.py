"""The trend of a baseline: on the screen, as CSV, as a page."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.table import Table
from rich.text import Text

from llmbench.cli import _baseline
from llmbench.metrics.compare.changes import Change, changes
from llmbench.report import files, trend, words
from llmbench.report.terminal import Terminal


def main(folder: Path, delta: float, csv_file: Path | None, html_file: Path | None) -> None:
    """Read, mark, print, write."""
    stored = _baseline.read(folder)
    series = [_series(stored.versions, metric, delta) for metric in stored.newest.metrics]
    for each in series:
        _show(each)
    with files.wanted():
        if csv_file is not None:
            files.write(csv_file, _csv(stored.versions).encode())
        if html_file is not None:
            files.write(html_file, trend.page(folder.resolve().name, series).encode())


def _series(versions: Sequence[_baseline.Version], metric: str, delta: float) -> trend.Series:
    with_it = [version for version in versions if version.metrics.get(metric)]
    runs = [version.metrics[metric] for version in with_it]
    means = [math.exp(fmean(map(math.log, values))) for values in runs]
    return trend.Series(
        metric=metric,
        labels=[version.label for version in with_it],
        created=[version.created for version in with_it],
        runs=runs,
        means=means,
        changes=changes(means, delta),
    )


def _show(series: trend.Series) -> None:
    table = Table(series.metric, "created", "runs", "value", "", "", box=None, pad_edge=False)
    marked = {change.index: change for change in series.changes}
    before: float | None = None
    for i, (label, created, mean) in enumerate(zip(series.labels, series.created, series.means, strict=True)):
        step = "" if before is None else f"{mean / before - 1:+.1%}"
        table.add_row(label, created, str(len(series.runs[i])), words.number(mean), step, _mark(marked.get(i)))
        before = mean
    Terminal().print(table)


def _mark(change: Change | None) -> Text:
    return Text("" if change is None else f"<- changed by {change.change:+.1%} (p {change.p:.3f})", style="bold yellow")


def _csv(versions: Sequence[_baseline.Version]) -> str:
    """A line for each run of each version and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("version", "label", "created", "machine", "plan_sha256", "metric", "run", "value"))
    for version in versions:
        for metric, values in version.metrics.items():
            for number, value in enumerate(values, 1):
                about = (version.number, version.label, version.created, version.machine, version.plan_sha256)
                writer.writerow((*about, metric, number, repr(value)))
    return out.getvalue()
