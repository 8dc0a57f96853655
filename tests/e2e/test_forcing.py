"""Teacher forcing through the real stack: another model is fed the base's tokens, and every row stays comparable."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmbench.logits.store import Store
from tests.conftest import ROOT
from tests.e2e.test_capture import acc, captured

OTHER = ("--model", "random:tiny,seed=1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captured(tmp_path_factory.mktemp("base") / "rows", 4, "full32")


def answers(store: Store) -> dict[str, list[int]]:
    """The tokens of each request in the order of its steps."""
    found: dict[str, list[int]] = {}
    for row in store.table[np.lexsort((store.table["step"], store.table["request"]))]:
        found.setdefault(store.requests[row["request"]].id, []).append(int(row["token"]))
    return found


SETTINGS = """
limits: {max_batch: 8, max_tokens_per_step: 16, prefix_cache: true}
kv_cache: {num_blocks: 20, block_size: 8}
"""


@pytest.mark.parametrize("way", ["as it is", "preempted, in pieces, prefixes kept", "two ranks"])
def test_another_model_gives_the_bases_tokens_and_its_own_logits(base: Path, tmp_path: Path, way: str) -> None:
    flags: tuple[object, ...] = OTHER
    if way == "two ranks":
        flags += ("--ranks", 2)
    elif way != "as it is":
        (tmp_path / "settings.yaml").write_text(SETTINGS)
        flags += (tmp_path / "settings.yaml",)
    new = captured(tmp_path / "new", 8, "full32", *flags, "--force", base)
    store = Store(new)
    assert answers(store) == answers(Store(base))
    assert store.manifest.decode == "forced"
    assert store.table["forced"].all()
    assert (store.table["top_id"] != store.table["token"]).mean() > 0.9  # it would have said something else
    done = acc("compare", base, new, "--profile", "fp32")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 after a split of 0 requests are not scored" in done.stdout
    assert ", tokens forced" in done.stdout


def test_the_same_model_free_loses_nothing_and_another_nearly_everything(base: Path, tmp_path: Path) -> None:
    """What forcing is for: of a model that is far off, few rows would be left to look at."""
    free = captured(tmp_path / "free", 4, "topk", *OTHER)
    done = acc("compare", base, free, "--profile", "w4")
    num_requests = len(Store(base).requests)
    left = len(Store(base)) - int(done.stdout.split(" after a split")[0].rpartition("; ")[2])
    assert left == num_requests  # the first row of each, up to the split
    same = captured(tmp_path / "same", 4, "full32", "--force", base)
    forced = acc("compare", base, same, "--profile", "fp32")
    assert forced.returncode == 0, forced.stdout


def test_a_base_of_other_requests_is_said_and_counted(base: Path, tmp_path: Path) -> None:
    """Requests that the base does not have run free."""
    known = tmp_path / "known"
    shutil.copytree(base, known)
    for path in known.glob("*.requests.jsonl"):
        path.write_text(path.read_text().replace('"id":"plan-', '"id":"other-'))
    new = captured(tmp_path / "new", 4, "topk", "--force", known)
    assert not Store(new).table["forced"].any()
    assert answers(Store(new)) == answers(Store(base))
    done = acc("compare", base, new, "--profile", "fp32")
    assert done.returncode == 0, done.stdout
    num_rows = len(Store(new))
    assert f"{num_rows} of its {num_rows} rows ran free: the base that was forced lacks their request" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--force", "{part}"), "not every step of plan-00000 is there (every 3, rate 1); capture the base with every"),
        (("--force", "{tmp}/none"), "no capture of logits is there, nor a run that has one"),
        (
            ("--force", "{base}", "--capture-tier", "contest"),
            "capture.force: contest files do not say that tokens",
        ),
    ],
)
def test_a_base_that_cannot_force_is_refused_at_the_start(
    base: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    part = captured(tmp_path / "part", 4, "fp", "--capture-every", 3) if "{part}" in flags else tmp_path
    words = [flag.format(part=part, tmp=tmp_path, base=base) for flag in flags]
    fixed = ("--port", "0", "--model", "random:tiny", "--capture", str(tmp_path / "x"))
    command = [sys.executable, "-m", "llmbench", "serve", *fixed, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()
