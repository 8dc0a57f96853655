"""`llmbench doctor` on real processes; whether a machine is a good instrument is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmbench.cli import _doctor, _machine
from llmbench.cli._machine import Finding
from llmbench.errors import InputError
from llmbench.loadgen import calibrate
from llmbench.loadgen.calibrate import Ceiling
from tests.loadgen.test_calibrate import calibration

SHORT = _doctor.Settings(
    qps=30.0, concurrency=None, output_tokens=4, dialect="openai_completions", send_s=0.5, search_s=0.5, save=None
)
MOST = Ceiling(events_per_s=1e6, num_tokens=64, requests_per_s=1e6, bound_by="time")


def stand_in(monkeypatch: pytest.MonkeyPatch, good: bool, most: Ceiling) -> list[str]:
    """No load: the machine is as the test says. Returns what was measured."""
    measured: list[str] = []

    def calibrated(*_: Any) -> calibrate.Calibration:
        measured.append("calibration")
        return calibration(ttft_p95_s=0.001 if good else 0.1)

    monkeypatch.setattr(calibrate, "calibrate", calibrated)
    monkeypatch.setattr(calibrate, "ceiling", lambda *_: most)
    return measured


def test_doctor_reports_the_machine_the_error_and_the_ceiling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = _doctor.main(msgspec.structs.replace(SHORT, save=tmp_path / "found.json"), json=True)
    report = json.loads(capsys.readouterr().out)
    assert status == (0 if report["can_measure"] else 3)
    assert report["calibration"]["num_answered"] == 15
    assert {"cores", "clock source", "stolen time"} <= {one["name"] for one in report["machine"]}
    saved = calibrate.read(tmp_path / "found.json")
    assert saved.ceiling is not None
    assert json.loads(msgspec.json.encode(saved)) == report["calibration"]


def test_doctor_prints_one_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, True, MOST)
    assert _doctor.main(SHORT, json=False) == 0
    shown = capsys.readouterr().out
    assert "instrument error: TTFT ± 1 ms" in shown
    assert "this machine measures that load" in shown
    assert len(shown.splitlines()) <= 40


def test_a_machine_that_errs_twice_cannot_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = stand_in(monkeypatch, False, MOST)
    assert _doctor.main(SHORT, json=False) == 3
    assert len(measured) == 2
    shown = capsys.readouterr().out
    assert "CANNOT MEASURE" in shown
    assert "lower -X" in shown


def test_a_load_above_the_ceiling_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, True, msgspec.structs.replace(MOST, events_per_s=100.0))
    assert _doctor.main(SHORT, json=True) == 3


def test_a_load_near_the_ceiling_is_advised_against(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, True, msgspec.structs.replace(MOST, events_per_s=150.0))
    assert _doctor.main(SHORT, json=False) == 0
    assert "uses 80 % of the ceiling" in capsys.readouterr().out


def test_what_is_wrong_with_the_machine_comes_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, True, MOST)
    wrong = Finding(name="cores", value="1", ok=False, remedy="more of them")
    monkeypatch.setattr(_doctor, "findings", lambda: [wrong])
    assert "cores 1: more of them" in _doctor.examine(SHORT).advice


def test_every_finding_that_may_be_wrong_has_a_remedy() -> None:
    for one in [*_machine.findings(), _machine.Steal().finding()]:
        assert one.value
        assert one.remedy or one.ok is not False


def test_a_dialect_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="Did you mean"):
        _doctor.main(msgspec.structs.replace(SHORT, dialect="openai_completion"), json=False)


def test_the_command_is_there_and_refuses_nonsense() -> None:
    command = [sys.executable, "-m", "llmbench", "doctor"]
    assert "--full" in subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert subprocess.run([*command, "--output-tokens", "0"], capture_output=True).returncode == 2
