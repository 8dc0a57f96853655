"""`acc bisect` and `acc threeway` as a user runs them, on what `serve --capture` wrote."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from llmbench import protocols
from llmbench.accuracy import replay
from llmbench.logits.store import Store
from llmbench.serving.launch import launched
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload.plan import Turn
from tests.accuracy.models import embedded, perturbed
from tests.conftest import ROOT


class Captures(NamedTuple):
    """The embedded model, the same again at another concurrency, and a copy with one matrix off by a thousandth."""

    base: Path
    again: Path
    off: Path
    copy: Path


def acc(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmbench", "acc", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)


def capture(folder: Path, model: str, concurrency: int) -> Path:
    samples = [Turn(prompt=f"Name {i} things that are red", output="a rose and an apple") for i in range(6)]
    plan = replay.plan(samples, "made up", len(samples), Tokenizer.from_file(embedded_path()))
    words = ["--model", model, "--threads", "1", "--capture", str(folder), "--capture-tier", "full16"]
    with launched(words) as server:
        replay.replay(plan, server.url, protocols.get("contest"), concurrency, folder.with_suffix(".jsonl"))
    return folder


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Captures:
    folder = tmp_path_factory.mktemp("captures")
    copy = perturbed(folder / "copy", embedded(), "model.layers.3.mlp.up_proj.weight")
    return Captures(
        base=capture(folder / "base", "embedded", 1),
        again=capture(folder / "again", "embedded", 4),
        off=capture(folder / "off", copy.name, 4),
        copy=folder / "copy",
    )


def test_a_layer_that_is_off_by_a_thousandth_is_caught_and_named(captures: Captures, tmp_path: Path) -> None:
    caught = acc("threeway", captures.off, "--model", "embedded", "--threads", 1, "--json", tmp_path / "three.json")
    assert caught.returncode == 1, caught.stdout + caught.stderr
    assert "FAILED: the target's errors are" in caught.stdout
    assert "was captured from other weights" in caught.stdout
    assert json.loads((tmp_path / "three.json").read_text())["sigma_ratio"] > 20
    named = acc("bisect", captures.base, captures.off, "--threads", 1, "--json", tmp_path / "found.json")
    assert named.returncode == 1, named.stdout + named.stderr
    assert "FOUND: layer 3, mlp; all others are within their noise" in named.stdout
    assert "-er " in named.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["verdict"], found["part"]) == ("part", "layers.3.mlp")
    assert found["repro"].startswith(f"llmbench acc bisect {captures.base} {captures.off} --request ")
    again = acc(*found["repro"].split()[2:], "--threads", 1)
    assert again.returncode == 1, again.stdout + again.stderr
    assert "FOUND: layer 3, mlp" in again.stdout


def test_the_same_weights_pass_at_another_concurrency(captures: Captures) -> None:
    passed = acc("threeway", captures.again, "--threads", 1)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert "PASSED: the target's errors are" in passed.stdout
    assert "note:" not in passed.stdout
    nothing = acc("bisect", captures.base, captures.again, "--threads", 1)
    assert nothing.returncode == 0, nothing.stdout + nothing.stderr
    assert "NOTHING FOUND" in nothing.stdout or "nothing to look for" in nothing.stdout


def test_two_models_and_a_prompt_need_no_captures(captures: Captures) -> None:
    words = ("bisect", "--base-model", "embedded", "--prompt", "What do bees make?", "--threads", 1)
    named = acc(*words, "--new-model", captures.copy)
    assert named.returncode == 1, named.stdout + named.stderr
    assert "FOUND: layer 3, mlp" in named.stdout
    nothing = acc(*words, "--new-model", "embedded", "--num-new", 0)
    assert nothing.returncode == 0, nothing.stdout + nothing.stderr


def test_a_model_with_other_weights_than_the_captures_is_named(captures: Captures) -> None:
    done = acc("bisect", captures.base, captures.off, "--new-model", "embedded", "--profile", "bitwise", "--threads", 1)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"note: {captures.off} was captured from {captures.copy} with weights" in done.stdout
    assert "NOT REPRODUCED" in done.stdout
    assert "acc batchvar" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bisect",), "--base-model: without two captures, both models are to be given"),
        (("bisect", "results"), "one capture only: give BASE and NEW"),
        (("bisect", "--base-model", "embedded", "--new-model", "embedded"), "--prompt: without two captures"),
        (("threeway", "results"), "results: no capture of logits is there, and no engine has that name"),
        (("threeway", "numpy_lama"), "Did you mean 'numpy_llama'"),
    ],
)
def test_what_is_missing_is_said_and_is_wrong_usage(words: tuple[str, ...], message: str) -> None:
    done = acc(*words)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


def test_the_prompts_of_a_capture_are_whole(captures: Captures) -> None:
    for request in Store(captures.base).requests:
        assert len(request.ids) == request.prompt_len
        assert request.ids[: len(request.head)] == request.head
