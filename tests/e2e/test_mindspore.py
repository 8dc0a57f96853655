"""The MindSpore engines behind the whole stack: all requests of a run are answered, and the logits are NumPy's."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmbench.logits.store import Store
from tests.conftest import ROOT, Launch, need
from tests.e2e.test_capture import captured
from tests.e2e.test_forcing import OTHER, answers

pytestmark = [pytest.mark.mindspore, pytest.mark.timeout(600)]

ENGINES = ["mindspore_llama", "mindformers"]
SETTINGS = "limits: {max_batch: 4}\nthreads: 2\n"  # few graphs to compile at start


def llmbench(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmbench", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    need(name.removesuffix("_llama"))
    return name


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(SETTINGS)
    return path


def test_all_requests_of_a_run_against_it_are_answered(
    launch: Launch, tmp_path: Path, config: Path, engine: str
) -> None:
    serving = launch(str(config), "--engine", engine)
    assert f"engine {engine} float32" in serving.ready_line, serving.log
    assert "warming up: graph 1 of" in serving.log
    done = llmbench("perf", "--url", serving.url, "-X", 2, "-T", 5, "--results", tmp_path / "results")
    assert "all 10 requests answered" in done.stdout, done.stdout + done.stderr


def test_its_logits_pass_the_accuracy_check_against_numpys(tmp_path: Path, config: Path, engine: str) -> None:
    base, results = tmp_path / "base", ("--results", tmp_path / "results")
    numbers = ("-n", 6, "--every", 5)
    dumped = llmbench("acc", "dump", "-o", base, *numbers)
    assert dumped.returncode == 0, dumped.stderr
    done = llmbench("acc", "--base", base, *numbers, "-c", 3, "--config", config, "--engine", engine, *results)
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_model_on_it_is_fed_the_bases_tokens(tmp_path: Path, config: Path, engine: str) -> None:
    base = captured(tmp_path / "base", 4, "full32")
    new = captured(tmp_path / "new", 4, "full32", config, "--engine", engine, *OTHER, "--force", base)
    assert answers(Store(new)) == answers(Store(base))
    assert Store(new).table["forced"].all()
