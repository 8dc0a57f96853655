"""`perf --capture`, `acc run` and comparisons of runs as a user makes them: the checked rows are those of the load."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmbench.cli import main
from llmbench.cli._acc_run import exit_code
from llmbench.logits.store import Store
from llmbench.tokenizer import embedded_path
from tests.conftest import ROOT, Serving
from tests.loadgen.conftest import ToyServer

NUM = 32
TINY = ("--model", "random:tiny")
# what a busy machine does to a run of two seconds is no matter of these tests
ALLOW = ("lateness", "stalls", "client-cpu", "coalescing", "drain", "warm-up", "saturation", "ledger-queue", "rate")
BURST = ("--arrivals", "burst", *(word for check in ALLOW for word in ("--allow", check)))


def llmbench(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmbench", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alpaca rows whose answers take some 8 or 16 tokens."""
    rows = [
        {
            "instruction": f"Name {i} things that are red",
            "input": "",
            "output": "an answer of some words, " * (1 + i % 2),
        }
        for i in range(NUM)
    ]
    path = tmp_path_factory.mktemp("data") / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def load(dataset: Path, results: Path, *flags: object) -> tuple[object, ...]:
    """perf's flags: all samples at once, to a stack that is launched."""
    fixed = ("--dataset", dataset, "-n", NUM, "--results", results, "--port", free_port())
    return (*fixed, *BURST, *(TINY if "--model" not in flags else ()), *flags)


def newest(results: Path) -> Path:
    return max(results.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def dump(out: Path, dataset: Path, *flags: object) -> Path:
    done = llmbench("acc", "dump", "-o", out, "-n", NUM, "--dataset", dataset, *flags)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """Each request alone."""
    return dump(tmp_path_factory.mktemp("base") / "rows", dataset, "--tier", "full32", *TINY)


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory, dataset: Path, base: Path) -> Path:
    """A run of `acc run` with up to 32 requests in a batch, valid and passed."""
    results = tmp_path_factory.mktemp("fast")
    done = llmbench("acc", "run", "--base", base, *load(dataset, results, "--concurrency", NUM))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "run VALID, accuracy PASSED"
    return newest(results)


def test_the_checked_rows_are_those_of_the_timed_load_itself(fast: Path, base: Path) -> None:
    """Weaknesses 2, 5 and 20: one run, of which every token was timed and checked."""
    store, found = Store(fast / "rows"), summary(fast)
    own = np.array([request.id != "preflight" for request in store.requests])[store.table["request"]]
    assert {request.id for request in store.requests} == {f"plan-{i:05d}" for i in range(NUM)} | {"preflight"}
    captured = found["captured"]
    assert captured["num_rows"] == own.sum() == len(Store(base))
    assert captured["num_tokens"] == found["summary"]["num_output_tokens"]
    assert sum(count for _, count in captured["batches"]) == own.sum()
    assert captured["batches"][-1][0] == store.table["batch"].max() > NUM // 2
    assert captured["load_batch"] > NUM // 4
    assert captured["share_at_load"] == 1.0
    assert store.manifest.config == json.loads((fast / "server.json").read_text())["config"]
    for name in ("report.txt", "report.md", "report.html"):
        assert f"{own.sum()} rows of logits captured" in (fast / name).read_text()
    told = json.loads((fast / "accuracy.json").read_text())
    assert (told["verdict"], told["profile"], told["num_compared"]) == ("passed", "fp32", int(own.sum()))
    assert {gate["figure"]: gate["verdict"] for gate in told["gates"]}["at_load"] == "passed"
    assert (fast / "accuracy.html").stat().st_size > 5000


def test_a_run_can_be_compared_again_and_be_a_base_itself(fast: Path, base: Path) -> None:
    again = llmbench("acc", "compare", base, fast)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "share of rows at half the load's batch or more: 1 >= 0.9" in again.stdout
    assert "2 rows of requests that the load does not have were left out" in again.stdout  # the preflight's
    back = llmbench("acc", "compare", fast, base, "--profile", "fp32")
    assert back.returncode == 0, back.stdout + back.stderr
    shown = llmbench("acc", "show", fast, "plan-00003", "--step", "2", "--against", base)
    assert "plan-00003, step 2" in shown.stdout


