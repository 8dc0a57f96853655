"""Conversations as files have them: ShareGPT's `conversations` of from and value, or `messages` of role and content."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from llmbench.errors import InputError
from llmbench.workload.sources import records

Pair = tuple[str, str]  # a question and its answer

_SHAPES = {"conversations": ("from", "value"), "messages": ("role", "content")}
_ASKS, _ANSWERS = {"human", "user"}, {"gpt", "assistant", "chatgpt", "bing", "bard"}


def read(path: Path) -> list[list[Pair]]:
    """The questions that are directly followed by an answer, by conversation; those without any are left out."""
    talks = [pairs for place, record in records(path) if (pairs := _pairs(path, place, record))]
    if not talks:
        raise InputError(f"{path}: in no record is a human's turn followed by an answer")
    return talks


def _pairs(path: Path, place: str, record: dict[str, Any]) -> list[Pair]:
    key = next((key for key in _SHAPES if key in record), None)
    if key is None:
        raise InputError(f"{path}: {place}: neither {' nor '.join(_SHAPES)} is there")
    if not isinstance(record[key], list):
        raise InputError(f"{path}: {place}: {key} must be a list of turns")
    turns = [_turn(path, f"{place}: {key}[{n}]", turn, *_SHAPES[key]) for n, turn in enumerate(record[key])]
    return [
        (question, answer)
        for (asks, question), (answers, answer) in pairwise(turns)
        if asks in _ASKS and answers in _ANSWERS and question.strip()
    ]


def _turn(path: Path, place: str, turn: Any, who: str, what: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise InputError(f"{path}: {place} must be an object with the strings {who} and {what}")
    for field in (who, what):
        if not isinstance(turn.get(field), str):
            problem = "must be a string" if field in turn else "is missing"
            raise InputError(f"{path}: {place}: {field} {problem}")
    return turn[who], turn[what]
