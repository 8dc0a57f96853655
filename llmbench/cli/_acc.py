"""What the `acc` commands do: launch a capturing stack, replay, compare, print."""

import sys
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmbench import protocols
from llmbench.accuracy import compare as comparing
from llmbench.accuracy import describe, drill, replay
from llmbench.accuracy.compare import Options
from llmbench.accuracy.legacy import legacy
from llmbench.cli import _acc_files
from llmbench.cli._acc_files import Outputs
from llmbench.cli._progress import overwrite
from llmbench.errors import InputError
from llmbench.logits import contest
from llmbench.report import files
from llmbench.report.terminal import Terminal
from llmbench.serving.launch import flags, launched
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload import datasets

STYLES = {"plain": "", "good": "green", "bad": "red", "doubt": "yellow"}


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """The stack to launch; None takes its own defaults."""

    model: str | None
    engine: str | None
    config: Path | None
    tokenizer: Path | None


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent to it."""

    num_requests: int
    concurrency: int
    dataset: str


def check(base: Path, load: Load, stack: Stack, every: int | None, results: Path, json: Path | None) -> int:
    """Replay, compare with the base, print; the exit status."""
    base_dump = contest.read_dump(base)
    every = every or (base_dump.header.every if base_dump.header else contest.EVERY)
    if base_dump.header is not None and base_dump.header.every != every:
        raise InputError(f"--every {every}: {base} was captured with {base_dump.header.every}; leave --every out")
    folder = files.new_folder(results, "acc")
    _capture(folder / "file_npy", load, stack, every, folder / "journal.jsonl")
    status = compare_folders(base, folder / "file_npy", Outputs(json=json))
    print(f"files: {folder}")
    return status


def dump(out: Path, load: Load, stack: Stack, every: int) -> None:
    """Replay and keep the logits in a folder. Raises InputError when there is something in it already."""
    if contest.manifest_path(out).exists() or (out.exists() and any(out.iterdir())):
        raise InputError(
            f"-o {out}: there is a dump already; remove it and {contest.manifest_path(out).name}, or choose another"
        )
    with tempfile.TemporaryDirectory() as scratch:
        _capture(out, load, stack, every, Path(scratch) / "journal.jsonl")
    written = contest.read_dump(out)
    _say(f"base: {len(written.files)} rows of {load.num_requests} requests in {out}")
    if not written.files:
        raise InputError(f"no answer is long enough to reach an index divisible by {every}: take a smaller --every")


def compare_folders(
    base: Path, new: Path, outputs: Outputs, options: Options = Options(), *, with_legacy: bool = False
) -> int:
    """Compare, print, write what was asked for; the exit status."""
    comparison, rows = comparing.compare(base, new, options)
    show(Terminal(), comparison)
    if with_legacy:
        _say_legacy(base, new)
    _acc_files.write(outputs, comparison, rows)
    return describe.EXIT[comparison.verdict]


def show_rows(base: Path, new: Path | None, request_id: str, step: int | None) -> None:
    """A table for each row: the likeliest ids on both sides."""
    console = Terminal()
    for row in drill.look(base, new, request_id, step):
        place = f"step {row.step}, index {row.index}" if row.step is not None else f"index {row.index}"
        table = Table("id", "base", "new", "p", "q", title=f"{row.request_id}, {place}, batch {row.batch_size}")
        for entry in row.entries:
            differs = " *" if entry.vocab_id == row.worst else ""
            table.add_row(f"{entry.vocab_id}{differs}", *map(_cell, (entry.base, entry.new, entry.p, entry.q)))
        console.print(table)
        if row.worst is not None:
            console.print("* differs most")


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _say_legacy(base: Path, new: Path) -> None:
    """What the contest's script would have said, and that its exit status would be 0 all the same."""
    found = legacy(base, new)
    print(
        f"contest's script: {found.says}; {found.num_close} of {found.num_files} files within np.allclose(new, base, "
        f"atol=5e-3){'' if found.passed is None else ', exit 0'}"
    )


def show(console: Console, comparison: comparing.Comparison) -> None:
    """The comparison in words; colours say how each line is meant."""
    for line in describe.lines(comparison):
        console.print(Text(line.text, style=STYLES[line.tone]), soft_wrap=True)


def _capture(folder: Path, load: Load, stack: Stack, every: int, journal: Path) -> None:
    """Launch a stack that captures into a folder, send it the requests."""
    dataset = datasets.load(load.dataset)
    _say(f"dataset: {dataset.path}{'' if dataset.real else ', a stand-in'}")
    tokenizer = Tokenizer.from_file(stack.tokenizer or embedded_path())
    plan = replay.plan(dataset.samples, dataset.name, load.num_requests, tokenizer)
    given = {
        "--model": stack.model,
        "--engine": stack.engine,
        # a model that brings a tokenizer keeps its own
        "--tokenizer": stack.tokenizer and stack.tokenizer.absolute(),
        "--capture": folder.absolute(),
        "--capture-tier": "contest",
        "--capture-every": every,
    }
    with launched([*flags(given), *([str(stack.config)] if stack.config else [])]) as server:
        _say(
            f"stack: {server.url}; {load.num_requests} requests, {load.concurrency} at once; "
            f"rows whose index divides by {every}"
        )
        progress = overwrite if sys.stderr.isatty() else None
        replay.replay(plan, server.url, protocols.get("contest"), load.concurrency, journal, progress)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
