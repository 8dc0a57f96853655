"""`acc batchvar`, `determinism`, `selfcheck` and `calibrate` as a user runs them; each one's fault is planted and seen.

The faulty engines of tests/doctored are found as any third-party engine is: by an entry point.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llmbench.accuracy import profiles
from llmbench.cli.acc import app
from llmbench.errors import LlmbenchError
from tests.conftest import ROOT, Launch, Serving

ENGINES = ("off_by_one", "scaled_cache", "neighbours", "noisy")
BATCHVAR = ("batchvar", "-n", "2", "--batches", "8", "--repeats", "1", "--max-new-tokens", "8")
DETERMINISM = ("determinism", "-n", "2", "--idle", "3", "--load", "12", "-c", "8", "--max-new-tokens", "8")
CALIBRATE = ("calibrate", "-n", "4", "--batch", "4", "--max-new-tokens", "6")
SELFCHECK = ("selfcheck", "-n", "6", "--max-new-tokens", "16")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the faulty engines are installed, as pip would do it."""
    folder = tmp_path_factory.mktemp("site")
    about = folder / "doctored-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: doctored\nVersion: 1\n")
    points = "".join(f"{name} = tests.doctored.{name}\n" for name in ENGINES)
    (about / "entry_points.txt").write_text(f"[llmbench.engines]\n{points}")
    return folder


class Done:
    """What a command said."""

    def __init__(self, words: tuple[object, ...], json_file: Path) -> None:
        json_file.unlink(missing_ok=True)
        result = CliRunner().invoke(app, [*map(str, words), "--json", str(json_file)])
        error = result.exception
        self.status = error.exit_code if isinstance(error, LlmbenchError) else result.exit_code
        self.screen, self.errors = result.stdout, f"{result.stderr}{error}"
        self.report: dict[str, Any] = json.loads(json_file.read_bytes()) if json_file.exists() else {}

    def __str__(self) -> str:
        return f"exit {self.status}\n{self.screen}\n{self.errors}"


