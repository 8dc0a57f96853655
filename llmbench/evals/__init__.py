"""Sets of questions with known answers, one file each: what is asked, and how a reply is marked.

A set's module has `ABOUT`, what it is and where its files come from; `MODES`, `SPLITS` and `SHOTS`, what can be chosen,
the default first; and a factory `evaluation(options) -> Eval`. The name of the file is the name users type. Nothing
here talks to a model: `exam` asks the questions, over HTTP or in this process, and hands the replies back to `mark`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import msgspec

from llmbench import plugins
from llmbench.errors import InputError

NO_ANSWER = "-1"
"""What stands for the answer where none could be read from a reply, as in the reference's cache.csv."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a model, always greedy.

    `want` is "text" for a continuation of at most `max_new_tokens`, "next" for the log-probabilities of the likeliest
    next tokens, "prompt" for those of the prompt's own tokens.
    """

    prompt: str
    want: Literal["text", "next", "prompt"] = "text"
    max_new_tokens: int = 1


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an Ask; `error` says why nothing did. Log-probabilities are natural.

    `text` continues the prompt's. `top` are the likeliest next tokens by their text; of two with one text the likelier.
    `tokens` are the prompt's, each with its log-probability after those before it; the very first has None.
    """

    text: str = ""
    top: dict[str, float] = {}
    tokens: tuple[tuple[str, float | None], ...] = ()
    error: str = ""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One question: `id` is its own in the set, `group` its subject; `notes` are what else marking needs."""

    id: str
    group: str
    category: str
    truth: str
    asks: tuple[Ask, ...]
    shots: int = 0
    notes: dict[str, Any] = {}


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What a model answered, and whether that is right; None where it cannot be told, as for code that was not run.

    `scores` are those of the answers that there are, in natural log-probabilities; `metrics` are further numbers, of
    which a run has the means.
    """

    predicted: str
    correct: bool | None
    scores: dict[str, float] = {}
    metrics: dict[str, float] = {}


class Marked(msgspec.Struct, frozen=True, kw_only=True):
    """An item with its replies' texts and its mark: a line of a run's journal.

    `prompt_sha256` is of what was asked; `key` also of the model and of the protocol, see `exam.journal`.
    """

    number: int
    """Its place in the run, from 0."""
    id: str
    group: str
    category: str
    truth: str
    predicted: str
    correct: bool | None
    scores: dict[str, float] = {}
    metrics: dict[str, float] = {}
    replies: list[str] = []
    shots: int = 0
    prompt_sha256: str
    key: str


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a user may choose; None is the set's own default. `count_tokens` counts as the model's tokenizer does."""

    mode: str | None = None
    split: str | None = None
    shots: int | None = None
    max_new_tokens: int | None = None
    allow_exec: bool = False
    count_tokens: Callable[[str], int]


class Eval(Protocol):
    """A set of questions with everything chosen."""

    name: str
    protocol: Mapping[str, Any]
    """All that decides what is asked and how it is marked: runs are comparable when theirs are equal."""

    def items(self, folder: Path) -> list[Item]:
        """The questions in the set's public files. Raises InputError that names file and line."""
        ...

    def mark(self, item: Item, replies: Sequence[Reply]) -> Mark:
        """Read the answer from the replies, one for each Ask of the item."""
        ...

    def files(self, marked: Sequence[Marked]) -> dict[str, bytes]:
        """Result files that the set's own tools have, by name."""
        ...


def module(name: str) -> ModuleType:
    """The module of a set. Raises InputError for an unknown one."""
    return plugins.load("evals", name)


def get(name: str, options: Options) -> Eval:
    """A set by name. Raises InputError for an unknown one, or a choice that it does not have."""
    found = module(name)
    for flag, value, known in (("--mode", options.mode, found.MODES), ("--split", options.split, found.SPLITS)):
        if value is not None and value not in known:
            raise InputError(f"{flag} {value}: {name} has {', '.join(known)}")
    if options.shots is not None and not 0 <= options.shots <= max(found.SHOTS):
        raise InputError(f"--shots {options.shots}: {name} takes 0 to {max(found.SHOTS)}")
    evaluation: Eval = found.evaluation(options)
    return evaluation
