"""`llmbench generate` as a user runs it: prompts from everywhere, answers on the screen and in files, speeds apart."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmbench import LLM
from llmbench.cli._generate import prompts
from llmbench.errors import InputError
from tests.conftest import ROOT

Done = subprocess.CompletedProcess[str]
BALL = "Answer in one word. What kind of thing is football?"


def run(*words: object, stdin: str = "") -> Done:
    command = [sys.executable, "-m", "llmbench", "generate", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, text=True, check=False, timeout=100, env=os.environ
    )


def test_one_prompt_is_answered_on_stdout_and_the_speeds_are_on_stderr() -> None:
    done = run(BALL, "--max-new-tokens", 8)
    assert (done.returncode, done.stdout) == (0, "sport\n")
    assert re.match(r"1 answer: prefill \d+ tokens in [\d.]+ .?s \([\d,.]+ tokens/s\), decode 1 token in ", done.stderr)
    assert "; loaded in " in done.stderr
    assert "compiled" not in done.stderr, "NumPy compiles nothing"


def test_several_prompts_come_in_their_order_and_as_lines_of_a_file(tmp_path: Path) -> None:
    asked = tmp_path / "prompts.jsonl"
    asked.write_text(json.dumps({"ask": BALL}) + "\n\n" + json.dumps({"ask": "Name the capital", "n": 1}) + "\n")
    out = tmp_path / "answers.jsonl"
    done = run("Hello", "--file", asked, "--field", "ask", "--batch-size", 2, "--out", out, "--max-new-tokens", 12)
    assert done.returncode == 0, done.stderr
    lines = {line["index"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert sorted(lines) == [0, 1, 2]
    texts = [lines[n]["answer"]["text"] for n in range(3)]
    assert done.stdout == "".join(f"[{n}] {text}\n" for n, text in enumerate(texts, 1))
    assert texts[1] == "sport"
    assert lines[1]["prompt"] == BALL
    assert lines[1]["answer"]["finish_reason"] == "eos"
    with LLM("embedded") as llm:
        assert [answer.text for answer in llm.generate(["Hello", BALL, "Name the capital"], 12)] == texts


def test_json_has_answers_and_speeds_apart() -> None:
    done = run("-", "--json", "--max-new-tokens", 5, "--ignore-eos", "--model", "random:tiny", stdin="Hello\nthere\n")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (line,) = told["answers"]
    assert line["prompt"] == "Hello\nthere"
    assert (line["answer"]["finish_reason"], len(line["answer"]["token_ids"])) == ("length", 5)
    speed = told["speed"]
    assert (speed["num_prompt_tokens"], speed["num_decoded_tokens"]) == (len(line["answer"]["prompt_token_ids"]), 4)
    assert told["decode_tokens_per_s"] == pytest.approx(4 / speed["decode_s"])
    assert told["compiled_s"] == 0
    assert done.stderr == ""


def test_text_on_stdin_is_a_prompt_a_line_and_echo_prints_them() -> None:
    done = run("--file", "-", "--echo", "--quiet", "--max-new-tokens", 4, stdin=f"{BALL}\r\n\nHello\n")
    assert done.returncode == 0, done.stderr
    first, _, second = done.stdout.partition("\n")
    assert first == f"[1] {BALL} sport"
    assert second.startswith("[2] Hello")
    assert done.stderr == ""


def test_a_seed_draws_the_same_again_and_stop_texts_end_answers() -> None:
    drawn = ("I love Beijing, because", "--model", "random:tiny", "--do-sample", "--top-k", 3, "--top-p", 0.9)
    first, again, other = (run(*drawn, "--max-new-tokens", 12, "--seed", seed) for seed in (5, 5, 6))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout != other.stdout
    stop = first.stdout[6:9]
    cut = run(*drawn, "--max-new-tokens", 12, "--seed", 5, "--stop", stop)
    assert cut.stdout == first.stdout[: first.stdout.index(stop)] + "\n"


def test_a_reader_that_leaves_changes_nothing(tmp_path: Path) -> None:
    command = (
        f"{sys.executable} -m llmbench generate Hello --model random:tiny --ignore-eos; echo $? >{tmp_path}/status"
    )
    done = subprocess.run(
        ["bash", "-c", f"({command}) | head -c 1"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert (tmp_path / "status").read_text() == "0\n", done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no prompt: give one as an argument, several with --file, or - for stdin"),
        (("Hello", "--engine", "numpy_lama"), "Did you mean 'numpy_llama'"),
        (("Hello", "--top-k", 3), "top_k: has no effect where the likeliest token is taken"),
        (("Hello", "--max-new-tokens", 100_000), "are more than the"),
        (("Hello", "--out", "/nowhere/x.jsonl"), "--out /nowhere/x.jsonl: cannot write there"),
        (("Hello", "--chat"), "it has no chat template; leave --chat out"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(words: tuple[object, ...], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("llmbench: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "line 2: not JSON"),
        ("x.jsonl", b'{"question": "a"}\n', "line 1: no text in field 'prompt'; name another one with --field"),
        ("x.jsonl", b'{"prompt": 5}\n', "line 1: no text in field 'prompt'"),
        ("x.jsonl", b'["prompt"]\n', "line 1: no text in field 'prompt'"),
        ("x.txt", b"\xff\xfe", "not UTF-8 text"),
        ("x.txt", b"\n\n", "no prompt: give one"),
        ("x.txt", None, "cannot read it"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        prompts([], tmp_path / name, "prompt")
    assert said in str(caught.value)


def test_stdin_can_be_read_once() -> None:
    with pytest.raises(InputError, match="stdin can be read once"):
        prompts(["-"], Path("-"), "prompt")
