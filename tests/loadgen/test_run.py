"""Whole runs in a process of their own, ended in every way that a run can end."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llmbench import protocols
from llmbench.loadgen.client import Timeouts, locate
from llmbench.loadgen.journal import complete, read
from llmbench.loadgen.run import run
from llmbench.types import Request
from llmbench.workload import plan as plans
from tests.loadgen.conftest import STREAM_HEAD, Do, Script, Step, ToyServer, answer

Serve = Callable[[Script], ToyServer]
RUN = """
import sys
from pathlib import Path
from llmbench import protocols
from llmbench.loadgen.client import Timeouts, locate
from llmbench.loadgen.run import run
from llmbench.workload import plan
run(plan.load(Path(sys.argv[1])), locate(sys.argv[2]), protocols.get("contest"), Timeouts(), Path(sys.argv[3]))
"""


def make_plan(offsets: Sequence[float]) -> plans.Plan:
    requests = tuple(
        plans.PlannedRequest(index=i, due_s=due_s, request=Request(prompt=f"p{i}", max_new_tokens=2))
        for i, due_s in enumerate(offsets)
    )
    settings = plans.PlanSettings(dataset="toy", num_samples=1, arrivals="constant", qps=1.0, rate=1.0, seed=0)
    return plans.Plan(settings=settings, requests=requests, sha256=plans.hash_of(requests))


@pytest.mark.parametrize("concurrency", [None, 2])
def test_a_run_answers_every_request_of_its_plan(serve: Serve, tmp_path: Path, concurrency: int | None) -> None:
    server = serve(lambda n, body: answer(["a", "b"]))
    plan = make_plan([i / 500 for i in range(20)])
    seen = []
    outcome = run(
        plan,
        locate(server.url),
        protocols.get("contest"),
        Timeouts(),
        tmp_path / "journal.jsonl",
        concurrency,
        lambda counts: seen.append(counts.answered),
    )
    assert not outcome.interrupted
    assert sorted(record.index for record in outcome.records) == list(range(20))
    assert {record.status for record in outcome.records} == {"answered"}
    found = read(tmp_path / "journal.jsonl")
    assert (found.header, found.records) == (outcome.header, outcome.records)
    assert outcome.header.plan_sha256 == plan.sha256
    assert seen[-1] == 20


class Stalling:
    """Answers the first requests; `reached` is set when one comes that gets no answer."""

    def __init__(self, num_answered: int) -> None:
        self.reached = threading.Event()
        self._num_answered = num_answered

    def __call__(self, n: int, body: bytes) -> list[Step]:
        if n < self._num_answered:
            return answer(["a", "b"])
        self.reached.set()
        return [STREAM_HEAD, Do.STALL]


def start(server: ToyServer, plan: plans.Plan, folder: Path) -> "subprocess.Popen[bytes]":
    plans.save(plan, folder / "plan.jsonl.gz")
    arguments = [str(folder / "plan.jsonl.gz"), server.url, str(folder / "journal.jsonl")]
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], cwd=Path(__file__).parents[2])


def test_a_killed_run_keeps_the_record_of_every_request_that_ended(serve: Serve, tmp_path: Path) -> None:
    script = Stalling(5)
    plan = make_plan([0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 3600.0])
    with start(serve(script), plan, tmp_path) as process:
        assert script.reached.wait(60)
        _until_records(tmp_path / "journal.jsonl", 5)
        process.kill()
    found = read(tmp_path / "journal.jsonl")
    header, records = found.header, found.records
    assert sorted(record.index for record in records) == [0, 1, 2, 3, 4]
    whole = complete(header, records, plan.requests)
    assert [record.status for record in whole] == ["answered"] * 5 + ["unfinished"] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_in_order_with_a_record_for_every_request(
    serve: Serve, tmp_path: Path, number: signal.Signals
) -> None:
    script = Stalling(2)
    with start(serve(script), make_plan([0.0, 0.0, 0.5, 3600.0]), tmp_path) as process:
        assert script.reached.wait(60)
        process.send_signal(number)
        _until_records(tmp_path / "journal.jsonl", 3)  # the one that is not sent is written at once
        process.send_signal(number)
        assert process.wait(60) == 0
    records = read(tmp_path / "journal.jsonl").records
    assert sorted(record.index for record in records) == [0, 1, 2, 3]
    assert sorted(record.status for record in records) == ["answered", "answered", "unfinished", "unfinished"]


def _until_records(path: Path, number: int) -> None:
    """Wait until a journal holds so many records; pytest's time-out ends what never comes."""
    waiting = threading.Event()
    while len(read(path).records) < number:
        waiting.wait(0.01)
