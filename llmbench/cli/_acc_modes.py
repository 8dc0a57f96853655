"""What the checks of `llmbench acc` that need no base have in common: whom they ask, prompts, the end."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from rich.text import Text

from llmbench import protocols
from llmbench.accuracy.describe import Line
from llmbench.accuracy.prompts import Prompts
from llmbench.accuracy.sides import StoreSide
from llmbench.cli import _perf
from llmbench.cli._acc import STYLES, Stack, say, serving
from llmbench.errors import InputError
from llmbench.loadgen.client import Timeouts
from llmbench.loadgen.fleet import Speech
from llmbench.loadgen.target import Target, Way, locate
from llmbench.logits import policy, store
from llmbench.report import files
from llmbench.report.terminal import Terminal
from llmbench.serving import config as serving_config
from llmbench.serving import launch
from llmbench.serving.stack import open_tokenizer
from llmbench.weights.model import open_model
from llmbench.workload import datasets


class Report(Protocol):
    """What a check ends with: a struct that can be written as JSON."""

    @property
    def exit_code(self) -> int: ...


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server that runs already, asked instead of one that is launched."""

    url: str
    dialect: str
    served_model: str | None
    api_key: str | None

    def target(self) -> Target:
        """Where it is. Raises InputError for a wrong URL, ServingError when nobody answers."""
        return locate(self.url, way=Way(headers=_perf.headers_of((), self.api_key)))

    def speech(self, target: Target, **options: object) -> protocols.Dialect:
        """Its dialect, with the name of the model where requests name one: the given, or the first that it tells of."""
        if self.served_model is not None:
            if "model" not in protocols.options(self.dialect):
                raise InputError(f"--served-model: requests of the {self.dialect} dialect name no model")
            options["model"] = self.served_model
        speech = Speech(name=self.dialect, options=options)
        return _perf.naming(target, speech, Timeouts(), say=lambda text: None).dialect()


def server(stack: Stack, url: str | None, dialect: str, served_model: str | None, api_key: str | None) -> Server | None:
    """The server at a URL; None without one. Raises InputError where it is contradicted."""
    if url is None:
        if served_model is not None:
            raise InputError("--served-model is for a server at --url; the launched one has one model")
        return None
    if stack.model or stack.engine or stack.config:
        raise InputError("--model, --engine and --config are for a stack that is launched; leave them or --url out")
    protocols.options(dialect)  # a wrong name is refused now
    return Server(url=url, dialect=dialect, served_model=served_model, api_key=api_key)


def prompts(stack: Stack, dataset: str, seed: int, num_new_tokens: int) -> tuple[Prompts, int]:
    """Prompts of the dataset's texts in ids of the stack's model, each short enough for so long an answer; and how many
    sequences the stack runs at once.
    """
    tokenizer = str(stack.tokenizer.absolute()) if stack.tokenizer else None
    settings = serving_config.load(stack.config, model=stack.model, engine=stack.engine, tokenizer=tokenizer).config
    model, limits = open_model(settings.model), settings.limits
    longest = min(model.config.max_positions, limits.max_model_len or model.config.max_positions) - num_new_tokens
    made = Prompts(
        texts(dataset),
        open_tokenizer(model, settings.tokenizer),
        np.random.default_rng([seed, 0]),
        min(longest, limits.max_prompt_len or longest),
    )
    return made, limits.max_batch


def texts(dataset: str) -> list[str]:
    """The prompts of a dataset. Raises InputError on a wrong name."""
    found = datasets.load(dataset)
    say(f"dataset: {found.path}{'' if found.real else ', a stand-in'}")
    return [sample.prompt for sample in found.samples]


@contextlib.contextmanager
def capturing(
    stack: Stack, folder: Path, tier: store.Tier, *more: str, requests: tuple[str, ...] = ()
) -> Iterator[Target]:
    """A stack that writes its rows into a folder, only those of some requests where any are named."""
    with serving(stack, *launch.capturing(folder, tier), *more) as found:
        if requests:  # the agent looks twice a second; until then it keeps more than it need
            policy.write(folder, policy.Policy(requests=requests))
        say(f"stack: {' '.join((found.url, *more))}")
        yield locate(found.url)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[StoreSide]:
    """The rows in a folder."""
    side = StoreSide(store.Store(folder))
    try:
        yield side
    finally:
        side.close()


def progress(what: str, num_requests: int) -> Callable[[int], None] | None:
    """A line that overwrites itself; None where nobody would see it."""
    if not sys.stderr.isatty():
        return None

    def tell(num_answered: int) -> None:
        end = "\n" if num_answered == num_requests else ""
        print(f"\r{what}: {num_answered}/{num_requests} requests ", end=end, file=sys.stderr, flush=True)

    return tell


def finish(report: Report, lines: Iterable[Line], json: Path | None) -> int:
    """Print, write; the exit status. Raises InputError when the file cannot be written."""
    console = Terminal()
    for line in lines:
        console.print(Text(line.text, style=STYLES[line.tone]), soft_wrap=True)
    if json is not None:
        write(json, "--json", files.as_json(report))
    return report.exit_code


def write(path: Path, flag: str, data: bytes) -> None:
    """A file that a flag names. Raises InputError when it cannot be written."""
    try:
        files.write(path, data)
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot write ({error.strerror})") from error
