"""`llmbench perf` as a user runs it, against a server of scripts on a real socket."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from llmbench.tokenizer import Tokenizer, embedded_path
from tests.loadgen.conftest import STREAM_HEAD, Do, Step, ToyServer, answer

ROOT = Path(__file__).parents[2]
OUTPUTS = ["one two three four", "yes", "", "a b c d e f g h"]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = [{"instruction": f"do {i}", "input": "x" * (i % 2), "output": text} for i, text in enumerate(OUTPUTS)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def script(n: int, body: bytes) -> list[Step]:
    """As many tokens as are asked for; 3 when the length is left to the server."""
    return answer(["t "] * json.loads(body)["parameters"].get("max_new_tokens", 3))


def command(tmp_path: Path, dataset: Path, url: str, *flags: str) -> list[str]:
    fixed = ["--url", url, "--dataset", str(dataset), "--results", str(tmp_path / "results"), "--name", "test"]
    fixed.append("--no-preflight")  # so that the server sees the plan alone
    return [sys.executable, "-m", "llmbench", "perf", *fixed, *flags]


def perf(tmp_path: Path, dataset: Path, url: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(tmp_path, dataset, url, *flags), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def folder(tmp_path: Path) -> Path:
    """The newest folder of results."""
    return max((tmp_path / "results").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def test_a_run_writes_its_folder_and_the_contests_files(tmp_path: Path, dataset: Path) -> None:
    with closing(ToyServer(script)) as toy:
        done = perf(tmp_path, dataset, toy.url, "-X", "50", "-T", "0.2", "-O", str(tmp_path / "out"))
    assert done.stdout.split()[0] in ("VALID", "INVALID"), done.stderr  # our own lateness is the machine's affair
    assert done.returncode == (0 if done.stdout.startswith("VALID") else 3)
    assert "All Tasks Done; Exec Time is " in done.stdout.splitlines()[-1]
    found = {path.name for path in folder(tmp_path).iterdir()}
    assert found == {
        "plan.jsonl.gz",
        "config.json",
        "environment.json",
        "journal.jsonl",
        "records.csv",
        "summary.json",
        "report.txt",
        "report.md",
        "report.html",
        "result_50.0_x.json",
        "testLog",
    }
    rows = json.loads((tmp_path / "out" / "result_50.0_x.json").read_text())
    assert sorted(row["input"] for row in rows) == sorted(["do 0", "do 1:x", "do 2", "do 3:x"] * 2 + ["do 0", "do 1:x"])
    summary = json.loads((folder(tmp_path) / "summary.json").read_text())
    tokenizer = Tokenizer.from_file(embedded_path())
    lengths = [len(tokenizer.encode(text, bos=False)) or 3 for text in OUTPUTS]
    assert summary["summary"]["num_output_tokens"] == 2 * sum(lengths) + sum(lengths[:2])
    assert summary["summary"]["num_answered"] == 10
    assert str(dataset) in done.stderr


def test_the_plan_of_a_run_can_be_repeated(tmp_path: Path, dataset: Path) -> None:
    with closing(ToyServer(script)) as toy:
        first = perf(tmp_path, dataset, toy.url, "-X", "100", "-n", "5", "--arrivals", "poisson", "--seed", "9")
        saved = folder(tmp_path) / "plan.jsonl.gz"
        again = perf(tmp_path, dataset, toy.url, "--plan", str(saved))
    assert toy.bodies[:5] == toy.bodies[5:]
    hashes = [line.rpartition(" ")[2] for out in (first, again) for line in out.stderr.splitlines() if "sha256" in line]
    assert len(hashes) == 2
    assert hashes[0] == hashes[1]


def test_failed_requests_are_counted_with_their_reasons_and_the_run_is_not_valid(tmp_path: Path, dataset: Path) -> None:
    full = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nfull"
    with closing(ToyServer(lambda n, body: [full] if n in (1, 3) else script(n, body))) as toy:
        done = perf(tmp_path, dataset, toy.url, "-X", "100", "-n", "6")
    assert done.returncode == 3
    assert done.stdout.splitlines()[0].startswith("INVALID  2 failed of 6 requests")
    assert "2 x HTTP 503: full" in done.stdout
    assert len(json.loads((folder(tmp_path) / "result_100.0_x.json").read_text())) == 4


def test_the_summary_can_be_had_as_json(tmp_path: Path, dataset: Path) -> None:
    with closing(ToyServer(script)) as toy:
        done = perf(tmp_path, dataset, toy.url, "-n", "3", "--arrivals", "burst", "--concurrency", "1", "--json")
    assert json.loads(done.stdout)["summary"]["num_answered"] == 3
    assert toy.most_at_once == 1


def test_several_processes_send_one_plan(tmp_path: Path, dataset: Path) -> None:
    with closing(ToyServer(script)) as toy:
        done = perf(tmp_path, dataset, toy.url, "-X", "50", "-n", "9", "--workers", "2", "--json")
    assert json.loads(done.stdout)["summary"]["num_answered"] == 9, done.stderr
    assert len(toy.bodies) == 9
    assert len(list(folder(tmp_path).glob("journal*.jsonl"))) == 3


def test_ctrl_c_keeps_what_there_is(tmp_path: Path, dataset: Path) -> None:
    reached = threading.Event()

    def stalling(n: int, body: bytes) -> list[Step]:
        if n < 2:
            return script(n, body)
        reached.set()
        return [STREAM_HEAD, Do.STALL]

    with closing(ToyServer(stalling)) as toy:
        arguments = command(tmp_path, dataset, toy.url, "-X", "1", "-T", "3600", "--arrivals", "constant")
        with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert reached.wait(60)
            process.send_signal(signal.SIGINT)
            output = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert output.startswith("INVALID")
    summary = json.loads((folder(tmp_path) / "summary.json").read_text())["summary"]
    assert (summary["num_planned"], summary["num_answered"], summary["num_unfinished"]) == (3600, 2, 3598)
    assert len(json.loads((folder(tmp_path) / "result_1.0_x.json").read_text())) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-X", "0.01", "-T", "5"], "--test-time 100 or more"),
        (["-X", "-1"], "above 0"),
        (["--workers", "0"], "a number above 0, or auto"),
        (["--arrivals", "poison"], "Did you mean 'poisson'"),
        (["--dialect", "contests"], "Did you mean 'contest'"),
        (["--url", "ftp://localhost:1"], "expected http://"),
        (["--dataset", "nothing.json"], "nothing.json"),
        (["--tokenizer", "nothing.model"], "nothing.model"),
        (["--plan", "nothing.gz"], "nothing.gz"),
        (["--out-dir", os.devnull], "--out-dir"),
        (["--allow", "latness"], "--allow latness: there is no such check; the checks are answered, lengths"),
    ],
)
def test_wrong_input_ends_with_status_2_and_one_line_before_anything_is_sent(
    tmp_path: Path, dataset: Path, flags: list[str], message: str
) -> None:
    done = perf(tmp_path, dataset, "http://127.0.0.1:9", *flags)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_a_server_that_is_named_and_not_there_is_not_replaced_by_a_launched_one(tmp_path: Path, dataset: Path) -> None:
    with closing(ToyServer(script)) as toy:
        pass
    done = perf(tmp_path, dataset, toy.url, "-n", "1")
    assert done.returncode == 3
    assert "nobody answers" in done.stderr


def test_without_a_server_the_bundled_stack_is_launched_and_stopped_again(tmp_path: Path, dataset: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    flags = ["--dataset", str(dataset), "--results", str(tmp_path / "results"), "--port", str(port), "-X", "20"]
    arguments = [sys.executable, "-m", "llmbench", "perf", *flags, "-n", "3", "--engine", "stub"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert f"nobody listens on port {port}: launching the bundled stack" in done.stderr
    assert json.loads((folder(tmp_path) / "summary.json").read_text())["summary"]["num_answered"] == 3, done.stderr
    pid = next(line.rpartition("pid ")[2].rstrip(")") for line in done.stderr.splitlines() if "(pid " in line)
    assert not psutil.pid_exists(int(pid))
