"""Journals: JSON lines behind a header, appended one write each, readable after any kind of death."""

import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llmbench.errors import InputError, InvalidMeasurement

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


def begun(path: Path) -> bool:
    """Whether a file is there and holds its first line."""
    return path.is_file() and b"\n" in path.read_bytes()


class Appended:
    """A journal that grows, each line with one write. One that is begun goes on, its torn last line cut off."""

    def __init__(self, path: Path, header: msgspec.Struct, what: str) -> None:
        """`what` it keeps, for errors. Raises InputError where it cannot be written."""
        self._path, self._what = path, what
        self._encoder = msgspec.json.Encoder()
        goes_on = begun(path)
        try:
            if goes_on:
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
            self._file = path.open("ab" if goes_on else "wb", buffering=0)
        except OSError as error:
            raise InputError(f"{path}: cannot write the journal ({error.strerror})") from error
        if not goes_on:
            try:
                self.append(header)
            except InvalidMeasurement:
                self.close()
                raise

    def append(self, line: msgspec.Struct) -> None:
        """Keep a line. Raises InvalidMeasurement when the disk takes no more."""
        try:
            self._file.write(self._encoder.encode(line) + b"\n")
        except OSError as error:
            raise InvalidMeasurement(f"{self._path}: cannot keep {self._what} ({error.strerror})") from error

    def close(self) -> None:
        """No more."""
        self._file.close()

    def __enter__(self) -> "Appended":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
