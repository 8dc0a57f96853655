"""What a sweep shows: the CSV of the ATB speed test, tables, and a page with heat maps."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmbench.metrics.sweep import Figures, Measured, figures
from llmbench.report import html, markdown, words

COLUMNS = (
    "Batch",
    "Input_seq_len",
    "Output_seq_len",
    "TotalTime(s)",
    "first_token_time(ms)",
    "avg_token_time(ms)",
    "avg TPS(tokens/s)",
    "E2E TPS(tokens/s)",
)
"""Of the CSV, as the ATB speed test has them."""
_STEP_COLUMNS = ("TTFT ms", "step ms", "p50", "max", "decode tok/s")
_SHORT = ("batch", "in", "out", "total s", "first ms", "avg ms", "avg tok/s", "E2E tok/s", *_STEP_COLUMNS)
_NOTE = (
    "total, first token, average and the two rates of tokens are those of two passes, as the ATB speed test has them; "
    "TTFT, steps and decode tokens/s are of the steps of the second pass"
)


def csv_name(model: str, device: int) -> str:
    """`multibatch_performance_LLAMA2-7B_device0.csv`; what cannot stand in a file's name becomes `_`."""
    plain = "".join(sign if sign.isalnum() or sign in "-._" else "_" for sign in model)
    return f"multibatch_performance_{plain}_device{device}.csv"


def csv_text(found: Sequence[Measured]) -> str:
    """The eight columns, two decimals, a line for each case that was measured."""
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(cells(measured) for measured in found if measured.rounds)
    return lines.getvalue()


def cells(measured: Measured) -> tuple[str, ...]:
    """A case in the eight columns, two decimals; without figures when it was not measured."""
    lengths, known = _lengths(measured), figures(measured)
    return (*lengths, *([""] * 5 if known is None else (f"{value:.2f}" for value in _two_pass(known))))


def show(console: Console, title: str, what: str, found: Sequence[Measured]) -> None:
    """The table of all cases, then the reasons of those that were not measured."""
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(Text(what), soft_wrap=True)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # 13 columns in 80 characters
    for number, name in enumerate(_SHORT):
        table.add_column(name, justify="right", style="cyan" if number >= len(COLUMNS) else None)
    for measured in found:
        table.add_row(*_cells(measured))
    console.print(table)
    for line in _reasons(found):
        console.print(Text(line), soft_wrap=True)


def markdown_text(title: str, what: str, found: Sequence[Measured]) -> str:
    """The same for a pull request."""
    rows = [_cells(measured) for measured in found]
    parts = [f"## {markdown.plain(title)}", markdown.plain(what), markdown.table([*COLUMNS, *_STEP_COLUMNS], rows)]
    if lines := _reasons(found):
        parts.append("\n".join(f"* {markdown.plain(line)}" for line in lines))
    return "\n\n".join([*parts, f"{_NOTE}."]) + "\n"


def page(title: str, what: str, facts: Iterable[tuple[str, str]], found: Sequence[Measured]) -> str:
    """One self-contained page: a heat map of each figure for each output length, and all cases as a table."""
    grids = grids_of(found)
    maps = "".join(
        html.section(view.title, f'<p class="note">{view.note}</p><div class="charts">{_maps(view, grids)}</div>')
        for view in _VIEWS
    )
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts if value)
    reasons = "".join(f'<p class="remedy">{escape(line)}</p>' for line in _reasons(found))
    body = (
        f'<header><h1>{escape(title)}</h1></header><p class="sentence">{escape(what)}</p><dl class="facts">{lines}</dl>'
        f"{maps}" + html.section("All cases", _table(found) + reasons) + f'<p class="note">{escape(_NOTE)}.</p>'
    )
    return html.document(f"sweep · {title}", body)


def _table(found: Sequence[Measured]) -> str:
    return html.table(_SHORT, [_cells(each) for each in found], kind="")


# -- heat maps --------------------------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """The cases of one map: rows are batches, columns are named for what changes along them."""

    title: str
    columns: tuple[str, ...]
    batches: tuple[int, ...]
    cells: dict[tuple[int, str], Measured]


class _View(NamedTuple):
    """One figure as maps: how it is read, and what a dark cell means."""

    title: str
    note: str
    colour: str
    of: Callable[[Figures], float | None]


def _decode_rate(known: Figures) -> float | None:
    return known.decode_tokens_per_s


def _ttft_ms(known: Figures) -> float | None:
    return 1e3 * known.ttft_s


