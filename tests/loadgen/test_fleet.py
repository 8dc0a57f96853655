"""One plan sent by several processes: the same load as by one, and nothing that happens to one harms the others."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import psutil
import pytest

from llmbench.errors import InvalidMeasurement
from llmbench.loadgen import fleet, journal
from llmbench.loadgen.client import Target, Timeouts, locate
from llmbench.loadgen.fleet import Speech
from llmbench.loadgen.run import Part
from llmbench.metrics import arrivals as tests
from llmbench.types import Request
from llmbench.workload import plan as plans
from llmbench.workload.arrivals import poisson
from tests.loadgen.conftest import STREAM_HEAD, Do, Script, Step, ToyServer, answer

Serve = Callable[[Script], ToyServer]
CONTEST = Speech(name="contest")
ROOT = Path(__file__).parents[2]
SEND = """
import sys
from pathlib import Path
from llmbench.loadgen import fleet
from llmbench.loadgen.client import Timeouts, locate
from llmbench.workload import plan
folder = Path(sys.argv[1])
speech = fleet.Speech(name="contest")
sys.exit(fleet.send(plan.load(folder / "plan.jsonl.gz"), locate(sys.argv[2]), speech, Timeouts(), folder, 2))
"""


def make_plan(num_requests: int, rate: float) -> plans.Plan:
    settings = plans.PlanSettings(dataset="toy", num_samples=1, arrivals="poisson", qps=rate, rate=rate, seed=3)
    samples = [plans.Turn(prompt=f"prompt {i}", output_tokens=2) for i in range(num_requests)]
    return plans.make_plan(samples, poisson.Arrival(qps=rate), num_requests, settings, tokenizer=None)


def plan_of(offsets: list[float]) -> plans.Plan:
    requests = tuple(
        plans.PlannedRequest(index=i, due_s=due_s, request=Request(prompt=f"p{i}", max_new_tokens=2))
        for i, due_s in enumerate(offsets)
    )
    settings = plans.PlanSettings(dataset="toy", num_samples=1, arrivals="constant", qps=1.0, rate=1.0, seed=0)
    return plans.Plan(settings=settings, requests=requests, sha256=plans.hash_of(requests))


def sent(server: ToyServer, plan: plans.Plan, folder: Path, workers: int, concurrency: int | None = None) -> None:
    folder.mkdir(exist_ok=True)
    assert not fleet.send(plan, locate(server.url), CONTEST, Timeouts(), folder, workers, concurrency)


def due_of(folder: Path, plan: plans.Plan) -> dict[int, int]:
    """Due instants after second 0, by index."""
    trail = journal.read_run(folder, plan)
    assert {record.status for record in trail.records} == {"answered"}
    return {record.index: record.due_ns - trail.header.start_ns for record in trail.records}


def test_any_number_of_workers_sends_the_same_bytes_at_the_same_due_instants(serve: Serve, tmp_path: Path) -> None:
    plan = make_plan(40, rate=200.0)
    found = []
    for workers in (1, 2, 3, 5):
        server = serve(lambda n, body: answer(["a", "b"]))
        sent(server, plan, tmp_path / str(workers), workers)
        found.append((sorted(server.heads), sorted(server.bodies), due_of(tmp_path / str(workers), plan)))
        names = {path.name for path in (tmp_path / str(workers)).iterdir()}
        assert names == {journal.name(1, worker) for worker in range(workers + 1)}
    hosts = [server_heads for server_heads, _, _ in found]
    assert len({len(heads) for heads in hosts}) == 1
    assert all(bodies == found[0][1] and due == found[0][2] for _, bodies, due in found)
    assert found[0][2] == {planned.index: round(planned.due_s * 1e9) for planned in plan.requests}


@pytest.mark.parametrize("workers", range(1, 9))
def test_poisson_arrivals_are_poisson_from_any_number_of_workers(serve: Serve, tmp_path: Path, workers: int) -> None:
    """GuideLLM's dispersion is the number of its workers, while the gaps of each are as they should be."""
    plan = make_plan(150, rate=120.0)
    sent(serve(lambda n, body: answer(["a", "b"])), plan, tmp_path, workers)
    trail = journal.read_run(tmp_path, plan)
    assert due_of(tmp_path, plan) == {planned.index: round(planned.due_s * 1e9) for planned in plan.requests}
    declared = tests.Declaration(
        unit_gaps=poisson.Arrival(qps=120.0).unit_gaps,
        due_s={planned.index: planned.due_s for planned in plan.requests},
    )
    sent_s = {r.index: (r.sent_ns - trail.header.start_ns) / 1e9 for r in trail.records if r.sent_ns is not None}
    findings = tests.examine_sent(declared, sent_s)
    assert any(finding.ok for finding in findings)
    assert not tests.contradictions(findings), findings


