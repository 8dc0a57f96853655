"""JSON lines as the public sets have them, plain or gzipped, and what is read from an answer in words."""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmbench.errors import InputError
from llmbench.evals import NO_ANSWER


class Line:
    """One object of a file. `number` counts from 0."""

    def __init__(self, path: Path, number: int, fields: dict[str, Any]) -> None:
        self.number = number
        self._path = path
        self._fields = fields

    def text(self, key: str, default: str | None = None) -> str:
        """A text. Raises InputError that names file, line and key."""
        value = self._fields.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "a text", value)
        return value

    def flag(self, key: str) -> bool:
        """true or false. Raises InputError."""
        value = self._fields.get(key)
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def error(self, key: str, wanted: str, value: object) -> InputError:
        """The error for a wrong value."""
        return InputError(f"{self._path}: line {self.number + 1}: {key}: expected {wanted}, found {value!r}")


def read(path: Path) -> list[Line]:
    """The objects of PATH, or of PATH.gz where only that is there. Raises InputError."""
    packed = path.with_name(f"{path.name}.gz")
    source = packed if packed.is_file() and not path.exists() else path
    try:
        data = source.read_bytes()
        text = (gzip.decompress(data) if source == packed else data).decode("utf-8-sig")
    except OSError as error:  # gzip.BadGzipFile is one too, without a strerror
        raise InputError(f"{source}: cannot read the questions ({error.strerror or error})") from error
    except (EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: not JSON lines in UTF-8 ({error})") from error
    rows = [(number, row) for number, row in enumerate(text.split("\n")) if row.strip()]
    return [Line(source, number, _object(source, number, row)) for number, row in rows]


def first_word(text: str, words: Sequence[str]) -> str:
    """The first of these words in a text, in small letters; NO_ANSWER when none is there."""
    found = re.search(rf"\b({'|'.join(words)})\b", text, re.IGNORECASE)
    return found[1].lower() if found else NO_ANSWER


def _object(path: Path, number: int, row: str) -> dict[str, Any]:
    try:
        value = json.loads(row)
    except ValueError as error:
        raise InputError(f"{path}: line {number + 1} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: line {number + 1} is not an object")
    return value
