"""Journals: JSON lines behind a header, appended one write each, readable after any kind of death."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llmbench.errors import InputError

Header = TypeVar("Header")


def read(path: Path, header: type[Header], line: Any, kind: str, what: str = "journal") -> tuple[Header, list[Any]]:
    """The header, and the lines, each a `line`: a type, or a union of them. A torn last line is left out.

    Raises InputError for a file that cannot be read, and for a line that is not one of `kind`.
    """
    try:
        first, *rest = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot read the {what} ({error.strerror})") from error
    rest = rest[:-1]  # what stands behind the last newline is empty, or torn
    decoder = msgspec.json.Decoder(line)
    number = 1
    try:
        found = msgspec.json.decode(first, type=header)
        lines = []
        for number, text in enumerate(rest, 2):  # noqa: B007 (named in the error)
            lines.append(decoder.decode(text))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: line {number} is not one of {kind} ({error})") from error
    return found, lines
