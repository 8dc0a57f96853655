"""`llmbench gate`, `gate update|calibrate` and `history` with real servers: stubs whose steps take a declared time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tests.accuracy.models import embedded, perturbed

ROOT = Path(__file__).parents[2]
SETTINGS = """
load:
  {qps: 40, num_requests: 30, max_new_tokens: 8, ignore_eos: true, dataset: alpaca_521, preflight: false,
   allow: [lateness, stalls, client-cpu, arrivals, rate, instants, saturation, drain, ledger-ttft, ledger-queue]}
metrics:
  tpot:mean: {delta: 0.2}
max_repeats: 4
"""


def llmbench(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmbench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=170)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gate.yaml").write_text(SETTINGS)
    for name, step_s in (("fast", 0.01), ("slow", 0.02)):
        (tmp_path / f"{name}.yaml").write_text(f"model: random:tiny\nengine: stub\nstep_time_s: {step_s}\n")
    return tmp_path


def test_a_slower_build_is_a_regression_and_the_folders_of_its_runs_compare_alike(folder: Path) -> None:
    done = llmbench(
        "gate", "--settings", folder / "gate.yaml", "--a", folder / "fast.yaml", "--b", folder / "slow.yaml",
        "--results", folder / "results", "--json", folder / "gate.json", "--junit", folder / "gate.xml",
        "--markdown", folder / "gate.md", "--github",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("REGRESSION: tpot:mean +")
    assert "::error title=llmbench%3A regression::" in done.stdout
    speed = json.loads((folder / "gate.json").read_bytes())["speed"]
    assert 0.5 < speed["effects"][0]["change"] < 1.5
    suite = ElementTree.parse(folder / "gate.xml").getroot()
    assert suite.get("failures") == "1"
    assert "tpot:mean" in (folder / "gate.md").read_text()
    (runs,) = (folder / "results").iterdir()
    order = sorted((path.name[:15], path.parent.name) for path in runs.glob("[ab]/*"))
    assert [side for _, side in order[:4]] == ["a", "b", "b", "a"]
    flags = ["--paired", "--metric", "tpot:mean=20%", "--one-line", "--allow-invalid"]
    again = llmbench("compare", runs / "a", runs / "b", *flags)
    assert again.returncode == 1, again.stderr
    assert again.stdout.startswith("regression (tpot:mean +")


def test_a_baseline_is_stored_in_versions_and_gates_a_later_build(folder: Path) -> None:
    baseline = folder / "baseline"
    for label in ("one", "one", "two"):
        flags = ["--settings", folder / "gate.yaml", "--b", folder / "fast.yaml", "--runs", 2, "--label", label]
        done = llmbench("gate", "update", "--baseline", baseline, *flags)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in baseline.iterdir()) == [
        "gate.yaml", "plan.jsonl.gz", "v0001.json", "v0002.json", "v0003.json",
    ]  # fmt: skip
    same = llmbench("gate", "--baseline", baseline, "--b", folder / "fast.yaml", "--results", folder / "same")
    assert same.returncode in (0, 4), same.stderr
    slower = llmbench("gate", "--baseline", baseline, "--b", folder / "slow.yaml", "--results", folder / "slower")
    assert slower.returncode == 1, slower.stderr
    told = llmbench("history", baseline, "--csv", folder / "history.csv", "--html", folder / "history.html")
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("one") == 2
    lines = (folder / "history.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 2
    page = (folder / "history.html").read_text()
    assert "tpot:mean" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_baseline_of_another_machine_is_not_compared_with(folder: Path) -> None:
    baseline = folder / "baseline"
    flags = ["--settings", folder / "gate.yaml", "--b", folder / "fast.yaml", "--runs", 2]
    assert llmbench("gate", "update", "--baseline", baseline, *flags).returncode == 0
    version = json.loads((baseline / "v0001.json").read_bytes())
    (baseline / "v0001.json").write_text(json.dumps(version | {"machine": "Plan9 mips, 1 cores, 1 GiB"}))
    done = llmbench("gate", "--baseline", baseline, "--b", folder / "fast.yaml", "--results", folder / "results")
    assert done.returncode == 3
    assert "was measured on Plan9 mips" in done.stderr


def test_a_build_against_itself_tells_what_the_gate_can_find(folder: Path) -> None:
    done = llmbench(
        "gate", "calibrate", "--settings", folder / "gate.yaml", "--a", folder / "fast.yaml", "--pairs", 4,
        "--results", folder / "results", "--json", folder / "calibrated.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (metric,) = json.loads((folder / "calibrated.json").read_bytes())["metrics"]
    assert metric["metric"] == "tpot:mean"
    assert metric["false_alarms"] <= 0.01
    assert metric["smallest"] > 0.2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("load: {qps: 4, url: 'http://x'}", "load.url: the gate sets this itself"),
        ("load: {qps: 4}\nmetrics: {tpott:mean: {}}", "did you mean tpot"),
        ("load: {qps: 4}\nmetrics: {tpot:mean: {delta: 7}}", "delta: a share"),
        ("lod: {}", "did you mean 'load'"),
    ],
)
def test_wrong_settings_are_named(folder: Path, settings: str, said: str) -> None:
    (folder / "gate.yaml").write_text(settings)
    done = llmbench("gate", "--settings", folder / "gate.yaml", "--results", folder / "results")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (folder / "results").exists()


def test_the_gate_of_the_embedded_model_is_well_formed() -> None:
    from llmbench.cli import _gate

    for path in sorted((ROOT / "configs" / "gate").glob("*.yaml")):
        assert _gate.read(path).primaries()


@pytest.fixture
def shell(tmp_path: Path) -> "dict[str, str]":
    """An environment in which `llmbench` is this one and `pip install` does nothing."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, line in (("llmbench", f'exec "{sys.executable}" -m llmbench "$@"'), ("pip", "exit 0")):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def run_lines(lines: "list[str]", folder: Path, environment: "dict[str, str]") -> None:
    for name in ("configs",):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    for line in lines:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], cwd=folder, env=environment, capture_output=True, text=True,
            check=False, timeout=170,
        )  # fmt: skip
        assert done.returncode in (0, 4), f"{line}\n{done.stdout}\n{done.stderr}"