def test_rows_at_batch_1_do_not_stand_for_a_load_at_32_whatever_the_profile(
    fast: Path, base: Path, dataset: Path, tmp_path: Path
) -> None:
    """Weaknesses 1 and 7: the same requests, slowly, beside a fast run's figures."""
    slow = llmbench("perf", "--capture", *load(dataset, tmp_path, "--concurrency", 1))
    run = newest(tmp_path)
    assert "in batches of 1 to 1, median 1" in slow.stdout, slow.stderr
    alone = llmbench("acc", "compare", base, run)
    assert alone.returncode == 0, alone.stdout  # it stands for its own load
    for profile in ("fp32", "bitwise"):
        done = llmbench("acc", "compare", base, run, "--load", fast, "--profile", profile)
        assert done.returncode == 1, done.stdout
        assert "share of rows at half the load's batch or more: 0, at least 0.9 is allowed" in done.stdout
    shutil.copytree(fast, tmp_path / "forged")
    shutil.rmtree(tmp_path / "forged" / "rows")
    shutil.copytree(run / "rows", tmp_path / "forged" / "rows")
    forged = llmbench("acc", "compare", base, tmp_path / "forged")
    assert forged.returncode == 1, forged.stdout


def test_rows_of_another_server_do_not_stand_for_the_load(
    fast: Path, base: Path, dataset: Path, tmp_path: Path
) -> None:
    """Weakness 3: other settings, or other weights, than those that were timed."""
    (tmp_path / "settings.yaml").write_text("limits: {max_batch: 32, max_tokens_per_step: 64}\n")
    measured = llmbench(
        *("perf", "--capture"),
        *load(dataset, tmp_path / "other", "--concurrency", NUM, "--config", tmp_path / "settings.yaml"),
    )
    assert "rows of logits captured" in measured.stdout, measured.stderr
    done = llmbench("acc", "compare", base, newest(tmp_path / "other"), "--load", fast)
    assert done.returncode == 3
    assert "was captured from a server with settings" in done.stderr
    shutil.copytree(fast, tmp_path / "run")
    told = json.loads((fast / "server.json").read_text())
    for field, words in (("fingerprint", "weights"), ("engine_version", "engine version"), ("engine", "engine")):
        (tmp_path / "run" / "server.json").write_text(json.dumps(told | {field: "another"}))
        done = llmbench("acc", "compare", base, tmp_path / "run")
        assert done.returncode == 3
        assert f"was captured from a server with {words} {told[field]}; the load ran with another" in done.stderr


def test_requests_that_end_with_an_error_are_no_successes(base: Path, dataset: Path, tmp_path: Path) -> None:
    """Weakness 8: the run is INVALID, their rows are missing, and nothing of it is a pass."""
    longest = max(request.prompt_len for request in Store(base).requests)
    (tmp_path / "settings.yaml").write_text(f"limits: {{max_prompt_len: {longest - 1}}}\n")
    flags = load(dataset, tmp_path / "r", "--concurrency", 8, "--config", tmp_path / "settings.yaml", "--no-preflight")
    done = llmbench("acc", "run", "--base", base, *flags)
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stdout.startswith("INVALID  ")
    assert done.stdout.splitlines()[-1] == "run INVALID, accuracy NOT COMPARABLE"
    found = json.loads((newest(tmp_path / "r") / "accuracy.json").read_text())
    assert {finding["kind"] for finding in found["findings"]} == {"missing"}


