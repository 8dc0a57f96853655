import csv
import json
import math
from pathlib import Path

import pytest

from llmbench.errors import InputError
from llmbench.loadgen.record import Record
from llmbench.metrics import checks
from llmbench.metrics.summary import summarise
from llmbench.report import console, files

MS = 1_000_000


def records() -> list[Record]:
    good = Record(
        index=1,
        status="answered",
        due_ns=1000 * MS,
        released_ns=1000 * MS,
        sent_ns=1001 * MS,
        connected_ns=1001 * MS,
        stamps_ns=[1051 * MS, 1061 * MS],
        tokens=[1, 1],
        num_tokens=2,
        done_ns=1062 * MS,
        finish_reason="length",
    )
    bad = Record(index=0, status="failed", reason="HTTP 503: full, come back", due_ns=0, sent_ns=0, done_ns=5 * MS)
    return [good, bad]


def test_a_runs_folder_is_new_even_when_two_start_in_one_second(tmp_path: Path) -> None:
    folders = {files.new_folder(tmp_path / "results", "a") for _ in range(5)}
    assert len(folders) == 5
    assert all(folder.is_dir() for folder in folders)


def test_a_place_that_cannot_hold_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--results"):
        files.new_folder(tmp_path / "file", "a")


def test_the_summary_file_has_the_verdict_first_and_null_for_what_is_infinite(tmp_path: Path) -> None:
    files.summary(tmp_path, summarise(records()), checks.check(checks.Evidence(traces=records())))
    text = (tmp_path / "summary.json").read_text()
    value = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert next(iter(value)) == "verdict"
    assert value["verdict"] == "INVALID"
    assert value["summary"]["requests"]["e2el"]["max"] is None
    assert value["summary"]["requests"]["e2el"]["num_infinite"] == 1


def test_the_records_are_one_line_each_in_the_order_of_the_plan(tmp_path: Path) -> None:
    files.records(tmp_path, records())
    with (tmp_path / "records.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == ["0", "1"]
    assert rows[0]["reason"] == "HTTP 503: full, come back"
    assert float(rows[0]["e2el"]) == math.inf
    assert rows[0]["tpot"] == ""
    assert float(rows[1]["ttft"]) == pytest.approx(0.051)
    assert float(rows[1]["sent_s"]) == pytest.approx(1.001)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    files.write(tmp_path / "a", b"old")
    files.write(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_the_environment_says_what_was_measured_with() -> None:
    found = files.environment()
    assert found["num_cpus"] >= 1
    assert found["packages"]["msgspec"]


def test_the_screen_has_the_verdict_first_and_the_reasons_of_failures() -> None:
    text = console.text(summarise(records()), checks.check(checks.Evidence(traces=records())))
    assert text.splitlines()[0] == "INVALID"
    assert "1 x HTTP 503: full, come back" in text
    assert "FAILED  requests without an answer: 1 (limit 0) -> " in text
    assert "inf" in next(line for line in text.splitlines() if line.startswith("E2EL"))
    assert "1 answered, 1 failed, 0 unfinished of 2" in text


def test_the_screen_of_a_valid_run_says_so_in_milliseconds() -> None:
    good = records()[:1]
    text = console.text(summarise(good), checks.check(checks.Evidence(traces=good)))
    assert text.splitlines()[0] == "VALID"
    assert "51.00" in next(line for line in text.splitlines() if line.startswith("TTFT "))
    assert len(text.splitlines()) < 24
