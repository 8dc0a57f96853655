"""A quantised model through the whole stack: it says what it is, and is judged beside the float one."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmbench.logits.store import ROWS, read_manifest
from tests.conftest import ROOT
from tools import plant_outliers

FEW = ("-n", 12, "-c", 8)
Done = subprocess.CompletedProcess[str]


def llmbench(*words: object) -> Done:
    command = [sys.executable, "-m", "llmbench", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)


def quantised(out: Path, model: object, anti: str) -> Path:
    done = llmbench("quantize", model, "-o", out, "--anti", anti)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with outliers: it computes the same."""
    folder = tmp_path_factory.mktemp("planted") / "float"
    plant_outliers.plant("embedded", folder)
    return folder


@pytest.fixture(scope="module")
def moved(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in W8A8, its outliers moved."""
    return quantised(tmp_path_factory.mktemp("moved") / "m1", planted, "m1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the embedded model in float32."""
    folder = tmp_path_factory.mktemp("base") / "rows"
    done = llmbench("acc", "dump", "-o", folder, *FEW[:2], "--tier", "full32", "--engine", "numpy_llama")
    assert done.returncode == 0, done.stderr
    return folder


def judged(base: Path, model: Path, tmp_path: Path) -> Done:
    """The same requests served 8 at once and fed the base's tokens; no profile is named."""
    flags = ("--force", "--engine", "numpy_llama", "--results", tmp_path / "results")
    return llmbench("acc", "--base", base, *FEW, "--model", model, *flags)


def test_outliers_spoil_w8a8_and_moving_them_saves_it(base: Path, planted: Path, moved: Path, tmp_path: Path) -> None:
    spoilt = judged(base, quantised(tmp_path / "none", planted, "none"), tmp_path)
    assert spoilt.returncode == 1, spoilt.stdout + spoilt.stderr
    assert spoilt.stdout.startswith("accuracy FAILED\n  mean KLD, nats: 0.0")
    saved = judged(base, moved, tmp_path)
    assert saved.returncode == 0, saved.stdout + saved.stderr
    assert saved.stdout.startswith("accuracy PASSED\n")
    assert "profile w8: weights of 8 bits" in saved.stdout
    assert ", w8a8 on numpy_llama float32, tokens forced" in saved.stdout


def test_a_run_says_what_was_served(moved: Path, tmp_path: Path) -> None:
    flags = ("--engine", "numpy_llama", "--task", 2, "-X", 50, "-T", 0.1, "--capture", "--out-dir", tmp_path)
    done = llmbench("perf", "--model", moved, *flags, "--results", tmp_path / "results", "--port", 1)
    (folder,) = (tmp_path / "results").iterdir()
    assert done.returncode in (0, 3), done.stderr  # a busy machine makes it INVALID
    assert (
        ", engine numpy_llama float32, w8a8, batch " in json.loads((folder / "environment.json").read_text())["stack"]
    )
    assert json.loads((folder / "server.json").read_text())["quantisation"] == "w8a8"
    assert read_manifest(folder / ROWS).quantisation == "w8a8"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of both splits in one, 296: fewer than 268 cannot show that a loss is under a point."""
    folder = tmp_path_factory.mktemp("questions") / "data"
    shutil.copytree(ROOT / "datasets" / "mmlu.synthetic", folder)
    for path in (folder / "test").iterdir():
        more = folder / "val" / path.name.replace("_test.csv", "_val.csv")
        path.write_text(path.read_text() + more.read_text())
    assert sum(len(list(csv.reader(path.read_text().splitlines()))) for path in (folder / "test").iterdir()) == 296
    return folder


def answered(model: str | Path, questions: Path, results: Path) -> Path:
    done = llmbench("eval", "mmlu", "--data", questions, "--split", "test", "--model", model, "--results", results)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.rpartition("files: ")[2].strip())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_w8a8_under_load_is_within_w8_and_loses_no_point_of_mmlu(questions: Path, tmp_path: Path) -> None:
    base, results = tmp_path / "base", tmp_path / "results"
    assert llmbench("acc", "dump", "-o", base, "-n", 60, "--tier", "full32").returncode == 0
    before = answered("embedded", questions, results)
    for anti in ("m1", "m2"):
        model = quantised(tmp_path / anti, "embedded", anti)
        flags = ("--model", model, "--engine", "numpy_llama", "--task", 2, "-X", 10, "-T", 6, "--results", results)
        done = llmbench("acc", "run", "--base", base, "--force", *flags)
        assert "\naccuracy PASSED\n" in done.stdout, done.stdout  # whether the run is VALID is the machine's
        assert "\nprofile w8: " in done.stdout
        assert "passed       share of rows at half the load's batch or more" in done.stdout
        compared = llmbench("eval", "compare", before, answered(model, questions, results))
        assert compared.returncode == 0, compared.stdout
        lower = float(compared.stdout.partition("Tango ")[2].partition(",")[0])
        assert lower > -1, compared.stdout
