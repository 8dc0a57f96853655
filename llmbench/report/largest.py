"""What a search for the largest batch shows: a table, and the two files that MindIE's `performance_maxbs` has."""

import csv
import io
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmbench.metrics.sweep import Largest, Measured, figures
from llmbench.report import words
from llmbench.report.sweep import COLUMNS, cells

ROUNDS, FINAL = "max_batch_round_result.csv", "max_batch_final_result.csv"


def rounds_csv(found: Sequence[Measured], limit_s: float) -> str:
    """A line for each batch that was tried: the eight columns of a sweep, its mean decode step, and what it means."""
    rows = []
    for measured in found:
        known = figures(measured)
        step_s = None if known is None else known.step_s
        within = step_s is not None and step_s <= limit_s
        rows.append([*cells(measured), _ms(step_s), "yes" if within else "no", measured.reason])
    return _csv([*COLUMNS, "Decode step(ms)", "Within", "Reason"], rows)


def final_csv(found: Sequence[Largest]) -> str:
    """A line for each pair of lengths: the largest batch within the limit, and the next one that was tried."""
    head = (
        "Input_seq_len",
        "Output_seq_len",
        "Limit(ms)",
        "Max batch",
        "Decode step(ms)",
        "Next batch",
        "Its step(ms)",
    )
    return _csv(head, [_cells(one) for one in found])


def show(console: Console, found: Sequence[Largest]) -> None:
    """A line for each pair of lengths, then the values around the limit."""
    table = Table(
        "in", "out", "limit ms", "largest batch", "step ms", "next tried", "step ms", box=None, pad_edge=False
    )
    for one in found:
        table.add_row(*(cell or words.DASH for cell in _cells(one)))
    console.print(table)
    for one in found:
        tried = ", ".join(f"{probe.batch}: {_ms(probe.step_s) or probe.reason}" for probe in one.probes)
        console.print(Text(f"{one.input_len} in, {one.output_len} out, ms by batch: {tried}"), soft_wrap=True)
        if not one.monotone:
            text = "  a larger batch had shorter steps than a smaller one: repeat it on a quiet machine, or --repeats"
            console.print(Text(text, style="yellow"), soft_wrap=True)


def _cells(one: Largest) -> tuple[str, ...]:
    return (
        str(one.input_len),
        str(one.output_len),
        f"{1e3 * one.limit_s:g}",
        _number(one.batch),
        _ms(one.step_s(one.batch)),
        _number(one.next),
        _ms(one.step_s(one.next)),
    )


def _number(batch: int | None) -> str:
    return "" if batch is None else str(batch)


def _ms(value_s: float | None) -> str:
    return "" if value_s is None else f"{1e3 * value_s:.2f}"


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerows([head, *rows])
    return lines.getvalue()
