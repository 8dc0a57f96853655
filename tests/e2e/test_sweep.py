"""`llmbench sweep` as a user runs it: an engine here and a server, killed and gone on with, searched, reported."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmbench.cli import app
from llmbench.errors import InputError
from tests.conftest import ROOT, Serving

Done = subprocess.CompletedProcess[str]
STUB = ("--model", "random:tiny", "--engine", "stub", "--step-time", 0.01)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "llmbench", "sweep", *map(str, words)]


def run(*words: object) -> Done:
    return subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)


def folder(done: Done) -> Path:
    """What the last line of a sweep names."""
    assert "files: " in done.stdout, done.stdout + done.stderr
    return Path(done.stdout.rpartition("files: ")[2].strip())


def cases(path: Path) -> list[tuple[tuple[int, int, int], str]]:
    """Each line of the journal: its case and what came of it."""
    lines = [json.loads(line) for line in (path / "cases.jsonl").read_text().splitlines()[1:]]
    return [(tuple(line["case"].values()), line["outcome"]) for line in lines]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A small grid on NumPy, with lengths that its model does not have."""
    lengths = ("--batch", "1,2", "--input", "2^3..2^5,2040", "--output", "2,9")
    results = tmp_path_factory.mktemp("results")
    return run(*lengths, "--model", "random:tiny", "--threads", 1, "--model-name", "TINY", "--results", results)


def test_an_engine_is_swept_in_the_order_of_the_atb_speed_test(swept: Done) -> None:
    assert swept.returncode == 0, swept.stdout + swept.stderr
    path = folder(swept)
    expected = [(b, i, o) for b in (1, 2) for i in (8, 16, 2040) for o in (2, 9)]
    assert [case for case, _ in cases(path)] == expected
    assert {case[1:] for case, outcome in cases(path) if outcome == "does not fit"} == {(2040, 9)}
    assert {entry.name for entry in path.iterdir()} == {
        "cases.jsonl", "environment.json", "multibatch_performance_TINY_device0.csv", "sweep.json", "sweep.md",
        "sweep.html",
    }  # fmt: skip
    with (path / "multibatch_performance_TINY_device0.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["Batch"]), int(row["Input_seq_len"]), int(row["Output_seq_len"])) for row in rows] == [
        case for case in expected if case[1:] != (2040, 9)
    ]
    assert "batch 2, 2040 in, 9 out: does not fit: 2049 tokens in a sequence, 2048 are the most here" in swept.stdout
    assert "1/12 batch 1, 8 in, 2 out: first token " in swept.stderr
    assert " left\n" in swept.stderr


def test_json_has_the_raw_steps_of_both_passes(swept: Done) -> None:
    told = json.loads((folder(swept) / "sweep.json").read_text())
    found: dict[str, Any] = told["cases"][1]
    (one,) = found["measured"]["rounds"]
    assert (len(one["first"]["steps_s"]), len(one["whole"]["steps_s"])) == (0, 8)
    assert found["figures"]["step_s"] == pytest.approx(sum(one["whole"]["steps_s"]) / 8)
    assert found["figures"]["first_token_s"] == one["first"]["total_s"]
    assert "numpy_llama float32 in this process" in told["what"]


def test_a_report_writes_the_same_files_again(swept: Done) -> None:
    path = folder(swept)
    before = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    for name in ("sweep.json", "sweep.md", "sweep.html"):
        (path / name).unlink()
    done = run("report", path)
    assert done.returncode == 0, done.stderr
    assert {entry.name: entry.read_bytes() for entry in path.iterdir()} == before
    assert done.stdout == swept.stdout
    assert run("report", path, "--json").stdout == before["sweep.json"].decode()


