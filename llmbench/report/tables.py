"""Records for spreadsheets and data frames: the contest's `result.xlsx`, and Parquet."""

import io
from collections.abc import Sequence
from pathlib import Path

from llmbench.clock import seconds
from llmbench.errors import InputError
from llmbench.metrics import Trace, per_request
from llmbench.report.files import write

_SHEET = "Serving_e2e"
_HEAD = ("e2eTime", "genTokenNum", "latency")
_FIRST_ROW = 3


def xlsx(path: Path, runs: Sequence[tuple[float, Sequence[Trace]]]) -> None:
    """`result.xlsx` as the contest's count.py made it, of one run or several with the rates at which they were sent.

    A group of three columns for each: service time in s, tokens, and the one over the other. Behind the last group the
    mean of the latter for each rate. Requests without an answer are not in it, as they were not in count.py's input.
    """
    try:
        from openpyxl import Workbook
    except ImportError as error:
        raise _missing("--format xlsx", "openpyxl", error) from error
    book = Workbook()
    sheet = book.active
    sheet.title = _SHEET
    averages: list[tuple[str, float | None]] = []
    for number, (qps, traces) in enumerate(runs):
        column = 1 + number * len(_HEAD)
        rows = [(took_s, trace.num_tokens, took_s / max(trace.num_tokens, 1)) for trace, took_s in _answers(traces)]
        sheet.cell(1, column, f"X = {float(qps)}")
        sheet.merge_cells(start_row=1, start_column=column, end_row=1, end_column=column + len(_HEAD) - 1)
        for at, row in enumerate([_HEAD, *rows], _FIRST_ROW - 1):
            for offset, value in enumerate(row):
                sheet.cell(at, column + offset, value)
        averages.append((str(float(qps)), sum(row[2] for row in rows) / len(rows) if rows else None))
    behind = 1 + (len(runs) - 1) * len(_HEAD) + 4
    for at, pair in enumerate([("x", "latencyAvg"), *averages], _FIRST_ROW - 1):
        for offset, value in enumerate(pair):
            sheet.cell(at, behind + offset, value)
    bytes_ = io.BytesIO()
    book.save(bytes_)
    write(path, bytes_.getvalue())


def parquet(path: Path, traces: Sequence[Trace], start_ns: int) -> None:
    """`records.parquet`: what `records.csv` has, and all stamps as lists, in ns from the start."""
    try:
        from pyarrow import BufferOutputStream
        from pyarrow import table as arrow
        from pyarrow.parquet import write_table
    except ImportError as error:
        raise _missing("--format parquet", "pyarrow", error) from error
    ordered = sorted(traces, key=lambda trace: trace.index)
    columns: dict[str, list[object]] = {
        "index": [trace.index for trace in ordered],
        "status": [trace.status for trace in ordered],
        "reason": [trace.reason for trace in ordered],
        "finish_reason": [trace.finish_reason for trace in ordered],
        "due_s": [seconds(start_ns, trace.due_ns) for trace in ordered],
        "sent_s": [None if trace.sent_ns is None else seconds(start_ns, trace.sent_ns) for trace in ordered],
        "done_s": [None if trace.done_ns is None else seconds(start_ns, trace.done_ns) for trace in ordered],
        "num_prompt_tokens": [trace.num_prompt_tokens for trace in ordered],
        "num_tokens": [trace.num_tokens for trace in ordered],
        "expected_tokens": [trace.expected_tokens for trace in ordered],
        **{metric.name: [metric.of(trace) for trace in ordered] for metric in per_request.METRICS},
        "stamps_ns": [[stamp - start_ns for stamp in trace.stamps_ns] for trace in ordered],
        "tokens": [list(trace.tokens) for trace in ordered],
    }
    stream = BufferOutputStream()
    write_table(arrow(columns), stream)
    write(path, stream.getvalue().to_pybytes())


def _answers(traces: Sequence[Trace]) -> list[tuple[Trace, float]]:
    """Those that were answered, in the order in which they ended, with their service times."""
    answered = sorted((trace for trace in traces if trace.status == "answered"), key=lambda trace: trace.done_ns or 0)
    return [(trace, took_s) for trace in answered if (took_s := per_request.service_time.of(trace)) is not None]


def _missing(what: str, library: str, error: ImportError) -> InputError:
    return InputError(f"{what} needs {library}: pip install 'llmbench[report]' ({error})")
