"""What is typed wrong is refused before anything is launched: one line that names it, and exit status 2."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmbench.cli import app
from llmbench.errors import InputError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("perf", "-n", 0), "--num-requests: from 1 to 10,000,000, got 0"),
        (("perf", "-n", -3), "--num-requests: from 1 to 10,000,000, got -3"),
        (("perf", "-X", 1e9, "-T", 1e9), "--num-requests: from 1 to 10,000,000, got 1,000,000"),
        (("perf", "--name", "a/b"), "--name a/b: "),
        (("acc", "dump", "-o", "file"), "-o file: not a folder but a file"),
        (("acc", "--base", "empty"), "empty: there are no rows of logits in it"),
        (("data", "make", "--folder", "file"), "--folder file: cannot make this folder (File exists)"),
        (("serve", "--host", "no-such-host.invalid"), "choose an address of this machine with --host"),
        (("serve", "--step-time", -1), "step_time_s: must be 0 or more, got -1"),
        (("serve", "--tokenizer", "missing"), "missing: cannot read the tokenizer"),
        (("generate", "hello", "--tokenizer", "missing"), "missing: cannot read the tokenizer"),
        (("eval", "mmlu", "--tokenizer", "missing"), "missing: cannot read the tokenizer"),
        (("maxload", "--slo", "ttft:p99<500ms", "--start", 5000), "--start 5000: "),
    ],
)
def test_it_is_refused_with_the_place_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    done = CliRunner().invoke(app(), [str(word) for word in words])
    assert isinstance(done.exception, InputError), done.output
    assert done.exception.exit_code == 2
    assert what in str(done.exception)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("words", [("weights", "inspect"), ("serve", "--model"), ("acc", "dump", "-n", 1, "-o")])
def test_a_path_that_the_system_refuses_to_look_at_is_named_without_a_traceback(words: tuple[object, ...]) -> None:
    """As a folder that may not be entered, of which root knows none; too long a name is refused to everybody."""
    path = "a" * 300
    done = subprocess.run(
        [sys.executable, "-m", "llmbench", *map(str, words), path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"llmbench: {path}: File name too long\n"
