"""What sets of four-choice questions share: their rows, the prompt's blocks, and three ways to read an answer."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmbench.errors import InputError
from llmbench.evals import NO_ANSWER, Ask, Item, Mark, Marked, Options, Reply

LETTERS = "ABCD"
MODES = ("first_letter", "regex", "logprob")
MAX_PROMPT_TOKENS = 2000  # ascend-formats 5.1: above it, shots are dropped
MAX_NEW_TOKENS = 32
HARD = frozenset(
    {
        "advanced_mathematics", "discrete_mathematics", "probability_and_statistics", "college_chemistry",
        "college_physics", "high_school_mathematics", "high_school_chemistry", "high_school_physics",
    }
)  # fmt: skip
"""C-Eval's hard subjects; the reference filters MMLU by the same names."""

_ASCII_LETTER = re.compile("[A-Za-z]")
# "A" alone may be the article: it is an answer where nothing follows that an article could stand before.
_LONE = r"(?:([B-D])(?![A-Za-z])|(A)(?=[.):,]|\s*\n|\s*\Z|\s+(?:is|because|since)\b))"
_GAP = r"[^A-Za-z\n]{0,8}"
# An answer that is announced, one that stands first, then any letter that stands alone; the first that matches.
_PATTERNS = (
    re.compile(rf"(?i:\banswer\b|\bchoice\b|\boption\b|答案|选){_GAP}(?i:is|为|是)?{_GAP}([A-D])(?![A-Za-z])"),
    re.compile(rf"\A[^A-Za-z]*{_LONE}"),
    re.compile(rf"(?<![A-Za-z]){_LONE}"),
)


class Choices:
    """What is chosen of a set of four-choice questions, and how its answers are marked."""

    name: str

    def __init__(self, options: Options, modes: Sequence[str], splits: Sequence[str], shots: Sequence[int]) -> None:
        self._count_tokens = options.count_tokens
        self.mode = options.mode or modes[0]
        self.split = options.split or splits[0]
        self.shots = shots[0] if options.shots is None else options.shots
        self.max_new_tokens = options.max_new_tokens or MAX_NEW_TOKENS
        self.protocol: Mapping[str, Any] = {
            "eval": self.name,
            "version": 1,
            "mode": self.mode,
            "split": self.split,
            "shots": self.shots,
            "max_new_tokens": 1 if self.mode == "logprob" else self.max_new_tokens,
        }

    def mark(self, item: Item, replies: Sequence[Reply]) -> Mark:
        """The letter by the mode."""
        return mark(replies[0], item.truth, self.mode)

    def files(self, marked: Sequence[Marked]) -> dict[str, bytes]:
        """`summary_subject_acc.json` and `summary_classes_acc.json`."""
        return summaries(marked)


def read_rows(path: Path, width: int) -> list[list[str]]:
    """The rows of a CSV file without a header, as text. Raises InputError that names the row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise InputError(f"{path}: cannot read the questions ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    for number, row in enumerate(rows, 1):
        if len(row) < width:
            raise InputError(f"{path}: row {number} has {len(row)} columns instead of {width}")
    return rows


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """These columns of the rows below a header. Raises InputError that names the column or the row."""
    head, *rows = read_rows(path, 1) or [[]]
    missing = next((name for name in columns if name not in head), None)
    if missing is not None:
        raise InputError(f"{path}: the first row names no column {missing!r}")
    short = next((number for number, row in enumerate(rows, 2) if len(row) < len(head)), None)
    if short is not None:
        raise InputError(f"{path}: row {short} has {len(rows[short - 2])} columns instead of {len(head)}")
    places = {name: head.index(name) for name in columns}
    return [{name: row[place] for name, place in places.items()} for row in rows]


def letter(text: str, path: Path, number: int) -> str:
    """The right answer as a file has it. Raises InputError when it is none of the letters."""
    if text not in tuple(LETTERS):
        raise InputError(f"{path}: row {number}: the answer must be one of A, B, C, D, got {text!r}")
    return text


def block(question: str, choices: Sequence[str], answer: str) -> str:
    """A question with its choices, up to and with the word that asks for the answer."""
    lines = [f"{name}. {choice}" for name, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([question, *lines, answer])


def fitted(build: Callable[[int], str], shots: int, count_tokens: Callable[[str], int]) -> tuple[str, int]:
    """The prompt with as many shots as fit into MAX_PROMPT_TOKENS, dropped one at a time; and how many those are."""
    while shots > 0 and count_tokens(build(shots)) > MAX_PROMPT_TOKENS:
        shots -= 1
    return build(shots), shots


def ask(prompt: str, mode: str, max_new_tokens: int) -> Ask:
    """The one request of a question."""
    if mode == "logprob":
        return Ask(prompt=prompt, want="next")
    return Ask(prompt=prompt, max_new_tokens=max_new_tokens)


def mark(reply: Reply, truth: str, mode: str) -> Mark:
    """Read the letter from a reply by the mode."""
    if mode == "logprob":
        scores = spelled(reply.top, {name: (f" {name}", name) for name in LETTERS})
        predicted = likeliest(scores)
    else:
        scores = {}
        predicted = first_letter(reply.text) if mode == "first_letter" else by_pattern(reply.text)
    return Mark(predicted=predicted, correct=predicted == truth, scores=scores)


def first_letter(text: str) -> str:
    """The first ASCII letter, as a capital, whatever word it begins; NO_ANSWER when there is none."""
    found = _ASCII_LETTER.search(text)
    return found[0].upper() if found else NO_ANSWER


def by_pattern(text: str) -> str:
    """The letter that an answer in words means: announced ("the answer is B"), first, or alone; else NO_ANSWER."""
    for pattern in _PATTERNS:
        if found := pattern.search(text):
            return next(group for group in found.groups() if group)
    return NO_ANSWER


def spelled(top: Mapping[str, float], spellings: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """Of each answer the log-probability of its likeliest spelling; those that are not in `top` are left out."""
    scores = {}
    for name, texts in spellings.items():
        found = [top[text] for text in texts if text in top]
        if found:
            scores[name] = max(found)
    return scores


def likeliest(scores: Mapping[str, float]) -> str:
    """The answer with the highest score, of equal ones the first; NO_ANSWER when there is none."""
    return max(scores, key=lambda name: scores[name]) if scores else NO_ANSWER


def summaries(marked: Sequence[Marked]) -> dict[str, bytes]:
    """The reference's two JSON files: shares right by subject, and by category with "Avg" (micro) and "Avg(Hard)"."""
    subjects: dict[str, list[Marked]] = {}
    classes: dict[str, list[Marked]] = {}
    for one in marked:
        subjects.setdefault(one.group, []).append(one)
        classes.setdefault(one.category, []).append(one)
    by_class = {name: _share(ones) for name, ones in sorted(classes.items())} | {"Avg": _share(marked)}
    hard = [one for one in marked if one.group in HARD]
    if hard:
        by_class["Avg(Hard)"] = _share(hard)
    return {
        "summary_subject_acc.json": _json({name: _share(ones) for name, ones in sorted(subjects.items())}),
        "summary_classes_acc.json": _json(by_class),
    }


def _share(marked: Sequence[Marked]) -> float:
    return sum(one.correct is True for one in marked) / len(marked) if marked else 0.0


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
