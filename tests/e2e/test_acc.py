"""`llmbench acc` as a user runs it: a base is dumped, replayed at any concurrency, and what differs is named."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llmbench.logits.contest import Dump, manifest_path, parse_name, read_dump
from tests.conftest import ROOT

NUM_REQUESTS, EVERY = 12, 5
STACK = ("--model", "random:tiny")


def llmbench(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmbench", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=150)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples in the Alpaca format; the first two have one prompt, so that files of one contest key exist."""
    rows = [
        {
            "instruction": f"Name {max(1, i)} things that are {('red', 'round', 'old')[i % 3] if i > 1 else 'red'}",
            "input": "with a reason for each" * (i % 2 if i > 1 else 0),
            "output": "an answer of some words, " * (1 + max(1, i) % 4),
        }
        for i in range(NUM_REQUESTS + 2)
    ]
    path = tmp_path_factory.mktemp("data") / "rows.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    folder = tmp_path_factory.mktemp("base") / "file_npy"
    done = llmbench("acc", "dump", "-o", folder, "-n", NUM_REQUESTS, "--every", EVERY, "--dataset", dataset, *STACK)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """The base once more, to be changed."""
    folder = tmp_path / "copy"
    shutil.copytree(base, folder)
    shutil.copy(manifest_path(base), manifest_path(folder))
    return folder


def rows_of(folder: Path) -> Dump:
    dump = read_dump(folder)
    assert dump.rows is not None
    return dump


def replay(base: Path, dataset: Path, tmp_path: Path, *flags: str | Path) -> "subprocess.CompletedProcess[str]":
    fixed = ("-n", str(NUM_REQUESTS), "--dataset", dataset, "--results", tmp_path / "results")
    return llmbench("acc", "--base", base, *fixed, *(STACK if "--model" not in flags else ()), *flags)


def off_by_two_hundredths(folder: Path, at: int = 7) -> str:
    """Change one value of one file; its name."""
    path = sorted(folder.iterdir())[3]
    values = np.load(path)
    values.reshape(-1)[at] += 0.02
    np.save(path, values)
    return path.name


def test_a_dump_has_a_row_for_every_index_that_divides(base: Path) -> None:
    dump = rows_of(base)
    rows = dump.rows or ()
    assert dump.header is not None
    assert (dump.header.every, dump.header.model) == (EVERY, "random:tiny")
    assert sorted(row.file for row in rows) == list(dump.files)
    assert len({row.request_id for row in rows}) == NUM_REQUESTS
    for request_id in {row.request_id for row in rows}:
        indices = sorted(row.index for row in rows if row.request_id == request_id)
        assert all(index % EVERY == 0 for index in indices)
        assert all(after - before == EVERY for before, after in pairwise(indices))
    for row in rows:
        assert parse_name(row.file).index == row.index
        values = np.load(base / row.file, allow_pickle=False)
        assert (values.dtype, values.ndim) == (np.float32, 2 if row.prefill else 3)
    assert any(row.prefill for row in rows)
    assert {row.batch_size for row in rows} == {1}  # a base is computed one request at a time
    assert len({parse_name(name).key for name in dump.files}) < len(dump.files), "keys that several files share"


@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_replay_at_any_concurrency_passes(base: Path, dataset: Path, tmp_path: Path, concurrency: int) -> None:
    told = tmp_path / "comparison.json"
    done = replay(base, dataset, tmp_path, "-c", str(concurrency), "--json", told)
    assert done.returncode == 0, done.stdout + done.stderr
    number = len(rows_of(base).files)
    assert done.stdout.startswith("accuracy PASSED\n")
    assert f"rows: {number} compared, 0 outside the contest's tolerance" in done.stdout
    assert "joined by request" in done.stdout
    comparison = json.loads(told.read_text())
    assert (comparison["verdict"], comparison["num_compared"], comparison["findings"]) == ("passed", number, [])
    smallest, _, largest = comparison["batch_sizes"]
    assert (smallest, largest) == (1, 1) if concurrency == 1 else largest > 4
    (folder,) = (tmp_path / "results").iterdir()
    assert f"files: {folder}" in done.stdout
    assert len(rows_of(folder / "file_npy").files) == number


def test_a_replay_that_differs_by_two_hundredths_fails_and_names_the_value(
    copy: Path, dataset: Path, tmp_path: Path
) -> None:
    name = off_by_two_hundredths(copy)
    (row,) = (row for row in rows_of(copy).rows or () if row.file == name)
    done = replay(copy, dataset, tmp_path, "-c", "4")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("accuracy FAILED\n")
    assert f"worst: request {row.request_id}, index {row.index}, vocabulary id 7: base " in done.stdout
    assert "1 outside the contest's tolerance" in done.stdout


