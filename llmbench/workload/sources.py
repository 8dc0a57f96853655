"""What `--dataset` means: a name, a file, or `kind:key=value,...` for a file in `datasets/` with its settings.

Such a module has a frozen struct `Source` whose fields are its settings and whose `samples(need)` gives the samples.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from llmbench import plugins
from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer
from llmbench.workload import datasets, spec
from llmbench.workload.plan import Sample, Seeds, Turn

FLAG = "--dataset"
_NOT_KINDS = {"alpaca", "standins", "stats"}  # Alpaca files are named by their path alone


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a source is told: how many requests there will be, what counts tokens, and where chance comes from."""

    number: int
    tokenizer: Tokenizer
    prompts: np.random.Generator
    lengths: np.random.Generator
    thinks: np.random.Generator


class Source(msgspec.Struct, frozen=True):
    """A kind of dataset with its settings."""

    def samples(self, need: Need) -> list[Turn]:
        """The samples, in the order in which they are sent; the later turns of a conversation behind the first."""
        raise NotImplementedError


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """The samples that were asked for, and how to say where they come from."""

    name: str
    description: str
    samples: Sequence[Sample]


def kinds() -> list[str]:
    """The kinds that have settings."""
    return [name for name in plugins.names("workload.datasets") if name not in _NOT_KINDS]


def need(number: int, tokenizer: Tokenizer, seeds: Seeds) -> Need:
    """The streams of a plan's seeds; that of think times is a child of the schedule's."""
    return Need(
        number=number,
        tokenizer=tokenizer,
        prompts=np.random.default_rng([seeds.prompts, 1]),
        lengths=np.random.default_rng(seeds.lengths),
        thinks=np.random.default_rng([seeds.schedule, 1]),
    )


def load(text: str, need: Need, flag: str = FLAG) -> Dataset:
    """The samples of a name, a path or a kind with settings. Raises InputError that says what is wrong, and where."""
    kind = spec.name(text)
    if Path(text).suffix == ".jsonl" and Path(text).is_file():
        kind, text = "jsonl", f"jsonl:path={text}"
    if kind in kinds():
        source: Source = spec.build(flag, text, plugins.load("workload.datasets", kind).Source)
        samples = source.samples(need)
        return Dataset(name=text, description=f"{kind}, {_number(samples)}", samples=samples)
    path = Path(text)
    if text not in datasets.names() and not path.exists() and (":" in text or (path.name == text and not path.suffix)):
        names = [*datasets.names(), *kinds()]
        raise InputError(plugins.unknown("dataset", kind, names) + "; or give the path of a JSON or JSONL file")
    known = datasets.load(text)
    return Dataset(
        name=known.name,
        description=f"{known.path}, {len(known.samples)} samples: {known.description}",
        samples=known.samples,
    )


def records(path: Path) -> list[tuple[str, Any]]:
    """The records of a JSON list, or of a file of JSON lines (`.jsonl`), each with what to call it in an error."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the dataset ({error.strerror})") from error
    found: list[tuple[str, Any]]
    if path.suffix == ".jsonl":
        found = [
            (f"line {number}", _decoded(path, f"line {number}: ", line))
            for number, line in enumerate(content.splitlines(), 1)
            if line.strip()
        ]
    else:
        whole = _decoded(path, "", content)
        if not isinstance(whole, list):
            raise InputError(f"{path}: must be a list of records")
        found = [(f"record {index}", record) for index, record in enumerate(whole)]
    if not found:
        raise InputError(f"{path}: there is no record in it")
    for place, record in found:
        if not isinstance(record, dict):
            raise InputError(f"{path}: {place} must be an object")
    return found


def _decoded(path: Path, place: str, content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {place}not JSON ({error})") from error


def _number(samples: Sequence[Turn]) -> str:
    talks = sum(turn.think_s is None for turn in samples)
    return f"{len(samples)} samples" + ("" if talks == len(samples) else f" in {talks} conversations")
