"""Files of instruction records in the style of Alpaca: a JSON list of `{"instruction", "input", "output"}` strings."""

import json
from pathlib import Path
from typing import Any

import msgspec

from llmbench.errors import InputError

FIELDS = ("instruction", "input", "output")


class Sample(msgspec.Struct, frozen=True):
    """One record: what is sent, the reference answer, and its place in the file."""

    prompt: str
    output: str
    index: int


def read(path: Path) -> list[Sample]:
    """All records of a file. Raises InputError naming the file, the record (from 0) and the field that is wrong."""
    try:
        records = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot read the dataset ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(records, list):
        raise InputError(f"{path}: must be a list of records with the strings {', '.join(FIELDS)}")
    if not records:
        raise InputError(f"{path}: there is no record in it")
    return [_sample(path, index, record) for index, record in enumerate(records)]


def _sample(path: Path, index: int, record: Any) -> Sample:
    if not isinstance(record, dict):
        raise InputError(f"{path}: record {index} must be an object with the strings {', '.join(FIELDS)}")
    for field in FIELDS:
        if not isinstance(record.get(field), str):
            problem = "must be a string" if field in record else "is missing"
            raise InputError(f"{path}: record {index}: {field} {problem}")
    return Sample(prompt=join(record["instruction"], record["input"]), output=record["output"], index=index)


def join(instruction: str, text: str) -> str:
    """The prompt that the contest sends: the instruction, and the input, if any, behind a colon."""
    return f"{instruction}:{text}" if text else instruction