def _step_ms(known: Figures) -> float | None:
    return None if known.step_s is None else 1e3 * known.step_s


_VIEWS = (
    _View("Decode, tokens/s", "Batch over the mean step; the stronger the colour, the more.", "c", _decode_rate),
    _View(
        "Time to first token, ms", "Until every sequence of a batch has it; the stronger, the longer.", "b", _ttft_ms
    ),
    _View("Decode step, ms", "Mean of the steps behind the first token; the stronger, the longer.", "a", _step_ms),
)


def grids_of(found: Sequence[Measured]) -> list[Grid]:
    """A grid for each output length, batch by input length; of pairs one grid with a column for each pair."""
    cases = [measured.case for measured in found]
    batches = tuple(sorted({case.batch for case in cases}))
    pairs = sorted({(case.input_len, case.output_len) for case in cases})
    outputs = sorted({output for _, output in pairs})
    inputs = sorted({length for length, _ in pairs})
    if len(pairs) < len(inputs) * len(outputs):
        names = {pair: f"{pair[0]}/{pair[1]}" for pair in pairs}
        cells = {(m.case.batch, names[m.case.input_len, m.case.output_len]): m for m in found}
        return [Grid("input/output tokens", tuple(names.values()), batches, cells)]
    return [
        Grid(
            f"{output} output tokens, by input tokens",
            tuple(map(str, inputs)),
            batches,
            {(m.case.batch, str(m.case.input_len)): m for m in found if m.case.output_len == output},
        )
        for output in outputs
    ]


def _maps(view: _View, grids: Sequence[Grid]) -> str:
    """The maps of one figure, all on one scale, so that colours can be compared."""
    values = [
        value
        for grid in grids
        for measured in grid.cells.values()
        if (known := figures(measured)) is not None and (value := view.of(known)) is not None and value > 0
    ]
    return "".join(_map(view, grid, min(values, default=1.0), max(values, default=1.0)) for grid in grids)


def _map(view: _View, grid: Grid, low: float, high: float) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in grid.columns)
    rows = "".join(
        f"<tr><th>{batch}</th>{''.join(_heat(view, grid.cells.get((batch, name)), low, high) for name in grid.columns)}"
        "</tr>"
        for batch in grid.batches
    )
    return (
        f'<figure class="heat {view.colour}"><figcaption><b>{escape(grid.title)}</b></figcaption>'
        f'<div class="wide"><table><tr><th>batch</th>{head}</tr>{rows}</table></div></figure>'
    )


def _heat(view: _View, measured: Measured | None, low: float, high: float) -> str:
    """A cell whose colour is the place of its value between the lowest and the highest, by logarithm."""
    known = None if measured is None else figures(measured)
    value = None if known is None else view.of(known)
    if value is None or value <= 0:
        why = "" if measured is None else measured.reason
        return f'<td class="none" title="{escape(why)}">{"" if measured is None else words.DASH}</td>'
    share = math.log(value / low) / math.log(high / low) if high > low else 0.5
    return f'<td style="--heat:{8 + 52 * share:.0f}%">{_short(value)}</td>'


# -- cells ------------------------------------------------------------------------------------------------------------


def _lengths(measured: Measured) -> tuple[str, str, str]:
    case = measured.case
    return str(case.batch), str(case.input_len), str(case.output_len)


def _two_pass(known: Figures) -> tuple[float, ...]:
    """The last five of the eight columns."""
    return (
        known.total_s,
        1e3 * known.first_token_s,
        1e3 * known.avg_token_s,
        known.avg_tokens_per_s,
        known.e2e_tokens_per_s,
    )


def _cells(measured: Measured) -> tuple[str, ...]:
    """A case as text: the eight columns, then the figures of the steps."""
    lengths, known = _lengths(measured), figures(measured)
    if known is None:
        return (*lengths, measured.outcome, *[words.DASH] * (4 + len(_STEP_COLUMNS)))
    steps = (known.ttft_s, known.step_s, known.step_p50_s, known.step_max_s)
    milliseconds = (words.number(None if value is None else 1e3 * value) for value in steps)
    decode = known.decode_tokens_per_s
    two_pass = (words.number(value) for value in _two_pass(known))
    return (*lengths, *two_pass, *milliseconds, words.DASH if decode is None else _short(decode))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else words.number(value)


def _reasons(found: Sequence[Measured]) -> list[str]:
    return [f"{each.case}: {each.outcome}: {each.reason}" for each in found if each.outcome != "measured"]
