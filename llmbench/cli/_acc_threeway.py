"""What `acc threeway` does: take a target's rows, compute those of the reference and the trusted engine, print."""

import sys
from pathlib import Path

import msgspec
from rich.table import Table

from llmbench.accuracy import threeway as judging
from llmbench.accuracy.sides import StoreSide
from llmbench.accuracy.threeway import Found, Target, Text
from llmbench.cli import _progress
from llmbench.errors import InputError
from llmbench.logits.store import Store, is_store
from llmbench.report import files
from llmbench.report.terminal import Terminal
from llmbench.tokenizer import Tokenizer
from llmbench.weights.model import Model, open_model
from llmbench.workload import datasets


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The command: a store, or an engine. What is None follows from the target."""

    target: str
    model: str | None
    target_model: str | None
    num_requests: int
    dataset: str
    slack: float | None
    threads: int | None


def run(asked: Asked, json: Path | None) -> int:
    """Judge, print; the exit status."""
    progress = _overwrite if sys.stderr.isatty() else None
    notes: list[str] = []
    num_left_out = 0
    if is_store(Path(asked.target)):
        model, texts, target, num_left_out = _of_store(asked, notes)
    else:
        if Path(asked.target).is_dir():
            raise InputError(f"{asked.target}: no capture of logits is there, and no engine has that name")
        model = open_model(asked.model or "embedded")
        texts = _texts(model, asked.dataset, asked.num_requests)
        own = open_model(asked.target_model) if asked.target_model else model
        target = judging.computed(own, asked.target, texts, asked.threads, progress)
    found = judging.threeway(
        target,
        model,
        texts,
        num_left_out=num_left_out,
        slack=asked.slack,
        threads=asked.threads,
        progress=progress,
    )
    if progress is not None:
        _progress.line()
    _show(found, notes)
    if json is not None:
        files.write_json(json, {**msgspec.structs.asdict(found), "notes": notes})
    return 0 if found.verdict == "passed" else 1


def _of_store(asked: Asked, notes: list[str]) -> tuple[Model, list[Text], Target, int]:
    if asked.target_model is not None:
        raise InputError("--target-model: a capture has its rows already; give the model to judge them by with --model")
    side = StoreSide(Store(Path(asked.target)))
    try:
        manifest = side.store.manifest
        model = open_model(asked.model or manifest.model)
        if manifest.fingerprint and model.fingerprint() != manifest.fingerprint:
            notes.append(f"{side.path} was captured from other weights ({manifest.model}) than those of {model.name}")
        texts, num_left_out = judging.of_store(side.store, asked.num_requests)
        return model, texts, judging.captured(side, texts), num_left_out
    finally:
        side.close()


def _texts(model: Model, dataset: str, num_requests: int) -> list[Text]:
    if model.tokenizer_path is None:
        raise InputError(f"model {model.name} brings no tokenizer.model; judge a capture of it")
    loaded = datasets.load(dataset)
    return judging.of_samples(loaded.samples, Tokenizer.from_file(model.tokenizer_path), num_requests)


def _overwrite(what: str, done: int, num: int) -> None:
    _progress.line(f"{what}: {done + 1} of {num}")


def _show(found: Found, notes: list[str]) -> None:
    console = Terminal()
    table = Table("error to float64", "mean", "sd", "99 % of |e|", "max |e|")
    sides = ((found.target, found.target_errors), (f"{judging.TRUSTED}, {found.dtype}", found.trusted_errors))
    for name, errors in sides:
        table.add_row(name, *(f"{value:.3g}" for value in (errors.mean, errors.sd, errors.p99, errors.max)))
    console.print(table)
    console.print(
        f"{found.num_rows} rows of {found.num_texts} requests, {found.num_values} logits, model {found.model}; "
        f"largest error: {found.worst[0]}, step {found.worst[1]}; {found.seconds:.1f} s",
        soft_wrap=True,
    )
    if found.num_left_out:
        notes = [*notes, f"{found.num_left_out} rows left out: not all tokens before them are known"]
    for note in notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    console.print(
        f"{found.verdict.upper()}: the target's errors are {found.sigma_ratio:.3g} times as wide (up to "
        f"{found.sigma_limit:g} passes), Bhattacharyya coefficient {found.overlap:.4f} (from {found.overlap_limit:g} "
        "on passes)",
        style="green" if found.verdict == "passed" else "red",
        soft_wrap=True,
    )
