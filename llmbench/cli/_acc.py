"""What the `acc` commands do: launch a capturing stack, replay, compare, print."""

import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmbench import plugins, protocols
from llmbench.accuracy import compare as comparing
from llmbench.accuracy import describe, drill, replay
from llmbench.accuracy.compare import Options
from llmbench.accuracy.legacy import legacy
from llmbench.cli import _acc_files, _rows
from llmbench.cli._acc_files import Outputs
from llmbench.cli._progress import overwrite
from llmbench.errors import InputError
from llmbench.logits import contest, policy
from llmbench.logits.store import ROWS, TIERS, Store, is_store, read_manifest
from llmbench.processes import Child
from llmbench.report import files
from llmbench.report.terminal import Terminal
from llmbench.serving.launch import capturing, flags, launched
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


class Taking(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows are captured, and how much of each; `force` is a base whose tokens are fed to its requests."""

    tier: str = "contest"
    every: int | None = None
    rate: float = 1.0
    seed: str = ""
    force: Path | None = None

    def __post_init__(self) -> None:
        if self.tier not in ("contest", *TIERS):
            raise InputError(f"--tier: {plugins.unknown('tier', self.tier, ['contest', *TIERS])}")
        if self.force is not None and self.tier == "contest":
            raise InputError(
                "--force: contest files do not say that their tokens were forced; give a --tier such as topk, and a "
                "base that is such a capture"
            )


def check(
    base: Path,
    load: Load,
    stack: Stack,
    every: int | None,
    results: Path,
    outputs: Outputs,
    options: Options,
    *,
    forced: bool,
) -> int:
    """Replay, compare with the base, print; the exit status."""
    base = _rows.rows_of(base)
    taking = _as_in(base, every, forced=forced)
    folder = files.new_folder(results, "acc")
    rows = folder / ("file_npy" if taking.tier == "contest" else ROWS)
    _capture(rows, load, stack, taking, folder / "journal.jsonl")
    status = compare_folders(base, rows, outputs, options)
    print(f"files: {folder}")
    return status


def _as_in(base: Path, every: int | None, *, forced: bool) -> Taking:
    """What gives rows that can be compared with those of a base. Raises InputError when `every` is another one."""
    if is_store(base):
        there = policy.read(base) or policy.Policy()
        taking = Taking(
            tier=read_manifest(base).tier,
            every=there.every,
            rate=there.rate,
            seed=there.seed,
            force=base if forced else None,
        )
    else:
        dumped = contest.read_dump(base)
        if not dumped.files:
            raise InputError(f"{base}: there are no rows of logits in it; make some with `llmbench acc dump -o DIR`")
        header = dumped.header
        there_every = header.every if header else every or contest.EVERY
        taking = Taking(every=there_every, force=base if forced else None)
    if every not in (None, taking.every):
        raise InputError(f"--every {every}: {base} was captured with {taking.every}; leave --every out")
    return taking


def dump(out: Path, load: Load, stack: Stack, taking: Taking) -> None:
    """Replay and keep the logits in a folder. Raises InputError when there is something in it already."""
    if out.exists() and not out.is_dir():
        raise InputError(f"-o {out}: not a folder but a file; choose another")
    if contest.manifest_path(out).exists() or (out.exists() and any(out.iterdir())):
        raise InputError(
            f"-o {out}: there is a dump already; remove it and {contest.manifest_path(out).name}, or choose another"
        )
    with tempfile.TemporaryDirectory() as scratch:
        _capture(out, load, stack, taking, Path(scratch) / "journal.jsonl")
    num_rows = len(contest.read_dump(out).files) if taking.tier == "contest" else len(Store(out))
    say(f"base: {num_rows} rows of {load.num_requests} requests in {out}")
    if not num_rows:
        raise InputError(
            f"no answer is long enough to reach an index divisible by {taking.every}: take a smaller --every"
        )


def compare_folders(
    base: Path,
    new: Path,
    outputs: Outputs,
    options: Options = Options(),
    *,
    load: Path | None = None,
    with_legacy: bool = False,
) -> int:
    """Compare, print, write what was asked for; the exit status."""
    comparison, rows = compared(base, new, options, load)
    show(Terminal(), comparison)
    if with_legacy:
        _say_legacy(base, new)
    _acc_files.write(outputs, comparison, rows)
    return describe.EXIT[comparison.verdict]


def compared(
    base: Path, new: Path, options: Options, load: Path | None = None
) -> tuple[comparing.Comparison, comparing.Rows]:
    """The comparison of two captures.

    Either may be the folder of a run: its rows are meant, and new ones stand for its load, or for that of run `load`.
    """
    folders = _rows.rows_of(base), _rows.rows_of(new)
    if load is not None or _rows.is_run(new):
        options = _rows.standing_for(load or new, options)
    if _rows.is_run(base):
        options = _rows.with_base(base, options)
    return comparing.compare(*folders, options)


def show_rows(base: Path, new: Path | None, request_id: str, step: int | None) -> None:
    """A table for each row: the likeliest ids on both sides."""
    console = Terminal()
    for row in drill.look(_rows.rows_of(base), new and _rows.rows_of(new), request_id, step):
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


def _capture(folder: Path, load: Load, stack: Stack, taking: Taking, journal: Path) -> None:
    """Launch a stack that captures into a folder, send it the requests."""
    dataset = datasets.load(load.dataset)
    say(f"dataset: {dataset.path}{'' if dataset.real else ', a stand-in'}")
    tokenizer = Tokenizer.from_file(stack.tokenizer or embedded_path())
    plan = replay.plan(dataset.samples, dataset.name, load.num_requests, tokenizer)
    rate = taking.rate if taking.rate < 1 else None
    rows = capturing(folder, taking.tier, every=taking.every, rate=rate, seed=taking.seed, force=taking.force)
    with serving(stack, *rows) as server:
        say(
            f"stack: {server.url}; {load.num_requests} requests, {load.concurrency} at once; "
            f"{f'rows whose index divides by {taking.every}' if (taking.every or 1) > 1 else 'every row'}"
        )
        progress = overwrite if sys.stderr.isatty() else None
        replay.replay(plan, server.url, protocols.get("contest"), load.concurrency, journal, progress)


def serving(stack: Stack, *more: str) -> AbstractContextManager[Child]:
    """Launch the stack, with more flags. A model that brings a tokenizer keeps its own."""
    given = {
        "--model": stack.model,
        "--engine": stack.engine,
        "--tokenizer": stack.tokenizer and stack.tokenizer.absolute(),
    }
    return launched([*flags(given), *more, *([str(stack.config)] if stack.config else [])])


def say(text: str) -> None:
    """A note that is no part of the result."""
    print(text, file=sys.stderr)
