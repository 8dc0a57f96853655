"""Files for spreadsheets, data frames and pull requests."""

import builtins
from pathlib import Path
from typing import Any

import pytest

from llmbench.errors import InputError
from llmbench.report import markdown, tables
from tests.report.conftest import START_NS, load, records, view

MS = 1_000_000


def test_the_contests_table_has_three_columns_for_each_rate_and_the_means_behind_them(tmp_path: Path) -> None:
    from openpyxl import load_workbook

    first, second = load(5), load(3)
    tables.xlsx(tmp_path / "result.xlsx", [(0.5, first), (6, second)])
    sheet = load_workbook(tmp_path / "result.xlsx")["Serving_e2e"]
    rows = [[cell.value for cell in row] for row in sheet.iter_rows()]
    assert rows[0][:6] == ["X = 0.5", None, None, "X = 6.0", None, None]
    assert rows[1] == ["e2eTime", "genTokenNum", "latency"] * 2 + [None, "x", "latencyAvg"]
    assert {str(merged) for merged in sheet.merged_cells.ranges} == {"A1:C1", "D1:F1"}
    ended_first = min(first, key=lambda record: record.done_ns or 0)
    took_s = ((ended_first.done_ns or 0) - (ended_first.sent_ns or 0)) / 1e9
    assert rows[2][:3] == pytest.approx([took_s, ended_first.num_tokens, took_s / ended_first.num_tokens])
    assert len([row for row in rows[2:] if row[0] is not None]) == 5
    assert len([row for row in rows[2:] if row[3] is not None]) == 3
    latencies = [row[2] for row in rows[2:]]
    assert rows[2][7:] == ["0.5", pytest.approx(sum(latencies) / 5)]
    assert rows[3][7] == "6.0"


def test_requests_without_an_answer_are_not_in_the_contests_table_as_they_were_not_in_its_input(tmp_path: Path) -> None:
    from openpyxl import load_workbook

    tables.xlsx(tmp_path / "result.xlsx", [(1, records())])
    sheet = load_workbook(tmp_path / "result.xlsx").active
    assert [cell.value for cell in sheet["A"]] == ["X = 1.0", "e2eTime", pytest.approx(0.061)]
    tables.xlsx(tmp_path / "none.xlsx", [(1, load(3, lost=1.1))])
    assert load_workbook(tmp_path / "none.xlsx").active["F3"].value is None


def test_parquet_has_what_the_csv_has_and_every_stamp(tmp_path: Path) -> None:
    read_table = pytest.importorskip("pyarrow.parquet", exc_type=ImportError).read_table  # its newest wants numpy 2
    tables.parquet(tmp_path / "records.parquet", records(), start_ns=0)
    rows: list[dict[str, Any]] = read_table(tmp_path / "records.parquet").to_pylist()
    assert [row["index"] for row in rows] == [0, 1]
    assert rows[0]["reason"] == "HTTP 503: full, come back"
    assert rows[0]["ttft"] == float("inf")
    assert rows[1]["stamps_ns"] == [1051 * MS, 1061 * MS]
    assert rows[1]["e2el"] == pytest.approx(0.062)


def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("openpyxl", "pyarrow"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs openpyxl: pip install 'llmbench\[report\]'"):
        tables.xlsx(tmp_path / "a.xlsx", [])
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'llmbench\[report\]'"):
        tables.parquet(tmp_path / "a.parquet", [], 0)


def test_a_run_as_markdown_has_its_verdict_as_the_title_and_nothing_in_it_is_markup() -> None:
    evil = "HTTP 500: <b>bold</b> | `code` *x*\nnext"
    text = markdown.page(view(load(100, lost=0.2, reason=evil), start_ns=START_NS))
    assert text.splitlines()[0].startswith("## INVALID ")
    assert "\\<b\\>bold\\</b\\> \\| \\`code\\` \\*x\\* next" in text
    assert "* **failed**: requests without an answer" in text
    assert "| TTFT |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.endswith(" |") for line in rows)


def test_a_run_without_an_answer_has_its_markdown_too() -> None:
    assert "No request was answered." in markdown.page(view(load(5, lost=1.1), start_ns=START_NS))