def test_slots_are_shared_out_and_no_worker_is_without_one(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda n, body: [0.02, *answer(["a", "b"])])
    sent(server, plan_of([0.0] * 20), tmp_path, workers=4, concurrency=3)
    assert server.most_at_once == 3
    assert journal.read_run(tmp_path, plan_of([0.0] * 20)).header.num_workers == 3


def test_a_worker_without_requests_is_not_started(serve: Serve, tmp_path: Path) -> None:
    sent(serve(lambda n, body: answer(["a", "b"])), plan_of([0.0, 0.0]), tmp_path, workers=5)
    assert {path.name for path in tmp_path.iterdir()} == {journal.name(1, worker) for worker in range(3)}


def test_every_worker_samples_itself(serve: Serve, tmp_path: Path) -> None:
    plan = plan_of([0.0, 0.0])
    sent(serve(lambda n, body: answer(["a", "b"])), plan, tmp_path, workers=2)
    assert len(journal.read_run(tmp_path, plan).samples) == 2


def test_counts_of_all_workers_are_told_together(serve: Serve, tmp_path: Path) -> None:
    seen = []
    server = serve(lambda n, body: answer(["a", "b"]))
    fleet.send(
        plan_of([0.0] * 7), locate(server.url), CONTEST, Timeouts(), tmp_path, 3, progress=lambda c: seen.append(c)
    )
    assert (seen[-1].planned, seen[-1].sent, seen[-1].answered) == (7, 7, 7)


def test_a_worker_that_cannot_start_ends_the_run_and_the_other_workers(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / journal.name(1, 1)).write_text("already there")
    before = set(psutil.Process().children())
    with pytest.raises(InvalidMeasurement, match="measuring process 1 did not start"):
        sent(serve(lambda n, body: answer(["a"])), plan_of([0.0] * 4), tmp_path, workers=2)
    assert set(psutil.Process().children()) <= before


class Stalling:
    """Answers the first requests; `reached` is set when so many have come that get no answer, or a late one."""

    def __init__(self, num_answered: int, num_stalled: int = 1, then: Sequence[Step] = (STREAM_HEAD, Do.STALL)) -> None:
        self.reached = threading.Event()
        self._then = list(then)
        self._num_answered = num_answered
        self._last = num_answered + num_stalled - 1

    def __call__(self, n: int, body: bytes) -> list[Step]:
        if n < self._num_answered:
            return answer(["a", "b"])
        if n == self._last:
            self.reached.set()
        return self._then


@pytest.fixture
def started(serve: Serve, tmp_path: Path) -> Iterator["Callable[[plans.Plan, Stalling], subprocess.Popen[bytes]]"]:
    """Two workers on their way in a process of their own, when the server has been reached."""
    processes = []

    def start(plan: plans.Plan, script: Stalling) -> "subprocess.Popen[bytes]":
        plans.save(plan, tmp_path / "plan.jsonl.gz")
        process = subprocess.Popen([sys.executable, "-c", SEND, str(tmp_path), serve(script).url], cwd=ROOT)
        processes.append(process)
        assert script.reached.wait(60)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


Started = Callable[[plans.Plan, Stalling], "subprocess.Popen[bytes]"]
STALLS = plan_of([0.0, 0.0, 0.3, 0.3, 3600.0, 3600.0])


