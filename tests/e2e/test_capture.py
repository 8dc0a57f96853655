"""`llmbench serve --capture` and `acc compare` as a user runs them: the same requests, one at a time and 16 at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmbench import protocols
from llmbench.accuracy import replay
from llmbench.logits import policy
from llmbench.logits.policy import Policy
from llmbench.logits.store import Store, Tier
from llmbench.serving.launch import launched
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload.plan import Plan, Turn
from tests.conftest import ROOT, Launch, poll

NUM_REQUESTS = 10


def plan() -> Plan:
    tokenizer = Tokenizer.from_file(embedded_path())
    samples = [
        Turn(prompt=f"Name {i} things that are red", output=f"an answer of {'some ' * (i % 4)}words")
        for i in range(NUM_REQUESTS)
    ]
    return replay.plan(samples, "made up", NUM_REQUESTS, tokenizer)


def captured(folder: Path, concurrency: int, tier: Tier, *flags: object) -> Path:
    """A capture of the same requests."""
    words = ["--model", "random:tiny", "--capture", str(folder), "--capture-tier", tier, *map(str, flags)]
    with launched(words) as server:
        replay.replay(plan(), server.url, protocols.get("contest"), concurrency, folder.with_suffix(".jsonl"))
    return folder


def acc(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmbench", "acc", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captured(tmp_path_factory.mktemp("base") / "rows", 1, "full32")


@pytest.mark.parametrize("tier", ["topk", "full32"])
def test_the_same_requests_16_at_once_pass_in_float32(base: Path, tmp_path: Path, tier: Tier) -> None:
    new = captured(tmp_path / "new", 16, tier)
    done = acc("compare", base, new, "--profile", "fp32", "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("accuracy PASSED\n")
    assert len(done.stdout.splitlines()) <= 25
    assert (tmp_path / "page.html").stat().st_size > 5000
    store = Store(new)
    assert len({request.id for request in store.requests}) == NUM_REQUESTS
    assert store.table["batch"].max() > 1
    assert (store.table["prefix"] != 0).all()
    assert sorted(set(store.table["step"][store.table["prefill"] == 1].tolist())) == [0]
    manifest = store.manifest
    assert (manifest.model, manifest.dtype, manifest.tier) == ("random:tiny", "float32", tier)
    assert all((manifest.fingerprint, manifest.tokenizer, manifest.config, manifest.engine_version))
    assert manifest.config == Store(base).manifest.config  # the load was another one, the settings were not


def test_other_weights_fail_and_a_row_can_be_shown(base: Path, tmp_path: Path) -> None:
    words = ["--model", "random:tiny,seed=1", "--capture", str(tmp_path / "new")]
    with launched(words) as server:
        replay.replay(plan(), server.url, protocols.get("contest"), 4, tmp_path / "journal.jsonl")
    done = acc("compare", base, tmp_path / "new")
    assert done.returncode == 1, done.stdout + done.stderr
    request = Store(base).requests[0].id
    shown = acc("show", base, request, "--step", 0, "--against", tmp_path / "new")
    assert shown.returncode == 0, shown.stderr
    assert f"{request}, step 0, index " in shown.stdout


def test_a_share_of_the_rows_can_be_changed_while_the_stack_serves(launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    flags = ("--model", "random:tiny", "--capture", str(folder), "--capture-rate", "0.5", "--capture-seed", "s")
    with launch(*flags) as server:
        replay.replay(plan(), server.url, protocols.get("contest"), 4, tmp_path / "first.jsonl")
        half = Store(folder)
        share = Policy(rate=0.5, seed="s")
        assert policy.read(folder) == share
        assert 0 < len(half) < 200
        for row in half.table:
            assert share.wants(half.requests[row["request"]].id, int(row["step"]), int(row["position"]))
        policy.write(folder, policy.NOTHING)
        os.utime(folder / policy.FILE, ns=(1, 1))
        assert poll(lambda: _stays(folder, server.url, tmp_path))


def _stays(folder: Path, url: str, tmp_path: Path) -> bool:
    """Whether another round of requests leaves no row."""
    before = len(Store(folder))
    replay.replay(plan(), url, protocols.get("contest"), 4, tmp_path / f"more-{before}.jsonl")
    return len(Store(folder)) == before


def test_an_agent_that_is_killed_leaves_whole_rows_and_the_next_one_goes_on(launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    with launch("--model", "random:tiny", "--capture", str(folder), "--capture-tier", "full32") as server:
        first_run = replay.replay(plan(), server.url, protocols.get("contest"), 4, tmp_path / "first.jsonl")
        num_rows = sum(record.num_tokens for record in first_run.records)
        assert poll(lambda: len(Store(folder)) == num_rows)  # the last ones are written when the agent has time
        os.kill(server.agent_pid, signal.SIGKILL)
        assert poll(lambda: "is ready" in server.log)
        replay.replay(plan(), server.url, protocols.get("contest"), 4, tmp_path / "second.jsonl")
    store = Store(folder)
    assert len(store) == 2 * num_rows > 0
    assert not len(store.damaged())
    rows = np.empty((2, store.vocab_size), np.float32)
    first = store.requests[0].id
    store.read(store.find(first, 0), rows)
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--capture", "{tmp}/x", "--capture-tier", "everything"), "capture.tier"),
        (("--capture", "{tmp}/x", "--capture-rate", "2"), "capture.rate: must be from 0 to 1, got 2.0"),
        (("--capture", "{tmp}"), "it holds something that is no capture; choose a new folder"),
    ],
)
def test_a_capture_that_cannot_be_is_refused(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    (tmp_path / "thesis.txt").touch()
    words = [word.format(tmp=tmp_path) for word in flags]
    command = [sys.executable, "-m", "llmbench", "serve", "--port", "0", "--model", "random:tiny", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