def test_a_sweep_that_was_killed_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    lengths = ("--batch", "1,2,3,4,5,6", "--input", 4, "--output", 8)
    process = subprocess.Popen(
        command(*STUB, *lengths, "--results", tmp_path), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    lines = 0
    while lines < 1 + 2:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
        lines = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*/cases.jsonl"))
    process.kill()
    process.wait(30)
    assert process.stderr is not None
    process.stderr.close()
    (path,) = tmp_path.iterdir()
    kept = (path / "cases.jsonl").read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert kept.count(b"\n") < 1 + 6, "it was killed before its end"
    left = 7 - kept.count(b"\n")
    halfway = run("report", path)
    assert f"{left} of 6 cases are still to be measured" in halfway.stdout
    done = run("--resume", path)
    assert done.returncode == 0, done.stderr
    assert (path / "cases.jsonl").read_bytes().startswith(kept)
    assert [case for case, _ in cases(path)] == [(batch, 4, 8) for batch in range(1, 7)]
    assert f"1/{left} batch " in done.stderr
    again = run("--resume", path)
    assert again.returncode == 0, again.stderr
    assert "batch " not in again.stderr.partition("sweep\n")[2], "there is nothing left to do"


def test_the_largest_batch_is_searched_for(tmp_path: Path) -> None:
    flags = ("--max-batch", "--input", 4, "--output", "3", "--range", "1:40", "--repeats", 1, "--results", tmp_path)
    every = run(*STUB, *flags, "--limit-ms", 1000)
    assert every.returncode == 0, every.stderr
    (found,) = json.loads((folder(every) / "max_batch.json").read_text())
    assert (found["batch"], found["next"]) == (40, None)
    none = run(*STUB, *flags, "--limit-ms", 9)
    assert none.returncode == 1, none.stderr
    (found,) = json.loads((folder(none) / "max_batch.json").read_text())
    assert (found["batch"], found["next"]) == (None, 1)
    assert run("report", folder(none)).returncode == 1
    assert (folder(none) / "max_batch_round_result.csv").read_text().splitlines()[1].startswith("1,4,3,")
    path = folder(every)
    lines = (path / "cases.jsonl").read_text().splitlines(keepends=True)
    (path / "cases.jsonl").write_text("".join(lines[:4]))
    broken_off = run("report", path)
    assert (broken_off.returncode, broken_off.stdout) == (2, "")
    assert "go on with --resume" in broken_off.stderr
    assert run("--resume", path).returncode == 0
    assert [case for case, _ in cases(path)] == [tuple(json.loads(line)["case"].values()) for line in lines[1:]], (
        "the search asks for the same batches again"
    )


def test_a_server_is_swept_over_http(server: Serving, tmp_path: Path) -> None:
    flags = ("--url", server.url, "--batch", "1,3", "--input", "16,2045", "--output", 4, "--results", tmp_path)
    done = run(*flags)
    assert done.returncode == 0, done.stdout + done.stderr
    path = folder(done)
    assert cases(path) == [
        ((1, 16, 4), "measured"),
        ((1, 2045, 4), "does not fit"),
        ((3, 16, 4), "measured"),
        ((3, 2045, 4), "does not fit"),
    ]
    third = json.loads((path / "cases.jsonl").read_text().splitlines()[3])
    streams = third["rounds"][0]["whole"]["streams_s"]
    assert [len(stream) for stream in streams] == [4, 4, 4]
    assert f"openai_completions at {server.url}" in done.stdout


def test_an_interrupted_sweep_says_how_to_go_on(server: Serving, tmp_path: Path) -> None:
    flags = ("--url", server.url, "--batch", 2, "--input", 16, "--output", 1500, "--repeats", 50)
    process = subprocess.Popen(
        command(*flags, "--results", tmp_path), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while not process.stderr.readline().startswith("openai_completions at "):  # the first case begins behind this line
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    (path,) = tmp_path.iterdir()
    assert (process.returncode, out) == (130, "")
    assert rest.startswith(f"interrupted; go on with: llmbench sweep --resume {path}\n")


def test_a_server_that_does_not_answer_in_time_is_no_measurement(server: Serving, tmp_path: Path) -> None:
    done = run(
        "--url", server.url, "--batch", 1, "--input", 8, "--output", 2, "--timeout", 0.001, "--results", tmp_path
    )
    assert done.returncode == 3, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--batch", "1;2"), "--batch '1;2': write numbers with commas between them"),
        (("--input", "1,2,3", "--output", "1,2", "--pairs"), "--pairs: 3 input lengths and 2 output lengths"),
        (("--exps", "5:11", "--input", "8"), "--exps gives both lengths: leave --input out"),
        (("--exps", "11"), "--exps 11: write two exponents"),
        (("--max-batch",), "--max-batch: give the longest decode step with --limit-ms"),
        (("--limit-ms", 5), "without --max-batch nothing is searched for: leave --limit-ms out"),
        (("--max-batch", "--limit-ms", 5, "--batch", 4), "leave --batch out"),
        (("--max-batch", "--limit-ms", 5, "--range", "9:3"), "--range 9:3: write the lowest and the highest batch"),
        (("--max-batch", "--limit-ms", 5, "--output", 1), "--output: with --max-batch at least 2"),
        (("--url", "http://x", "--engine", "stub"), "--url measures a server: leave --engine out"),
        (("--dialect", "tgi"), "without --url an engine here is measured: leave --dialect out"),
        (("--engine", "numpy_lama"), "Did you mean 'numpy_llama'"),
        (("--url", "http://127.0.0.1:9", "--dialect", "tgii"), "Did you mean 'tgi'"),
        (("--resume", "/nowhere"), "/nowhere/cases.jsonl: cannot read the sweep"),
        (("--resume", "/nowhere", "--batch", 1), "--resume takes all settings from /nowhere; leave --batch out"),
        (("report", "/nowhere"), "/nowhere/cases.jsonl: cannot read the sweep"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_begun(tmp_path: Path, words: tuple[object, ...], said: str) -> None:
    asked = words if "report" in words or "--resume" in words else (*words, "--results", tmp_path)
    done = CliRunner().invoke(app(), ["sweep", *map(str, asked)])
    assert isinstance(done.exception, InputError), done.output
    assert said in str(done.exception)
    assert not list(tmp_path.iterdir())
