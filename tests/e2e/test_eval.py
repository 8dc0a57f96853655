"""`llmbench eval` as a user runs it: over HTTP and in this process, killed and gone on with, compared."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmbench.tokenizer import embedded_path
from tests.conftest import ROOT, Serving
from tests.contracts.test_evals import SAMPLES
from tests.exam.test_http import completion, response
from tests.loadgen.conftest import Do, ToyServer

Done = subprocess.CompletedProcess[str]
PER_SUBJECT = 4


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "llmbench", "eval", *map(str, words)]


def run(*words: object) -> Done:
    return subprocess.run(command(*words), cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)


def folder(done: Done) -> Path:
    """What the last line of a run names."""
    assert "files: " in done.stdout, done.stdout + done.stderr
    return Path(done.stdout.rpartition("files: ")[2].strip())


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of items.jsonl by id."""
    found = [json.loads(line) for line in (path / "items.jsonl").read_text().splitlines()[1:]]
    assert len({row["id"] for row in found}) == len(found), "no item is asked twice"
    return {row["id"]: row for row in found}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with Serving("--threads", "1", log=tmp_path_factory.mktemp("server") / "log") as serving:
        yield serving.wait_until_ready()


@pytest.fixture(scope="module")
def over_http(server: Serving, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Some questions of every subject, 16 at once."""
    results = tmp_path_factory.mktemp("http")
    flags = ("--url", server.url, "-c", 16, "--limit", PER_SUBJECT, "--min-accuracy", 0.9)
    return run("mmlu", *flags, "--results", results)


def test_the_embedded_model_answers_nine_of_ten_over_http(over_http: Done) -> None:
    assert over_http.returncode == 0, over_http.stdout + over_http.stderr
    assert over_http.stdout.startswith("mmlu PASSED\nright: ")
    path = folder(over_http)
    summary = json.loads((path / "summary.json").read_text())
    micro = summary["results"]["micro"]
    assert micro["accuracy"] >= 0.9
    assert micro["num_items"] == 7 * PER_SUBJECT
    assert summary["header"]["protocol"]["split"] == "val"
    assert {entry.name for entry in path.iterdir()} == {
        "config.json", "environment.json", "items.jsonl", "cache.csv", "summary.json", "summary_subject_acc.json",
        "summary_classes_acc.json",
    }  # fmt: skip
    assert json.loads((path / "summary_classes_acc.json").read_text())["Avg"] == micro["accuracy"]
    cache = [line.split(",") for line in (path / "cache.csv").read_text().splitlines()]
    assert [int(line[0]) for line in cache] == list(range(7 * PER_SUBJECT))
    assert sum(line[2] == line[3] for line in cache) == micro["num_right"]


def test_in_this_process_every_answer_is_the_same(over_http: Done, tmp_path: Path) -> None:
    done = run("mmlu", "--offline", "--limit", PER_SUBJECT, "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    here, there = rows(folder(done)), rows(folder(over_http))
    assert here.keys() == there.keys()
    for name, row in here.items():
        assert (row["replies"], row["predicted"]) == (there[name]["replies"], there[name]["predicted"]), name
    compared = run("compare", folder(over_http), folder(done))
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.startswith("eval THE SAME ANSWERS\n")


@pytest.mark.parametrize("mode", ["regex", "logprob"])
def test_the_other_modes_find_the_same_letters(over_http: Done, server: Serving, tmp_path: Path, mode: str) -> None:
    flags = ("--limit", 1, "--mode", mode, "--results", tmp_path)
    letters = []
    for how in (("--offline",), ("--url", server.url)):
        done = run("mmlu", *flags, *how)
        assert done.returncode == 0, done.stderr
        letters.append({name: row["predicted"] for name, row in rows(folder(done)).items()})
    assert letters[0] == letters[1]
    first = {name: row["predicted"] for name, row in rows(folder(over_http)).items() if name in letters[0]}
    assert letters[0] == first


def test_the_contests_dialect_does_as_well(server: Serving, tmp_path: Path) -> None:
    done = run("mmlu", "--url", server.url, "--dialect", "contest", "--limit", 1, "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder(done) / "summary.json").read_text())["results"]["micro"]["accuracy"] == 1.0


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_result(
    over_http: Done, server: Serving, tmp_path: Path
) -> None:
    flags = ("mmlu", "--url", server.url, "-c", 2, "--limit", PER_SUBJECT)
    process = subprocess.Popen(command(*flags, "--results", tmp_path), cwd=ROOT, stderr=subprocess.PIPE)
    lines = 0
    while lines < 1 + 8:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
        lines = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*-mmlu/items.jsonl"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (path,) = tmp_path.iterdir()
    answered = (path / "items.jsonl").read_bytes().count(b"\n") - 1
    assert 8 <= answered < 7 * PER_SUBJECT, "it was not killed in the middle"
    assert not (path / "summary.json").exists()
    done = run(*flags, "--resume", path)
    assert done.returncode == 0, done.stderr
    assert f"{answered} of them answered before" in done.stderr
    ours, whole = rows(path), rows(folder(over_http))
    assert {name: row | {"key": ""} for name, row in ours.items()} == {
        name: row | {"key": ""} for name, row in whole.items()
    }
    assert (path / "cache.csv").read_bytes() == (folder(over_http) / "cache.csv").read_bytes()
    results = [json.loads((p / "summary.json").read_text())["results"] for p in (path, folder(over_http))]
    assert results[0] == results[1]


def test_without_a_server_the_bundled_stack_is_launched_and_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    done = run("mmlu", "--limit", 1, "--subject", "plain_work", "--json", "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"]["num_items"] == 1
    assert "launching the bundled stack" in done.stderr
    assert "our own stand-in for MMLU" in done.stderr


@pytest.mark.parametrize(("name", "mode"), [("boolq", "logprob"), ("boolq", "next"), ("gsm8k", None), ("ceval", None)])
def test_the_other_sets_give_the_same_over_http_and_here(
    server: Serving, tmp_path: Path, name: str, mode: str | None
) -> None:
    flags = ["--data", SAMPLES / name, "--max-new-tokens", 8, "--results", tmp_path]
    flags += ["--mode", mode] if mode else []
    found = []
    for how in (("--offline",), ("--url", server.url)):
        done = run(name, *flags, *how)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append({key: (row["predicted"], row["replies"]) for key, row in rows(folder(done)).items()})
        assert (folder(done) / "summary.json").is_file()
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_truthfulqas_numbers_are_the_same_over_http_and_here(server: Serving, tmp_path: Path) -> None:
    flags = ("--data", SAMPLES / "truthfulqa", "--results", tmp_path)
    metrics = []
    for how in (("--offline",), ("--url", server.url)):
        done = run("truthfulqa", *flags, *how)
        assert done.returncode == 0, done.stdout + done.stderr
        metrics.append(json.loads((folder(done) / "summary.json").read_text())["results"]["metrics"])
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)
    assert metrics[0].keys() == {"mc1", "mc2", "mc3"}


def test_humaneval_keeps_completions_and_runs_them_with_leave_only(tmp_path: Path) -> None:
    solution = json.loads((SAMPLES / "humaneval" / "HumanEval.jsonl").read_text().splitlines()[0])
    flags = ("humaneval", "--data", SAMPLES / "humaneval", "--results", tmp_path)
    with closing(ToyServer(lambda _, __: completion(solution["canonical_solution"]))) as toy:
        kept = run(*flags, "--url", toy.url)
        ran = run(*flags, "--url", toy.url, "--allow-exec")
    assert kept.returncode == 0, kept.stderr
    assert "whether they are right was not determined" in kept.stdout
    lines = [json.loads(line) for line in (folder(kept) / "samples.jsonl").read_text().splitlines()]
    assert [line["task_id"] for line in lines] == ["HumanEval/0", "HumanEval/1"]
    assert ran.returncode == 0, ran.stderr
    assert {key: row["predicted"] for key, row in rows(folder(ran)).items()} == {
        "HumanEval/0": "passed",
        "HumanEval/1": "failed",
    }


def test_questions_that_are_not_answered_make_the_run_invalid_and_can_be_asked_again(tmp_path: Path) -> None:
    data = ("mmlu", "--data", SAMPLES / "mmlu", "--split", "test", "--subject", "abstract_algebra", "-c", 1)
    refused = response({"error": {"message": "out of order"}}, "500 Internal Server Error")
    with closing(ToyServer(lambda n, _: refused if n == 3 else completion(" B"))) as toy:
        done = run(*data, "--url", toy.url, "--results", tmp_path)
        assert done.returncode == 3
        assert done.stdout.startswith("mmlu INVALID\n")
        assert (
            "1 questions were not answered and are not counted; the first, abstract_algebra/3: HTTP 500" in done.stdout
        )
        assert len(toy.bodies) == 10
        again = run(*data, "--url", toy.url, "--resume", folder(done))
        assert again.returncode == 0, again.stderr
        assert len(toy.bodies) == 10 + 3 + 1, (
            "the one that is missing, behind three that show that it is the same server"
        )
    assert len(rows(folder(done))) == 10


def test_a_server_with_another_model_behind_the_same_name_is_not_gone_on_with(tmp_path: Path) -> None:
    data = ("mmlu", "--data", SAMPLES / "mmlu", "--split", "test", "--limit", 2)
    said = [" B"]
    with closing(ToyServer(lambda n, _: completion(said[0]))) as toy:
        done = run(*data, "--url", toy.url, "--results", tmp_path)
        said[0] = " C"
        before = (folder(done) / "items.jsonl").read_bytes()
        again = run(*data, "--url", toy.url, "--resume", folder(done))
    assert again.returncode == 3
    assert "asked again, the server answers abstract_algebra/0, " in again.stderr
    assert (folder(done) / "items.jsonl").read_bytes() == before


def test_too_few_right_answers_fail_with_status_1_and_a_worse_run_does_too(tmp_path: Path) -> None:
    data = ("mmlu", "--data", SAMPLES / "mmlu", "--split", "test", "--results", tmp_path)
    truths = "BBCCCBCBAA" + "BAABAAAAAC"
    with closing(ToyServer(lambda n, _: completion(f" {truths[n]}" if n < 20 else " D"))) as toy:
        good = run(*data, "--url", toy.url, "-c", 1, "--min-accuracy", 1)
        bad = run(*data, "--url", toy.url, "-c", 1, "--min-accuracy", 0.5)
    assert good.returncode == 0, good.stdout
    assert bad.returncode == 1
    assert bad.stdout.startswith("mmlu FAILED\nright: 0.00%, wanted 50.00%")
    worse = run("compare", folder(good), folder(bad))
    assert worse.returncode == 1
    assert worse.stdout.startswith("eval WORSE\n")
    assert "20 right before and wrong now, 0 the other way" in worse.stdout
    assert "  abstract_algebra/0: B is right; before B, now D" in worse.stdout
    told = json.loads(run("compare", folder(good), folder(bad), "--json").stdout)
    assert (told["verdict"], len(told["flips"])) == ("worse", 20)


def test_runs_of_other_questions_are_not_comparable(over_http: Done, tmp_path: Path) -> None:
    with closing(ToyServer(lambda _, __: completion(" B"))) as toy:
        other = run("mmlu", "--data", SAMPLES / "mmlu", "--split", "test", "--url", toy.url, "--results", tmp_path)
    done = run("compare", folder(over_http), folder(other))
    assert done.returncode == 3
    assert "other protocols" in done.stderr


def test_the_list_names_every_set_with_its_modes() -> None:
    done = run("list")
    assert done.returncode == 0
    for name in ("boolq", "ceval", "gsm8k", "humaneval", "mmlu", "truthfulqa"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mmmlu",), "No such command 'mmmlu'"),
        (("mmlu", "--mode", "magic"), "--mode magic: mmlu has first_letter, regex, logprob"),
        (("mmlu", "--subject", "plain_wrok"), "Did you mean 'plain_work'?"),
        (("mmlu", "--data", "/no/such"), "--data /no/such: there is no such folder"),
        (("gsm8k",), "name the set's folder with --data"),
        (("mmlu", "--offline", "--url", "http://x"), "leave one out"),
        (("mmlu", "--url", "http://127.0.0.1:9", "--model", "embedded"), "for a stack that is launched"),
        (("mmlu", "--resume", "/no/such"), "there is no items.jsonl in it"),
        (("mmlu", "--min-accuracy", "90"), "must be a share, from 0 to 1"),
        (("mmlu", "--offline", "--model", "random:tinny"), "tinny"),
        (("compare", "/no/such", "/no/such"), "cannot read the answers"),
    ],
)
def test_wrong_usage_ends_with_status_2(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run(*words, *(("--results", tmp_path) if words[0] in ("mmlu", "gsm8k") else ()))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_dialect_that_cannot_tell_log_probabilities_is_wrong_usage(server: Serving, tmp_path: Path) -> None:
    flags = ("--dialect", "tgi", "--mode", "logprob", "--limit", 1, "--results", tmp_path)
    done = run("mmlu", "--url", server.url, *flags)
    assert done.returncode == 2
    assert "the tgi dialect cannot ask for num_logprobs" in done.stderr


def test_ctrl_c_keeps_what_was_answered_and_says_how_to_go_on(tmp_path: Path) -> None:
    data = ("mmlu", "--data", SAMPLES / "mmlu", "--split", "test", "-c", 1, "--results", tmp_path)
    with closing(ToyServer(lambda n, _: completion(" B") if n < 3 else [Do.STALL])) as toy:
        process = subprocess.Popen(command(*data, "--url", toy.url), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while len(toy.bodies) < 4:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    (path,) = tmp_path.iterdir()
    assert process.returncode == 130
    assert f"interrupted; go on with --resume {path}" in errors
    assert "Traceback" not in errors
    assert len(rows(path)) == 3


def test_a_damaged_copy_of_the_model_is_worse_and_is_not_mixed_with_the_whole_one(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(embedded_path().parent / name, damaged / name)
    tensors = load_file(embedded_path().parent / "model.safetensors")
    layer = tensors["model.layers.3.mlp.down_proj.weight"]
    noise = 8 * layer.std() * np.random.default_rng(0).standard_normal(layer.shape)
    tensors["model.layers.3.mlp.down_proj.weight"] = (layer + noise).astype(np.float16)
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    flags = ("--offline", "--limit", PER_SUBJECT, "--results", tmp_path / "results")
    whole, broken = run("mmlu", *flags), run("mmlu", *flags, "--model", damaged)
    assert (whole.returncode, broken.returncode) == (0, 0), broken.stderr
    compared = run("compare", folder(whole), folder(broken))
    assert compared.returncode == 1, compared.stdout
    assert compared.stdout.startswith("eval WORSE\n")
    mixed = run("mmlu", *flags, "--model", damaged, "--resume", folder(whole))
    assert mixed.returncode == 3
    assert "begun with fingerprint" in mixed.stderr