def test_the_example_for_github_runs_as_it_is_written(tmp_path: Path, shell: "dict[str, str]") -> None:
    steps = yaml.safe_load((ROOT / "docs/ci/github.yml").read_text())["jobs"]["gate"]["steps"]
    run_lines([step["run"] for step in steps if "run" in step], tmp_path, shell)
    assert json.loads((tmp_path / "gate.json").read_bytes())["speed"]["verdict"] != "regression"
    assert ElementTree.parse(tmp_path / "gate.xml").getroot().get("failures") == "0"


def test_the_example_for_gitlab_runs_as_it_is_written(tmp_path: Path, shell: "dict[str, str]") -> None:
    jobs = yaml.safe_load((ROOT / "docs/ci/gitlab.yml").read_text())
    run_lines(jobs["baseline"]["script"], tmp_path, shell)
    run_lines(jobs["gate"]["script"], tmp_path, shell)
    assert (tmp_path / "history.html").is_file()
    assert ElementTree.parse(tmp_path / "gate.xml").getroot().get("failures") == "0"


def test_a_build_that_is_faster_but_wrong_fails_by_its_accuracy(folder: Path) -> None:
    perturbed(folder / "wrong", embedded(), "model.layers.2.mlp.down_proj.weight", by=0.05)
    (folder / "one.yaml").write_text("model: embedded\nthreads: 1\nlimits: {max_batch: 1}\n")
    (folder / "many.yaml").write_text(f"model: {folder / 'wrong'}\nthreads: 1\nlimits: {{max_batch: 16}}\n")
    settings = SETTINGS.replace("qps: 40", "arrivals: burst").replace("tpot:mean", "e2el:mean")
    (folder / "gate.yaml").write_text(settings + "accuracy: {profile: fp32}\n")
    done = llmbench(
        "gate", "--settings", folder / "gate.yaml", "--a", folder / "one.yaml", "--b", folder / "many.yaml",
        "--results", folder / "results", "--json", folder / "gate.json",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = json.loads((folder / "gate.json").read_bytes())
    assert found["speed"]["verdict"] == "no regression"
    assert found["speed"]["effects"][0]["change"] < 0
    assert found["accuracy"]["verdict"] == "failed"