def test_a_share_of_the_rows_lacks_nothing_that_it_was_not_to_have(base: Path, dataset: Path, tmp_path: Path) -> None:
    """Weakness 4: every step may be drawn, and what was drawn and is not there is missing."""
    flags = load(dataset, tmp_path, "--concurrency", 16, "--capture-rate", "0.3", "--capture-seed", "secret")
    done = llmbench("acc", "run", "--base", base, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((newest(tmp_path) / "accuracy.json").read_text())
    assert 0.2 < found["num_compared"] / len(Store(base)) < 0.4
    config = newest(tmp_path) / "config.json"
    asked = json.loads(config.read_text())
    config.write_text(json.dumps(asked | {"capture_rate": 0.5}))
    lacking = llmbench("acc", "compare", base, newest(tmp_path))
    assert lacking.returncode == 3
    assert " missing" in lacking.stdout


def perturbed(folder: Path, by: float, layers: Sequence[int] = (2,), seed: int = 0) -> Path:
    """The embedded model with noise of this size on the weights of some layers."""
    shutil.copytree(embedded_path().parent, folder, ignore=shutil.ignore_patterns("__*"))
    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(seed)
    chosen = [name for name in tensors if any(f".layers.{n}." in name for n in layers)]
    assert chosen
    for name in chosen:
        values = tensors[name].astype(np.float32)
        tensors[name] = values + by * rng.standard_normal(values.shape).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """Each request alone, by the embedded model."""
    return dump(tmp_path_factory.mktemp("embedded") / "rows", dataset, "--tier", "full32")


def test_the_embedded_model_alone_is_itself_bit_by_bit_and_within_fp32_among_32(
    embedded: Path, dataset: Path, tmp_path: Path
) -> None:
    fixed = ("--base", embedded, "-n", NUM, "--dataset", dataset, "--results", tmp_path / "results")
    alone = llmbench("acc", *fixed, "--profile", "bitwise")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "100.0% equal bit by bit" in alone.stdout
    crowd = llmbench("acc", *fixed, "--concurrency", 32, "--profile", "fp32")
    assert crowd.returncode == 0, crowd.stdout + crowd.stderr
    assert "0 after a split of 0 requests" in crowd.stdout
    assert Store(newest(tmp_path / "results") / "rows").table["batch"].max() > 16


def test_one_layer_that_is_off_by_a_thousandth_fails_and_forced_tokens_keep_every_row(
    embedded: Path, dataset: Path, tmp_path: Path
) -> None:
    model = perturbed(tmp_path / "model", 1e-3)
    done = llmbench(
        *("acc", "run", "--base", embedded, "--force"),
        *load(dataset, tmp_path / "results", "--concurrency", 16, "--model", model),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("accuracy FAILED")
    found = json.loads((newest(tmp_path / "results") / "accuracy.json").read_text())
    assert (found["num_after_divergence"], found["num_diverged_requests"]) == (0, 0)
    assert found["num_compared"] == len(Store(embedded))
    assert {gate["figure"] for gate in found["gates"] if gate["verdict"] == "failed"} >= {"kld_mean"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("perf", "--capture", "--url", "{url}"), "Start that server with `llmbench serve --capture DIR`"),
        (
            ("perf", "--capture", "--port", "{port}"),
            "there already: start that one with `llmbench serve --capture DIR`",
        ),
        (("perf", "--capture", "--capture-tier", "top"), "--capture-tier: unknown tier 'top'. Did you mean 'topk'"),
        (("perf", "--capture", "--metrics-url", "off"), "leave --metrics-url out"),
        (("perf", "--force", "{base}"), "--force: the tokens of a base are fed to rows that are captured"),
        (("acc", "run", "--base", "{tmp}/none"), "no capture of logits is there, nor a run that has one"),
        (("acc", "run", "--base", "{base}", "--profile", "fp31"), "--profile: unknown profile 'fp31'"),
        (("acc", "run", "--base", "{base}", "--resume", "{tmp}"), "--resume: not with `acc run`"),
        (("acc", "run", "--base", "{base}", "--url", "{url}"), "--url: not with `acc run`"),
        (("acc", "run", "--base", "{base}", "--qqps", "1"), "No such option: --qqps"),
        (
            ("acc", "run", "--base", "{base}", "-n", "40", "--dataset", "{rows}"),
            "lacks 8 of the 40 requests, plan-00032",
        ),
        (("acc", "dump", "-o", "{tmp}/x", "--tier", "all"), "--tier: unknown tier 'all'"),
        (("acc", "dump", "-o", "{tmp}/x", "--force", "{base}"), "--force: contest files do not say"),
        (
            ("acc", "compare", "{base}", "{tmp}/run"),
            "captured no rows; repeat it with `llmbench perf --capture`",
        ),
    ],
)
def test_wrong_usage_ends_with_status_2_before_anything_is_sent(
    base: Path,
    fast: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(fast / "plan.jsonl.gz", tmp_path / "run")
    with closing(ToyServer(lambda n, body: [])) as toy:
        port = toy.url.rpartition(":")[2]
        given = [word.format(url=toy.url, port=port, base=base, tmp=tmp_path, rows=dataset) for word in words]
        if words[0] == "perf" or words[1] == "run":
            given += ["--results", str(tmp_path / "results"), "--allow", "lateness"]
        monkeypatch.setattr(sys, "argv", ["llmbench", *given])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "results").exists()
    assert not toy.bodies


def test_a_run_that_captured_rows_is_not_taken_up_again(fast: Path) -> None:
    done = llmbench("perf", "--resume", fast)
    assert done.returncode == 2
    assert "it captured rows, and those of what is sent again would be there twice" in done.stderr


def test_the_server_says_what_it_is(server: Serving) -> None:
    from urllib.request import urlopen

    with urlopen(f"{server.url}/identity") as answer:
        told = json.load(answer)
    assert (told["model"], told["engine"], told["dtype"]) == ("random:tiny", "numpy_llama", "float32")
    assert told["pid"] == server.process.pid
    assert tuple(told["agent_pids"]) == server.agent_pids
    assert len(told["config"]) == 16


@pytest.mark.parametrize(
    ("run", "accuracy", "both"),
    [
        (0, 0, 0),
        (3, 0, 3),
        (4, 0, 4),
        (1, 0, 1),
        (0, 1, 1),
        (3, 1, 1),
        (4, 1, 1),
        (0, 3, 3),
        (1, 3, 3),
        (0, 4, 4),
        (3, 4, 3),
    ],
)
def test_a_wrong_row_outweighs_a_run_that_is_not_valid_and_nothing_else_passes(
    run: int, accuracy: int, both: int
) -> None:
    assert exit_code(run, accuracy) == both
