"""`llmbench selftest`: the null server and doctored clients, real processes; each planted fault trips its check."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from llmbench.cli import _machine, _selftest
from llmbench.cli._selftest_cases import CASES, Case, Figure, Measured
from llmbench.errors import InputError
from llmbench.loadgen import doctored
from llmbench.loadgen.calibrate import Calibration
from llmbench.metrics import checks as validity
from llmbench.metrics.checks import Check
from tests.loadgen.test_calibrate import calibration

DOC = Path(__file__).parents[2] / "docs" / "selftest.md"
CHECKS = {check.id for check in validity.check(validity.Evidence(traces=[]))}


@pytest.fixture(scope="module")
def stated() -> Calibration:
    return _selftest.instrument()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_planted_fault_trips_exactly_its_checks(case: Case, stated: Calibration) -> None:
    if not case.possible():
        pytest.skip("this system cannot do it")
    verdict = _selftest.try_case(case, stated)
    if verdict.outcome == "disturbed":
        pytest.skip(f"this machine is too busy to measure: {', '.join(verdict.extra)} tripped three times")
    assert verdict.outcome == "ok", "\n".join(_selftest.lines(verdict))


def test_the_cases_name_checks_that_there_are() -> None:
    assert all(case.trips | case.may <= CHECKS for case in CASES)
    assert all(not case.trips & case.may for case in CASES)
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_documentation_is_that_of_the_cases() -> None:
    rows = re.findall(r"^\| `.*$", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [_row(case) for case in CASES]


def _row(case: Case) -> str:
    trips, may = (", ".join(f"`{name}`" for name in sorted(names)) or "-" for names in (case.trips, case.may))
    return f"| `{case.name}` | {case.says} | {trips} | {may} |"


# -- how a case is judged ----------------------------------------------------------------------------------------------


def found(*tripped: str) -> Measured:
    """A run in which these checks were not ok."""
    outcomes = [
        Check(id=name, name=name, value=1, limit=0, unit="", verdict="failed" if name in tripped else "ok")
        for name in sorted(CHECKS)
    ]
    plan = _selftest.plan_of(CASES[0].work)
    return Measured(plan=plan, records=[], answered=[], truths=[], checks=outcomes, stated=calibration())


LENGTHS = next(case for case in CASES if case.name == "truncated")


@pytest.mark.parametrize(
    ("tripped", "others", "outcome"),
    [
        (["lengths"], 0.9, "ok"),
        ([], 0.9, "FAILED"),
        (["lengths", "cache"], 0.9, "FAILED"),
        (["lengths", "lateness"], 0.9, "disturbed"),
        (["lengths", "lateness"], 0.05, "FAILED"),
        (["lengths", "lateness", "coalescing"], 0.9, "disturbed"),
        (["lengths", "coalescing"], 0.9, "FAILED"),
        (["lateness"], 0.9, "FAILED"),
    ],
)
def test_a_case_is_ok_when_its_checks_trip_and_no_others(tripped: list[str], others: float, outcome: str) -> None:
    assert _selftest.judge(LENGTHS, found(*tripped), others).outcome == outcome


@pytest.mark.parametrize(("runs", "attempts"), [([["lengths"]], 1), ([["cache"]], 1), ([["lateness"], ["lengths"]], 2)])
def test_only_a_disturbed_case_is_tried_again(
    runs: list[list[str]], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([found(*tripped) for tripped in runs])
    monkeypatch.setattr(_selftest, "measure", lambda case, stated: next(measured))
    assert _selftest.try_case(LENGTHS, calibration()).attempts == attempts


def test_a_machine_that_is_always_busy_leaves_a_case_untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_selftest, "measure", lambda case, stated: found("lengths", "stalls"))
    monkeypatch.setattr(_machine.Others, "share", lambda self: 0.5)
    verdict = _selftest.try_case(LENGTHS, calibration())
    assert (verdict.outcome, verdict.attempts) == ("disturbed", 3)
    report = _selftest.Report(outcome="disturbed", took_s=6.0, instrument=calibration(), cases=[verdict])
    assert report.exit_code == 4
    assert "too busy to measure truncated" in _selftest.sentence(report)


def test_a_figure_outside_of_its_band_fails_the_case_and_is_shown() -> None:
    figure = Figure(what="TTFT off by", value=3.0, low=-1.0, high=1.0)
    case = msgspec.structs.replace(LENGTHS, figures=lambda _: [figure])
    run = msgspec.structs.replace(found("lengths"), answered=[None])
    verdict = _selftest.judge(case, run)
    assert verdict.outcome == "FAILED"
    assert "TTFT off by 3 ms (NOT ± 1)" in _selftest.lines(verdict)[0]


def test_what_tripped_and_what_should_have_is_said() -> None:
    shown = "\n".join(_selftest.lines(_selftest.judge(LENGTHS, found("cache"))))
    assert "should have tripped: lengths" in shown
    assert "should not have tripped: cache" in shown


# -- doctored clients --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not doctored.can_starve(), reason="needs sched_setaffinity")
def test_a_starved_client_has_its_cores_back_afterwards_and_leaves_nobody_behind() -> None:
    before = os.sched_getaffinity(0)
    with doctored.starved(2).around():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_workers_that_share_a_seed_send_as_much_as_the_others() -> None:
    plan = _selftest.plan_of(msgspec.structs.replace(CASES[0].work, qps=200.0, num_requests=2000))
    moved = doctored.in_step(10).plan(plan)
    assert len(moved.requests) == 2000
    assert moved.sha256 != plan.sha256
    assert moved.requests[-1].due_s == pytest.approx(plan.requests[-1].due_s, rel=0.2)


def test_the_cpu_time_of_others_is_what_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, ours = iter([(10.0, 100.0), (14.0, 110.0)]), iter([0.0, 3.0])
    monkeypatch.setattr(_machine, "_cpu_s", lambda: next(machine))
    assert _machine.Others(lambda: next(ours)).share() == pytest.approx(0.1, abs=0.01)


# -- from outside ------------------------------------------------------------------------------------------------------


def selftest(*flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "llmbench", "selftest", *flags], capture_output=True, text=True)


def test_the_command_runs_the_cases_that_are_asked_for() -> None:
    done = selftest("--case", "errors", "--case", "truncated", "--json")
    report = json.loads(done.stdout)
    assert [case["name"] for case in report["cases"]] == ["errors", "truncated"]
    assert "answered" in report["cases"][0]["tripped"]
    assert done.returncode == {"ok": 0, "FAILED": 1, "disturbed": 4}[report["outcome"]]
    assert report["outcome"] != "FAILED"


def test_the_list_names_every_case() -> None:
    done = selftest("--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [case.name for case in CASES if case.possible()]


def test_a_case_that_is_none_is_wrong_usage() -> None:
    with pytest.raises(InputError, match="Did you mean 'truncated'"):
        _selftest.chosen(["truncatd"])
    assert selftest("--case", "nonsense").returncode == 2
