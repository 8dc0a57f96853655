import csv
import json
import math
from pathlib import Path

import pytest

from llmbench.errors import InputError
from llmbench.report import files
from tests.report.conftest import records, view


def test_a_runs_folder_is_new_even_when_two_start_in_one_second(tmp_path: Path) -> None:
    folders = {files.new_folder(tmp_path / "results", "a") for _ in range(5)}
    assert len(folders) == 5
    assert all(folder.is_dir() for folder in folders)


def test_a_place_that_cannot_hold_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--results"):
        files.new_folder(tmp_path / "file", "a")


def test_the_summary_file_has_the_verdict_first_and_null_for_what_is_infinite(tmp_path: Path) -> None:
    text = files.as_json(files.summary(view(records()))).decode()
    value = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert next(iter(value)) == "verdict"
    assert value["verdict"] == "INVALID"
    assert value["summary"]["requests"]["e2el"]["max"] is None
    assert value["summary"]["requests"]["e2el"]["num_infinite"] == 1


def test_every_number_in_the_summary_file_says_what_it_is_and_of_how_many_it_is() -> None:
    found = json.loads(files.as_json(files.summary(view(records()))))["summary"]
    for numbers in (found["requests"], found["run"]):
        assert all(entry["definition"] and entry["unit"] and entry["n"] >= 0 for entry in numbers.values())
    assert found["requests"]["ttft"]["n"] == 2
    assert found["run"]["exec_time"]["value"] == pytest.approx(1.062)


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
