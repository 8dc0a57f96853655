"""`llmbench report` as a user runs it, on runs that are made up: a plan and its journal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmbench.loadgen.journal import Header, Journal
from llmbench.types import Request
from llmbench.workload import plan as plans
from tests.report.conftest import START_NS, load

ROOT = Path(__file__).parents[2]
FILES = {
    "plan.jsonl.gz",
    "journal.jsonl",
    "records.csv",
    "summary.json",
    "report.txt",
    "report.md",
    "report.html",
    "result_5.0_x.json",
    "testLog",
}


def report(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmbench", "report", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of 200 requests, killed before the last five had ended, its last line torn."""
    records = load(200)
    requests = tuple(
        plans.PlannedRequest(
            index=record.index,
            due_s=(record.due_ns - START_NS) / 1e9,
            request=Request(prompt=f"prompt {record.index} <b>", request_id=str(record.index)),
            num_prompt_tokens=30,
            expected_tokens=record.num_tokens,
        )
        for record in records
    )
    settings = plans.PlanSettings(dataset="made-up", num_samples=200, arrivals="poisson", qps=5.0, rate=5.0, seed=0)
    plan = plans.Plan(settings=settings, requests=requests, sha256=plans.hash_of(requests))
    folder = tmp_path / "run"
    folder.mkdir()
    plans.save(plan, folder / "plan.jsonl.gz")
    header = Header(
        plan_sha256=plan.sha256,
        num_requests=200,
        url="http://127.0.0.1:1",
        dialect="contest",
        start_ns=START_NS,
        start_wall_s=1_700_000_000.0,
    )
    with Journal(folder / "journal.jsonl", header) as journal:
        for record in records[:195]:
            journal.append(record)
    with (folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind":"request","ind')
    return folder


def test_all_files_of_a_killed_run_are_made_again_from_its_plan_and_journal(run: Path) -> None:
    done = report(run)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("INVALID  5 unfinished of 200 requests")
    assert len(done.stdout.splitlines()) <= 25
    assert {path.name for path in run.iterdir()} == FILES
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    report(run)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_window_has_a_folder_of_its_own_and_changes_nothing_in_the_runs(run: Path) -> None:
    report(run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    done = report(run, "--from", "10", "--to", "20")
    assert done.returncode == 3  # the verdict is that of the run
    assert "requests due from 10 s to 20 s; verdict and checks are of all" in done.stdout
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    summary = json.loads((run / "window-10-20" / "summary.json").read_text())
    assert summary["window"] == {"from_s": 10.0, "to_s": 20.0}
    assert summary["summary"]["num_planned"] == summary["summary"]["requests"]["ttft"]["n"] < 100
    assert len((run / "window-10-20" / "records.csv").read_text().splitlines()) == summary["summary"]["num_planned"] + 1
    assert len(json.loads((run / "window-10-20" / "result_5.0_x.json").read_text())) < 100


def test_a_window_may_be_open_at_one_end_and_must_hold_something(run: Path) -> None:
    assert "due from 0 s to 20 s" in report(run, "--to", "20").stdout
    done = report(run, "--from", "1e6")
    assert done.returncode == 2
    assert "the run is from 0 s to " in done.stderr


def test_the_steady_part_is_found_and_shown_beside_the_whole(run: Path) -> None:
    done = report(run, "--steady")
    assert "steady part, the " in done.stdout
    assert sum(line.startswith("E2EL") for line in done.stdout.splitlines()) == 2
    assert json.loads((run / "summary.json").read_text())["steady"]["window"]["from_s"] >= 0
    assert report(run, "--steady", "--from", "3").returncode == 2


@pytest.mark.parametrize("tool", ["vllm", "inference-perf"])
def test_what_another_tool_would_have_printed_is_printed_and_nothing_is_written(run: Path, tool: str) -> None:
    done = report(run, "--definition", tool)
    assert "in the definitions of " in done.stdout
    assert {path.name for path in run.iterdir()} == {"plan.jsonl.gz", "journal.jsonl"}
    figures = json.loads(report(run, "--definition", tool, "--json").stdout)["figures"]
    assert any(figure["unit"] in ("ms", "s") for figure in figures)


def test_every_format_can_be_written_somewhere_else(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", exc_type=ImportError)
    done = report(run, "--format", "all", "-o", tmp_path / "out", "--quiet")
    assert done.stdout == "INVALID\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "summary.json",
        "records.csv",
        "report.txt",
        "report.md",
        "report.html",
        "result.xlsx",
        "records.parquet",
        "result_5.0_x.json",
    }
    assert {path.name for path in run.iterdir()} == {"plan.jsonl.gz", "journal.jsonl"}
    one = report(run, "--format", "md", "-o", tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["report.md"]
    assert "report.md" in one.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--format", "pdf"], "unknown format 'pdf'"), (["--definition", "vlm"], "Did you mean 'vllm'")],
)
def test_a_wrong_word_is_an_error_that_names_the_right_ones(run: Path, flags: list[str], message: str) -> None:
    done = report(run, *flags)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_file_of_another_tool_is_shown_and_not_judged(tmp_path: Path) -> None:
    rows = [{"input": "<b>", "resp_text": "b", "res_time": 2.0 + n, "first_token_time": 0.5} for n in range(9)]
    path = tmp_path / "result_0.5_x.json"
    path.write_text(json.dumps(rows))
    done = report(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("not judged: ")
    assert "9 answers; from being sent, half began within 500 ms" in done.stdout
    assert path.read_text() == json.dumps(rows)
    assert report(path, "-o", tmp_path / "out").returncode == 0
    assert {found.name for found in (tmp_path / "out").iterdir()} == {"summary.json", "report.md", "report.html"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["verdict"] is None
    assert summary["not_judged"]
    assert report(path, "--from", "1").returncode == 2
    assert "needs the instants" in report(path, "--definition", "vllm").stderr


def test_the_summary_goes_to_standard_output_alone(run: Path) -> None:
    assert json.loads(report(run, "--json").stdout)["verdict"] == "INVALID"
    assert json.loads(report(run, "--json", "--from", "3").stdout)["window"]["from_s"] == 3
