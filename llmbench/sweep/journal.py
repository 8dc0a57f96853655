"""The journal of a sweep, `cases.jsonl`: a line for each case as soon as it is measured, readable after any death."""

import os
from pathlib import Path
from typing import Any, Literal

import msgspec

from llmbench import jsonlines
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.metrics.sweep import Case, Measured

FILE = "cases.jsonl"


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line: what is swept, and how."""

    kind: Literal["llmbench sweep 1"] = "llmbench sweep 1"
    what: str
    """The model and what computes it, or the server and its dialect, for people."""
    name: str
    """The model in the CSV file's name."""
    settings: dict[str, Any]
    """What was asked for."""


class Journal:
    """Appends cases, each with one write; the last line of a case counts. Raises InputError, InvalidMeasurement.

    A folder that was begun before goes on, its torn last line cut off; `what` is what it was begun with.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self._path = folder / FILE
        self._found: dict[Case, Measured] = {}
        self.what = header.what
        begun = self._path.is_file() and b"\n" in self._path.read_bytes()
        if begun:
            begun_with, found = read(folder)
            self.what = begun_with.what
            self._found = {each.case: each for each in found}
            data = self._path.read_bytes()
            os.truncate(self._path, data.rfind(b"\n") + 1)
        try:
            self._file = self._path.open("ab" if begun else "wb", buffering=0)
        except OSError as error:
            raise InputError(f"{folder}: cannot write the journal ({error.strerror})") from error
        self._encoder = msgspec.json.Encoder()
        if not begun:
            self._write(header)

    def settled(self, case: Case) -> Measured | None:
        """What is known of a case and need not be measured again; one that failed must."""
        found = self._found.get(case)
        return None if found is None or found.outcome == "failed" else found

    def append(self, measured: Measured) -> None:
        """Keep a case."""
        self._write(measured)
        self._found[measured.case] = measured

    def close(self) -> None:
        """No more."""
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: msgspec.Struct) -> None:
        try:
            self._file.write(self._encoder.encode(line) + b"\n")
        except OSError as error:
            raise InvalidMeasurement(f"{self._path}: cannot keep the cases ({error.strerror})") from error


def read(folder: Path) -> tuple[Header, list[Measured]]:
    """What was swept and what came of it, of each case its last line, in the order of their first ones.

    A torn last line is left out. Raises InputError.
    """
    header, lines = jsonlines.read(folder / FILE, Header, Measured, "a sweep's journal", what="sweep")
    return header, list({measured.case: measured for measured in lines}.values())