def test_another_model_fails(base: Path, dataset: Path, tmp_path: Path) -> None:
    done = replay(base, dataset, tmp_path, "-c", "4", "--model", "random:tiny,seed=1")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("accuracy FAILED\n")


def test_a_folder_equals_itself_and_a_copy(base: Path, copy: Path) -> None:
    for other in (base, copy):
        done = llmbench("acc", "compare", base, other)
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "accuracy PASSED")


@pytest.mark.parametrize("manifest", [True, False])
def test_a_value_that_is_off_fails_with_status_1_and_the_file(base: Path, copy: Path, manifest: bool) -> None:
    name = off_by_two_hundredths(copy)
    if not manifest:
        manifest_path(copy).unlink()
    done = llmbench("acc", "compare", base, copy)
    assert done.returncode == 1
    assert f"different: {name}: " in done.stdout
    assert "vocabulary id 7" in done.stdout
    assert ("joined by request" if manifest else "joined by file name") in done.stdout


@pytest.mark.parametrize("manifest", [True, False])
def test_a_deleted_file_gives_status_3_and_is_named(base: Path, copy: Path, manifest: bool) -> None:
    keys = Counter(parse_name(path.name).key for path in copy.iterdir())
    # without a manifest, files of one key are told apart by their order only
    path = next(path for path in sorted(copy.iterdir()) if keys[parse_name(path.name).key] == 1)
    path.unlink()
    if not manifest:
        manifest_path(copy).unlink()
    done = llmbench("acc", "compare", base, copy)
    assert done.returncode == 3
    assert done.stdout.startswith("accuracy NOT COMPARABLE\n")
    assert f"missing: {path.name}: " in done.stdout


@pytest.mark.parametrize("manifest", [True, False])
def test_an_emptied_file_gives_status_3_and_is_named(base: Path, copy: Path, manifest: bool) -> None:
    path = sorted(copy.iterdir())[0]
    path.write_bytes(b"")
    if not manifest:
        manifest_path(copy).unlink()
    done = llmbench("acc", "compare", base, copy)
    assert done.returncode == 3
    assert f"unreadable: {path.name}: " in done.stdout


def test_only_the_first_findings_are_shown_and_all_are_in_the_json(base: Path, copy: Path, tmp_path: Path) -> None:
    paths = sorted(copy.iterdir())
    for path in paths:
        path.write_bytes(b"")
    told = tmp_path / "comparison.json"
    done = llmbench("acc", "compare", base, copy, "--json", told)
    assert done.returncode == 3
    assert f"and {len(paths) - 6} more; all of them with --json FILE" in done.stdout
    assert len(json.loads(told.read_text())["findings"]) == len(paths)


def test_a_folder_that_holds_something_is_not_dumped_into(copy: Path, dataset: Path) -> None:
    before = sorted(path.name for path in copy.iterdir())
    done = llmbench("acc", "dump", "-o", copy, "-n", 2, "--dataset", dataset, *STACK)
    assert done.returncode == 2
    assert done.stderr.startswith(f"llmbench: -o {copy}: there is a dump already; remove it and copy.manifest.jsonl")
    assert sorted(path.name for path in copy.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("acc",), "give the folder of base logits with --base"),
        (("acc", "--base", "/no/such"), "llmbench: /no/such: there is no such folder of logits"),
        (("acc", "compare", "/no/such", "/no/such"), "llmbench: /no/such: there is no such folder of logits"),
        (("acc", "dump", "-o", "{tmp}/new", "-n", "0"), "'-n'"),
        (("acc", "dump", "-o", "{tmp}/new", "--dataset", "{tmp}/none.json"), "llmbench: "),
        (("acc", "dump", "-o", "{tmp}/new", "--dataset", "{rows}", "-n", "500"), "has 14 samples, got 500"),
        (("acc", "dump", "-o", "{tmp}/new", "--dataset", "{rows}", "-n", "2", "--model", "random:tinny"), "tinny"),
        (("acc", "dump", "-o", "{rows}/new", "--dataset", "{rows}", "-n", "2"), "cannot write"),
    ],
)
def test_wrong_usage_ends_with_status_2(dataset: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = llmbench(*(word.format(tmp=tmp_path, rows=dataset) for word in words))
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dump_without_rows_says_what_to_change(dataset: Path, tmp_path: Path) -> None:
    done = llmbench("acc", "dump", "-o", tmp_path / "new", "-n", 2, "--every", 1000, "--dataset", dataset, *STACK)
    assert done.returncode == 2
    assert "no answer is long enough to reach an index divisible by 1000: take a smaller --every" in done.stderr
