"""HumanEval: completions are cut and kept; code runs only with leave, shut in, and for a short time."""

import gzip
import json
import socket
import time
from pathlib import Path

import pytest

from llmbench import evals
from llmbench.evals import Eval, Marked, Options, Reply, _confined
from llmbench.evals.humaneval import cut, pass_at_k
from tests.contracts.test_evals import SAMPLES

FOLDER = SAMPLES / "humaneval"
RIGHT, WRONG = "    return number + number\n\nprint(1)", "    return number\n"


def chosen(allow_exec: bool) -> Eval:
    return evals.get("humaneval", Options(allow_exec=allow_exec, count_tokens=len))


def test_nothing_runs_unless_it_may(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    evaluation = chosen(False)
    mark = evaluation.mark(evaluation.items(FOLDER)[0], [Reply(text=f"    open({str(touched)!r}, 'w')\n")])
    assert mark.correct is None
    assert not touched.exists()


def test_with_leave_the_tests_decide() -> None:
    evaluation = chosen(True)
    item = evaluation.items(FOLDER)[0]
    for text, outcome in ((RIGHT, "passed"), (WRONG, "failed"), ("    return (", "failed")):
        mark = evaluation.mark(item, [Reply(text=text)])
        assert (mark.predicted, mark.correct) == (outcome, outcome == "passed")


def test_the_canonical_solutions_pass() -> None:
    evaluation = chosen(True)
    lines = [json.loads(line) for line in (FOLDER / "HumanEval.jsonl").read_text().splitlines()]
    for item, line in zip(evaluation.items(FOLDER), lines, strict=True):
        assert evaluation.mark(item, [Reply(text=line["canonical_solution"])]).correct


def test_runs_with_and_without_leave_are_other_protocols() -> None:
    assert chosen(True).protocol != chosen(False).protocol


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("    return 1\n\n    # more\nprint(2)\n    x", "    return 1\n\n    # more"),
        ("    return 1", "    return 1"),
        ("\treturn 1\n\n\ndef other():\n    pass", "\treturn 1\n\n"),
        ("pass\n    x = 1\n", "pass\n    x = 1\n"),
        ("", ""),
    ],
)
def test_a_completion_ends_before_its_first_line_that_is_not_indented(completion: str, kept: str) -> None:
    assert cut(completion) == kept


def test_the_samples_file_is_what_openais_harness_reads() -> None:
    row = Marked(
        number=0, id="HumanEval/0", group="humaneval", category="humaneval", truth="passed", predicted="-1",
        correct=None, replies=[RIGHT], prompt_sha256="", key="",
    )  # fmt: skip
    (line,) = chosen(False).files([row])["samples.jsonl"].decode().splitlines()
    assert json.loads(line) == {"task_id": "HumanEval/0", "completion": "    return number + number\n"}


def test_the_gzipped_file_is_read_as_well(tmp_path: Path) -> None:
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress((FOLDER / "HumanEval.jsonl").read_bytes()))
    assert chosen(False).items(tmp_path) == chosen(False).items(FOLDER)


@pytest.mark.parametrize(
    ("n", "c", "k", "wanted"), [(10, 3, 1, 0.3), (5, 5, 2, 1.0), (4, 2, 2, 1 - 1 / 6), (3, 0, 1, 0.0)]
)
def test_pass_at_k_by_hand(n: int, c: int, k: int, wanted: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(wanted)


# -- shut in -----------------------------------------------------------------------------------------------------------


def test_a_program_that_does_not_end_is_stopped() -> None:
    started = time.monotonic()
    assert _confined.run("while True: pass", 0.5) == "timed out"
    assert _confined.run("import time; time.sleep(60)", 0.5) == "timed out"
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "print('passed')\nraise ValueError",
        "x = bytearray(4 << 30)",
        "open('big', 'wb').write(bytes(8 << 20))",
        "import os; os.write(1, b'passed'); os._exit(0)",
        "syntax error",
    ],
)
def test_a_program_that_does_not_come_to_its_end_has_not_passed(program: str) -> None:
    assert _confined.run(program, 5.0) == "failed"


def test_a_program_sees_no_environment_and_an_empty_folder() -> None:
    program = "import os\nassert not os.environ.keys() - {'LC_CTYPE'}, os.environ\nassert os.listdir('.') == []"
    assert _confined.run(program, 5.0) == "passed"


def test_a_program_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert _confined.run("open('left', 'w').write('x')", 5.0) == "passed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not _confined.network_is_cut(), reason="this system gives no network namespaces to users")
def test_a_program_reaches_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connect = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        assert _confined.run(connect, 5.0) == "failed"
