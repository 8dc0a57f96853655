"""`llmbench perf` killed at random instants: what it had measured can be reported, and the rest sent later."""

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from llmbench.loadgen import journal
from llmbench.workload import plan as plans
from tests.loadgen.conftest import STREAM_HEAD, Do, Step, ToyServer, answer

ROOT = Path(__file__).parents[2]
SLOTS = 4
NUM_REQUESTS = 240


class Answering:
    """Answers after 10 ms; `reached` is set at the first request."""

    def __init__(self) -> None:
        self.reached = threading.Event()

    def __call__(self, n: int, body: bytes) -> list[Step]:
        self.reached.set()
        return [0.01, *answer(["a ", "b "])]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": f"do {i}", "input": "", "output": "x"} for i in range(NUM_REQUESTS)]))
    return path


def llmbench(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmbench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def begun(tmp_path: Path, dataset: Path, url: str, *flags: str) -> "subprocess.Popen[bytes]":
    fixed = ["--url", url, "--dataset", str(dataset), "--results", str(tmp_path / "results"), "--max-new-tokens", "2"]
    command = [sys.executable, "-m", "llmbench", "perf", *fixed, *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def folder_of(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "results").iterdir()
    return found


def asked(toy: ToyServer) -> Counter[int]:
    """How often the server has got each request of the plan."""
    found = (re.search(rb"x-request-id: plan-(\d+)", head, re.IGNORECASE) for head in list(toy.heads))
    return Counter(int(match[1]) for match in found if match)


def final(folder: Path, plan: plans.Plan) -> Counter[int]:
    """How many final records each request has in all journals."""
    segments = journal.segments(folder, plan)
    return Counter(r.index for segment in segments for r in segment.records if r.status != "unfinished")


def kills(seed: int, number: int) -> list[tuple[float, int]]:
    """Seconds after the first request, and how many processes measure."""
    rng = random.Random(seed)
    return [(rng.uniform(0.0, 0.5), rng.choice([1, 1, 2])) for _ in range(number)]


@pytest.mark.parametrize(("delay_s", "workers"), kills(seed=11, number=8))
def test_a_killed_run_can_be_reported_and_completed(
    tmp_path: Path, dataset: Path, delay_s: float, workers: int
) -> None:
    kill_and_complete(tmp_path, dataset, delay_s, workers)


@pytest.mark.slow
@pytest.mark.parametrize(("delay_s", "workers"), kills(seed=12, number=50))
def test_a_killed_run_can_be_reported_and_completed_fifty_times(
    tmp_path: Path, dataset: Path, delay_s: float, workers: int
) -> None:
    kill_and_complete(tmp_path, dataset, delay_s, workers)


def kill_and_complete(tmp_path: Path, dataset: Path, delay_s: float, workers: int) -> None:
    script = Answering()
    with closing(ToyServer(script)) as toy:
        load = ["-n", str(NUM_REQUESTS), "--arrivals", "burst", "--concurrency", str(SLOTS), "--no-preflight"]
        with begun(tmp_path, dataset, toy.url, *load, "--workers", str(workers)) as process:
            assert script.reached.wait(60)
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, "it was done before: make the load longer"
        folder = folder_of(tmp_path)
        until_silent(folder)
        plan = plans.load(folder / "plan.jsonl.gz")
        kept, seen = final(folder, plan), asked(toy)
        # of what the server was asked, each slot may hold one without an answer, each process one not yet written
        assert kept.total() >= seen.total() - SLOTS - workers
        assert set(kept.values()) <= {1}
        reported = llmbench("report", folder)
        assert reported.returncode == 3, reported.stderr
        assert json.loads((folder / "summary.json").read_text())["summary"]["num_answered"] == kept.total()
        resumed = llmbench("perf", "--resume", folder)
        assert resumed.returncode in (3, 4), resumed.stderr
    assert final(folder, plan) == Counter(range(NUM_REQUESTS))
    assert {record.status for record in journal.read_run(folder, plan).records} == {"answered"}
    again = {index for index, times in asked(toy).items() if times > 1}
    assert not again & set(kept), "what was answered is not asked again"
    assert set(asked(toy)) == set(range(NUM_REQUESTS))


def until_silent(folder: Path) -> None:
    """Wait until the workers of the killed process have noticed."""
    waiting = threading.Event()
    while journal.going_on(folder):
        waiting.wait(0.01)


def test_a_run_that_was_resumed_is_inconclusive_unless_that_is_allowed(tmp_path: Path, dataset: Path) -> None:
    folder = interrupted(tmp_path, dataset)
    with closing(ToyServer(lambda n, body: answer(["a ", "b "]))) as toy:
        done = llmbench("perf", "--resume", folder, "--url", toy.url, "--allow", "lateness")
    assert len(toy.bodies) == 4
    checks = {check["id"]: check for check in json.loads((folder / "summary.json").read_text())["checks"]}
    assert checks["resumed"]["verdict"] == "inconclusive", done.stderr
    assert checks["resumed"]["value"] == 1
    allowed = llmbench("report", folder, "--allow", "resumed", "--json")
    checks = {check["id"]: check for check in json.loads(allowed.stdout)["checks"]}
    assert checks["resumed"]["allowed"]


def test_a_complete_run_is_not_resumed(tmp_path: Path, dataset: Path) -> None:
    folder = interrupted(tmp_path, dataset)
    with closing(ToyServer(lambda n, body: answer(["a ", "b "]))) as toy:
        llmbench("perf", "--resume", folder, "--url", toy.url)
        done = llmbench("perf", "--resume", folder, "--url", toy.url)
    assert done.returncode == 2
    assert f"nothing is left to send; see `llmbench report {folder}`" in done.stderr


def test_a_run_is_resumed_where_it_was_sent_to_or_not_at_all(tmp_path: Path, dataset: Path) -> None:
    folder = interrupted(tmp_path, dataset)
    done = llmbench("perf", "--resume", folder)
    assert done.returncode == 3
    assert "nobody answers" in done.stderr


def test_a_run_of_another_version_is_not_resumed(tmp_path: Path, dataset: Path) -> None:
    folder = interrupted(tmp_path, dataset)
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(environment | {"llmbench": "0.0.0"}))
    done = llmbench("perf", "--resume", folder)
    assert done.returncode == 2
    assert "was begun by llmbench 0.0.0" in done.stderr


def test_other_settings_are_refused_when_a_run_is_resumed(tmp_path: Path, dataset: Path) -> None:
    folder = interrupted(tmp_path, dataset)
    done = llmbench("perf", "--resume", folder, "--qps", "3", "--timeout", "4")
    assert done.returncode == 2
    assert "leave --qps, --timeout out" in done.stderr


def test_what_is_no_run_is_not_resumed(tmp_path: Path) -> None:
    done = llmbench("perf", "--resume", tmp_path)
    assert done.returncode == 2
    assert "plan.jsonl.gz" in done.stderr


def interrupted(tmp_path: Path, dataset: Path) -> Path:
    """The folder of a run of six requests of which two were answered."""
    reached = threading.Event()

    def stalling(n: int, body: bytes) -> list[Step]:
        if n < 2:
            return answer(["a ", "b "])
        reached.set()
        return [STREAM_HEAD, Do.STALL]

    with closing(ToyServer(stalling)) as toy:
        flags = ["-n", "6", "-X", "20", "--arrivals", "constant", "--concurrency", "1", "--no-preflight"]
        with begun(tmp_path, dataset, toy.url, *flags) as process:
            assert reached.wait(60)
            process.kill()
    return folder_of(tmp_path)