def workers_of(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    found = [child for child in psutil.Process(process.pid).children() if "llmbench.loadgen.fleet" in child.cmdline()]
    assert len(found) == 2
    return found


def journal_of(worker: psutil.Process, folder: Path) -> Path:
    """The journal that a worker has open."""
    return next(Path(file.path) for file in worker.open_files() if Path(file.path).parent == folder.resolve())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_fleet_ends_in_order_with_a_record_for_every_request(
    started: Started, tmp_path: Path, number: signal.Signals
) -> None:
    process = started(STALLS, Stalling(2, 2))
    workers = workers_of(process)
    process.send_signal(number)
    until(lambda: len(journal.read_run(tmp_path, STALLS).records) == 6)
    until(lambda: sum("not sent" in record.reason for record in journal.read_run(tmp_path, STALLS).records) == 2)
    process.send_signal(number)
    assert process.wait(60) == 1  # "interrupted" is true
    statuses = [record.status for record in journal.read_run(tmp_path, STALLS).records]
    assert sorted(statuses) == ["answered"] * 2 + ["unfinished"] * 4
    assert not any(worker.is_running() for worker in workers)


def test_no_worker_outlives_the_process_that_began_the_run(started: Started, tmp_path: Path) -> None:
    process = started(STALLS, Stalling(2, 2))
    workers = workers_of(process)
    process.kill()
    process.wait()
    psutil.wait_procs(workers, timeout=10)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    statuses = [record.status for record in journal.read_run(tmp_path, STALLS).records]
    assert sorted(statuses) == ["answered"] * 2 + ["unfinished"] * 4


def test_a_killed_worker_leaves_its_requests_unfinished_with_the_reason_and_the_others_go_on(
    started: Started, tmp_path: Path
) -> None:
    plan = plan_of([0.0, 0.0, 0.3, 0.3, 1.0, 1.0])
    process = started(plan, Stalling(2, 2, then=[3.0, *answer(["a", "b"])]))
    victim = workers_of(process)[0]
    path = journal_of(victim, tmp_path)
    os.kill(victim.pid, signal.SIGKILL)
    assert process.wait(60) == 0
    records = {record.index: record for record in journal.read_run(tmp_path, plan).records}
    dead = journal.read(path).header.worker
    part, others = plan.split(2)[dead], plan.split(2)[1 - dead]
    assert [records[planned.index].status for planned in others.requests] == ["answered"] * 3
    assert [records[planned.index].status for planned in part.requests] == ["answered", "unfinished", "unfinished"]
    reasons = {records[planned.index].reason for planned in part.requests[1:]}
    assert reasons == {f"measuring process {dead} died before it ended (SIGKILL)"}


def until(true: Callable[[], bool]) -> None:
    """Wait; pytest's time-out ends what never comes."""
    waiting = threading.Event()
    while not true():
        waiting.wait(0.02)


def test_auto_is_one_process_for_every_500_streams_and_leaves_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert fleet.num_workers(make_plan(100, rate=10.0)) == 1
    assert fleet.num_workers(plan_of([0.0] * 1200)) == 3
    assert fleet.num_workers(plan_of([0.0] * 1200), concurrency=100) == 1
    assert fleet.num_workers(plan_of([i / 100 for i in range(3000)])) == 3  # 1,001 due in any 10 s
    assert fleet.num_workers(plan_of([0.0] * 9000)) == 7
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert fleet.num_workers(plan_of([0.0] * 9000)) == 1


def test_secrets_are_not_on_the_command_line_of_a_worker(started: Started) -> None:
    process = started(STALLS, Stalling(2, 2))
    for worker in workers_of(process):
        assert worker.cmdline()[1:] == ["-m", "llmbench.loadgen.fleet"]


def test_a_job_survives_its_way_through_the_pipe() -> None:
    job = fleet.Job(
        plan=plan_of([0.0]),
        target=Target(url="u", authority="a", prefix="", family=2, host="h", port=1),
        speech=Speech(name="contest", options={"data_shape": "object"}),
        timeouts=Timeouts(),
        concurrency=None,
        journal="j",
        part=Part(),
    )
    assert msgspec.json.decode(msgspec.json.encode(job), type=fleet.Job) == job
