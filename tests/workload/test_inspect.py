"""`llmbench plan`: a plan is made, looked into, and contradicted when it is not what it says."""

import json
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from llmbench import plugins
from llmbench.cli import _inspect
from llmbench.cli import plan as command
from llmbench.loadgen.journal import Header, Journal
from llmbench.loadgen.record import Record
from llmbench.workload import plan as plans
from llmbench.workload import sources

runner = CliRunner()
START_NS = 10**15


def make(path: Path, *flags: str) -> plans.Plan:
    done = runner.invoke(command.app, ["make", "-o", str(path), "--dataset", "synthetic:prompt=8,output=4", *flags])
    assert done.exit_code == 0, done.output
    return plans.load(path)


def inspect(path: Path) -> tuple[int, str]:
    done = runner.invoke(command.app, ["inspect", str(path)])
    return done.exit_code, done.output


def change(path: Path, plan: plans.Plan, **settings: object) -> None:
    """The same requests under another declaration, sealed anew: what a wrong generator would make."""
    plans.save(msgspec.structs.replace(plan, settings=msgspec.structs.replace(plan.settings, **settings)), path)


@pytest.mark.parametrize(
    "process",
    [
        "poisson",
        "gamma:0.5",
        "contest",
        "constant",
        "burst",
        "ramp:from=1,to=40,seconds=30",
        "steps:10x5+10x20",
        "closed:users=4,think=exponential:1",
    ],
)
def test_a_plan_is_what_it_declares(tmp_path: Path, process: str) -> None:
    make(tmp_path / "plan.gz", "--arrivals", process, "-X", "20", "-T", "20")
    status, output = inspect(tmp_path / "plan.gz")
    assert status == 0, output
    assert "as declared" in output or "those of the process" in output


@pytest.mark.parametrize(
    ("sealed", "claimed"),
    [
        ("contest", "poisson"),
        ("poisson", "constant"),
        ("constant", "poisson"),
        ("poisson", "burst"),
        ("gamma:0.3", "poisson"),
        ("poisson", "ramp:from=1,to=40,seconds=30"),
    ],
)
def test_a_plan_that_claims_another_process_is_contradicted_with_status_3(
    tmp_path: Path, sealed: str, claimed: str
) -> None:
    path = tmp_path / "plan.gz"
    rate = None if claimed == "burst" else 20.0
    change(path, make(path, "--arrivals", sealed, "-X", "20", "-n", "600"), arrivals=claimed, rate=rate)
    status, output = inspect(path)
    assert status == 3
    assert "CONTRADICTED" in output


def test_a_rate_that_the_schedule_has_not_is_contradicted(tmp_path: Path) -> None:
    path = tmp_path / "plan.gz"
    change(path, make(path, "-X", "20", "-n", "600"), qps=25.0, rate=25.0)
    assert inspect(path)[0] == 3


def run_folder(tmp_path: Path, sent_s: list[float], plan: plans.Plan) -> Path:
    """What a run leaves: its plan, and a journal with these sent instants."""
    plans.save(plan, tmp_path / "plan.jsonl.gz")
    header = Header(
        plan_sha256=plan.sha256, num_requests=len(sent_s), url="", dialect="contest", start_ns=START_NS, start_wall_s=0
    )
    with Journal(tmp_path / "journal.jsonl", header) as journal:
        for planned, instant in zip(plan.requests, sent_s, strict=True):
            due_ns = START_NS + round(planned.due_s * 1e9)
            sent_ns = START_NS + round(instant * 1e9)
            journal.append(Record(index=planned.index, due_ns=due_ns, released_ns=due_ns, sent_ns=sent_ns))
    return tmp_path


def test_the_sent_instants_of_a_run_are_tested_too(tmp_path: Path) -> None:
    plan = make(tmp_path / "plan.gz", "-X", "20", "-n", "600")
    due = [planned.due_s for planned in plan.requests]
    folder = run_folder(tmp_path, [instant + 0.0002 for instant in due], plan)
    status, output = inspect(folder)
    assert status == 0
    assert "sent" in output
    (tmp_path / "journal.jsonl").unlink()
    ticks = run_folder(tmp_path, [int(instant * 5 + 1) / 5 for instant in due], plan)
    assert inspect(ticks)[0] == 3


def test_json_has_the_verdict_the_seeds_and_the_shared_tokens(tmp_path: Path) -> None:
    make(
        tmp_path / "plan.gz",
        "--dataset",
        "prefix:groups=2,shared=30,own=10,output=5",
        "-n",
        "60",
        "--seed-prompts",
        "9",
    )
    found = json.loads(runner.invoke(command.app, ["inspect", "--json", str(tmp_path / "plan.gz")]).output)
    assert found["ok"] is True
    assert found["seeds"]["prompts"] == 9
    assert sum(found["prompt_tokens"]) == 60 * 40
    assert 60 * 30 <= found["num_shared_tokens"] < 60 * 36
    assert sum(found["output_tokens"]) == 300


def test_the_same_flags_seal_the_same_bytes_and_each_seed_moves_its_own(tmp_path: Path) -> None:
    one, same = tmp_path / "one.gz", tmp_path / "same.gz"
    first = make(one, "--temperature", "1")
    make(same, "--temperature", "1")
    assert one.read_bytes() == same.read_bytes()
    for flag in ("--seed-schedule", "--seed-prompts", "--seed-sampling"):
        assert make(same, "--temperature", "1", flag, "77").sha256 != first.sha256


def test_a_plan_says_its_dialect_and_what_it_counted_with(tmp_path: Path) -> None:
    settings = make(tmp_path / "plan.gz", "--dialect", "tgi").settings
    assert settings.dialect == "tgi"
    assert len(settings.tokenizer_sha256) == 64


def test_a_histogram_has_a_row_for_each_power_of_two() -> None:
    lines = _inspect.histogram([0, 1, 2, 3, 9])
    assert [line.split("|")[0].strip() for line in lines] == ["0", "1-1", "2-3", "4-7", "8-15"]
    assert [int(line.split()[-1]) for line in lines] == [1, 1, 2, 0, 1]


@pytest.mark.parametrize("flag", ["--arrivals", "--dataset"])
def test_help_names_every_process_and_every_kind(flag: str) -> None:
    text = {"--arrivals": command.ARRIVALS_HELP, "--dataset": command.DATASET_HELP}[flag]
    names = plugins.names("workload.arrivals") if flag == "--arrivals" else sources.kinds()
    assert [name for name in names if name not in text] == []


def test_perf_lists_them_in_its_help() -> None:
    from llmbench.cli import perf

    app = typer.Typer()
    app.command()(perf.perf)
    output = runner.invoke(app, ["--help"], env={"COLUMNS": "300"}).output
    assert all(name in output for name in ("gamma", "closed:users", "--seed-schedule", "multiturn"))
