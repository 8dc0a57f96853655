"""What the `acc` commands do: launch a capturing stack, replay, compare, print."""

import sys
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from llmbench import protocols
from llmbench.accuracy import compare as comparing
from llmbench.accuracy import describe, replay
from llmbench.accuracy.compare import Options
from llmbench.cli._progress import overwrite
from llmbench.errors import InputError
from llmbench.logits import contest
from llmbench.report import files
from llmbench.report.terminal import Terminal
from llmbench.serving.launch import flags, launched
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload import datasets

_STYLES = {"plain": "", "good": "green", "bad": "red", "doubt": "yellow"}


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
    status = compare_folders(base, folder / "file_npy", json)
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


def compare_folders(base: Path, new: Path, json: Path | None, options: Options = Options()) -> int:
    """Compare, print; the exit status."""
    comparison, _ = comparing.compare(base, new, options)
    if json is not None:
        files.write_json(json, comparison)
    show(Terminal(), comparison)
    return describe.EXIT[comparison.verdict]


def show(console: Console, comparison: comparing.Comparison) -> None:
    """The comparison in words; colours say how each line is meant."""
    for line in describe.lines(comparison):
        console.print(Text(line.text, style=_STYLES[line.tone]), soft_wrap=True)


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