@pytest.fixture
def acc(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `llmbench acc WORDS`, whose servers and agents are processes of their own."""
    paths = os.pathsep.join(filter(None, (str(site), str(ROOT), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", paths)
    return lambda *words: Done(words, tmp_path / "report.json")


def test_a_needle_in_batches_passes_with_the_cache_cold_and_hot_and_the_control_fails(acc: Any) -> None:
    done = acc(*BATCHVAR)
    assert done.status == 0, str(done)
    assert done.screen.startswith("batch variance PASSED\nprofile fp32: ")
    assert [(group["cache"], group["batch_size"]) for group in done.report["groups"]] == [
        ("cold", 8), ("hot", 1), ("hot", 8),
    ]  # fmt: skip
    for group in done.report["groups"]:
        assert group["judged"]["num_pairs"] == 2 * 8
        assert group["at_batch"] >= 0.5
        assert group["hits"] == (1.0 if group["cache"] == "hot" else None)
    assert done.report["control"]["verdict"] == "failed"
    assert done.report["control"]["kld_max"] > 1000 * max(group["judged"]["kld_max"] for group in done.report["groups"])


def test_a_batch_that_reads_its_neighbours_cache_fails(acc: Any) -> None:
    done = acc(*BATCHVAR, "--engine", "neighbours")
    assert done.status == 1, str(done)
    assert done.screen.startswith("batch variance FAILED\n")
    failed = {(group["cache"], group["batch_size"]) for group in done.report["groups"] if group["verdict"] == "failed"}
    assert failed
    assert ("hot", 1) not in failed


@pytest.mark.slow
def test_an_engine_that_does_not_look_at_the_prompt_has_no_verdict(acc: Any) -> None:
    done = acc(*BATCHVAR, "--engine", "stub")
    assert done.status == 3, str(done)
    assert done.screen.startswith("batch variance INVALID\n  the control passed: ")


def test_repeats_are_alike_within_the_profile(acc: Any) -> None:
    done = acc(*DETERMINISM)
    assert done.status == 0, str(done)
    assert done.screen.startswith("determinism PASSED\nlevel profile: ")
    idle, load = done.report["phases"]
    assert (idle["num_repeats"], idle["num_unique"], idle["num_rows_other"]) == (3, [1, 1], 0)
    assert (load["num_repeats"], len(load["num_unique"])) == (12, 2)
    assert idle["median_batch"] == 1 < load["median_batch"]


def test_noise_under_load_fails_where_idle_repeats_are_bitwise_alike(acc: Any) -> None:
    done = acc(*DETERMINISM, "--engine", "noisy", "--level", "bitwise")
    assert done.status == 1, str(done)
    idle, load = done.report["phases"]
    assert (idle["num_other"], idle["num_rows_other"]) == (0, 0)
    assert load["num_rows_other"] > 0
    assert any(reason.startswith("load: ") for reason in done.report["reasons"])


def test_a_running_server_is_asked_for_its_texts(acc: Any, server: Serving) -> None:
    done = acc(*DETERMINISM, "--url", server.url, "--dialect", "tgi")
    assert done.status == 0, str(done)
    assert "level text: the same answers" in done.screen
    assert done.report["by"] in ("token", "character")


def test_decoding_agrees_with_prefill(acc: Any) -> None:
    done = acc(*SELFCHECK)
    assert done.status == 0, str(done)
    assert done.screen.startswith("self-check PASSED\nprofile fp32: ")
    cold, hot = done.report["rounds"]
    assert (cold["cache"], cold["hits"], hot["cache"], hot["hits"]) == ("cold", 0.0, "hot", 1.0)
    for each in (cold, hot):
        assert each["num_scored"] == each["num_tokens"] > 6
        assert 0 <= each["k3"] < 1e-8


@pytest.mark.parametrize("engine", ["off_by_one", pytest.param("scaled_cache", marks=pytest.mark.slow)])
def test_a_fault_of_decoding_alone_fails(acc: Any, engine: str) -> None:
    done = acc(*SELFCHECK, "--engine", engine)
    assert done.status == 1, str(done)
    assert done.screen.startswith("self-check FAILED\n  cache cold: estimated KLD (k3)")


def test_a_running_server_is_scored_by_ids(acc: Any, server: Serving) -> None:
    tokenizer = ROOT / "llmbench" / "weights" / "embedded" / "tokenizer.model"
    done = acc(*SELFCHECK, "--url", server.url, "--profile", "fp32", "--tokenizer", tokenizer)
    assert done.status == 0, str(done)
    assert done.report["by"] == "ids"


@pytest.mark.slow
def test_a_running_server_is_scored_by_text(acc: Any, launch: Launch) -> None:
    with launch("--threads", "1") as server:
        done = acc(*SELFCHECK, "--url", server.url, "--profile", "fp32")
    assert done.status == 0, str(done)
    assert done.report["by"] == "text"
    assert done.report["rounds"][0]["num_scored"] > 0


def test_a_stack_gets_a_profile_of_its_own_noise(acc: Any, tmp_path: Path) -> None:
    done = acc(*CALIBRATE, "-o", tmp_path / "own.yaml")
    assert done.status == 0, str(done)
    made = profiles.get(str(tmp_path / "own.yaml"))
    assert {gate.figure: gate.limit for gate in made.gates}["kld_mean"] < 1e-8
    assert "pairs (atol, rtol) with which every value passes: (" in done.screen


@pytest.mark.slow
def test_a_profile_is_kept_by_its_stack_and_not_made_of_a_faulty_one(acc: Any, tmp_path: Path) -> None:
    profile = ROOT / "configs" / "accuracy" / "embedded-float32.yaml"
    for check in (BATCHVAR, SELFCHECK):
        kept = acc(*check, "--profile", profile)
        assert kept.status == 0, str(kept)
    assert acc(*SELFCHECK, "--profile", profile, "--engine", "scaled_cache").status == 1
    noisy = acc(*CALIBRATE, "-o", tmp_path / "own.yaml", "--engine", "noisy")
    assert noisy.status == 3 or noisy.report["stock"] == "failed", str(noisy)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("batchvar", "--batches", "1,2"), "--batches 1,2: different numbers from 2 on"),
        (("batchvar", "--profile", "fp31"), "unknown profile 'fp31'. Did you mean 'fp32'?"),
        (("determinism", "--level", "texts"), "unknown level 'texts'. Did you mean 'text'?"),
        (("determinism", "--url", "http://127.0.0.1:9", "--level", "bitwise"), "--level bitwise: rows are seen of"),
        (("determinism", "--idle", "0", "--load", "0"), "there is nothing to repeat"),
        (("selfcheck", "--profile", "contest"), "it has no limit for the mean KLD"),
        (("selfcheck", "--url", "http://127.0.0.1:9", "--model", "embedded"), "leave them or --url out"),
        (("calibrate", "-o", "{tmp}/profile.txt"), "end it in .yaml"),
        (("calibrate", "-o", "{tmp}/no/profile.yaml"), "there is no folder"),
        (("calibrate", "-o", "{tmp}/profile.yaml", "--batch", "17"), "--batch 17: the stack runs 32 at once"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, [word.format(tmp=tmp_path) for word in words])
    assert result.exit_code != 0
    assert message in str(result.exception) + result.output
